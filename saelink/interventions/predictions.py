"""The model's predictions with something spliced in, beside its own: cross-entropy, divergence and top-1 agreement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from saelink.interventions.splice import LOGITS_TOKENS, Hook, Splice, add, put
from saelink.progress import Progress

CLEAN = "clean"
"""The model as it is."""

SUFFIXES = {"kl": "kl", "same": "top1"}
"""Of Predictions the fields beside the loss, and what they are called among figures."""


class Predictions(NamedTuple):
    """Of every actual next token, each [sequences, context_size - 1] float32."""

    loss: torch.Tensor
    """Cross-entropy in nats."""
    kl: torch.Tensor
    """Divergence of the prediction from the clean one, KL(clean || this), in nats."""
    same: torch.Tensor
    """1 where the likeliest token is the clean one's, 0 elsewhere."""


class Replaced(NamedTuple):
    """What is spliced in at the target hook."""

    acts: torch.Tensor
    """[sequences, context_size, d_in]"""
    added: bool = False
    """Added to the model's own activations, not put in their place."""


def compared(splice: Splice, entries: Mapping[str, Replaced]) -> dict[str, Predictions]:
    """The predictions with each entry at the positions that count, and CLEAN."""
    spliced = {name: splice.hooks(add if entry.added else put, entry.acts) for name, entry in entries.items()}
    return compared_predictions(splice.bridge, splice.test.ids, spliced, splice.bar)


def compared_predictions(
    bridge: Any, ids: torch.Tensor, spliced: Mapping[str, Callable[[slice], list[Hook]]], bar: Progress
) -> dict[str, Predictions]:
    """The predictions under each name's hooks, and CLEAN; the model runs once for each of these.

    The hooks are given for a slice of the sequences, ids [sequences, context_size].
    """
    rows = max(LOGITS_TOKENS // ids.shape[1], 1)
    parts: dict[str, list[Predictions]] = {name: [] for name in (CLEAN, *spliced)}
    device = next(bridge.parameters()).device
    with torch.inference_mode():
        for first in range(0, len(ids), rows):
            part = slice(first, first + rows)
            batch = ids[part].to(device)
            clean = bridge(batch)[:, :-1].float()
            parts[CLEAN].append(_beside(clean, clean, batch))
            bar.advance(batch.numel())
            for name, hooks in spliced.items():
                logits = bridge.run_with_hooks(batch, fwd_hooks=hooks(part))[:, :-1].float()
                parts[name].append(_beside(clean, logits, batch))
                bar.advance(batch.numel())
    return {name: Predictions(*map(torch.cat, zip(*each, strict=True))) for name, each in parts.items()}


def _beside(clean: torch.Tensor, logits: torch.Tensor, batch: torch.Tensor) -> Predictions:
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    kl = torch.stack([divergence(*pair) for pair in zip(clean, logits, strict=True)])
    same = (clean.argmax(-1) == logits.argmax(-1)).float()
    return Predictions(loss.view(len(batch), -1).cpu(), kl.cpu(), same.cpu())


def divergence(clean: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """[n] KL(clean || other) in nats from logits [n, vocabulary]."""
    if clean is logits:
        return torch.zeros(len(clean))
    p, q = clean.log_softmax(-1), logits.log_softmax(-1)
    # The same as p (log p - log q), without its rounding: no term is below 0, and small ones are quadratic.
    return (p.exp() * (torch.expm1(q - p) - (q - p))).sum(-1)


def prediction_figures(
    predictions: Mapping[str, Predictions], document: torch.Tensor, resamples: int
) -> dict[str, dict[str, float]]:
    """By name the means `kl` and `top1`, each with `_low` and `_high`: 95%, by bootstrap over documents.

    `document` [sequences, context_size] says which each token belongs to. The resamples are those of ce_figures.
    """
    weights, mean = by_documents(document, resamples)
    figures: dict[str, dict[str, float]] = {name: {} for name in predictions}
    for name, found in predictions.items():
        for field, called in SUFFIXES.items():
            values = getattr(found, field)
            low, high = mean(weights, values).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
            figures[name] |= {called: values.double().mean().item(), f"{called}_low": low, f"{called}_high": high}
    return figures


def by_documents(
    document: torch.Tensor, resamples: int
) -> tuple[torch.Tensor, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Weights [resamples, documents] of a bootstrap, and what gives the weighted means of values over next tokens."""
    owner = document[:, 1:].flatten().unique(return_inverse=True)[1]
    n = int(owner.max()) + 1
    size = torch.bincount(owner, minlength=n).double()
    drawn = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(0))
    weights = torch.stack([torch.bincount(row, minlength=n) for row in drawn]).double()

    def mean(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(n, dtype=torch.float64).index_add_(0, owner, values.flatten().double())
        return (weights @ total) / (weights @ size)

    return weights, mean
