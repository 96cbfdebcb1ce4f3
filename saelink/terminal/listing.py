"""The store's artifacts as a list."""

from __future__ import annotations

import time
from calendar import timegm

from saelink.progress import Observer
from saelink.store.files import folder_bytes, gigabytes
from saelink.store.store import Store


def print_artifacts(observer: Observer, store: Store) -> None:
    """A line for each artifact: stage, key, size, age, what."""
    for artifact in store.artifacts():
        made = artifact.manifest["provenance"]["made"]
        age = time.time() - timegm(time.strptime(made, "%Y-%m-%dT%H:%M:%SZ"))
        size = gigabytes(folder_bytes(artifact.path))
        observer.say(f"{artifact.stage:9} {artifact.key}  {size:>9}  {_age(age):>4}  {artifact.manifest['about']}")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
