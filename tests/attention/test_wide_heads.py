"""What is dense through attention is refused in one line before anything is made, where widths are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import saelink.runtime as runtime
from saelink.attention.ov import OVStage
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.interventions.block import FOLDS
from saelink.interventions.moved_effects import MovedEffectsStage
from saelink.job import Job
from saelink.store.store import Store

from helpers.world import Run, write_sae

WIDTH, ROOM = 3000, 400_000_000


@pytest.fixture(autouse=True)
def no_limit_afterwards() -> Iterator[None]:
    """The limit is the process's."""
    yield
    runtime.limit_memory(Config())


@pytest.fixture
def wide(tmp_path: Path) -> list[str]:
    """Settings of a link between SAEs whose dense arrays take more than ROOM."""
    for seed, hook in enumerate(("hook_resid_pre", "hook_attn_out")):
        write_sae(tmp_path / "wide" / f"blocks.1.{hook}", d_sae=WIDTH, k=8, seed=seed)
    return ["layer=1", "link=ov", "solver=exact", "l1_alpha=1e-3", f"sae.path={tmp_path}/wide"]


@pytest.mark.parametrize(
    ("kind", "pairs", "line"),
    [
        (lambda job: OVStage(job.cfg, job.store), 4 * (2 * 4 + 5), "ov: .*computed edges are dense in heads, sources"),
        (MovedEffectsStage, 8 * FOLDS, "moved_effects: .*effects through attention are dense in sources and targets"),
    ],
)
def test_a_stage_that_is_dense_is_refused_before_latents_are_made(
    kind: Callable[[Job], Any], pairs: int, line: str, wide: list[str], config: Callable[..., Config], store: Store
) -> None:
    assert pairs * WIDTH**2 > ROOM, "or nothing is refused here"
    _ = Job(config(*wide), store).model
    limited = Job(config(*wide, f"runtime.memory={runtime.resident_bytes() + ROOM}"), store)
    with pytest.raises(SaelinkError, match=f"^{line}") as refused:
        kind(limited).pull()
    words = str(refused.value)
    assert "\n" not in words and f"{WIDTH:,} latents on {WIDTH:,}" in words and words.endswith("fewer latents"), words
    assert {artifact.stage for artifact in store.artifacts()} == {"model"}


def test_verify_says_so_before_it_fits_anything(wide: list[str], saelink: Run, tmp_path: Path) -> None:
    limit = f"runtime.memory={runtime.resident_bytes() + ROOM}"
    code, _, err = saelink("verify", *wide, limit)
    assert code == 1 and err.startswith("saelink: moved_effects: ") and len(err.strip().splitlines()) == 1, err
    assert {artifact.stage for artifact in Store(tmp_path / "outputs").artifacts()} == {"model"}
