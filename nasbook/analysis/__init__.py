"""Measurements of networks, genotypes and rankings. Imports nothing of nasbook but genotypes and errors."""

from nasbook.analysis.cells import (
    cell_depth,
    mean_depth,
    node_depths,
    operation_counts,
    skip_count,
)
from nasbook.analysis.costs import (
    count_macs,
    count_parameters,
    count_traffic,
    largest_batch,
    peak_memory,
    saved_activation_bytes,
)
from nasbook.analysis.ranking import kendall_tau

__all__ = [
    "cell_depth",
    "count_macs",
    "count_parameters",
    "count_traffic",
    "kendall_tau",
    "largest_batch",
    "mean_depth",
    "node_depths",
    "operation_counts",
    "peak_memory",
    "saved_activation_bytes",
    "skip_count",
]
