"""What a latent's examples are made of, and what the latent does there: the stage `ablations`.

Token ablation: the latent's contribution, activation times decoder direction, is taken away at its hook on every
position that counts and the model runs to its end; what changes is the log-probability of each actual token. Context
ablation: a token before the example's is left out of the text and the latent's activation on the example's own token is
measured again; and how many of the last tokens it needs.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.job import Job, JobStage
from saelink.latents.encode import EncodeFacts
from saelink.latents.examples import Examples, ExamplesStage, load_examples
from saelink.latents.stream import WIDTH, WINDOW, text_of
from saelink.model.forward import load_forward
from saelink.model.load import load_bridge
from saelink.progress import Progress
from saelink.saes.load import pull_sae
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

ABLATIONS_FILE = "ablations.json"

DELETED = 20
"""Tokens before the example's that are left out in turn."""

KEPT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of last tokens, the example's own included, that the latent is measured with, the separator in front."""

NEEDED = 0.5
"""The context it needs keeps at least this share of its activation, and so do all longer ones."""

SEQUENCES = 8
"""Sequences of one pass to the logits."""


class AblationsFacts(TypedDict):
    hook_name: str
    latents: int
    examples: int


class AblationsStage(JobStage[AblationsFacts]):
    """The ablations of the latents `chosen` of an encode artifact, at their report.ablated_examples strongest examples.

    File `ablations.json`: by latent a list with, for each example, `place`; `tokens` [WIDTH], the change of each
    token's log-probability in nats (None outside the sequence); `context` [WIDTH], the activation without this token
    over that with all, None where none was left out; `kept`, the same with only so many last tokens (pairs);
    `needs`, the least number of them.
    """

    name = "ablations"
    version = 1

    def __init__(self, job: Job, latents: Artifact[EncodeFacts], chosen: list[int]):
        super().__init__(job)
        self._latents, self._chosen = latents, sorted(chosen)
        self._examples = ExamplesStage(job.cfg, job.store, latents.facts["hook_name"])

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        recipe = {
            "latents": self._chosen,
            "examples": cfg.report.ablated_examples,
            "drop_positions": cfg.data.drop_positions,
            "model_dtype": cfg.model.dtype.name,
        }
        return recipe | ({"begins_with_bos": True} if cfg.data.prepend_bos else {})

    def inputs(self) -> dict[str, str]:
        return {"examples": self._examples.key, "model": self.job.model.artifact.key}

    def about(self) -> str:
        return self._latents.manifest["about"]

    def need(self) -> Need:
        job, facts = self.job, self._latents.facts
        side = memory.Side(facts["width"], facts["d_sae"], facts["l0"])
        n_tokens = sum(facts["sequences"].values()) * facts["context_size"]
        shown = self._examples.pull().size
        needed = memory.ablations(job.size, side, facts["context_size"], n_tokens, shown)
        return Need(needed, "use a smaller data.context_size, or leave them out (report.ablated=0)")

    def make(self, draft: Draft) -> AblationsFacts:
        examples = load_examples(self._examples.pull())
        runs = _Runs(self.job, self._latents, examples, self._chosen)
        draft.save_json(ABLATIONS_FILE, runs.run())
        hook = self._latents.facts["hook_name"]
        return {"hook_name": hook, "latents": len(self._chosen), "examples": len(runs.places)}


