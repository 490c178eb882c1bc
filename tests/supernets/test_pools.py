"""Pools against the paper's words: random histories, the exact distribution of children, and rules that are broken."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nasbook.errors import InvalidInput
from nasbook.operations import CONSTRAINTS, MORPHISMS, Configuration, Constraints, get_operation, morphisms_of
from nasbook.supernets import MORPHISM_CHOICES, Life, Pool, morphism_likelihoods, pools, possible_children

some = settings(derandomize=True, deadline=None, max_examples=60)

ROOT = Configuration(3)
OTHERS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect")
INITIAL = (*OTHERS, ROOT.name)
TABLE_1 = ((3, 6), (3, 6), (3, 6), (3, 6), (3, 6), (0, 4), (0, 3), (0, 2), (0, 1))
"""Of each cycle: the morphisms and the candidates after it."""


def generator(seed):
    return torch.Generator().manual_seed(seed)


def is_convolution(name):
    return get_operation(name).kind == "convolution"


# ---------------------------------------------------------------------------------------------- random histories


@dataclass(frozen=True)
class Cycle:
    """One cycle's end as it was asked for, and the pools on the way."""

    number: int
    children: int
    left: int
    last: bool
    constraints: Constraints
    before: Pool
    weights: dict[str, float]
    weighed: Pool
    pruned: Pool
    after: Pool


def live(operations, schedule, constraints, seed, likelihoods=None):
    """A pool's history under random weights; with few values, so that there are ties."""
    chance = random.Random(seed)
    draws = generator(seed)
    pool, cycles = Pool.of(operations), []
    for number, (children, left) in enumerate(schedule, start=1):
        last = number == len(schedule)
        levels = chance.choice([2, 5, 1000])
        values = [1 + chance.randrange(levels) for _ in pool.operations]
        weights = {name: value / sum(values) for name, value in zip(pool.operations, values, strict=True)}
        weighed = pool.weighed(weights)
        pruned = weighed.pruned(left - children, number, keep_convolution=not last)
        after = pruned.replaced(children, number, constraints, draws, likelihoods)
        cycles.append(Cycle(number, children, left, last, constraints, pool, weights, weighed, pruned, after))
        pool = after
    return cycles


def some_schedule(chance):
    """As Table 1, with other numbers: children for some cycles, then none, then one candidate."""
    schedule = [
        (children, children + chance.randint(1, 4))
        for children in (chance.randint(0, 4) for _ in range(chance.randint(1, 6)))
    ]
    return (*schedule, (0, 2), (0, 1))


def some_constraints(chance):
    least, smallest = chance.choice([1, 3]), chance.choice([1, 1, 2])
    return Constraints(
        least,
        chance.choice([3, 5, 7]),
        smallest,
        smallest + chance.randint(0, 2),
        chance.choice([0, 1, 2, None]),
        chance.choice([1, 2, 5, None]),
        chance.random() < 0.5,
    )


def some_history(seed):
    """Everything random but for the generator's seed."""
    chance = random.Random(seed)
    constraints = chance.choice([*CONSTRAINTS.values(), some_constraints(chance)])
    operations = [*chance.sample(OTHERS, chance.randint(0, 3)), ROOT.name]
    if chance.random() < 0.3:
        operations.append(Configuration(5, 1, (1,)).name)
    chance.shuffle(operations)
    return live(operations, chance.choice([TABLE_1, some_schedule(chance)]), constraints, seed)


def reachable(parents, constraints):
    """The configurations that the parents' morphisms lead to, by the definition of each morphism."""
    found = set()
    for name in parents:
        if name.startswith("sep_conv("):
            children = [morphism(Configuration.parse(name)) for morphism in MORPHISMS.values()]
            found |= {child.name for child in children if child is not None and constraints.allow(child)}
    return found


def ranked(names, weights):
    """Strongest first; of equals, the one that stands first."""
    return sorted(names, key=lambda name: (-weights[name], names.index(name)))


def survivors(cycle):
    """Who stays, in the paper's words: the worst go, but for one convolution until the end (§3.2.2)."""
    order = ranked(cycle.before.operations, cycle.weights)
    staying = order[: cycle.left - cycle.children]
    convolutions = [name for name in order if is_convolution(name)]
    if convolutions and not cycle.last and not any(is_convolution(name) for name in staying):
        staying[-1] = convolutions[0]
    return set(staying)


