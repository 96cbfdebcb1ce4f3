"""What each stage of a job costs: a small model of tokens, disk, memory and seconds.

Time is work over a rate of this machine (`rates.Rates`), with the share of that rate that the stage reaches. Of a token

    cache      2 x parameters of a block x blocks up to the last hook, and 4 x context x heads' width x blocks of scores
    encode     2 x width x latents, at each hook; on test documents the reconstruction too
    sae        6 passes of 2 x width x latents (forward, gradients of both matrices, dead latents), and Adam's step
    gram       l0 of the sources x (half of it + l0 of the target) products
    effects    for each ablation 2 x parameters of the MLP (of the block where the link is none) + 2 x width x latents
    oracle     the pass up to the target's block on test documents, and the target's encoding

The exact fit takes SOLVED seconds for each pair of latents, a trained one the bytes of its weights and moments for
every step and the products of its active latents. The shares were set by benchmarks/run.json (default model, two quiet
cores); tests/plan compares both. Disk follows from the formats: 2 bytes an activation, 4 an active latent (6 past
65,536), 8 a dense product or a pair of a sparse one. Memory is that of saelink/memory.py, on top of the program's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from saelink import memory
from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.connectors.wide_linear import WideLinearConnector
from saelink.evidence.claims import CLAIM_BYTES
from saelink.evidence.effectiveness import SEQUENCES
from saelink.evidence.stability import PAIRS, fits_of
from saelink.fit.products.sparse import is_wide
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.exact import ExactSolver
from saelink.interventions.block import Opened
from saelink.interventions.effects import FEWEST, NULL_TOKENS, NULLS_ON_ALL
from saelink.interventions.splice import LOGITS_TOKENS
from saelink.latents.examples import OCTAVES
from saelink.plan.rates import REFERENCE, Rates, pairs_of
from saelink.plan.sizes import Sizes

PROGRAM = 0.6e9
"""Memory of the program itself: Python, torch and what they keep."""

FORWARD, ENCODE, ABLATE, TRAIN = 0.85, 0.65, 0.9, 0.4
"""Shares of the matrix product's rate that stages reach."""

TOKENIZED = 200_000
"""Tokens read in a second."""

LOADED, READ = 3.0, 5e8
"""Seconds until a model is there, and bytes of its weights read in a second beside that."""

SOLVED, AGAIN = 1.2e-6, 0.25
"""Seconds of the exact fit for each pair of latents on the reference machine, and what a penalty after it takes."""

SHUFFLED = 4e9
"""Bytes of weights and moments that a step of Adam goes through in a second."""

MEASURED, READ_OFF, SHOWN = 2e-8, 2.2e-3, 3.5e-3
"""Seconds for a test token and target in evaluate, for a target in edges, for a card of the report."""

EDGES = 30
"""Edges of a target latent that are reckoned with."""

NAMED, LISTED = 4e-9, 2e-8
"""Seconds for an active latent on a token: counted for what its latent is called, and looked at for examples."""

UNEVEN = 0.15
"""How unevenly latents meet, see `met`."""


class Cost(NamedTuple):
    """What one stage takes."""

    tokens: float
    disk: float
    """Bytes written."""
    memory: float
    """Bytes at its peak, the program's own among them."""
    seconds: float


def met(pairs: float, events: float) -> float:
    """How many of `pairs` meet when there are `events` meetings, if some pairs meet far more often than others.

    Pairs whose rates are Gamma distributed with shape UNEVEN: 1 - (1 + events / pairs / UNEVEN)^-UNEVEN of them, 60% of
    the default's where 62% were counted. Latents at random meet fewer of theirs.
    """
    return pairs * (1 - (1 + events / max(pairs, 1) / UNEVEN) ** -UNEVEN)


