"""Programs compiled by tracr as models, texts and SAEs that saelink reads like any others, with their circuits.

tracr (Lindner et al., 2023) makes the weights of a transformer from a program in RASP; every direction of its residual
stream has a name and a meaning. It has no norms. Hugging Face has no such decoder, so it is written as a GPT-2 whose
LayerNorms do nothing: the stream holds everything twice, with either sign, so that its mean is 0, and a variance of
about 1 is nothing beside `layer_norm_epsilon` = 1e12, which a weight of 1e6 undoes. Programs are compiled for causal
attention, as GPT-2 has it. The SAEs are the stream's own directions, one latent for each sign.

Needs the extra `tracr`.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

BOS, PAD = "<bos>", "<pad>"

DOCUMENTS, LENGTH = 1500, 59
"""Documents of the text, and how many random tokens each has, behind which comes one more."""

STEP = 4096
"""Inputs that tracr's model is run on at a time."""

EPSILON = 1e12

PRESENT = 0.01
"""A direction is active above this: sums of large numbers leave some dust where there should be nothing."""

ANSWERS = 1e-3
"""A hidden unit or an output that moves less does not answer."""


class Program(NamedTuple):
    """A program and what it reads."""

    make: Callable[[], Any]
    vocabulary: tuple[Any, ...]
    most: int
    """Tokens of an input."""


def programs() -> dict[str, Program]:
    """Programs of tracr's own library, and one more, by name. Some, such as reverse, are constants where attention is
    causal."""
    from tracr.compiler import lib  # pyright: ignore[reportMissingImports]
    from tracr.rasp import rasp  # pyright: ignore[reportMissingImports]

    letters, brackets = tuple("abcd"), ("(", ")", "x")

    def double_hist() -> Any:
        hist = lib.make_hist().named("hist")
        return rasp.SelectorWidth(rasp.Select(hist, hist, rasp.Comparison.EQ)).named("double_hist")

    return {
        "length": Program(lib.make_length, letters, 6),
        "hist": Program(lib.make_hist, letters, 6),
        "double hist": Program(double_hist, letters, 6),
        "fraction before": Program(lambda: lib.make_frac_prevs(rasp.tokens == "a"), letters, 6),
        "pattern": Program(lambda: lib.detect_pattern(rasp.tokens, "abc"), letters, 6),
        "pair balance": Program(lambda: lib.make_pair_balance(rasp.tokens, "(", ")"), brackets, 6),
        "sort": Program(
            lambda: lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=5, min_key=1), (1, 2, 3, 4), 5
        ),
        "sort by frequency": Program(lambda: lib.make_sort_freq(5), letters, 5),
        "balanced brackets": Program(lambda: lib.make_shuffle_dyck(["()"]), brackets, 6),
    }  # fmt: skip


class Circuit(NamedTuple):
    """What an MLP computes; sources and targets are the directions, then the same once more with the other sign."""

    edges: torch.Tensor
    """[2 d, 2 d] bool: some hidden unit that reads the source and writes the target answers to the source."""
    moved: torch.Tensor
    """[2 d, 2 d] bool: the target itself is another on some input when the source is set to 0."""


class CompiledWorld(NamedTuple):
    """A compiled program in files, and what is known of it."""

    overrides: list[str]
    """Settings of saelink that read it."""
    labels: list[str]
    """[d] the directions."""
    circuits: dict[int, Circuit]
    """By layer, of those whose MLP computes something."""


