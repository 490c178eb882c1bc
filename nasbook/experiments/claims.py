"""The claims of the five papers and of DARTS, and what our records say of them.

A claim is *exact* (checked to the last digit or to rounding), a *cost* (a ratio measured in one run) or a
*trend* (a comparison over at least three seeds). Ids are stable: records, chapters and tests use them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nasbook.errors import unknown_name
from nasbook.experiments.records import Record, load_records
from nasbook.experiments.registry import Experiment, list_experiments
from nasbook.experiments.scale import SCALES, get_scale
from nasbook.experiments.verdicts import Status, Verdict

Kind = Literal["exact", "cost", "trend"]


@dataclass(frozen=True)
class Claim:
    """One statement of a paper that can be checked."""

    id: str
    """Paper and topic, with a dot between."""
    statement: str
    """What is claimed, in a sentence of ours."""
    where: str
    """Section, equation, table or figure of the paper."""
    kind: Kind
    """How it is checked."""

    @property
    def paper(self) -> str:
        """Short name of the paper: the part of the id before the dot."""
        return self.id.partition(".")[0]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "darts.space",
        "A cell has 14 edges with 8 candidates each, and 1,037,664,180 discrete cells exist.",
        "§3.1.1, App. C",
        "exact",
    ),
    Claim(
        "darts.supernet",
        "The supernet (C=16, 8 cells) has 1,930,618 weights, no architecture parameter among them.",
        "code",
        "exact",
    ),
    Claim(
        "darts.derived",
        "The second-order cell (C=36, 20 cells) has 3,349,342 parameters, 3,825,768 with the auxiliary "
        "head, and takes 528,359,040 multiply-adds at 32×32.",
        "code",
        "exact",
    ),
    Claim(
        "darts.toy",
        "On the two-variable problem the search converges to α = w = 2/(1+2ξ).",
        "Fig. 2; formula ours",
        "exact",
    ),
    Claim(
        "darts.hypergradient",
        "The second-order gradient equals autograd through the unrolled step; the finite "
        "difference tends to it as r goes to 0, and is far off at the usual r = 0.01 with ReLU and max pooling.",
        "Eq. 7, 8; footnote 2 says accurate",
        "exact",
    ),
    Claim(
        "darts.collapse",
        "Longer searches drift to skip connections, and the gap between supernet and derived network grows.",
        "later work",
        "trend",
    ),
    Claim(
        "darts.random",
        "Searched cells are better than random cells that are trained in the same way.",
        "Table 1",
        "trend",
    ),
    Claim(
        "growing.parameters",
        "Table 2's parameter counts, for both backbones with 2 to 7 nodes, LSTM and GRU.",
        "Table 2, Eq. 22, 24",
        "exact",
    ),
    Claim(
        "growing.breakeven",
        "The Two-to-One cell becomes the smaller backbone at 6 nodes for G7, at 7 for BRICS.",
        "§5.1",
        "exact",
    ),
    Claim("growing.complexity", "Growing costs less than training the largest backbone at once.", "Eq. 26–28", "cost"),
    Claim(
        "growing.node-morphism",
        "Adding a node changes the output by at most a bound that goes to 0 with the noise.",
        "Eq. 13–19",
        "exact",
    ),
    Claim("growing.alpha", "The new architecture parameters invert the softmax exactly.", "Eq. 16", "exact"),
    Claim(
        "growing.operator",
        "Duplicating an operation keeps the function; a split lowers the loss exactly when λ_min < 0.",
        "Eq. 8–11, 20–21",
        "exact",
    ),
    Claim(
        "growing.prune-replace",
        "Pruning, replacing and re-sampling keep weights normalised and never empty a node.",
        "§3.2.3–3.2.5",
        "exact",
    ),
    Claim(
        "growing.modes",
        "Both pruning modes and both backbones against LSTM and GRU on index returns.",
        "Fig. 3",
        "trend",
    ),
    Claim(
        "growing.language",
        "Pruning at each stage beats pruning at the end on text; the Two-to-One cell trains to a lower loss.",
        "Fig. 4–6",
        "trend",
    ),
    Claim("growing.time", "Validation loss against computing time.", "Fig. 7–9", "trend"),
    Claim(
        "prdarts.configurations",
        "12, 36 and 80 convolutions can be reached within five morphing steps.",
        "Table 2",
        "exact",
    ),
    Claim("prdarts.space", "180·15⁸ ≈ 4.6·10¹¹ cells, 153 times DARTS'.", "§5", "exact"),
    Claim(
        "prdarts.morphisms",
        "A larger kernel and a wider expansion keep the function; the other morphisms do not.",
        "§3.2",
        "exact",
    ),
    Claim(
        "prdarts.schedule",
        "Nine cycles with grace epochs; no configuration returns to an edge while another is left.",
        "Table 1, §3.2.2",
        "exact",
    ),
    Claim("prdarts.batch", "The batch size grows linearly within the memory budget.", "§3.3", "exact"),
    Claim("prdarts.similarity", "An edge's candidates become more similar over the cycles.", "§4.2", "trend"),
    Claim(
        "prdarts.depth-gap",
        "Without the depth limit the search looks no worse, and the retrained network is worse.",
        "§4.3",
        "trend",
    ),
    Claim(
        "prdarts.prune",
        "Progressive pruning alone beats DARTS at equal budget (a hypothesis of the paper).",
        "§4.3",
        "trend",
    ),
    Claim("entrannas.transit", "A Transit-cell equals the derived sub-graph with the same weights.", "§2.2", "exact"),
    Claim(
        "entrannas.sharing", "Feature sharing needs 5·K instead of 14·K parametric operations a cell.", "§2.3", "exact"
    ),
    Claim(
        "entrannas.dst",
        "Every node keeps a connection, and the derived cell's output equals the Engine-cell's.",
        "§2.4, Eq. 7–10",
        "exact",
    ),
    Claim(
        "entrannas.engine",
        "The accuracy drop is smallest when only the first cells are Engine-cells.",
        "Table 1",
        "trend",
    ),
    Claim("entrannas.kendall", "Kendall's τ rises from DARTS to EnTranNAS to EnTranNAS-DST.", "Table 2", "trend"),
    Claim(
        "entrannas.memory",
        "Memory falls by factors of 2.0, 3.5 and 6.0 as the components are added.",
        "Table 3",
        "cost",
    ),
    Claim("entrannas.cost", "The search becomes 12 times cheaper.", "Table 3", "cost"),
    Claim("entrannas.extended", "12 operations instead of 7 cost about 17 % more search time.", "§4.2", "cost"),
    Claim("entrannas.lambda", "A larger λ leaves fewer edges.", "Table 4", "trend"),
    Claim("entrannas.segmentation", "Derived networks work as backbones for segmentation.", "Table 5", "trend"),
    Claim(
        "stretchable.merge", "The merged form equals the sum over pairs, at the memory of DARTS.", "Eq. 4–10", "exact"
    ),
    Claim("stretchable.scale", "At uniform β every scaled coefficient is 1.", "Eq. 10, 13", "exact"),
    Claim(
        "stretchable.penalty",
        "The penalty is 0 exactly on valid topologies; its gradient touches offenders only.",
        "Eq. 14",
        "exact",
    ),
    Claim("stretchable.edges", "Eight edges with the pair space, any number with the stretchable one.", "§3", "exact"),
    Claim("stretchable.perspective", "Choosing output edges beats choosing input edges.", "Table 5", "trend"),
    Claim("stretchable.depth", "Cells searched with fewer layers are deeper.", "Fig. 3", "trend"),
    Claim(
        "stretchable.layers",
        "A cell does best at the number of layers it was searched with.",
        "Fig. 4, Table 3",
        "trend",
    ),
    Claim("stretchable.stability", "Cells derived at different epochs vary less than DARTS'.", "Table 4", "trend"),
    Claim(
        "stretchable.random", "Random operations on the learned topology beat first-order DARTS.", "Table 1", "trend"
    ),
    Claim(
        "firefly.neighbourhood",
        "The over-grown network is the old one at ε = 0 and differs by O(ε).",
        "§2.1–2.3",
        "exact",
    ),
    Claim("firefly.taylor", "Σ ε·s predicts the change of the loss to O(ε²).", "Eq. 5", "exact"),
    Claim("firefly.selection", "The greedy choice is the optimum of the linearised problem.", "Eq. 5, §2.3", "exact"),
    Claim(
        "firefly.split-equals", "With splits only, the directions are splitting steepest descent's.", "§2.2", "exact"
    ),
    Claim("firefly.rbf", "Pure splitting stalls; methods with new neurons reach zero loss.", "Fig. 3", "trend"),
    Claim("firefly.width", "Accuracy against size: Firefly above splitting, Net2Net and NASH.", "Fig. 4, 6", "trend"),
    Claim("firefly.time", "One growth costs less than splitting's and NASH's.", "Fig. 4b", "cost"),
    Claim(
        "firefly.depth",
        "Grown 4-block networks need fewer parameters than AutoGrow's and NASH's.",
        "Table 3 (B.2)",
        "trend",
    ),
    Claim("firefly.cells", "Growing channels inside DARTS cells finds good cells.", "§3, B.3", "trend"),
    Claim(
        "firefly.continual",
        "Higher accuracy with fewer parameters on split CIFAR-100 than individual networks and CPG.",
        "Fig. 5, Table 2",
        "trend",
    ),
    Claim(
        "firefly.no-forgetting",
        "Earlier tasks lose nothing, to the last bit; shared neurons are stored once.",
        "§2.4, Alg. 2",
        "exact",
    ),
)
"""Every claim, in the order of the book's papers."""


