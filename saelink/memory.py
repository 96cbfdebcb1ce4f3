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

BLOCK_ENTRIES, ABLATIONS = 2**24, 4096
"""Pre-activations, and ablations of one pass, that are in memory at a time, see interventions.block."""

PART_SOURCES = 1024
"""Sources of a part of the effects, at most, see interventions.measure."""

RANKS = 1e8
"""Counts of pairs by the ranks of claim and effect, by group of sources, see evidence.rank_agreement."""

EXAMPLE_SEQUENCES = 8
"""Sequences of one pass to the logits, see evidence.token_ablation; of a pass to a hook up to four times as many."""

PAIR_ENTRIES = 2**24
"""Entries of (query, head, latent) that are held at a time, see attention.moved."""

EDGES_OF_TARGET = 6400.0
"""The edges of a target latent while they are put in order: what a hundred of them take."""

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

    def between(self, tokens: int) -> float:
        """What runs between two hooks of a block at some tokens: the MLP, with the stream and its norm."""
        return 4.0 * tokens * (6 * self.d_model + 3 * self.d_mlp)


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
    return 2 * 8 * pairs + EDGES_OF_TARGET * n_targets + 32 * values


def wide_exact(pairs: float, n_targets: int) -> float:
    """Sparse products as they are read and as they are used, and the edges."""
    return COMPILED + 1.5 * 8 * pairs + EDGES_OF_TARGET * n_targets


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


def block(
    size: ModelSize, sources: list[Side], target: Side, n_tokens: float, step: int, context: int
) -> float:  # fmt: skip
    """What lies between a link's SAEs, opened: the model with a pass of it, and once more for what is taken out of it,
    the activations twice, latents by token and sorted, the SAEs, a tile of pre-activations, and what runs between the
    hooks at once."""
    sides = [*sources, target]
    activations = sum(n_tokens * (8.0 * side.width + 64 * side.l0) for side in sides)
    tile = 4.0 * max(BLOCK_ENTRIES, 64 * target.d_sae) + size.between(ABLATIONS) + 8.0 * ABLATIONS * target.width
    saes = sum(side.weights for side in sides)
    model = size.loaded() + 4.0 * size.parameters + size.passed(step, context, len(sides))
    return COMPILED + model + activations + tile + saes


def joint(
    size: ModelSize, sources: list[Side], target: Side, n_tokens: float, step: int, context: int
) -> float:  # fmt: skip
    """Sets of sources taken out of an open block: its outputs, the latents by latent too, the target's encoder again,
    and what goes at the tokens of a pass."""
    opened = block(size, sources, target, n_tokens, step, context)
    latents = sum(32 * side.l0 for side in [*sources, target])
    return opened + n_tokens * (4.0 * target.width + latents) + target.weights / 2


def asked(target: Side, n_tokens: float) -> float:
    """Tests of the targets' logic: on about as many tokens as each target fires on, the token, what goes there from
    which row, and what comes of it."""
    return 120 * n_tokens * target.l0


def together(shape: Shape, pairs: float) -> float:
    """Effects of sets of sources beside a connector's: the strongest of all effects while they are gathered, the
    connector, and what it predicts of the tokens of a step with and without the set."""
    return 40 * pairs + 8.0 * shape.weights + 3 * 4.0 * min(2048 * shape.d_target, STEP_ENTRIES)


def verdicts(shape: Shape, n_edges: float, pairs: float, n_sources: int, tests: float) -> float:
    """Claims beside effects: the connector and the test tokens' latents, by claim what is said of it, effects that are
    nearly strong by group of documents, the effects of a part of the sources, and counts of ranks."""
    part = pairs * min(PART_SOURCES / max(n_sources, 1), 1)
    return COMPILED + 8.0 * shape.weights + tests + 200 * n_edges + 20 * pairs + 160 * part + RANKS


