"""Conversations as text: lists of messages through the tokenizer's own chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from saelink.errors import SaelinkError

TODAY = """{%- macro strftime_now(format) -%}
{{ {"%Y-%m-%d": "2024-07-26", "%B %d, %Y": "July 26, 2024"}.get(format, "26 Jul 2024") }}
{%- endmacro -%}
"""
"""Before a template that writes down today's date: the same conversation has to be the same text tomorrow."""


def chat_template(tokenizer: Any) -> str:
    """The template that makes a text of messages. Raises SaelinkError when the tokenizer has none."""
    try:
        template = str(tokenizer.get_chat_template())
    except ValueError:
        raise SaelinkError(
            "data.chat=true: the tokenizer has no chat template; take a chat model, or give the conversations as text"
        ) from None
    return TODAY + template if "strftime_now" in template else template


def template_digest(tokenizer: Any) -> str:
    """12 digits that stand for the template."""
    return hashlib.sha256(chat_template(tokenizer).encode()).hexdigest()[:12]


def rendered(tokenizer: Any) -> Callable[[list[Any]], str]:
    """What makes a text of messages [{role, content}]."""
    template = chat_template(tokenizer)

    def render(messages: list[Any]) -> str:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)

    return render
