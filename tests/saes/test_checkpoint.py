"""The training of an SAE that is stopped on the way: the same command ends with the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import saelink.saes.checkpoint as checkpoint
from saelink.activations.cache import shuffled_rows
from saelink.saes.training import SAEStage
from saelink.store.store import Store

from helpers.world import World

HOOK = "blocks.1.hook_mlp_out"

SETTINGS = ["sae=train", "sae.d_sae=24", "sae.k=4", "sae.batch_tokens=256", "sae.epochs=2", "sae.dead_after_steps=5"]


class StoppedError(Exception):
    """What stops it here."""


@pytest.fixture
def stopped_behind(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trainings keep their state at each step, and stop behind so many of them."""
    pytest.importorskip("sae_lens")
    from sae_lens.training.sae_trainer import SAETrainer

    step = SAETrainer.step

    def stop(behind: int | None) -> None:
        seen = 0

        def counted(self: Any, batch: torch.Tensor) -> Any:
            nonlocal seen
            seen += 1
            if behind is not None and seen > behind:
                raise StoppedError
            return step(self, batch)

        monkeypatch.setattr(SAETrainer, "step", counted)

    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    return stop


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize("damaged", [None, "weights", "exp_avg_sq"])
def test_a_stopped_training_ends_with_the_same_bytes(
    world: World, tmp_path: Path, stopped_behind: Any, damaged: str | None
) -> None:
    stopped_behind(None)
    whole = Store(tmp_path / "whole")
    expected = SAEStage(world.config(whole.root, *SETTINGS), whole, HOOK).pull()

    store = Store(tmp_path / "stopped")
    stage = SAEStage(world.config(store.root, *SETTINGS), store, HOOK)
    for behind in (3, 9, 1):  # the last two from where the one before it stopped
        stopped_behind(behind)
        with pytest.raises(StoppedError):
            stage.pull()
    partial = store.root / "sae" / f"{stage.key}.partial"
    kept = {path.name for path in partial.glob("step-*")}
    assert kept == {f"step-13.{kind}.safetensors" for kind in ("weights", "exp_avg", "exp_avg_sq")}
    if damaged is not None:  # it starts again
        path = partial / f"step-13.{damaged}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    stopped_behind(None)
    found = stage.pull()
    assert files(found.path) == files(expected.path)
    assert found.facts == expected.facts


def test_batches_from_the_middle_are_the_later_ones(world: World, store: Store) -> None:
    from saelink.activations.cache import CacheStage

    cfg = world.config(store.root)
    acts = CacheStage(cfg, store, HOOK).pull()

    def batches(first: int) -> list[torch.Tensor]:
        rows = shuffled_rows(
            acts, batch=100, total=9000, drop_positions=1, max_norm=None, seed=3, first=first, shards_in_memory=2
        )
        return list(rows)

    everything = batches(0)
    for first in (1, 40, 89, 90):
        later = batches(first)
        assert len(later) == len(everything) - first
        assert all(torch.equal(one, other) for one, other in zip(later, everything[first:], strict=True))
