"""The stage and the command `qk` on the small world: figures that hold, what it prints, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saelink.attention.heads import load_attention
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.job import Job
from saelink.looks.causal import Place, deletions
from saelink.looks.kinds import kinds, looks, repeated_ids
from saelink.looks.pairs import OFFSETS
from saelink.looks.stage import (
    HEADS_FILE,
    NULLS,
    TARGETS_FILE,
    QKStage,
    QKTargetsStage,
    before_attention,
    found_or_made,
    open_layer,
    shares_of,
)
from saelink.looks.text import GROUPS, MODES
from saelink.saes.load import pull_sae
from saelink.store.store import Store
from saelink.terminal.qk import arrow, offsets

from helpers.world import Run

Configure = Callable[..., Config]

SMALL = ("layer=1", "qk.tokens=512", "qk.pairs=4", "qk.together=[1,5]")


def widest(out: str) -> int:
    """Of what is printed of the heads, without what is said of the artifacts."""
    lines = out[out.index("test sequences, pairs") :].splitlines()[1:-1]
    return max(len(line) for line in lines if not line.startswith(("top_tokens", "encode", "cache", "vocabulary")))


def job_of(cfg: Config, store: Store) -> Job:
    return before_attention(Job(cfg, store))


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_a_layers_heads(model: str, config: Configure, store: Store) -> None:
    job = job_of(config(*SMALL, model=model), store)
    artifact = found_or_made(job)
    heads = artifact.json(HEADS_FILE)
    assert artifact.facts["heads"] == [0, 1, 2, 3] == [head["head"] for head in heads]
    for head in heads:
        assert head["deleted"]["frozen_r"] > 0.99999 and head["deleted"]["frozen_error"] < 1e-3
        assert head["deleted"]["pair_frozen_r"] > 0.999
        assert abs(head["deleted"]["free_r"]) <= 1
        for mode in MODES:
            assert np.sum(head["shares"][mode]) == pytest.approx(1, abs=1e-4)
            assert [len(head["pairs"][mode]), [g["pairs"] for g in head["together"][mode]]] == [4, [1, 5]]
            one, five = head["together"][mode]
            assert 0 < one["variation"] < five["variation"] < 1 and set(one["nulls"]) == set(NULLS)
            for pair in head["pairs"][mode]:
                assert sum(pair["offsets"]) == pytest.approx(1) and len(pair["offsets"]) == len(OFFSETS)
                assert pair["rows"] > 0 and 0 < pair["variation"] < 1
                values = [example["variation"] for example in pair["examples"]]
                assert values == sorted(values, reverse=True) and values[0] >= pair["variation"]
                assert all(example["key"] <= example["query"] for example in pair["examples"])


def test_one_head_is_what_the_layer_has_of_it(config: Configure, store: Store) -> None:
    one = found_or_made(job_of(config(*SMALL, "head=2"), store))
    every = found_or_made(job_of(config(*SMALL), store))
    assert one.key != every.key
    assert one.json(HEADS_FILE) == [every.json(HEADS_FILE)[2]]
    assert found_or_made(job_of(config(*SMALL, "head=2"), store)).key == every.key
    for name, kept in (("layer first", store), ("head first", Store(store.root.parent / "other"))):
        with pytest.raises(SaelinkError, match="head=4: layer 1 has heads 0 to 3"):
            found_or_made(job_of(config(*SMALL, "head=4"), kept))
        assert name


def test_the_key_has_what_changes_the_numbers(config: Configure, store: Store) -> None:
    def key(*overrides: str, head: int | None = None) -> str:
        return QKStage(job_of(config(*SMALL, *overrides), store), head).key

    same = key()
    assert key("link=mlp", "l1_alpha=1", "runtime.device=cpu", "solver.lr=1", "head=1", "qk.targets=true") == same
    different = [
        key(head=0), key("layer=0"), key("qk.pairs=5"), key("qk.nulls=false"),
        key("qk.latents=9"), key("qk.together=[1]"), key("qk.tokens=600"), key("data.drop_positions=2"),
    ]  # fmt: skip
    assert len({same, *different}) == len(different) + 1


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_deletions_are_the_models_own(model: str, config: Configure, store: Store) -> None:
    """The measured change of a score is that of the whole model with the latent taken out by a hook."""
    job = job_of(config(*SMALL, model=model), store)
    hook = job.model.hook("hook_resid_pre", 1)
    opened = open_layer(job, hook, pull_sae(job.cfg, store, hook))
    text, head = opened.second, 3
    sequence = text.sequences[2]
    place = Place(2, 11, 5, int(sequence.rows[11]), int(sequence.rows[5]))
    found = deletions(opened.attention, text, head, [place] * 3)
    assert found["frozen_error"] is not None and found["frozen_error"] < 1e-3
    from saelink.looks import causal

    measured = causal._measured(opened.attention, text, head, [place], False)[0]  # noqa: SLF001

    from transformers import AutoModelForCausalLM

    whole: Any = AutoModelForCausalLM.from_pretrained(job.cfg.model.path, attn_implementation="eager").eval()
    layers = whole.model.layers if model == "llama" else whole.gpt_neox.layers
    attention = layers[1].self_attn if model == "llama" else layers[1].attention
    kept: list[torch.Tensor] = []
    attention.register_forward_hook(lambda _m, _a, out: kept.append(out[1][0, head]))

    def pattern(*entries: int) -> torch.Tensor:
        def change(_: Any, args: Any, kwargs: Any) -> Any:
            stream = (args[0] if args else kwargs["hidden_states"]).clone()
            for entry in entries:
                stream[0, sequence.position[entry]] -= sequence.value[entry] * text.sae.W_dec[sequence.latent[entry]]
            return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream})

        handle = layers[1].register_forward_pre_hook(change, with_kwargs=True)
        with torch.inference_mode():
            whole(sequence.ids[None], use_cache=False)
        handle.remove()
        return kept.pop()[place.query]

    before = pattern()
    for number, entries in enumerate(([place.key_entry], [place.query_entry], [place.key_entry, place.query_entry])):
        after = pattern(*entries)
        change = torch.where(before > 0, (after / before).log(), 0.0)
        centred = change[place.key] - (before * change).sum()
        assert measured[number] == pytest.approx(centred.item(), abs=2e-5)


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_targets_are_read_behind_the_models_own_attention(model: str, config: Configure, store: Store) -> None:
    """Against attention with the head's pattern replaced, done by hand: values mixed anew, all heads put together."""
    job = job_of(config(*SMALL, "head=1", model=model), store)
    artifact = found_or_made(job)
    found = QKTargetsStage(job, artifact).pull().json(TARGETS_FILE)
    assert [each["head"] for each in found] == [1]
    hook = job.model.hook("hook_resid_pre", 1)
    opened = open_layer(job, hook, pull_sae(job.cfg, store, hook))
    target = pull_sae(job.cfg, store, job.model.hook("hook_attn_out", 1))
    text, attention = opened.second, opened.attention
    heads = load_attention(job.cfg, job.model, 1, "cpu").heads
    pairs = artifact.json(HEADS_FILE)[0]["leading"][MODES[0]]
    total, change = 0.0, 0.0
    for number in range(len(text)):
        run = attention.run(text.stream[number][None])
        scores = text.form.scores(text.stream[number], torch.arange(text.n))[1]
        gone = torch.zeros_like(scores)
        latents, scales = text.sae.encode(text.stream[number]), text.scales[number]
        for i, j in pairs:
            parts = [latents[:, each, None] * text.sae.W_dec[each] for each in (i, j)]
            query = text.form.part(text.form.query, parts[0], scales.stream, scales.query)[:, 1]
            key = text.form.part(text.form.key, parts[1], scales.stream, scales.key)[:, 1]
            position = torch.arange(text.n)
            turned = text.form.rotary.turned
            gone += text.form.scaling * turned(query, position) @ turned(key, position).T
        before, after = (
            torch.stack(
                [run.pattern[0, h] if h != 1 else s.masked_fill(~text.seen, -torch.inf).softmax(-1) for h in range(4)]
            )
            for s in (scores, scores - gone)
        )
        values = heads.token_values(text.stream[number])[:, heads.kv_of].transpose(0, 1)
        mixed = [torch.einsum("hqe,hed->qd", pattern @ values, heads.W_O) for pattern in (before, after)]
        bias = run.output[0] - mixed[0]
        assert (bias - bias.mean(0)).abs().max() < 1e-4  # what is left is a bias, the same for every token
        rows = ((gone != 0) & text.seen & text.counted[number][:, None]).any(-1)
        own = target.encode(run.output[0])[rows]
        pre = target.pre_acts(mixed[1] + bias)[rows]
        top = target.pre_acts(run.output[0])[rows].topk(5, dim=1).values.clamp(min=0)
        held = torch.where(pre >= top[:, 3:].mean(1)[:, None], pre, 0.0)
        total += own.sum().item()
        change += (held.clamp(min=0) - own).abs().sum().item()
    assert found[0]["together"][-1]["change"] == pytest.approx(change / total, rel=1e-3)
    assert found[0]["together"][-1]["control"] > 0


