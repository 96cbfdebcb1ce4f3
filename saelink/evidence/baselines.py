"""What bounds a connector's error from above, and what it is divided by."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from saelink.activations.norms import c_post
from saelink.job import Job
from saelink.latents.split import Tokens


def mean_predictor(training: Iterable[Tokens], test: Tokens) -> torch.Tensor:
    """[d_target] mean squared error on test tokens of predicting the mean over the training tokens, in pieces."""
    d, n = test.target.d, len(test)
    mean, n_train = torch.zeros(d, dtype=torch.float64), 0
    for piece in training:
        mean += torch.bincount(piece.target.indices, piece.target.values.double(), minlength=d)
        n_train += len(piece)
    mean /= n_train
    values = test.target.values.double()
    total = torch.bincount(test.target.indices, values, minlength=d)
    squares = torch.bincount(test.target.indices, values.square(), minlength=d)
    return (squares - 2 * mean * total + n * mean.square()) / n


def variance(tokens: Tokens) -> torch.Tensor:
    """[d_target] variance over these tokens."""
    d, n = tokens.target.d, len(tokens)
    values = tokens.target.values.double()
    total = torch.bincount(tokens.target.indices, values, minlength=d)
    return (torch.bincount(tokens.target.indices, values.square(), minlength=d) - total.square() / n).clamp(min=0) / n


NORMALISERS = ("post", "energy", "variance")


def normalisers(job: Job, test: Tokens) -> dict[str, torch.Tensor]:
    """[d_target] what a latent's loss is divided by: c_L, the layer's energy, the latent's variance on test tokens."""
    energy = test.target.values.double().square().sum() / len(test)
    return {
        "post": torch.full((test.target.d,), c_post(job.cfg, job.store, job.link.target), dtype=torch.float64),
        "energy": energy.expand(test.target.d),
        "variance": variance(test),
    }