class _Runs:
    """The model run on all the examples of one call."""

    def __init__(self, job: Job, latents: Artifact[EncodeFacts], examples: Examples, chosen: list[int]):
        self.job, self.hook = job, latents.facts["hook_name"]
        self.context = latents.facts["context_size"]
        self.separator = job.tokens.facts["separator_id"]
        self.text = torch.from_numpy(text_of(job.tokens)).long()
        self.sae = pull_sae(job.cfg, job.store, self.hook)
        self.places = [
            (latent, place)
            for latent in chosen
            for place in examples.top_place[latent, : job.cfg.report.ablated_examples].tolist()
            if place >= 0
        ]

    def run(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        with self.job.observer.progress("ablations", len(self.places), "examples") as bar, torch.inference_mode():
            changes = self._token_ablation(bar)
            forward = load_forward(self.job.cfg, self.job.model, [self.hook], self.job.device)
            for (latent, place), change in zip(self.places, changes, strict=True):
                context = self._context_ablation(forward, latent, place)
                found.setdefault(str(latent), []).append({"place": place, "tokens": change, **context})
                bar.advance(0)
        return found

    def _sequence(self, place: int, behind: int) -> torch.Tensor:
        """The tokens of the place's sequence up to `behind` tokens behind it."""
        begin = place // self.context * self.context
        return self.text[begin : min(place + behind + 1, begin + self.context)]

    def _token_ablation(self, bar: Progress) -> list[list[float | None]]:
        bridge = load_bridge(self.job.cfg, self.job.model, self.job.device)
        changes: list[list[float | None]] = []
        for first in range(0, len(self.places), SEQUENCES):
            part = self.places[first : first + SEQUENCES]
            ids = _padded([self._sequence(place, WINDOW) for _, place in part], self.separator).to(self.job.device)
            of = torch.tensor([latent for latent, _ in part], device=self.job.device)

            def remove(acts: torch.Tensor, of: torch.Tensor = of, **_: object) -> torch.Tensor:
                values = self._values(acts.flatten(2).flatten(0, 1), of.repeat_interleave(acts.shape[1])).view(
                    acts.shape[:2]
                )
                values[:, : self.job.cfg.data.drop_positions] = 0
                direction = self.sae.W_dec.to(acts.device)[of]
                flat = acts.flatten(2)  # heads side by side
                units = self.sae.units(flat.flatten(0, 1))
                factor = 1.0 if units is None else units.scale.view(*values.shape, 1)
                return (flat - (values[..., None] * factor * direction[:, None]).to(acts.dtype)).view(acts.shape)

            clean = _log_probabilities(bridge(ids), ids)
            ablated = _log_probabilities(bridge.run_with_hooks(ids, fwd_hooks=[(self.hook, remove)]), ids)
            difference = (ablated - clean).cpu()
            for row, (_, place) in enumerate(part):
                at, length = place % self.context, len(self._sequence(place, WINDOW))
                window = range(at - WINDOW, at + WINDOW + 1)
                changes.append([round(difference[row, i - 1].item(), 5) if 1 <= i < length else None for i in window])
            bar.advance(len(part))
        return changes

    def _values(self, acts: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """[n] what latent of[i] of the SAE is on acts[i]."""
        sae = self.sae.to(str(acts.device), acts.dtype)
        row, latent, value = sae.encode_sparse(acts)
        mine = latent == of[row]
        return torch.zeros(len(acts), dtype=value.dtype, device=acts.device).index_put_((row[mine],), value[mine])

    def _context_ablation(self, forward: Any, latent: int, place: int) -> dict[str, Any]:
        whole = self._sequence(place, 0)
        last = len(whole) - 1
        deleted = list(range(max(last - DELETED, 1), last))
        kept = [m for m in KEPT if m <= last]
        first = whole[:1] if self.job.cfg.data.prepend_bos else torch.tensor([self.separator])
        texts = [whole, *(torch.cat([whole[:k], whole[k + 1 :]]) for k in deleted)]
        texts += [torch.cat([first, whole[-m:]]) for m in kept]
        ends = torch.tensor([len(text) - 1 for text in texts])
        acts = forward(_padded(texts, self.separator).to(self.job.device))[self.hook]
        at_end = acts[torch.arange(len(texts)), ends.to(acts.device)].float()
        values = self._values(at_end, torch.full((len(texts),), latent, device=at_end.device)).cpu()
        base = max(values[0].item(), 1e-30)
        shares = [round(value / base, 4) for value in values[1:].tolist()]
        context: list[float | None] = [None] * WIDTH
        for k, share in zip(deleted, shares, strict=False):
            if k - last + WINDOW >= 0:
                context[k - last + WINDOW] = share
        pairs = list(zip(kept, shares[len(deleted) :], strict=True))
        needs = len(whole)
        for m, share in reversed(pairs):
            if share < NEEDED:
                break
            needs = m
        return {"context": context, "kept": pairs, "needs": needs}


def _padded(texts: list[torch.Tensor], separator: int) -> torch.Tensor:
    """[n, longest] the texts, filled up behind their ends, where nothing looks back from."""
    return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=separator)


def _log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[n, length - 1] log-probability in nats of every actual next token."""
    logits = logits[:, :-1].float()
    return logits.gather(2, ids[:, 1:, None]).squeeze(2) - logits.logsumexp(2)
