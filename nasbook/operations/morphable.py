"""The morphable separable convolution of PR-DARTS (§3.2; Chapter 5): its configurations, and how they change.

A configuration is a kernel size, a dilation and a list of expansions. It has a canonical name, which is what genotypes
hold: ``sep_conv(kernel=5, dilation=1, expansions=2-1)``. Six morphisms lead from one configuration to another; what
they do to weights stands in :mod:`nasbook.growth.operation_morphisms`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.operations.depthwise import DepthwiseConvolution

_NUMBER = "[1-9][0-9]{0,6}"  # bounded, so that a damaged file can't hold a number that is too long to read
_NAME = re.compile(
    rf"sep_conv\(kernel=({_NUMBER}), dilation=({_NUMBER}), expansions=(none|{_NUMBER}(?:-{_NUMBER})*)\)"
)

_STACKED = re.compile(r"(sep|dil)_conv_([1-9])x\2")
"""DARTS' own separable convolutions, which are configurations too."""

LAYER = 4
"""Modules of one layer: ReLU, depthwise convolution, pointwise convolution, batch norm."""


@dataclass(frozen=True, order=True)
class Configuration:
    """What a separable convolution looks like; all of its layers have the same kernel size and dilation.

    DARTS' separable convolution is ``Configuration(k, 1, (1,))``, its dilated one ``Configuration(k, 2)``.

    Raises:
        InvalidInput: an even kernel size, or a number below 1.
    """

    kernel: int
    """Height and width of the depthwise kernels; odd."""
    dilation: int = 1
    """Distance of their taps, in pixels."""
    expansions: tuple[int, ...] = ()
    """Widths between the layers, as multiples of the channels; one more layer than expansions. "mult" in Fig. 1."""

    def __post_init__(self) -> None:
        require_positive(kernel=self.kernel, dilation=self.dilation)
        if self.kernel % 2 == 0:
            raise InvalidInput(f"A kernel size must be odd, so that the size of the image stays; got {self.kernel}.")
        if any(expansion < 1 for expansion in self.expansions):
            raise InvalidInput(f"Expansions are multiples of the channels, 1 or more; got {self.expansions}.")

    @property
    def name(self) -> str:
        """The canonical name: equal configurations have equal names."""
        expansions = "-".join(map(str, self.expansions)) or "none"
        return f"sep_conv(kernel={self.kernel}, dilation={self.dilation}, expansions={expansions})"

    @classmethod
    def parse(cls, name: str) -> Configuration:
        """The configuration of a canonical name.

        Raises:
            InvalidInput: the name has another form, or an even kernel size.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidInput(
                f"{name!r} is not the name of a morphable convolution. Expected a form like "
                f"{cls(5, 1, (2, 1)).name!r}, or {cls(3).name!r}, with these spaces and no leading zeros."
            )
        kernel, dilation, expansions = match.groups()
        widths = () if expansions == "none" else tuple(map(int, expansions.split("-")))
        return cls(int(kernel), int(dilation), widths)


def is_morphable(name: str) -> bool:
    """Whether this has the form of a morphable convolution's name; :meth:`Configuration.parse` refuses even kernels."""
    return _NAME.fullmatch(name) is not None


def configuration_of(name: str) -> Configuration:
    """The configuration of a separable convolution: a canonical name, or one of DARTS' ``sep_conv_…``, ``dil_conv_…``.

    Raises:
        InvalidInput: the operation is none.
    """
    match = _STACKED.fullmatch(name)
    if match is not None:
        kernel = int(match[2])
        return Configuration(kernel, 1, (1,)) if match[1] == "sep" else Configuration(kernel, 2)
    if is_morphable(name):
        return Configuration.parse(name)
    raise InvalidInput(
        f"{name!r} is not a separable convolution: it has no kernel size, dilation and expansions to compare."
    )


