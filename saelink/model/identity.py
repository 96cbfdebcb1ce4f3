"""What identifies a model's weights: contents, never names or times."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from saelink.config.schema import ModelConfig, ModelSource
from saelink.errors import SaelinkError
from saelink.fetch import hub_errors, is_commit, wheel_folder
from saelink.store.files import file_sha256

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json", ".model", ".txt")

_identities: dict[str, dict[str, Any]] = {}


def model_identity(cfg: ModelConfig) -> dict[str, Any]:
    """What identifies the weights: contents, never names or times. Taken once per process."""
    where = repr((cfg.source, cfg.path, cfg.file, cfg.revision))
    if where not in _identities:
        _identities[where] = _take_identity(cfg)
    return _identities[where]


def _take_identity(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.source is ModelSource.hub:
        from huggingface_hub import HfApi

        if is_commit(cfg.revision):
            return {"hub": cfg.path, "commit": cfg.revision}
        with hub_errors("model.path", cfg.path):
            return {"hub": cfg.path, "commit": HfApi().model_info(cfg.path, revision=cfg.revision).sha}
    folder = model_folder(cfg)
    if cfg.file is not None:
        return {"file": file_sha256(folder / cfg.file)}
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in WEIGHT_SUFFIXES and path.is_file():
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return {"folder": digest.hexdigest()}


def model_folder(cfg: ModelConfig) -> Path:
    """Folder of a model from a wheel or from disk. Raises SaelinkError when it, or its file, is missing."""
    if cfg.source is ModelSource.wheel:
        folder = wheel_folder(cfg.path, cfg.install, "model.path")
    else:
        folder = Path(cfg.path)
        if not folder.is_dir():
            raise SaelinkError(f"model.path={cfg.path}: there is no such folder")
    wanted = cfg.file or "config.json"
    if not (folder / wanted).is_file():
        field = f"model.file={cfg.file}" if cfg.file else f"model.path={cfg.path}"
        raise SaelinkError(f"{field}: {folder} has no {wanted}")
    return folder
