"""The text that a fitted connector is measured on where eval.data names another than it was fitted to."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saelink.config.data import DataConfig, DataSource
from saelink.config.files import conf_dir
from saelink.config.schema import Config
from saelink.errors import SaelinkError

OF_THE_FIT = ("context_size", "prepend_bos", "drop_positions", "max_norm_ratio")
"""Settings that stay those of the fit: they say which tokens count and how they are packed."""


def other_text(cfg: Config) -> DataConfig | None:
    """The text that eval.data names, None for the fit's own. Raises SaelinkError for one that is none.

    A text is one of conf/data, or a file, folder or pattern of files; a table gives `data.*` settings by name.
    """
    asked: Any = cfg.eval.data
    if asked is None:
        return None
    if isinstance(asked, str) and asked.strip():
        given = _option(asked) if asked in options() else _files(asked)
    elif isinstance(asked, Mapping) and asked:
        given = _table(cast("Mapping[str, Any]", asked))
    else:
        raise _mistake(asked)
    kept = {name: getattr(cfg.data, name) for name in OF_THE_FIT}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(DataConfig), {**given, **kept})
        found = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise SaelinkError(f"eval.data={asked}: {str(error).splitlines()[0]}") from None
    assert isinstance(found, DataConfig)
    if found.max_tokens is not None and found.max_tokens < 1:
        raise SaelinkError(f"eval.data={asked}: max_tokens must be at least 1")
    return found


def check_own_text(cfg: Config, what: str) -> None:
    """Raise SaelinkError, of what is about the text of the fit alone, where eval.data names another."""
    if cfg.eval.data is not None:
        raise SaelinkError(f"eval.data={cfg.eval.data}: of evaluate and verify; {what} are of the fit's own text")


def options() -> list[str]:
    """The texts that can be named."""
    return sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml") if path.stem not in ("files", "hub"))


def _mistake(asked: Any) -> SaelinkError:
    return SaelinkError(
        f"eval.data={asked}: give {', '.join(options())}, a file, folder or pattern of files, or a table of data.* "
        "settings such as {path: news.jsonl, text_column: body}"
    )


def _option(name: str) -> dict[str, Any]:
    given = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(conf_dir() / "data" / f"{name}.yaml")))
    return {key: value for key, value in given.items() if key not in OF_THE_FIT}


def _files(path: str) -> dict[str, Any]:
    place = os.path.expanduser(path)  # noqa: PTH111 (patterns are no paths)
    if not glob.glob(place, recursive=True):  # noqa: PTH207
        raise _mistake(path)
    return {"name": path, "source": DataSource.files, "path": place}


def _table(asked: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(DataConfig)]
    for name in asked:
        if name in OF_THE_FIT:
            raise SaelinkError(f"eval.data={dict(asked)}: {name} is that of the fit, data.{name}; leave it out")
        if name not in names:
            raise SaelinkError(f"eval.data={dict(asked)}: there is no data.{name}")
    if not asked.get("path"):
        raise SaelinkError(f"eval.data={dict(asked)}: give its path too")
    given: dict[str, Any] = {"name": str(asked["path"]), "source": DataSource.files, **asked}
    if given["source"] in (DataSource.files, "files"):
        given["path"] = _files(str(asked["path"]))["path"]
    return given
