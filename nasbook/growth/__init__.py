"""Growth: functions that take a network and return a larger one (Chapter 4).

Every function works on what a network declares of itself (:mod:`nasbook.networks.growable`) and returns a
:class:`Grown`: the larger network, and where each entry of its parameters comes from.
"""

from nasbook.growth.firefly import (
    Descent,
    Scores,
    integrated_gradients,
    integrated_gradients_by_coordinate,
    start,
    step_one,
    step_two,
)
from nasbook.growth.layers import with_empty_layers, without_empty_layers
from nasbook.growth.overgrown import Candidate, OvergrownNetwork
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
)
from nasbook.growth.surgery import Cut, Grown, Surgery, remap_optimizer, replay, rewire

__all__ = [
    "Budget",
    "Candidate",
    "CurvedReLU",
    "Cut",
    "Descent",
    "Eigenpairs",
    "Grown",
    "OvergrownNetwork",
    "Scores",
    "Surgery",
    "integrated_gradients",
    "integrated_gradients_by_coordinate",
    "least_eigenpairs",
    "rayleigh_quotients",
    "rayleigh_step",
    "remap_optimizer",
    "replay",
    "rewire",
    "select",
    "select_exactly",
    "split",
    "splittable",
    "splitting_matrices",
    "start",
    "step_one",
    "step_two",
    "with_empty_layers",
    "without_empty_layers",
]
