"""Where Neuronpedia shows a hook's latents."""

from __future__ import annotations

from saelink.config.schema import Config
from saelink.saes.choice import at_layer, entry_of_hook, sae_choice
from saelink.saes.load import load_choice
from saelink.store.store import Store

NEURONPEDIA = "https://www.neuronpedia.org"


def neuronpedia_id(cfg: Config, store: Store, hook_name: str) -> str | None:
    """The model and source under which Neuronpedia shows a hook's latents, such as gpt2-small/6-res-jb."""
    found = entry_of_hook(cfg.sae.neuronpedia, hook_name)
    if found is not None:
        return at_layer(*found)
    choice = sae_choice(cfg, store, hook_name)
    return load_choice(cfg, choice).metadata.get("neuronpedia_id") if choice.exists else None


def neuronpedia_page(cfg: Config, store: Store, hook_name: str) -> str | None:
    """Where Neuronpedia shows a hook's latents: the address that takes /<latent>; None where it has none."""
    known = neuronpedia_id(cfg, store, hook_name)
    return None if known is None else f"{NEURONPEDIA}/{known}"
