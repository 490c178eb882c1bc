"""Growth: functions that take a network and return a larger one (Chapter 4).

Every function works on what a network declares of itself (:mod:`nasbook.networks.growable`) and returns a
:class:`Grown`: the larger network, and where each entry of its parameters comes from. :func:`morph` is the exception:
it changes one candidate operation and returns it (Chapter 5).
"""

from nasbook.growth.firefly import (
    CandidateDescent,
    Descent,
    Scores,
    integrated_gradients,
    integrated_gradients_by_coordinate,
    start,
    step_one,
    step_two,
)
from nasbook.growth.history import GrowthEvent, load_history, replay_history, save_history
from nasbook.growth.layers import with_empty_layers, without_empty_layers
from nasbook.growth.morphisms import (
    grow_kernel,
    insert_identity,
    insert_residual,
    net2deeper,
    net2wider,
    random_directions,
    split_neurons,
    widen_with_zeros,
)
from nasbook.growth.operation_morphisms import function_change, morph
from nasbook.growth.overgrown import Candidate, OvergrownNetwork
from nasbook.growth.overgrown_layers import OvergrownLayer
from nasbook.growth.selection import Budget, select, select_exactly
from nasbook.growth.splitting import (
    CurvedReLU,
    Eigenpairs,
    least_eigenpairs,
    rayleigh_quotients,
    rayleigh_step,
    split,
    splittable,
    splitting_matrices,
    splitting_products,
)
from nasbook.growth.surgery import Cut, Grown, Surgery, regrow, remap_optimizer, replay, rewire

__all__ = [
    "Budget",
    "Candidate",
    "CandidateDescent",
    "CurvedReLU",
    "Cut",
    "Descent",
    "Eigenpairs",
    "Grown",
    "GrowthEvent",
    "OvergrownLayer",
    "OvergrownNetwork",
    "Scores",
    "Surgery",
    "function_change",
    "grow_kernel",
    "insert_identity",
    "insert_residual",
    "integrated_gradients",
    "integrated_gradients_by_coordinate",
    "least_eigenpairs",
    "load_history",
    "morph",
    "net2deeper",
    "net2wider",
    "random_directions",
    "rayleigh_quotients",
    "rayleigh_step",
    "regrow",
    "remap_optimizer",
    "replay",
    "replay_history",
    "rewire",
    "save_history",
    "select",
    "select_exactly",
    "split",
    "split_neurons",
    "splittable",
    "splitting_matrices",
    "splitting_products",
    "start",
    "step_one",
    "step_two",
    "widen_with_zeros",
    "with_empty_layers",
    "without_empty_layers",
]
