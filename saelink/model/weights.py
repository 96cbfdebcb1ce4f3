"""Changes to a model's weights: a random order, centred writing weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelink.errors import SaelinkError
from saelink.model.agreement import LIMIT, centred, difference
from saelink.model.probe import probe_ids

if TYPE_CHECKING:
    import torch


def permute_weights(module: torch.nn.Module, seed: int = 0) -> None:
    """Put the entries of every matrix into a random order: what it computes is lost, its sizes are not."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))


READERS = ("c_attn", "c_fc", "query_key_value", "dense_h_to_4h", "q_proj", "k_proj", "v_proj", "fc1", "fc_in")
"""Products that read the residual stream, by the names Hugging Face's LayerNorm models give them; all others write."""


def center_writing_weights(hf_model: Any) -> None:
    """Take the mean over the stream's width from all that writes into it; the LayerNorms behind take it away anyway.

    What writes is found by its size and name: the embeddings, and every product of a block whose output is as wide as
    the stream. An unembedding that shares its weights with the embedding keeps them as they were. Raises SaelinkError
    for a model that says something else then: one without LayerNorm, or with other names.
    """
    import torch

    kinds = {type(module).__name__ for module in hf_model.modules() if "norm" in type(module).__name__.lower()}
    if kinds != {"LayerNorm"}:
        raise SaelinkError(
            f"model.center_writing_weights=true: the model normalises by {', '.join(sorted(kinds)) or 'nothing'}, which"
            " does not take the mean away; only models with LayerNorm stay the same"
        )
    ids = probe_ids(hf_model)
    with torch.inference_mode():
        before = hf_model(ids, use_cache=False).logits
    width = hf_model.config.get_text_config().hidden_size
    unembedding = hf_model.get_output_embeddings()
    if unembedding is not None:
        unembedding.weight = torch.nn.Parameter(unembedding.weight.detach().clone())
        hf_model.config.tie_word_embeddings = False
    with torch.no_grad():
        for name, module in hf_model.named_modules():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or module is unembedding:
                continue
            across = 0 if isinstance(module, torch.nn.Linear) else 1  # [out, in]; Conv1D and embeddings are [in, out]
            if weight.shape[across] != width or name.rsplit(".", 1)[-1] in READERS:
                continue
            weight -= weight.mean(across, keepdim=True)
            bias = getattr(module, "bias", None)
            if isinstance(bias, torch.Tensor):
                bias -= bias.mean()
        after = hf_model(ids, use_cache=False).logits
    apart = difference(centred(after), centred(before))
    if before.dtype is torch.float32 and apart > LIMIT:  # that is how every model is described first
        raise SaelinkError(
            f"model.center_writing_weights=true: with them this model says something else (logits {apart:.2g} off, "
            f"relative, where {LIMIT:g} is allowed); leave it out"
        )
