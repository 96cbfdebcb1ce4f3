"""Whether the TransformerBridge around a model says what Hugging Face's own model says, hook by hook.

Every figure is a relative difference: the largest over tokens of |a - b| / |b|, in float32. A block's hooks also have
to add up: pre + attn = mid and mid + mlp = post, in parallel blocks pre + attn + mlp = post.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.errors import SaelinkError
from saelink.model.probe import BLOCK_HOOKS, Inside, Place, at_its_end, by_token

if TYPE_CHECKING:
    import torch

ByLayer = dict[int, "torch.Tensor"]

LIMIT = 1e-3
"""What differs by more is something else."""

DUST = 1e-6
"""Norms below this share of the largest are rounding."""

ADDS_UP = 1e-4
"""What a block's hooks may be off their sum, as a share of the largest of them."""

NORMALIZED = "hook_normalized"
"""A norm's input before its gain: the bridge's own; what Hugging Face's norm gives is that times the gain."""


class DisagreementError(SaelinkError):
    """The bridge, or another attention implementation, says something else than Hugging Face's own model."""


class Hooks(NamedTuple):
    """The hooks that agree."""

    names: list[str]
    """In full, such as blocks.3.hook_mlp_out."""
    places: dict[str, Place]
    """Where they are in Hugging Face's own model, by their name inside the block; one is missing where it is not the
    same place in all layers."""
    refused: dict[str, str]
    """Why others can't be used, by their name inside the block."""


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far a [..., width] is from b; a token whose b is next to nothing is measured by the others' size."""
    import torch

    norms = b.norm(dim=-1)
    some = norms[norms > DUST * norms.max()]  # an MLP may give nothing, or rounding, on most tokens
    size = float(some.median()) if len(some) else 0.0
    largest = ((a - b).norm(dim=-1) / norms.clamp(min=max(1e-2 * size, 1e-12))).max().item()
    return largest if torch.isfinite(torch.tensor(largest)) else float("inf")


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Logits without what all of a token's have in common, which changes no probability."""
    return logits - logits.mean(-1, keepdim=True)


def check_answers(where: str, inside: Inside) -> None:
    """Raise SaelinkError for a model whose answers are no numbers, or depend on tokens that come later."""
    import torch

    if not bool(torch.isfinite(inside.logits).all()):
        raise SaelinkError(f"{where}: its logits on a few tokens are not finite")
    half = inside.ids.shape[1] // 2  # up to there the third sequence is the first
    if half and difference(centred(inside.logits[2, :half]), centred(inside.logits[0, :half])) > LIMIT:
        raise SaelinkError(
            f"{where}: a token's logits change with the tokens behind it, so it is no causal language model (its "
            "config.json may lack is_decoder)"
        )


def check_attention(where: str, attention: str, own: Inside, eager: Inside) -> None:
    """Raise DisagreementError where a model's attention implementations are different models."""
    apart = difference(centred(eager.logits), centred(own.logits))
    if apart > LIMIT:
        raise DisagreementError(
            f"{where}: transformers computes two different models by its two ways of attention, {attention} and eager "
            f"(logits {apart:.2g} apart, relative, where {LIMIT:g} is allowed); take another model"
        )


def compare(where: str, bridge: Any, inside: Inside) -> Hooks:
    """The bridge's hooks that agree with Hugging Face's own model.

    Raises DisagreementError where its logits, or its hooks of a block, don't, and SaelinkError for blocks that don't
    add up.
    """
    import torch

    logits, seen, unseen = _run(bridge, inside)
    off = {"logits": difference(centred(logits), centred(inside.logits))}
    if inside.longer is not None:
        with torch.inference_mode():
            logits = at_its_end(bridge(inside.longer[0]))
        off["logits"] = max(off["logits"], difference(centred(logits), centred(inside.longer[1])))
    names: list[str] = []
    places: dict[str, Place] = {}
    refused = dict(unseen)
    same: dict[tuple[int, ...], tuple[Place | None, float]] = {}  # some hooks go by several names
    for name, tensors in seen.items():
        which = tuple(map(id, tensors.values()))
        if which not in same:
            same[which] = _place(tensors, inside)
        place, nearest = same[which]
        if place is not None:
            places[name] = place
        elif nearest > LIMIT and not (name.endswith(NORMALIZED) and _scaled(tensors, inside)):
            off[name] = nearest
            continue
        names.extend(f"blocks.{layer}.{name}" for layer in tensors)
    for name in _implied(seen, off):
        del off[name]
        names.extend(f"blocks.{layer}.{name}" for layer in seen[name])
    wrong = {name: figure for name, figure in off.items() if name in ("logits", *BLOCK_HOOKS) and figure > LIMIT}
    if wrong:
        raise DisagreementError(
            f"{where}: TransformerLens computes something else for {bridge.cfg.architecture} than transformers does "
            f"({_figures(wrong)}, relative, where {LIMIT:g} is allowed); take another model, or other versions of both"
        )
    for end in ("hook_resid_pre", "hook_resid_post"):
        if len(seen.get(end, ())) < bridge.cfg.n_layers:
            raise SaelinkError(f"{where}: TransformerLens shows no {end} of {bridge.cfg.architecture}'s blocks")
    _check_sums(where, bridge, seen)
    for name, figure in off.items():
        if name not in wrong and name != "logits":
            nearest = f" (the nearest is {figure:.2g} off)" if figure < float("inf") else ""
            refused[name] = f"is nothing that Hugging Face's own modules take or give{nearest}"
    return Hooks(sorted(names), places, refused)


