"""How often an edge is chosen again on other documents, penalties nearby and other seeds: the stage `stability`.

The training documents are split at random into two halves, several times, and the connector is fitted on each half; one
that is solved from products also at neighbouring penalties, one that is trained from another seed each time. An edge's
selection probability is the share of these fits in which it is there with the same sign (after N. Meinshausen and P.
Buehlmann, "Stability selection", J. R. Stat. Soc. B 72, 2010; halves in complementary pairs after R. Shah and R.
Samworth, "Variable selection with error control", J. R. Stat. Soc. B 75, 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.connectors.linear import LinearConnector, LinearSettings
from saelink.errors import SaelinkError
from saelink.evidence.claims import weights_of
from saelink.fit.lasso.sparse import SparseLasso, SparseSolution
from saelink.fit.products.dense import Gram, GramStage, gram_of, load_gram
from saelink.fit.products.sparse import PART_TOKENS, ProductsStage, is_wide, sparse_gram_of
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.base import Problem
from saelink.fit.solvers.exact import ExactSolver
from saelink.fit.solvers.proximal import ProximalSolver
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.fit.warm_start import STARTS
from saelink.interventions.block import FOLDS
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.job import Job, JobStage
from saelink.latents.link import counted_split
from saelink.latents.split import Split, Tokens
from saelink.latents.targets import normaliser
from saelink.progress import Progress
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

STABILITY_FILE = "edges.safetensors"

PAIRS = 4
"""Times the documents are split into halves for what is solved from products,"""

TRAINED_PAIRS = 2
"""and for what is trained."""

NEIGHBOURS = (2**0.5, 1.0, 0.5**0.5)
"""What the penalty is multiplied by, the largest first."""

STABLE = 0.9
"""An edge that is chosen in this share of the fits counts as stable."""


def solved(cfg: Config) -> bool:
    """Whether the connector's edges are solved from the products of the documents, so that repeating it is cheap."""
    return issubclass(SOLVERS[cfg.solver.name], ExactSolver)


def repeatable(cfg: Config) -> bool:
    """Whether the stability of such a connector's edges can be measured: zeros that are zeros, no hidden units."""
    trained = (
        SOLVERS[cfg.solver.name] is ProximalSolver and cfg.connector.init in STARTS
    )  # a warm start has seen all documents
    known = solved(cfg) or trained
    return known and issubclass(CONNECTORS[cfg.connector.name], LinearConnector) and float(cfg.l1_alpha) > 0


def wanted(cfg: Config) -> bool:
    """Whether verify.stability asks for it; if it does not say, where it is cheap."""
    asked = cfg.verify.stability
    return repeatable(cfg) and solved(cfg) if asked is None else asked


def fits_of(cfg: Config) -> int:
    """How many fits there are."""
    return 2 * PAIRS * len(NEIGHBOURS) if solved(cfg) else 2 * TRAINED_PAIRS


ALL_TARGETS, SOME_TARGETS = 8192, 4096
"""All targets of up to so many are looked at, and so many of more, if verify.stability_targets does not say."""


def sampled_targets(cfg: Config, n: int) -> torch.Tensor:
    """[m] places, ascending, of the targets that are looked at among n that are explained; a sample by n alone."""
    most = cfg.verify.stability_targets
    if most is None:
        most = n if n <= ALL_TARGETS else SOME_TARGETS
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort().values


class StabilityFacts(TypedDict):
    fits: int
    varied: str
    """What the fits differ in besides documents."""
    targets: int
    """Targets that were looked at,"""
    of_targets: int
    """and how many are explained."""
    n_edges: int
    """Edges into these targets."""
    stable: int
    """Edges that are chosen in STABLE of the fits,"""
    half: int
    """and in half of them."""
    mean: float


class _Edges(NamedTuple):
    """The edges whose fate is followed, in the order of sources."""

    source: torch.Tensor
    """[n]"""
    column: torch.Tensor
    """[n] among the targets that are looked at."""
    places: torch.Tensor
    """[m] these targets' places among those that are explained."""

    def of_dense(self, W: torch.Tensor) -> torch.Tensor:
        """[n] their signs in weights [d_source, m]."""
        return W[self.source, self.column].sign()

    def of_sparse(self, found: SparseSolution) -> torch.Tensor:
        """[n] their signs in a sparse solution of these targets."""
        width = len(self.places)
        key, by = (found.source * width + found.target).sort()
        wanted = self.source * width + self.column
        at = torch.searchsorted(key, wanted).clamp(max=max(len(key) - 1, 0))
        if not len(key):
            return torch.zeros(len(wanted), dtype=torch.float64)
        return torch.where(key[at] == wanted, found.weight[by[at]].sign(), 0.0)


