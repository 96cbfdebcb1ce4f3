"""One layer's attention inside Hugging Face's own model, opened where queries, keys and values meet.

transformers' attention modules hand queries, keys and values, positions and norms in them, to a function that is chosen
by name. The one module gets a function of ours, all others keep theirs: so everything that an architecture does before
and after is its own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from saelink.errors import SaelinkError
from saelink.model.info import ModelInfo
from saelink.model.probe import (
    SeenError,
    at_positions,
    by_token,
    first_of,
    listen,
    listen_to_arguments,
    probe_ids,
)

IMPLEMENTATION = "saelink"
"""The name under which transformers knows our function."""

PROJECTED = 4096
"""Tokens that are made queries, keys and values of in one go."""


class Given(NamedTuple):
    """What the attention function is given."""

    query: torch.Tensor
    """[n, n_heads, context, d_head]"""
    key: torch.Tensor
    """[n, n_kv, context, d_head]"""
    value: torch.Tensor
    """[n, n_kv, context, d_head]"""
    mask: torch.Tensor
    """[context, context] or [n, 1, context, context], added to the scores."""
    scaling: float
    softcap: float | None

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """Queries times keys, scaled and capped as the model does it."""
        scores = scores * self.scaling
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def pattern(self) -> torch.Tensor:
        """[n, n_heads, context, context]"""
        keys = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)
        return torch.softmax(self.capped(self.query @ keys.transpose(2, 3)) + self.mask, -1)


class Projected(NamedTuple):
    """Queries [m, n_heads, d_head], keys and values [m, n_kv, d_head] of single tokens."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


Answer = Callable[[Given], torch.Tensor]
"""Of what is given the heads' sums of values [n, context, n_heads, d_head]."""


