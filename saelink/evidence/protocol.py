"""Is a circuit what computes a target latent? Three hypotheses, tested in the model: the stage `circuit_tests`.

After C. Shi and others, "Hypothesis testing the circuit hypothesis in LLMs" (2024, arXiv 2410.13032). A circuit is a
target with the sources of the strongest edges into it, those left out that ablation refutes. The target is read after
the true MLP (or block) of one layer, its threshold held; what is taken out is ablated as verify.ablation says.

equivalence   The circuit alone, every other active source gone, gives what the model gives: the target's pre-activation
              is the greater one of the two in half of the tokens, within .1. A small p speaks against the circuit.
independence  What is left without the circuit's sources says nothing of the target any more: its pre-activation is
              independent of the model's (HSIC, permutations). A small p speaks against the circuit.
minimality    Each edge does more than a source that is active there by chance: with the circuit alone, taking it out
              moves the target further than taking a random other source from a circuit that it was added to, on more
              than half of the tokens. A small p speaks for the edge. (Shi and others ask whether an edge does less
              than nine tenths of random ones, and let small p speak against it.)

Tokens are one a document, so that they are independent draws: at random where the target fires or a source of the
circuit is active, in half of the documents where the target fires if it does. p-values are corrected by Holm's method
for all circuits, or edges, of one command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.evidence.hypotheses import binomial_tail, equivalence, holm, independence
from saelink.evidence.logic_trials import documents_of
from saelink.evidence.verdicts import REFUTED, Verdicts
from saelink.evidence.verify import has_verdicts, verdicts_stage
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.interventions.block import most_tokens, open_block, opened_sizes, tokens_looked_at
from saelink.interventions.effects import ablation_recipe, check_measurable
from saelink.interventions.joint import Gone, Joint
from saelink.job import Job, JobStage
from saelink.store.draft import Draft
from saelink.store.stage import Need

TESTS_FILE = "tests.json"

EPSILON = 0.1
"""How far from a half the share of tokens may be on which the circuit gives more than the model."""

LEVEL = 0.05
"""A corrected p below this rejects."""

FEWEST = 10
"""Tokens that a test needs; below it nothing is tested."""


class CircuitTest(TypedDict):
    """One circuit's tests. None where there were too few tokens."""

    target: int
    sources: list[int]
    tokens: int
    fires: int
    """Of these, where the target fires;"""
    fires_alone: int
    """where it does with the circuit alone, of those where it fires,"""
    fires_else: int
    """and of those where it does not."""
    fires_without: int
    """Where it still does without the circuit, of those where it fires."""
    correlation: float | None
    """Of the target's pre-activation by the circuit alone with the model's."""
    greater: float | None
    """Share of tokens where the circuit alone gives more."""
    equivalence_p: float | None
    hsic: float | None
    independence_p: float | None
    edges: list[EdgeTest]


class EdgeTest(TypedDict):
    source: int
    tokens: int
    """Of those of the circuit where it is active."""
    more: float | None
    """Share where it does more than a random source."""
    p: float | None


class CircuitTestsFacts(TypedDict):
    circuits: int
    ablation: str


def numbers_of(job: Job, names: Sequence[str]) -> list[int]:
    """The target latents that names such as OF138, or 138, mean.

    Raises SaelinkError for one that means none, and for a link whose effects can't be measured.
    """
    check_measurable(job.cfg)
    found: list[int] = []
    for name in names:
        number = name.upper().removeprefix("OF")
        if not number.isdigit():
            raise SaelinkError(f"test {name}: give a target latent by its name, such as OF138")
        if int(number) >= job.sides.d_target:
            raise SaelinkError(f"test {name}: the target SAE has latents OF0 to OF{job.sides.d_target - 1}")
        if int(number) not in found:
            found.append(int(number))
    return found


