"""What a direction of the residual stream adds to the next token's logits directly, past all layers between."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

WRITES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out")
"""Hooks whose activations are a part of the residual stream, or all of it."""

BLOCK = 128
"""Directions of one product with the unembedding."""


class Words(NamedTuple):
    """The tokens that directions promote and suppress most, [n, k] each, the strongest first."""

    up: torch.Tensor
    up_score: torch.Tensor
    down: torch.Tensor
    down_score: torch.Tensor


class Unembedding:
    """A model's final norm and unembedding as a linear map of directions.

    A direction d goes to W_U (g * d), with the mean of d taken away first where the norm does; g are the norm's
    weights. Its division by the stream's norm, which is another on every token, is left out, so only the order of the
    scores and their relative sizes mean something: a direction's scores have mean 0 and standard deviation 1 over the
    vocabulary. The "logit lens" of a decoder direction (nostalgebraist 2020), as Neuronpedia shows it.
    """

    def __init__(self, gain: torch.Tensor, centred: bool, weight: torch.Tensor):
        self.gain, self.centred, self.weight = gain, centred, weight

    @staticmethod
    def of(hf_model: Any) -> Unembedding | None:
        """From a Hugging Face model; None where its final norm or its unembedding can't be told."""
        head = hf_model.get_output_embeddings()
        norms = [
            module
            for name, module in hf_model.named_modules()
            if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in name.split("."))
        ]
        if head is None or not isinstance(getattr(head, "weight", None), torch.Tensor) or not norms:
            return None
        weight = head.weight.detach().float().cpu()
        width = weight.shape[1]
        # An input of mean 0 and size 1 tells the weights whatever the norm's form: 1 + w, a bias, or neither.
        signs = torch.ones(1, width)
        signs[:, 1::2] = -1
        norm = norms[-1].to("cpu")
        with torch.inference_mode():
            try:
                plus, minus, moved = (norm(x.to(_dtype(norm))).float() for x in (signs, -signs, signs + 3))
            except (RuntimeError, TypeError):  # it takes another width, or more than one input
                return None
        gain = ((plus - minus) / (2 * signs))[0]
        return Unembedding(gain, bool(torch.allclose(moved, plus, atol=1e-2)), weight)

    def scores(self, directions: torch.Tensor) -> torch.Tensor:
        """[n, d_model] -> [n, vocabulary], each row with mean 0 and standard deviation 1."""
        if self.centred:
            directions = directions - directions.mean(1, keepdim=True)
        scores = (directions * self.gain) @ self.weight.T
        scores -= scores.mean(1, keepdim=True)
        return scores / scores.std(1, correction=0, keepdim=True).clamp(min=1e-12)

    def words(self, directions: torch.Tensor, most: int, known: int) -> Words:
        """Of each direction [n, d_model] the `most` tokens it promotes and suppresses, of the first `known` ones."""
        parts = []
        for first in range(0, len(directions), BLOCK):
            scores = self.scores(directions[first : first + BLOCK])[:, :known]
            up, down = scores.topk(min(most, scores.shape[1])), scores.topk(min(most, scores.shape[1]), largest=False)
            parts.append((up.indices, up.values, down.indices, down.values))
        return Words(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _dtype(module: torch.nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), torch.float32)


def writes_into_stream(hook_name: str) -> bool:
    """Whether a latent at this hook has a decoder direction of the residual stream."""
    return hook_name.rsplit(".", 1)[-1] in WRITES