class StabilityStage(JobStage[StabilityFacts]):
    """The selection probability of every edge of the configured connector into the targets that are looked at.

    File `edges.safetensors`: by edge `target`, `source` (the SAEs' own numbers, sources side by side) and `chosen`, in
    how many of the fits. Raises SaelinkError for a connector whose edges can't be chosen again.
    """

    name = "stability"
    version = 3

    def __init__(self, job: Job):
        super().__init__(job)
        cfg = job.cfg
        if not repeatable(cfg):
            raise SaelinkError(
                f"connector={cfg.connector.name} solver={cfg.solver.name} with l1_alpha={cfg.l1_alpha:g}: the stability"
                " of edges is measured for linear and nonlinear by exact, causal or proximal (not from a warm start), "
                "with l1_alpha above 0"
            )
        self._train = TrainStage(job)

    def recipe(self) -> dict[str, Any]:
        return {"targets": self.job.cfg.verify.stability_targets}

    def inputs(self) -> dict[str, str]:
        return {"connector": self._train.key}

    def about(self) -> str:
        return self._train.about()

    def check(self) -> None:
        most = self.job.cfg.verify.stability_targets
        if most is not None and most < 1:
            raise SaelinkError(f"verify.stability_targets={most} must be at least 1")

    def need(self) -> Need:
        job, sides = self.job, self.job.sides
        tokens = 2 * sides.split_bytes("train") + sides.split_bytes("validation")
        if not solved(job.cfg):
            fitted = SOLVERS[job.cfg.solver.name](job.cfg.solver).memory(shape_of(job))
            return Need(tokens + fitted, "use SAEs with fewer latents, or leave it out (verify.stability=false)")
        if not _wide(job):
            needed = tokens + memory.stability(sides.d_source, sides.d_target)
            return Need(needed, "use SAEs with fewer latents, or leave it out (verify.stability=false)")
        pairs, n_targets = ProductsStage(job).pull().facts["pairs"], len(sampled_targets(job.cfg, sides.d_target))
        training = sides.target.facts["sequences"]["train"] * sides.target.facts["context_size"]
        values = min(training, PART_TOKENS) * sides.active  # of a part of them
        needed = tokens + memory.products(pairs, n_targets, values) + memory.wide_exact(pairs, n_targets)
        return Need(needed, "use fewer targets (verify.stability_targets), or leave it out (verify.stability=false)")

    def make(self, draft: Draft) -> StabilityFacts:
        job = self.job
        wide = solved(job.cfg) and _wide(job)
        connector = fitted_connector(self._train.pull())
        fits, ids = fits_of(job.cfg), connector.target_ids
        places = sampled_targets(job.cfg, len(ids))
        weights = weights_of(connector)
        column = torch.searchsorted(places, weights.column).clamp(max=len(places) - 1)
        kept = places[column] == weights.column
        edges = _Edges(weights.source[kept], column[kept], places)
        sign = weights.value[kept].sign().double()
        chosen = torch.zeros(len(sign), dtype=torch.int64)
        again = _solved_wide if wide else _solved_again if solved(job.cfg) else _trained_again
        some = "" if len(places) == len(ids) else f" into {len(places):,} of {len(ids):,} targets"
        job.observer.say(f"stability: {fits} fits, {len(sign):,} edges{some}")
        with job.observer.progress("stability", fits, "fits") as bar:
            for signs in again(job, ids, edges):
                chosen += signs == sign
                bar.advance(1)
        target = ids[places[edges.column]]
        tensors = {"target": target, "source": edges.source.int(), "chosen": chosen.to(torch.uint8)}
        draft.save_tensors(STABILITY_FILE, tensors)
        share = chosen.double() / fits
        return {
            "fits": fits,
            "varied": "at neighbouring penalties" if solved(job.cfg) else "from other seeds",
            "targets": len(places),
            "of_targets": len(ids),
            "n_edges": len(share),
            "stable": int((share >= STABLE).sum()),
            "half": int((share >= 0.5).sum()),
            "mean": share.sum().item() / max(len(share), 1),
        }