def check(cycles):
    """All that the paper says of one edge's pool."""
    for cycle in cycles:
        before, pruned, after = (pool.operations for pool in (cycle.before, cycle.pruned, cycle.after))
        # The weakest die, and a convolution stays.
        assert set(pruned) == survivors(cycle)
        assert list(pruned) == [name for name in before if name in pruned]  # in the order of birth
        assert cycle.last or any(is_convolution(name) for name in after)
        # Nobody stands there twice.
        assert len(set(after)) == len(after)
        # Sizes are those of the schedule, unless there are too few configurations to be born.
        can_be_born = reachable(pruned, cycle.constraints) - set(pruned)
        born = cycle.after.lives[len(cycle.before.lives) :]
        assert len(born) == min(cycle.children, len(can_be_born))
        assert len(pruned) == min(cycle.left - cycle.children, len(before))
        assert after == (*pruned, *(life.operation for life in born))
        # Who was seen returns only when nobody is left that was not.
        seen = {life.operation for life in cycle.before.lives}
        for life in born:
            assert life.operation not in seen or can_be_born <= seen
            seen.add(life.operation)
        # Parents are alive, and the morphism leads from them to the child.
        for life in born:
            assert life.parent in pruned
            child = MORPHISMS[life.morphism](Configuration.parse(life.parent))
            assert child.name == life.operation and cycle.constraints.allow(child)
            assert (life.born, life.died, life.weights) == (cycle.number + 1, None, ())
        # The past stays as it is.
        for old, new in zip(cycle.before.lives, cycle.after.lives, strict=False):
            if old.died is not None:
                assert new == old
                continue
            expected = replace(old, weights=(*old.weights, cycle.weights[old.operation]))
            assert new == (expected if old.operation in pruned else replace(expected, died=cycle.number))
    for life in cycles[-1].after.lives:
        end = len(cycles) if life.died is None else life.died
        assert len(life.weights) == end - life.born + 1


def check_some(number):
    for seed in range(number):
        check(some_history(seed))


@some
@given(st.integers(0, 2**32))
def test_random_histories(seed):
    check(some_history(seed))


@some
@given(st.sampled_from(sorted(CONSTRAINTS)), st.integers(0, 2**32))
def test_the_sizes_of_table_1(space, seed):
    cycles = live(INITIAL, TABLE_1, CONSTRAINTS[space], seed)
    check(cycles)
    sizes = [len(cycle.before.operations) for cycle in cycles] + [len(cycles[-1].after.operations)]
    if space == "UR":  # a convolution has at least three children
        assert sizes == [4, 6, 6, 6, 6, 6, 4, 3, 2, 1]
    assert all(size <= most for size, most in zip(sizes, [4, 6, 6, 6, 6, 6, 4, 3, 2, 1], strict=True))
    assert sizes[0] == 4 and sizes[-1] == 1


def test_the_histories_have_all_that_is_checked():
    """Otherwise the checks could hold for want of a case."""
    found = Counter()
    for seed in range(150):
        cycles = some_history(seed)
        for cycle in cycles:
            born = cycle.after.lives[len(cycle.before.lives) :]
            dead = {life.operation for life in cycle.pruned.lives if life.died is not None}
            staying = set(cycle.pruned.operations)
            top = set(ranked(cycle.before.operations, cycle.weights)[: len(staying)])
            found["returns"] += any(life.operation in dead for life in born)
            found["returns at once"] += any(
                life.operation in set(cycle.before.operations) - staying for life in born
            )
            found["too few children"] += len(born) < cycle.children
            found["the convolution is among the weakest"] += staying != top
            found["no convolution at the end"] += not any(map(is_convolution, cycle.after.operations))
            found["ties"] += len(set(cycle.weights.values())) < len(cycle.weights)
            found["several parents"] += len({life.parent for life in born}) > 1
    assert len(found) == 7 and min(found.values()) >= 5, found


# ---------------------------------------------------------------------------------------------- broken rules


def rewritten(pool, dying, cycle):
    return Pool(tuple(replace(life, died=cycle) if life in dying else life for life in pool.lives))


