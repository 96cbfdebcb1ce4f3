"""Sending an exported connector to a hub repository."""

from __future__ import annotations

from saelink.errors import SaelinkError
from saelink.store.store import Store


def push(store: Store, key: str, repository: str, private: bool = False) -> str:
    """Send an export, by its key or its connector's, to a hub repository, made if need be; the commit's address.

    Raises SaelinkError when nothing was exported under that key, or the hub refuses (HF_TOKEN, the repository's name).
    """
    from huggingface_hub import HfApi

    from saelink.fetch import of_the_network

    artifact = store.get(key)
    if artifact.stage != "export":
        found = [a for a in store.artifacts() if a.stage == "export" and artifact.key in a.manifest["inputs"].values()]
        if artifact.stage != "train" or not found:
            raise SaelinkError(
                f"push: {key} is a {artifact.stage} artifact without an export; `saelink export` makes one"
            )
        artifact = found[-1]
    for name in artifact.files:
        artifact.file(name)  # compared with the manifest before it is sent
    try:
        HfApi().create_repo(repository, exist_ok=True, private=private)
        sent = HfApi().upload_folder(
            repo_id=repository, folder_path=artifact.path, allow_patterns=artifact.files,
            commit_message=f"saelink export {artifact.key}",
        )  # fmt: skip
    except Exception as error:  # raised again unless it comes from the network
        if not of_the_network(error):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SaelinkError(f"push: {repository}: {reason}") from None
    return str(sent.commit_url)
