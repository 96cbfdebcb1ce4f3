"""Latents taken out in front of attention: what is computed piece by piece is what the whole model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.attention.heads import Attention
from saelink.attention.moved import Moves
from saelink.interventions.moved_ablation import Ablation
from saelink.latents.rows import Rows
from saelink.latents.shards import encode_rows
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.attention import LAYER, OPENED, opened, some_sae
from helpers.families import FAMILIES, VOCABULARY
from helpers.world import World

CONTEXT = 40


class Slow:
    """One ablation at a time in transformers' own whole model, the stream changed by a hook."""

    def __init__(self, folder: Path, name: str, ids: torch.Tensor):
        from transformers import AutoModelForCausalLM

        family = FAMILIES[name]
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        layer = self._model.get_submodule(family.layers)[LAYER]
        self._attn = next(m for m in layer.modules() if hasattr(m, "is_causal") or hasattr(m, "scaling"))
        self._ids, self._change, self.out = ids, torch.zeros(()), torch.zeros(())
        layer.register_forward_pre_hook(self._before, with_kwargs=True)
        layer.get_submodule(family.attn).register_forward_hook(self._after)

    def through_head(self, sequence: int, change: torch.Tensor, head: int, n_heads: int) -> torch.Tensor:
        """The same where only this head's sum of values is that of the changed stream, the others' that of the own."""
        module = next(m for n, m in self._attn.named_modules() if n in ("o_proj", "c_proj", "dense", "out_proj"))
        kept: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
        self.without(sequence, change)
        handle.remove()

        def put(_: Any, args: Any) -> Any:
            z = args[0].clone()
            part = slice(head * z.shape[-1] // n_heads, (head + 1) * z.shape[-1] // n_heads)
            z[..., part] = kept[0][..., part]
            return (z,)

        handle = module.register_forward_pre_hook(put)
        out = self.without(sequence, torch.zeros_like(change))
        handle.remove()
        return out

    def _before(self, _: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] - self._change, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] - self._change}

    def _after(self, _: Any, _args: Any, out: Any) -> None:
        self.out = (out[0] if isinstance(out, tuple) else out).clone()

    def without(self, sequence: int, change: torch.Tensor) -> torch.Tensor:
        """[context, d] attn_out of a sequence with change [context, d] taken out of the stream in front."""
        self._change = change[None]
        with torch.inference_mode():
            self._model(self._ids[sequence : sequence + 1], use_cache=False)
        return self.out[0]


def change_of(sae: SAE, x: torch.Tensor, latents: Rows, source: int) -> torch.Tensor:
    """[context, d] what a source writes at the tokens where it is active, but for the first."""
    active = latents.dense()[:, source].clone()
    active[0] = 0
    units = sae.units(x)
    if units is not None:
        active = active * units.scale[:, 0]
    return active[:, None] * sae.W_dec[source]


def samples(latents: Rows, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and queries: at the source itself, right behind it, long behind it, and in front of it."""
    active = latents.select(torch.arange(sequence * CONTEXT, (sequence + 1) * CONTEXT))
    row, source = active.row_of, active.indices
    chosen = torch.randperm(len(row), generator=torch.Generator().manual_seed(sequence))[:12]
    queries = [(source[i].item(), min(int(row[i]) + step, CONTEXT - 1)) for i in chosen for step in (0, 1, 9)]
    queries += [(source[i].item(), max(int(row[i]) - 3, 1)) for i in chosen]
    return torch.tensor([s for s, _ in queries]), torch.tensor([q for _, q in queries])


@pytest.mark.parametrize("name", OPENED)
def test_it_is_what_the_whole_model_gives(name: str, world: World, store: Store, tmp_path: Path) -> None:
    attention: Attention = opened(name, world, store, tmp_path)
    ids = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(3))
    source_sae, target_sae = some_sae(1, norm="layer_norm" if name == "llama" else "none"), some_sae(2)
    moves = Moves(attention.heads, source_sae, target_sae, drop=1)
    ablation, slow = Ablation(moves, attention.opened), Slow(tmp_path / "model", name, ids)
    with torch.inference_mode():
        seen = attention.look(ids)
        latents = encode_rows(source_sae, seen.x.flatten(0, 1))
        for sequence in range(2):
            source, query = samples(latents, sequence)
            taken = ablation.taken(seen, sequence, latents, source)
            free, frozen = ablation.without(seen, sequence, taken, source, query)
            rows = latents.select(torch.arange(sequence * CONTEXT, (sequence + 1) * CONTEXT))
            nothing = moves.parts(seen, sequence, rows, source_sae.units(seen.x[sequence]))["latents"]
            changed = 0
            for i, (j, q) in enumerate(zip(source.tolist(), query.tolist(), strict=True)):
                change = change_of(source_sae, seen.x[sequence], rows, j)
                true = slow.without(sequence, change)[q]
                size = seen.out[sequence, q].norm()
                assert (free[i] - true).norm() <= 2e-5 * size
                changed += int((true - seen.out[sequence, q]).norm() > 1e-3 * size)
                # frozen: exactly the latent's part of every pre-activation, the pattern and the norms held
                kept = Rows.from_dense(rows.dense().index_fill(1, torch.tensor([j]), 0.0))
                lost = nothing[q] - moves.parts(seen, sequence, kept, source_sae.units(seen.x[sequence]))["latents"][q]
                read = target_sae.pre_acts(seen.out[sequence, q][None])[0] - target_sae.pre_acts(frozen[i][None])[0]
                assert (lost - read).norm() <= 1e-4 * target_sae.pre_acts(seen.out[sequence, q][None]).norm()
            assert changed >= len(source) // 3


@pytest.mark.parametrize("name", OPENED)
def test_one_head_alone_is_what_the_whole_model_gives(name: str, world: World, store: Store, tmp_path: Path) -> None:
    attention: Attention = opened(name, world, store, tmp_path)
    ids = torch.randint(VOCABULARY, (1, CONTEXT), generator=torch.Generator().manual_seed(3))
    source_sae = some_sae(1)
    moves = Moves(attention.heads, source_sae, some_sae(2), drop=1)
    ablation, slow = Ablation(moves, attention.opened), Slow(tmp_path / "model", name, ids)
    n_heads, differs = attention.heads.n_heads, 0
    with torch.inference_mode():
        seen = attention.look(ids)
        latents = encode_rows(source_sae, seen.x.flatten(0, 1))
        source, query = (column[:8] for column in samples(latents, 0))
        found = ablation.through_heads(seen, 0, ablation.taken(seen, 0, latents, source), source, query)
        assert found.shape == (n_heads, 8, seen.out.shape[2])
        for i, (j, q) in enumerate(zip(source.tolist(), query.tolist(), strict=True)):
            change = change_of(source_sae, seen.x[0], latents, j)
            for head in range(n_heads):
                true = slow.through_head(0, change, head, n_heads)[q]
                assert (found[head, i] - true).norm() <= 2e-5 * seen.out[0, q].norm()
                differs += int((true - seen.out[0, q]).norm() > 1e-4 * seen.out[0, q].norm())
    assert differs > n_heads
