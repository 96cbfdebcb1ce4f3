"""What a store holds, to be compared with another's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def stored(root: Path, stages: Iterable[str]) -> dict[str, bytes]:
    """All files of these stages' artifacts, by path, without when and where they were made."""
    found = {}
    for stage in stages:
        for path in sorted((root / stage).glob("*/*")):
            data = path.read_bytes()
            if path.name == "manifest.json":
                manifest = json.loads(data)
                del manifest["provenance"], manifest["sha256"]
                data = json.dumps(manifest).encode()
            found[f"{stage}/{path.parent.name}/{path.name}"] = data
    return found
