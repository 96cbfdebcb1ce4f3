"""Effects through one head: means over queries are those of the whole model with one head's sum of values replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saelink.config.schema import Config
from saelink.interventions.block import encoded_with_floor, read_held
from saelink.interventions.head_effects import head_effects
from saelink.interventions.moved_effects import MovedEffectsStage, load_moved_effects, measured_queries
from saelink.job import Job
from saelink.latents.shards import encode_rows
from saelink.store.store import Store

QUICK = ("link=ov", "layer=1", "link.kept=40", "verify.tokens_per_source=5", "verify.tokens=320")


def test_they_are_what_single_heads_give_in_the_whole_model(config: Callable[..., Config], store: Store) -> None:
    from transformers import AutoModelForCausalLM

    cfg = config(*QUICK)
    job = Job(cfg, store)
    whole = load_moved_effects(MovedEffectsStage(job).pull()).dense()
    measuring = measured_queries(job)
    chosen = whole.abs().flatten().sort(descending=True).indices[:6]
    source, target = chosen // whole.shape[1], chosen % whole.shape[1]
    found = head_effects(measuring, source, target)
    model: Any = AutoModelForCausalLM.from_pretrained(cfg.model.path).eval()
    layer, sae = model.model.layers[1], measuring.moves.source
    n_heads, state = measuring.moves.heads.n_heads, {"change": torch.zeros(()), "x": torch.zeros(())}
    put: dict[str, Any] = {}
    seen: dict[str, torch.Tensor] = {}

    def before(_: Any, args: Any) -> Any:
        state["x"] = args[0]
        return (args[0] - state["change"], *args[1:])

    def mixed(_: Any, args: Any) -> Any:
        seen["z"] = args[0].clone()
        if not put:
            return None
        z = args[0].clone()
        width = z.shape[-1] // n_heads
        part = slice(put["head"] * width, (put["head"] + 1) * width)
        z[..., part] = put["z"][..., part]
        return (z,)

    layer.register_forward_pre_hook(before)
    layer.self_attn.o_proj.register_forward_pre_hook(mixed)
    layer.self_attn.register_forward_hook(lambda _, _args, out: seen.update(out=out[0].clone()))

    def run(ids: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        state["change"] = change
        with torch.inference_mode():
            model(ids[None], use_cache=False)
        return seen["out"][0]

    assert found.shape == (6, n_heads)
    context = measuring.context
    for p, (j, i) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        total, rows = torch.zeros(n_heads), measuring.rows_of(j)
        for row in rows:
            sequence, query = divmod(row, context)
            ids = measuring.ids[sequence]
            put.clear()
            own = run(ids, torch.zeros(()))
            active = encode_rows(sae, state["x"][0]).dense()[:, j].clone()
            active[0] = 0
            run(ids, active[:, None] * sae.W_dec[j])
            without = seen["z"]
            kept, floor = encoded_with_floor(measuring.moves.target, own[query][None])
            for head in range(n_heads):
                put.update(head=head, z=without)
                out = run(ids, torch.zeros(()))[query][None]
                left = read_held(measuring.moves.target.pre_acts(out), floor, torch.zeros(measuring.d_target))
                total[head] += kept.dense()[0, i] - left[0, i]
        mean = total / len(rows) / job.encoded.scales[-1]
        assert (found[p] - mean).abs().max() <= 1e-4 * whole.abs().max()
    assert (found.abs().max(1).values > 1e-3 * whole.abs().max()).any()
