"""Effectiveness and helpfulness against the exact Fisher matrix, and against the model run without the edge."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from saelink.config.schema import Config
from saelink.evidence.edge_removals import REMOVALS_FILE, EdgeRemovalsStage, only, removed, spread
from saelink.evidence.effectiveness import OUTPUTS_FILE, EffectivenessStage, Outputs, carried_by, edge_outputs
from saelink.evidence.pruned import ORDERS, PRUNED_FILE, SHARES, PrunedStage, effect_sizes, pruned_rows
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.edge_gradients import (
    Contributions,
    EdgeSums,
    GraphEdges,
    gradients_at,
    graph_edges,
    outputs_of,
    targets_of,
)
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.interventions.splice import SplicedTokens, spliced_tokens
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.model.load import load_bridge
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.world import Run

Compose = Callable[..., Config]
SEQUENCES = 3


class Small(NamedTuple):
    """A connector of the small world with everything that its edges' figures are computed from."""

    job: Job
    edges: GraphEdges
    test: SplicedTokens
    bridge: Any
    """In float64."""


@pytest.fixture
def small(config: Compose, store: Store) -> Small:
    job = Job(config("solver=exact", "l1_alpha=1e-3", f"verify.output_tokens={16 * SEQUENCES}"), store)
    edges = graph_edges(fitted_connector(TrainStage(job).pull()))
    bridge = load_bridge(job.cfg, job.model, "cpu").double()
    return Small(job, edges, spliced_tokens(job, 16 * SEQUENCES), bridge)


def written_by_hand(small: Small, edge: int) -> torch.Tensor:
    """[sequences, context, width] float64 what one edge writes, from the latents as `load_split` gives them."""
    job, edges = small.job, small.edges
    split = load_split(job.cfg, job.sides, "test")
    direction = pull_sae(job.cfg, job.store, job.link.target).W_dec[edges.target[edge]].double()
    out = torch.zeros(small.test.ids.numel(), len(direction), dtype=torch.float64)
    here = split.row < small.test.ids.numel()
    value = split.source.dense()[here][:, edges.source[edge]].double() * job.sides.scales[-1]
    out[split.row[here]] = value[:, None] * edges.weight[edge].double() * direction
    return out.view(*small.test.ids.shape, -1)


def exact_fisher(small: Small, written: torch.Tensor) -> tuple[float, float]:
    """1/2 E_y[(sum_t c_t . g_t)^2] and 1/2 sum_t E_y[(c_t . g_t)^2], every next token of every position in turn."""
    hook, everywhere, single = small.job.link.target, 0.0, 0.0
    for ids, c in zip(small.test.ids, written, strict=True):
        held: list[torch.Tensor] = []

        def hold(acts: torch.Tensor, held: list[torch.Tensor] = held, **_: object) -> torch.Tensor:
            held.append(acts.detach().requires_grad_())
            return held[0]

        logp = small.bridge.run_with_hooks(ids[None], fwd_hooks=[(hook, hold)])[0, :-1].log_softmax(-1)
        for position in logp:
            for each in position:
                (g,) = torch.autograd.grad(each, held[0], retain_graph=True)
                along = (c * g[0].flatten(1)).sum(-1)  # [context]
                probability = each.exp().item()
                everywhere += probability * along.sum().item() ** 2 / 2
                single += probability * along.square().sum().item() / 2
    return everywhere, single


def strongest(small: Small, n: int) -> list[int]:
    given = Contributions(small.job, small.edges, small.test)
    there = torch.bincount(given.active.indices, minlength=len(small.edges.offsets) - 1)[small.edges.source] > 2
    return (small.edges.weight.abs() * there).topk(n).indices.tolist()


def sampled(small: Small, draws: int) -> EdgeSums:
    sums, given = EdgeSums(small.edges), Contributions(small.job, small.edges, small.test)
    generator = torch.Generator().manual_seed(5)
    noise = torch.rand(draws, SEQUENCES, 15, generator=generator, dtype=torch.float64)
    found = gradients_at(small.bridge, small.job.link.target, small.test.ids, noise)
    for number in range(SEQUENCES):
        sums.add(given, number, found, number)
    return sums


