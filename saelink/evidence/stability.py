"""How often an edge is chosen again on other documents, penalties nearby and other seeds: the stage `stability`.

The training documents are split at random into two halves, several times, and the connector is fitted on each half; one
that is solved from products also at neighbouring penalties, one that is trained from another seed each time. An edge's
selection probability is the share of these fits in which it is there with the same sign (after N. Meinshausen and P.
Buehlmann, "Stability selection", J. R. Stat. Soc. B 72, 2010; halves in complementary pairs after R. Shah and R.
Samworth, "Variable selection with error control", J. R. Stat. Soc. B 75, 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from saelink.activations.tokens import pull_tokens
from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.connectors.linear import LinearConnector, LinearSettings
from saelink.errors import SaelinkError
from saelink.fit.gram import Gram, gram, gram_of, load_gram
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.base import Problem
from saelink.fit.solvers.exact import ExactSolver
from saelink.fit.solvers.proximal import ProximalSolver
from saelink.fit.train import fitted_connector, train, train_plan
from saelink.fit.warm_start import STARTS
from saelink.interventions.block import FOLDS
from saelink.interventions.effects import effects, load_effects
from saelink.interventions.measure import Effects
from saelink.latents.link import counted_split, pull_sides
from saelink.latents.split import Split, Tokens
from saelink.latents.targets import normaliser
from saelink.progress import Progress
from saelink.runtime import device_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 2

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


def stability_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a connector's selection probabilities. Raises SaelinkError for one whose edges can't be chosen again."""
    if not repeatable(cfg):
        raise SaelinkError(
            f"connector={cfg.connector.name} solver={cfg.solver.name} with l1_alpha={cfg.l1_alpha:g}: the stability of "
            "edges is measured for linear and nonlinear by exact, causal or proximal (not from a warm start), with "
            "l1_alpha above 0"
        )
    plan = train_plan(cfg, store)
    return Plan("stability", VERSION, {}, {"connector": plan.key}, plan.about)


def stability(cfg: Config, store: Store) -> Artifact:
    """Pull the selection probability of every edge of the configured connector.

    File `edges.safetensors`: by edge `target`, `source` (the SAEs' own numbers, sources side by side) and `chosen`, in
    how many of the fits.
    """
    plan = stability_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    connector = fitted_connector(train(cfg, store))
    fits = fits_of(cfg)

    def make(draft: Draft) -> dict[str, Any]:
        ids, W = connector.target_ids, connector.output_weight()
        source, column = W.nonzero(as_tuple=True)
        sign = W[source, column].sign().double()
        chosen = torch.zeros(len(source), dtype=torch.int64)
        with Progress("stability", fits, "fits") as bar:
            for other in _solved_again(cfg, store, ids) if solved(cfg) else _trained_again(cfg, store, ids):
                chosen += other[source, column].sign() == sign
                bar.advance(1)
        draft.save_tensors(
            STABILITY_FILE, {"target": ids[column], "source": source.int(), "chosen": chosen.to(torch.uint8)}
        )
        share = chosen.double() / fits
        edges = max(len(share), 1)
        return {
            "fits": fits,
            "varied": "at neighbouring penalties" if solved(cfg) else "from other seeds",
            "n_edges": len(share),
            "stable": int((share >= STABLE).sum()),
            "half": int((share >= 0.5).sum()),
            "mean": share.sum().item() / edges,
        }

    return store.build(plan, make, device_of(cfg))


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


def _solved_again(cfg: Config, store: Store, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weights of every solution on a half."""
    sides = pull_sides(cfg, store)
    whole = counted_split(cfg, sides, "train")
    training = whole.explain(ids)
    document = pull_tokens(cfg, store).tensors("train.safetensors")["document"].flatten().long()
    documents = Documents.of(training, document)
    everything = load_gram(gram(cfg, store, whole)).explain(ids)
    solver = SOLVERS[cfg.solver.name](cfg.solver)
    assert isinstance(solver, ExactSolver)
    measured = load_effects(effects(cfg, store, "train")).explain(ids) if solver.uses_effects else None
    start = LinearConnector(LinearSettings(name="linear", bias=cfg.connector.bias), sides.d_source, ids)
    c = normaliser(cfg, store, training)
    for pair in range(PAIRS):
        generator = torch.Generator().manual_seed(pair)
        groups = torch.zeros(FOLDS, dtype=torch.bool)
        if measured is None:
            first = documents.half(generator)
        else:
            groups, first = documents.folds(generator)
        for number, products in enumerate(halves(training, documents, everything, first)):
            mine = None if measured is None else effects_of(measured, groups if number == 0 else ~groups)
            name = f"half {pair} {number} of {train_plan(cfg, store).key}"
            problem = Problem(
                train=training, validation=training, l1_alpha=float(cfg.l1_alpha), c=c, seed=0, device=device_of(cfg),
                gram=lambda products=products: products, gram_name=name,
                effects=None if mine is None else lambda mine=mine: mine, effects_name=name,
            )  # fmt: skip
            lasso, _ = solver.problem(start, problem)
            for factor in NEIGHBOURS:
                lam = problem.l1_alpha * factor * c / 2
                yield lasso.solve(lam, solver.config.tolerance, solver.config.max_sweeps)[0].cpu()


def _trained_again(cfg: Config, store: Store, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weights of a training on every half, each from another seed."""
    sides = pull_sides(cfg, store)
    training = counted_split(cfg, sides, "train").explain(ids)
    document = pull_tokens(cfg, store).tensors("train.safetensors")["document"].flatten().long()
    documents = Documents.of(training, document)
    validation = counted_split(cfg, sides, "validation").explain(ids)
    c = normaliser(cfg, store, training)
    for pair in range(TRAINED_PAIRS):
        first = documents.half(torch.Generator().manual_seed(pair))
        for number, chosen in enumerate((first, ~first)):
            seed = cfg.seed + 1 + 2 * pair + number
            connector = CONNECTORS[cfg.connector.name](cfg.connector, sides.d_source, ids)
            connector.initialise(torch.Generator().manual_seed(seed))
            half = training.where(chosen[documents.of_row])
            problem = Problem(
                train=half, validation=validation, l1_alpha=float(cfg.l1_alpha), c=c, seed=seed,
                device=device_of(cfg), gram=lambda half=half: gram_of(half),
            )  # fmt: skip
            SOLVERS[cfg.solver.name](cfg.solver).solve(connector, problem, lambda tokens, note: None)
            yield connector.output_weight().cpu()


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


def effects_of(measured: Effects, groups: torch.Tensor) -> Effects:
    """Effects on some groups of documents alone; rates and mean activations stay those of all."""
    tokens = measured.tokens * groups[:, None]
    mean = measured.folds[groups].float().sum(0) / tokens.sum(0).clamp(min=1)[:, None]
    return measured._replace(mean=mean, tokens=tokens)


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

    def __init__(self, artifact: Artifact):
        self.facts = artifact.facts
        tensors = artifact.tensors(STABILITY_FILE)
        self._places, self._chosen = Places(tensors["source"], tensors["target"]), tensors["chosen"]

    def of(self, source: int, target: int) -> float | None:
        """Share of the fits in which an edge is chosen; None for what is no edge."""
        place = self._places.of(source, target)
        return None if place is None else self._chosen[place].item() / self.facts["fits"]


def repeated(cfg: Config, store: Store) -> Artifact | None:
    """The selection probabilities of the configured connector's edges where they have been found."""
    return store.find(stability_plan(cfg, store)) if repeatable(cfg) else None
