"""What each stage takes in memory, in bytes, from sizes alone: checked before it begins, and what `saelink plan` shows.

Every function gives what a stage has at its peak beside what the process has when it begins. The terms are the arrays
that are alive together at that peak, counted in the code; tests/test_memory.py compares them with what the kernel
counts. They are meant to be above it, and not by far: see FACTOR there.
"""

from __future__ import annotations

from typing import NamedTuple

SHARD_TOKENS = 32_768
"""Tokens of one file of activations."""

SPLIT_TOKENS = 2**19
"""Training tokens whose latents are in memory at a time, see split.Split."""

POOL_SHARDS = 64
"""Shards of activations that are mixed while an SAE is trained."""

STEP_ENTRIES = 2**26
"""Entries of a dense matrix [tokens, targets] of one step, see metrics.in_steps."""

LIBRARIES = 3e8
"""What reading a model brings in: transformers, its tokenizer, the bridge."""

COMPILED = 2.5e8
"""What loading or compiling the inner loops brings in."""

CHANGES = 1.1e9
"""Changes of single targets by the ablations of a part of the sources."""

EXAMPLE_BYTES = 21 * 56 + 20
"""Of one place of an example: 21 tokens around it, each with indices and values while it is looked up."""


class Side(NamedTuple):
    """The SAE at one hook."""

    width: int
    """Of the activations that it reads."""
    d_sae: int
    l0: float
    """Latents active on a token."""

    @property
    def weights(self) -> float:
        """Bytes of encoder and decoder in float32."""
        return 8.0 * self.width * self.d_sae


class Shape(NamedTuple):
    """What a connector's memory follows from."""

    d_source: int
    d_target: int
    weights: int
    """All its parameters."""
    hidden: int
    direct: int
    """Source latents that its output matrix reads."""


class ModelSize(NamedTuple):
    """What a language model takes."""

    parameters: int
    d_model: int
    d_mlp: int
    heads: int
    vocabulary: int

    def loaded(self, bytes_each: int = 4) -> float:
        """Its weights, and of what is read the largest part twice."""
        return LIBRARIES + 1.25 * bytes_each * self.parameters

    def passed(self, tokens: int, context: int, hooks: int = 1) -> float:
        """Activations of one forward pass: the stream and its norm, the MLP before and behind its nonlinearity, its
        gate, queries, keys and values, scores of an attention that forms them, and a copy at each hook."""
        of_token = 6 * self.d_model + 3 * self.d_mlp + 2 * self.heads * context + hooks * self.d_model
        return 4.0 * tokens * of_token


def tokens(n: float) -> float:
    """Documents' ids as they are read, then packed, with the document of each."""
    return LIBRARIES + 32.0 * n


def model(size: ModelSize) -> float:
    """Describing a model: its weights in float32, a second time where it is compared by two kinds of attention."""
    return LIBRARIES + 2 * 4.0 * size.parameters


def cache(size: ModelSize, bytes_each: int, widths: list[int], step: int, context: int, training: float) -> float:
    """The model, a pass of `step` tokens, and by hook a shard being filled, one being written and its file's bytes;
    the norms of all training tokens."""
    shards = sum(3 * 2.0 * SHARD_TOKENS * width for width in widths)
    return size.loaded(bytes_each) + size.passed(step, context, len(widths)) + shards + 16 * training


def encode(side: Side, step: int, training: float) -> float:
    """An SAE as it is read and as it is used, a tile of pre-activations with room for what is active in it, and a shard
    of activations with its reconstruction and their squares."""
    sae = 2 * side.weights
    tile = step * (12.0 * side.d_sae + 16 * side.width)
    shard = SHARD_TOKENS * (36.0 * side.width + 60 * side.l0)
    return COMPILED + sae + tile + shard + 16 * training


def sae_training(side: Side, batch: int, rows: float) -> float:
    """Weights, gradients, two moments and a copy; a third of what is kept on the way, twice, as it is written; of a
    batch the dense arrays of a step; the pool of activations and the order that it is read in."""
    dense = batch * (28.0 * side.d_sae + 24 * side.width)
    pool = min(rows, POOL_SHARDS * SHARD_TOKENS) * (4.0 * side.width + 16)
    return LIBRARIES + 7 * side.weights + dense + pool


def split(sources: list[Side], target: Side, n_tokens: float) -> float:
    """The latents of so many tokens of a link, while they are put together and targets are chosen: by active latent its
    number, its value, two copies of both and where they go."""
    active = sum(side.l0 for side in sources) + target.l0
    return min(n_tokens, SPLIT_TOKENS) * (48 * active + 40)


def gram(d_source: int, d_target: int, active: float, n_tokens: float) -> float:
    """Dense products: the sums, their means, and the file's bytes; the tokens of a piece by row and by latent."""
    return COMPILED + 8.0 * (4 * d_source**2 + 3 * d_source * d_target) + min(n_tokens, 131_072) * 60 * active


