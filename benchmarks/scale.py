"""The arithmetic of docs/guides/scale.md: bytes and hours of a billion tokens, from rates measured and rates assumed.

    python -m benchmarks.scale

Nothing is run; what stands under ASSUMED was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENS = 1_000_000_000

ASSUMED = {
    "products, FLOP/s of one GPU": 0.4 * 990e12,  # bfloat16, dense, 40% of an H100's data sheet
    "memory, bytes/s of one GPU": 0.7 * 3.35e12,
    "disk, bytes/s of one node (8 GPUs)": 2e9,
}

MEASURED = {
    "text to packed tokens, tokens/s of one process": 200_000,  # 1.06M tokens of the default text in 5.4 s
    "latents on disk, bytes a token and active latent": 4,  # a 2-byte number and a bfloat16
    "latents on disk, bytes a token": 12,  # its length, norm and place
    "exact solver, bytes a pair of source latents": 12,
    "exact solver, bytes a pair of source and target": 56,
    "encode, share of its product's rate": 0.65,  # benchmarks/cpu.json, the lower of two
    "cache, share of its products' rate": 0.78,
}


@dataclass
class Case:
    """A model, the layer in its middle, and SAEs on both sides of its MLP."""

    name: str
    parameters: float
    """Below the layer's end, without embeddings."""
    d_model: int
    d_sae: int
    active: int


CASES = [
    Case("Pythia-70M, layer 3 of 6", 12.6e6, 512, 32_768, 64),
    Case("a 7B model, layer 16 of 32", 3.3e9, 4096, 32_768, 64),
]


def table(case: Case) -> list[tuple[str, float, list[float]]]:
    """By stage the bytes it writes and the seconds on 1, 8 and 64 GPUs, eight to a node."""
    product, memory, disk = ASSUMED.values()
    gpus = [1, 8, 64]
    nodes = [max(n // 8, 1) for n in gpus]
    acts = 2 * 2 * case.d_model * TOKENS  # two hooks, bfloat16
    latents = (
        2
        * TOKENS
        * (
            MEASURED["latents on disk, bytes a token and active latent"] * case.active
            + MEASURED["latents on disk, bytes a token"]
        )
    )
    forward = 2 * case.parameters * TOKENS / product / MEASURED["cache, share of its products' rate"]
    encode = 2 * 2 * case.d_model * case.d_sae * TOKENS / product / MEASURED["encode, share of its product's rate"]
    steps = TOKENS / 4096
    # A step of Adam on a full matrix reads and writes the weight, its two averages and the gradient.
    step = 7 * 4 * case.d_sae**2 / memory

    def slower(work: float, size: float) -> list[float]:
        """The products or the disk, whichever takes longer."""
        return [max(work / n, size / disk / k) for n, k in zip(gpus, nodes, strict=True)]

    text = TOKENS / MEASURED["text to packed tokens, tokens/s of one process"]
    return [
        ("tokens (one process)", 4 * TOKENS, [text] * 3),
        ("cache, activations on disk", acts, slower(forward, acts)),
        ("encode from disk", latents, slower(encode, acts)),
        ("cache and encode with stream=true", latents, slower(forward + encode, latents)),
        ("linear connector by Adam, one pass (one GPU)", 4.0 * case.d_sae**2, [steps * step] * 3),
    ]  # fmt: skip


def text(case: Case) -> str:
    lines = ["| stage | writes | 1 GPU | 8 GPUs | 64 GPUs |", "|---|---|---|---|---|"]
    for name, size, seconds in table(case):
        lines.append(f"| {name} | {size_text(size)} | " + " | ".join(_hours(s) for s in seconds) + " |")
    return "\n".join(lines)


def exact_memory(d_source: int, d_target: int) -> float:
    """Bytes that the exact solver holds."""
    source = MEASURED["exact solver, bytes a pair of source latents"]
    return source * d_source**2 + MEASURED["exact solver, bytes a pair of source and target"] * d_source * d_target


def size_text(size: float) -> str:
    return f"{size / 1e12:.1f} TB" if size >= 1e12 else f"{size / 1e9:.0f} GB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min" if seconds >= 60 else "< 1 min"


if __name__ == "__main__":
    for case in CASES:
        print(f"\n{case.name}, {case.d_sae:,} latents, {case.active} active, 1e9 tokens\n\n{text(case)}")
    print(f"\nexact solver, 32,768 x 32,768: {size_text(exact_memory(32_768, 32_768))}")
