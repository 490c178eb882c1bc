"""Experiments: every table and figure as a function of scale and seed; records; claims (all chapters)."""

from nasbook.experiments import differentiable_search, stretchable_cells, topology_checks
from nasbook.experiments.claims import CLAIMS, Claim, get_claim, judge, scoreboard
from nasbook.experiments.differentiable_search import (
    autograd_hypergradient,
    hypergradient_problem,
    relative_error,
    toy_trajectory,
)
from nasbook.experiments.image_cells import (
    SEARCH_CONFIGS,
    derived_network,
    fit_config,
    milenas_config,
    pairs_config,
    search_config,
    search_space,
    stretchable_config,
    train_derived,
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
from nasbook.experiments.scale import (
    SCALES,
    STRETCHABLE_SCALES,
    Scale,
    StretchableScale,
    get_scale,
    stretchable_scale,
)
from nasbook.experiments.stretchable_cells import (
    TrajectoryStep,
    trajectory_reports,
)
from nasbook.experiments.verdicts import Status, Verdict

__all__ = [
    "CLAIMS",
    "SCALES",
    "SEARCH_CONFIGS",
    "STRETCHABLE_SCALES",
    "Claim",
    "Experiment",
    "Measurement",
    "Provenance",
    "Record",
    "Scale",
    "Status",
    "StretchableScale",
    "TrajectoryStep",
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
    "milenas_config",
    "pairs_config",
    "read_record",
    "records_folder",
    "relative_error",
    "reproduce",
    "save_measurement",
    "scoreboard",
    "search_config",
    "search_space",
    "stretchable_cells",
    "stretchable_config",
    "stretchable_scale",
    "topology_checks",
    "toy_trajectory",
    "train_derived",
    "trajectory_reports",
]
