"""A finished artifact: a folder whose files are compared with its manifest before they are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from saelink.errors import SaelinkError
from saelink.store.files import file_sha256

if TYPE_CHECKING:
    import torch


MANIFEST = "manifest.json"

Facts = TypeVar("Facts", covariant=True)
"""What its stage found out about it, see Stage."""


class Artifact(Generic[Facts]):
    """A finished artifact. Every file is compared with the manifest before it is first used."""

    def __init__(self, path: Path):
        self.path = path
        self.stage = path.parent.name
        self.key = path.name
        try:
            self.manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
            self._files: dict[str, dict[str, Any]] = self.manifest["files"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, FileNotFoundError):
            raise self._damaged(MANIFEST, "can't be read") from None
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"Artifact({self.stage} {self.key})"

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest["recipe"]

    @property
    def facts(self) -> Facts:
        """What the stage found out and wrote into the manifest (scalars, shapes, counts)."""
        return cast("Facts", self.manifest["facts"])

    @property
    def files(self) -> list[str]:
        return sorted(self._files)

    def _damaged(self, name: str, how: str) -> SaelinkError:
        return SaelinkError(
            f"{self.path / name} {how}: the {self.stage} artifact is damaged; "
            f"`saelink rm {self.key}` removes it, and the same command as before makes it anew"
        )

    def file(self, name: str) -> Path:
        """The path of one of its files, after comparing size and sha256 with the manifest.

        Raises SaelinkError naming the file when it is missing, truncated or changed.
        """
        assert name in self._files, f"{self} has no file {name}"
        path = self.path / name
        if name not in self._checked:
            expected = self._files[name]
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise self._damaged(name, "is missing") from None
            if size != expected["size"]:
                raise self._damaged(name, f"has {size:,} bytes where the manifest says {expected['size']:,}")
            if file_sha256(path) != expected["sha256"]:
                raise self._damaged(name, "does not have the sha256 of the manifest")
            self._checked.add(name)
        return path

    def tensors(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of one safetensors file, checked first."""
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] (its PathLike has no argument)

        return load_file(self.file(name), device=device)

    def json(self, name: str) -> Any:
        return json.loads(self.file(name).read_bytes())
