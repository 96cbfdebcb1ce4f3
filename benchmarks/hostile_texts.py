"""Hostile names and tokens where they are shown, and hostile places in a store."""

from __future__ import annotations

import csv
import html.parser
import io
import random
import shutil
import unicodedata
import xml.etree.ElementTree
from functools import partial
from typing import Any

from benchmarks.hostile_files import Trap, Use, marks
from saelink.errors import SaelinkError

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What spreadsheets begin a formula with."""


def cells(chance: random.Random, _: Trap) -> Use:
    """A table of an export: it says the same, and no cell of it is a formula."""
    from saelink.store.files import csv_bytes

    rows = [{"a": marks(chance), "b": chance.choice([-1.5, 3, None, marks(chance)])} for _ in range(20)]

    def use() -> None:
        text = csv_bytes(["a", "b"], rows).decode("utf-8", "surrogatepass")
        read = list(csv.reader(io.StringIO(text, newline=""), strict=True))[1:]
        assert len(read) == len(rows), "a cell made a row of its own"
        for row, found in zip(rows, read, strict=True):
            for value, cell in zip(row.values(), found, strict=True):
                text = "" if value is None else str(value)
                assert cell in (text, f"'{text}"), f"{cell!r} is not {text!r}"
                formula = isinstance(value, str) and cell.lstrip(" \n").startswith(FORMULA)
                assert not formula, f"{cell!r} is a formula"

    return use


TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What makes a terminal write backwards."""