def get_claim(claim_id: str) -> Claim:
    """The claim of that id.

    Raises:
        InvalidInput: there is none; the message has the nearest ids.
    """
    for claim in CLAIMS:
        if claim.id == claim_id:
            return claim
    raise unknown_name("claim", claim_id, [claim.id for claim in CLAIMS])


def judge(claim_id: str, scale: str, records: Iterable[Record] | None = None) -> Verdict:
    """The verdict on a claim at a scale, computed from the records (None: the committed ones).

    Exact claims do not depend on the scale: any record of them counts. A trend whose record has fewer seeds
    than the scale asks for is not judged.
    """
    claim = get_claim(claim_id)
    get_scale(scale)  # raises on an unknown one
    records = load_records() if records is None else tuple(records)
    verdict = Verdict("not yet run at this scale", "")
    for experiment in list_experiments():
        if claim_id not in experiment.judges:
            continue
        for record in records:
            fits = record.scale["name"] == scale or claim.kind == "exact"
            if record.experiment == experiment.name and fits:
                verdict = _judge(experiment, claim, record)
                if verdict.status != "not yet run at this scale":
                    return verdict
    return verdict


def _judge(experiment: Experiment, claim: Claim, record: Record) -> Verdict:
    needed = record.scale["seeds"] if experiment.seeded else 1
    if len(record.measurements) < needed:
        have = len(record.measurements)
        return Verdict("not yet run at this scale", f"{have} of {needed} seeds measured")
    return experiment.judges[claim.id](record)


