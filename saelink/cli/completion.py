"""Shell completion of overrides, by asking Hydra's own."""

from __future__ import annotations

import contextlib
import io
import os


def complete(incomplete: str) -> list[str]:
    """What `incomplete` may become: groups, their options, keys."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra._internal.utils import create_config_search_path
    from hydra.core.plugins import Plugins

    from saelink.compose import register
    from saelink.config.files import conf_dir

    Plugins.instance()
    register()
    key = _key_before(incomplete)
    with contextlib.redirect_stderr(io.StringIO()):
        loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
        found = BashCompletion(loader)._query(config_name="config", line=key + incomplete)  # noqa: SLF001 (query() prints)
    return sorted(choice.removeprefix(key) for choice in found)


def _key_before(incomplete: str) -> str:
    """`connector=` when bash, which breaks words at `=`, asks for what follows it; otherwise nothing."""
    words = os.environ.get("COMP_WORDS", "").split()
    if len(words) > 2 and words[-2:] == ["=", incomplete]:
        return words[-3] + "="
    return ""
