"""Whether every number of a model comes from its files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from saelink.errors import SaelinkError

SHOWN = 3
"""Names of tensors in a line."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
"""What wrappers around a model write into its tensors' names: torch.compile's, then those of parallel training."""


def check_loaded(where: str, hf_model: Any, loading: dict[str, Any]) -> None:
    """Raise SaelinkError for tensors that transformers had to make up, because no file has them in their shape.

    `loading` is what `from_pretrained` gives with `output_loading_info`. Tied tensors are one.
    """
    total = len({id(tensor) for tensor in hf_model.state_dict(keep_vars=True).values()})
    other = sorted(loading["mismatched_keys"])
    if other:
        name, there, here = other[0]
        raise SaelinkError(
            f"{where}: {_counted(len(other), total)} another shape in its files than its config.json says: {name} "
            f"{list(there)} there, {list(here)} here"
            f"{f'; and {_listed(key for key, *_ in other[1:])}' if other[1:] else ''}"
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise SaelinkError(
            f"{where}: {_counted(len(missing), total)} no values in its files: {_listed(missing)}; "
            f"{_cure(missing, loading['unexpected_keys'])}"
        )


def check_sizes(where: str, config: Any, folder: Path) -> None:
    """Raise SaelinkError for a config that asks for more than the files in its folder can hold, at a bit a number.

    transformers would make room for all of it before it compares.
    """
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None)
    held = 8 * sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    for name in ("vocab_size", "intermediate_size", "num_hidden_layers"):
        size = getattr(text, name, None)
        if isinstance(size, int) and isinstance(width, int) and held and size * width > held:
            raise SaelinkError(
                f"{where}: its files are too small for its config.json ({name}={size}, hidden_size={width}); they are "
                "cut short, or the config is another model's"
            )


def check_finite(where: str, hf_model: Any) -> None:
    """Raise SaelinkError for weights that are not all numbers."""
    import torch

    broken = [name for name, tensor in hf_model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise SaelinkError(
            f"{where}: {_counted(len(broken), len(hf_model.state_dict()))} values that are not finite: "
            f"{_listed(broken)}; take a checkpoint from before its training diverged"
        )


def unused(loading: dict[str, Any]) -> str | None:
    """What to say of tensors in the files that the model has no place for."""
    names = sorted(loading["unexpected_keys"])
    return f"{len(names):,} tensors of its files are not part of the model: {_listed(names)}" if names else None


def _counted(n: int, total: int) -> str:
    return f"{n:,} of the model's {total:,} tensors {'has' if n == 1 else 'have'}"


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _cure(missing: list[str], there: Collection[str]) -> str:
    """How to get them: the files may have them by other names."""
    fronts = [name.removesuffix(missing[0]) for name in there if name.endswith(f".{missing[0]}")]
    for part in (*fronts, *WRAPPERS):
        if set(missing) <= {name.replace(part, "") for name in there}:
            how = f", as model.{part}save_pretrained(FOLDER) does" if part in fronts else ""
            return f"its files have them with {part} in their names: save the model without it{how}"
    if there:
        return (
            f"its files have others, such as {sorted(there)[0]}: they are of another architecture than its config.json"
        )
    return "some of its files are missing"
