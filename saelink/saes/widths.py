"""How many latents an SAE has and how many are active, without reading its weights."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from saelink.config.files import PACKAGE
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.fetch import ON_HUB, hub_address
from saelink.model.dimensions import Dimensions
from saelink.saes.choice import at_layer, entry_of_hook, hook_names, published
from saelink.saes.formats import FOLDERS

CONFIGS = ("cfg.json", "config.json")


class Widths(NamedTuple):
    """What is known of a hook's SAE; None for what is not."""

    d_sae: int | None
    l0: float | None
    trained: bool = False
    """Whether it has to be trained first."""


def sae_widths(cfg: Config, hook_name: str, width: int, fetch: bool = True) -> Widths:
    """Those of the SAE that reads `hook_name`, which is `width` wide: published, or from the head of its files.

    The hub is asked for these alone, unless `fetch` is false.
    """
    told = published(cfg, hook_name)
    d_sae, l0 = told.get("d_sae"), told.get("l0")
    if d_sae is not None and l0 is not None:
        return Widths(int(d_sae), l0)
    place = _place(cfg, hook_name)
    if place is None and cfg.sae.release is None and cfg.sae.train_missing:
        return Widths(cfg.sae.d_sae, float(cfg.sae.k), trained=True)
    read = Widths(None, None)
    here = place is not None and hub_address(place, "sae") is None
    if place is not None and (here or fetch):
        with suppress(SaelinkError, OSError, ValueError):  # unreadable or out of reach: it stays unknown
            read = _of_folder(Path(place), width) if here else _of_hub(place, width)
    return Widths(int(d_sae) if d_sae is not None else read.d_sae, l0 if l0 is not None else read.l0)


def widths_ahead(cfg: Config, model: Dimensions, hooks: list[str]) -> list[int] | None:
    """By hook the latents of its SAE as far as this machine knows them; None where one is not known."""
    found = [sae_widths(cfg, hook, model.width(hook.split(".", 2)[2]), False).d_sae for hook in hooks]
    known = [width for width in found if width is not None]
    return known if len(known) == len(hooks) else None


def _place(cfg: Config, hook_name: str) -> str | None:
    """Where its SAE is: a path or an address on the hub; None where there is none, or a release has it."""
    settings = cfg.sae
    named = entry_of_hook(settings.files, hook_name)
    names = [] if named is None else [at_layer(*named, published(cfg, hook_name).get("l0"))]
    if named is None and not settings.files:
        names = hook_names(hook_name)
    for name in names:
        if name.startswith(ON_HUB):
            return name
        if settings.hub is not None:
            return f"{ON_HUB}{settings.hub}{'@' + settings.revision if settings.revision else ''}/{name}"
        if settings.path is not None:
            inside = settings.path.removeprefix("package:")
            parent = PACKAGE / inside if inside != settings.path else Path(settings.path)
            if (parent / name).exists():
                return str(parent / name)
    return None


def _of_folder(path: Path, width: int) -> Widths:
    """From a folder's config, or the head of the weights' file."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        if file.name in CONFIGS:
            found = of_config(json.loads(file.read_text()))
            if found.d_sae is not None:
                return found
    for file in files:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                shapes = [tuple(opened.get_slice(name).get_shape()) for name in opened.keys()]  # noqa: SIM118
            return Widths(of_shapes(shapes, width), None)
    return Widths(None, None)


def _of_hub(place: str, width: int) -> Widths:
    """The same of a hub's folder: its config, or the first bytes of its weights."""
    from huggingface_hub import hf_hub_download, parse_safetensors_file_metadata

    address = hub_address(place, "sae")
    if address is None or Path(address.path).suffix:  # a single file, whose head is not to be had
        return Widths(None, None)
    where = {"repo_id": address.repository, "revision": address.revision}
    try:
        for name in CONFIGS:
            with suppress(_missing()):
                found = of_config(
                    json.loads(Path(hf_hub_download(filename=f"{address.path}/{name}", **where)).read_text())
                )
                if found.d_sae is not None:
                    return found
        for names in FOLDERS:
            for name in (name for name in names if name.endswith(".safetensors")):
                with suppress(_missing()):
                    read = parse_safetensors_file_metadata(filename=f"{address.path}/{name}", **where)
                    return Widths(of_shapes([tuple(t.shape) for t in read.tensors.values()], width), None)
    except Exception as error:  # the network, a gate, a file in another form
        raise SaelinkError(f"{place}: {error}") from None
    return Widths(None, None)


def _missing() -> type[Exception]:
    from huggingface_hub.errors import EntryNotFoundError

    return EntryNotFoundError


def of_config(config: dict[str, Any]) -> Widths:
    """What a config of SAELens, sparsify or dictionary_learning says."""
    inner = config.get("trainer", config)
    inner = config if not isinstance(inner, dict) else inner
    d_sae = next((inner[name] for name in ("d_sae", "num_latents", "dict_size") if inner.get(name)), None)
    if d_sae is None and inner.get("expansion_factor") and inner.get("d_in"):
        d_sae = inner["expansion_factor"] * inner["d_in"]
    more = inner.get("activation_fn_kwargs")
    k = inner.get("k", more.get("k") if isinstance(more, dict) else None)
    numbers = [float(each) if isinstance(each, int | float) else None for each in (d_sae, k)]
    return Widths(None if numbers[0] is None else int(numbers[0]), numbers[1])


def of_shapes(shapes: list[tuple[int, ...]], width: int) -> int | None:
    """The latents of an SAE with matrices of these shapes: what stands beside the width of what it reads."""
    found = [shape[0] if shape[1] == width else shape[1] for shape in shapes if len(shape) == 2 and width in shape]
    return max(found, default=None)
