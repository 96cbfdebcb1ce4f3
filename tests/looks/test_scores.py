"""The bilinear form of scores: its terms sum to the model's own score in every family, or the family is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from saelink.attention.heads import load_attention
from saelink.errors import SaelinkError
from saelink.looks.layer import ScoredLayer, load_scored_layer
from saelink.looks.rotary import Rotary
from saelink.looks.scores import Form, Scales
from saelink.model.describe import model_info
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.families import FAMILIES, GROUPED, HEADED, MIXED, SHAPE, VOCABULARY, Family, write_family
from helpers.scores import taken
from helpers.world import D_MODEL, World

PARTIAL = SHAPE | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}}
WINDOW = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 6}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}

KNOWN = {
    "llama": FAMILIES["llama"],
    "llama yarn": Family("LlamaConfig", GROUPED | {"rope_parameters": YARN}),
    "neox": FAMILIES["neox"],
    "neox partial": Family("GPTNeoXConfig", PARTIAL, "gpt_neox.layers", "attention", parallel=True),
    "gpt2": FAMILIES["gpt2"],
    "qwen2": FAMILIES["qwen2"],
    "qwen3": FAMILIES["qwen3"],
    "gemma": FAMILIES["gemma"],
    "gemma3": FAMILIES["gemma3"],
    "gemma3 sliding": Family("Gemma3TextConfig", HEADED | MIXED | WINDOW),
    "phi3": FAMILIES["phi3"],
    "olmo2": FAMILIES["olmo2"],
    "glm4": FAMILIES["glm4"],
    "opt": FAMILIES["opt"],
}

LAYER = 1

TERMS = 1e-5


def random_sae(seed: int) -> SAE:
    """A TopK SAE whose reconstruction is far off, so that its error counts."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return SAE(draw(D_MODEL, 48), draw(48), draw(48, D_MODEL), draw(D_MODEL), k=6)


def terms(form: Form, sae: SAE, stream: torch.Tensor) -> torch.Tensor:
    """[heads, n, n] the sum of the products of all parts' queries and keys, one pair of parts after another."""
    latents = sae.encode(stream)
    scales = form.scales(stream)
    error = stream - sae.decode(latents)
    parts = [latents[:, j, None] * sae.W_dec[j] for j in range(sae.d_sae)] + [sae.b_dec.expand_as(stream), error]
    position = torch.arange(len(stream))
    sides = []
    for side, own in ((form.query, scales.query), (form.key, scales.key)):
        each = [form.part(side, part, scales.stream, own) for part in parts] + [form.constant(side, own)]
        sides.append([form.rotary.turned(part, position) for part in each])
    total = torch.zeros(form.n_heads, len(stream), len(stream), dtype=stream.dtype)
    group = form.n_heads // len(form.key.weight)
    for query in sides[0]:
        for key in sides[1]:
            total += form.scaling * torch.einsum("qhe,khe->hqk", query, key.repeat_interleave(group, 1))
    return total


@contextmanager
def opened(family: Family, world: World, store: Store, folder: Path) -> Iterator[tuple[ScoredLayer, torch.Tensor]]:
    """A random model's attention and a stream [n, d_model] that comes before it."""
    write_family(family, folder)
    cfg = world.config(store.root, f"model.path={folder}", f"layer={LAYER}")
    ids = torch.randint(VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(3))
    attention = load_scored_layer(cfg, model_info(cfg, store), LAYER, ids, "cpu")
    stream = attention.arguments["hidden_states"][0]
    yield attention, stream + 0.3 * torch.randn(stream.shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", KNOWN)
def test_the_terms_sum_to_the_models_own_score(name: str, world: World, store: Store, tmp_path: Path) -> None:
    with opened(KNOWN[name], world, store, tmp_path / "model") as (attention, stream):
        form = attention.form()
        scores, pattern = taken(attention, stream)
        # in float64: the parts of so bad an SAE are large and cancel
        found = terms(form.to("cpu", torch.float64), random_sae(5).to("cpu", torch.float64), stream.double())
        assert (found - scores).norm() <= TERMS * scores.norm()
        ours = found.masked_fill(~attention.seen, -torch.inf).softmax(-1)
        assert (ours - pattern).abs().max() <= 1e-5
        cfg = world.config(store.root, f"model.path={tmp_path / 'model'}", f"layer={LAYER}")
        heads = load_attention(cfg, model_info(cfg, store), LAYER, "cpu").heads
        values = heads.token_values(stream)[:, heads.kv_of]
        with torch.inference_mode():
            left = attention.run(stream[None]).output[0]
        left = left - torch.einsum("hqk,khe,hed->qd", pattern, values, heads.W_O)
        assert (left - left[0]).abs().max() <= 1e-4  # a bias, the same for every token
        if "sliding" in name:
            assert not bool(attention.seen[-1, 0])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "olmo2", "gpt2", "neox partial"])
