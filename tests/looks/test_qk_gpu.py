"""What `qk` finds on a GPU is what it finds on the CPU, where the screen is a compiled loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from saelink.config.schema import Config
from saelink.job import Job
from saelink.looks.pairs import screen
from saelink.looks.stage import HEADS_FILE, TARGETS_FILE, QKTargetsStage, before_attention, found_or_made, open_layer
from saelink.looks.text import MODES
from saelink.saes.load import pull_sae
from saelink.store.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

Configure = Callable[..., Config]

SMALL = ("layer=1", "qk.tokens=512", "qk.pairs=4", "qk.together=[1,5]")


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_the_screen_agrees(model: str, config: Configure, store: Store) -> None:
    tables = []
    for device in ("cpu", "cuda"):
        job = before_attention(Job(config(*SMALL, f"runtime.device={device}", model=model), store))
        hook = job.model.hook("hook_resid_pre", 1)
        opened = open_layer(job, hook, pull_sae(job.cfg, store, hook).to(device, torch.float32))
        found = screen(opened.first, 2, opened.first.directions(2), 48)
        full = np.zeros((len(MODES), 48, 48))
        full[:, found.query[:, None], found.key] = found.table
        tables.append(full)
    assert tables[0].max() > 0 and np.allclose(tables[0], tables[1], atol=1e-3 * tables[0].max())


def test_a_layers_heads_agree(config: Configure, store: Store) -> None:
    heads, targets = [], []
    for device in ("cpu", "cuda"):
        kept = Store(store.root / device)
        job = before_attention(Job(config(*SMALL, f"runtime.device={device}", f"runtime.outputs={kept.root}"), kept))
        artifact = found_or_made(job)
        heads.append(artifact.json(HEADS_FILE))
        targets.append(QKTargetsStage(job, artifact).pull().json(TARGETS_FILE))
    for one, other in zip(*heads, strict=True):
        assert one["kinds"] == other["kinds"] and other["deleted"]["frozen_r"] > 0.9999
        for mode in MODES:
            assert np.allclose(one["shares"][mode], other["shares"][mode], atol=1e-3)
            for a, b in zip(one["together"][mode], other["together"][mode], strict=True):
                assert a["variation"] == pytest.approx(b["variation"], rel=0.02)
    for one, other in zip(*targets, strict=True):
        a, b = (each["together"][-1]["change"] for each in (one, other))
        assert a == pytest.approx(b, rel=0.05)
