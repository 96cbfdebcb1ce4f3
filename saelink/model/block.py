"""What a block computes between two of its hooks, with something taken out of single tokens.

`Chain` is an MLP with its norms, which takes one token at a time. `Attended` runs a whole block, attention included: a
token with something taken out stands as a copy behind its sequence, at its own position, and sees what the token saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from saelink.config.schema import Config, DType
from saelink.errors import SaelinkError
from saelink.model.info import ModelInfo
from saelink.model.load import load_hf
from saelink.model.probe import (
    Place,
    SeenError,
    at_positions,
    by_token,
    first_of,
    listen,
    listen_to_arguments,
    probe_ids,
)
from saelink.model.weights import permute_weights

MOST_MODULES = 4
"""Modules between two hooks of an MLP: norm, MLP, and in some models a norm behind it."""

COPIES = 512
"""Copies of tokens behind a sequence in one run of a block."""

STEP = 4096
"""Tokens of one pass through a chain."""

AGREES = 1e-4
"""Copies of tokens from which nothing is taken must give what the tokens give, within this share of its norm,"""

ROUNDED = 0.05
"""and within this one where the model computes in bfloat16."""


class Chain:
    """A module that takes one token at a time."""

    groups = None
    """Tokens may be asked for in any order."""

    def __init__(self, module: torch.nn.Module, x: torch.Tensor):
        """x [n, d_in]: the model's own activations at the source hook."""
        self.module, self._x = module, x

    def outputs(self) -> torch.Tensor:
        """[n, d_out] at the target hook."""
        return torch.cat([self.module(self._x[i : i + STEP]) for i in range(0, len(self._x), STEP)])

    def without(self, token: torch.Tensor, side: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """[m, d_out] at the target hook where `taken` [m, d_in] is taken out of each of the tokens [m]."""
        return self.module(self._x[token.to(self._x.device)] - taken)

    def without_all(self, token: torch.Tensor, taken: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same with `taken` [m, d_in] of every source hook, of which there is one."""
        return self.without(token, torch.zeros_like(token), taken[0])

    def permute(self) -> None:
        """Put the weights into a random order."""
        permute_weights(self.module)


class Attended:
    """A whole block, from several hooks to one; what it reads of other tokens stays as it is.

    Every source hook is held at the model's own activations, less what is taken out there: what one source writes into
    another inside the block is not counted as its effect on the target.
    """

    def __init__(
        self, hf_model: Any, info: ModelInfo, sources: list[str], target: str, ids: torch.Tensor, row: torch.Tensor,
        x: list[torch.Tensor], y: torch.Tensor, device: str,
    ):  # fmt: skip
        """Raises SaelinkError for hooks that aren't all outputs of one block's modules, or its input.

        ids [sequences, context]; of its positions, numbered through, `row` [n] count, and there x (by source) [n, d_in]
        and y [n, d_out] are the model's own activations.
        """
        layer = int(target.split(".")[1])
        self._model, self._ids, self._x, self._y, self._device = hf_model, ids, x, y, device
        modules = dict(hf_model.named_modules())
        whole = info.place(f"blocks.{layer}.hook_resid_post")
        ends = [None if _enters(hook, layer) else info.place(hook) for hook in sources]
        places = [*(place for place in ends if place is not None), info.place(target)]
        unknown = [hook for hook, end in zip(sources, ends, strict=True) if end is None and not _enters(hook, layer)]
        inside = [p is not None and whole is not None and _within(p, whole) for p in places]
        if whole is None or whole.side != "output" or unknown or not all(inside):
            raise SaelinkError(
                f"link: {' + '.join(sources)} -> {target} does not run from outputs of one block's modules (or its "
                "input) to another; effects of single edges can't be measured for it"
            )
        self.module = modules[whole.module]
        self._sources = [None if place is None else modules[place.module] for place in ends]
        last = places[-1]
        assert last is not None
        self._target = modules[last.module]
        context = ids.shape[1]
        self.groups = row // context
        self._position = row % context
        self._current = -1
        self._arguments: dict[str, Any] = {}
        with torch.inference_mode():
            self._check()

    def outputs(self) -> torch.Tensor:
        """[n, d_out] at the target hook."""
        return self._y

    def without(self, token: torch.Tensor, side: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """[m, d_out] at the target hook where `taken` [m, d_in] is taken out at source hook side[m] of each token."""
        side = side.to(self._device)
        return self.without_all(
            token, [torch.where((side == number)[:, None], taken, 0.0) for number in range(len(self._x))]
        )

    def without_all(self, token: torch.Tensor, taken: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same with `taken` [m, d_in] of every source hook; a sequence's tokens stand together."""
        out = torch.empty(len(token), self._y.shape[1], device=self._device)
        sequences, lengths = self.groups[token].unique_consecutive(return_counts=True)
        first = 0
        for sequence, length in zip(sequences.tolist(), lengths.tolist(), strict=True):
            for start in range(first, first + length, COPIES):
                part = slice(start, min(start + COPIES, first + length))
                out[part] = self._run(sequence, token[part], [each[part] for each in taken])
            first += length
        return out

    def permute(self) -> None:
        """Put the block's weights into a random order."""
        permute_weights(self.module)
        with torch.inference_mode():
            everything = torch.arange(len(self._y))
            nothing = torch.zeros(1, self._x[0].shape[1], device=self._device)
            parts = [
                self.without(part, torch.zeros_like(part), nothing.expand(len(part), -1))
                for part in everything.split(STEP)
            ]
        self._y = torch.cat(parts)

    def _check(self) -> None:
        """As many copies as are ever made at once, of the tokens of the last sequence, nothing taken out."""
        last = (self.groups == self.groups[-1]).nonzero().flatten()
        token = last[torch.arange(COPIES) % len(last)]
        own = self._y[token.to(self._device)]
        nothing = [torch.zeros(COPIES, x.shape[1], device=self._device) for x in self._x]
        try:
            found = self._run(int(self.groups[-1]), token, nothing)
            agrees = bool(((found - own).norm(dim=1) <= AGREES * own.norm(dim=1).clamp(min=1e-6)).all())
        except RuntimeError:  # sizes of its own that don't fit the longer sequence
            agrees = False
        if not agrees:
            raise SaelinkError(
                "link: this model's block gives something else for copies of tokens behind their sequence (it may know "
                "positions by other means than its arguments); effects of single edges can't be measured for it"
            )

    def _run(self, sequence: int, token: torch.Tensor, taken: Sequence[torch.Tensor]) -> torch.Tensor:
        """The target's activations at copies of some of a sequence's tokens; `taken` is of each source hook."""
        self._enter(sequence)
        position = self._position[token].to(self._device)
        at = token.to(self._device)
        given = [x[at] - each for x, each in zip(self._x, taken, strict=True)]
        arguments = dict(self._arguments)
        hidden = arguments["hidden_states"]
        copies = hidden[:, position]
        seen: list[torch.Tensor] = []
        handles = []
        for module, values in zip(self._sources, given, strict=True):
            if module is None:
                copies = values[None]
            else:
                handles.append(module.register_forward_hook(_put(values)))
        handles.append(listen(self._target, "output", lambda out: _stop(seen, out)))
        n = hidden.shape[1]
        index = torch.cat([torch.arange(n, device=self._device), position])
        extended = {name: at_positions(value, n, index) for name, value in arguments.items()}
        extended["hidden_states"] = torch.cat([hidden, copies], 1)
        extended["attention_mask"] = self._mask(arguments.get("attention_mask"), n, position)
        try:
            with suppress(SeenError):
                self.module(**extended)
        finally:
            for handle in handles:
                handle.remove()
        found = by_token(seen[0], torch.Size([1, len(index)]))
        assert found is not None
        return found[0, n:]

    def _enter(self, sequence: int) -> None:
        """Run the model on a sequence as far as the block, and keep what the block is given, by name."""
        if sequence == self._current:
            return

        def keep(arguments: dict[str, Any]) -> None:
            self._arguments = arguments
            raise SeenError

        handle = listen_to_arguments(self.module, keep)
        with suppress(SeenError):
            self._model(self._ids[sequence][None].to(self._device), use_cache=False)
        handle.remove()
        self._current = sequence

    def _mask(self, own: Any, n: int, position: torch.Tensor) -> torch.Tensor:
        """[1, 1, n + m, n + m] added to the scores: a copy sees what its token saw, itself in the token's place."""
        m = len(position)
        if isinstance(own, torch.Tensor) and own.dim() == 4:
            kept = own[0, 0, :n, :n]
            may = kept if kept.dtype is torch.bool else kept > torch.finfo(kept.dtype).min / 2
        else:
            may = torch.ones(n, n, dtype=torch.bool, device=self._device).tril()
        behind = may[position]
        behind[torch.arange(m, device=self._device), position] = False
        left = torch.cat([may, behind])
        right = torch.cat([may.new_zeros(n, m), torch.eye(m, dtype=torch.bool, device=self._device)])
        mask = torch.zeros(n + m, n + m, device=self._device)
        return mask.masked_fill_(~torch.cat([left, right], 1), torch.finfo(torch.float32).min)[None, None]


def _enters(hook: str, layer: int) -> bool:
    """Whether a hook is what a block is given."""
    return hook in (f"blocks.{layer}.hook_resid_pre", f"blocks.{layer - 1}.hook_resid_post")


def _within(place: Place, block: Place) -> bool:
    return place.side == "output" and (place.module == block.module or place.module.startswith(block.module + "."))


def _put(values: torch.Tensor) -> Callable[..., Any]:
    """A hook that gives the copies, the last tokens, these values."""

    def hook(_: Any, _args: Any, out: Any) -> Any:
        tensor = first_of(out).clone()
        tensor.view(-1, tensor.shape[-1])[-len(values) :] = values  # [1, tokens, width], or [tokens, width]
        return (tensor, *out[1:]) if isinstance(out, tuple) else tensor

    return hook


def _stop(seen: list[torch.Tensor], out: torch.Tensor) -> None:
    seen.append(out)
    raise SeenError


def load_attended(
    cfg: Config, info: ModelInfo, sources: list[str], target: str, ids: torch.Tensor, row: torch.Tensor,
    x: list[torch.Tensor], y: torch.Tensor, device: str,
) -> Attended:  # fmt: skip
    """A block between several hooks and one, attention included; see Attended for what it is given and raises."""
    hf_model = load_hf(cfg.model, info.artifact).hf_model
    return Attended(hf_model.to(device).float(), info, sources, target, ids, row, x, y, device)


class Steps(torch.nn.Module):
    """Modules one behind the other, [n, d] -> [n, d]."""

    def __init__(self, modules: list[torch.nn.Module], flat: bool):
        """flat: whether the model gives them [n, d]; else [1, n, d], a batch of one sequence, as experts insist on."""
        super().__init__()
        self.steps = torch.nn.ModuleList(modules)
        self.flat = flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x if self.flat else x[None]
        for step in self.steps:
            out = first_of(step(out))
        return out if self.flat else out[0]


def load_module(cfg: Config, info: ModelInfo, source: str, target: str, device: str) -> Steps:
    """What a block does between two hooks, [n, d_model] -> [n, d_model], token by token: its MLP, norms included.

    It is the chain of Hugging Face modules each of which is given just what the one before gave, found by running a few
    tokens. Raises SaelinkError where there is no such chain, where tokens are mixed (attention) or something is added,
    and where it gives something else token by token.
    """
    hf_model = load_hf(cfg.model, info.artifact).hf_model.to(device)
    return module_of(hf_model, info, source, target, AGREES if cfg.model.dtype is DType.float32 else ROUNDED)


def module_of(hf_model: Any, info: ModelInfo, source: str, target: str, within: float = AGREES) -> Steps:
    """The same of a model that is loaded already; `within` is how far it may be from what the model gives."""
    first, last = info.place(source), info.place(target)
    missing = SaelinkError(
        f"link: {source} -> {target} is no chain of modules that take one token at a time, such as an MLP; effects of "
        "single edges can't be measured for it"
    )
    if first is None or last is None or last.side != "output":
        raise missing
    device = next(hf_model.parameters()).device
    modules = dict(hf_model.named_modules())
    layer = target.split(".")[1]
    block = last.module.rsplit(f".{layer}.", 1)[0] + f".{layer}."
    calls: list[_Call] = []
    ends: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(tensor: torch.Tensor) -> None:
        ends.append((tensor, tensor.clone()))  # it may be changed in place

    def record(name: str) -> Callable[..., None]:
        def after(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            calls.append(_Call(name, given, first_of(out)))

        return after

    handles = [
        module.register_forward_hook(record(name), with_kwargs=True)
        for name, module in modules.items()
        if name.startswith(block)
    ]
    handles += [listen(modules[place.module], place.side, keep) for place in (first, last)]
    with torch.inference_mode():
        hf_model(probe_ids(hf_model)[:1].to(device), use_cache=False)
    for handle in handles:
        handle.remove()
    names = _chain(calls, ends[0][0], ends[1][0], 0) if len(ends) == 2 else None
    if names is None:
        raise missing
    steps = Steps([modules[name] for name in names], ends[0][0].dim() == 2)
    x, y = (by_token(value, torch.Size([1, value.shape[-2]])) for _, value in ends)
    assert x is not None and y is not None
    with torch.inference_mode():
        off = (steps(x[0]) - y[0]).norm()
    if not off <= within * y.norm():  # on few tokens an MLP may give nothing but 0
        raise missing
    return steps


class _Call(NamedTuple):
    """A module was run."""

    name: str
    given: list[torch.Tensor]
    out: Any


def _chain(calls: list[_Call], start: torch.Tensor, end: torch.Tensor, depth: int) -> list[str] | None:
    """The modules that make one tensor of another, each of what the one before gave and of nothing else."""
    takers = [call for call in calls if len(call.given) == 1 and call.given[0] is start]
    for call in sorted(takers, key=lambda call: call.name.count(".")):  # a module before those inside it
        if call.out is end:
            return [call.name]
        if isinstance(call.out, torch.Tensor) and depth < MOST_MODULES:
            rest = _chain(calls, call.out, end, depth + 1)
            if rest is not None:
                return [call.name, *rest]
    return None
