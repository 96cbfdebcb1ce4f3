"""How to cite saelink, and a result made with it."""

from __future__ import annotations

from saelink._version import __version__
from saelink.share.results import lineage
from saelink.store.store import Store

TOOL = f"""@software{{saelink,
  title   = {{saelink: how one set of SAE latents computes the next}},
  author  = {{{{The saelink authors}}}},
  version = {{{__version__}}},
}}"""

IDEA = """@misc{riggs2023connections,
  title  = {Finding Sparse Linear Connections between Features in LLMs},
  author = {Riggs Smith, Logan},
  year   = {2023},
}"""
"""What the questions and the comparison are from."""


def citation(store: Store, key: str | None) -> str:
    """BibTeX of saelink and of the post it starts from; of a result also what it was made with, a line an artifact.

    Raises SaelinkError for a key that the store has not.
    """
    parts = [TOOL, IDEA]
    if key is not None:
        found = store.get(key)
        made = found.manifest["provenance"]
        packages = ", ".join(f"{name} {version}" for name, version in sorted(made["packages"].items()))
        lines = [f"{found.stage} {found.key}: {found.manifest['about']}", f"made with {packages} on {made['machine']}"]
        others = [each for each in lineage(store, [found.key]).values() if each.key != found.key]
        lines += [f"from {each.stage} {each.key}: {each.manifest['about']}" for each in others]
        parts.append("\n".join(f"% {line}" for line in lines))
    return "\n\n".join(parts)
