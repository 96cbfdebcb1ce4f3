"""Reports of the small world, and what they hold."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

from saelink.job import Job
from saelink.report.render import DATA_FILE
from saelink.report.stage import ReportStage
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.world import World

NASTY = [
    "<script>document.title='broken'</script>", '"><img src=x onerror="document.title=1">', "</script>", "a'b\"c`d",
    "new\nline", "مرحبا", "👩‍👩‍👧", "\ufffd", "\u202eright to left", "${x}", "{{ head }}", "&lt;&amp;", "\x00\x1b[31m",
]  # fmt: skip

SETTINGS = ["report.ablated=2", "report.ablated_examples=1", "l1_alpha=1e-3", "report.l1_alphas=[1e-2,3e-2]"]


def made(world: World, folder: Path, *overrides: str) -> tuple[Artifact, Store]:
    store = Store(folder)
    return ReportStage(Job(world.config(store.root, *SETTINGS, *overrides), store)).pull(), store


def pieces(artifact: Artifact) -> dict[str, Any]:
    with zipfile.ZipFile(artifact.file(DATA_FILE)) as archive:
        names = archive.namelist()
        return {name.removesuffix(".json.gz"): json.loads(gzip.decompress(archive.read(name))) for name in names}
