"""A transcoder beside a connector, on the same test tokens: the stage `transcoder`.

A transcoder is a connector that somebody has fitted already, from source activations through latents of its own to
target activations; it knows nothing of the SAEs on either side. So both are compared where they can be: at the target's
activations, at the latents that the target SAE reads from them, and by what the model says when it goes on from there.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

import torch

from saelink import memory
from saelink.activations.cache import run_model, shards_of
from saelink.config.schema import Config
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.interventions.cross_entropy import BaselinesStage, baseline_predictions, compared_figures
from saelink.interventions.predictions import Replaced, compared
from saelink.interventions.splice import Splice, losses_need, spliced_tokens
from saelink.job import Job, JobStage
from saelink.latents.link import counted_split
from saelink.latents.metrics import ErrorSums
from saelink.latents.split import Tokens
from saelink.saes.choice import SAEChoice, located
from saelink.saes.load import load_choice, pull_sae
from saelink.saes.sae import SAE
from saelink.store.draft import Draft
from saelink.store.stage import Need

TRANSCODER_FILE = "transcoder.json"

ROWS = ("transcoder", "connector", "sae")
"""What stands side by side: the transcoder, the connector decoded by the target SAE, that SAE's own reconstruction."""


def _choice(cfg: Config) -> SAEChoice:
    assert cfg.transcoder.path is not None
    found = located(cfg.transcoder.path.replace("LAYER", str(cfg.layer)), "transcoder.path")
    assert found is not None
    return found


def _hook(job: Job) -> str:
    """The hook the transcoder reads. Raises SaelinkError where the model lacks it or the link leaves it open."""
    info, link = job.model, job.link
    if job.cfg.transcoder.hook is not None:
        full = f"blocks.{job.cfg.layer}.{job.cfg.transcoder.hook}"
        if full not in info.hooks:
            return info.hook(job.cfg.transcoder.hook, job.cfg.layer)
        return full
    if len(link.sources) != 1:
        raise SaelinkError(
            f"transcoder.hook=null: link={job.cfg.link.name} has {len(link.sources)} sources; name the hook it reads"
        )
    return link.sources[0]


class TranscoderFacts(TypedDict):
    tokens: int
    transcoder_fvu_acts: float
    connector_fvu_acts: float
    sae_fvu_acts: float


class TranscoderStage(JobStage[TranscoderFacts]):
    """The comparison of transcoder.path with the connector, on all test tokens that count.

    File `transcoder.json`: for each of ROWS `fvu_acts` (of the target's activations), `fvu_latents` (of the target
    latents that the connector explains, as the target SAE reads them from those activations; for the connector its own
    prediction), `l0` (active latents per token: the transcoder's own, the connector's sources, the target SAE's),
    and with eval.ce `ce` and `recovered` with its interval. Raises SaelinkError without transcoder.path.
    """

    name = "transcoder"
    version = 2

    def __init__(self, job: Job):
        super().__init__(job.measured)
        if job.cfg.transcoder.path is None:
            raise SaelinkError("transcoder.path=null: give the folder of a transcoder, or hf://owner/repository/folder")
        self._train, self._evaluate = TrainStage(job), EvaluateStage(job)
        self._choice, self._hook = _choice(job.cfg), _hook(job)

    def recipe(self) -> dict[str, Any]:
        return {"hook": self._hook, "ce": self.job.cfg.eval.ce, "sae_dtype": self.job.cfg.sae.dtype.name}

    def inputs(self) -> dict[str, str]:
        return {"connector": self._train.key, "evaluation": self._evaluate.key, "transcoder": self._choice.key}

    def about(self) -> str:
        return f"{self._choice.about} beside {self._evaluate.about()}"

    def need(self) -> Need:
        job, sides = self.job, self.job.sides
        theirs, step = load_choice(job.cfg, self._choice), job.cfg.runtime.forward_tokens
        side, context = memory.Side(theirs.d_in, theirs.d_sae, 0), sides.target.facts["context_size"]
        tests, target = sides.split_bytes("test"), sides.sizes[1]
        needed = memory.transcoder(job.size, side, target, shape_of(job.fit), step, context, tests)
        way_out = "use a smaller runtime.forward_tokens or SAEs with fewer latents"
        if not job.cfg.eval.ce:
            return Need(needed, way_out)
        losses = losses_need(job, way_out)
        return Need(
            max(needed, losses.bytes + 12.0 * job.cfg.eval.ce_tokens * target.width), f"{way_out}, or eval.ce=false"
        )

    def make(self, draft: Draft) -> TranscoderFacts:
        job = self.job
        self._evaluate.pull()
        width = job.sides.target.facts["width"]
        theirs = load_choice(job.cfg, self._choice)
        if theirs.d_out != width:
            raise SaelinkError(
                f"transcoder.path={job.cfg.transcoder.path}: it writes activations of {theirs.d_out}, the target hook "
                f"has {width}"
            )
        connector = fitted_connector(self._train.pull(), job.device)
        comparison = _Comparison(job, connector, theirs.to(job.device, torch.float32), self._hook)
        comparison.run()
        table = comparison.table()
        if job.cfg.eval.ce:
            for name, figures in _ce(job, comparison.theirs, self._hook).items():
                table[name] |= figures
        draft.save_json(TRANSCODER_FILE, table)
        acts = {f"{name}_fvu_acts": row["fvu_acts"] for name, row in table.items()}
        return cast("TranscoderFacts", {"tokens": comparison.tokens, **acts})