class OpenAttention:
    """Runs one layer's attention, or parts of it, by the model's own modules."""

    def __init__(self, hf_model: Any, block: Any, module: Any, norm: Any, post: Any, target: Any, n_heads: int):
        """`target` is the module whose output is attn_out; `norm` and `post` None where there is none."""
        self._model, self._block, self._module, self._target = hf_model, block, module, target
        self.norm, self.post, self.n_heads = norm, post, n_heads
        self.d_model = int(hf_model.get_input_embeddings().weight.shape[1])
        self._arguments: dict[str, Any] = {}
        self._length = 0
        with torch.inference_mode():
            self.look(probe_ids(hf_model)[:1].to(self.device))

    @property
    def device(self) -> str:
        return str(next(self._model.parameters()).device)

    def look(self, ids: torch.Tensor) -> tuple[torch.Tensor, Given, torch.Tensor, torch.Tensor]:
        """Of tokens [n, context] the stream in front [n, context, d], what attention is given, and gives; attn_out."""
        x: list[torch.Tensor] = []
        given: list[Given] = []
        before: list[torch.Tensor] = []
        out: list[torch.Tensor] = []

        def answer(these: Given) -> torch.Tensor:
            given.append(these)
            values = these.value.repeat_interleave(self.n_heads // these.value.shape[1], 1)
            return (these.pattern() @ values).transpose(1, 2)

        def keep(arguments: dict[str, Any]) -> None:
            self._arguments, self._length = arguments, ids.shape[1]

        def stop(tensor: torch.Tensor) -> None:
            out.append(tensor.clone())
            raise SeenError

        handles = [
            listen(self._block, "input", lambda tensor: x.append(tensor.clone())),
            listen_to_arguments(self._module, keep),
            listen(self._module, "output", lambda tensor: before.append(tensor.clone())),
            listen(self._target, "output", stop),
        ]
        self._run(ids, answer, handles)
        found = by_token(out[0], ids.shape)
        assert found is not None
        # The target may be the module itself, or one inside it: then it stopped before the module gave anything.
        return x[0], given[0], before[0] if before else found, found

    def untouched(self, ids: torch.Tensor) -> torch.Tensor:
        """[n, context, d] attn_out by the model's own attention function."""
        out: list[torch.Tensor] = []

        def stop(tensor: torch.Tensor) -> None:
            out.append(tensor.clone())
            raise SeenError

        with suppress(SeenError):
            handle = listen(self._target, "output", stop)
            try:
                self._model(ids, use_cache=False)
            finally:
                handle.remove()
        found = by_token(out[0], ids.shape)
        assert found is not None
        return found

    def permute(self, change: Callable[[Any], None]) -> None:
        """Change the module's weights, such as by putting them in a random order."""
        change(self._module)

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """[m, d] of the stream -> [m, d]: what attention reads of it."""
        return x if self.norm is None else self.norm(x)

    def project(self, normed: torch.Tensor, position: torch.Tensor) -> Projected:
        """Queries, keys and values of single tokens that attention reads as normed [m, d], at positions [m] < context.

        Positions are those of the sequences last looked at.
        """
        parts: list[Projected] = []
        for first in range(0, len(normed), PROJECTED):
            part = slice(first, first + PROJECTED)
            parts.append(self._project(normed[part], position[part].to(normed.device)))
        return Projected(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _project(self, normed: torch.Tensor, position: torch.Tensor) -> Projected:
        seen: list[Given] = []

        def answer(given: Given) -> torch.Tensor:
            seen.append(given)
            raise SeenError

        with suppress(SeenError):
            self._call(normed[None], position, answer)
        return Projected(*(each[0].transpose(0, 1) for each in seen[0][:3]))

    def finish(self, z: torch.Tensor) -> torch.Tensor:
        """[m, n_heads, d_head] sums of values -> [m, d] what the module gives, in front of a norm behind it."""
        parts: list[torch.Tensor] = []
        for part in z.split(PROJECTED):
            hidden = torch.zeros(1, len(part), self.d_model, device=part.device)
            position = torch.zeros(len(part), dtype=torch.int64, device=part.device)
            out = first_of(self._call(hidden, position, lambda _, part=part: part[None]))
            parts.append(out.reshape(len(part), -1))
        return torch.cat(parts)

    def out(self, z: torch.Tensor) -> torch.Tensor:
        """[m, n_heads, d_head] sums of values -> [m, d] at attn_out."""
        out = self.finish(z)
        return out if self.post is None else self.post(out)

    def _call(self, hidden: torch.Tensor, position: torch.Tensor, answer: Answer) -> Any:
        """The module on [1, m, d], each token at its position, with `answer` in the function's place."""
        arguments = {name: at_positions(value, self._length, position) for name, value in self._arguments.items()}
        arguments["hidden_states"] = hidden
        if "attention_mask" in arguments:
            arguments["attention_mask"] = None
        with _Answering(self._module, answer):
            return self._module(**arguments)

    def _run(self, ids: torch.Tensor, answer: Answer, handles: list[Any]) -> None:
        try:
            with _Answering(self._module, answer), suppress(SeenError):
                self._model(ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()


class _Answering:
    """While it lasts, one module's attention function is `answer`."""

    def __init__(self, module: Any, answer: Answer):
        self._module, self._answer, self._own = module, answer, module.config

    def __enter__(self) -> None:
        _register()
        config = copy.copy(self._own)
        config._attn_implementation = IMPLEMENTATION  # noqa: SLF001 (there is no other word for it)
        self._module.config = config
        self._module.saelink_answer = self._answer

    def __exit__(self, *problem: Any) -> None:
        self._module.config = self._own
        del self._module.saelink_answer


def _register() -> None:
    """Let transformers know the function by its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None,
    scaling: float | None = None, softcap: float | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    n, m = query.shape[2], key.shape[2]
    if attention_mask is None:
        mask = torch.zeros(n, m, device=query.device)
        mask.masked_fill_(torch.ones(n, m, dtype=torch.bool, device=query.device).triu(1), -torch.inf)
    elif attention_mask.dtype is torch.bool:
        mask = torch.zeros(attention_mask.shape, device=query.device).masked_fill_(~attention_mask, -torch.inf)
    else:
        mask = attention_mask
    scale = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    return module.saelink_answer(Given(query, key, value, mask, scale, softcap)), None


class _Call(NamedTuple):
    module: Any
    given: torch.Tensor
    """The first tensor, and what it held."""
    held: torch.Tensor
    out: torch.Tensor


def open_attention(hf_model: Any, info: ModelInfo, layer: int, where: str) -> OpenAttention:
    """The attention of a layer, its modules found by what they are given and give.

    Raises SaelinkError, which begins with `where`, for one that transformers does not let in, or that is not norm,
    attention, norm.
    """
    whole, target = (info.place(f"blocks.{layer}.{name}") for name in ("hook_resid_post", "hook_attn_out"))
    modules = dict(hf_model.named_modules())
    if whole is None or target is None or target.side != "output" or target.module not in modules:
        raise SaelinkError(f"{where} can't be opened: its output is no module's own")
    block = modules[whole.module]
    asked: list[tuple[Any, int]] = []
    calls: list[_Call] = []
    handles = []
    owners = [each for each in block.modules() if hasattr(each, "config")]
    own = {each: each.config for each in owners}
    _register()

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)), None)
        made = first_of(out)
        if given is not None and isinstance(made, torch.Tensor):
            calls.append(_Call(module, given, given.clone(), made.clone()))

    for each in owners:
        each.config = copy.copy(own[each])
        each.config._attn_implementation = IMPLEMENTATION  # noqa: SLF001
        each.saelink_answer = _asking(asked, each)
    handles = [each.register_forward_hook(after, with_kwargs=True) for each in block.modules()]
    try:
        with torch.inference_mode():
            hf_model(probe_ids(hf_model)[:1].to(next(hf_model.parameters()).device), use_cache=False)
    finally:
        for each in owners:
            each.config = own[each]
            del each.saelink_answer
        for handle in handles:
            handle.remove()
    if len(asked) != 1:
        raise SaelinkError(f"{where} can't be opened: transformers does not run it by a function that can be chosen")
    module, n_heads = asked[0]
    mine = [call for call in calls if call.module is module]
    if len(mine) != 1:
        raise SaelinkError(f"{where} runs {len(mine)} times in one pass; it can't be opened")
    start = next(call.held for call in calls if call.module is block)
    norm = _maker(calls, start, mine[0].held, where, "in front of")
    end = next(call.out for call in calls if call.module is modules[target.module])
    post = _maker(calls, mine[0].out, end.view(mine[0].out.shape), where, "behind")
    return OpenAttention(hf_model, block, module, norm, post, modules[target.module], n_heads)


def _asking(asked: list[tuple[Any, int]], module: Any) -> Answer:
    def answer(given: Given) -> torch.Tensor:
        asked.append((module, given.query.shape[1]))
        values = given.value.repeat_interleave(given.query.shape[1] // given.value.shape[1], 1)
        return (given.pattern() @ values).transpose(1, 2)

    return answer


def _maker(calls: list[_Call], start: torch.Tensor, end: torch.Tensor, where: str, side: str) -> Any:
    """The module that makes one tensor of another; None where they are equal."""
    if torch.equal(start, end):
        return None
    found = [c for c in calls if c.held.shape == start.shape == c.out.shape]
    found = [c for c in found if torch.equal(c.held, start) and torch.equal(c.out, end)]
    if not found:
        raise SaelinkError(f"{where} has more than a norm {side} it; it can't be split")
    return found[0].module
