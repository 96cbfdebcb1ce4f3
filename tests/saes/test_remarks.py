"""What the libraries that read SAEs warn of is told, or looked at by us."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from saelink.config.schema import Config
from saelink.saes.choice import SAEChoice
from saelink.saes.load import load_choice

from helpers.observing import Lines
from helpers.sae_files import parts


def test_what_sae_lens_remarks_of_a_release_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        cfg = types.SimpleNamespace(to_dict=lambda: {"architecture": "topk", "k": 3, "d_in": 12, "d_sae": 40})
        state_dict = staticmethod(parts)

    def from_pretrained(*_: str) -> Any:
        warnings.warn("\nthis SAE wants another model.", stacklevel=1)
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        return Loaded

    module: Any = types.ModuleType("sae_lens")
    module.SAE = types.SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "sae_lens", module)
    lines, choice = Lines(), SAEChoice("key", "about", release=("a-release", "blocks.1"))
    for _ in range(2):
        load_choice(Config(), choice, lines)
    assert lines.said == ["sae.release=a-release sae.id=blocks.1: sae-lens remarks: this SAE wants another model."]


def test_the_hubs_client_says_again_what_it_has_to_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is quiet while a file is looked for that need not be there, and no longer."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import logging

    from saelink.saes.hub import hub_file

    def download(_: str, file: str, **__: str) -> str:
        if file == "none":
            raise EntryNotFoundError(file)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    before = logging.get_verbosity()
    assert hub_file("a/b", "0" * 40, "none") is None and hub_file("a/b", "0" * 40, "some") == tmp_path
    assert logging.get_verbosity() == before
