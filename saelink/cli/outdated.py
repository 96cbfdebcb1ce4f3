"""What `saelink gc --outdated` does: list, ask, remove."""

from __future__ import annotations

import sys

import typer

from saelink.cli.versions import stage_versions, why_old
from saelink.config.size import gigabytes
from saelink.errors import SaelinkError, printable
from saelink.store.outdated import outdated, remove_outdated
from saelink.store.store import Store
from saelink.terminal.table import Column, table_lines, terminal_width


def remove_listed(store: Store, yes: bool) -> None:
    """List the outdated artifacts of a store, and remove them if `yes`, or if who is asked says so.

    Raises SaelinkError where there is nobody to ask.
    """
    versions = stage_versions()
    found = outdated(store, lambda artifact: why_old(artifact, versions))
    if not found:
        print(printable(f"no outdated artifacts in {store.root}"))
        return
    columns = [Column("stage"), Column("key"), Column("size", right=True), Column("why"), Column("what", wraps=True)]
    rows = [(each.stage, each.key, gigabytes(each.bytes), each.why, each.about) for each in found]
    for line in table_lines(columns, rows, terminal_width()):
        print(printable(line))
    number = "1 outdated artifact" if len(found) == 1 else f"{len(found):,} outdated artifacts"
    print(printable(f"{number} in {store.root}, {gigabytes(sum(each.bytes for each in found))}"))
    if not yes:
        if not sys.stdin.isatty():
            raise SaelinkError("gc --outdated: nobody is there to be asked; --yes removes what is listed")
        if not typer.confirm("remove?"):
            return
    for each, gone in remove_outdated(found):
        print(printable(f"removed {each.path}" if gone else f"left {each.path}: another process is at it"))
