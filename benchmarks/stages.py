"""Encode against the matrix product it can't do without, and memory and time of the stages as the text grows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.work import Row, gemm_floor, in_turn
from saelink.sae import SAE

D_IN, D_SAE, K, BATCH = 576, 2304, 32, 4096


def rows() -> Iterator[Row]:
    yield from encode(D_IN, D_SAE)
    yield from encode(768, 16384)


def encode(d_in: int, d_sae: int) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(d_in, d_sae, generator=generator) / d_in**0.5
    sae = SAE(W, torch.zeros(d_sae), W.T.contiguous(), torch.zeros(d_in), K, None)
    acts = torch.randn(BATCH, d_in, generator=generator)
    room = torch.empty(BATCH, d_sae)
    floor = gemm_floor(BATCH, d_in, d_sae)

    def naive() -> object:
        pre = acts @ sae.W_enc + sae.b_enc
        top = pre.topk(K, dim=1)
        dense = torch.zeros_like(pre).scatter_(1, top.indices, torch.relu(top.values))
        found = dense.nonzero()
        return found, dense[found[:, 0], found[:, 1]]

    sides = {"saelink": lambda: sae.encode_sparse(acts, room), "naive matmul, topk, nonzero": naive}
    try:
        from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

        theirs = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=K, apply_b_dec_to_input=False)).eval()
        with torch.no_grad():
            theirs.W_enc.copy_(W)

        def peer() -> object:
            with torch.inference_mode():
                return theirs.encode(acts)

        sides["sae-lens encode (dense result)"] = peer
    except ImportError:
        pass
    spent = in_turn(sides, 9)
    share = floor / spent["saelink"]
    ratio = spent["naive matmul, topk, nonzero"] / spent["saelink"]
    work = f"encode, {d_in} -> {d_sae:,}, TopK {K}, {BATCH:,} tokens"
    yield Row(f"{work}: of the GEMM's own rate", "at least 80%", f"{share:.0%}", share >= 0.8, spent | {"GEMM": floor})
    yield Row(f"{work}: naive / saelink", "at least 2x", f"{ratio:.1f}x", ratio >= 2, {})
