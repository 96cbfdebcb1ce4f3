"""Which SAE a hook has: on disk, on the hub, in a release; whether it belongs here; the stage `sae` that trains one.

Reading needs nothing but the files; releases and training go through sae-lens (the extra `saelens`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.autoencoder import SAE
from saelink.cache import cache, cache_plan, shuffled_rows
from saelink.config import Config
from saelink.formats import EXTRA_FILES, FOLDERS, FORMATS, identity, known_folders, read_sae
from saelink.formats.base import UnreadableError
from saelink.formats.saelens import CONFIG_FILE, WEIGHTS_FILE, from_state, modern
from saelink.model import device_of, hub_errors
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store

if TYPE_CHECKING:
    import torch

NEURONPEDIA = "https://www.neuronpedia.org"

VERSION = 1

FILE_SUFFIXES = tuple(suffix for module in FORMATS.values() for suffix in getattr(module, "SUFFIXES", ()))


# --------------------------------------------------------------------------- which SAE a hook has


class SAEChoice(NamedTuple):
    """The SAE of a hook, before it is loaded or even trained."""

    key: str
    """Key of the `sae` artifact, or where it comes from and what identifies its contents there."""
    about: str
    path: Path | None = None
    """Its folder or file, if it is on disk."""
    hub: HubPlace | None = None
    """Where it is on the hub."""
    release: tuple[str, str] | None = None
    """Its release and id in sae-lens' directory."""

    @property
    def exists(self) -> bool:
        """Whether it need not be trained."""
        return self.path is not None or self.hub is not None or self.release is not None

    @property
    def where(self) -> str:
        """For a message: where it is."""
        if self.release is not None:
            return f"sae.release={self.release[0]} sae.id={self.release[1]}"
        if self.hub is not None:
            return f"hf://{self.hub.repository}/{self.hub.path}"
        return f"sae.path={self.path}"


class HubPlace(NamedTuple):
    """A folder or file in a hub repository."""

    repository: str
    commit: str
    path: str


def sae_choice(cfg: Config, store: Store, hook_name: str) -> SAEChoice:
    """Which SAE reads `hook_name`: what sae.release, sae.files, sae.hub or sae.path have for it, else a trained one.

    Raises SaelinkError when there is none and `sae.train_missing` is false.
    """
    settings = cfg.sae
    if settings.release is not None:
        chosen = _release_of(cfg, hook_name)
        if chosen is not None:
            return chosen
    tried = ""
    named = _of_hook(settings.files, hook_name)
    if named is not None:
        found = _located(cfg, at_layer(named[0], named[1], published(cfg, hook_name).get("l0")))
        assert found is not None
        return found
    if settings.files and not settings.train_missing:
        raise SaelinkError(f"sae.files: no file for {hook_name}; it has files for {', '.join(sorted(settings.files))}")
    if not settings.files and (settings.path is not None or settings.hub is not None):
        for name in _names(hook_name):
            found = _located(cfg, name, must=False)
            if found is not None:
                return found
        place = f"sae.hub={settings.hub}" if settings.hub is not None else f"sae.path={settings.path}"
        tried = f"{place}: no SAE for {hook_name}; its folder {hook_name} would hold {known_folders()}"
    if not settings.train_missing:
        raise SaelinkError((tried or f"sae.release: none is for {hook_name}") + "; sae.train_missing=true trains one")
    return SAEChoice(sae_plan(cfg, store, hook_name).key, "trained")


def at_layer(text: str, layer: int, l0: float | None = None) -> str:
    """A place in a folder or release: {layer} stands for the layer, or LAYER, which needs no quotes in a shell.

    {l0} stands for the published l0, which some folders are named by.
    """
    text = text.replace("{layer}", str(layer)).replace("LAYER", str(layer))
    return text if l0 is None else text.replace("{l0}", f"{l0:g}")


def _of_hook(table: Mapping[str, Any], hook_name: str) -> tuple[Any, int] | None:
    """What a table by hook has for this one, and its layer there: by its full name first, then by that in any block."""
    for hook, layer in _places(hook_name):
        for key in (f"blocks.{layer}.{hook}", hook):
            if key in table:
                return table[key], layer
    return None


