"""Programs compiled by tracr: the same model in GPT-2's form, their circuits, and what saelink finds of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tracr", reason="needs the extra tracr")

from benchmarks import compiled, compiled_world
from benchmarks.compiled_world import BOS, PAD
from benchmarks.compiled_world import compiled_world as written
from saelink.compose import register
from saelink.store.store import Store


@pytest.mark.parametrize("name", ["pattern", "double hist"])
def test_the_written_model_is_tracrs(tmp_path: Path, name: str) -> None:
    """Its stream behind every block, by tracr's own JAX on the same tokens."""
    from tracr.compiler import compiling  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    program = compiled_world.programs()[name]
    world = written(program, tmp_path, documents=5)
    made: Any = compiling.compile_rasp_to_model(
        program.make(), set(program.vocabulary), program.most, causal=True, compiler_bos=BOS, compiler_pad=PAD
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(program.vocabulary), (20, program.most), generator=generator)
    words = [[BOS, *(str(program.vocabulary[i]) for i in row)] for row in places.tolist()]
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(row) for row in words])
    with torch.inference_mode():
        streams = model(ids, output_hidden_states=True).hidden_states
    theirs = made.forward(made.params, ids.numpy()).transformer_output.residuals
    d = len(world.labels)
    for layer in range(len(streams) - 2):  # the last of Hugging Face's is behind the final norm
        own = torch.tensor(theirs[2 * layer + 1].tolist())
        assert torch.allclose(streams[layer + 1][..., :d], own, atol=1e-5)


def test_a_circuit_is_the_programs(tmp_path: Path) -> None:
    """Whether a token is "c" comes of the tokens alone, and AND of both its parts and the constant."""
    world = written(compiled_world.programs()["pattern"], tmp_path, documents=5)
    labels, first = world.labels, world.circuits[0]
    letters = [labels.index(f"tokens:{letter}") for letter in "abcd"]
    assert first.edges[: len(labels)].any(1).nonzero().flatten().tolist() == sorted(letters)
    for layer in (1, 2):
        circuit = world.circuits[layer].edges
        sources = {labels[i].split(":")[0].split("_")[0] for i in circuit[: len(labels)].any(1).nonzero().flatten()}
        assert "one" in sources and len(sources) > 1 and "tokens" not in sources
    assert not (first.moved & ~first.edges).any()


def test_ablation_finds_a_compiled_circuit(tmp_path: Path) -> None:
    """Only "a" is written, and only where it stands: most of what this MLP gives is nothing."""
    register()
    world = written(compiled_world.programs()["fraction before"], tmp_path, documents=400)
    found = compiled.case(world, 0, world.circuits[0], Store(tmp_path / "outputs"))
    assert found["edges"] == 1 and found["sources"] > 5
    for name in ("effects, zero ablation", "effects, activation patching", "exact linear, l1_alpha 8e-4"):
        assert found["rows"][name] == {"auroc": 1.0, "precision": 1.0, "recall": 1.0, "drawn": 1, "hits": 1}
    assert found["verdicts"]["in the circuit"]["confirmed"] == 1


def test_scores() -> None:
    true = torch.tensor([[True, False], [False, False]])
    row = compiled.scored(torch.tensor([[0.5, 0.2], [0.005, 1e-7]]), true)
    assert row == {"auroc": 1.0, "precision": 0.5, "recall": 1.0, "drawn": 2, "hits": 1}
    assert compiled.scored(torch.tensor([[1e-7, 0.0], [1e-9, 0.0]]), true)["auroc"] == 0.5  # dust says nothing