class MorphableConvolution(nn.Sequential):
    """(ReLU, depthwise k×k, pointwise, batch norm) once and once more for every expansion (§3.2, Fig. 1).

    The pointwise convolutions lead from C channels to e₁·C, e₂·C, …, and back to C. The stride is in the first layer.

    Args:
        channels: C, in and out.
        configuration: kernel size, dilation, expansions.
        stride: 1 or 2.
        affine: whether the batch norms have a scale and a shift.
    """

    def __init__(self, channels: int, configuration: Configuration, stride: int = 1, affine: bool = True) -> None:
        widths = [channels * factor for factor in (1, *configuration.expansions, 1)]
        kernel, dilation = configuration.kernel, configuration.dilation
        modules: list[nn.Module] = []
        for place, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            modules += [
                nn.ReLU(),
                DepthwiseConvolution(inputs, kernel, 1 if place else stride, dilation * (kernel // 2), dilation),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs, affine=affine),
            ]
        super().__init__(*modules)
        self.channels = channels
        self.configuration = configuration
        self.stride = stride
        self.affine = affine


# --- the six morphisms (§3.2) -----------------------------------------------------------------------------------------


def _larger_kernel(configuration: Configuration) -> Configuration:
    return replace(configuration, kernel=configuration.kernel + 2)


def _smaller_kernel(configuration: Configuration) -> Configuration | None:
    return replace(configuration, kernel=configuration.kernel - 2) if configuration.kernel > 2 else None


def _larger_dilation(configuration: Configuration) -> Configuration:
    return replace(configuration, dilation=configuration.dilation + 1)


def _smaller_dilation(configuration: Configuration) -> Configuration | None:
    return replace(configuration, dilation=configuration.dilation - 1) if configuration.dilation > 1 else None


def widened_place(configuration: Configuration) -> int | None:
    """Which expansion the next widening enlarges: the smallest, of equals the leading one; None without expansions."""
    expansions = configuration.expansions
    return expansions.index(min(expansions)) if expansions else None


def _wider(configuration: Configuration) -> Configuration | None:
    place = widened_place(configuration)
    if place is None:
        return None
    widths = list(configuration.expansions)
    widths[place] += 1
    return replace(configuration, expansions=tuple(widths))


def _deeper(configuration: Configuration) -> Configuration:
    return replace(configuration, expansions=(*configuration.expansions, 1))


MORPHISMS: dict[str, Callable[[Configuration], Configuration | None]] = {
    "larger-kernel": _larger_kernel,
    "wider": _wider,
    "deeper": _deeper,
    "smaller-kernel": _smaller_kernel,
    "larger-dilation": _larger_dilation,
    "smaller-dilation": _smaller_dilation,
}
"""The morphisms in the paper's order (§3.2, 1 to 6), as maps of configurations; None where there is nothing to do."""


@dataclass(frozen=True)
class Constraints:
    """Where morphisms may lead: the columns of Table 2. The defaults are its DARTS-like space (DL)."""

    min_kernel: int = 3
    """Smallest kernel size."""
    max_kernel: int = 7
    """Largest kernel size."""
    min_dilation: int = 1
    """Smallest dilation."""
    max_dilation: int = 2
    """Largest dilation."""
    max_depth: int | None = 1
    """Most expansions; None for any number."""
    max_width: int | None = 1
    """Largest expansion; None for any."""
    dilated_pointwise: bool = True
    """Whether kernel 1 may have a dilation above 1, which changes nothing but the name. Table 2's totals count such
    configurations, although its caption says that they are left out."""

    def __post_init__(self) -> None:
        require_positive(min_kernel=self.min_kernel, min_dilation=self.min_dilation)
        for name in ("kernel", "dilation"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least > most:
                raise InvalidInput(f"min_{name}={least} must be at most max_{name}={most}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("max_depth", "max_width") and value is not None and value < 0:
                raise InvalidInput(f"{field.name} must be at least 0, or None for no limit; got {value}.")

    def allow(self, configuration: Configuration) -> bool:
        """Whether the configuration lies in the space."""
        widest = max(configuration.expansions, default=0)
        return (
            self.min_kernel <= configuration.kernel <= self.max_kernel
            and self.min_dilation <= configuration.dilation <= self.max_dilation
            and (self.max_depth is None or len(configuration.expansions) <= self.max_depth)
            and (self.max_width is None or widest <= self.max_width)
            and (self.dilated_pointwise or configuration.kernel > 1 or configuration.dilation == 1)
        )


CONSTRAINTS: dict[str, Constraints] = {
    "DL": Constraints(),
    "DR": Constraints(min_kernel=1, max_width=5),
    "UR": Constraints(min_kernel=1, max_depth=None, max_width=None),
}
"""Table 2: DARTS-like, depth-restricted, unrestricted."""


def morphisms_of(configuration: Configuration, constraints: Constraints) -> dict[str, Configuration]:
    """The morphisms that are available, by name, and where each of them leads."""
    found = {}
    for name, morphism in MORPHISMS.items():
        child = morphism(configuration)
        if child is not None and constraints.allow(child):
            found[name] = child
    return found


def obtainable(
    constraints: Constraints, steps: int = 5, start: Configuration = Configuration(3)
) -> tuple[frozenset[Configuration], ...]:
    """The configurations that each morphing step reaches for the first time; step 0 has ``start`` alone.

    Their numbers sum to Table 2's totals: 12, 36 and 80 within five steps.
    """
    seen, frontiers = {start}, [frozenset({start})]
    for _ in range(steps):
        new = {child for one in frontiers[-1] for child in morphisms_of(one, constraints).values()} - seen
        seen |= new
        frontiers.append(frozenset(new))
    return tuple(frontiers)