def _places(hook_name: str) -> list[tuple[str, int]]:
    """The hook's name inside its block and the block, in both ways of naming a residual stream."""
    parts = [name.split(".", 2) for name in _names(hook_name)]
    return [(name, int(layer)) for _, layer, name in parts]


def _names(hook_name: str) -> list[str]:
    """The hook's name, and for a resid_post the name the same tensor has in the next layer."""
    block, layer, name = hook_name.split(".", 2)
    return [hook_name, f"{block}.{int(layer) + 1}.hook_resid_pre"] if name == "hook_resid_post" else [hook_name]


def _located(cfg: Config, place: str, must: bool = True) -> SAEChoice | None:
    """The SAE at a place in sae.hub or sae.path, or at an hf:// address; None where none is and none need be."""
    settings = cfg.sae
    if settings.hub is not None and not place.startswith("hf://"):
        return _on_hub(settings.hub, settings.revision, place, settings.name, must)
    if place.startswith("hf://"):
        return located(place, "sae.files", settings.name, must)
    parent = Path(settings.path or ".")
    if (settings.path or "").startswith("package:"):
        parent = Path(__file__).parent / (settings.path or "").removeprefix("package:")
    return located(str(parent / place), "sae.path", settings.name, must)


def located(place: str, field: str, about: str | None = None, must: bool = True) -> SAEChoice | None:
    """The SAE at hf://owner/repository[@revision]/path or in a folder or file.

    None where nothing is there and it need not be; otherwise SaelinkError, naming `field`.
    """
    if place.startswith("hf://"):
        owner, name, *rest = [*place.removeprefix("hf://").split("/", 2), "", ""][:3]
        name, _, revision = name.partition("@")
        if not rest[0] or not name or not owner:
            raise SaelinkError(f"{field}: {place} is not of the form hf://owner/repository/folder")
        return _on_hub(f"{owner}/{name}", revision or None, rest[0], about or place, must, field)
    path = Path(place)
    if not path.exists():
        if not must:
            return None
        raise SaelinkError(f"{field}: there is no {path}")
    key = ("file:" if path.is_file() else "folder:") + identity(path, field)
    return SAEChoice(key, about or path.name, path)


def _on_hub(
    repository: str, revision: str | None, path: str, about: str, must: bool, field: str = "sae.hub"
) -> SAEChoice | None:
    commit = hub_commit(field, repository, revision)
    if not must and not any(_fetch(repository, commit, f"{path}/{files[0]}") for files in FOLDERS):
        return None
    return SAEChoice(f"hub:{repository}@{commit}/{path}", about, hub=HubPlace(repository, commit, path))


def _release_of(cfg: Config, hook_name: str) -> SAEChoice | None:
    """What sae.release and sae.id have for a hook; given as one text each, they are for the hook that they name."""
    release, sae_id = cfg.sae.release, cfg.sae.id
    try:
        from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
        from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor, get_repo_id_and_folder_name
    except ModuleNotFoundError:
        raise SaelinkError(
            f"sae.release={release}: the directory of releases is sae-lens': `pip install 'saelink[saelens]'`"
        ) from None
    for hook, layer in _places(hook_name):
        names = [value.get(hook) if isinstance(value, Mapping) else value for value in (release, sae_id)]
        if None in names:
            continue
        name, entry = (at_layer(str(value), layer) for value in names)
        _check_release(name, entry)
        with hub_errors("sae.release", name):
            if not isinstance(release, Mapping) and not isinstance(sae_id, Mapping):
                config = modern(load_sae_config_from_huggingface(name, entry))
                if config["metadata"].get("hook_name") != f"blocks.{layer}.{hook}":
                    continue
            repository, path = get_repo_id_and_folder_name(name, entry)
        commit = hub_commit("sae.release", repository, None)
        factor = get_norm_scaling_factor(name, entry)  # which sae-lens puts into the weights as it loads them
        key = f"release:{repository}@{commit}/{path}" + ("" if factor is None else f" x {factor}")
        return SAEChoice(key, f"{name} {entry}", release=(name, entry))
    return None


