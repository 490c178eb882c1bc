"""Measurements of networks, genotypes and rankings. Imports nothing of nasbook but genotypes and errors."""

from nasbook.analysis.cells import (
    cell_depth,
    mean_depth,
    node_depths,
    operation_counts,
    skip_count,
)
from nasbook.analysis.continual import average_accuracy, backward_transfer, forgetting
from nasbook.analysis.costs import (
    count_macs,
    count_parameters,
    count_traffic,
    largest_batch,
    peak_memory,
    saved_activation_bytes,
)
from nasbook.analysis.ranking import kendall_tau
from nasbook.analysis.recurrent import (
    GATES,
    darts_parameters,
    fixed_complexity,
    gated_parameters,
    growing_complexity,
    two_to_one_parameters,
)
from nasbook.analysis.segmentation import (
    IGNORED,
    confusion_matrix,
    intersection_over_union,
    mean_iou,
    pixel_accuracy,
)
from nasbook.analysis.significance import (
    Interval,
    PairedTest,
    holm,
    mean_interval,
    paired_test,
    pareto_front,
    smallest_detectable,
)

__all__ = [
    "GATES",
    "IGNORED",
    "Interval",
    "PairedTest",
    "average_accuracy",
    "backward_transfer",
    "cell_depth",
    "confusion_matrix",
    "count_macs",
    "count_parameters",
    "count_traffic",
    "darts_parameters",
    "fixed_complexity",
    "forgetting",
    "gated_parameters",
    "growing_complexity",
    "holm",
    "intersection_over_union",
    "kendall_tau",
    "largest_batch",
    "mean_depth",
    "mean_interval",
    "mean_iou",
    "node_depths",
    "operation_counts",
    "paired_test",
    "pareto_front",
    "peak_memory",
    "pixel_accuracy",
    "saved_activation_bytes",
    "skip_count",
    "smallest_detectable",
    "two_to_one_parameters",
]