class CircuitTestsStage(JobStage[CircuitTestsFacts]):
    """The tests of some targets' circuits, on test documents.

    File `tests.json`: a list of `CircuitTest`, with `..._corrected` beside each p. Raises SaelinkError for a target
    without edges and for a link whose effects can't be measured.
    """

    name = "circuit_tests"
    version = 1

    def __init__(self, job: Job, targets: Sequence[int]):
        super().__init__(job)
        check_measurable(job.cfg)
        self._targets = list(targets)

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        tokens = {"tokens": most_tokens(cfg, "test"), "drop_positions": cfg.data.drop_positions}
        return {"targets": self._targets, "edges": cfg.eval.edges, **tokens, **ablation_recipe(cfg)}

    def inputs(self) -> dict[str, str]:
        judged = {"verdicts": verdicts_stage(self.job).key} if has_verdicts(self.job) else {}
        keys = {"connector": TrainStage(self.job).key, "model": self.job.model.artifact.key}
        return {**self.latents_inputs(), **keys, **judged}

    def about(self) -> str:
        return TrainStage(self.job).about()

    def need(self) -> Need:
        sizes, n = opened_sizes(self.job), len(documents_of(self.job, tokens_looked_at(self.job, "test")).unique())
        needed = memory.joint(*sizes) + 8.0 * shape_of(self.job).weights + 40 * n * n  # kernels over documents
        return Need(needed, "use fewer tokens (verify.tokens) or SAEs with fewer latents")

    def make(self, draft: Draft) -> CircuitTestsFacts:
        job = self.job
        connector = fitted_connector(TrainStage(job).pull())
        verdicts = Verdicts(verdicts_stage(job).pull()) if has_verdicts(job) else None
        circuits = {target: circuit_of(job, connector, verdicts, target) for target in self._targets}
        joint = Joint(open_block(job, "test"), job.sides.scales, job.cfg.verify.ablation)
        document = documents_of(job, len(joint))
        with job.observer.progress("circuit_tests", len(circuits), "circuits") as bar:
            tests: list[CircuitTest] = []
            for target, sources in circuits.items():
                tests.append(circuit_test(joint, document, target, sources))
                bar.advance(1)
        draft.save_json(TESTS_FILE, corrected(tests))
        return {"circuits": len(tests), "ablation": job.cfg.verify.ablation.name}


def circuit_of(job: Job, connector: Connector, verdicts: Verdicts | None, target: int) -> list[int]:
    """The sources of a target's circuit: of its eval.edges strongest edges, without those that ablation refutes."""
    name, weaker = job.sides.target_name(target), f"l1_alpha={job.cfg.l1_alpha:g}; a smaller one keeps more edges"
    if connector.n_hidden:
        raise SaelinkError(f"test {name}: connector={job.cfg.connector.name} has hidden units; test a linear one")
    if target not in connector.target_ids:
        raise SaelinkError(f"test {name}: the connector does not explain it (targets.*)")
    strongest = connector.edges(target, job.cfg.eval.edges).ids
    sources = [i for i in strongest if verdicts is None or verdicts.word(i, target) not in REFUTED]
    if not strongest:
        raise SaelinkError(f"test {name}: no edge leads to it at {weaker}")
    if not sources:
        raise SaelinkError(
            f"test {name}: ablation refutes all of its {len(strongest)} strongest edges; see saelink show"
        )
    return sources


class _Readings(NamedTuple):
    """The target's pre-activations [n] at some tokens."""

    model: torch.Tensor
    alone: torch.Tensor
    without: torch.Tensor


def circuit_test(joint: Joint, document: torch.Tensor, target: int, sources: list[int]) -> CircuitTest:
    """The tests of one circuit; `document` [n] is that of each token."""
    token = tokens_of(joint, document, target, sources)
    at = torch.full_like(token, target)
    inside = torch.isin(joint.active.select(token).indices, torch.tensor(sources))
    rows = joint.active.select(token)
    everything = Gone(rows.row_of, rows.indices)
    rest = Gone(everything.row[~inside], everything.source[~inside])
    mine = Gone(everything.row[inside], everything.source[inside])
    read = _Readings(joint.own(token, at), joint.without(token, rest, at), joint.without(token, mine, at))
    fires, alone, without = (joint.is_on(pre, token, at) for pre in read)
    enough = len(token) >= FEWEST
    hsic, independent = independence(read.without, read.model) if enough else (None, None)
    greater, less = int((read.alone > read.model).sum()), int((read.alone < read.model).sum())
    return {
        "target": target,
        "sources": sources,
        "tokens": len(token),
        "fires": int(fires.sum()),
        "fires_alone": int((alone & fires).sum()),
        "fires_else": int((alone & ~fires).sum()),
        "fires_without": int((without & fires).sum()),
        "correlation": _correlation(read.alone, read.model) if enough else None,
        "greater": greater / max(greater + less, 1) if enough else None,
        "equivalence_p": equivalence(greater, less, EPSILON) if enough else None,
        "hsic": hsic,
        "independence_p": independent,
        "edges": [_edge(joint, token, at, rest, read.alone, source) for source in sources],
    }