def _check_release(release: str, sae_id: str) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known:
        close = difflib.get_close_matches(release, known, n=3, cutoff=0.3)
        raise SaelinkError(f"sae.release={release}: sae-lens knows no such release; near it are {', '.join(close)}")
    if sae_id not in known[release].saes_map:
        close = difflib.get_close_matches(sae_id, known[release].saes_map, n=3, cutoff=0.0)
        raise SaelinkError(f"sae.id={sae_id}: {release} has no such SAE; near it are {', '.join(close)}")


_commits: dict[tuple[str, str | None], str] = {}


def hub_commit(field: str, repository: str, revision: str | None) -> str:
    """The commit of a hub repository's revision, looked up once per process."""
    if revision is not None and len(revision) == 40:
        return revision
    if (repository, revision) not in _commits:
        from huggingface_hub import HfApi

        pinned = None if field == "sae.hub" else f"hf://{repository}@<40 digits>/..."
        with hub_errors(field, repository, pinned):
            _commits[repository, revision] = str(HfApi().model_info(repository, revision=revision).sha)
    return _commits[repository, revision]


def _fetch(repository: str, commit: str, file: str) -> Path | None:
    """A file of a hub repository, from the hub or the client's cache; None when the repository lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity(50)  # critical: a file that is looked for in vain is no news
    with hub_errors("sae.hub", repository):
        try:
            return Path(hf_hub_download(repository, file, revision=commit))
        except LocalEntryNotFoundError:  # the hub could not be asked
            raise
        except EntryNotFoundError:
            return None


def _download(place: HubPlace) -> Path:
    """The folder or file on disk. Raises SaelinkError when it is not there, or no SAE."""
    if Path(place.path).suffix in FILE_SUFFIXES:
        found = _fetch(*place)
        if found is not None:
            return found
    for files in FOLDERS:
        found = _fetch(place.repository, place.commit, f"{place.path}/{files[0]}")
        if found is not None and all(_fetch(place.repository, place.commit, f"{place.path}/{n}") for n in files[1:]):
            for extra in EXTRA_FILES:
                _fetch(place.repository, place.commit, f"{place.path}/{extra}")
            return found.parent
    raise SaelinkError(
        f"sae.hub={place.repository}: the repository has no SAE at {place.path}; it would hold {known_folders()}"
    )


def pull_sae(cfg: Config, store: Store, hook_name: str) -> SAE:
    """Load the SAE of a hook, training it first when it has none. Raises SaelinkError for a transcoder."""
    choice = sae_choice(cfg, store, hook_name)
    if choice.exists:
        sae = load_choice(cfg, choice)
        if sae.transcodes:
            raise SaelinkError(
                f"{choice.where}: that is a transcoder, which does not give back what it reads; see transcoder.path"
            )
        return sae
    artifact = train_sae(cfg, store, hook_name)
    for name in artifact.files:
        artifact.file(name)  # compared with the manifest before it is read
    return read_sae(artifact.path, "sae")


def load_choice(cfg: Config, choice: SAEChoice) -> SAE:
    """Load an SAE that exists already."""
    if choice.release is not None:
        return _from_release(*choice.release)
    path = choice.path if choice.hub is None else _download(choice.hub)
    assert path is not None
    return read_sae(path, choice.where if choice.hub is not None else f"sae.path={cfg.sae.path}")


def _from_release(release: str, sae_id: str) -> SAE:
    """What sae-lens loads, in our form."""
    import warnings

    import sae_lens

    with hub_errors("sae.release", release), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on models that sae-lens would load
        loaded = sae_lens.SAE.from_pretrained(release, sae_id)
    try:
        return from_state(loaded.cfg.to_dict(), dict(loaded.state_dict()))
    except UnreadableError as error:
        raise SaelinkError(f"sae.release={release} sae.id={sae_id}: the SAE {error}") from None


# --------------------------------------------------------------------------- does it belong here?


WORSE = 0.2
"""An SAE is refused when its FVU here is this much above the published one, ..."""

OTHER = 2.5
"""... or when it has that many times as many active latents, or as few."""

LOOKED_AT = 8192
"""Tokens that this is judged by."""


def check_sae(cfg: Config, hook_name: str, sae: SAE, acts: torch.Tensor, massive: float = 3.0) -> None:
    """Stop in one line when an SAE does not belong to these acts [n, d_in] (whole sequences of the text).

    Wrong tokenizers, missing BOS tokens and other normalisation show in FVU and l0 and nowhere else. Without published
    figures an SAE is refused that reconstructs no better than the mean. Rows of more than `massive` median norms are
    left out where that is kinder. Raises SaelinkError also for an SAE of another width.
    """
    import torch

    if sae.d_in != acts.shape[1]:
        raise SaelinkError(
            f"sae.name={cfg.sae.name}: the SAE for {hook_name} has d_in {sae.d_in}, the activations have "
            f"{acts.shape[1]}; it belongs to another model (sae=train trains one for this model)"
        )
    if not cfg.sae.check:
        return
    position = torch.arange(len(acts)) % cfg.data.context_size
    x = acts[position >= max(cfg.data.drop_positions, 1)][:LOOKED_AT].float()
    sae = sae.to("cpu", torch.float32)
    errors, active = [], 0
    for part in x.split(256):  # dense latents, of SAEs that may have hundreds of thousands
        latents = sae.encode(part)
        errors.append((sae.decode(latents, sae.units(part)) - part).square().sum(1))
        active += int((latents != 0).sum())
    error = torch.cat(errors)
    typical = x.norm(dim=1) <= massive * x.norm(dim=1).median()

    def fvu(rows: torch.Tensor) -> float:
        return (error[rows].sum() / (x[rows] - x[rows].mean(0)).square().sum()).item()

    found = min(fvu(torch.ones_like(typical)), fvu(typical))
    l0 = active / len(x)
    wanted = published(cfg, hook_name)
    bad = not found <= wanted.get("fvu", 0.8) + WORSE  # also where it is no number
    bad |= "l0" in wanted and not wanted["l0"] / OTHER <= l0 <= wanted["l0"] * OTHER
    if bad:
        told = ", ".join(f"{name} {value:.3g}" for name, value in wanted.items()) or "a useful one is well below FVU 1"
        here = {"prepend_bos": cfg.data.prepend_bos, "context_size": cfg.data.context_size}
        there = {name: sae.metadata[name] for name in here if sae.metadata.get(name) is not None}
        other = [f"data.{name}={value}" for name, value in there.items() if value != here[name]]
        hint = f"its file says {', '.join(other)}; " if other else ""
        raise SaelinkError(
            f"sae.name={cfg.sae.name}: the SAE for {hook_name} has FVU {found:.3g} and {l0:.3g} active latents on the "
            f"first {len(x):,} tokens here ({'published: ' if wanted else ''}{told}): {hint}check the model, tokenizer,"
            " data.prepend_bos and model.center_writing_weights, or go on with sae.check=false"
        )


def published(cfg: Config, hook_name: str) -> dict[str, float]:
    """What sae.published says of a hook's SAE at its layer: fvu, l0, or nothing."""
    found = _of_hook(cfg.sae.published, hook_name)
    if found is None:
        return {}
    figures, layer = found
    values = {name: v[layer : layer + 1] if isinstance(v, list) else [v] for name, v in figures.items()}
    return {name: float(value[0]) for name, value in values.items() if value}


