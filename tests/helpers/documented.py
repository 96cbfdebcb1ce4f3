"""What a documented command, page or notebook says of the real model, in the small world's sizes."""

from __future__ import annotations

from collections.abc import Sequence

SMALL = [
    "data.context_size=16", "runtime.forward_tokens=512", "sae.d_sae=48", "sae.k=4", "sae.batch_tokens=128",
    "sae.epochs=1", "eval.circuits=2", "eval.ce_tokens=256", "report.ablated=1",
]  # fmt: skip
"""Sizes of the small world, where a command does not say its own."""

FEW_STEPS = ["solver.tokens=4096", "solver.batch_tokens=256", "solver.validate_every=2048"]

SMALLER = {
    "1262": "5",
    "OF1262": "OF5",
    "353": "3",
    "layer=3": "layer=1",
    "layer=1,3": "layer=0,1",
    "connector.d_hidden=2048": "connector.d_hidden=16",
}
"""What a command says of the real model, in the small world's layers and latents."""


def completed(world: Sequence[str], words: Sequence[str]) -> list[str]:
    """A command with the small world's model, text and SAEs where it names none, and sizes that fit them.

    `world` are the overrides that lead to these (World.overrides).
    """
    words = [SMALLER.get(word, word) for word in words]
    given = {word.split("=", 1)[0].lstrip("+") for word in words if "=" in word}
    if "--config-name" in words:  # a file of its own, which names them
        given |= {"model", "data"}
    base = [o for o in world if not o.startswith(("solver", "sae.check", "eval", "wandb"))]
    for group in ("model", "data", "sae"):
        if group in given:
            base = [o for o in base if not o.startswith((f"{group}=", f"{group}."))]
    learnt = {"connector=mlp", "connector=nonlinear", "connector=low_rank"} & {*words}
    few = [*FEW_STEPS] if learnt and "solver=causal" not in words else []
    extra = [*base, *SMALL, *few]
    if "sae.published" not in given:
        extra.append("sae.check=false")
    if "wandb.mode" not in given:
        extra.append("wandb.mode=disabled")
    kept = {o.split("=", 1)[0]: o for o in extra if o.split("=", 1)[0] not in given}
    return [*words, *kept.values()]
