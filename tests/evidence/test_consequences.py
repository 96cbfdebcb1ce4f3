"""What the next token loses: against one step at a time in the whole model, for latents and for edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.evidence import consequences as consequence
from saelink.evidence.consequences import CONSEQUENCES_FILE, TOKENS, ConsequencesStage, Item, _measured
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.model.describe import model_info
from saelink.model.load import load_bridge
from saelink.report.notebook import Opened
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.world import Run, World


def world_config(world: World, store: Store, *overrides: str, model: str = "llama") -> Any:
    return world.config(
        store.root, "layer=0", "connector=linear", "solver=exact", "l1_alpha=1e-3", *overrides, model=model
    )


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_a_step_is_what_the_whole_model_makes_of_it(
    world: World, store: Store, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consequence, "TOKENS", 10**6)  # all of them
    cfg = world_config(world, store, model=model)
    info, sides = model_info(cfg, store), pull_sides(cfg, store)
    hooks = [side.facts["hook_name"] for side in (sides.sources[0], sides.target)]
    test = load_split(cfg, sides, "test")
    target = int(torch.bincount(test.target.indices, minlength=48).argmax())
    source = int(torch.bincount(test.source.indices, minlength=48).argmax())
    bridge = load_bridge(cfg, info, "cpu")
    sae_in, sae_out = (pull_sae(cfg, store, hook) for hook in hooks)
    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"].long()
    changes: dict[str, list[float]] = {"edge": [], "target": []}
    divergences: dict[str, list[float]] = {"edge": [], "target": []}

    def last(text: torch.Tensor, hook: str, taken: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities after the text, and the target hook's acts at its end, `taken` taken out there."""
        seen = {}

        def change(acts: torch.Tensor, **_: object) -> torch.Tensor:
            acts = acts.clone()
            acts[0, -1] -= taken
            return acts

        def look(acts: torch.Tensor, **_: object) -> torch.Tensor:
            seen["acts"] = acts[0, -1]
            return acts

        logits = bridge.run_with_hooks(text[None], fwd_hooks=[(hook, change), (hooks[1], look)])
        return logits[0, -1].float().log_softmax(0), seen["acts"]

    with torch.inference_mode():
        for sequence in ids[:6]:
            _, seen = bridge.run_with_cache(sequence[None], names_filter=hooks, return_cache_object=False)
            latents_in, latents_out = sae_in.encode(seen[hooks[0]][0]), sae_out.encode(seen[hooks[1]][0])
            for position in range(1, len(sequence) - 1):
                text, following = sequence[: position + 1], sequence[position + 1]
                clean, acts = last(text, hooks[1], torch.zeros(32))
                value = latents_out[position, target]
                if value > 0:
                    without, _ = last(text, hooks[1], value * sae_out.W_dec[target])
                    changes["target"].append((without - clean)[following].item())
                    divergences["target"].append((clean.exp() * (clean - without)).sum().item())
                if latents_in[position, source] > 0:
                    _, moved = last(text, hooks[0], latents_in[position, source] * sae_in.W_dec[source])
                    pre, now = (sae_out.pre_acts(a[None])[0] for a in (acts, moved))
                    best = pre.topk(5).values.clamp(min=0)
                    floor = (best[-1] + best[-2]) / 2 if best[-2] > 0 else torch.zeros(())
                    lost = value - (now[target] if now[target] >= floor and now[target] > 0 else 0.0)
                    without, _ = last(text, hooks[1], lost * sae_out.W_dec[target])
                    changes["edge"].append((without - clean)[following].item())
                    divergences["edge"].append((clean.exp() * (clean - without)).sum().item())
    # The same first sequences alone, to compare every step.
    monkeypatch.setattr(cfg.verify, "tokens", 6 * 16)
    found = {item.kind: row for item, row in _measured(
        Job(cfg, store), [Item("edge", source, target), Item("target", None, target)]
    ).items()}  # fmt: skip
    for kind, values in changes.items():
        assert found[kind]["tokens"] == len(values) > 5
        assert found[kind]["logp"] == pytest.approx(sum(values) / len(values), rel=2e-3, abs=2e-5)
        mean = sum(divergences[kind]) / len(values)
        assert found[kind]["kl"] == pytest.approx(mean, rel=1e-2, abs=1e-6) and found[kind]["kl_null"] > 0


def test_edges_targets_and_outliers_are_measured(world: World, store: Store) -> None:
    all_of_them = "outliers.shares.massive=0"
    cfg = world_config(world, store, "verify.consequences=2", "verify.chosen=[3-5]", all_of_them)
    rows = ConsequencesStage(Job(cfg, store)).pull().json(CONSEQUENCES_FILE)
    kinds = [row["kind"] for row in rows]
    assert (
        kinds.count("edge") == 3
        and kinds.count("outlier") == 2
        and {row["target"] for row in rows if row["kind"] == "edge"}
        == {row["target"] for row in rows if row["kind"] == "target"}
    )
    assert any((row["source"], row["target"]) == (3, 5) for row in rows)
    assert all(row["tokens"] <= TOKENS and row["kl"] >= -1e-6 for row in rows)


def test_on_the_command_line(saelink: Run) -> None:
    words = ["connector=linear", "solver=exact", "l1_alpha=1e-3", "verify.stability=false"]
    code, out, err = saelink("verify", *words, "verify.chosen=[3-5]", "verify.consequences=2")
    assert code == 0, err
    assert "What the next token loses without it" in out and "OF5" in out and "by IF3" in out
    table = out.split("What the next token loses")[1]
    assert max(map(len, table.splitlines())) <= 80
    code, out, err = saelink("verify", *words, "verify.consequences=0")
    assert code == 0 and "next token loses" not in out
    code, out, err = saelink("report", *words, "report.ablated=0")  # holds what was measured before
    assert code == 0, err
    (page,) = [found for found in Store("outputs").artifacts() if found.stage == "report"]
    verified, *_ = Opened(page).head["verified"]
    assert {"edge", "target", "outlier"} >= {row["kind"] for row in verified["consequences"]} >= {"edge"}
    for chosen, said in (
        ("3", "verify.chosen=3: give source-target"),
        ("3-48", "there are 48 target latents"),
        ("99-1", "there are 48 source"),
    ):
        code, _, err = saelink("verify", *words, f"verify.chosen=[{chosen}]")
        assert code == 1 and said in err and len(err.strip().splitlines()) == 1, err