def neuronpedia_id(cfg: Config, store: Store, hook_name: str) -> str | None:
    """The model and source under which Neuronpedia shows a hook's latents, such as gpt2-small/6-res-jb."""
    found = _of_hook(cfg.sae.neuronpedia, hook_name)
    if found is not None:
        return at_layer(*found)
    choice = sae_choice(cfg, store, hook_name)
    return load_choice(cfg, choice).metadata.get("neuronpedia_id") if choice.exists else None


def neuronpedia_page(cfg: Config, store: Store, hook_name: str) -> str | None:
    """Where Neuronpedia shows a hook's latents: the address that takes /<latent>; None where it has none."""
    known = neuronpedia_id(cfg, store, hook_name)
    return None if known is None else f"{NEURONPEDIA}/{known}"


# --------------------------------------------------------------------------- the stage


def sae_plan(cfg: Config, store: Store, hook_name: str) -> Plan:
    """Plan of the SAE that saelink trains for a hook."""
    sae = cfg.sae
    recipe = {
        "architecture": "topk",
        "d_sae": sae.d_sae,
        "k": sae.k,
        "epochs": float(sae.epochs),
        "batch_tokens": sae.batch_tokens,
        "lr": sae.lr,
        "aux_loss_coefficient": sae.aux_loss_coefficient,
        "dead_after_steps": sae.dead_after_steps,
        "seed": sae.seed,
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
    }
    inputs = {"acts": cache_plan(cfg, store, hook_name).key}
    return Plan("sae", VERSION, recipe, inputs, f"{cfg.model.label} {hook_name} {sae.d_sae} latents, k {sae.k}")


