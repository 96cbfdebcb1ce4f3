"""What the page's script reads, as types: cards, circuits, the head and the index.

render.SCHEMA numbers it; a change here that the script must know of raises both.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class TokenShare(TypedDict):
    """A token among those that carry most of a latent's activation."""

    token: str
    share: float
    fires: int
    occurs: int


class Example(TypedDict):
    """The text around a place, and what a latent is there."""

    kind: str
    """Why it was kept: top, size, random."""
    split: str
    document: int
    place: int
    """Its row in the text of all splits."""
    position: int
    value: float
    at: int
    """Which of `tokens` it is about."""
    tokens: list[str]
    values: list[float]
    """In units: 1 is the SAE's mean active value."""


class Quote(TypedDict):
    """A piece of text and which of its tokens is meant."""

    at: int
    tokens: list[str]


class Edge(TypedDict):
    """An edge as a card shows it; claims and effects are shares of the target's mean active value."""

    name: str
    input: NotRequired[int]
    weight: float
    rise: float | None
    """How much the target's FVU grows without it."""
    both: NotRequired[int]
    token: str | None
    claim: NotRequired[float]
    effect: NotRequired[float]
    verdict: NotRequired[str]
    chosen: NotRequired[float]
    """Share of the fits on halves of the documents in which it is chosen again."""
    effectiveness: NotRequired[float]
    """Divergence of the prediction without it, nats a token,"""
    helpfulness: NotRequired[float]
    """and rise of the loss, with its standard error."""
    helpfulness_error: NotRequired[float]
    edges: NotRequired[list[dict[str, Any]]]
    """Of a hidden unit, what leads into it."""


class Evidence(TypedDict):
    """How often the target fires where a condition holds."""

    on: list[str]
    off: list[str]
    tokens: int
    fired: int
    texts: list[Quote]


class LogicTested(TypedDict):
    """What came of taking a word's sources out in the model, see evidence.logic_trials."""

    outcome: str
    """holds, fails or undecided."""
    trials: list[dict[str, Any]]
    """As in logic_trials.TriedLogic, sources by name."""


class LogicOf(TypedDict):
    word: str
    confirmed: bool | None
    """Whether all edges that it names are confirmed; None without verdicts, or where it names none."""
    inputs: list[str]
    covered: float
    evidence: list[Evidence]
    tested: NotRequired[LogicTested]
    """Where `saelink verify` tested it."""


class Wired(TypedDict):
    """What leads into a target or hidden unit, and what it computes from it."""

    edges: list[Edge]
    n_edges: int
    fired: int
    logic: LogicOf
    silent: NotRequired[dict[str, Any]]
    scatter: NotRequired[dict[str, Any]]
    clusters: NotRequired[dict[str, Any]]


class Circuit(Wired):
    """Of an explained target latent."""

    fvu: float | None
    linear: NotRequired[float]
    missed: NotRequired[list[dict[str, Any]]]
    beside: NotRequired[list[dict[str, Any]]]


class Meaning(TypedDict):
    """What a latent means beside what it fires on; other latents by the connector's numbering."""

    words: NotRequired[dict[str, list[list[Any]]]]
    """Tokens that its direction promotes (`up`) and suppresses (`down`) directly, each with its score."""
    similar: list[list[Any]]
    """Latents of similar decoder direction, each with the cosine."""
    together: list[list[Any]]
    """Latents that fire on the same test tokens, each with its overlap: both over either."""


class LatentCard(TypedDict):
    """What a latent fires on, whatever it is wired to."""

    name: str
    hook: str
    latent: int
    page: NotRequired[str]
    token: str | None
    active: int
    tokens_seen: int
    unit: float
    histogram: list[int]
    quantiles: dict[str, float | None]
    tokens: list[TokenShare]
    examples: list[Example]