def prunes_the_strongest(self, keep, cycle, *, keep_convolution=True):
    order = sorted(self.living, key=lambda life: life.weights[-1])
    return rewritten(self, order[keep:], cycle)


def keeps_no_convolution(self, keep, cycle, *, keep_convolution=True):
    order = sorted(self.living, key=lambda life: -life.weights[-1])
    return rewritten(self, order[keep:], cycle)


def keeps_the_convolution_to_the_last(self, keep, cycle, *, keep_convolution=True):
    return PRUNED(self, keep, cycle)


def keeps_the_weakest_convolution(self, keep, cycle, *, keep_convolution=True):
    order = sorted(self.living, key=lambda life: -life.weights[-1])
    kept = [life for life in order if is_convolution(life.operation)][-1:] if keep_convolution else []
    order = [*kept, *(life for life in order if life not in kept)]
    return rewritten(self, order[keep:], cycle)


def keeps_the_younger_of_equals(self, keep, cycle, *, keep_convolution=True):
    return Pool(PRUNED(Pool(self.lives[::-1]), keep, cycle, keep_convolution=keep_convolution).lives[::-1])


def prunes_by_the_first_weight(self, keep, cycle, *, keep_convolution=True):
    old = Pool(tuple(replace(life, weights=life.weights[:1]) for life in self.lives))
    staying = PRUNED(old, keep, cycle, keep_convolution=keep_convolution).operations
    return rewritten(self, [life for life in self.living if life.operation not in staying], cycle)


def drops_what_died(self, keep, cycle, *, keep_convolution=True):
    return Pool(PRUNED(self, keep, cycle, keep_convolution=keep_convolution).living)


def drawn(self, children, cycle, constraints, draws, unseen, parents):
    """Children among those that ``unseen`` accepts, drawn anyhow."""
    pool = self
    for _ in range(children):
        offspring = [child for child, _ in possible_children(parents, constraints)]
        choices = [child for child in offspring if unseen(child.operation, pool)]
        if not choices:
            break
        place = int(torch.randint(len(choices), (1,), generator=draws))
        pool = Pool((*pool.lives, replace(choices[place], born=cycle + 1)))
    return pool


def lets_all_return(self, children, cycle, constraints, draws, likelihoods=None):
    return drawn(self, children, cycle, constraints, draws, lambda name, pool: name not in pool.operations, self.living)


def lets_nobody_return(self, children, cycle, constraints, draws, likelihoods=None):
    return drawn(self, children, cycle, constraints, draws, lambda name, pool: name not in pool.seen, self.living)


def has_twins(self, children, cycle, constraints, draws, likelihoods=None):
    return drawn(self, children, cycle, constraints, draws, lambda name, pool: True, self.living)


def has_grandchildren(self, children, cycle, constraints, draws, likelihoods=None):
    pool = self
    for _ in range(children):
        parents = [replace(life, weights=(1.0,)) for life in pool.living]
        pool = drawn(pool, 1, cycle, constraints, draws, lambda name, grown: name not in grown.seen, parents)
    return pool


def has_dead_parents(self, children, cycle, constraints, draws, likelihoods=None):
    return drawn(self, children, cycle, constraints, draws, lambda name, pool: name not in pool.seen, self.lives)


def knows_no_constraints(self, children, cycle, constraints, draws, likelihoods=None):
    return REPLACED(self, children, cycle, CONSTRAINTS["UR"], draws, likelihoods)


def has_one_child_too_many(self, children, cycle, constraints, draws, likelihoods=None):
    return REPLACED(self, children + 1, cycle, constraints, draws, likelihoods)


def is_born_at_once(self, children, cycle, constraints, draws, likelihoods=None):
    return REPLACED(self, children, cycle - 1, constraints, draws, likelihoods)


def remembers_one_weight(self, weights):
    return Pool(tuple(replace(life, weights=life.weights[-1:]) for life in WEIGHED(self, weights).lives))


def weighs_the_dead(self, weights):
    return Pool(
        tuple(
            life if life.died is None else replace(life, weights=(*life.weights, 0.0))
            for life in WEIGHED(self, weights).lives
        )
    )


PRUNED, REPLACED, WEIGHED = Pool.pruned, Pool.replaced, Pool.weighed

