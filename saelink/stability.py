"""How often an edge is chosen again on other documents and at neighbouring penalties: the stage `stability`.

The training documents are split at random into two halves, PAIRS times, and the lasso is solved on each half at three
penalties. An edge's selection probability is the share of these fits in which it is there with the same sign (after
N. Meinshausen and P. Buehlmann, "Stability selection", J. R. Stat. Soc. B 72, 2010; halves in complementary pairs after
R. Shah and R. Samworth, "Variable selection with error control", J. R. Stat. Soc. B 75, 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from saelink.config import Config
from saelink.connectors.linear import Config as LinearConfig
from saelink.connectors.linear import Connector as Linear
from saelink.data import tokens as pull_tokens
from saelink.gram import Gram, gram, gram_of, load_gram
from saelink.latents import Split, Tokens
from saelink.link import normaliser, pull_sides, split_of
from saelink.model import device_of
from saelink.progress import Progress
from saelink.solvers import SOLVERS
from saelink.solvers.base import Problem
from saelink.solvers.exact import Solver as Exact
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store
from saelink.train import load_connector, train, train_plan

VERSION = 1

EDGES_FILE = "edges.safetensors"

PAIRS = 4
"""Times the documents are split into halves."""

NEIGHBOURS = (2**0.5, 1.0, 0.5**0.5)
"""What the penalty is multiplied by, the largest first."""

FITS = 2 * PAIRS * len(NEIGHBOURS)

STABLE = 0.9
"""An edge that is chosen in this share of the fits counts as stable."""


def repeatable(cfg: Config) -> bool:
    """Whether stability is measured for such a connector: a lasso, solved from the products of the documents."""
    return SOLVERS[cfg.solver.name] is Exact and float(cfg.l1_alpha) > 0


def stability_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a connector's selection probabilities. Raises SaelinkError for one that is no lasso."""
    if not repeatable(cfg):
        raise SaelinkError(
            f"solver={cfg.solver.name} with l1_alpha={cfg.l1_alpha:g}: the stability of edges is measured for the "
            "lasso, solver=exact with l1_alpha above 0"
        )
    plan = train_plan(cfg, store)
    return Plan("stability", VERSION, {}, {"connector": plan.key}, plan.about)


def stability(cfg: Config, store: Store) -> Artifact:
    """Pull the selection probability of every edge of the configured connector.

    File `edges.safetensors`: by edge `target`, `source` (the SAEs' own numbers, sources side by side) and `chosen`, in
    how many of FITS fits.
    """
    plan = stability_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    connector = load_connector(train(cfg, store))

    def make(draft: Draft) -> dict[str, Any]:
        ids, W = connector.target_ids, connector.output_weight()
        source, column = W.nonzero(as_tuple=True)
        sign = W[source, column].sign().double()
        chosen = torch.zeros(len(source), dtype=torch.int64)
        for other in _others(cfg, store, ids):
            chosen += other[source, column].sign() == sign
        draft.save_tensors(
            EDGES_FILE, {"target": ids[column], "source": source.int(), "chosen": chosen.to(torch.uint8)}
        )
        share = chosen.double() / FITS
        edges = max(len(share), 1)
        return {
            "fits": FITS,
            "n_edges": len(share),
            "stable": int((share >= STABLE).sum()),
            "half": int((share >= 0.5).sum()),
            "mean": share.sum().item() / edges,
        }

    return store.build(plan, make, device_of(cfg))


def _others(cfg: Config, store: Store, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weights of every fit on a half."""
    sides = pull_sides(cfg, store)
    whole = split_of(cfg, sides, "train")
    document = pull_tokens(cfg, store).tensors("train.safetensors")["document"].flatten().long()
    training = whole.explain(ids)
    everything = load_gram(gram(cfg, store, whole)).explain(ids)
    solver = SOLVERS[cfg.solver.name](cfg.solver)
    assert isinstance(solver, Exact)
    start = Linear(LinearConfig(name="linear", bias=cfg.connector.bias), sides.d_source, ids)
    c = normaliser(cfg, store, training)

    with Progress("stability", FITS, "fits") as bar:
        for pair in range(PAIRS):
            generator = torch.Generator().manual_seed(pair)
            for number, products in enumerate(halves(training, document, everything, generator)):
                problem = Problem(
                    train=training, validation=training, l1_alpha=float(cfg.l1_alpha), c=c, seed=0,
                    device=device_of(cfg), gram=lambda products=products: products,
                    gram_name=f"half {pair} {number} of {train_plan(cfg, store).key}",
                )  # fmt: skip
                lasso, _ = solver.problem(start, problem)
                for factor in NEIGHBOURS:
                    lam = problem.l1_alpha * factor * c / 2
                    yield lasso.solve(lam, solver.config.tolerance, solver.config.max_sweeps)[0].cpu()
                    bar.advance(1)


def halves(
    training: Split, document: torch.Tensor, everything: Gram, generator: torch.Generator
) -> Iterator[Gram]:  # fmt: skip
    """The products of a random half of the documents, then of the other; `document` is by row of the split.

    Raises SaelinkError when one of them has no token.
    """
    alone = document.unique(return_inverse=True)[1]
    first = torch.zeros(int(alone.max()) + 1, dtype=torch.bool)
    first[torch.randperm(len(first), generator=generator)[: len(first) // 2]] = True
    sizes: list[int] = []

    def part() -> Iterator[Tokens]:
        for piece in training:
            kept = piece.subset(first[alone[piece.row]])
            sizes.append(len(kept))
            yield kept

    n, one = len(training), gram_of(part())
    size = sum(sizes)
    if not 0 < size < n:
        raise SaelinkError("data: the training documents can't be split into halves; use more text")
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

    def __init__(self, artifact: Artifact):
        self.facts = artifact.facts
        tensors = artifact.tensors(EDGES_FILE)
        self._places, self._chosen = Places(tensors["source"], tensors["target"]), tensors["chosen"]

    def of(self, source: int, target: int) -> float | None:
        """Share of the fits in which an edge is chosen; None for what is no edge."""
        place = self._places.of(source, target)
        return None if place is None else self._chosen[place].item() / FITS


def repeated(cfg: Config, store: Store) -> Artifact | None:
    """The selection probabilities of the configured connector's edges where they have been found."""
    return store.find(stability_plan(cfg, store)) if repeatable(cfg) else None
