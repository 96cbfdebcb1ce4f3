"""What is known of a model without loading it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from saelink.errors import SaelinkError
from saelink.model.probe import Place
from saelink.store.artifact import Artifact


def full_name(name: str, layer: int, parallel: bool) -> str:
    """`blocks.<layer>.<name>` of a link's hook at a layer, by the names of ModelInfo.hook."""
    if name == "mlp_in":
        name = "hook_resid_pre" if parallel else "hook_resid_mid"
    if name == "hook_resid_pre" and layer > 0:
        name, layer = "hook_resid_post", layer - 1
    return f"blocks.{layer}.{name}"


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading it."""

    artifact: Artifact
    n_layers: int
    d_model: int
    context_size: int | None
    """Longest context the model takes, in tokens; None when its config doesn't say."""
    parallel: bool
    """Whether attention and MLP read the same residual stream, side by side."""
    hooks: frozenset[str]
    """Those that show the same in Hugging Face's own model."""
    places: dict[str, Place]
    """Where in the Hugging Face model a block's hooks are, by the hook's name inside the block."""
    refused: dict[str, str]
    """Why other hooks can't be used, by the hook's name inside the block."""
    vocabulary: int
    """How many token ids the model knows."""

    def place(self, hook_name: str) -> Place | None:
        """Where in the Hugging Face model `blocks.<layer>.<name>` is; None where only the bridge knows."""
        _, layer, name = hook_name.split(".", 2)
        place = self.places.get(name)
        return None if place is None else place._replace(module=place.module.replace("*", layer))

    def check_ids(self, ids: Iterable[int], where: str) -> None:
        """Raise SaelinkError, which begins with `where`, for a token id that the model has no embedding for."""
        largest = max(ids, default=0)
        if largest >= self.vocabulary:
            raise SaelinkError(
                f"{where}: the tokenizer gives token {largest}, the model's embedding ends at {self.vocabulary - 1}; "
                "the tokenizer is another model's, or the model was not resized for tokens that were added to it"
            )

    def hook(self, name: str, layer: int) -> str:
        """Full name of a link's hook at `layer`; `mlp_in` is resid_pre in parallel blocks, else resid_mid.

        resid_pre goes by the name of the same tensor in the layer before, resid_post, so that both share artifacts.

        Raises SaelinkError when the layer or the hook does not exist.
        """
        if not layer < self.n_layers:
            raise SaelinkError(f"layer={layer}: the model has layers 0 to {self.n_layers - 1}")
        full = full_name(name, layer, self.parallel)
        name, layer = full.split(".", 2)[2], int(full.split(".")[1])
        if full not in self.hooks:
            if name in self.refused:
                raise SaelinkError(f"link: {full} {self.refused[name]}; it can't be explained")
            known = sorted(hook.split(".", 2)[2] for hook in self.hooks if hook.startswith(f"blocks.{layer}.hook_"))
            raise SaelinkError(f"link: the model has no hook {full}; block hooks here: {', '.join(known)}, mlp_in")
        return full