BROKEN = {
    "pruned": [
        prunes_the_strongest, keeps_no_convolution, keeps_the_convolution_to_the_last, keeps_the_weakest_convolution,
        keeps_the_younger_of_equals, prunes_by_the_first_weight, drops_what_died,
    ],
    "replaced": [
        lets_all_return, lets_nobody_return, has_twins, has_grandchildren, has_dead_parents, knows_no_constraints,
        has_one_child_too_many, is_born_at_once,
    ],
    "weighed": [remembers_one_weight, weighs_the_dead],
}  # fmt: skip


@pytest.mark.parametrize(("name", "broken"), [(name, wrong) for name, all_of in BROKEN.items() for wrong in all_of])
def test_a_broken_rule_is_found(monkeypatch, name, broken):
    monkeypatch.setattr(Pool, name, broken)
    with pytest.raises(AssertionError):
        check_some(100)


def test_the_same_rules_unbroken_are_not():
    check_some(100)


# ---------------------------------------------------------------------------------------------- who is drawn


FAMILY = Pool.of(INITIAL).weighed({"max_pool_3x3": 0.3, "avg_pool_3x3": 0.1, "skip_connect": 0.2, ROOT.name: 0.4})


def grown_up(*names, weights, dead=()):
    """A pool of living candidates with these weights, and of some that died."""
    living = tuple(Life(name, 1, weights=(weight,)) for name, weight in zip(names, weights, strict=True))
    return Pool((*(Life(name, 1, weights=(0.1,), died=1) for name in dead), *living))


SITUATIONS = {
    # The pool, how many children, the space, the morphisms' likelihoods.
    "first cycle": (FAMILY.pruned(3, 1), 2, "DL", None),
    "two parents": (
        grown_up("skip_connect", ROOT.name, Configuration(5, 1, (1,)).name, weights=(0.5, 0.1, 0.4)), 2, "DR", None,
    ),
    "three parents, some of whose children have been": (
        grown_up(
            ROOT.name, Configuration(3, 1, (1,)).name, Configuration(5, 2).name, weights=(0.05, 0.6, 0.2),
            dead=(Configuration(5).name, Configuration(3, 1, (2,)).name),
        ), 2, "UR", None,
    ),
    "two ways to the same child": (
        grown_up(Configuration(3, 1, (1,)).name, Configuration(5).name, weights=(0.25, 0.5)), 1, "DL", None,
    ),
    "the last unseen one, then those that return": (
        grown_up(
            ROOT.name, Configuration(5).name, weights=(0.3, 0.7),
            dead=(Configuration(3, 2).name, Configuration(3, 1, (1,)).name, Configuration(7).name,
                  Configuration(5, 2).name),
        ), 3, "DL", None,
    ),
    "weighed morphisms": (
        grown_up(ROOT.name, Configuration(5, 1, (1,)).name, weights=(0.6, 0.4)), 2, "UR",
        {"deeper": 3.0, "larger-kernel": 0.5, "wider": 0.1},
    ),
    "weights that differ by much": (
        grown_up(ROOT.name, Configuration(5, 1, (1,)).name, weights=(1e-3, 0.999)), 2, "DL", None,
    ),
}  # fmt: skip


def exact(pool, children, constraints, likelihoods=None, parents=None):
    """The probability of every sequence of (parent, morphism), by the product of both probabilities."""
    parents = pool.living if parents is None else parents
    if not children:
        return {(): 1.0}
    proposals = {}
    for parent in parents:
        if not parent.operation.startswith("sep_conv("):
            continue
        available = morphisms_of(Configuration.parse(parent.operation), constraints)
        chances = {name: (likelihoods or {}).get(name, 1.0) for name in available}
        for name, child in available.items():
            proposals[parent.operation, name] = (child.name, parent.weights[-1] * chances[name] / sum(chances.values()))
    unseen = {way: p for way, (child, p) in proposals.items() if child not in pool.seen}
    accepted = unseen or {way: p for way, (child, p) in proposals.items() if child not in pool.operations}
    if not accepted:
        return {(): 1.0}
    found = {}
    for way, p in accepted.items():
        grown = Pool((*pool.lives, Life(proposals[way][0], 2)))
        for rest, q in exact(grown, children - 1, constraints, likelihoods, parents).items():
            found[(way, *rest)] = p / sum(accepted.values()) * q
    return found


