"""The one kind of error a user sees."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class SaelinkError(ValueError):
    """A user's mistake or a broken file: one line that names the field, the value and the way out.

    What can't be printed (a new line, a terminal's escapes in a name) stands in it as Python writes it, and of an
    address with a password in it only the rest.
    """

    def __init__(self, line: str):
        super().__init__(printable(line))


def without_passwords(text: str) -> str:
    """A text whose addresses tell neither user nor password, https://***@host: a line may be written down too."""
    return re.sub(r"(\w\\?://)[^/\s@]+@", r"\1***@", text)  # Hydra writes https\://


def printable(text: str) -> str:
    """Without signs that break a line or steer a terminal, and without passwords."""
    text = without_passwords(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant: one beside it, one whose last part it is, or one that looks like it."""
    names = list(names)
    above, _, last = word.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in reversed(names) if name.rpartition(".")[0] == above}
    anywhere = {name.rpartition(".")[2]: name for name in reversed(names)}
    for close in get_close_matches(last, beside, n=1, cutoff=0.65):
        return beside[close]
    if last in anywhere:
        return anywhere[last]
    as_deep = [name for name in names if name.count(".") == word.count(".")]
    for close in get_close_matches(word, as_deep, n=1, cutoff=0.8):
        return close
    return next((anywhere[close] for close in get_close_matches(last, anywhere, n=1, cutoff=0.8)), None)


ADVICE = re.compile(
    r"pip install|trust_remote_code|\b(please|try|consider|make sure|see|you (can|could|may|might|must|need|should))\b",
    re.IGNORECASE,
)
"""Where a library begins to advise something, which nobody has tried here."""


def reason_of(error: BaseException, longest: int = 200) -> str:
    """What an error of a library says, as part of a line: its type and its text as far as the first advice."""
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", str(error)))
    said = ADVICE.split(text, maxsplit=1)[0].strip(" .,:;(`")
    said = said if len(said) <= longest else said[: longest - 3].rstrip() + "..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
