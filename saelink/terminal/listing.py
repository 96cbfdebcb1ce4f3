"""The store's artifacts as a list."""

from __future__ import annotations

import time
from calendar import timegm

from saelink.progress import Observer
from saelink.store.files import folder_bytes, gigabytes
from saelink.store.store import Store


def print_artifacts(observer: Observer, store: Store) -> None:
    """A line for each artifact: stage, key, size, age, what; damaged ones last."""
    whole, damaged = store.listing()
    for artifact in whole:
        made = artifact.manifest["provenance"]["made"]
        age = time.time() - timegm(time.strptime(made, "%Y-%m-%dT%H:%M:%SZ"))
        size = gigabytes(folder_bytes(artifact.path))
        observer.say(f"{artifact.stage:9} {artifact.key}  {size:>9}  {_age(age):>4}  {artifact.manifest['about']}")
    for folder in damaged:
        size = gigabytes(folder_bytes(folder))
        way_out = f"damaged: `saelink rm {folder.name}` removes it"
        observer.say(f"{folder.parent.name:9} {folder.name}  {size:>9}  {'':>4}  {way_out}")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
