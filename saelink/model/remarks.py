"""What the libraries remark while a model is read and tried, as lines."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

LOGGERS = (None, "transformers", "transformer_lens")
"""Where they log; None is the root."""

CHECKED = ("LOAD REPORT", "checkpoint seem corrupted")
"""In remarks about tensors that are missing or have other shapes, of which completeness.py makes errors."""

LONGEST = 300


@cache
def quiet() -> None:
    """From here on no progress bar of Hugging Face's runs across ours, and no remark, but where `remarks` listens."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


class _Remarks(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        note(self._lines, record.getMessage())


def note(lines: list[str], text: str) -> None:
    """Keep a remark as one line, once; not one about what is checked here, nor a progress bar."""
    line = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text)).strip()[:LONGEST]
    if line and line not in lines and not any(word in line for word in CHECKED) and "%|" not in line:
        lines.append(line)


@contextmanager
def remarks() -> Iterator[list[str]]:
    """The lines that transformers and TransformerLens log or warn meanwhile; nothing of it is printed.

    Not what Python shows to developers only, such as a deprecation.
    """
    import transformer_lens  # noqa: F401 (it silences transformers when it is imported)

    quiet()
    lines: list[str] = []
    handler = _Remarks(lines)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.level) for logger in loggers]
    hidden = DeprecationWarning, PendingDeprecationWarning, FutureWarning
    with warnings.catch_warnings(record=True) as warned:
        for logger in loggers:
            logger.handlers = [handler]
            logger.setLevel(logging.WARNING)
        try:
            yield lines
        finally:
            for logger, (handlers, level) in zip(loggers, before, strict=True):
                logger.handlers = handlers
                logger.setLevel(level)
            for warning in warned:
                if not issubclass(warning.category, hidden):
                    note(lines, str(warning.message))