def owed(target: Side, n_edges: float, context: int) -> float:
    """What gradients say of edges: sums of each, the target's SAE, and a sequence's gradients along its directions."""
    return 140 * n_edges + 1.5 * target.weights + 24.0 * target.d_sae * context


def without_edges(size: ModelSize, target: Side, rows: int, context: int) -> float:
    """The model run to its logits on some sequences with something missing in each."""
    tokens = rows * context
    return size.loaded() + size.passed(tokens, context) + tokens * (12.0 * size.vocabulary + 12 * target.width)


def pruned(target: Side, n_edges: float, pairs: float, n_sources: int, tokens: float, orders: int) -> float:
    """What the least of the edges write at all tokens, by so many shares of them; the orders of the edges, the effects
    of a part of the sources, and predictions of a step."""
    part = pairs * min(PART_SOURCES / max(n_sources, 1), 1)
    return (
        tokens * orders * 4.0 * target.width + 150 * n_edges + 40 * part + 8.0 * min(2048 * target.d_sae, STEP_ENTRIES)
    )


def ablations(size: ModelSize, side: Side, context: int, n_tokens: float, examples_bytes: float) -> float:
    """Tokens and contexts taken from examples: the model to its logits on a few sequences, one SAE's pre-activations
    there, the text and the examples."""
    tokens = EXAMPLE_SEQUENCES * context
    passed = max(size.passed(tokens, context) + 12.0 * tokens * size.vocabulary, size.passed(4 * tokens, context))
    return size.loaded() + passed + 2 * side.weights + 8.0 * tokens * side.d_sae + 8 * n_tokens + 2 * examples_bytes


def transcoder(
    size: ModelSize, theirs: Side, target: Side, shape: Shape, step: int, context: int, tests: float
) -> float:  # fmt: skip
    """A transcoder beside a connector: the model's passes, a shard of activations at both hooks and one being filled,
    the SAEs, the connector, and the dense latents of a step."""
    shard = 2 * 4.0 * SHARD_TOKENS * (theirs.width + target.width)
    dense = 4.0 * step * (8 * shape.d_target + 2 * target.d_sae + 3 * theirs.d_sae + 6 * target.width)
    saes = 2 * (theirs.weights + target.weights)
    return COMPILED + size.loaded() + size.passed(step, context, 2) + shard + dense + saes + 8.0 * shape.weights + tests


def hidden(n_hidden: int, places: int, n_held_out: float, weights: int) -> float:
    """Hidden units looked at like latents. They are dense: half of them are active on a token, of all test tokens by
    token and by unit."""
    return examples(n_hidden, places, n_hidden / 2, n_held_out) + n_held_out / 2 * 12.0 * n_hidden + 8.0 * weights


def traced(size: ModelSize, layers: int, sources: list[Side], target: Side, shape: Shape, context: int) -> float:
    """A prompt's graph: the model with what all its layers keep for the way back, the SAEs, the connector, what it
    predicts without each of many sources, and the links between all that is active."""
    links = 300 * context * target.l0 * sum(side.l0 for side in sources)
    dense = 3 * 4.0 * min(4096 * shape.d_target, STEP_ENTRIES)
    saes = 2 * sum(side.weights for side in [*sources, target])
    kept = layers * size.passed(context, context) + 24.0 * context * size.vocabulary
    return COMPILED + size.loaded() + kept + saes + 8.0 * shape.weights + dense + links


def graph_page(graph_bytes: float) -> float:
    """A prompt's graph as objects, and its page as text and as bytes."""
    return 12 * graph_bytes + 5e7


def blind(n_edges: float, examples_bytes: float) -> float:
    """Verdicts by target and source as Python objects, and the examples of both sides."""
    return COMPILED + 400.0 * n_edges + 2 * examples_bytes


