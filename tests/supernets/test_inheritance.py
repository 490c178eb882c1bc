"""What a new supernet takes over: survivors to the bit, children morphed, copies for new cells, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.genotypes import Space
from nasbook.growth import morph
from nasbook.networks import build_stem, stack_cells
from nasbook.operations import CONSTRAINTS, Configuration
from nasbook.supernets import Life, Pool, Relaxation, SearchNetwork, corresponding_cells, inherit
from nasbook.supernets.cells import candidates_of

few = settings(derandomize=True, deadline=None, max_examples=15)

ROOT = Configuration(3).name
LARGER, DEEP = Configuration(5).name, Configuration(3, 1, (1,)).name
GRAPH = Space(("max_pool_3x3", "skip_connect", ROOT), nodes=2)
CHANNELS = 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(pools, cells=3, **options):
    """A supernet for these pools in double precision, in which no weight, statistic or α is an initial one."""
    spaces = {kind: GRAPH.with_pools([pool.operations for pool in own]) for kind, own in pools.items()}
    network = SearchNetwork(spaces, CHANNELS, cells, 3, in_channels=1, **options).double()
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value += int(torch.randint(1, 100, ()))
        else:
            value.copy_(torch.rand_like(value) + 0.5 if name.endswith("running_var") else torch.randn_like(value))
    return network


def both_kinds(make):
    return {kind: tuple(make(kind, edge) for edge in range(len(GRAPH.edges))) for kind in GRAPH.kinds}


def initial_pools():
    return both_kinds(lambda kind, edge: Pool.of(GRAPH.operations))


def grown_pools(seed, cycles=1, constraints="UR", children=2, keep=2):
    """The pools of some cycles; every edge has a history of its own."""
    history = [initial_pools()]
    draws = generator(seed)
    for cycle in range(1, cycles + 1):

        def ended(kind, edge, cycle=cycle):
            pool = history[-1][kind][edge]
            weights = torch.rand(len(pool.operations), generator=draws).tolist()
            weighed = pool.weighed(dict(zip(pool.operations, weights, strict=True)))
            return weighed.pruned(keep, cycle).replaced(children, cycle, CONSTRAINTS[constraints], draws)

        history.append(both_kinds(ended))
    return history


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def newborn(pool):
    return [life for life in pool.living if not life.weights]


# ---------------------------------------------------------------------------------------------- weights


@few
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(["DL", "UR"]))
def test_everything_that_is_taken_over(seed, cycles, constraints):
    torch.manual_seed(seed)
    *_, before, after = grown_pools(seed, cycles, constraints)
    earlier, network = build(before), build(after)
    fresh_alpha = state(network.relaxations)
    past = state(earlier)
    inherit(network, earlier, after, generator(seed))

    assert same(state(earlier), past)  # the earlier one is left as it is
    addresses = {value.data_ptr() for value in earlier.state_dict().values()}
    assert not addresses & {value.data_ptr() for value in network.state_dict().values()}
    assert same(state(network.relaxations), fresh_alpha)
    for part in ("stem", "classifier"):
        assert same(state(getattr(network, part)), state(getattr(earlier, part)))

    draws, morphed, stayed = generator(seed), 0, 0
    for cell, old, placement in zip(network.cells, earlier.cells, network.placements, strict=True):
        assert same(state(cell.preprocessing), state(old.preprocessing))
        for mixed, old_mixed, pool in zip(cell.edges, old.edges, after[placement.kind], strict=True):
            candidates, parents = candidates_of(mixed), candidates_of(old_mixed)
            assert tuple(candidates) == pool.operations
            children = {life.operation for life in newborn(pool)}
            for name in candidates:
                if name not in children:
                    assert same(state(candidates[name]), state(parents[name]))
                    stayed += 1
            for life in newborn(pool):  # drawn in this order: cells, edges, births
                expected = morph(parents[life.parent], life.morphism, draws)
                assert same(state(candidates[life.operation]), state(expected))
                assert candidates[life.operation].configuration == Configuration.parse(life.operation)
                morphed += 1
    assert morphed > 0 and stayed > 0


def test_one_that_returns_has_its_new_parents_weights():
    """Even where it died this very cycle, so that its old weights are there."""
    pool = Pool(
        (
            Life("skip_connect", 1, weights=(0.4, 0.4)),
            Life(ROOT, 1, weights=(0.3, 0.1), died=2),
            Life(LARGER, 2, ROOT, "larger-kernel", (0.5,)),
            Life(ROOT, 3, LARGER, "smaller-kernel"),
        )
    )
    before = Pool(tuple(replace(life, died=None) for life in pool.lives[:3]))
    earlier, network = (build(both_kinds(lambda kind, edge, own=own: own)) for own in (before, pool))
    inherit(network, earlier, both_kinds(lambda kind, edge: pool), generator())
    for cell, old in zip(network.cells, earlier.cells, strict=True):
        for mixed, old_mixed in zip(cell.edges, old.edges, strict=True):
            own, parents = candidates_of(mixed)[ROOT], candidates_of(old_mixed)
            assert torch.equal(own[1].weight, parents[LARGER][1].weight[..., 1:-1, 1:-1])
            assert not torch.equal(own[1].weight, parents[ROOT][1].weight)


def test_the_generator_decides_and_nothing_else():
    *_, middle, after = grown_pools(5, 3)
    assert any(life.morphism == "wider" for own in after.values() for pool in own for life in newborn(pool))
    earlier, blank = build(middle), build(after)
    found = []
    for seed in (0, 0, 1):
        network = copy.deepcopy(blank)
        torch.randn(3)  # what a caller draws
        random_state = torch.get_rng_state()
        inherit(network, earlier, after, generator(seed))
        assert torch.equal(torch.get_rng_state(), random_state)
        found.append(state(network))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_where_nothing_changed_all_is_taken_over():
    pools = {kind: tuple(pool.weighed(dict.fromkeys(pool.operations, 0.25)) for pool in own)
             for kind, own in initial_pools().items()}  # fmt: skip
    earlier, network = build(pools), build(pools)
    inherit(network, earlier, pools, generator())
    assert same(state(network.cells), state(earlier.cells))


# ---------------------------------------------------------------------------------------------- the function


class Fixed(Relaxation):
    """Coefficients that a test sets."""

    takes_pools = True

    def __init__(self, space):
        super().__init__(space)
        self.table = nn.Parameter(torch.zeros(len(space.edges), len(space.operations)))

    def coefficients(self):
        return self.table

    def derive(self):
        raise NotImplementedError

    def set(self, rows):
        for row, own in enumerate(rows):
            for name, value in own.items():
                self.table.data[row, self.space.operations.index(name)] = value


WIDE = Configuration(3, 2, (1, 2)).name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("engine", ["fused", "readable"])
def test_exact_morphisms_leave_the_networks_function_as_it_is(training, engine):
    """Where a child takes a part of its parent's coefficient, and the pruned had none.

    So a step of larger kernels and wider layers changes the supernet by its new coefficients alone.
    """
    torch.manual_seed(1)
    start = ("max_pool_3x3", "skip_connect", WIDE)
    pools = both_kinds(lambda kind, edge: Pool.of(start).weighed(dict(zip(start, (0.0, 0.5, 0.5), strict=True))))
    larger, wider = Configuration(5, 2, (1, 2)).name, Configuration(3, 2, (2, 2)).name
    children = (Life(larger, 2, WIDE, "larger-kernel"), Life(wider, 2, WIDE, "wider"))
    after = both_kinds(
        lambda kind, edge: Pool(
            (*pools[kind][edge].pruned(2, 1).lives, *(children if edge % 2 else children[::-1])[: 1 + edge % 3])
        )
    )
    earlier = build(pools, cells=4, relaxation=Fixed, engine=engine)
    network = build(after, cells=4, relaxation=Fixed, engine=engine)
    for kind in GRAPH.kinds:
        rows, new_rows = [], []
        for pool in after[kind]:
            skip, parent = torch.randn(2, dtype=torch.float64).tolist()
            rows.append({"max_pool_3x3": 0.0, "skip_connect": skip, WIDE: parent})
            shares = torch.randn(len(newborn(pool)), dtype=torch.float64).tolist()
            own = {life.operation: parent * share for life, share in zip(newborn(pool), shares, strict=True)}
            new_rows.append({"skip_connect": skip, WIDE: parent * (1 - sum(shares)), **own})
        earlier.relaxations[kind].table.data.zero_()
        network.relaxations[kind].table.data.zero_()
        earlier.relaxations[kind].set(rows)
        network.relaxations[kind].set(new_rows)
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    random_outputs = network.train(training)(x).detach()
    inherit(network, earlier, after, generator())
    outputs = [module.train(training)(x).detach() for module in (earlier, network)]
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)
    assert float((outputs[0] - random_outputs).abs().max()) > 1e-2
    if training:  # and the statistics go on as they would have
        for (name, a), b in zip(earlier.cells.named_buffers(), earlier.cells.buffers(), strict=True):
            if name in dict(network.cells.named_buffers()):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=name)


def test_a_layer_more_does_not():
    torch.manual_seed(0)
    pools = initial_pools()
    weighed = both_kinds(
        lambda kind, edge: pools[kind][edge].weighed(dict.fromkeys(GRAPH.operations, 1 / 3)).pruned(1, 1)
    )
    after = both_kinds(lambda kind, edge: Pool((*weighed[kind][edge].lives, Life(DEEP, 2, ROOT, "deeper"))))
    earlier = build(pools, relaxation=Fixed).eval()
    network = build(after, relaxation=Fixed).eval()
    inherit(network, earlier, after, generator())
    for kind in GRAPH.kinds:
        for module, name in ((earlier, ROOT), (network, DEEP)):
            module.relaxations[kind].table.data.zero_()
            module.relaxations[kind].set([{name: 1.0}] * len(GRAPH.edges))
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    assert float((earlier(x) - network(x)).detach().abs().max()) > 1e-2


# ---------------------------------------------------------------------------------------------- more cells, or fewer


def placements(cells, channels=4, stem="cifar", output="concatenation"):
    return stack_cells(cells, channels, build_stem(stem, 3, channels), {"normal": 4, "reduction": 4}, output)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),  # n n r n n r n n
        (8, 10, [0, 1, 1, 2, 3, 4, 5, 6, 7, 7]),  # n n n r n n r n n n
        (16, 20, [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 9, 9, 10, 11, 12, 13, 14, 15, 15]),
        (3, 4, [0, 1, 2, None]),  # n r r: there was no normal cell of so many channels
        (4, 5, [0, 1, None, 2, 3]),  # n r r n, n r n r n
        (5, 6, [0, 0, 1, 2, 3, 4]),  # n n r n r n
        (8, 3, [0, 2, 5]),
        (1, 3, [None, 0, None]),  # a single cell is a reduction cell
        (3, 1, [1]),
    ],
)
def test_corresponding_cells(old, new, expected):
    assert corresponding_cells(placements(new), placements(old)) == expected


@given(st.integers(1, 25), st.integers(1, 25), st.sampled_from(["cifar", "imagenet"]),
       st.sampled_from(["concatenation", "mean"]))  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=80)
def test_corresponding_cells_fit(old, new, stem, output):
    before, after = placements(old, stem=stem, output=output), placements(new, stem=stem, output=output)
    found = corresponding_cells(after, before)
    for place, source in zip(after, found, strict=True):
        form = (place.kind, place.channels)
        if source is None:
            assert form not in [(other.kind, other.channels) for other in before]
        else:
            assert form == (before[source].kind, before[source].channels)
            assert (before[source] == place) == (place in before)
    used = [source for source in found if source is not None]
    assert used == sorted(used)  # the order of the cells is kept
    if old == new:
        assert found == list(range(old))
    if new >= old >= 3:
        assert len(set(used)) == old or old < 6  # no cell is forgotten, unless its place is elsewhere now


@pytest.mark.parametrize(("old", "new"), [(3, 4), (3, 5), (5, 8), (8, 5), (1, 3), (3, 1), (4, 4)])
def test_other_numbers_of_cells(old, new):
    """A new cell takes the candidates of its corresponding cell, and its preprocessing where it has the same form."""
    torch.manual_seed(0)
    before, after = grown_pools(3, 1)
    earlier, network = build(before, old), build(after, new)
    fresh = {name: state(module) for name, module in network.named_modules() if not list(module.children())}
    inherit(network, earlier, after, generator(4))
    draws = generator(4)
    kept = taken = 0
    for place, source in enumerate(corresponding_cells(network.placements, earlier.placements)):
        cell = network.cells[place]
        if source is None:
            for name, module in cell.named_modules():
                if not list(module.children()):
                    assert same(state(module), fresh[f"cells.{place}.{name}"])
            kept += 1
            continue
        taken += 1
        former = earlier.cells[source]
        for side, (own, parent) in enumerate(zip(cell.preprocessing, former.preprocessing, strict=True)):
            form, form_before = network.placements[place], earlier.placements[source]
            if form.input_channels[side] == form_before.input_channels[side] and (
                side == 1 or form.halve_older == form_before.halve_older
            ):
                assert same(state(own), state(parent))
            else:  # fresh as a whole, statistics too
                for name, module in own.named_modules():
                    if not list(module.children()):
                        where = f"cells.{place}.preprocessing.{side}" + (f".{name}" if name else "")
                        assert same(state(module), fresh[where])
        for mixed, old_mixed, pool in zip(cell.edges, former.edges, after[form.kind], strict=True):
            candidates, parents = candidates_of(mixed), candidates_of(old_mixed)
            for name in {life.operation for life in pool.living if life.weights}:
                assert same(state(candidates[name]), state(parents[name]))
            for life in newborn(pool):
                expected = morph(parents[life.parent], life.morphism, draws)
                assert same(state(candidates[life.operation]), state(expected))
    assert taken > 0
    assert (kept > 0) == ((old, new) in [(3, 4), (3, 5), (1, 3)])
    same_width = (old == 1) == (new == 1)
    assert same(state(network.classifier), state(earlier.classifier) if same_width else fresh["classifier"])
    assert network.train()(torch.randn(2, 1, 8, 8, dtype=torch.float64)).isfinite().all()
