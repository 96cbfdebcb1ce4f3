"""SAEs as other tools save them, one file each, registered by being here.

A format file has `FOLDERS`, the sets of names by which a folder of that kind is known, or `SUFFIXES`, those of a single
file; `read(path)`, which gives the SAE in float32 or raises UnreadableError (or what json, safetensors and indexing
raise); and with a .json among its files `DESCRIPTIVE`, the settings in it that encoding does not depend on. What else
may lie beside them: `BESIDE`, files that are read when they are there, of which `beside(folder)` gives what is part of
an SAE's identity, and `UNREAD`, files that encoding does not depend on.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelink.errors import SaelinkError
from saelink.saes.formats.base import UnreadableError
from saelink.store.files import file_sha256

if TYPE_CHECKING:
    from saelink.saes.sae import SAE


FORMATS: dict[str, Any] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
}

FOLDERS: list[tuple[str, ...]] = [files for module in FORMATS.values() for files in getattr(module, "FOLDERS", [])]
"""The files of one SAE's folder, in every format: all of one line make it one."""

EXTRA_FILES = tuple(dict.fromkeys(name for module in FORMATS.values() for name in getattr(module, "BESIDE", ())))
"""Files that some formats read when they are there."""


def format_of(path: Path) -> Any:
    """The module that reads this folder or file, or None."""
    if path.is_dir():
        for module in FORMATS.values():
            if any(all((path / name).is_file() for name in files) for files in getattr(module, "FOLDERS", [])):
                return module
        return None
    suffix = path.suffix if path.is_file() else None
    return next((module for module in FORMATS.values() if suffix in getattr(module, "SUFFIXES", ())), None)


def known_folders() -> str:
    """What an SAE's folder may hold, for an error message."""
    return "; or ".join(" and ".join(files) for files in FOLDERS)


def read_sae(path: Path, field: str) -> SAE:
    """The SAE in a folder or file of any known format, in float32.

    Raises SaelinkError, naming `field`, for a missing or broken file and for what is not supported.
    """
    import safetensors

    module = format_of(path)
    if module is None:
        if not path.exists():
            raise SaelinkError(f"{field}: {path} is missing")
        raise SaelinkError(f"{field}: {path} is no SAE that can be read; its folder holds {known_folders()}")
    try:
        sae = module.read(path)
    except UnreadableError as error:
        raise SaelinkError(f"{field}: the SAE in {path} {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, StopIteration, TypeError,
            ValueError, safetensors.SafetensorError, zlib.error) as error:  # fmt: skip
        raise SaelinkError(f"{field}: the SAE in {path} can't be read ({error!r})") from None
    _check_shapes(sae, path, field)
    return sae


def _check_shapes(sae: SAE, path: Path, field: str) -> None:
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    good = sae.W_enc.dim() == sae.W_dec.dim() == 2 and sae.b_enc.shape == (sae.d_sae,)
    good = good and sae.W_dec.shape[0] == sae.d_sae and sae.b_dec.shape == (sae.d_out,)
    good = good and (sae.threshold is None or sae.threshold.shape == (sae.d_sae,))
    good = good and (sae.skip is None or sae.skip.shape == (sae.d_in, sae.d_out))
    if not good:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise SaelinkError(f"{field}: the shapes of the weights in {path} do not fit together ({shapes})")
    more = [tensor for tensor in (sae.threshold, sae.skip) if tensor is not None]
    if any(not bool(tensor.isfinite().all()) for tensor in (*tensors.values(), *more)):
        raise SaelinkError(f"{field}: the weights in {path} are not all finite numbers")
    if sae.k is not None and not 1 <= sae.k <= sae.d_sae:
        raise SaelinkError(f"{field}: the SAE in {path} has k={sae.k} of {sae.d_sae} latents")


def identity(path: Path, field: str = "sae.path") -> str:
    """12 digits that stand for what encoding depends on: the weights, and the settings that say how they are used.

    Names and places don't count, nor do settings that only describe (which file wrote it, on which text).
    """
    module = format_of(path)
    if module is None:
        raise SaelinkError(f"{field}: {path} is no SAE that can be read; its folder holds {known_folders()}")
    if path.is_file():
        return file_sha256(path)[:12]
    used: list[Any] = []
    for files in getattr(module, "FOLDERS", []):
        for name in files:
            file = path / name
            if not file.is_file():
                continue
            if name.endswith(".json"):
                try:
                    config = json.loads(file.read_bytes())
                    used.append(sorted((key, config[key]) for key in config if key not in module.DESCRIPTIVE))
                    scale = (config.get("metadata") or {}).get("norm_scaling_factor")  # it describes, but it counts
                    used += [] if scale is None else [scale]
                except (ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
                    raise SaelinkError(f"{field}: {file} can't be read ({error})") from None
            else:
                used.append(file_sha256(file))
    if hasattr(module, "beside"):
        try:
            used += module.beside(path)
        except UnreadableError as error:
            raise SaelinkError(f"{field}: the SAE in {path} {error}") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise SaelinkError(f"{field}: what lies beside the SAE in {path} can't be read ({error!r})") from None
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:12]
