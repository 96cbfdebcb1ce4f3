"""Files from hubs and installed packages, and what goes wrong on the way as one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeGuard

from saelink.errors import SaelinkError

ON_HUB = "hf://"
"""How the address of something on the hub begins."""


class HubAddress(NamedTuple):
    """What hf://owner/repository[@revision][/path] names."""

    repository: str
    """owner/repository"""
    revision: str | None
    path: str
    """Inside the repository, without slashes around it; empty for the whole of it."""


def hub_address(place: str, field: str) -> HubAddress | None:
    """The address that `place` is, None where it does not begin with hf://.

    Raises SaelinkError, naming `field`, for one that names no repository.
    """
    if not place.startswith(ON_HUB):
        return None
    parts = re.fullmatch(r"([^/@]+)/([^/@]+)(?:@([^/@]+))?(?:/(.*))?", place.removeprefix(ON_HUB))
    if parts is None:
        raise SaelinkError(f"{field}: {place} is not of the form {ON_HUB}owner/repository[@revision][/folder]")
    owner, name, revision, path = parts.groups()
    return HubAddress(f"{owner}/{name}", revision, (path or "").strip("/"))


def is_commit(revision: str | None) -> TypeGuard[str]:
    """Whether it names one state of a repository for good, so that the hub need not be asked which."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def wheel_folder(package: str, install: str | None, field: str, terms: str | None = None) -> Path:
    """Folder of an installed package, found without importing it.

    Raises SaelinkError where it is not installed, with the command `install` and the `terms` it comes under.
    """
    import importlib.util

    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        how = f": install it with `{install}`" if install else ""
        how += f"; it comes under {terms}" if install and terms else ""
        raise SaelinkError(f"{field}={package}: this Python package is not installed{how}")
    return Path(spec.submodule_search_locations[0])


@contextmanager
def hub_errors(field: str, repository: str, pinned: str | None = None) -> Iterator[None]:
    """Turn the many ways in which a hub can't be reached, or lacks something, into one line.

    `pinned` is how one names a commit there, unless it is by the group's own `revision`.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError:
        raise SaelinkError(
            f"{field}={repository}: the hub has no such repository, or it needs a login (HF_TOKEN)"
        ) from None
    except Exception as error:  # raised again unless it comes from the network or the client's own folder
        if isinstance(error, OSError) and in_hub_cache(error):
            raise SaelinkError(f"{field}={repository}: {hub_cache_line(error)}") from None
        if not of_the_network(error):
            raise
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        pinned = pinned or f"{field.split('.')[0]}.revision=<40 digits>"
        raise SaelinkError(
            f"{field}={repository}: {endpoint} can't be reached or refuses this repository; check the network, or name "
            f"a commit that was fetched before ({pinned}), a local copy or the offline default"
        ) from None


def of_the_network(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, comes from the hub's client or the HTTP library under it.

    By the name of its package, because which HTTP library that is has changed from version to version.
    """
    if error is None or type(error).__name__.startswith("StrictDataclass"):  # a value that a config can't have
        return False
    package = type(error).__module__.split(".")[0]
    network = package in ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3")
    return network or isinstance(error, ConnectionError) or of_the_network(error.__cause__ or error.__context__)


def in_hub_cache(error: OSError) -> bool:
    """Whether a file that could not be read or written is where the hub's client keeps what it fetched."""
    if error.errno is None or not isinstance(error.filename, str):
        return False
    file = Path(error.filename).absolute()
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    named = [os.environ.get(each) for each in ("HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE", "HF_DATASETS_CACHE")]
    places = [Path(place).expanduser().absolute() for place in named if place]
    # A folder above one that was named may be what is missing or closed.
    return file.is_relative_to(home) or any(file.is_relative_to(p) or p.is_relative_to(file) for p in places)


def hub_cache_line(error: OSError) -> str:
    """What to do about it."""
    return f"{error.filename}: {error.strerror}; what the hub sends is kept there: set HF_HOME to a folder of yours"


_commits: dict[tuple[str, str | None], str] = {}


def hub_commit(field: str, repository: str, revision: str | None) -> str:
    """The commit of a hub repository's revision, looked up once per process."""
    if is_commit(revision):
        return revision
    if (repository, revision) not in _commits:
        from huggingface_hub import HfApi

        pinned = None if field == "sae.hub" else f"hf://{repository}@<40 digits>/..."
        with hub_errors(field, repository, pinned):
            _commits[repository, revision] = str(HfApi().model_info(repository, revision=revision).sha)
    return _commits[repository, revision]