class Tags(html.parser.HTMLParser):
    """The tags of a page, and their attributes' names."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))


def pages(chance: random.Random, _: Trap) -> Use:
    """The report's page and the export's card: their markup is that of harmless names."""
    from saelink.report.render import packed, render
    from saelink.share.export import _shown

    def page(mark: Any) -> str:
        head: dict[str, object] = {"title": mark(), "tokens": [mark(), mark()], mark(): {"x": mark()}}
        return render(head, {"a": packed({"token": mark()})}).decode("utf-8", "replace")

    def use() -> None:
        harmless = Tags(page(lambda: "word"))
        assert Tags(page(partial(marks, chance))).found == harmless.found, "other markup"
        for _ in range(20):
            shown = _shown(marks(chance))
            assert "\n" not in shown and "<" not in shown, shown
            assert not Tags(shown).found and "](" not in shown.replace("\\]", ""), shown

    return use


def terminals(chance: random.Random, _: Trap) -> Use:
    """What is printed, and the graph of an export: nothing steers a terminal, nothing breaks the XML."""
    import networkx

    from saelink.share.export import _plain
    from saelink.terminal.progress import TerminalObserver
    from saelink.terminal.table import Column, table_lines

    def use() -> None:
        names = [marks(chance) for _ in range(20)]
        out = io.StringIO()
        observer = TerminalObserver(out)
        for name in names:
            observer.say(name)
            assert str(SaelinkError(name)).isprintable()
        for line in table_lines([Column("a", wraps=True), Column("b")], [[name, name] for name in names], 60):
            observer.say(line)
        steering = [c for c in out.getvalue() if (unicodedata.category(c) == "Cc" or c in TURNS) and c not in "\n\t"]
        assert not steering, steering
        graph = networkx.DiGraph()
        for number, name in enumerate(names):
            graph.add_node(str(number), token=_plain(name))
        root = xml.etree.ElementTree.fromstring("\n".join(networkx.generate_graphml(graph)))
        assert len(root[-1]) == len(names)

    return use


# --------------------------------------------------------------------------- places


def traversals(chance: random.Random, trap: Trap) -> Use:
    """Names that lead out of where they belong: in manifests, journals, sweeps, notes."""
    from benchmarks.faulty import ROWS, chain
    from saelink.store.artifact import Artifact
    from saelink.store.draft import JOURNAL, Draft
    from saelink.store.files import json_bytes
    from saelink.store.manifest import MANIFEST
    from saelink.store.seal import sealed, unsealed
    from saelink.store.store import Store
    from saelink.tracking import sweep

    store = Store(trap.own / "outputs")
    chain(store.root)
    away = chance.choice([
        "../../../outside/precious.txt", str(trap.outside / "precious.txt"), "..", ".", "", "a/../../x", "../sums",
        "\x00", "x\n", "~/x", "/etc/passwd", "....//x", "a" * 300,
    ])  # fmt: skip
    kind = chance.choice(["manifest", "journal", "sweep", "note", "key"])
    folder = store.folder(ROWS)
    if kind == "manifest":
        manifest = unsealed((folder / MANIFEST).read_bytes())
        manifest["files"] = {**manifest["files"], away: next(iter(manifest["files"].values()))}
        (folder / MANIFEST).write_bytes(json_bytes(sealed(manifest)))

        def use() -> None:
            artifact: Artifact[Any] = Artifact(folder)
            for name in artifact.files:
                artifact.file(name).read_bytes()

        return use
    if kind == "journal":
        partly = folder.with_suffix(".partial")
        folder.rename(partly)
        (partly / JOURNAL).write_bytes(json_bytes({"name": away, "size": 8, "sha256": "0" * 64}))

        def use() -> None:
            Draft(ROWS, partly, resumable=True).drop([away])
            chain(store.root)

        return use
    if kind == "sweep":
        return partial(chance.choice([sweep.begin, sweep.write_pareto, sweep.failures]), store, away)
    if kind == "note":
        (store.root / "sweeps/sweep1/failed").mkdir(parents=True, exist_ok=True)
        note = sealed({"job": away, "error": "\x1b[2J", "sweep": "sweep1", "name": "x"})
        (store.root / "sweeps/sweep1/failed/x.json").write_bytes(json_bytes(note))
        return partial(sweep.failures, store, "sweep1")
    return partial(store.remove, away)


def links(chance: random.Random, trap: Trap) -> Use:
    """Links in a store that lead out of it, under everything that reads, makes and removes."""
    from benchmarks.faulty import ROWS, SHARDS, chain
    from saelink.store.store import Store

    store = Store(trap.own / "outputs")
    chain(store.root)
    folder = store.folder(ROWS)
    target = trap.outside / f"linked{chance.randrange(100)}"
    kind = chance.choice(["stage", "artifact", "partial", "file", "removed", "lock", "sweep", "temporary"])
    if kind == "stage":
        shutil.move(folder.parent, target)
        folder.parent.symlink_to(target)
    elif kind == "artifact":
        shutil.move(folder, target)
        folder.symlink_to(target)
    elif kind == "file":
        (folder / SHARDS[0]).rename(target)
        (folder / SHARDS[0]).symlink_to(target)
    else:
        target.mkdir()
        (target / "a").write_text("precious")
        names = {
            "partial": folder.with_suffix(".partial"), "removed": folder.with_name(f".{ROWS.key}.99999.removed"),
            "lock": folder.with_name(f".{ROWS.key}.lock"), "sweep": store.root / "sweeps/sweep2",
            "temporary": folder.parent / ".a.host.99999.1.tmp",
        }  # fmt: skip
        names[kind].unlink(missing_ok=True)
        if kind == "partial":
            shutil.rmtree(folder)
        names[kind].symlink_to(target if kind != "lock" else target / "a")
    command = chance.choice(["gc", "rm", "again", "ls", "begin"])

    def use() -> None:
        from saelink.tracking.sweep import begin

        if command == "gc":
            list(store.collect_garbage())
        elif command == "rm":
            store.remove(ROWS.key)
        elif command == "ls":
            store.listing()
        elif command == "begin":
            begin(store, "sweep2")
        else:
            chain(store.root)

    return use


def indexes(chance: random.Random, trap: Trap) -> Use:
    """Files of a model or SAE that name others."""
    import json
    import zipfile

    from benchmarks.hostile_files import model, packed, read_model
    from saelink.saes.formats import read_sae

    folder = trap.lair / "files"
    away = chance.choice(["../../outside/x.safetensors", str(trap.outside / "x.safetensors"), "/etc/passwd", "x\n"])
    if chance.random() < 0.5:
        shutil.copytree(model(), folder)
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()
        if chance.random() < 0.5:
            (trap.outside / "x.safetensors").write_bytes(weights)
        index = {"metadata": {"total_size": 8}, "weight_map": {"lm_head.weight": away}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return partial(read_model, folder)
    folder.mkdir()
    with zipfile.ZipFile(folder / "params.npz", "w") as file:
        for name in (away + ".npy", "../../outside/evil.npy", "W_enc.npy"):
            file.writestr(name, packed(chance, trap))
    return partial(read_sae, folder, "sae.path")
