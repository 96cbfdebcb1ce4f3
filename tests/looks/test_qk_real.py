"""The default model: scores as sums over pairs of latents, and latents taken out of the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saelink.looks.causal import DELETIONS, Place, _measured, _said
from saelink.looks.layer import load_scored_layer
from saelink.looks.text import Text
from saelink.model.describe import model_info
from saelink.model.forward import load_forward
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.scores import taken
from helpers.world import composed

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One folder for the module: the model is unpacked once."""
    return Store(tmp_path_factory.mktemp("real") / "outputs")


@pytest.mark.parametrize("layer", [1, 17])
def test_all_pairs_sum_to_the_models_score_and_deletions_to_the_models(layer: int, store: Store) -> None:
    cfg = composed([f"layer={layer}", "data.max_tokens=20000", "wandb.mode=disabled", f"runtime.outputs={store.root}"])
    info = model_info(cfg, store)
    from saelink.activations.tokens import TokensStage

    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"][:2].long()
    attention = load_scored_layer(cfg, info, layer, ids[:1], "cpu")
    hook = info.hook("hook_resid_pre", layer)
    with torch.inference_mode():
        stream = load_forward(cfg, info, [hook], "cpu")(ids)[hook].float()
    # A shipped SAE of another place in the model: its error is large, and counts in the sum.
    sae = pull_sae(cfg, store, "blocks.1.hook_resid_mid")
    form = attention.form()
    text = Text(
        form.to("cpu", torch.float64), sae.to("cpu", torch.float64), stream.double(), ids, attention.seen, drop=1
    )
    scores, pattern = taken(attention, stream[1])
    sequence, scales, position = text.sequences[1], text.scales[1], torch.arange(text.n)
    written = sequence.value[:, None] * text.sae.W_dec[sequence.latent]
    rest = text.stream[1].index_add(0, sequence.position, -written)
    for head in range(0, form.n_heads, 4):
        vectors = text.vectors(1, head, text.directions(head))
        others = []
        sides = (
            (text.form.query, scales.query, head, form.scaling),
            (text.form.key, scales.key, form.key_head(head), 1.0),
        )
        for side, own, which, scaling in sides:
            part = text.form.part(side, rest, scales.stream, own) + text.form.constant(side, own)
            others.append(scaling * text.form.rotary.turned(part[:, which], position))
        places = sequence.position[:, None] * text.n + sequence.position
        total = (others[0] @ others[1].T).flatten()
        total.index_add_(0, places.flatten(), (vectors.queries @ vectors.keys.T).flatten())
        total = total.view(text.n, text.n)
        total.index_add_(0, sequence.position, vectors.queries @ others[1].T)
        total.index_add_(1, sequence.position, others[0] @ vectors.keys.T)
        assert (total - scores[head]).norm() <= 1e-5 * scores[head].norm()
        ours = total.masked_fill(~attention.seen, -torch.inf).softmax(-1)
        assert (ours - pattern[head]).abs().max() <= 1e-4
    _whole_model(info, layer, attention, Text(form, sae, stream, ids, attention.seen, drop=1), pattern)


def _whole_model(info: Any, layer: int, attention: Any, text: Text, pattern: torch.Tensor) -> None:
    """Ablations by hooks in the whole model, one at a time, norms free, and the formula with the scales frozen."""
    from transformers import AutoModelForCausalLM

    path = info.artifact.path
    whole: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    sequence, kept = text.sequences[1], []
    whole.model.layers[layer].self_attn.register_forward_hook(lambda _m, _a, out: kept.append(out[1][0]))

    def run(*entries: int) -> torch.Tensor:
        def change(_: Any, args: Any, kwargs: Any) -> Any:
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            for entry in entries:
                hidden[0, sequence.position[entry]] -= sequence.value[entry] * text.sae.W_dec[sequence.latent[entry]]
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        handle = whole.model.layers[layer].register_forward_pre_hook(change, with_kwargs=True)
        with torch.inference_mode():
            whole(sequence.ids[None], use_cache=False)
        handle.remove()
        return kept.pop()

    before = run()
    generator = torch.Generator().manual_seed(layer)
    for _ in range(5):
        query = int(torch.randint(20, 120, (1,), generator=generator))
        head = int(torch.randint(text.form.n_heads, (1,), generator=generator))
        seen = pattern[head, query].clone()
        seen[query:] = 0
        key = int(seen.argmax())
        place = Place(1, query, key, int(sequence.rows[query]) + 1, int(sequence.rows[key]) + 1)
        free = _measured(attention, text, head, [place], False)[0]
        gone = {"key": [place.key_entry], "query": [place.query_entry], "both": [place.key_entry, place.query_entry]}
        for number, deletion in enumerate(DELETIONS):
            after = run(*gone[deletion])[head, query]
            own = before[head, query]
            change = torch.where((own > 0) & (after > 0), (after / own).log(), 0.0)
            expected = float(change[key] - own @ change)
            assert free[number] == pytest.approx(expected, rel=1e-3, abs=1e-3)
        frozen = _measured(attention, text, head, [place], True)[0]
        assert frozen == pytest.approx(_said(text, head, text.directions(head), place), rel=1e-3, abs=1e-3)
