"""Addresses on the hub, read in one place."""

from __future__ import annotations

import pytest

from saelink.errors import SaelinkError
from saelink.fetch import HubAddress, hub_address, is_commit


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("hf://one/two", HubAddress("one/two", None, "")),
        ("hf://one/two/", HubAddress("one/two", None, "")),
        ("hf://one/two@main", HubAddress("one/two", "main", "")),
        ("hf://one/two/a/b", HubAddress("one/two", None, "a/b")),
        ("hf://one/two.x@v1.0/a@b/", HubAddress("one/two.x", "v1.0", "a@b")),
        ("folder/two", None),
        ("/one/hf://two", None),
    ],
)
def test_an_address_is_taken_apart(place: str, address: HubAddress | None) -> None:
    assert hub_address(place, "sae.files") == address


@pytest.mark.parametrize("place", ["hf://", "hf://one", "hf://one/", "hf:///two", "hf://one/@main", "hf://one/two@"])
def test_an_address_without_a_repository_is_refused(place: str) -> None:
    with pytest.raises(SaelinkError, match=r"sae\.files: hf://.* is not of the form hf://owner/repository"):
        hub_address(place, "sae.files")


def test_only_forty_hexadecimal_digits_are_a_commit() -> None:
    assert is_commit("0123456789abcdef" * 2 + "01234567")
    for revision in (None, "", "main", "a" * 39, "a" * 41, "release-of-the-year-2024-with-40-letters-", "g" * 40):
        assert not is_commit(revision)