def compiled_world(program: Program, folder: Path, documents: int = DOCUMENTS) -> CompiledWorld:
    """Compile a program into a folder: `model`, `saes` and `text.jsonl`."""
    from tracr.compiler import compiling  # pyright: ignore[reportMissingImports]

    words = set(program.vocabulary)
    made: Any = compiling.compile_rasp_to_model(
        program.make(), words, program.most, causal=True, compiler_bos=BOS, compiler_pad=PAD
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_model(made, folder / "model", program.most + 1)
    names = {str(word): word for word in program.vocabulary}
    write_tokenizer(made.input_encoder.encoding_map, folder / "model", next(iter(names)))
    circuits = {}
    d = len(made.residual_labels)
    inputs = sequences(made, program)
    for layer in range(made.model_config.num_layers):
        weights = mlp_weights(made, layer)
        if weights[0].any() and weights[2].any():
            circuits[layer] = circuit(weights, inputs[layer])
            for hook in ("hook_resid_mid", "hook_mlp_out"):
                write_sae(folder / "saes" / f"blocks.{layer}.{hook}", d, width_of(made))
    write_text(folder / "text.jsonl", list(names), documents)
    settings = {
        "model": "folder", "model.path": folder / "model", "data": "files", "data.path": folder / "text.jsonl",
        "data.context_size": program.most + 1, "data.prepend_bos": "true", "data.drop_positions": 0, "sae": "folder",
        "sae.path": folder / "saes", "wandb.mode": "disabled",
    }  # fmt: skip
    return CompiledWorld([f"{name}={value}" for name, value in settings.items()], made.residual_labels, circuits)


def sequences(made: Any, program: Program) -> list[np.ndarray[Any, Any]]:
    """By layer [tokens, d] what its MLP reads on every input there is, by tracr's own model."""
    encoding = made.input_encoder.encoding_map
    ids = np.array(list(itertools.product([encoding[word] for word in program.vocabulary], repeat=program.most)))
    ids = np.concatenate([np.full((len(ids), 1), encoding[BOS]), ids], 1)
    runs = [made.forward(made.params, ids[i : i + STEP]) for i in range(0, len(ids), STEP)]
    parts = [run.transformer_output.residuals for run in runs]
    layers = [np.concatenate([np.asarray(part[2 * layer]) for part in parts]) for layer in range(len(parts[0]) // 2)]
    return [np.unique(stream.reshape(-1, stream.shape[-1]).round(5), axis=0).astype(float) for stream in layers]


def mlp_weights(made: Any, layer: int) -> tuple[np.ndarray[Any, Any], ...]:
    """w [d, hidden], b [hidden], w [hidden, d], b [d] of a layer's MLP."""
    parts = [made.params[f"transformer/layer_{layer}/mlp/linear_{i}"] for i in (1, 2)]
    return tuple(np.asarray(part[name], dtype=float) for part in parts for name in ("w", "b"))


def circuit(weights: tuple[np.ndarray[Any, Any], ...], stream: np.ndarray[Any, Any]) -> Circuit:
    """An MLP's circuit on all that it can read [tokens, d], from its weights, in float64."""
    w_in, b_in, w_out, b_out = weights
    d = len(w_in)
    before = np.maximum(stream @ w_in + b_in, 0)
    outputs = before @ w_out + b_out
    writes = np.abs(w_out) > 0
    edges, moved = (np.zeros((2 * d, 2 * d), bool) for _ in range(2))
    for source, sign in itertools.product(range(d), (1, -1)):
        some = stream[:, source] * sign > PRESENT
        if not some.any():
            continue
        pre = stream[some] @ w_in + b_in - stream[some, source, None] * w_in[source]
        after = np.maximum(pre, 0)
        answers = (np.abs(after - before[some]) > ANSWERS).any(0)
        place = source + (0 if sign > 0 else d)
        edges[place] = np.tile(writes[answers].any(0), 2)
        for column, part in enumerate((1, -1)):
            was, now = (np.maximum(part * value, 0) for value in (outputs[some], after @ w_out + b_out))
            moved[place, column * d : (column + 1) * d] = (np.abs(now - was) > PRESENT).any(0)
    return Circuit(torch.from_numpy(edges), torch.from_numpy(moved))


def width_of(made: Any) -> int:
    """d_model of the GPT-2: the stream twice, and what its heads need."""
    config = made.model_config
    heads = config.num_heads
    head = max(config.key_size, -(-2 * len(made.residual_labels) // heads))
    return heads * head


def write_model(made: Any, folder: Path, context: int) -> None:
    """The compiled model as a GPT-2. Its unembedding reads the direction of each token of the program's output."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config, d, width = made.model_config, len(made.residual_labels), width_of(made)
    heads, key = config.num_heads, config.key_size
    head = width // heads
    params = {name: {k: np.asarray(v) for k, v in parts.items()} for name, parts in made.params.items()}
    embed = params["token_embed"]["embeddings"]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(embed), n_positions=context, n_embd=width, n_layer=config.num_layers, n_head=heads,
            n_inner=config.mlp_hidden_size, activation_function="relu", layer_norm_epsilon=EPSILON,
            tie_word_embeddings=False, bos_token_id=made.input_encoder.encoding_map[BOS], eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if "ln_" in name and name.endswith("weight"):
            tensor.fill_(EPSILON**0.5)

    def twice(matrix: np.ndarray[Any, Any]) -> torch.Tensor:
        """[n, d] as [n, width]: what is written, once with either sign."""
        out = torch.zeros(len(matrix), width)
        out[:, :d] = torch.tensor(matrix)
        out[:, d : 2 * d] = -out[:, :d]
        return out

    def read(matrix: np.ndarray[Any, Any], scale: float = 1.0) -> torch.Tensor:
        """[d, heads key] as [width, heads head]: what is read of the first of the two."""
        out = torch.zeros(width, heads, head)
        out[:d, :, :key] = torch.tensor(matrix).view(d, heads, key) * scale
        return out.flatten(1)

    state["transformer.wte.weight"] = twice(embed)
    state["transformer.wpe.weight"] = twice(params["pos_embed"]["embeddings"][:context])
    for layer in range(config.num_layers):
        attention = {name: params[f"transformer/layer_{layer}/attn/{name}"]["w"] for name in ATTENTION}
        query, keys, value = (attention[name] for name in ATTENTION[:3])
        # GPT-2 divides by the root of its own head's width.
        parts = [read(query, (head / key) ** 0.5), read(keys), read(value)]
        back = torch.zeros(heads, head, width)
        back[:, :key] = twice(attention["linear"]).view(heads, key, width)
        w_in, b_in, w_out, b_out = (weight.astype(np.float32) for weight in mlp_weights(made, layer))
        first = torch.zeros(width, config.mlp_hidden_size)
        first[:d] = torch.tensor(w_in)
        put = {"attn.c_attn.weight": torch.cat(parts, 1), "attn.c_proj.weight": back.flatten(0, 1),
               "mlp.c_fc.weight": first, "mlp.c_fc.bias": torch.tensor(b_in), "mlp.c_proj.weight": twice(w_out),
               "mlp.c_proj.bias": twice(b_out[None])[0]}  # fmt: skip
        state |= {f"transformer.h.{layer}.{name}": tensor for name, tensor in put.items()}
    model.load_state_dict(state)
    model.save_pretrained(folder)


ATTENTION = ("query", "key", "value", "linear")


def write_tokenizer(encoding: dict[Any, int], folder: Path, separator: str) -> None:
    """Words between spaces; the end of a text is one of them, which in random text is like any other."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {str(word): number for word, number in encoding.items()}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=separator, unk_token=PAD, bos_token=BOS)
    fast.save_pretrained(folder)


def write_sae(folder: Path, d: int, width: int) -> None:
    """The stream's directions as an SAE, those with a plus first."""
    folder.mkdir(parents=True, exist_ok=True)
    eye = torch.eye(d, width)
    write = eye.clone()
    write[:, d : 2 * d] = -torch.eye(d)
    tensors = {
        "W_enc": torch.cat([eye, -eye]).T.contiguous(),
        "W_dec": torch.cat([write, -write]),
        "b_enc": torch.zeros(2 * d),
        "b_dec": torch.zeros(width),
        "threshold": torch.full((2 * d,), PRESENT),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    about = {"architecture": "jumprelu", "d_in": width, "d_sae": 2 * d, "apply_b_dec_to_input": False}
    about |= {"dtype": "float32", "device": "cpu", "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(about))


def write_text(path: Path, words: list[str], documents: int) -> None:
    draw = random.Random(0)
    with path.open("w") as out:
        for _ in range(documents):
            out.write(json.dumps({"text": " ".join(draw.choices(words, k=LENGTH))}) + "\n")