class Costs:
    """The costs of one job's stages."""

    def __init__(self, cfg: Config, sizes: Sizes, rates: Rates):
        self.cfg, self.sizes, self.rates = cfg, sizes, rates
        solver = SOLVERS[cfg.solver.name](cfg.solver)
        self.wide = solver.goes_wide and _first(cfg.l1_alpha) > 0 and is_wide(sizes.d_source, sizes.d_target)
        kind: Any = WideLinearConnector if self.wide else CONNECTORS[cfg.connector.name]
        self.shape: memory.Shape = kind.shape(cfg.connector, sizes.d_source, sizes.d_target)
        self.gram = solver.uses_gram
        self._solver = solver

    # ----------------------------------------------------------------------- parts of several stages

    @property
    def of_pass(self) -> float:
        """Operations of the model for a token, up to the last hook."""
        sizes, model = self.sizes, self.sizes.model
        return sizes.blocks * (2.0 * model.block_parameters + 4.0 * sizes.context * model.d_heads)

    @property
    def load(self) -> float:
        """Seconds until the model is there."""
        return LOADED + self.sizes.model.parameters * self.sizes.model_bytes / READ

    @property
    def slower(self) -> float:
        """How many times longer compiled loops take here than on the reference machine."""
        return REFERENCE.pairs / self.rates.pairs

    def _encoding(self, side: memory.Side) -> float:
        return 2.0 * side.width * side.d_sae

    def _split(self, split: str) -> float:
        return memory.split(self.sizes.sources, self.sizes.target, self.sizes.tokens[split])

    @property
    def opened(self) -> Opened:
        """What lies between the SAEs, on the test tokens that are looked at."""
        return self._opened("test")

    def _opened(self, split: str) -> Opened:
        sizes, settings = self.sizes, self.cfg.verify
        n = int(min(settings.tokens if split == "test" else settings.fit_tokens, sizes.tokens[split]))
        return Opened(sizes.model.size, sizes.sources, sizes.target, n, sizes.forward_tokens, sizes.context)

    @property
    def inside(self) -> int:
        """Parameters of what runs anew when a source is taken out: the MLP, or the block."""
        chained = self.cfg.link.target == "hook_mlp_out" and len(self.sizes.sources) == 1
        return self.sizes.model.mlp_parameters if chained else self.sizes.model.block_parameters

    @property
    def ablations(self) -> float:
        """Of sources, on the test tokens that are looked at."""
        sizes = self.sizes
        return min(sizes.d_source * self.cfg.verify.tokens_per_source, self.opened.n_tokens * sizes.l0_source)

    @property
    def changed_pairs(self) -> float:
        """Of a source and a target that some ablation of it changes."""
        return met(self.sizes.d_source * self.sizes.d_target, self.ablations * 2 * self.sizes.target.l0)

    @property
    def of_whole(self) -> float:
        """Operations of the model for a token, up to its logits."""
        model = self.sizes.model
        return 2.0 * model.n_layers * model.block_parameters + 2.0 * model.vocabulary * model.d_model

    # ----------------------------------------------------------------------- stages

    def model(self) -> Cost:
        size = self.sizes.model.size
        disk = 4.0 * size.parameters if self.sizes.unpacked else 0.0
        return Cost(0, disk, PROGRAM + memory.model(size), 3 * self.load + disk / self.rates.disk)

    def tokens(self) -> Cost:
        n = self.sizes.n
        return Cost(n, 8 * n, PROGRAM + memory.tokens(n), 1 + n / TOKENIZED)

    def cache(self, hooks: list[int]) -> Cost:
        """Of those hooks together, by their places."""
        sizes = self.sizes
        widths = [sizes.sides[place].width for place in hooks]
        disk = 0.0 if self.cfg.stream else sizes.n * 2.0 * sum(widths)
        args = (sizes.model_bytes, widths, sizes.forward_tokens, sizes.context, sizes.tokens["train"])
        seconds = self.load + sizes.n * self.of_pass / (FORWARD * self.rates.gemm) + disk / self.rates.disk
        return Cost(sizes.n, disk, PROGRAM + memory.cache(sizes.model.size, *args), seconds)

    def sae(self, hook: int) -> Cost:
        settings, side, rows = self.cfg.sae, self.sizes.sides[hook], self.sizes.tokens["train"]
        n = settings.epochs * rows
        work = n * 6 * self._encoding(side) / (TRAIN * self.rates.gemm)
        steps = n / settings.batch_tokens * 8 * side.weights / SHUFFLED
        size = PROGRAM + memory.sae_training(side, settings.batch_tokens, rows)
        return Cost(n, side.weights / 2, size, work + steps)

    def encode(self, hook: int) -> Cost:
        sizes, side = self.sizes, self.sizes.sides[hook]
        disk = sizes.n * (side.l0 * (4 if side.d_sae <= 2**16 else 6) + 8)
        again = 2.0 * side.l0 * side.width * sizes.tokens["test"]
        seconds = 1 + (sizes.n * self._encoding(side) + again) / (ENCODE * self.rates.gemm) + disk / self.rates.disk
        size = PROGRAM + memory.encode(side, sizes.forward_tokens, sizes.tokens["train"])
        return Cost(sizes.n, disk, size, seconds)

    def products(self) -> Cost:
        """Dense or sparse ones."""
        sizes, n = self.sizes, self.sizes.tokens["train"]
        s, t, active = sizes.d_source, sizes.d_target, self.sizes.l0_source + self.sizes.target.l0
        events = pairs_of(n, sizes.l0_source, sizes.target.l0)
        if not self.wide:
            disk = 8.0 * s * (s + t)
            size = memory.gram(s, t, active, n)
        else:
            pairs = met(s * s, n * sizes.l0_source**2) + met(s * t, n * sizes.l0_source * sizes.target.l0)
            disk = 8 * pairs
            size = memory.products(pairs, t, min(n, 2**20) * active)
        return Cost(
            n, disk, PROGRAM + size + self._split("train"), 1 + events / self.rates.pairs + disk / self.rates.disk
        )

    def train(self) -> Cost:
        sizes, shape, solver = self.sizes, self.shape, self._solver
        t = sizes.d_target
        exact = self.slower * SOLVED * (shape.direct + shape.hidden) * t
        disk = 8.0 * EDGES * t if _first(self.cfg.l1_alpha) > 0 else 4.0 * shape.weights
        tokens = sizes.tokens["train"]
        if self.wide:
            n = sizes.tokens["train"]
            pairs = met(sizes.d_source**2, n * sizes.l0_source**2)
            pairs += met(sizes.d_source * t, n * sizes.l0_source * sizes.target.l0)
            size, seconds = memory.wide_exact(pairs, t), exact
        elif isinstance(solver, ExactSolver):
            size, seconds = solver.memory(shape), exact
        else:
            tokens = float(getattr(solver.config, "tokens", tokens))
            batch = getattr(solver.config, "batch_tokens", 1024)
            dense = 6.0 * shape.hidden * (sizes.l0_source + t) / (TRAIN * self.rates.gemm)
            sparse = 0.0 if shape.hidden else 3 * sizes.l0_source * t / self.rates.pairs / 20
            size, disk = solver.memory(shape), disk if solver.uses_gram else 4.0 * shape.weights
            seconds = tokens * (dense + sparse) + tokens / batch * 24.0 * shape.weights / SHUFFLED
            seconds += exact if solver.uses_gram else 0.0
        size += self._split("train") + self._split("validation")
        return Cost(tokens, disk, PROGRAM + size, 2 + seconds)

    def evaluate(self) -> Cost:
        n, t = self.sizes.tokens["test"], self.sizes.d_target
        seconds = 1 + self.slower * MEASURED * n * (self.shape.weights / self.sizes.d_source if self.wide else t)
        seconds += self.slower * 4e-9 * self.sizes.n * sum(side.l0 for side in self.sizes.sides)  # what they are called
        disk = 28.0 * t + 770.0 * (self.sizes.d_source + t)
        return Cost(n, disk, PROGRAM + memory.evaluate(self.shape, self._split("test")), seconds)

    def effects(self, null: bool = False, split: str = "test") -> Cost:
        """Of all ablations; on training text each one's changes are kept too."""
        sizes, settings, opened = self.sizes, self.cfg.verify, self._opened(split)
        n = opened.n_tokens
        each = min(settings.tokens_per_source, NULL_TOKENS) if null else settings.tokens_per_source
        few = max(sizes.d_source // 10, FEWEST) if null and sizes.d_source > NULLS_ON_ALL else sizes.d_source
        ablations = min(few * each, n * sizes.l0_source * few / sizes.d_source)
        work = ablations * (2.0 * self.inside + self._encoding(sizes.target)) / (ABLATE * self.rates.gemm)
        work += self.load + n * self.of_pass / (FORWARD * self.rates.gemm)
        changes = ablations * 2 * sizes.target.l0
        pairs = met(sizes.d_source * sizes.d_target, changes)
        disk = 28 * pairs + (4 * changes if split == "train" else 0)
        return Cost(n, disk, PROGRAM + memory.effects(*opened), work + disk / self.rates.disk)

    def verdicts(self) -> Cost:
        """Claims beside effects. Those of connectors that are no sum over sources take two predictions for each
        ablation, and of hidden units all pairs are claimed."""
        sizes, shape, once = self.sizes, self.shape, self.evaluate()
        kind, seconds, claimed = CONNECTORS[self.cfg.connector.name], once.seconds, 0.0
        if shape.hidden:
            claimed = CLAIM_BYTES * sizes.d_source * sizes.d_target
        if shape.hidden or kind.relu_output:
            work = 2.0 * shape.hidden * sizes.d_target / (TRAIN * self.rates.gemm)
            read = 4.0 * sizes.l0_source * (shape.hidden or sizes.d_target) / SHUFFLED
            seconds += 2 * self.ablations * (work + read)
        n_edges = EDGES * sizes.d_target
        size = memory.verdicts(shape, n_edges, self.changed_pairs, sizes.d_source, self._split("test")) + claimed
        return Cost(once.tokens, 48.0 * n_edges, PROGRAM + size, seconds)

    def stability(self) -> Cost:
        fit, products = self.train(), self.products()
        again = fits_of(self.cfg)
        exact = isinstance(self._solver, ExactSolver)
        seconds = again * AGAIN * fit.seconds + PAIRS * products.seconds if exact else again * fit.seconds
        size = max(fit.memory, products.memory) + (0 if self.wide else 8.0 * self.sizes.d_source**2)
        return Cost(fit.tokens, 13.0 * EDGES * self.sizes.d_target, size, seconds)

    def oracle(self) -> Cost:
        sizes, n = self.sizes, self.sizes.tokens["test"]
        work = n * (self.of_pass / FORWARD + self._encoding(sizes.target) / ENCODE) / self.rates.gemm
        size = memory.oracle(sizes.model.size, sizes.sources, sizes.target, n, sizes.forward_tokens, sizes.context)
        return Cost(n, 5 * n * sizes.target.l0, PROGRAM + size, self.load + 1 + work)

    def losses(self) -> Cost:
        """Cross-entropies of everything that is compared, on eval.ce_tokens test tokens."""
        sizes, n = self.sizes, min(self.cfg.eval.ce_tokens, self.sizes.tokens["test"])
        model = sizes.model
        size = memory.losses(model.size, sizes.target, n, max(LOGITS_TOKENS, sizes.context), sizes.context)
        return Cost(n, 24 * n, PROGRAM + size, self.load + 8 * n * self.of_whole / (FORWARD * self.rates.gemm))

    def outputs(self) -> Cost:
        """What the output owes to the edges: a pass forward, one backward for each draw and one for the true tokens."""
        sizes, settings = self.sizes, self.cfg.verify
        n, model = min(settings.output_tokens, sizes.tokens["test"]), sizes.model
        size = memory.gradients(model.size, model.n_layers, SEQUENCES * sizes.context, sizes.context)
        size += memory.owed(sizes.target, EDGES * sizes.d_target, sizes.context) + 8.0 * self.shape.weights
        seconds = self.load + (2 + settings.draws) * n * self.of_whole / (FORWARD * self.rates.gemm)
        return Cost(n, 32.0 * EDGES * sizes.d_target, PROGRAM + size, seconds)

    def examples(self, hook: int) -> Cost:
        sizes, side, kept = self.sizes, self.sizes.sides[hook], self.cfg.report
        places = kept.top + OCTAVES * kept.per_size + kept.random
        seconds = 1 + self.slower * LISTED * sizes.n * side.l0
        disk = side.d_sae * (400.0 + places * 55)
        return Cost(sizes.n, disk, PROGRAM + memory.examples(side.d_sae, places, side.l0, sizes.n), seconds)

    def edges(self) -> Cost:
        sizes, n = self.sizes, self.sizes.tokens["test"]
        edges = EDGES * sizes.d_target
        size = PROGRAM + memory.edges(self.shape, edges, n, self._split("test"))
        return Cost(n, 40.0 * edges + 1500.0 * sizes.d_target, size, self.slower * READ_OFF * sizes.d_target)

    def report(self) -> Cost:
        """The page, with the other penalties on it and the tokens and contexts that are ablated."""
        sizes, kept = self.sizes, self.cfg.report
        cards = min(kept.cards, sizes.d_target) + min(kept.cards, sizes.d_source)
        others = len(kept.l1_alphas) if isinstance(self._solver, ExactSolver) and not self.shape.hidden else 0
        again = AGAIN * self.train().seconds + self.evaluate().seconds + self.edges().seconds
        looked_at = 2.0 * kept.ablated * kept.ablated_examples * 21 * 2 * sizes.context
        ablated = 2 * self.load + looked_at * self.of_pass / (FORWARD * self.rates.gemm)
        seconds = others * again + SHOWN * self.slower * cards + (ablated if kept.ablated else 0)
        edges = (1 + others) * EDGES * sizes.d_target
        size = memory.report(edges, cards, 56, (1 + others) * self.shape.weights) + self._split("test")
        disk = cards * 7000.0 + others * (self.evaluate().disk + self.edges().disk)
        return Cost(0, disk, PROGRAM + size, seconds)


def _first(alpha: Any) -> float:
    return float(alpha[0] if isinstance(alpha, list) else alpha)
