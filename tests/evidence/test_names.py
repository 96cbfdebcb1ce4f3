"""What a latent is called: the same everywhere it is named, by the rule that the docs state."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable

import pytest

from saelink.activations.tokens import SPLITS, TokensStage
from saelink.config.schema import Config
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.names import Names
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.split import latent_shards
from saelink.model.load import load_tokenizer
from saelink.report.cards.cards import Cards
from saelink.share.export import ExportStage
from saelink.store.store import Store

from helpers.world import World


def heaviest(cfg: Config, store: Store, hook: str) -> dict[int, dict[int, float]]:
    """By latent the sum of its activations on each token that counts, over all documents."""
    latents, text = EncodeStage(cfg, store, hook).pull(), TokensStage(cfg, store).pull()
    found: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    ids = {split: text.tensors(f"{split}.safetensors")["ids"].flatten().tolist() for split in SPLITS}
    context = cfg.data.context_size
    for shard, rows, _ in latent_shards(latents, SPLITS):
        first = shard.first * context
        for row, latent, value in zip(rows.row_of.tolist(), rows.indices.tolist(), rows.values.tolist(), strict=True):
            if row % context >= cfg.data.drop_positions:
                found[latent][ids[shard.split][first + row]] += value
    return found


@pytest.mark.parametrize("link", ["mlp", "block"])
def test_a_latent_has_one_name(world: World, store: Store, link: str) -> None:
    """Circuits, cards, the report's lists and exports, against sums made here."""
    cfg = world.config(store.root, f"link={link}", "connector=linear", "solver=exact", "l1_alpha=1e-2")
    job = Job(cfg, store)
    names, tokenizer = Names(job), load_tokenizer(cfg.model, job.model.artifact)
    sums = {hook: heaviest(cfg, store, hook) for hook in [*job.link.sources, job.link.target]}

    def right(token: str | None, hook: str, latent: int) -> bool:
        mine = sums[hook][latent]
        most = max(mine.values(), default=0.0)
        best = {tokenizer.decode([i]) for i, weight in mine.items() if weight >= most * (1 - 1e-5)}
        return token is None if not mine else token in best

    cards = Cards(job)
    for latent in range(job.sides.d_target):
        unit = names.unit("target", latent)
        assert right(unit.token, unit.hook, unit.latent) and unit.short == f"OF{latent}"
        assert cards.target_firing(latent, with_examples=False)["token"] == unit.token
        assert cards.wiring.target_token(latent) == unit.token
    for number in range(job.sides.d_source):
        unit = names.unit("source", number)
        assert right(unit.token, unit.hook, unit.latent)
        card = cards.source_firing(number, with_examples=False)
        assert (card["token"], card["name"]) == (unit.token, unit.short)
        assert cards.wiring.source_token(number) == unit.token
    circuits = EvaluateStage(job).pull().json("circuits.json")
    assert circuits
    for circuit in circuits:
        assert circuit.get("token") == names.unit("target", circuit["id"]).label
        for term in circuit["terms"]:
            unit = names.unit("source", term["id"])
            assert (term["unit"], term.get("token")) == (unit.short, unit.label)
    with (ExportStage(job).pull().path / "edges.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    hooks = {hook: i for i, hook in enumerate(job.link.sources)}
    begins = [sum(side.facts["d_sae"] for side in job.sides.sources[:i]) for i in range(len(hooks))]
    assert rows
    for row in rows:
        assert row["target_token"] == (names.unit("target", int(row["target"])).token or "")
        source = begins[hooks[row["source_hook"]]] + int(row["source"])
        assert row["source_token"] == (names.unit("source", source).token or "")


def test_names_are_inputs_of_what_writes_them(config: Callable[..., Config], store: Store) -> None:
    """Another rule of counting, a new version of the stage, has to reach circuits and exports."""
    job = Job(config("connector=linear"), store)
    for stage in (EvaluateStage(job), ExportStage(job)):
        assert {"top_tokens", "top_tokens0"} <= set(stage.inputs())