def qk(size: ModelSize, side: Side, tokens: float, context: int, latents: int, step: int) -> float:
    """A layer's heads: the model, the stream, a tile of pre-activations, where each sequence's latents begin, the
    decoder as a head reads it, and the first-order effects of all pairs of the latents that are looked at."""
    stream = 12.0 * tokens * side.width + tokens * side.l0 * 60
    tile = 4.0 * min(tokens, 4096) * side.d_sae
    starts = 8.0 * side.d_sae * (tokens / context)
    pairs = 12.0 * min(latents, side.d_sae) ** 2 + 2048.0 * context * side.l0
    pattern = 32.0 * size.heads * context**2
    return (
        COMPILED
        + size.loaded()
        + size.passed(step, context)
        + stream
        + tile
        + starts
        + pairs
        + pattern
        + 3 * side.weights
    )


def moved(size: ModelSize, source: Side, target: Side, kept: int, step: int, context: int) -> float:
    """What heads move: the model, the SAEs, each latent as a value and each target as heads read it, pairs of head and
    latent of some queries, patterns of a step, and a shard of what is kept."""
    values = 4.0 * size.d_model * (source.d_sae + size.heads * target.d_sae / max(size.heads, 1))
    pairs = 6 * 4.0 * PAIR_ENTRIES
    patterns = 16.0 * size.heads * step * context
    parts = 4.0 * 10 * context * target.d_sae
    shard = SHARD_TOKENS * 40.0 * kept
    sae = 2 * (source.weights + target.weights)
    return COMPILED + size.loaded() + size.passed(step, context) + values + pairs + patterns + parts + shard + sae


def computed_pairs(size: ModelSize, d_source: int, d_target: int) -> float:
    """What is dense of them."""
    return 4.0 * d_source * d_target * (2 * size.heads + 5)


def computed_edges(size: ModelSize, source: Side, target: Side, n_tokens: float, kept: int) -> float:
    """Edges through attention that are computed: of each head's latents and all targets how often both are active,
    twice while a step is added; claims, with and without that, and one head's weights."""
    pairs = computed_pairs(size, source.d_sae, target.d_sae)
    latents = n_tokens * (48.0 * kept + 48 * target.l0)
    saes = 2 * (source.weights + target.weights)
    return COMPILED + size.loaded() + pairs + latents + saes + 8.0 * 2048 * target.d_sae


def moved_effects(source: Side, target: Side, groups: int, readings: int) -> float:
    """Dense effects through attention, by group of documents: their sums, then what is not zero of them."""
    return 2 * 4.0 * groups * source.d_sae * target.d_sae * readings


def moved_cards(size: ModelSize, source: Side, target: Side, edges: float, context: int) -> float:
    """So many edges looked at: computed edges and effects, dense; by edge distances, tokens, places and sentences; and
    the text's latents of one sequence, dense."""
    dense = 4 * 4.0 * source.d_sae * target.d_sae
    each = 12.0 * context + 100 * size.heads + 20_000
    return dense + edges * each + 8.0 * context * source.d_sae + 4.0 * 40 * size.heads * target.d_sae


def moved_page(written: float) -> float:
    """Edges through heads, of files of this size, as objects and as the page has them."""
    return 24.0 * written


def norms(size: ModelSize, hooks: int, tokens: float, step: int, context: int) -> float:
    """Norms at hooks of all layers: the model, its passes, and a number for each token and hook."""
    return size.loaded() + size.passed(step, context) + 8.0 * tokens * hooks


def vocabulary(size: ModelSize) -> float:
    """A tokenizer, and the text of each of its tokens."""
    return LIBRARIES + 400.0 * size.vocabulary


def stability(d_source: int, d_target: int) -> float:
    """Fits from dense products of halves: what a fit takes, and the products of all documents and of two halves."""
    return COMPILED + exact(d_source, d_target) + 3 * 8.0 * d_source * (d_source + d_target)


def effects(
    size: ModelSize, sources: list[Side], target: Side, n_tokens: float, step: int, context: int,
    changes: float = CHANGES,
) -> float:  # fmt: skip
    """Sparse effects: an open block, and the changes that the ablations of a part of the sources make."""
    return block(size, sources, target, n_tokens, step, context) + changes