def _run(bridge: Any, inside: Inside) -> tuple[torch.Tensor, dict[str, ByLayer], dict[str, str]]:
    """The bridge's logits on the probe, by hook and layer what its blocks' hooks see, and why others show nothing."""
    import torch

    names: dict[int, list[str]] = {}
    points: dict[int, Any] = {}
    for name, point in bridge.hook_dict.items():
        if name.startswith("blocks."):
            names.setdefault(id(point), []).append(name)
            points[id(point)] = point
    seen: dict[str, ByLayer] = {}
    unseen: dict[str, str] = {}

    def keeper(mine: list[str]) -> Any:
        def keep(given: Any, **_: object) -> Any:
            tensor = by_token(given, inside.ids.shape)
            copy = None if tensor is None else tensor.clone()  # it may be changed in place behind the hook
            for name in mine:
                layer, short = name.split(".", 2)[1:]
                if copy is not None:
                    seen.setdefault(short, {})[int(layer)] = copy
                elif isinstance(given, torch.Tensor):
                    unseen[short] = (
                        f"has shape {list(given.shape)}, not one vector for each of {list(inside.ids.shape)} tokens"
                    )
            return given

        return keep

    for number, point in points.items():
        point.add_hook(keeper(names[number]))
    with torch.inference_mode():
        logits = bridge(inside.ids)
    bridge.reset_hooks()
    for mine in names.values():
        for name in mine:
            short = name.split(".", 2)[2]
            if short not in seen:
                unseen.setdefault(short, "shows nothing in this model")
    return logits, seen, {name: why for name, why in unseen.items() if name not in seen}


def _place(tensors: ByLayer, inside: Inside) -> tuple[Place | None, float]:
    """The place that is nearest to a hook, if it is the hook; and how far off the nearest one is, layer by layer."""
    best, nearest = None, LIMIT
    for place, theirs in inside.tensors.items():
        figure = _furthest(tensors, theirs, nearest)
        if figure is not None and (best is None or figure < nearest):
            best, nearest = place, figure
    if best is not None:
        return best, nearest
    by_layer = []
    for layer, tensor in tensors.items():
        others = [theirs[layer] for theirs in inside.tensors.values() if layer in theirs]
        by_layer.append(min((difference(tensor, b) for b in others if b.shape == tensor.shape), default=float("inf")))
        if by_layer[-1] > LIMIT:
            break
    return None, max(by_layer)


def _furthest(tensors: ByLayer, theirs: ByLayer, limit: float) -> float | None:
    """The largest difference over layers, None as soon as it is above the limit."""
    furthest = 0.0
    for layer, tensor in tensors.items():
        other = theirs.get(layer)
        if other is None or other.shape != tensor.shape:
            return None
        furthest = max(furthest, difference(tensor, other))
        if furthest > limit:
            return None
    return furthest


def _scaled(tensors: ByLayer, inside: Inside) -> bool:
    """Whether in every layer some module gives the same up to a fixed gain and bias for each coordinate."""
    for layer, tensor in tensors.items():
        x = tensor.flatten(0, 1).double()
        x = x - x.mean(0)
        candidates = (theirs[layer] for theirs in inside.tensors.values() if layer in theirs)
        for other in candidates:
            if other.shape == tensor.shape:
                y = other.flatten(0, 1).double()
                y = y - y.mean(0)
                gain = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-30)
                if bool((y - gain * x).norm() <= LIMIT * y.norm()):
                    break
        else:
            return False
    return True


def _implied(seen: dict[str, ByLayer], off: dict[str, float]) -> list[str]:
    """Hooks that no module takes or gives, but that a block's other hooks, which agree, leave no choice for.

    Where a model scales what attention and MLP give before it adds them, for one.
    """
    return [
        name
        for name, (one, two) in {
            "hook_attn_out": ("hook_resid_pre", "hook_resid_mid"),
            "hook_mlp_out": ("hook_resid_mid", "hook_resid_post"),
        }.items()
        if name in off
        and not {one, two} & off.keys()
        and {one, two} <= seen.keys()
        and all(_gap([seen[one][at], seen[name][at]], seen[two][at]) <= ADDS_UP for at in seen[name])
    ]


def _gap(parts: list[torch.Tensor], total: torch.Tensor) -> float:
    """How far the parts are off their total, as a share of the largest of them, at the worst token."""
    import torch

    largest = torch.stack([part.norm(dim=-1) for part in (*parts, total)]).amax(0).clamp(min=1e-12)
    return ((sum(parts) - total).norm(dim=-1) / largest).max().item()


def _check_sums(where: str, bridge: Any, seen: dict[str, ByLayer]) -> None:
    """Raise SaelinkError for a block whose hooks don't add up."""
    pre, attn, mid, mlp, post = BLOCK_HOOKS
    if bridge.cfg.parallel_attn_mlp or mid not in seen:
        sums = [((pre, attn, mlp), post)]
    else:
        sums = [((pre, attn), mid), ((mid, mlp), post)]
    for parts, total in sums:
        for layer in range(bridge.cfg.n_layers):
            hooks = [seen.get(name, {}).get(layer) for name in (*parts, total)]
            tensors = [tensor for tensor in hooks if tensor is not None]
            gap = _gap(tensors[:-1], tensors[-1]) if len(tensors) == len(hooks) else 0.0
            if not gap <= ADDS_UP:
                raise SaelinkError(
                    f"{where}: in block {layer} of {bridge.cfg.architecture} {' + '.join(parts)} is not {total} "
                    f"({gap:.2g} off, relative, where {ADDS_UP:g} is allowed), as where a norm stands behind the sum; "
                    "blocks have to add to the residual stream"
                )


def _figures(wrong: dict[str, float]) -> str:
    return ", ".join(f"{name} by {figure:.2g}" for name, figure in wrong.items())
