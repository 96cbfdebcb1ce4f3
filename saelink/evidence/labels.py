"""The user's own labels of latents, as the report's page saves them to a file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from saelink.errors import SaelinkError

FORMAT = 1
"""Of the file, as in report/page/labels.js."""


class Remark(TypedDict):
    """What the user says of one latent."""

    sae: str
    """The SAE, as the latents' artifact names it among its inputs."""
    hook: str
    latent: int
    label: str
    note: str
    star: bool


@dataclass(frozen=True)
class Labels:
    """The remarks of a file."""

    remarks: list[Remark]

    @property
    def sha256(self) -> str:
        """Of what they say, wherever the file is and however it is laid out."""
        return hashlib.sha256(json.dumps(self.remarks, sort_keys=True).encode()).hexdigest()

    def of(self, sae: str) -> dict[int, str]:
        """By number the labels of an SAE's latents."""
        return {entry["latent"]: entry["label"] for entry in self.remarks if entry["sae"] == sae and entry["label"]}


def load_labels(path: str | None) -> Labels | None:
    """The remarks of a file; None where no file is given. Raises SaelinkError for one that can't be read."""
    if path is None:
        return None
    where = f"report.labels={path}"
    try:
        found: Any = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SaelinkError(f"{where}: {error.strerror}") from error
    except ValueError as error:
        raise SaelinkError(f"{where} is no JSON; save the labels from a report's page") from error
    entries = cast("dict[str, Any]", found).get("latents") if isinstance(found, dict) else None
    version = cast("dict[str, Any]", found).get("saelink_labels") if isinstance(found, dict) else None
    if version != FORMAT or not isinstance(entries, list):
        raise SaelinkError(f"{where} is not a file of labels; save one from a report's page")
    return Labels([_remark(entry, where) for entry in cast("list[Any]", entries)])


def _remark(entry: Any, where: str) -> Remark:
    if not isinstance(entry, dict):
        raise SaelinkError(f"{where}: an entry of latents is no object")
    fields = cast("dict[str, Any]", entry)
    if not (isinstance(fields.get("sae"), str) and isinstance(fields.get("latent"), int)):
        raise SaelinkError(f"{where}: an entry of latents lacks sae (text) or latent (a number)")
    text = {name: str(fields.get(name) or "") for name in ("hook", "label", "note")}
    return {
        "sae": fields["sae"], "hook": text["hook"], "latent": fields["latent"], "label": text["label"],
        "note": text["note"], "star": bool(fields.get("star")),
    }  # fmt: skip