def in_the_papers_words(pool, children, constraints, chance, likelihoods=None, attempts=150):
    """§3.2 and §3.2.2, literally: sample a parent, pick a morphism, and again where the child is or was there."""
    standing, seen = set(pool.operations), set(pool.seen)
    parents = pool.living
    morphisms = {
        life.operation: morphisms_of(Configuration.parse(life.operation), constraints)
        for life in parents
        if life.operation.startswith("sep_conv(")
    }
    ways = []
    for _ in range(children):
        proposed = None
        for _ in range(attempts):
            [parent] = chance.choices(parents, [life.weights[-1] for life in parents])
            if parent.operation not in morphisms:
                continue  # a new parent operation is sampled
            available = morphisms[parent.operation]
            [name] = chance.choices(list(available), [(likelihoods or {}).get(name, 1.0) for name in available])
            child = available[name].name
            if child not in seen:
                proposed = (parent.operation, name, child)
                break
            if child not in standing and proposed is None:
                proposed = (parent.operation, name, child)  # accepted if no further attempt finds an unseen one
        if proposed is None:
            break
        ways.append(proposed[:2])
        standing.add(proposed[2])
        seen.add(proposed[2])
    return tuple(ways)


def draw_many(situation, number):
    pool, children, space, likelihoods = SITUATIONS[situation]
    return Counter(
        tuple(
            (life.parent, life.morphism)
            for life in pool.replaced(
                children, 1, CONSTRAINTS[space], generator(seed), likelihoods
            ).lives[len(pool.lives) :]
        )
        for seed in range(number)
    )


def misfit(counts, expected):
    """The p-value of a chi-square test of counts against exact probabilities, rare outcomes taken together."""
    number = sum(counts.values())
    assert sum(expected.values()) == pytest.approx(1)
    if not set(counts) <= set(expected):
        return 0.0
    bins, rest = [], [0.0, 0.0]
    for way, p in expected.items():
        if p * number >= 5:
            bins.append((counts[way], p * number))
        else:
            rest = [rest[0] + counts[way], rest[1] + p * number]
    if rest[1]:
        bins.append(tuple(rest))
    if len(bins) == 1:
        return 1.0
    return float(stats.chisquare(*zip(*bins, strict=True)).pvalue)


DRAWS = 1000


@pytest.mark.parametrize("situation", SITUATIONS)
def test_children_are_drawn_by_the_exact_distribution(situation):
    pool, children, space, likelihoods = SITUATIONS[situation]
    expected = exact(pool, children, CONSTRAINTS[space], likelihoods)
    assert len(expected) > 1
    assert misfit(draw_many(situation, DRAWS), expected) > 1e-3


@pytest.mark.parametrize("situation", SITUATIONS)
def test_it_is_the_distribution_of_the_papers_words(situation):
    pool, children, space, likelihoods = SITUATIONS[situation]
    chance = random.Random(situation)
    counts = Counter(
        in_the_papers_words(pool, children, CONSTRAINTS[space], chance, likelihoods) for _ in range(DRAWS)
    )
    assert misfit(counts, exact(pool, children, CONSTRAINTS[space], likelihoods)) > 1e-3


def test_exact_probabilities_by_hand():
    pool = SITUATIONS["two ways to the same child"][0]
    three, five = pool.operations  # 3×3 with a layer more, weight 1/4, has two children; 5×5, weight 1/2, has four
    assert exact(pool, 1, CONSTRAINTS["DL"]) == {
        ((three, "larger-kernel"),): pytest.approx(0.25 / 2 / 0.75),
        ((three, "larger-dilation"),): pytest.approx(0.25 / 2 / 0.75),
        ((five, "larger-kernel"),): pytest.approx(0.5 / 4 / 0.75),
        ((five, "smaller-kernel"),): pytest.approx(0.5 / 4 / 0.75),
        ((five, "larger-dilation"),): pytest.approx(0.5 / 4 / 0.75),
        ((five, "deeper"),): pytest.approx(0.5 / 4 / 0.75),
    }


ALL = possible_children


def parents_alike(parents, constraints, likelihoods=None):
    return ALL([replace(life, weights=(1.0,)) for life in parents], constraints, likelihoods)


