"""A finished artifact: a folder whose manifest is checked, and its files by the manifest before they are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from saelink.errors import SaelinkError
from saelink.store.files import file_sha256, is_regular, read_tensors
from saelink.store.manifest import MANIFEST, Manifest, ManifestError, read_manifest

if TYPE_CHECKING:
    import torch

Facts = TypeVar("Facts", covariant=True)
"""What its stage found out about it, see Stage."""


class RemovedError(SaelinkError):
    """An artifact that was there, and was removed before it was read."""


class Artifact(Generic[Facts]):
    """A finished artifact. Every file is compared with the manifest before it is first used.

    Raises SaelinkError when the manifest is missing, changed since it was written, or that of another artifact, and
    RemovedError where the whole folder is gone.
    """

    def __init__(self, path: Path):
        self.path = path
        self.stage = path.parent.name
        self.key = path.name
        try:
            self.manifest: Manifest = read_manifest(path)
        except ManifestError as error:
            raise self._damaged(MANIFEST, str(error)) from None
        self._files = self.manifest["files"]
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

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(each["size"] for each in self._files.values())

    def _damaged(self, name: str, how: str) -> SaelinkError:
        if not self.path.exists():
            return RemovedError(
                f"{self.path} was removed while it was read; the same command as before makes the {self.stage} "
                f"artifact anew"
            )
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
                if not is_regular(path):
                    raise self._damaged(name, "is no file of its own")
                size = path.stat().st_size
                if size != expected["size"]:
                    raise self._damaged(name, f"has {size:,} bytes where the manifest says {expected['size']:,}")
                if file_sha256(path) != expected["sha256"]:
                    raise self._damaged(name, "does not have the sha256 of the manifest")
            except FileNotFoundError:
                raise self._damaged(name, "is missing") from None
            self._checked.add(name)
        return path

    def tensors(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of one safetensors file, checked first."""
        try:
            return read_tensors(self.file(name), device)
        except FileNotFoundError:
            raise self._damaged(name, "is missing") from None

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.file(name).read_bytes())
        except FileNotFoundError:
            raise self._damaged(name, "is missing") from None
