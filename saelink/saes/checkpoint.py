"""The state of an SAE's training, kept on the way: the same command goes on from it, and ends with the same bytes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import torch

from saelink.store.draft import Draft

SECONDS = 300.0
"""So often it is kept."""

MOMENTS = ("exp_avg", "exp_avg_sq")

NOTE = "note"
"""The tensor that holds what is no tensor, as the bytes of JSON."""


class Checkpoints:
    """Those of one training by sae-lens, in the draft of its SAE. A step has a file for the weights and one for each
    of Adam's moments, so that no more than one of them is held twice."""

    def __init__(self, draft: Draft, trainer: Any):
        self._draft = draft
        self._trainer = trainer
        self._kept = time.monotonic()

    def resume(self) -> int:
        """How many steps are done: the trainer is at the last step whose files are all whole, or as it was."""
        steps = sorted({int(found[1]) for name in self._draft.files if (found := re.match(r"step-(\d+)\.", name))})
        whole = [step for step in steps if all(name in self._draft for name in _names(step))]
        if not whole:
            return 0
        weights, *moments = (self._draft.tensors(name) for name in _names(whole[-1]))
        note: dict[str, Any] = json.loads(bytes(weights.pop(NOTE).tolist()))
        trainer = self._trainer
        trainer.n_forward_passes_since_fired = weights.pop("unfired").to(trainer.cfg.device)
        trainer.sae.load_state_dict(weights)
        names = [name for name, _ in trainer.sae.named_parameters()]
        done = torch.tensor(float(whole[-1]))
        state = {
            number: {"step": done.clone()} | {moment: kind[name] for moment, kind in zip(MOMENTS, moments, strict=True)}
            for number, name in enumerate(names)
        }
        trainer.optimizer.load_state_dict({"state": state, "param_groups": note["groups"]})
        trainer.lr_scheduler.load_state_dict(note["lr"])
        for name, state in note["coefficients"].items():
            trainer.coefficient_schedulers[name].load_state_dict(state)
        trainer.n_training_steps, trainer.n_training_samples = whole[-1], note["samples"]
        return whole[-1]

    def keep(self, step: int) -> None:
        """Keep the state behind so many steps, where it is time to."""
        if time.monotonic() - self._kept < SECONDS:
            return
        trainer, older = self._trainer, [name for name in self._draft.files if name.startswith("step-")]
        note = {
            "groups": trainer.optimizer.state_dict()["param_groups"],
            "lr": trainer.lr_scheduler.state_dict(),
            "coefficients": {name: each.state_dict() for name, each in trainer.coefficient_schedulers.items()},
            "samples": trainer.n_training_samples,
        }
        weights = dict(trainer.sae.state_dict())
        weights["unfired"] = trainer.n_forward_passes_since_fired
        weights[NOTE] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
        kinds = [weights]
        for moment in MOMENTS:
            state = trainer.optimizer.state
            kinds.append({name: state[each][moment] for name, each in trainer.sae.named_parameters()})
        for name, tensors in zip(_names(step), kinds, strict=True):
            self._draft.save_tensors(name, tensors)
        self._draft.remove(older)
        self._kept = time.monotonic()

    def forget(self) -> None:
        """The training is done."""
        self._draft.remove([name for name in self._draft.files if name.startswith("step-")])


def _names(step: int) -> list[str]:
    return [f"step-{step}.{kind}.safetensors" for kind in ("weights", *MOMENTS)]