def test_shares_are_of_the_centred_score(config: Configure, store: Store) -> None:
    job = job_of(config(*SMALL), store)
    hook = job.model.hook("hook_resid_pre", 1)
    opened = open_layer(job, hook, pull_sae(job.cfg, store, hook))
    text, head = opened.second, 1
    found = shares_of(text, head)[MODES[0]]
    sums, whole = np.zeros((3, 3)), 0.0
    for number in range(len(text)):
        scores = text.form.scores(text.stream[number], torch.arange(text.n))[head]
        vectors = text.vectors(number, head, text.directions(head))
        a = text.patterns(number, (vectors.whole_queries, vectors.whole_keys))[0]
        centred = scores - (a * scores).sum(-1, keepdim=True)
        queries, keys = text.groups(number, head, vectors)
        for i in range(3):
            for j in range(3):
                part = queries[i] @ keys[j].T
                part = part - (a * part).sum(-1, keepdim=True)
                sums[i, j] += (a * part * centred).sum().item()
        whole += (a * centred.square()).sum().item()
    assert np.allclose(found, sums / whole, atol=1e-3) and len(GROUPS) == 3


def test_kinds_by_rule(config: Configure, store: Store) -> None:
    ids = repeated_ids(50, 16)
    assert ids.shape == (8, 16) and bool((ids[:, :8] == ids[:, 8:]).all())
    assert kinds({"sinks": 0.5, "current": 0.1, "previous": 0.4, "induction": 0.2, "duplicate": 0.0}) == [
        "sink", "previous token", "induction",
    ]  # fmt: skip
    job = job_of(config(*SMALL), store)
    hook = job.model.hook("hook_resid_pre", 1)
    opened = open_layer(job, hook, pull_sae(job.cfg, store, hook))
    found = looks(opened.second, opened.repeated, 0)
    total = torch.zeros(2)
    for number in range(len(opened.second)):
        text = opened.second
        scores = text.form.scores(text.stream[number], torch.arange(text.n))[0]
        pattern = scores.masked_fill(~text.seen, -torch.inf).softmax(-1)
        total[0] += pattern[1:, 0].sum()
        kept = pattern[1:, 1:] / pattern[1:, 1:].sum(-1, keepdim=True)
        total[1] += kept.diagonal().sum()
    n = len(opened.second) * 15
    assert not bool(opened.second.sinks[:, 1:].any())
    assert found["sinks"] == pytest.approx(total[0].item() / n, abs=1e-4)
    assert found["current"] == pytest.approx(total[1].item() / n, abs=1e-4)


