"""MiLeNAS: architecture search at a mixed level (He, Ye, Shen & Zhang, CVPR 2020).

Chapter 2. DARTS with one change: the architecture minimises both losses, as Eq. 18 of Stretchable Cells writes it,

    min_α  L_train(w*(α), α) + λ·L_val(w*(α), α).

First order takes both gradients at w; second order both at the unrolled w′.

The weight λ is on the validation loss, as in both papers. The authors' code (chaoyanghe/MiLeNAS) multiplies the
*training* gradient by a weight; it takes a weight for the validation loss too, and the lines that would apply it are
commented out. At its defaults, 1 and 1, that is the same. It also clips the gradients of the architecture after the
weights' backward pass, so that the weights' are never clipped, and draws each validation batch from a fresh iterator,
with replacement. We clip the weights' gradients and walk through the validation images in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nasbook.data import ImageData
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.methods import darts
from nasbook.training import Objective


@dataclass(frozen=True)
class Config(darts.Config):
    """How MiLeNAS searches: DARTS' settings, first order, and the weights of the two losses."""

    order: Literal["first-order", "second-order", "finite-difference"] = "first-order"
    """Form of the architecture gradient: ξ = 0, the exact product, or DARTS' approximation of it."""
    train_weight: float = 1.0
    """Of the training loss in the architecture's objective; 0 gives DARTS."""
    validation_weight: float = 1.0
    """Of the validation loss: λ, 1 in the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective()

    def objective(self) -> Objective:
        """What the architecture minimises (Eq. 18)."""
        return Objective(self.train_weight, self.validation_weight)


class Search(darts.Search):
    """MiLeNAS on one data set; see :class:`~nasbook.methods.GradientSearch` for the arguments."""

    method: ClassVar[str] = "milenas"
    config: Config

    def __init__(self, config: Config, data: ImageData, space: Space = DARTS_SPACE, seed: int = 0) -> None:
        super().__init__(config, data, space, seed)

    def objective(self) -> Objective:
        return self.config.objective()
