"""Selection probabilities: planted edges are chosen again, chance is not; halves make the whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.errors import SaelinkError
from saelink.evidence.stability import STABLE, Documents, Places, Stability, StabilityStage, halves
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.products.dense import gram_of
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import FOLDS, open_block
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.job import Job
from saelink.latents.link import counted_split, load_split, pull_sides
from saelink.latents.rows import Rows
from saelink.latents.split import Split, Tokens
from saelink.store.store import Store

from helpers.world import Run, World


def planted(documents: int = 60, n: int = 3000) -> tuple[Split, torch.Tensor, torch.Tensor]:
    """Three targets, each of two sources of twelve, with noise; the split, its documents, the true weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.relu(torch.randn(n, 12, generator=generator))
    true = torch.zeros(12, 3)
    true[[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]] = torch.tensor([1.0, -0.8, 0.9, 0.7, -1.0, 0.6])
    y = x @ true + torch.randn(n, 3, generator=generator)
    pieces = []
    for part in torch.arange(n).split(700):
        typical = torch.ones(len(part), dtype=torch.bool)
        pieces.append(partial(Tokens, Rows.from_dense(x[part]), Rows.from_dense(y[part]), part, typical))
    return Split(pieces), torch.arange(n) * documents // n + 17, true


def test_the_halves_are_of_different_documents_and_make_the_whole() -> None:
    split, document, _ = planted()
    whole = gram_of(split)
    documents = Documents.of(split, document)
    one, other = halves(split, documents, whole, documents.half(torch.Generator().manual_seed(3)))
    everything = split.whole()
    ids = document.unique()
    first = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(3))[: len(ids) // 2]]
    inside = torch.isin(document, first)
    for found, chosen in ((one, inside), (other, ~inside)):
        expected = gram_of([everything.subset(chosen)])
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, expected, strict=True))


def test_one_document_has_no_halves() -> None:
    split, document, _ = planted(documents=1)
    with pytest.raises(SaelinkError, match="can't be split into halves"):
        Documents.of(split, document)


def test_planted_edges_are_chosen_again_and_chance_is_not() -> None:
    split, document, true = planted()
    whole, documents = gram_of(split), Documents.of(split, document)
    chosen = torch.zeros(12, 3)
    for seed in range(4):
        for products in halves(split, documents, whole, documents.half(torch.Generator().manual_seed(seed))):
            W, _ = Lasso(products.xx, products.xy, products.yy, False).solve(0.1, 1e-6, 10_000)
            chosen += W.sign() == true.sign()
    assert (chosen[true != 0] == 8).all()
    W, _ = Lasso(whole.xx, whole.xy, whole.yy, False).solve(0.002, 1e-6, 10_000)
    again = torch.zeros(12, 3)
    for seed in range(4):
        for products in halves(split, documents, whole, documents.half(torch.Generator().manual_seed(seed))):
            other, _ = Lasso(products.xx, products.xy, products.yy, False).solve(0.002, 1e-6, 10_000)
            again += (other.sign() == W.sign()) & (W != 0)
    by_chance = (true == 0) & (W != 0)
    assert by_chance.sum() > 10 and again[by_chance].mean() < 7 and (again[true != 0] == 8).all()


def test_places() -> None:
    places = Places(torch.tensor([3, 1, 3], dtype=torch.int32), torch.tensor([5, 2, 0]))
    assert [places.of(3, 5), places.of(1, 2), places.of(3, 0)] == [0, 1, 2]
    assert places.of(3, 2) is places.of(0, 0) is places.of(9, 9) is places.of(2, 8) is None
    assert Places(torch.zeros(0), torch.zeros(0)).of(0, 0) is None


def test_in_the_chain(world: World, tmp_path: Path) -> None:
    found = []
    for folder in ("first", "again"):
        store = Store(tmp_path / folder)
        cfg = world.config(store.root, "l1_alpha=1e-3", "solver=exact")
        artifact = StabilityStage(Job(cfg, store)).pull()
        assert StabilityStage(Job(cfg, store)).pull().key == artifact.key
        W = fitted_connector(TrainStage(Job(cfg, store)).pull()).output_weight()
        tensors = artifact.tensors("edges.safetensors")
        assert len(tensors["chosen"]) == int((W != 0).sum()) == artifact.facts["n_edges"] > 0
        assert int(tensors["chosen"].max()) <= 24 == artifact.facts["fits"]
        assert artifact.facts["stable"] == int((tensors["chosen"].double() / 24 >= STABLE).sum()) > 0
        source, target = int(tensors["source"][0]), int(tensors["target"][0])
        assert Stability(artifact).of(source, target) == int(tensors["chosen"][0]) / 24
        found.append(tensors["chosen"])
    assert torch.equal(*found)


