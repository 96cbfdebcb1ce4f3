"""Ablations of examples, against the model run one text at a time."""

from __future__ import annotations

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config
from saelink.evidence.token_ablation import ABLATIONS_FILE, DELETED, KEPT, AblationsStage
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.examples import ExamplesStage, load_examples
from saelink.latents.stream import WIDTH, WINDOW, text_of
from saelink.latents.top_tokens import TopTokensStage, load_top_tokens
from saelink.model.describe import model_info
from saelink.model.load import load_bridge
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.world import World

HOOK = "blocks.1.hook_mlp_out"


def value_at_end(cfg: Config, store: Store, ids: list[int], latent: int) -> float:
    bridge = load_bridge(cfg, model_info(cfg, store), "cpu")
    with torch.inference_mode():
        _, seen = bridge.run_with_cache(torch.tensor([ids]), names_filter=[HOOK], return_cache_object=False)
        return pull_sae(cfg, store, HOOK).encode(seen[HOOK][0, -1:])[0, latent].item()


def test_ablations_are_those_of_one_text_at_a_time(world: World, store: Store) -> None:
    cfg = world.config(store.root, "report.ablated_examples=2")
    latents, text = EncodeStage(cfg, store, HOOK).pull(), TokensStage(cfg, store).pull()
    kept = load_examples(ExamplesStage(cfg, store, HOOK).pull())
    chosen = [
        int(i) for i in load_top_tokens(TopTokensStage(cfg, store, HOOK).pull()).total.argsort(descending=True)[:3]
    ]
    artifact = AblationsStage(Job(cfg, store), latents, chosen).pull()
    assert AblationsStage(Job(cfg, store), latents, list(reversed(chosen))).pull().key == artifact.key
    found = artifact.json(ABLATIONS_FILE)
    assert sorted(map(int, found)) == sorted(chosen)
    bridge, sae = load_bridge(cfg, model_info(cfg, store), "cpu"), pull_sae(cfg, store, HOOK)
    ids = text_of(text).tolist()
    context, separator = cfg.data.context_size, text.facts["separator_id"]
    for latent in chosen:
        assert [entry["place"] for entry in found[str(latent)]] == kept.top_place[latent, :2].tolist()
        for entry in found[str(latent)]:
            place = entry["place"]
            begin, at = place // context * context, place % context
            whole = ids[begin : begin + at + 1]
            base = value_at_end(cfg, store, whole, latent)
            assert base == pytest.approx(kept.top_value[latent][found[str(latent)].index(entry)].item(), rel=2e-2)
            # Context: every token before the example's own that is near enough, but neither the first nor the last.
            assert entry["context"][WINDOW] is None and len(entry["context"]) == WIDTH
            for k in range(max(at - WINDOW, 0), at):
                share = entry["context"][k - at + WINDOW]
                assert (share is None) == (k < 1 or k < at - DELETED)
                if share is not None and k % 3 == 0:
                    left = value_at_end(cfg, store, whole[:k] + whole[k + 1 :], latent)
                    assert share == pytest.approx(left / base, abs=2e-3)
            assert [m for m, _ in entry["kept"]] == [m for m in KEPT if m <= at]
            for m, share in entry["kept"][:3]:
                assert share == pytest.approx(
                    value_at_end(cfg, store, [separator, *whole[-m:]], latent) / base, abs=2e-3
                )
            longer = [share for m, share in entry["kept"] if m >= entry["needs"]]
            assert all(share >= 0.5 for share in longer)
            # Tokens: the model run with the contribution taken away at every position that counts.
            until = torch.tensor([ids[begin : min(begin + at + WINDOW + 1, begin + context)]])

            def remove(acts: torch.Tensor, latent: int = latent, **_: object) -> torch.Tensor:
                value = sae.encode(acts[0])[:, latent]
                value[: cfg.data.drop_positions] = 0
                return acts - value[None, :, None] * sae.W_dec[latent]

            with torch.inference_mode():
                clean = bridge(until).log_softmax(-1)[0]
                ablated = bridge.run_with_hooks(until, fwd_hooks=[(HOOK, remove)]).log_softmax(-1)[0]
            for k in range(WIDTH):
                position = at - WINDOW + k
                if not 1 <= position < until.shape[1]:
                    assert entry["tokens"][k] is None
                    continue
                token = until[0, position]
                expected = (ablated - clean)[position - 1, token].item()
                assert entry["tokens"][k] == pytest.approx(expected, abs=1e-3)