class _Acts:
    """Squared errors and variance of the target's activations, summed over tokens."""

    def __init__(self, width: int):
        self.n, self.total, self.energy = 0, torch.zeros(width, dtype=torch.float64), 0.0
        self.errors: dict[str, float] = dict.fromkeys(ROWS, 0.0)

    def add(self, true: torch.Tensor, made: dict[str, torch.Tensor]) -> None:
        self.n += len(true)
        self.total += true.double().sum(0)
        self.energy += true.double().square().sum().item()
        for name, acts in made.items():
            self.errors[name] += (true - acts).double().square().sum().item()

    def fvu(self, name: str) -> float:
        return self.errors[name] / (self.energy - self.total.square().sum().item() / self.n)


class _Comparison:
    """Both on the same tokens, shard by shard of what the model gives at the two hooks."""

    def __init__(self, job: Job, connector: Connector, theirs: SAE, hook: str):
        self._job, self._connector, self.theirs, self._hook = job, connector, theirs, hook
        self._ids = connector.target_ids.cpu()
        self._target_sae = pull_sae(job.cfg, job.store, job.link.target).to(job.device, torch.float32)
        self._acts = _Acts(self._target_sae.d_in)
        self._latents = {name: ErrorSums(len(self._ids)) for name in ROWS}
        self._active, self.tokens = 0, 0

    def run(self) -> None:
        """Add all test tokens that count."""
        job, step = self._job, self._job.cfg.runtime.forward_tokens
        context = job.tokens.facts["context_size"]
        pieces = iter(counted_split(job.cfg, job.sides, "test").explain(self._ids))
        waiting = next(pieces, None)
        shards = shards_of(job.tokens.facts["sequences"], context, ["test"])
        hooks = [self._hook, job.link.target]
        with job.observer.progress("transcoder", job.tokens.facts["tokens"]["test"]) as bar, torch.inference_mode():
            for shard, seen in run_model(job.cfg, job.store, job.tokens, hooks, shards, bar):
                low, high = shard.first * context, shard.last * context
                while waiting is not None:
                    here = ((waiting.row >= low) & (waiting.row < high)).nonzero().squeeze(1)
                    for start in range(0, len(here), step):
                        part = waiting.select(here[start : start + step])
                        x, true = (seen[hook].flatten(0, 1)[part.row - low].float().to(job.device) for hook in hooks)
                        self._add(part, x, true)
                    if waiting.row[-1] >= high:
                        break
                    waiting = next(pieces, None)

    def _add(self, part: Tokens, x: torch.Tensor, true: torch.Tensor) -> None:
        """Count some tokens: x [n, d_in] what the transcoder reads, true [n, width] the target's activations."""
        sae, scale = self._target_sae, self._job.sides.scales[-1]
        if self.theirs.d_in != x.shape[1]:
            raise SaelinkError(
                f"transcoder.path={self._job.cfg.transcoder.path}: it reads activations of {self.theirs.d_in}, "
                f"{self._hook} has {x.shape[1]}; transcoder.hook names another"
            )
        ids, units = self._ids.to(x.device), sae.units(true)
        codes, own = sae.encode(true), self.theirs.encode(x)
        predicted = self._connector(part.source.to(str(x.device)))
        mixed = codes.clone()  # latents that are not explained keep their value, as in cross-entropy
        mixed[:, ids] = predicted * scale
        made = {
            "transcoder": self.theirs.transcode(x),
            "connector": sae.decode(mixed, units),
            "sae": sae.decode(codes, units),
        }
        self._acts.add(true.cpu(), {name: tensor.cpu() for name, tensor in made.items()})
        read = {name: sae.encode(made[name])[:, ids] / scale for name in ROWS[::2]} | {"connector": predicted}
        for name, tensor in read.items():
            self._latents[name].add(tensor.cpu(), part.target)
        self._active += int((own > 0).sum())
        self.tokens += len(part)

    def table(self) -> dict[str, dict[str, float]]:
        """The figures of each of ROWS."""
        sides = self._job.sides
        l0 = {
            "transcoder": self._active / self.tokens,
            "connector": sum(side.facts["l0"] for side in sides.sources),
            "sae": sides.target.facts["l0"],
        }
        return {
            name: {"fvu_acts": self._acts.fvu(name), "fvu_latents": self._latents[name].fvu(), "l0": l0[name]}
            for name in ROWS
        }


def _ce(job: Job, theirs: SAE, hook: str) -> dict[str, dict[str, float]]:
    """Cross-entropy and its share recovered, of the transcoder's output in place of the target's activations."""
    found = baseline_predictions(BaselinesStage(job).pull())
    test = spliced_tokens(job, job.cfg.eval.ce_tokens)
    token_ids = job.tokens
    shards = shards_of(token_ids.facts["sequences"], test.ids.shape[1], ["test"])
    needed = [shard for shard in shards if shard.first < len(test.ids)]
    out = []
    with job.observer.progress("transcoder", test.ids.numel()) as bar:
        for _, seen in run_model(job.cfg, job.store, token_ids, [hook], needed, bar):
            rows = seen[hook].flatten(0, 1).float().to(theirs.W_enc.device)
            made = [theirs.transcode(part).cpu() for part in rows.split(job.cfg.runtime.forward_tokens)]
            out.append(torch.cat(made).view(*seen[hook].shape[:2], theirs.d_out))
    with Splice(job, test, 2) as splice:
        found |= compared(splice, {"transcoder": Replaced(torch.cat(out)[: len(test.ids)])})
    figures = compared_figures(found, test.document, job.cfg.eval.bootstrap)
    figures["connector"] = EvaluateStage(job).pull().json("ce.json")["connector"]
    shown = ["ce", *(f"{name}{end}" for name in ("recovered", "kl", "top1") for end in ("", "_low", "_high"))]
    return {name: {key: figures[name][key] for key in shown} for name in ROWS}