def test_from_sparse_products_the_same_edges_are_chosen_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide dictionaries are solved from sparse products; here both ways on the same latents, some targets only."""
    found = []
    words = ["l1_alpha=1e-3", "solver=exact", "solver.tolerance=1e-7", "connector.bias=true"]
    for wide in (False, True):
        monkeypatch.setattr("saelink.evidence.stability.is_wide", lambda *_, wide=wide: wide)
        store = Store(tmp_path / str(wide))
        cfg = world.config(store.root, *words, "verify.stability_targets=20")
        found.append(StabilityStage(Job(cfg, store)).pull())
    dense, sparse = (artifact.tensors("edges.safetensors") for artifact in found)
    assert torch.equal(dense["source"], sparse["source"]) and torch.equal(dense["target"], sparse["target"])
    assert len(dense["target"].unique()) <= 20 == found[1].facts["targets"] < found[1].facts["of_targets"]
    off = (dense["chosen"].int() - sparse["chosen"].int()).abs()
    assert off.max() <= 1 and off.double().mean() < 0.01, "an edge at the threshold may fall on either side"
    W = fitted_connector(TrainStage(Job(cfg, store)).pull())
    column = torch.searchsorted(W.target_ids, sparse["target"])
    assert bool((W.output_weight()[sparse["source"].long(), column] != 0).all())


def test_what_is_no_lasso(world: World, tmp_path: Path, saelink: Run) -> None:
    store = Store(tmp_path / "outputs")
    with pytest.raises(
        SaelinkError, match="connector=linear solver=exact with l1_alpha=0: the stability of edges is measured"
    ):
        StabilityStage(Job(world.config(store.root, "l1_alpha=0", "solver=exact"), store)).pull()
    words = ["connector=mlp", "connector.d_hidden=4", "solver=adam", "verify.stability=true"]
    code, out, err = saelink("verify", *words)
    assert code == 1 and "connector=mlp solver=adam with l1_alpha=0.0008: the stability of edges is measured" in err
    code, out, err = saelink("verify", "solver=proximal", "solver.tokens=2048")
    assert code == 0 and "Chosen again" not in out, err
    code, out, err = saelink("verify", "l1_alpha=1e-3", "solver=exact")
    assert code == 0 and "Chosen again in 24 fits" in out, err


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_causal_edges_are_solved_again_with_the_effects_of_the_same_documents(
    world: World, store: Store, kind: str
) -> None:
    cfg = world.config(store.root, f"connector={kind}", "solver=causal", "l1_alpha=1e-3", "solver.tokens=2048")
    artifact = StabilityStage(Job(cfg, store)).pull()
    assert artifact.facts["fits"] == 24 and 0 < artifact.facts["stable"] <= artifact.facts["n_edges"]
    measured = load_effects(EffectsStage(Job(cfg, store), "train").pull())
    groups = torch.arange(FOLDS) % 2 == 0
    one, other = measured.on(groups), measured.on(~groups)
    n = [part.tokens.sum(0)[:, None] for part in (one, other)]
    together = (one.dense() * n[0] + other.dense() * n[1]) / (n[0] + n[1]).clamp(min=1)
    assert torch.allclose(together, measured.dense(), atol=2e-3) and not torch.equal(one.dense(), other.dense())


def test_the_groups_of_effects_are_groups_of_documents(world: World, store: Store) -> None:
    """A half of the documents for the products is the half that the effects of its groups were measured on."""
    cfg = world.config(store.root)
    sides = pull_sides(cfg, store)
    training = counted_split(cfg, sides, "train")
    document = TokensStage(cfg, store).pull().tensors("train.safetensors")["document"].flatten().long()
    documents = Documents.of(training, document)
    block = open_block(Job(cfg, store), "train")
    rows = load_split(cfg, sides, "train").row[: len(block.fold)]
    groups, first = documents.folds(torch.Generator().manual_seed(1))
    assert groups.sum() == FOLDS // 2 and documents.n > FOLDS
    assert torch.equal(groups[block.fold], first[documents.of_row[rows]])


def test_two_documents_still_have_halves() -> None:
    split, document, _ = planted(documents=2)
    documents = Documents.of(split, document)
    for seed in range(4):
        _, first = documents.folds(torch.Generator().manual_seed(seed))
        assert first.sum() == 1


def test_proximal_edges_are_trained_again_from_other_seeds(world: World, store: Store) -> None:
    cfg = world.config(store.root, "connector=nonlinear", "solver=proximal", "l1_alpha=1e-2", "solver.tokens=65536")
    artifact = StabilityStage(Job(cfg, store)).pull()
    chosen = artifact.tensors("edges.safetensors")["chosen"]
    assert artifact.facts["fits"] == 4 and int(chosen.max()) <= 4
    assert 0 < artifact.facts["mean"] < 1, "on random latents some edges are chosen again and some are not"


def test_half_a_split_is_its_documents_tokens() -> None:
    split, document, _ = planted()
    documents = Documents.of(split, document)
    half = documents.half(torch.Generator().manual_seed(2))
    part, whole = split.where(half[documents.of_row]), split.whole()
    assert torch.equal(part.whole().row, whole.row[half[documents.of_row[whole.row]]])
    assert 0 < len(part) < len(split)
