"""Experiments: every table and figure as a function of scale and seed; records; claims (all chapters)."""

from nasbook.experiments import differentiable_search
from nasbook.experiments.claims import CLAIMS, Claim, get_claim, judge, scoreboard
from nasbook.experiments.differentiable_search import (
    SEARCH_CONFIGS,
    autograd_hypergradient,
    derived_network,
    fit_config,
    hypergradient_problem,
    relative_error,
    search_config,
    toy_trajectory,
)
from nasbook.experiments.records import (
    Measurement,
    Provenance,
    Record,
    find_record,
    load_records,
    read_record,
    records_folder,
    save_measurement,
)
from nasbook.experiments.registry import (
    Experiment,
    Workplace,
    get_experiment,
    list_experiments,
    reproduce,
)
from nasbook.experiments.scale import SCALES, Scale, get_scale
from nasbook.experiments.verdicts import Status, Verdict

__all__ = [
    "CLAIMS",
    "SCALES",
    "SEARCH_CONFIGS",
    "Claim",
    "Experiment",
    "Measurement",
    "Provenance",
    "Record",
    "Scale",
    "Status",
    "Verdict",
    "Workplace",
    "autograd_hypergradient",
    "derived_network",
    "differentiable_search",
    "find_record",
    "fit_config",
    "get_claim",
    "get_experiment",
    "get_scale",
    "hypergradient_problem",
    "judge",
    "list_experiments",
    "load_records",
    "read_record",
    "records_folder",
    "relative_error",
    "reproduce",
    "save_measurement",
    "scoreboard",
    "search_config",
    "toy_trajectory",
]