def exact(d_source: int, d_target: int) -> float:
    """Of pairs of sources the products in two types; of a source and a target their product as it is read and by
    target, weights and gradients now and a penalty before, the solution, and what its errors are summed from."""
    return 12.0 * d_source**2 + 98 * d_source * d_target


def products(pairs: float, n_targets: int, values: float) -> float:
    """Sparse products: pairs twice while they are put together, the connector's edges, the tokens of a part by row and
    by latent."""
    return 2 * 8 * pairs + 6400 * n_targets + 32 * values


def wide_exact(pairs: float, n_targets: int) -> float:
    """Sparse products as they are read and as they are used, and the edges."""
    return COMPILED + 1.5 * 8 * pairs + 6400.0 * n_targets


def by_steps(shape: Shape, batch: int) -> float:
    """A connector that is trained: weights, gradients, two moments, the best so far, and the file's bytes; of a batch
    the prediction, its error and the hidden units; of a step of validation the same."""
    dense = max(batch, min(2048, STEP_ENTRIES // max(shape.d_target, 1)))
    return COMPILED + 4.0 * 8 * shape.weights + 4.0 * dense * 4 * (shape.d_target + shape.hidden)


def evaluate(shape: Shape, tests: float) -> float:
    """A connector, dense predictions of a step with what they miss, the test tokens' latents, sums by target."""
    dense = min(2048, STEP_ENTRIES // max(shape.d_target, 1))
    by_step = 4.0 * dense * (4 * shape.d_target + 2 * shape.hidden)
    return COMPILED + 4.0 * 3 * shape.weights + by_step + tests + 100 * shape.d_target


def edges(shape: Shape, n_edges: float, n_tests: float, tests: float) -> float:
    """The connector and its edges, by latent all test tokens, 64 targets densely over them at a time, what is said of
    each edge, and what clusters are found with."""
    return COMPILED + LIBRARIES / 3 + 8.0 * shape.weights + 2 * tests + 64 * 12 * n_tests + 400 * n_edges


def examples(d_sae: int, places: int, l0: float, n_tokens: float) -> float:
    """Histograms, places and values of each latent, the tokens around each place; one shard by latent; the text."""
    return COMPILED + d_sae * (400.0 + places * (40 + EXAMPLE_BYTES)) + SHARD_TOKENS * 60 * l0 + 8 * n_tokens


def top_tokens(d_sae: int, l0: float, n_tokens: float) -> float:
    """Twenty-four tokens of each latent, their weights and counts, sorted; one shard by latent; the text."""
    return COMPILED + d_sae * 24 * 64.0 + SHARD_TOKENS * 60 * l0 + 8 * n_tokens


def oracle(size: ModelSize, sources: list[Side], target: Side, n_tests: float, step: int, context: int) -> float:
    """The model, all SAEs, what the sources' make of the whole split, and the target's latents there, twice."""
    saes = sum(2 * side.weights for side in (*sources, target))
    rebuilt = n_tests * sum(8.0 * side.width + 40 * side.l0 for side in sources)
    tile = step * 12.0 * target.d_sae
    return size.loaded() + size.passed(step, context) + saes + rebuilt + tile + n_tests * 80 * target.l0


def losses(size: ModelSize, target: Side, n_tokens: float, step: int, context: int) -> float:
    """Cross-entropies: the model, its logits of a step three times, and what is spliced in at all tokens."""
    logits = 12.0 * step * size.vocabulary
    spliced = n_tokens * (4 * 4.0 * target.width + 40 * target.l0)
    return size.loaded() + size.passed(step, context) + logits + 2 * target.weights + spliced


def gradients(size: ModelSize, layers: int, step: int, context: int) -> float:
    """Gradients at a hook: the model, what all its layers keep of a pass for the way back, its logits with their
    logarithms, gradients and cumulative probabilities."""
    return size.loaded() + layers * size.passed(step, context) + 36.0 * step * size.vocabulary


def exported(n_edges: float) -> float:
    """The edges as a table, as text and as a graph of Python objects."""
    return LIBRARIES + 3000.0 * n_edges


def report(n_edges: float, cards: float, examples_each: int, weights: float) -> float:
    """The connectors' weights and edges, and the page's data of every card, as text and packed."""
    return COMPILED + 4.0 * 3 * weights + 400 * n_edges + cards * (20_000 + 800.0 * examples_each)


def effects(sources: list[Side], target: Side, n_tokens: float) -> float:
    """Sparse effects: the activations twice, latents by token and by latent, the SAEs, a tile, and the changes that the
    ablations of a part of the sources make."""
    sides = [*sources, target]
    activations = sum(n_tokens * (8.0 * side.width + 64 * side.l0) for side in sides)
    tile = 4.0 * max(STEP_ENTRIES / 4, 64 * target.d_sae) + 64.0 * 4096 * target.width
    return COMPILED + activations + sum(side.weights for side in sides) + tile + CHANGES