def test_samples_come_to_the_exact_fisher(small: Small) -> None:
    sums = sampled(small, 1500)
    given = Contributions(small.job, small.edges, small.test)
    found = outputs_of(sums, small.edges.weight, SEQUENCES * 15, len(given.row))
    for edge in strongest(small, 5):
        everywhere, single = exact_fisher(small, written_by_hand(small, edge))
        assert everywhere > 0
        expected, error = everywhere / (SEQUENCES * 15), found.effectiveness_error[edge].item()
        assert found.effectiveness[edge].item() == pytest.approx(expected, abs=4 * error)
        assert error < 0.1 * expected
        assert found.single[edge].item() == pytest.approx(single / len(given.row), rel=0.15)


def test_a_targets_error_is_over_sequences_of_all_its_edges_together(small: Small) -> None:
    """By hand from each sequence alone; edges of one target go up and down together, so their errors don't add up."""
    noise = torch.rand(1, SEQUENCES, 15, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradients = gradients_at(small.bridge, small.job.link.target, small.test.ids, noise)
    given, whole, of_sequence = Contributions(small.job, small.edges, small.test), EdgeSums(small.edges), []
    for number in range(SEQUENCES):
        whole.add(given, number, gradients, number)
        (alone := EdgeSums(small.edges)).add(given, number, gradients, number)
        of_sequence.append(small.edges.weight.double() * alone.first)
    edges = outputs_of(whole, small.edges.weight, SEQUENCES * 15, len(given.row))
    found = targets_of(whole, small.edges, edges, SEQUENCES * 15)
    checked = 0
    for column in range(len(small.edges.target_ids)):
        mine = small.edges.column == column
        rises = torch.stack([each[mine].sum() for each in of_sequence])
        assert found.helpfulness[column].item() == pytest.approx(rises.sum().item() / (SEQUENCES * 15), abs=1e-12)
        error = rises.std(correction=0).item() * SEQUENCES**0.5 / (SEQUENCES * 15)
        assert found.helpfulness_error[column].item() == pytest.approx(error, rel=1e-6, abs=1e-9)
        assert found.effectiveness[column].item() == pytest.approx(edges.effectiveness[mine].sum().item(), abs=1e-12)
        checked += error > 1e-6
    assert checked > 10


def run_without(small: Small, written: torch.Tensor) -> tuple[float, float]:
    """Divergence and rise of the loss, summed over all predictions, of the float64 model without what is written."""

    def remove(acts: torch.Tensor, **_: object) -> torch.Tensor:
        return acts - written.view(acts.shape)

    with torch.no_grad():
        clean = small.bridge(small.test.ids)[:, :-1].log_softmax(-1)
        after = small.bridge.run_with_hooks(small.test.ids, fwd_hooks=[(small.job.link.target, remove)])
        after = after[:, :-1].log_softmax(-1)
    actual = small.test.ids[:, 1:, None]
    return (clean.exp() * (clean - after)).sum().item(), (clean - after).gather(-1, actual).sum().item()


def test_the_fisher_is_the_divergence_of_small_edges(small: Small) -> None:
    """In float64, of an edge made a thousand times smaller: the second order, and the first of the loss, is all."""
    sums = sampled(small, 1)
    for edge in strongest(small, 3):
        written = written_by_hand(small, edge)
        kl, rise = run_without(small, 1e-3 * written)
        assert kl / 1e-6 == pytest.approx(exact_fisher(small, written)[0], rel=1e-2)
        expected = (small.edges.weight[edge].double() * sums.first[edge]).item()
        assert rise / 1e-3 == pytest.approx(expected, rel=1e-2, abs=1e-6)


def test_what_edges_write_together_is_their_sum(small: Small) -> None:
    given = Contributions(small.job, small.edges, small.test)
    chosen = strongest(small, 4)
    weight = torch.zeros(len(small.edges.weight))
    weight[chosen] = small.edges.weight[chosen]
    expected = torch.stack([written_by_hand(small, edge) for edge in chosen]).sum(0)
    assert torch.allclose(given.written(weight).double(), expected, atol=1e-5)


def test_later_sequences_are_those_of_the_split(small: Small) -> None:
    everything = Contributions(small.job, small.edges, small.test)
    later = Contributions(small.job, small.edges, SplicedTokens(*(each[1:] for each in small.test)), 1)
    whole = everything.written(small.edges.weight)
    assert torch.allclose(whole[1:], later.written(small.edges.weight), atol=1e-6) and whole.abs().max() > 0


def test_removed_edges_are_run_as_the_whole_model_runs_them(small: Small) -> None:
    chosen = torch.tensor(sorted(strongest(small, 6)))
    few = only(small.edges, chosen)
    assert torch.equal(few.target, small.edges.target[chosen]) and torch.equal(few.source, small.edges.source[chosen])
    kl, loss = removed(small.job, few, Contributions(small.job, few, small.test))
    for place, edge in enumerate(chosen.tolist()):
        expected = run_without(small, written_by_hand(small, edge))
        assert kl[place].item() * SEQUENCES * 15 == pytest.approx(expected[0], rel=2e-3, abs=1e-6)
        assert loss[place].item() * SEQUENCES * 15 == pytest.approx(expected[1], rel=2e-3, abs=1e-4)


def test_the_stage_holds_every_edge_and_does_not_depend_on_batches(
    config: Compose, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(config("solver=exact", "l1_alpha=1e-3", "verify.output_tokens=320", "verify.draws=2"), store)
    artifact = EffectivenessStage(job).pull()
    tensors, edges = artifact.tensors(OUTPUTS_FILE), graph_edges(fitted_connector(TrainStage(job).pull()))
    assert artifact.facts["edges"] == len(edges.weight) == len(tensors["effectiveness"])
    assert torch.equal(tensors["target"].long(), edges.target) and (tensors["effectiveness"] >= 0).all()
    monkeypatch.setattr("saelink.evidence.effectiveness.SEQUENCES", 7)
    again, by_target = edge_outputs(job, edges, spliced_tokens(job, 320), 2)
    for name, column in again._asdict().items():
        assert torch.allclose(tensors[name], column.float(), rtol=1e-3, atol=1e-9), name
    found = Outputs(artifact).of_targets()
    assert torch.equal(found["target"].long(), edges.target_ids)
    for name, column in by_target._asdict().items():
        assert torch.allclose(found[name], column.float(), rtol=1e-3, atol=1e-8), name
    outputs, place = Outputs(artifact), int(tensors["effectiveness"].argmax())
    found = outputs.of(int(tensors["source"][place]), int(tensors["target"][place]))
    assert found is not None and found.effectiveness == tensors["effectiveness"].max()
    assert outputs.of(0, 10**6) is None


def test_estimates_beside_the_model_without_the_edge(config: Compose, store: Store) -> None:
    words = ["verify.output_tokens=640", "verify.edges_checked=60", "verify.check_tokens=160"]
    stage = EdgeRemovalsStage(Job(config("solver=exact", "l1_alpha=1e-3", *words), store))
    facts, tensors = stage.pull().facts, stage.pull().tensors(REMOVALS_FILE)
    assert facts["edges"] == len(tensors["kl"]) == 60
    assert facts["spearman_effectiveness"] > 0.9 and facts["spearman_helpfulness"] > 0.9, facts
    assert 0.5 < facts["ratio_effectiveness"] < 2


def test_the_prune_curve_ends_where_nothing_and_all_are_taken(config: Compose, store: Store) -> None:
    words = ["verify.output_tokens=320", "verify.pruned_tokens=320", "solver=exact", "l1_alpha=1e-3"]
    job = Job(config(*words), store)
    rows = PrunedStage(job).pull().json(PRUNED_FILE)
    assert [(row["order"], row["kept"]) for row in rows] == [(order, share) for order in ORDERS for share in SHARES]
    whole = [row for row in rows if row["kept"] == 1]
    none = {round(row["cost"], 5) for row in rows if row["kept"] == 0}
    assert all(row["cost"] == 0 and row["kl"] == 0 and row["top1"] == 1 for row in whole) and len(none) == 1
    assert PrunedStage(job).pull().facts["shared"] == 0, "on tokens that no order is from"
    edges = graph_edges(fitted_connector(TrainStage(job).pull()))
    test = SplicedTokens(*(each[20:40] for each in spliced_tokens(job)))
    (only_weight, *_), *_ = [pruned_rows(job, edges, {"weight": edges.weight.abs()}, test, 20)]
    first = rows[0]
    assert only_weight["kl"] == pytest.approx(first["kl"], rel=1e-4) and first["kl"] > 0


def test_pruning_where_there_is_too_little_other_text_says_so(config: Compose, store: Store) -> None:
    words = ["verify.output_tokens=100000", "verify.pruned_tokens=320", "solver=exact", "l1_alpha=1e-3"]
    facts = PrunedStage(Job(config(*words), store)).pull().facts
    assert facts["shared"] == facts["tokens"] == 320


def test_effects_of_edges_are_those_measured(config: Compose, store: Store) -> None:
    job = Job(config("solver=exact", "l1_alpha=1e-3"), store)
    edges, measured = graph_edges(fitted_connector(TrainStage(job).pull())), load_effects(EffectsStage(job).pull())
    expected = measured.dense()[edges.source, edges.target].abs() * measured.source_rate[edges.source]
    assert torch.allclose(effect_sizes(edges, measured), expected)


def test_places_that_are_spread_and_what_is_carried() -> None:
    value = torch.tensor([0.0, 5.0, 1.0, 0.0, 3.0, 2.0, 4.0])
    assert spread(value, 10).tolist() == [1, 2, 4, 5, 6] and spread(value, 2).tolist() == [1, 2]
    assert carried_by(torch.tensor([6.0, 3.0, 1.0, 0.0]), 0.5) == 0.25
    assert carried_by(torch.tensor([6.0, 3.0, 1.0, 0.0]), 0.9) == 0.5 and carried_by(torch.zeros(3), 0.9) == 0


@pytest.mark.parametrize("word", ["verify.draws=0", "verify.output_tokens=-1", "verify.check_tokens=0"])
def test_mistakes(saelink: Run, word: str) -> None:
    code, _, err = saelink("verify", "solver=exact", word)
    assert code == 1 and word in err and "must be at least" in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_same(config: Compose, store: Store, tmp_path: Any) -> None:
    words = ["solver=exact", "l1_alpha=1e-3", "verify.output_tokens=320"]
    here = EffectivenessStage(Job(config(*words), store)).pull().tensors(OUTPUTS_FILE)
    other = Store(tmp_path / "gpu")
    there = [*words, "runtime.device=cuda", f"runtime.outputs={other.root}"]
    found = EffectivenessStage(Job(config(*there), other)).pull().tensors(OUTPUTS_FILE)
    both = torch.stack([here["effectiveness"], found["effectiveness"]])
    assert torch.corrcoef(both)[0, 1] > 0.99


def test_verify_prints_them_and_cards_and_exports_hold_them(saelink: Run, tmp_path: Path) -> None:
    words = ["solver=exact", "l1_alpha=1e-3", "verify.stability=false", "verify.output_tokens=320"]
    more = ["verify.edges_checked=20", "verify.check_tokens=64", "verify.pruned_tokens=160"]
    code, out, err = saelink("verify", *words, *more)
    assert code == 0, err
    table = out[out.index("  What the output owes") :].splitlines()
    assert any("helpfulness checked" in line and "20 edges" in line for line in table), table
    assert any(line.split()[:2] == ["kept", "edges"] for line in table)
    assert all(len(line) <= 80 for line in table[:20]), table[:20]
    code, out, err = saelink("export", *words)
    assert code == 0, err
    (folder,) = [path for path in (tmp_path / "outputs/export").iterdir() if path.is_dir()]
    with (folder / "edges.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["effectiveness"]) >= 0 and row["helpfulness"] for row in rows) and len(rows) > 10
    best = max(rows, key=lambda row: float(row["effectiveness"]))
    code, out, err = saelink("show", "target", best["target"], *words)
    assert code == 0 and f"KL {float(best['effectiveness']):.1e}"[:5] in out and "helps" in out, out + err


def test_without_them_there_are_no_columns(saelink: Run, tmp_path: Path) -> None:
    assert saelink("export", "solver=exact", "verify.output_tokens=0")[0] == 0
    (folder,) = [path for path in (tmp_path / "outputs/export").iterdir() if path.is_dir()]
    assert "effectiveness" not in (folder / "edges.csv").read_text().splitlines()[0]


def test_a_connector_with_hidden_units_has_none(saelink: Run) -> None:
    words = ["connector=mlp", "connector.d_hidden=8", "verify.output_tokens=320"]
    code, out, err = saelink("verify", *words)
    assert code == 0 and "What the output owes" not in out, err
    code, _, err = saelink("verify", *words, "verify.edges_checked=5")
    assert code == 1 and "connector=mlp" in err and "use connector=linear" in err, err
