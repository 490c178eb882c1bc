"""The over-grown network of firefly descent: every way to grow at once, each behind a gate (Firefly §2.2, §2.3).

A candidate is a split of a neuron, a new neuron, or the unlocking of a locked one. Candidate i has a gate εᵢ and a
direction δᵢ:

* split: ½(σ(x, θᵢ + εᵢδᵢ) + σ(x, θᵢ − εᵢδᵢ)), where θᵢ is the neuron's filter in every layer that writes it, with its
  bias. Its batch norm and depthwise filter are copied; its columns in the layers that read it stay as they are.
* new: εᵢ σ(x, δᵢ), where δᵢ is its filters, its depthwise filters, and its columns in the layers that read it. It reads
  the old channels. Its batch norm is fresh, and follows the batches that it sees.

* unlock: σ(x, θᵢ + εᵢδᵢ), for neurons of earlier tasks, which a network must not change (§2.4). The copy takes the
  neuron's place; who read the neuron reads the copy, by the same weights.

A new layer I + h is a width without neurons that gets some (:class:`~nasbook.networks.growable.ResidualLayer`).

With all gates at zero the network is the old one, to the last bit in evaluation mode: the old channels pass through the
same kernels in the same shapes, the halves of a split are averaged before they are read (½(x + x) is exact), and what
a new neuron adds is a sum of its own, of zeros. The activations have to give the same bits wherever a number stands in
a tensor: ReLU, tanh and exp do on a CPU; torch's softplus rounds the last few numbers of a tensor in another way.

In training mode each half of a split is normalised by its own moments of the batch; the old running statistics are
left as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.growth.overgrown_layers import Gates, OvergrownDepthwise, OvergrownLayer, OvergrownNorm
from nasbook.growth.surgery import NEW, Grown, Surgery, blocks_of, columns, gather
from nasbook.networks.growable import Declaration, Growable

INITIAL_VARIANCE = 0.1
"""Of every entry of a direction at first: N(0, 0.1) in B.1 and B.2, the second number read as a variance."""

CandidateKind = Literal["split", "unlock", "new"]
KINDS: tuple[CandidateKind, ...] = ("split", "unlock", "new")


NO_UNLOCKS: Mapping[str, Sequence[int]] = MappingProxyType({})


@dataclass(frozen=True)
class Candidate:
    """One way to grow by a neuron."""

    width: str
    """Name of the width."""
    kind: CandidateKind
    """A split of a neuron, the unlocking of a locked one, or a new one."""
    index: int
    """Of the neuron that is split or unlocked, or among the new ones."""


@dataclass(frozen=True)
class Piece:
    """A part of the directions of one kind of candidates of one width, as one layer has it."""

    parameter: nn.Parameter
    """All of them."""
    width: str
    """Name of the width."""
    kind: CandidateKind
    """Whose directions they are."""
    columns_of: int = 0
    """How many new neurons share the second dimension; 0 where the first one counts the candidates."""

    def rows(self, values: Tensor) -> Float[Tensor, "candidates ..."]:
        """A view of values shaped like the parameter, with the candidates first."""
        if not self.columns_of:
            return values.view(len(values), -1)
        return values.view(len(values), self.columns_of, -1).transpose(0, 1)

    def spread(self, values: Float[Tensor, " candidates"]) -> Tensor:
        """One number a candidate, in the shape of the parameter."""
        whole = torch.empty_like(self.parameter)
        rows = self.rows(whole)
        rows.copy_(values.view(-1, *[1] * (rows.dim() - 1)))
        return whole


class OvergrownNetwork(nn.Module):
    """A network with all its candidates. Its parameters are the gates and the directions; the old ones don't move.

    Args:
        network: left as it is. Its empty residual layers may become layers.
        new: m', how many new neurons each width gets: a number for all, or a mapping from some widths.
        splits: whether neurons may split; a mapping's keys say in which widths, and then its values in which not.
        unlocks: for some widths, which neurons may be unlocked. Those of such a width don't split.
        generator: directions are drawn from it, N(0, 0.1) and cut to the unit ball; None leaves them at zero.

    Raises:
        InvalidInput: no candidate at all, an unknown width, a neuron that is not there or is unlocked twice, or a width
            that grouped convolutions divide.
    """

    def __init__(
        self,
        network: Growable,
        *,
        new: int | Mapping[str, int] = 0,
        splits: bool | Mapping[str, bool] = True,
        unlocks: Mapping[str, Sequence[int]] = NO_UNLOCKS,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.before = [network]  # in a list, so that it is no submodule
        self.network = copy.deepcopy(network)
        self.declaration: Declaration = network.declare()
        for given in (new, splits, unlocks):
            for name in given if isinstance(given, Mapping) else ():
                self.declaration.width(name)
        like = next(network.parameters()).detach()
        self.gates: dict[str, Gates] = {}
        for width in self.declaration.widths:
            old = network.neurons()[width.name]
            splitting = splits.get(width.name, False) if isinstance(splits, Mapping) else splits
            added = new.get(width.name, 0) if isinstance(new, Mapping) else new
            if added < 0:
                raise InvalidInput(f"A width can't get {added} new neurons; give 0 or more.")
            unlocked = sorted(unlocks.get(width.name, ()))
            if len(set(unlocked)) < len(unlocked) or any(not 0 <= n < old for n in unlocked):
                raise InvalidInput(f"{width.name} has the neurons 0..{old - 1}; unlocked, each once: {unlocked}.")
            gates = Gates(width, old, splitting and not unlocked, added, like, unlocked)
            if gates.splits or gates.new or gates.unlocks:
                if blocks_of(network, width) > 1:
                    raise InvalidInput(
                        f"Grouped convolutions divide the width {width.name}: its neurons can't grow one by one. "
                        f"Leave it out, or widen it with a morphism."
                    )
                self.gates[width.name] = gates
        if not self.gates:
            raise InvalidInput("There is nothing to over-grow: ask for splits, unlocks or new neurons.")
        self.split_gates = nn.ParameterList([gates.split_gates for gates in self.gates.values()])
        self.new_gates = nn.ParameterList([gates.new_gates for gates in self.gates.values()])
        self.unlock_gates = nn.ParameterList([gates.unlock_gates for gates in self.gates.values() if gates.unlocks])
        self._layers: dict[str, OvergrownLayer] = {}
        self._norms: dict[str, OvergrownNorm] = {}
        self._depthwise: dict[str, OvergrownDepthwise] = {}
        self._wrap()
        self.pieces: tuple[Piece, ...] = tuple(piece for piece in self._pieces() if piece.parameter.numel())
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        for piece in self.pieces:
            piece.parameter.requires_grad_(True)
        self.candidates: tuple[Candidate, ...] = tuple(
            Candidate(name, kind, self.gates[name].unlocks[place] if kind == "unlock" else place)
            for name, kind, part in self._gate_parts()
            for place in range(len(part))
        )
        if generator is not None:
            self._draw(generator)

    def _wrap(self) -> None:
        reads: dict[str, Gates] = {}
        writes: dict[str, Gates] = {}
        for gates in self.gates.values():
            writes |= dict.fromkeys(gates.width.written_by, gates)
            reads |= dict.fromkeys(gates.width.read_by, gates)
        empty = {
            path
            for width in self.declaration.widths
            if width.name not in self.gates and not self.before[0].neurons()[width.name]
            for path in (*width.written_by, *width.read_by)
        }  # layers that are the identity and stay so are never called
        for path in dict.fromkeys((*writes, *reads)):
            if path in empty:
                continue
            layer = self.network.get_submodule(path)
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                raise InvalidInput(f"{path} is a {type(layer).__name__}; expected a convolution or a linear layer.")
            if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
                raise InvalidInput(f"{path} pads with {layer.padding_mode}; only zeros are known here.")
            self._layers[path] = OvergrownLayer(layer, reads.get(path), writes.get(path))
            self.network.set_submodule(path, self._layers[path])
        for gates in self.gates.values():
            for path in gates.width.along:
                layer = self.network.get_submodule(path)
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    self._norms[path] = OvergrownNorm(layer, gates)
                    self.network.set_submodule(path, self._norms[path])
                elif isinstance(layer, nn.Conv2d):
                    self._depthwise[path] = OvergrownDepthwise(layer, gates)
                    self.network.set_submodule(path, self._depthwise[path])
                else:
                    raise InvalidInput(
                        f"{path} is a {type(layer).__name__} along a width; expected a batch norm or a depthwise "
                        f"convolution."
                    )

    def forward(self, x: Tensor) -> Tensor:
        """The over-grown network's output."""
        return self.network(x)

    # -- gates and directions as vectors -------------------------------------------------------------------------------

    def gate_parameters(self) -> list[nn.Parameter]:
        """The gates of all widths, in the order of ``candidates``."""
        return [part for _, _, part in self._gate_parts()]

    def epsilon(self) -> Float[Tensor, " candidates"]:
        """ε: the gates, in the order of ``candidates``."""
        return torch.cat([part.detach() for part in self.gate_parameters()])

    def set_epsilon(self, epsilon: Float[Tensor, " candidates"] | float) -> None:
        """Sets the gates: all to one number, or each to its own.

        Raises:
            InvalidInput: not as many gates as candidates.
        """
        like = next(iter(self.gates.values())).new_gates  # its precision: 0.1 in another one may lie outside a radius
        given = torch.as_tensor(epsilon, dtype=like.dtype, device=like.device)
        if given.dim() and given.shape != (len(self.candidates),):
            raise InvalidInput(f"There are {len(self.candidates)} candidates, and gates of shape {tuple(given.shape)}.")
        whole = given.expand(len(self.candidates))
        with torch.no_grad():
            for part, values in zip(self.gate_parameters(), whole.split(self._sizes()), strict=True):
                part.copy_(values)

    def epsilon_gradient(self) -> Float[Tensor, " candidates"]:
        """∇_ε of the last backward pass, in the order of ``candidates``."""
        return torch.cat([
            torch.zeros_like(part) if part.grad is None else part.grad for part in self.gate_parameters()
        ])

    def _sizes(self) -> list[int]:
        return [len(part) for part in self.gate_parameters()]

    def directions(self) -> list[nn.Parameter]:
        """δ, in pieces as the layers have them."""
        return [piece.parameter for piece in self.pieces]

    def sum_by_candidate(self, values: Sequence[Tensor]) -> Float[Tensor, " candidates"]:
        """Sums entries over each candidate: one tensor for each of :meth:`directions`, shaped like it."""
        sums = {(name, kind): torch.zeros_like(part) for name, kind, part in self._gate_parts()}
        for piece, value in zip(self.pieces, values, strict=True):
            sums[piece.width, piece.kind] += piece.rows(value.contiguous()).flatten(1).sum(1)
        return torch.cat([sums[name, kind] for name, kind, _ in self._gate_parts()])

    def spread(self, values: Float[Tensor, " candidates"]) -> list[Tensor]:
        """One number a candidate, at every entry of its direction: a tensor for each of :meth:`directions`."""
        parts = [(name, kind) for name, kind, _ in self._gate_parts()]
        by_part = dict(zip(parts, values.split(self._sizes()), strict=True))
        return [piece.spread(by_part[piece.width, piece.kind]) for piece in self.pieces]

    def direction_norms(self) -> Float[Tensor, " candidates"]:
        """‖δᵢ‖₂ of every candidate, in the order of ``candidates``."""
        return self.sum_by_candidate([part.detach().square() for part in self.directions()]).sqrt()

    def scale_directions(self, factors: Float[Tensor, " candidates"]) -> None:
        """Multiplies every δᵢ by a number."""
        with torch.no_grad():
            for part, factor in zip(self.directions(), self.spread(factors), strict=True):
                part.mul_(factor)

    def split_rows(self, width: str, values: Sequence[Tensor] | None = None) -> Float[Tensor, "neurons entries"]:
        """What the splits of one width have: a row a neuron, the entries of the layers that write it one after another.

        Args:
            width: name of the width.
            values: one tensor for each of :meth:`directions`, shaped like it; None takes the directions themselves.
        """
        values = [part.detach() for part in self.directions()] if values is None else values
        found = [
            piece.rows(value.contiguous())
            for piece, value in zip(self.pieces, values, strict=True)
            if (piece.width, piece.kind) == (width, "split")
        ]
        return torch.cat(found, dim=1)

    def from_split_rows(self, rows: Mapping[str, Float[Tensor, "neurons entries"]]) -> list[Tensor]:
        """The inverse of :meth:`split_rows`: tensors shaped like the directions, zero for what no row is given."""
        values = [torch.zeros_like(part) for part in self.directions()]
        offsets = dict.fromkeys(rows, 0)
        for piece, value in zip(self.pieces, values, strict=True):
            if piece.kind == "split" and piece.width in rows:
                target, offset = piece.rows(value), offsets[piece.width]
                target.copy_(rows[piece.width][:, offset : offset + target.shape[1]])
                offsets[piece.width] += target.shape[1]
        return values

    def set_directions(self, values: Sequence[Tensor]) -> None:
        """Sets δ: one tensor for each of :meth:`directions`, shaped like it."""
        with torch.no_grad():
            for part, value in zip(self.directions(), values, strict=True):
                part.copy_(value)

    def _gate_parts(self) -> list[tuple[str, CandidateKind, nn.Parameter]]:
        return [
            (name, kind, part)
            for name, gates in self.gates.items()
            for kind, part in zip(KINDS, (gates.split_gates, gates.unlock_gates, gates.new_gates), strict=True)
        ]

    def _pieces(self) -> Iterator[Piece]:
        for name, gates in self.gates.items():
            for layer in (self._layers[path] for path in gates.width.written_by if path in self._layers):
                yield Piece(layer.splits, name, "split")
                yield Piece(layer.split_biases, name, "split")
                if layer.unlocks is not None and layer.unlock_biases is not None:
                    yield Piece(layer.unlocks, name, "unlock")
                    yield Piece(layer.unlock_biases, name, "unlock")
                yield Piece(layer.rows, name, "new")
                yield Piece(layer.row_biases, name, "new")
            for depthwise in (self._depthwise[path] for path in gates.width.along if path in self._depthwise):
                yield Piece(depthwise.rows, name, "new")
                yield Piece(depthwise.row_biases, name, "new")
            for layer in (self._layers[path] for path in gates.width.read_by if path in self._layers):
                yield Piece(layer.columns, name, "new", columns_of=gates.new)

    def project(self, radius: float) -> None:
        """Puts gates and directions back where Eq. 3 allows them: |εᵢ| ≤ ``radius`` and ‖δᵢ‖₂ ≤ 1."""
        with torch.no_grad():
            for part in self.gate_parameters():
                part.clamp_(-radius, radius)
        self.scale_directions(1 / self.direction_norms().clamp(min=1))

    def _draw(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for part in self.directions():
                drawn = torch.randn(part.shape, generator=generator, dtype=torch.float64)
                part.copy_(drawn * INITIAL_VARIANCE**0.5)
        self.project(0.0)

    # -- the grown network ---------------------------------------------------------------------------------------------

    def grow(self, chosen: Sequence[int], epsilon: Float[Tensor, " candidates"]) -> Grown:
        """The network with some candidates kept: neurons θ ± εδ, each read by half, and new ones read by ε times δ.

        Behind the old neurons stand the second halves of splits, then unlocked copies, which are no longer at their old
        places, then new neurons; each group in the order of the candidates.

        It is the over-grown network whose other gates are zero, except that the statistics of a batch are those of a
        real network, in training mode.

        Args:
            chosen: which of ``candidates``.
            epsilon: the gates at which they are kept; entries of others are not read.

        Raises:
            InvalidInput: a candidate that is not there, or one that is chosen twice.
        """
        if len(set(chosen)) < len(chosen) or any(not 0 <= number < len(self.candidates) for number in chosen):
            raise InvalidInput(
                f"There are the candidates 0..{len(self.candidates) - 1}, each to be chosen once; got {list(chosen)}."
            )
        kept = Kept(
            {name: gates.old for name, gates in self.gates.items()},
            {name: gates.unlocks for name, gates in self.gates.items()},
        )
        values = epsilon.tolist()
        for number in sorted(chosen):
            candidate = self.candidates[number]
            kept.add(candidate, values[number])
        surgery = Surgery(self.before[0])
        sources = {name: kept.sources(name) for name in self.gates if kept.changes(name)}
        if sources:
            surgery.rewire(sources)
        for path, layer in self._layers.items():
            self._write_layer(surgery.network.get_submodule(path), layer, kept)
        for path, norm in self._norms.items():
            target, taken = surgery.network.get_submodule(path), kept.numbers(norm.gates.width.name, "new")
            if taken:
                target.running_mean[-len(taken) :] = norm.new_mean[taken]  # type: ignore[operator]
                target.running_var[-len(taken) :] = norm.new_var[taken]  # type: ignore[operator]
            assert target.num_features == len(kept.sources(norm.gates.width.name))
        for path, depthwise in self._depthwise.items():
            target, taken = surgery.network.get_submodule(path), kept.numbers(depthwise.gates.width.name, "new")
            if taken:
                target.weight.detach()[-len(taken) :] = depthwise.rows.detach()[taken]  # type: ignore[operator]
                if target.bias is not None:
                    target.bias.detach()[-len(taken) :] = depthwise.row_biases.detach()[taken]  # type: ignore[operator]
        return surgery.grown()

    def _write_layer(self, target: nn.Module, layer: OvergrownLayer, kept: Kept) -> None:
        """Writes θ ± εδ, new rows, halved and new columns into a layer whose channels are already rewired."""
        weight = target.weight.detach()  # type: ignore[operator]
        writes, reads = layer.writes, layer.reads
        rows: Tensor | None = None
        if writes is not None:
            name = writes.width.name
            rows = torch.tensor(kept.sources(name), dtype=torch.int64)
            directions = {"split": layer.splits, "unlock": layer.unlocks, "new": layer.rows}
            change = self._row_changes(directions, name, kept)
            if reads is not None:  # the halves of a split neuron are read alike; what the columns read is halved below
                read = torch.tensor(kept.sources(reads.width.name), dtype=torch.int64)
                change = gather(change, 1, _spread(read, layer.positions))
            weight += change
            if target.bias is not None:
                biases = {"split": layer.split_biases, "unlock": layer.unlock_biases, "new": layer.row_biases}
                target.bias.detach().add_(self._row_changes(biases, name, kept))  # type: ignore[operator]
        if reads is not None:
            name = reads.width.name
            split, added = kept.numbers(name, "split"), kept.numbers(name, "new")
            if not weight.shape[1]:
                return
            view = columns(target, len(kept.sources(name)))
            view[:, split] /= 2
            view[:, reads.old : reads.old + len(split)] /= 2
            if added:
                taken = layer.columns.detach().view(len(layer.columns), reads.new, layer.positions, *weight.shape[2:])
                taken = taken[:, added] * kept.gates(name, "new", weight).view(1, -1, *[1] * (taken.dim() - 2))
                if rows is not None:
                    taken = gather(taken, 0, rows)
                view[:, -len(added) :] = taken

    @staticmethod
    def _row_changes(directions: Mapping[str, Tensor | None], name: str, kept: Kept) -> Tensor:
        """What is added to the rows of a layer: εδ to a split or unlocked neuron, −εδ to the other half of a split, and
        a new neuron's own row."""
        rows = directions["new"]
        assert rows is not None
        rows = rows.detach()
        change = rows.new_zeros(len(kept.sources(name)), *rows.shape[1:])
        end = len(change) - len(kept.numbers(name, "new"))
        change[end:] = rows[kept.numbers(name, "new")]
        for kind in ("unlock", "split"):
            numbers, given = kept.numbers(name, kind), directions[kind]
            if numbers and given is not None:
                gates = kept.gates(name, kind, rows).view(-1, *[1] * (rows.dim() - 1))
                moved = given.detach()[kept.places(name, kind)] * gates
                change[end - len(numbers) : end] = moved if kind == "unlock" else -moved
                if kind == "split":
                    change[numbers] = moved
            end -= len(numbers)
        return change


class Kept:
    """Which candidates of an over-grown network are kept, by width and kind, and at which gates.

    Args:
        old: neurons that each width has.
        unlocks: for some widths, the neurons that may be unlocked, in the order of their directions.
    """

    def __init__(self, old: Mapping[str, int], unlocks: Mapping[str, Sequence[int]]) -> None:
        self._old = old
        self._unlocks = unlocks
        self._gates: dict[tuple[str, str], dict[int, float]] = {}

    def add(self, candidate: Candidate, gate: float) -> None:
        """Keeps one more candidate; give them in their order."""
        self._gates.setdefault((candidate.width, candidate.kind), {})[candidate.index] = gate

    def numbers(self, width: str, kind: str) -> list[int]:
        """Indices of the candidates of a kind that are kept."""
        return list(self._gates.get((width, kind), {}))

    def places(self, width: str, kind: str) -> list[int]:
        """Where their directions stand among all of their kind."""
        numbers = self.numbers(width, kind)
        return [self._unlocks[width].index(number) for number in numbers] if kind == "unlock" else numbers

    def gates(self, width: str, kind: str, like: Tensor) -> Float[Tensor, " kept"]:
        """ε of those that are kept."""
        return torch.tensor(list(self._gates.get((width, kind), {}).values()), dtype=torch.float64).to(like)

    def changes(self, width: str) -> bool:
        """Whether anything of a width is kept."""
        return any(name == width for name, _ in self._gates)

    def sources(self, width: str) -> list[int]:
        """For every neuron of the grown width the old one that it comes from, or -1."""
        unlocked = self.numbers(width, "unlock")
        stay = [number for number in range(self._old[width]) if number not in set(unlocked)]
        return [*stay, *self.numbers(width, "split"), *unlocked, *[NEW] * len(self.numbers(width, "new"))]


def _spread(sources: Tensor, positions: int) -> Tensor:
    """Sources of channels as sources of a layer's inputs, of which each channel has several."""
    spread = sources[:, None] * positions + torch.arange(positions)
    return torch.where(sources[:, None] == NEW, NEW, spread).flatten()