class FitColumns(TypedDict):
    """By latent of the target SAE, for the list of circuits; None where it is not explained."""

    n_edges: list[int | None]
    word: list[str | None]
    confirmed: list[bool | None]
    """As in LogicOf."""
    formula: list[list[Any] | None]
    """First terms, confirmed ones before others: input, weight, verdict if any."""
    why: list[str | None]
    """Where the word is unclear, the codes of the reasons with blanks between, see page/why.js."""
    verdicts: list[list[int] | None]
    """Edges of each verdict, in the order of evidence.verdicts.VERDICTS; None without verdicts."""
    effect: list[float | None]
    """Largest size of a confirmed edge's effect, as a share of the target's mean active value."""
    effectiveness: NotRequired[list[float | None]]
    """Sum over its edges, in nats a token, where it was measured,"""
    helpfulness: NotRequired[list[float | None]]
    """and of helpfulness,"""
    helpfulness_error: NotRequired[list[float | None]]
    """with its standard error."""


class EdgeColumns(TypedDict):
    """The edges of some latents as the page stores them, the largest weights of each first.

    Numbers are codes of report/levels.py; claims and effects are shares as in Edge.
    """

    latent: list[int]
    n: list[int]
    """How many each has."""
    number: list[int]
    """The other end: of a target the input; of a source the target, or -1 for hidden unit 0, -2 for 1."""
    weight: list[int]
    rise: list[int | None]
    verdict: NotRequired[list[int | None]]
    """Places in evidence.verdicts.VERDICTS."""
    claim: NotRequired[list[int | None]]
    effect: NotRequired[list[int | None]]
    shown: int
    few: dict[str, list[Any]]
    """Of the first `shown` edges of each: both, chosen and their like as in Edge, where some edge has them."""


class StoredExamples(TypedDict):
    """Examples as the page stores them."""

    kind: list[str]
    place: list[int]
    value: list[float]
    values: list[list[int]]
    """Of each value that is not 0, how far it is from the last, and its hundredths."""


class Stretch(TypedDict):
    """A piece of a sequence, from position `at` on."""

    at: int
    tokens: list[str]
    documents: list[list[int]]
    """Where in it which document begins."""


class Index(TypedDict):
    """By target, in columns: what the list of circuits shows, searches and sorts by."""

    token: list[str | None]
    active: list[int]
    outlier: list[int]
    """0, or which kind of place carries it: 1 first positions, 2 first delimiter, 3 massive activations."""
    fits: list[dict[str, Any]]
    """FitColumns, `fvu` by target and `feeds` by source (how many edges lead from it), by connector."""
    gains: list[dict[str, Any]]
    source_token: list[str | None]
    source_name: list[str]
    source_active: list[int]


class Head(TypedDict):
    """What stands on the first screen, and what the rest is found by."""

    title: str
    connector: str
    model: str
    data: str
    layer: int
    link: dict[str, Any]
    tokens: dict[str, int]
    documents: dict[str, int]
    context: int
    sequences: list[list[Any]]
    """Splits with how many each has, in the order in which they are numbered through."""
    text_piece: int
    """Sequences of one piece of text."""
    window: int
    """Tokens of an example on either side of its own."""
    saes: list[dict[str, Any]]
    command: str | None
    labels: NotRequired[list[dict[str, Any]]]
    """The user's own, of a file, see evidence.labels.Remark."""
    fits: list[dict[str, Any]]
    verdicts: list[str]
    """The words for an edge that edges.claim and its like are told by, in their order."""
    min_ablated: int
    """Tokens that a source must have been ablated on for a verdict."""
    verified: list[dict[str, Any]]
    verify: str | None
    """The command that makes verdicts, where they can be made."""
    has_hidden: bool
    heads: dict[str, Any] | None
    """What is known of all heads of a link from moved latents by head, see report.heads; None for another link."""
    direct: int
    d: dict[str, int]
    piece: int
    """Latents of one piece."""
    cards: int
    highlights: dict[str, list[dict[str, Any]]]
    outliers: list[dict[str, Any]]
    w2_median: dict[str, float] | None
    hidden_units: dict[str, Any] | None
    table: list[dict[str, Any]]
    frontier: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    experiments: list[dict[str, Any]]
