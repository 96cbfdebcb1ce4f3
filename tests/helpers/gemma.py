"""Gemma 3 from a GGUF file: a tiny one in wheels' folders, and what the architecture computes, written out anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from helpers.world import WORDS

LAYERS, WIDTH, MLP, HEADS, HEAD, WINDOW = 6, 32, 48, 4, 8, 6
"""Of the tiny one: five layers of six see `WINDOW` tokens back, as in the real ones."""

TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]


def vocabulary() -> list[str]:
    """Special tokens, bytes, and every beginning of the small world's words, so that pairs merge to them."""
    starts = [word[:n] for word in WORDS for n in range(1, len(word) + 1)]
    letters = {letter for word in WORDS for letter in word}
    return [*TOKENS, *dict.fromkeys([*sorted(letters), *starts, *(f"▁{start}" for start in starts)])]


def write_gguf(path: Path, seed: int = 0) -> Path:
    """A random Gemma 3 of six small layers, in float32, with the names and fields that llama.cpp's converter writes."""
    from gguf import GGUFWriter, TokenType

    tokens = vocabulary()
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(WINDOW)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0 if n < len(TOKENS) else -float(n) for n in range(len(tokens))])
    kinds = [TokenType.CONTROL if token in TOKENS[:5] else TokenType.NORMAL for token in tokens]
    writer.add_token_types(
        [TokenType.BYTE if token.startswith("<0x") else k for token, k in zip(tokens, kinds, strict=True)]
    )
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    generator = torch.Generator().manual_seed(seed)

    def add(name: str, *shape: int) -> None:
        numbers = torch.randn(*shape, generator=generator)
        numbers = 1 + 0.3 * numbers if len(shape) == 1 else numbers / shape[1] ** 0.5  # gains as llama.cpp keeps them
        writer.add_tensor(f"{name}.weight", numbers.numpy())

    add("token_embd", len(tokens), WIDTH)
    add("output_norm", WIDTH)
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            add(at + norm, WIDTH)
        for norm in ("attn_q_norm", "attn_k_norm"):
            add(at + norm, HEAD)
        for name, rows, columns in (
            ("attn_q", HEADS * HEAD, WIDTH), ("attn_k", HEAD, WIDTH), ("attn_v", HEAD, WIDTH),
            ("attn_output", WIDTH, HEADS * HEAD), ("ffn_gate", MLP, WIDTH), ("ffn_up", MLP, WIDTH),
            ("ffn_down", WIDTH, MLP),
        ):  # fmt: skip
            add(at + name, rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_packages(folder: Path, whole: Path, pieces: int = 3) -> list[str]:
    """Folders as the real wheels leave them: one package, and one for each piece; gives model.parts."""
    data, parts = whole.read_bytes(), []
    (folder / "tiny_gguf").mkdir(parents=True)
    (folder / "tiny_gguf/__init__.py").write_text("raise RuntimeError('nothing of it is imported')\n")
    size = -(-len(data) // pieces)
    for number in range(pieces):
        place = folder / f"tiny_gguf_part{number + 1}" / "data" / f"{whole.name}.part{number:02d}"
        place.parent.mkdir(parents=True)
        (place.parent.parent / "__init__.py").write_text("raise RuntimeError('nothing of it is imported')\n")
        place.write_bytes(data[number * size : (number + 1) * size])
        parts.append(str(place.relative_to(folder)))
    return parts


class Gemma(NamedTuple):
    """The numbers of a GGUF file."""

    weights: dict[str, torch.Tensor]
    layers: int
    heads: int
    head: int
    window: int
    eps: float


def read_gguf(path: Path) -> Gemma:
    """Every tensor in float32, by gguf's own reader."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)

    def entry(name: str) -> Any:
        field = reader.fields[f"gemma3.{name}"]
        return field.parts[field.data[0]][0].item()

    weights = {
        tensor.name.removesuffix(".weight"): torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }
    return Gemma(
        weights, entry("block_count"), entry("attention.head_count"), entry("attention.key_length"),
        entry("attention.sliding_window"), entry("attention.layer_norm_rms_epsilon"),
    )  # fmt: skip


def _normed(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def _rotated(x: torch.Tensor, base: float) -> torch.Tensor:
    """[heads, tokens, head] with the two halves turned into one another."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1]).double()[:, None] * base ** (-torch.arange(half).double() / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


Change = Callable[[str, torch.Tensor], torch.Tensor]


def forward(model: Gemma, ids: torch.Tensor, change: Change = lambda _, x: x) -> dict[str, torch.Tensor]:
    """By hook, and "logits", what one sequence of ids [tokens] gives; `change` may put something else at a hook.

    As the report on Gemma 3 (Gemma Team, 2025) has it: RMS norms before and behind attention and MLP, norms of queries
    and keys, five layers with a window and rotations of base 10,000 for one that sees all, of base 1,000,000;
    embeddings times the square root of the width, tied; a tanh-approximated GELU that gates.
    """
    w, eps, seen = model.weights, model.eps, dict[str, torch.Tensor]()

    def at(name: str, x: torch.Tensor) -> torch.Tensor:
        seen[name] = change(name, x)
        return seen[name]

    n = len(ids)
    back = torch.arange(n)[:, None] - torch.arange(n)
    x = w["token_embd"][ids]
    x = x * torch.tensor(x.shape[1] ** 0.5, dtype=x.dtype)
    for layer in range(model.layers):
        part, hook = f"blk.{layer}.", f"blocks.{layer}."
        whole = (layer + 1) % 6 == 0
        x = at(hook + "hook_resid_pre", x)
        h = _normed(x, w[part + "attn_norm"], eps)
        q = (h @ w[part + "attn_q"].T).view(n, model.heads, model.head).transpose(0, 1)
        k, v = ((h @ w[part + name].T).view(n, -1, model.head).transpose(0, 1) for name in ("attn_k", "attn_v"))
        q, k = (_normed(z, w[part + f"attn_{name}_norm"], eps) for z, name in ((q, "q"), (k, "k")))
        q, k = (_rotated(z, 1e6 if whole else 1e4) for z in (q, k))
        seeing = (back >= 0) if whole else (back >= 0) & (back < model.window)
        scores = (q @ k.transpose(1, 2)) / 256**0.5  # query_pre_attn_scalar, in no file
        pattern = scores.masked_fill(~seeing, -torch.inf).softmax(-1)
        z = at(hook + "attn.hook_z", (pattern @ v).transpose(0, 1).reshape(n, -1))
        x = x + at(hook + "hook_attn_out", _normed(z @ w[part + "attn_output"].T, w[part + "post_attention_norm"], eps))
        x = at(hook + "hook_resid_mid", x)
        h = _normed(x, w[part + "ffn_norm"], eps)
        gate = torch.nn.functional.gelu(h @ w[part + "ffn_gate"].T, approximate="tanh")
        out = (gate * (h @ w[part + "ffn_up"].T)) @ w[part + "ffn_down"].T
        x = x + at(hook + "hook_mlp_out", _normed(out, w[part + "post_ffw_norm"], eps))
        x = at(hook + "hook_resid_post", x)
    seen["logits"] = _normed(x, w["output_norm"], eps) @ w["token_embd"].T
    return seen
