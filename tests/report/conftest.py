"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saelink.evidence.evaluate import EvaluateStage
from saelink.job import Job
from saelink.report.cards.firing import Firing
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.browsing import chromium
from helpers.node import node
from helpers.reports import NASTY, made
from helpers.world import World

__all__ = ["node"]


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(downloads: Path) -> Iterator[Any]:
    found = chromium(downloads)
    yield found
    found.quit()


@pytest.fixture(scope="session")
def nasty(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Store]:
    """A report whose every token is text from anywhere, about an exact path, with an mlp beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Firing, "token", lambda self, token_id: NASTY[token_id % len(NASTY)])
        folder = tmp_path_factory.mktemp("nasty")
        store = Store(folder)
        EvaluateStage(Job(world.config(folder, "connector=mlp", "connector.d_hidden=8", "l1_alpha=1e-3"), store)).pull()
        return made(world, folder, "solver=exact")