def parents_inverted(parents, constraints, likelihoods=None):
    return ALL([replace(life, weights=(1 - life.weights[-1],)) for life in parents], constraints, likelihoods)


def children_alike(parents, constraints, likelihoods=None):
    return [(life, 1.0) for life, _ in ALL(parents, constraints, likelihoods)]


def morphisms_unshared(parents, constraints, likelihoods=None):
    """Every morphism as likely as its parent: who has many morphisms is drawn too often."""
    weights = {life.operation: life.weights[-1] for life in parents}
    return [(life, weights[life.parent]) for life, _ in ALL(parents, constraints, likelihoods)]


def likelihoods_ignored(parents, constraints, likelihoods=None):
    return ALL(parents, constraints)


def strongest_parent_only(parents, constraints, likelihoods=None):
    return ALL(sorted(parents, key=lambda life: life.weights[-1])[-1:], constraints, likelihoods)


@pytest.mark.parametrize("wrong", [parents_alike, parents_inverted, children_alike, morphisms_unshared,
                                   likelihoods_ignored, strongest_parent_only])  # fmt: skip
def test_another_distribution_is_found(monkeypatch, wrong):
    monkeypatch.setattr(pools, "possible_children", wrong)
    found = []
    for situation in ("two parents", "three parents, some of whose children have been", "weighed morphisms"):
        pool, children, space, likelihoods = SITUATIONS[situation]
        found.append(misfit(draw_many(situation, 300), exact(pool, children, CONSTRAINTS[space], likelihoods)))
    assert min(found) < 1e-6


def test_where_no_weight_is_left_all_children_are_alike():
    """A softmax may give zeros in single precision; then there is still a child."""
    pool = grown_up("skip_connect", ROOT.name, Configuration(7).name, weights=(1.0, 0.0, 0.0))
    counts = Counter(
        pool.replaced(1, 1, CONSTRAINTS["DL"], generator(seed)).lives[-1].operation for seed in range(600)
    )
    # 3×3 has the children 5×5, dilated, deeper; 7×7 has 5×5, dilated, deeper.
    expected = {Configuration(5).name: 2 / 6, Configuration(3, 2).name: 1 / 6, Configuration(7, 2).name: 1 / 6,
                Configuration(3, 1, (1,)).name: 1 / 6, Configuration(7, 1, (1,)).name: 1 / 6}  # fmt: skip
    assert misfit(counts, expected) > 1e-3


@some
@given(st.integers(0, 2**32))
def test_the_same_generator_gives_the_same_children(seed):
    cycles, again = some_history(seed), some_history(seed)
    assert cycles == again


# ---------------------------------------------------------------------------------------------- by hand


def test_one_cycle_by_hand():
    pool = FAMILY.pruned(3, 1)
    assert pool.operations == ("max_pool_3x3", "skip_connect", ROOT.name)
    assert pool.lives[1] == Life("avg_pool_3x3", 1, weights=(0.1,), died=1)
    narrow = Constraints(max_kernel=5, max_dilation=1)  # 3×3 or 5×5, with a layer more or without
    full = pool.replaced(3, 1, narrow, generator(0))
    assert {(life.operation, life.parent, life.morphism) for life in full.living[3:]} == {
        (Configuration(5).name, ROOT.name, "larger-kernel"),
        (Configuration(3, 1, (1,)).name, ROOT.name, "deeper"),
    }  # there is no third one
    assert all(life.born == 2 and life.weights == () for life in full.living[3:])
    assert full.seen == {*INITIAL, Configuration(5).name, Configuration(3, 1, (1,)).name}


def test_the_weakest_convolution_stays_with_a_weight_of_zero():
    pool = grown_up(*INITIAL, weights=(0.5, 0.3, 0.2, 0.0))
    assert pool.pruned(1, 1).operations == (ROOT.name,)
    assert pool.pruned(2, 1).operations == ("max_pool_3x3", ROOT.name)
    assert pool.pruned(1, 1, keep_convolution=False).operations == ("max_pool_3x3",)
    assert pool.pruned(9, 1) == pool


