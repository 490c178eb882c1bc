"""The book's figures: cells, trajectories, curves, growing networks, changing pools, animations, and live controls.

Every function returns a matplotlib figure (or an animation) and touches no global state;
:func:`show` and :func:`show_animation` display it together with a description in words.
"""

from nasbook.plots.animation import Film, animate_search, compare_searches, draw_supernet, show_animation
from nasbook.plots.cell_film import animate_cell_growth
from nasbook.plots.cell_growth import (
    cell_growth_in_words,
    draw_cell_growth,
    plot_candidate_weights,
    recorded_search,
)
from nasbook.plots.cell_growth_explorer import explore_cell_growth
from nasbook.plots.cell_widths import animate_cell_widths, plot_cell_widths, widths_by_growth, widths_of_cells
from nasbook.plots.cells import cell_in_words, draw_cell, draw_genotype
from nasbook.plots.comparisons import plot_matrix, plot_points
from nasbook.plots.connection_film import animate_connections
from nasbook.plots.connections import draw_connections
from nasbook.plots.continual_results import (
    plot_accuracy_against_memory,
    plot_accuracy_matrices,
    plot_average_accuracy,
)
from nasbook.plots.curves import plot_architecture_weights, plot_learning_curves
from nasbook.plots.display import Described, describe, show
from nasbook.plots.explorer import explore_search
from nasbook.plots.fields import plot_vector_field
from nasbook.plots.growth import GrowthEpoch, draw_growth
from nasbook.plots.growth_film import animate_growth
from nasbook.plots.history import Epoch
from nasbook.plots.layout import DagLayout, dag_layout
from nasbook.plots.master_explorer import explore_master
from nasbook.plots.master_film import animate_tasks, tasks_in_words
from nasbook.plots.master_network import draw_master, master_in_words
from nasbook.plots.networks import draw_search_network, draw_stack, stack_in_words
from nasbook.plots.neurons import draw_neurons
from nasbook.plots.palette import (
    OKABE_ITO,
    OperationStyle,
    operation_label,
    operation_styles,
    use_style,
)
from nasbook.plots.pareto import pareto_in_words, plot_pareto
from nasbook.plots.pool_explorer import browse_family_trees, explore_family_trees
from nasbook.plots.pool_film import animate_pools
from nasbook.plots.pools import (
    CycleEpoch,
    cycles_in_words,
    draw_family_tree,
    family_tree_in_words,
    plot_cycles,
)
from nasbook.plots.recurrent_cells import draw_recurrent_cell, draw_recurrent_cells, recurrent_cell_in_words
from nasbook.plots.scaling import fitted_slope, plot_accuracy_against_size, plot_loss_by_neurons, plot_orders
from nasbook.plots.sequence_results import plot_loss_over_time, plot_loss_panels, plot_parameters_by_nodes
from nasbook.plots.series import plot_series
from nasbook.plots.tabular_explorer import explore_table, pick_cell
from nasbook.plots.tabular_finds import finds_in_words, plot_finds

__all__ = [
    "OKABE_ITO",
    "CycleEpoch",
    "DagLayout",
    "Described",
    "Epoch",
    "Film",
    "GrowthEpoch",
    "OperationStyle",
    "animate_cell_growth",
    "animate_cell_widths",
    "animate_connections",
    "animate_growth",
    "animate_pools",
    "animate_search",
    "animate_tasks",
    "browse_family_trees",
    "cell_growth_in_words",
    "cell_in_words",
    "compare_searches",
    "cycles_in_words",
    "dag_layout",
    "describe",
    "draw_cell",
    "draw_cell_growth",
    "draw_connections",
    "draw_family_tree",
    "draw_genotype",
    "draw_growth",
    "draw_master",
    "draw_neurons",
    "draw_recurrent_cell",
    "draw_recurrent_cells",
    "draw_search_network",
    "draw_stack",
    "draw_supernet",
    "explore_cell_growth",
    "explore_family_trees",
    "explore_master",
    "explore_search",
    "explore_table",
    "family_tree_in_words",
    "finds_in_words",
    "fitted_slope",
    "master_in_words",
    "operation_label",
    "operation_styles",
    "pareto_in_words",
    "pick_cell",
    "plot_accuracy_against_memory",
    "plot_accuracy_against_size",
    "plot_accuracy_matrices",
    "plot_architecture_weights",
    "plot_average_accuracy",
    "plot_candidate_weights",
    "plot_cell_widths",
    "plot_cycles",
    "plot_finds",
    "plot_learning_curves",
    "plot_loss_by_neurons",
    "plot_loss_over_time",
    "plot_loss_panels",
    "plot_matrix",
    "plot_orders",
    "plot_parameters_by_nodes",
    "plot_pareto",
    "plot_points",
    "plot_series",
    "plot_vector_field",
    "recorded_search",
    "recurrent_cell_in_words",
    "show",
    "show_animation",
    "stack_in_words",
    "tasks_in_words",
    "use_style",
    "widths_by_growth",
    "widths_of_cells",
]