def test_the_command_prints_heads_and_one_head(saelink: Run, tmp_path: Path) -> None:
    code, out, err = saelink("qk", *SMALL)
    assert code == 0, err
    assert "lat x lat" in out and "head 3" in out and "IF" in out
    assert widest(out) <= 80
    code, out, err = saelink("qk", *SMALL, "head=1", "qk.targets=true")
    assert code == 0, err
    said = " ".join(out.split())
    assert "latents of blocks.1.hook_attn_out when" in said and "looks" in said and "frozen r = 1.0000" in said
    assert "└" in out or "itself" in out
    assert widest(out) <= 80
    heads = json.loads(next((tmp_path / "outputs/qk").glob("*/heads.json")).read_text())
    assert len(heads) == 4


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("head=9",), "head=9: layer 1 has heads 0 to 3"),
        (("head=-1",), "head=-1 must be at least 0"),
        (("qk.pairs=0",), "qk.pairs=0 must be at least 1"),
        (("qk.together=[0]",), "qk.together=[0]: give numbers of pairs"),
    ],
)
def test_mistakes_are_one_line(overrides: tuple[str, ...], line: str, saelink: Run) -> None:
    code, _, err = saelink("qk", *SMALL, *overrides)
    assert code == 1 and line in err and len(err.strip().splitlines()[-1]) > 0 and "Traceback" not in err


def test_python_gives_the_artifact(config: Configure) -> None:
    import saelink

    found = saelink.qk(config(*SMALL, "head=0", "qk.nulls=false"), observer=saelink.Observer())
    assert found.facts["heads"] == [0] and found.json(HEADS_FILE)[0]["together"][MODES[0]][0]["nulls"] == {}
    assert "head 0" in repr(found) and "free r" in found._repr_html_()


def test_an_arrow_leads_from_the_key_to_the_query() -> None:
    tokens = ["The", " old", " king", " sat", " on", " the", " throne"]
    line, below = arrow(tokens, 6, 2, 60)
    assert line == "The old king sat on the throne"
    assert line[below.index("└")] in "king" and line[below.index(">")] in "throne"
    line, below = arrow(tokens, 2, 2, 60)
    assert below.endswith("^ itself") and line[below.index("^")] in "king"
    line, below = arrow([f" w{i}" for i in range(60)], 55, 3, 60)
    assert " ... " in line and "w3" in line and "w55" in line and max(len(line), len(below)) <= 60


def test_offsets_are_the_shortest_run_of_bins() -> None:
    nothing = [0.0] * len(OFFSETS)
    assert offsets([0.9, 0.1, *nothing[2:]]) == "0"
    assert offsets([0, 0.5, 0.5, *nothing[3:]]) == "1-3"
    assert offsets([*nothing[1:], 1.0]) == "1024+"
