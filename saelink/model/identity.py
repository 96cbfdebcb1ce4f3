"""What identifies a model's weights: contents, never names or times."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from saelink.config.schema import ModelConfig, ModelSource
from saelink.errors import SaelinkError
from saelink.fetch import hub_errors, is_commit, wheel_folder
from saelink.model.parts import joined_sha256, part_files
from saelink.store.files import file_sha256

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json", ".model", ".txt")

ADAPTER = "adapter_config.json"
"""What makes transformers read other weights beside these, where the package peft is installed and nowhere else."""

Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Name, size, times and inode of every file: where it is the same, a file need not be read again."""

_identities: dict[str, tuple[Stamp, dict[str, Any]]] = {}


def model_identity(cfg: ModelConfig) -> dict[str, Any]:
    """What identifies the weights: contents, never names or times. Taken once per process, until a file changes."""
    where, stamp = repr((cfg.source, cfg.path, cfg.file, cfg.revision)), _stamp(cfg)
    if where not in _identities or _identities[where][0] != stamp:
        _identities[where] = stamp, _take_identity(cfg)
    return _identities[where][1]


def check_identity(cfg: ModelConfig, recipe: dict[str, Any]) -> None:
    """Raise SaelinkError where the files that were read are not those any more that a recipe identifies."""
    if not model_identity(cfg).items() <= recipe.items():
        raise SaelinkError(f"model.path={cfg.path}: its files have changed since they were identified; run it again")


def _take_identity(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.source is ModelSource.hub:
        from huggingface_hub import HfApi

        if is_commit(cfg.revision):
            return {"hub": cfg.path, "commit": cfg.revision}
        with hub_errors("model.path", cfg.path):
            return {"hub": cfg.path, "commit": HfApi().model_info(cfg.path, revision=cfg.revision).sha}
    if cfg.file is not None:
        return {"file": _file_identity(cfg)}
    digest = hashlib.sha256()
    for path in model_files(cfg):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return {"folder": digest.hexdigest()}


def _file_identity(cfg: ModelConfig) -> str:
    """The sha256 of model.file, whole or in parts. Raises SaelinkError where it is not the one that it has to be."""
    files = model_files(cfg)
    found = file_sha256(files[0]) if len(files) == 1 else joined_sha256(files)
    if cfg.sha256 not in (None, found):
        again = f"; install it again with `{cfg.install} --force-reinstall`" if cfg.install else ""
        raise SaelinkError(
            f"model.file={cfg.file}: its sha256 begins {found[:12]}, and {str(cfg.sha256)[:12]} is expected; it is "
            f"damaged, or another file{again}"
        )
    return found


def model_files(cfg: ModelConfig) -> list[Path]:
    """What a model on disk consists of; of a file in parts, these in order."""
    folder = model_folder(cfg)
    if cfg.parts:
        return part_files(cfg.parts, cfg.install, cfg.terms)
    if cfg.file is not None:
        return [folder / cfg.file]
    return [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHT_SUFFIXES and path.is_file()]


def _stamp(cfg: ModelConfig) -> Stamp:
    if cfg.source is ModelSource.hub:
        return ()
    files = [(path.name, path.stat()) for path in model_files(cfg)]
    return tuple((name, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino) for name, at in files)


def model_folder(cfg: ModelConfig) -> Path:
    """Folder of a model from a wheel or from disk. Raises SaelinkError when it lacks something, and for an adapter."""
    if cfg.source is ModelSource.wheel:
        folder = wheel_folder(cfg.path, cfg.install, "model.path", cfg.terms)
        if cfg.parts:
            return folder
    else:
        folder = Path(cfg.path)
        if not folder.is_dir():
            raise SaelinkError(f"model.path={cfg.path}: there is no such folder")
    wanted = cfg.file or "config.json"
    if not (folder / wanted).is_file():
        field = f"model.file={cfg.file}" if cfg.file else f"model.path={cfg.path}"
        raise SaelinkError(f"{field}: {folder} has no {wanted}")
    if cfg.file is None and (folder / ADAPTER).is_file():
        raise _adapter(cfg)
    return folder


def check_no_adapter(cfg: ModelConfig, commit: str) -> None:
    """Raise SaelinkError where a hub repository holds an adapter, as `model_folder` does for a folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with hub_errors("model.path", cfg.path):
        try:
            hf_hub_download(cfg.path, ADAPTER, revision=commit)
        except EntryNotFoundError:  # not there; or the hub can't be asked, and it was never fetched
            return
    raise _adapter(cfg)


def _adapter(cfg: ModelConfig) -> SaelinkError:
    return SaelinkError(f"model.path={cfg.path}: that is an adapter; merge it into its model, and save that")
