"""An SAE's files in a hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from saelink.errors import SaelinkError
from saelink.fetch import hub_errors
from saelink.saes.formats import EXTRA_FILES, FOLDERS, FORMATS, known_folders

FILE_SUFFIXES = tuple(suffix for module in FORMATS.values() for suffix in getattr(module, "SUFFIXES", ()))


class HubPlace(NamedTuple):
    """A folder or file in a hub repository."""

    repository: str
    commit: str
    path: str


def hub_file(repository: str, commit: str, file: str) -> Path | None:
    """A file of a hub repository, from the hub or the client's cache; None when the repository lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(50)  # critical: a file that is looked for in vain is no news; all else is raised too
    try:
        with hub_errors("sae.hub", repository):
            try:
                return Path(hf_hub_download(repository, file, revision=commit))
            except LocalEntryNotFoundError:  # the hub could not be asked
                raise
            except EntryNotFoundError:
                return None
    finally:
        logging.set_verbosity(before)


def download(place: HubPlace) -> Path:
    """The folder or file on disk. Raises SaelinkError when it is not there, or no SAE."""
    if Path(place.path).suffix in FILE_SUFFIXES:
        found = hub_file(*place)
        if found is not None:
            return found
    for files in FOLDERS:
        found = hub_file(place.repository, place.commit, f"{place.path}/{files[0]}")
        if found is not None and all(hub_file(place.repository, place.commit, f"{place.path}/{n}") for n in files[1:]):
            for extra in EXTRA_FILES:
                hub_file(place.repository, place.commit, f"{place.path}/{extra}")
            return found.parent
    raise SaelinkError(
        f"sae.hub={place.repository}: the repository has no SAE at {place.path}; it would hold {known_folders()}"
    )
