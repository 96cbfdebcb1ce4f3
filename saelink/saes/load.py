"""Loading the SAE that a hook has."""

from __future__ import annotations

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.fetch import hub_errors
from saelink.progress import Observer
from saelink.saes.choice import SAEChoice, sae_choice
from saelink.saes.formats import identity, read_sae
from saelink.saes.formats.base import UnreadableError
from saelink.saes.formats.saelens import from_state
from saelink.saes.hub import download
from saelink.saes.sae import SAE
from saelink.saes.training import SAEStage
from saelink.store.store import Store


def pull_sae(cfg: Config, store: Store, hook_name: str) -> SAE:
    """Load the SAE of a hook, training it first when it has none. Raises SaelinkError for a transcoder."""
    choice = sae_choice(cfg, store, hook_name)
    if choice.exists:
        sae = load_choice(cfg, choice, store.observer)
        if sae.transcodes:
            raise SaelinkError(
                f"{choice.where}: that is a transcoder, which does not give back what it reads; see transcoder.path"
            )
        return sae
    artifact = SAEStage(cfg, store, hook_name).pull()
    for name in artifact.files:
        artifact.file(name)  # compared with the manifest before it is read
    try:
        return read_sae(artifact.path, "sae")
    except SaelinkError as error:  # one that diverged, kept before that was looked at
        raise SaelinkError(
            f"{error}; `saelink rm {artifact.key}` removes it, and a smaller sae.lr trains a better one"
        ) from None


def load_choice(cfg: Config, choice: SAEChoice, observer: Observer | None = None) -> SAE:
    """Load an SAE that exists already; what sae-lens remarks of one of its releases is said, once."""
    if choice.release is not None:
        return _from_release(*choice.release, observer)
    path = choice.path if choice.hub is None else download(choice.hub)
    assert path is not None
    field = choice.where if choice.hub is not None else f"sae.path={cfg.sae.path}"
    sae = read_sae(path, field)
    if choice.path is not None and not choice.key.endswith(f":{identity(path, field)}"):
        raise SaelinkError(f"{field}: {path} was changed while it was read; run the command again")
    return sae


_remarks_said: set[str] = set()


def _from_release(release: str, sae_id: str, observer: Observer | None) -> SAE:
    """What sae-lens loads, in our form."""
    import warnings

    import sae_lens

    hidden = DeprecationWarning, PendingDeprecationWarning, FutureWarning
    with hub_errors("sae.release", release), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loaded = sae_lens.SAE.from_pretrained(release, sae_id)
    for warning in warned:
        line = f"sae.release={release} sae.id={sae_id}: sae-lens remarks: {' '.join(str(warning.message).split())}"
        if observer is not None and line not in _remarks_said and not issubclass(warning.category, hidden):
            _remarks_said.add(line)
            observer.say(line)
    try:
        return from_state(loaded.cfg.to_dict(), dict(loaded.state_dict()))
    except UnreadableError as error:
        raise SaelinkError(f"sae.release={release} sae.id={sae_id}: the SAE {error}") from None
