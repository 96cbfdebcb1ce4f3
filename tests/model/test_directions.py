"""What directions say directly: agreement with the model's own final norm and unembedding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saelink.config.schema import Config
from saelink.model.describe import model_info
from saelink.model.directions import Unembedding, writes_into_stream
from saelink.model.load import load_hf
from saelink.store.store import Store


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_scores_are_the_models_own_to_first_order(config: Callable[..., Config], store: Store, model: str) -> None:
    """A small step along a direction changes the logits at a stream of mean 0 and size 1 as the scores say, but for
    what the norm's division adds: the part of the direction along the stream, which these directions don't have."""
    cfg = config(model=model)
    hf_model = load_hf(cfg.model, model_info(cfg, store).artifact).hf_model
    norm = hf_model.model.norm if model == "llama" else hf_model.gpt_neox.final_layer_norm
    with torch.no_grad():  # weights that are not all 1
        norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
    found = Unembedding.of(hf_model)
    assert found is not None and found.centred == (model == "neox")
    assert torch.allclose(found.gain, norm.weight.detach(), rtol=1e-3)
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(1, 32, generator=generator)
    stream -= stream.mean()
    stream /= stream.square().mean().sqrt()
    directions = torch.randn(5, 32, generator=generator)
    directions -= (directions @ stream.T) / 32 * stream
    head = hf_model.get_output_embeddings()
    with torch.inference_mode():
        step = 1e-2
        change = (head(norm(stream + step * directions)) - head(norm(stream - step * directions))) / (2 * step)
    change = change - change.mean(1, keepdim=True)
    change = change / change.std(1, correction=0, keepdim=True)
    assert torch.allclose(found.scores(directions), change, atol=2e-2)


def test_the_strongest_tokens_are_those_of_the_scores(config: Callable[..., Config], store: Store) -> None:
    cfg = config()
    found = Unembedding.of(load_hf(cfg.model, model_info(cfg, store).artifact).hf_model)
    assert found is not None
    directions = found.weight[[3, 7]] / found.gain  # what unembeds as the token itself
    words = found.words(directions, 4, 16)
    scores = found.scores(directions)[:, :16]
    assert words.up[:, 0].tolist() == scores.argmax(1).tolist() == [3, 7]
    assert torch.allclose(words.down_score, scores.sort(1).values[:, :4])
    assert scores.shape[1] == 16 and int(words.up.max()) < 16, "only tokens that the tokenizer knows"


def test_a_model_without_a_final_norm_has_no_scores() -> None:
    class Headless(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    assert Unembedding.of(Headless()) is None


def test_which_hooks_write_into_the_stream() -> None:
    assert writes_into_stream("blocks.3.hook_mlp_out") and writes_into_stream("blocks.0.hook_resid_pre")
    assert not writes_into_stream("blocks.3.ln2.hook_normalized") and not writes_into_stream("blocks.1.attn.hook_z")