def tokens_of(joint: Joint, document: torch.Tensor, target: int, sources: list[int]) -> torch.Tensor:
    """[m] one token of each document that has any where the target fires or one of the sources is active."""
    fires, active = joint.target_on(target), torch.zeros(len(joint), dtype=torch.bool)
    for source in sources:
        active |= joint.source_on(source)
    generator = torch.Generator().manual_seed(target)
    order = torch.randperm(len(joint), generator=generator)
    picked: dict[int, int] = {}
    first = torch.rand(int(document.max()) + 1, generator=generator) < 0.5  # whether a firing one comes first
    for wanted in (fires, active & ~fires):
        for place in order[wanted[order]].tolist():
            of = int(document[place])
            if wanted is fires and not bool(first[of]):
                continue
            picked.setdefault(of, place)
    for place in order[fires[order]].tolist():  # of documents that have no other
        picked.setdefault(int(document[place]), place)
    return torch.tensor(sorted(picked.values()), dtype=torch.int64)


def _edge(
    joint: Joint, token: torch.Tensor, at: torch.Tensor, rest: Gone, alone: torch.Tensor, source: int
) -> EdgeTest:
    """Whether a source of the circuit does more in it than one that is active at the same token does when added."""
    active = joint.active.at(token, torch.full_like(token, source)) > 0
    has_rest = torch.bincount(rest.row, minlength=len(token)) > 0
    where = (active & has_rest).nonzero().flatten()
    if len(where) < FEWEST:
        return {"source": source, "tokens": len(where), "more": None, "p": None}
    chosen = torch.isin(rest.row, where)
    row = torch.searchsorted(where, rest.row[chosen])
    others = rest.source[chosen]
    count = torch.bincount(row, minlength=len(where))
    begin = torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)[:-1]])
    drawn = begin + (torch.rand(len(where), generator=torch.Generator().manual_seed(source)) * count).long()
    kept = torch.ones(len(others), dtype=torch.bool)
    kept[drawn] = False  # the random source that is added to the circuit stays
    tokens, target = token[where], at[where]
    added = joint.without(tokens, Gone(row[kept], others[kept]), target)
    both_row = torch.cat([row, torch.arange(len(where))])
    order = torch.argsort(both_row, stable=True)
    without = Gone(both_row[order], torch.cat([others, torch.full_like(where, source)])[order])
    gone = joint.without(tokens, without, target)
    own, random = (alone[where] - gone).abs(), (added - alone[where]).abs()
    more, differ = int((own > random).sum()), int((own != random).sum())
    return {
        "source": source, "tokens": len(where), "more": more / max(differ, 1),
        "p": binomial_tail(more, differ, 0.5),
    }  # fmt: skip


def corrected(tests: list[CircuitTest]) -> list[dict[str, Any]]:
    """The tests with corrected p-values: of equivalence and of independence over circuits, of minimality over edges."""
    found: list[dict[str, Any]] = [{**test, "edges": [{**edge} for edge in test["edges"]]} for test in tests]
    for name in ("equivalence_p", "independence_p"):
        _correct(found, name)
    _correct([edge for test in found for edge in test["edges"]], "p")
    return found


def _correct(rows: list[dict[str, Any]], name: str) -> None:
    known = [row for row in rows if row[name] is not None]
    for row in rows:
        row[f"{name}_corrected"] = None
    for row, p in zip(known, holm([row[name] for row in known]), strict=True):
        row[f"{name}_corrected"] = p


def _correlation(x: torch.Tensor, y: torch.Tensor) -> float | None:
    if x.std() < 1e-9 or y.std() < 1e-9:
        return None
    return torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1].item()