COLUMNS = ("claim", "statement", "where", "kind", "scale", "verdict", "numbers")
"""What the scoreboard can show."""


def scoreboard(
    paper: str | None = None, records: Iterable[Record] | None = None, columns: Sequence[str] = COLUMNS
) -> str:
    """A Markdown table of claims and their verdicts at every scale that was run.

    Args:
        paper: show the claims of this paper only, by the part of the id before the dot; None for all.
        records: what to judge from; None for the committed records.
        columns: which of :data:`COLUMNS` to show.

    Raises:
        InvalidInput: there is no such paper or column.
    """
    papers = list(dict.fromkeys(claim.paper for claim in CLAIMS))
    if paper is not None and paper not in papers:
        raise unknown_name("paper", paper, papers)
    for column in columns:
        if column not in COLUMNS:
            raise unknown_name("column", column, COLUMNS)
    records = load_records() if records is None else tuple(records)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for claim in CLAIMS:
        if paper is None or claim.paper == paper:
            for row in _rows(claim, records):
                lines.append(f"| {' | '.join(row[column] for column in columns)} |")
    return "\n".join(lines)


def tally(records: Iterable[Record] | None = None) -> dict[str, dict[str, Counter[Status]]]:
    """How many claims of each paper have which verdict: paper → scale → verdict → claims.

    Exact claims don't depend on the scale and stand under ``exact``; all others are counted once at every scale, most
    of them as not yet run at the larger ones.

    Args:
        records: what to judge from; None for the committed records.
    """
    records = load_records() if records is None else tuple(records)
    counts: dict[str, dict[str, Counter[Status]]] = {}
    for claim in CLAIMS:
        own = counts.setdefault(claim.paper, {name: Counter() for name in ("exact", *SCALES)})
        for scale in ("quick",) if claim.kind == "exact" else SCALES:
            own["exact" if claim.kind == "exact" else scale][judge(claim.id, scale, records).status] += 1
    return counts


def _rows(claim: Claim, records: tuple[Record, ...]) -> Iterator[dict[str, str]]:
    """A row for each scale that was run, one in all where none was or where the scale does not matter."""
    about = {"claim": f"`{claim.id}`", "statement": claim.statement, "where": claim.where, "kind": claim.kind}
    verdicts = {scale: judge(claim.id, scale, records) for scale in SCALES}
    run = {s: v for s, v in verdicts.items() if v.status != "not yet run at this scale" or v.numbers}
    if not run:
        yield {**about, "scale": "—", "verdict": "not yet run", "numbers": ""}
    elif claim.kind == "exact":
        verdict = next(iter(run.values()))
        yield {**about, "scale": "any", "verdict": f"**{verdict.status}**", "numbers": verdict.numbers}
    else:
        for scale, verdict in run.items():
            yield {**about, "scale": scale, "verdict": f"**{verdict.status}**", "numbers": verdict.numbers}