def test_something_taken_out_is_what_the_model_does_with_it_taken_out(
    name: str, world: World, store: Store, tmp_path: Path
) -> None:
    """The second implementation: the model's own modules, norms free, and with their scales frozen."""
    with opened(KNOWN[name], world, store, tmp_path / "model") as (attention, stream):
        form = attention.form()
        position = torch.arange(len(stream))
        gone = 0.5 * torch.randn(stream.shape, generator=torch.Generator().manual_seed(6))
        scales = form.scales(stream)
        for held in (None, scales):
            scores = form.scores(stream - gone, position, held)
            ours = scores.masked_fill(~attention.seen, -torch.inf).softmax(-1)
            with torch.inference_mode():
                frozen = None if held is None else (form, held)
                theirs = attention.run((stream - gone)[None], frozen).pattern[0]
            assert (ours - theirs).abs().max() <= 1e-5
        free = form.scores(stream - gone, position)
        assert (free - form.scores(stream - gone, position, scales)).norm() > 1e-2 * free.norm()


@pytest.mark.parametrize(
    ("name", "line"),
    [("gemma2", "scores are capped"), ("gpt oss", "another pattern"), ("falcon", "another pattern"), ("mamba", "none")],
)
def test_what_is_not_known_is_refused(name: str, line: str, world: World, store: Store, tmp_path: Path) -> None:
    with (
        pytest.raises(SaelinkError, match=line) as refused,
        opened(FAMILIES[name], world, store, tmp_path / "model") as (attention, _),
    ):
        attention.form()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("width", [8, 4, 0])
def test_a_score_depends_on_the_offset_alone(neighbours: bool, width: int) -> None:
    angles = torch.outer(torch.arange(30.0), 1 / 100 ** (torch.arange(width // 2) / max(width // 2, 1))).double()
    both = angles.repeat_interleave(2, 1) if neighbours else torch.cat([angles, angles], 1)
    rotary = Rotary(1.3 * both.cos(), 1.3 * both.sin(), neighbours) if width else Rotary.none(30)
    query, key = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0)).double()
    at, offset = torch.arange(30), torch.arange(30) // 2
    direct = (rotary.turned(query, at) * rotary.turned(key, at - offset)).sum(-1)
    assert torch.allclose(rotary.by_offset(query, key, offset), direct, atol=1e-12)
    rest = (query[:, width:] * key[:, width:]).sum(-1)
    same = rotary.by_offset(query, key, torch.zeros(30, dtype=torch.int64))
    assert torch.allclose(same, rest + (1.69 if width else 1) * (query[:, :width] * key[:, :width]).sum(-1))


def test_frozen_scales_give_a_quadratic(world: World, store: Store, tmp_path: Path) -> None:
    """s - <q_j, k> - <q, k_j> + <q_j, k_j>, whatever is taken out."""
    with opened(KNOWN["qwen3"], world, store, tmp_path / "model") as (attention, stream):
        form, position = attention.form().to("cpu", torch.float64), torch.arange(len(stream))
        stream = stream.double()
        scales, gone = form.scales(stream), torch.randn_like(stream)
        sides = [
            [form.part(side, x, scales.stream, own) + (form.constant(side, own) if whole else 0)
             for x, whole in ((stream, True), (gone, False))]
            for side, own in ((form.query, scales.query), (form.key, scales.key))
        ]  # fmt: skip
        turned = [[form.rotary.turned(part, position) for part in side] for side in sides]
        (q, q_j), (k, k_j) = turned[0], [key.repeat_interleave(2, 1) for key in turned[1]]
        dot = lambda a, b: form.scaling * torch.einsum("qhe,khe->hqk", a, b)  # noqa: E731
        expected = dot(q, k) - dot(q_j, k) - dot(q, k_j) + dot(q_j, k_j)
        held = Scales(*(scale.double() for scale in scales))
        assert torch.allclose(form.scores(stream - gone, position, held), expected, atol=1e-12)