def test_a_convolution_that_is_no_morphable_one_counts_too():
    pool = grown_up("skip_connect", "conv_1x1", ROOT.name, weights=(0.6, 0.3, 0.1))
    assert pool.pruned(1, 1).operations == ("conv_1x1",)
    assert pool.pruned(1, 1).replaced(3, 1, CONSTRAINTS["UR"], generator(0)).operations == ("conv_1x1",)


def test_of_equals_the_older_stays():
    names = (Configuration(5).name, "skip_connect", ROOT.name)
    for order in itertools.permutations(names):
        assert grown_up(*order, weights=(0.25,) * 3).pruned(2, 1, keep_convolution=False).operations == order[:2]


def test_what_died_before_the_first_cycle_stays_dead():
    pool = Pool((Life("skip_connect", 0, weights=(0.5,), died=0), Life(ROOT.name, 1)))
    assert pool.weighed({ROOT.name: 1.0}).lives == (pool.lives[0], replace(pool.lives[1], weights=(1.0,)))


def test_possible_children():
    pool = grown_up("skip_connect", "sep_conv_3x3", ROOT.name, weights=(0.5, 0.3, 0.2))
    found = possible_children(pool.living, CONSTRAINTS["DL"])
    assert found == [
        (Life(Configuration(5).name, 0, ROOT.name, "larger-kernel"), pytest.approx(0.2 / 3)),
        (Life(Configuration(3, 1, (1,)).name, 0, ROOT.name, "deeper"), pytest.approx(0.2 / 3)),
        (Life(Configuration(3, 2).name, 0, ROOT.name, "larger-dilation"), pytest.approx(0.2 / 3)),
    ]
    point = Constraints(3, 3, 1, 1, 0, 0)
    assert possible_children(pool.living, point) == []
    assert pool.replaced(2, 1, point, generator(0)) == pool


def test_first_weights_and_likelihoods():
    five, deep = Configuration(5).name, Configuration(3, 1, (1,)).name
    pool = Pool(
        (
            Life("skip_connect", 1, weights=(0.4,), died=1),
            Life("max_pool_3x3", 1, weights=(0.1, 0.2), died=2),
            Life(ROOT.name, 1, weights=(0.5, 0.2, 0.5)),
            Life(five, 2, ROOT.name, "larger-kernel", (0.5, 0.3)),
            Life(deep, 2, ROOT.name, "deeper", (0.1,), 2),
            Life(Configuration(7).name, 3, five, "larger-kernel", (0.2,)),
            Life(Configuration(5, 2).name, 4, five, "larger-dilation"),
        )
    )
    assert pool.first_weights(1) == []
    assert pool.first_weights(2) == [("larger-kernel", 4 * 0.5), ("deeper", pytest.approx(4 * 0.1))]
    assert pool.first_weights(3) == [("larger-kernel", pytest.approx(3 * 0.2))]
    assert pool.first_weights(4) == []  # it has not ended
    merits = [*pool.first_weights(2), *pool.first_weights(3), ("smaller-kernel", 0.0)]
    found = {"larger-kernel": pytest.approx(1.3), "deeper": pytest.approx(0.4), "smaller-kernel": 0.1}
    assert morphism_likelihoods(merits) == found == MORPHISM_CHOICES["performance"](merits)
    assert morphism_likelihoods([]) == {}
    assert MORPHISM_CHOICES["uniform"](merits) is None


def test_wrong_input():
    pool = Pool.of(("skip_connect", ROOT.name))
    for weights in ({"skip_connect": 1.0}, {"skip_connect": 0.5, ROOT.name: 0.3, "max_pool_3x3": 0.2}):
        with pytest.raises(InvalidInput, match=r"^Expected a weight for each of skip_connect, sep_conv\(kernel=3, dil"):
            pool.weighed(weights)
    for method in (lambda: pool.pruned(1, 1), lambda: pool.replaced(1, 1, CONSTRAINTS["DL"], generator(0))):
        with pytest.raises(InvalidInput, match=r"has no weight yet: give the pool's weights at the end of a cycle"):
            method()
    for keep in (0, -1):
        with pytest.raises(InvalidInput, match=rf"^A pool keeps at least 1 candidate, got keep={keep}\.$"):
            FAMILY.pruned(keep, 1)
    with pytest.raises(InvalidInput, match="Unknown operation 'skip_conect'"):
        grown_up("skip_conect", weights=(1.0,)).pruned(1, 1)