def train_sae(cfg: Config, store: Store, hook_name: str) -> Artifact:
    """Pull a TopK SAE on a hook's training activations: a SAELens folder in bfloat16."""
    plan = sae_plan(cfg, store, hook_name)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    acts = cache(cfg, store, [hook_name])[hook_name]
    return store.build(plan, lambda draft: _train_sae(cfg, store, acts, hook_name, draft), device_of(cfg))


def _train_sae(cfg: Config, store: Store, acts: Artifact, hook_name: str, draft: Draft) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    try:
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer
    except ModuleNotFoundError:
        raise SaelinkError(
            f"sae.name={cfg.sae.name}: {hook_name} has no SAE yet and training one needs sae-lens: "
            "install it with `pip install 'saelink[saelens]'`, or give sae.path a folder that has one"
        ) from None
    settings = cfg.sae
    device = device_of(cfg)
    d_model = acts.facts["width"]
    rows = acts.facts["sequences"]["train"] * (acts.facts["context_size"] - cfg.data.drop_positions)
    steps = int(settings.epochs * rows) // settings.batch_tokens
    if steps < 20:
        raise SaelinkError(
            f"sae.epochs={settings.epochs}: {rows:,} training tokens give {steps} steps of "
            f"sae.batch_tokens={settings.batch_tokens}; at least 20 are needed (more text, more epochs, smaller steps)"
        )
    total = steps * settings.batch_tokens
    store.say(f"sae: {hook_name}, {settings.d_sae} latents, {settings.epochs:g} passes over {rows:,} tokens")
    ratio = cfg.data.max_norm_ratio

    torch.manual_seed(settings.seed)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d_model,
            d_sae=settings.d_sae,
            k=settings.k,
            device=device,
            decoder_init_norm=0.1,
            aux_loss_coefficient=settings.aux_loss_coefficient,
            normalize_activations="expected_average_only_in",
        )
    )
    batches = shuffled_rows(
        acts,
        batch=settings.batch_tokens,
        total=total,
        drop_positions=cfg.data.drop_positions,
        max_norm=None if ratio is None else ratio * acts.facts["median_norm"],
        seed=settings.seed,
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=settings.batch_tokens,
            lr=settings.lr,
            lr_end=settings.lr / 100,
            lr_warm_up_steps=max(steps // 20, 1),
            lr_decay_steps=steps // 2,
            device=device,
            dead_feature_window=settings.dead_after_steps,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        batches,
    )
    # While it trains, the inputs are scaled to a mean norm of sqrt(d_in); the weights take the scalar at the end.
    mean_norm = acts.facts["mean_norm"][cfg.data.drop_positions :]
    scale = d_model**0.5 / (sum(mean_norm) / len(mean_norm))
    trainer.activation_scaler.scaling_factor = scale
    with Progress(f"sae {hook_name}", total) as bar:
        for step, batch in enumerate(batches):
            output = trainer.step(batch)
            trainer.n_training_steps += 1
            bar.advance(len(batch), note=f"loss {output.loss.item():.3g}" if step % 20 == 0 else "")
    sae.fold_activation_norm_scaling_factor(scale)
    sae.cfg.metadata.hook_name = hook_name
    sae.cfg.metadata.context_size = acts.facts["context_size"]
    sae.cfg.metadata.training_tokens = total
    sae.to("cpu")
    sae.save_inference_model(draft.folder)
    config = json.loads((draft.folder / CONFIG_FILE).read_bytes())
    weights = load_file(draft.folder / WEIGHTS_FILE)
    draft.save_json(CONFIG_FILE, config | {"dtype": "bfloat16", "device": "cpu"})
    draft.save_tensors(WEIGHTS_FILE, {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    return {"hook_name": hook_name, "training_tokens": total, "steps": steps}
