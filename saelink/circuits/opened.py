"""The model of a graph over several layers, opened: what its blocks add to the stream, their heads and their MLPs.

The residual stream is a sum: what enters the first block, and what every attention and MLP adds. That is checked on
the tokens themselves, so that an architecture that adds up otherwise is refused and never explained wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from saelink.attention.heads import Attention, attention_of
from saelink.config.schema import DType
from saelink.errors import SaelinkError
from saelink.job import Job
from saelink.model.block import Steps, module_of
from saelink.model.load import load_hf
from saelink.model.probe import SeenError, first_of, listen

ADDS_UP = 1e-4
"""What the parts of the stream may differ from it, as a share of its norm."""

Change = Callable[[torch.Tensor], torch.Tensor]
"""Of a hook's activations [n, context, d] what stands there instead."""


class Acts(NamedTuple):
    """What one block holds on some sequences, [n, context, d] each."""

    resid_pre: torch.Tensor
    attn_out: torch.Tensor
    mlp_out: torch.Tensor

    def mlp_in(self, parallel: bool) -> torch.Tensor:
        """What the MLP reads of the stream."""
        return self.resid_pre if parallel else self.resid_pre + self.attn_out


class OpenModel:
    """A model in float32 on the CPU, one copy for everything that is asked of it."""

    def __init__(self, job: Job):
        info = job.model
        exact = replace(job.cfg.model, dtype=DType.float32)
        self.info, self.device, self._cfg = info, "cpu", job.cfg
        self.parallel = info.parallel
        self.tokenizer, hf_model, _ = load_hf(exact, info.artifact)
        self.hf_model: Any = hf_model.to(self.device).float()
        self._modules = dict(self.hf_model.named_modules())
        self._heads: dict[int, Attention] = {}
        self._mlps: dict[int, Steps] = {}

    def attention(self, layer: int) -> Attention:
        """The attention of a layer. Raises SaelinkError for one that can't be split."""
        if layer not in self._heads:
            self._heads[layer] = attention_of(self._cfg, self.info, self.hf_model, layer)
        return self._heads[layer]

    def mlp(self, layer: int) -> Steps:
        """An MLP with its norms, [n, d] -> [n, d], from what it reads of the stream. Raises SaelinkError for none."""
        if layer not in self._mlps:
            source, target = (self.info.hook(name, layer) for name in ("mlp_in", "hook_mlp_out"))
            self._mlps[layer] = module_of(self.hf_model, self.info, source, target)
        return self._mlps[layer]

    def _module(self, layer: int, name: str) -> Any:
        """The module whose output is a hook of a block."""
        place = self.info.place(f"blocks.{layer}.{name}")
        if place is None or place.side != "output" or place.module not in self._modules:
            raise SaelinkError(
                f"layers: blocks.{layer}.{name} is no module's output in {self._cfg.model.path}; graphs over several "
                "layers need what attention and MLP add to the stream"
            )
        return self._modules[place.module]

    @contextmanager
    def _listening(self, layers: int, acts: dict[int, dict[str, torch.Tensor]]) -> Iterator[None]:
        """Keep what the first blocks hold while the model runs."""
        handles = []
        for layer in range(layers):
            seen = acts.setdefault(layer, {})
            block = self._module(layer, "hook_resid_post")
            handles.append(listen(block, "input", lambda x, s=seen: s.update(resid_pre=x.clone())))
            for name in ("attn_out", "mlp_out"):
                module = self._module(layer, f"hook_{name}")
                handles.append(listen(module, "output", lambda x, s=seen, n=name: s.update({n: first_of(x).clone()})))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(
        self, ids: torch.Tensor, layers: int, changes: dict[str, Change] | None = None, to_logits: bool = True
    ) -> Run:
        """Tokens [n, context] through the model; what the first `layers` blocks hold, with some hooks changed.

        `changes` are by hook: `hook_attn_out`, `hook_mlp_out`, or `mlp_in`, which is what the MLP alone reads: the
        stream past it stays. The logits are those of the last position, [n, vocabulary]; without `to_logits` the model
        stops behind these blocks, and they are empty.
        """
        ids = ids.to(self.device)
        seen: dict[int, dict[str, torch.Tensor]] = {}
        out = torch.zeros(len(ids), 0, device=self.device)
        with torch.inference_mode(), self._changing(changes or {}, ids.shape), self._listening(layers, seen):
            if to_logits:
                out = self.hf_model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            else:
                handle = listen(self._module(layers - 1, "hook_resid_post"), "output", _stop)
                with suppress(SeenError):
                    self.hf_model(ids, use_cache=False, logits_to_keep=1)
                handle.remove()
        shape = (*ids.shape, -1)
        acts = {
            layer: Acts(*(held[name].reshape(shape) for name in ("resid_pre", "attn_out", "mlp_out")))
            for layer, held in seen.items()
        }
        return Run(ids, acts, out)

    def check_sum(self, run: Run) -> None:
        """Raise SaelinkError where the blocks' parts don't add up to the stream."""
        for layer, acts in run.acts.items():
            if layer + 1 in run.acts:
                whole, after = sum(acts), run.acts[layer + 1].resid_pre
                if not (whole - after).norm() <= ADDS_UP * after.norm():
                    raise SaelinkError(
                        f"model.path={self._cfg.model.path}: block {layer} does not add attention and MLP to the "
                        "stream as they are; graphs over several layers are not drawn for it"
                    )

    @contextmanager
    def _changing(self, changes: dict[str, Change], shape: torch.Size) -> Iterator[None]:
        handles = []
        inside: list[bool] = []  # while an MLP is run by ourselves, whose modules have the same hooks

        def changed(hook: str) -> Callable[..., Any]:
            def after(_: Any, _args: Any, out: Any) -> Any:
                if inside:
                    return out
                own = first_of(out)
                new = changes[hook](own.reshape(*shape, -1)).reshape(own.shape)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            return after

        def reads(hook: str, layer: int) -> None:
            """The MLP's output is what it makes of a changed input, whoever else reads that."""
            module, kept = self.mlp(layer), list[torch.Tensor]()
            block = self._module(layer, "hook_resid_post")
            attention = self._module(layer, "hook_attn_out")
            handles.append(listen(block, "input", lambda x: kept.__setitem__(slice(None), [x])))
            if not self.parallel:
                handles.append(listen(attention, "output", lambda x: kept.append(first_of(x))))

            def after(_: Any, _args: Any, out: Any) -> Any:
                if inside:
                    return out
                own = first_of(out)
                x = torch.stack([part.reshape(*shape, -1) for part in kept]).sum(0)
                inside.append(True)
                new = module(changes[hook](x).flatten(0, 1)).reshape(own.shape)
                inside.clear()
                return (new, *out[1:]) if isinstance(out, tuple) else new

            handles.append(self._module(layer, "hook_mlp_out").register_forward_hook(after))

        try:
            order = sorted(changes, key=lambda hook: hook.endswith("mlp_out"))  # what it reads before what it gives
            for hook in order:
                _, number, name = hook.split(".", 2)
                if name == "mlp_in":
                    reads(hook, int(number))
                else:
                    inner = self._module(int(number), name)
                    handles.append(inner.register_forward_hook(changed(hook)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gradients(self, ids: torch.Tensor, layer: int, tokens: Callable[[torch.Tensor], list[int]]) -> Gradients:
        """How the next token's logits follow the stream behind a block, at every position of one prompt [context].

        `tokens` chooses, from the probabilities, those whose logits are asked for; each is less the mean logit.
        """
        leaf: list[torch.Tensor] = []

        def after(_: Any, _args: Any, out: Any) -> Any:
            leaf.append(first_of(out).detach().requires_grad_())
            return (leaf[0], *out[1:]) if isinstance(out, tuple) else leaf[0]

        handle = self._module(layer, "hook_resid_post").register_forward_hook(after)
        try:
            with torch.enable_grad():
                logits = self.hf_model(ids[None].to(self.device), use_cache=False, logits_to_keep=1).logits[0, -1]
        finally:
            handle.remove()
        logits = logits.float()
        chances = logits.detach().softmax(0)
        chosen = tokens(chances)
        found = [
            torch.autograd.grad(logits[token] - logits.mean(), leaf[0], retain_graph=True)[0][0].float()
            for token in chosen
        ]
        return Gradients(chosen, chances[chosen].tolist(), torch.stack(found), logits.detach())


def _stop(_: Any) -> None:
    raise SeenError


class Run(NamedTuple):
    """What the model holds on some sequences."""

    ids: torch.Tensor
    acts: dict[int, Acts]
    """By layer, of the first ones."""
    logits: torch.Tensor
    """[n, vocabulary] of the token behind the last."""


class Gradients(NamedTuple):
    """What the next token's logits make of the stream at a place."""

    tokens: list[int]
    probabilities: list[float]
    gradient: torch.Tensor
    """[tokens, context, d]"""
    logits: torch.Tensor
    """[vocabulary]"""
