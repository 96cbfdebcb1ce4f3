"""What a model is known by: every file that is read of it, and nothing that it was not compared with unsaid."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import saelink.model.load as load
from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config, ModelConfig, ModelSource
from saelink.model.identity import model_identity
from saelink.store.store import Store

from helpers.families import FAMILIES, write_family
from helpers.observing import Lines
from helpers.world import write_llama

BESIDE = ["generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
          "tokenizer.model", "chat_template.json", "preprocessor_config.json", "quantize_config.json",
          "model.safetensors.index.json.bak", "weights.h5", "flax_model.msgpack", "notes.md", "code.py"]  # fmt: skip
"""What else may lie in a model's folder."""


def test_every_file_that_is_read_is_part_of_the_identity(tmp_path: Path) -> None:
    """The template of chats apart, which names the tokens where it is used."""
    folder = write_llama(tmp_path / "model")
    for name in BESIDE:
        (folder / name).write_text("{}" if name.endswith(".json") else "")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    opened: set[str] = set()
    watching = [True]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching[0] and event == "open" and isinstance(args[0], str | Path) and Path(args[0]).parent == folder:
            opened.add(Path(args[0]).name)

    cfg = ModelConfig(source=ModelSource.folder, path=str(folder), file=None)
    before = model_identity(cfg)
    sys.addaudithook(hook)
    try:
        load.load_hf(cfg)
    finally:
        watching[0] = False
    assert {"config.json", "tokenizer_config.json"} <= opened
    for name in sorted(opened - {"chat_template.jinja"}):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b" ")
        assert model_identity(cfg) != before, f"{name} is read and not part of the identity"
        (folder / name).write_bytes(whole)
    assert model_identity(cfg) == before


@pytest.mark.parametrize(("context", "said"), [(16, False), (32, True)])
def test_a_context_past_a_window_that_was_not_compared_is_said(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: int, said: bool
) -> None:
    monkeypatch.setattr(load, "LONGEST_WINDOW", 10)  # windows of 1,024 tokens take long
    folder = tmp_path / "mistral"  # its window is 20
    write_family(FAMILIES["mistral"], folder)
    lines = Lines()
    store = Store(tmp_path / "outputs", lines)
    TokensStage(config(f"model.path={folder}", f"data.context_size={context}"), store).pull()
    assert any("sees 20 tokens back" in line for line in lines.said) == said, lines.said