def _wide(job: Job) -> bool:
    """Whether the connector is fitted from sparse products."""
    return SOLVERS[job.cfg.solver.name](job.cfg.solver).goes_wide and is_wide(job.sides.d_source, job.sides.d_target)


class Documents(NamedTuple):
    """The documents of a split, numbered in their order."""

    of_row: torch.Tensor
    """[rows of the split] the number of the document a row belongs to."""
    n: int

    @staticmethod
    def of(training: Split, document: torch.Tensor) -> Documents:
        """Those that have a token that counts; `document` is by row of the split. Raises SaelinkError for just one."""
        rows = torch.cat([piece.row for piece in training])
        ids, number = document[rows].unique(return_inverse=True)
        if len(ids) < 2:
            raise SaelinkError("data: the training documents can't be split into halves; use more text")
        return Documents(torch.zeros(len(document), dtype=torch.int64).index_copy_(0, rows, number), len(ids))

    def half(self, generator: torch.Generator) -> torch.Tensor:
        """[n] bool: a random half of them."""
        chosen = torch.zeros(self.n, dtype=torch.bool)
        chosen[torch.randperm(self.n, generator=generator)[: self.n // 2]] = True
        return chosen

    def folds(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """[FOLDS] bool and [n] bool: a random half of the groups in which effects are kept, and their documents."""
        chosen = torch.zeros(FOLDS, dtype=torch.bool)
        used = min(self.n, FOLDS)
        chosen[torch.randperm(used, generator=generator)[: used // 2]] = True
        return chosen, chosen[torch.arange(self.n) % FOLDS]


class _Again(NamedTuple):
    """What fitting again on halves of the documents starts from."""

    whole: Split
    """All training tokens, with all target latents,"""
    training: Split
    """and with the targets that are looked at."""
    documents: Documents
    ids: torch.Tensor
    """[m] the numbers of these targets."""
    c: float
    """The normaliser of the squared error, which all explained targets have a part in."""

    @staticmethod
    def of(job: Job, ids: torch.Tensor, edges: _Edges) -> _Again:
        whole = counted_split(job.cfg, job.sides, "train")
        document = job.tokens.tensors("train.safetensors")["document"].flatten().long()
        explained = whole.explain(ids)
        training = whole.explain(ids[edges.places])
        c = normaliser(job.cfg, job.store, explained)
        return _Again(whole, training, Documents.of(training, document), ids[edges.places], c)


def _solved_again(job: Job, ids: torch.Tensor, edges: _Edges) -> Iterator[torch.Tensor]:
    """The edges' signs in every solution on a half."""
    given = _Again.of(job, ids, edges)
    training, documents, c = given.training, given.documents, given.c
    everything = load_gram(GramStage(job, given.whole).pull()).explain(given.ids)
    solver = SOLVERS[job.cfg.solver.name](job.cfg.solver)
    assert isinstance(solver, ExactSolver)
    measured = load_effects(EffectsStage(job, "train").pull()).explain(given.ids) if solver.uses_effects else None
    start = LinearConnector(LinearSettings(name="linear", bias=job.cfg.connector.bias), job.sides.d_source, given.ids)
    for pair in range(PAIRS):
        generator = torch.Generator().manual_seed(pair)
        groups = torch.zeros(FOLDS, dtype=torch.bool)
        if measured is None:
            first = documents.half(generator)
        else:
            groups, first = documents.folds(generator)
        for number, products in enumerate(halves(training, documents, everything, first)):
            mine = None if measured is None else measured.on(groups if number == 0 else ~groups)
            name = f"half {pair} {number} of {TrainStage(job).key}"
            problem = Problem(
                train=training, validation=training, l1_alpha=float(job.cfg.l1_alpha), c=c, seed=0, device=job.device,
                gram=lambda products=products: products, gram_name=name,
                effects=None if mine is None else lambda mine=mine: mine, effects_name=name,
            )  # fmt: skip
            lasso, _ = solver.problem(start, problem)
            for factor in NEIGHBOURS:
                lam = problem.l1_alpha * factor * c / 2
                yield edges.of_dense(lasso.solve(lam, solver.config.tolerance, solver.config.max_sweeps)[0].cpu())


def _solved_wide(job: Job, ids: torch.Tensor, edges: _Edges) -> Iterator[torch.Tensor]:
    """`_solved_again` from sparse products, which are made of each half: a difference of two would keep all pairs."""
    given = _Again.of(job, ids, edges)
    settings: Any = job.cfg.solver
    for pair in range(PAIRS):
        first = given.documents.half(torch.Generator().manual_seed(pair))
        for chosen in (first, ~first):
            half = given.training.where(chosen[given.documents.of_row])
            about = max(int(len(given.training) * chosen.double().mean().item()), 1)
            products = sparse_gram_of(half, n_tokens=about)
            lasso = SparseLasso(products, job.cfg.connector.bias, settings.positive)
            for factor in NEIGHBOURS:
                lam = float(job.cfg.l1_alpha) * factor * given.c / 2
                yield edges.of_sparse(lasso.solve(lam, settings.tolerance, settings.max_sweeps))


def _trained_again(job: Job, ids: torch.Tensor, edges: _Edges) -> Iterator[torch.Tensor]:
    """The edges' signs after a training on every half, each from another seed; all targets are trained together."""
    sides = job.sides
    training = counted_split(job.cfg, sides, "train").explain(ids)
    document = job.tokens.tensors("train.safetensors")["document"].flatten().long()
    documents = Documents.of(training, document)
    validation = counted_split(job.cfg, sides, "validation").explain(ids)
    c = normaliser(job.cfg, job.store, training)
    for pair in range(TRAINED_PAIRS):
        first = documents.half(torch.Generator().manual_seed(pair))
        for number, chosen in enumerate((first, ~first)):
            seed = job.cfg.seed + 1 + 2 * pair + number
            connector = CONNECTORS[job.cfg.connector.name](job.cfg.connector, sides.d_source, ids)
            connector.initialise(torch.Generator().manual_seed(seed))
            half = training.where(chosen[documents.of_row])
            problem = Problem(
                train=half, validation=validation, l1_alpha=float(job.cfg.l1_alpha), c=c, seed=seed,
                device=job.device, gram=lambda half=half: gram_of(half),
            )  # fmt: skip
            SOLVERS[job.cfg.solver.name](job.cfg.solver).solve(connector, problem, Progress())
            yield edges.of_dense(connector.output_weight().cpu()[:, edges.places])


def halves(training: Split, documents: Documents, everything: Gram, first: torch.Tensor) -> Iterator[Gram]:
    """The products of the documents that `first` [n] names, then of the others."""
    sizes: list[int] = []

    def part() -> Iterator[Tokens]:
        for piece in training:
            kept = piece.subset(first[documents.of_row[piece.row]])
            sizes.append(len(kept))
            yield kept

    n, one = len(training), gram_of(part())
    size = sum(sizes)
    assert 0 < size < n, "every document has a token"
    yield one
    yield Gram(*((n * a - size * b) / (n - size) for a, b in zip(everything, one, strict=True)))


class Places:
    """Where an edge stands in a list of edges."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor):
        self._width = int(target.max()) + 1 if len(target) else 1
        self._keys, self._order = (source.long() * self._width + target.long()).sort()

    def of(self, source: int, target: int) -> int | None:
        """Its place; None for what is not in the list."""
        key = source * self._width + target
        at = int(torch.searchsorted(self._keys, key))
        there = target < self._width and at < len(self._keys) and int(self._keys[at]) == key
        return int(self._order[at]) if there else None


class Stability:
    """Selection probabilities by edge."""

    def __init__(self, artifact: Artifact[StabilityFacts]):
        self.facts = artifact.facts
        tensors = artifact.tensors(STABILITY_FILE)
        self._places, self._chosen = Places(tensors["source"], tensors["target"]), tensors["chosen"]

    def of(self, source: int, target: int) -> float | None:
        """Share of the fits in which an edge is chosen; None for what is no edge."""
        place = self._places.of(source, target)
        return None if place is None else self._chosen[place].item() / self.facts["fits"]


def repeated(job: Job) -> Artifact[StabilityFacts] | None:
    """The selection probabilities of the configured connector's edges where they have been found."""
    return StabilityStage(job).find() if repeatable(job.cfg) else None
