"""What the page stores of cards: agreement with the cards, read back by Python and by the page's script."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from saelink.job import Job
from saelink.report.cards.cards import Cards
from saelink.report.levels import (
    gaps,
    level_of,
    rise_at,
    rise_code,
    share_at,
    share_code,
    size_at,
    spread,
    weight_codes,
    weights_at,
)  # fmt: skip
from saelink.report.notebook import Opened
from saelink.report.render import DATA_FILE
from saelink.report.stored import edges_at
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.node import module, run
from helpers.reports import made, pieces
from helpers.world import World

STORED = Path(__file__).parents[2] / "saelink" / "report" / "page" / "stored.js"


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Store]:
    return made(world, tmp_path_factory.mktemp("stored"), "solver=exact")


def numbers() -> list[float]:
    drawn = random.Random(0)
    spread_out = [drawn.choice((-1, 1)) * 10 ** drawn.uniform(-9, 4) for _ in range(2000)]
    return [*spread_out, 1.0, 0.1, 0.01, 1e-3, 9.995e-4, 0.0999, 0.99999, 1e-38, 3e38]


def test_levels_are_all_numbers_of_so_many_digits_in_order() -> None:
    for figures in (2, 3):
        levels = range(level_of(1e-3, figures), level_of(1e-3, figures) + 2000)
        every = [size_at(level, figures) for level in levels]
        assert every == sorted(set(every)) and every[0] == 1e-3
        assert [level_of(size, figures) for size in every] == list(levels)
    for value in numbers():
        assert size_at(level_of(abs(value), 3), 3) == float(f"{abs(value):.2e}")
    assert size_at(level_of(0.0, 3), 3) == 0


def test_weights_keep_three_digits() -> None:
    values = sorted(numbers(), key=abs, reverse=True)
    for given in (values, values[::-1], [], [0.0, -0.5, 0.0]):
        assert weights_at(weight_codes(given)) == [float(f"{value:.2e}") for value in given]


def test_rises_and_shares_keep_what_is_shown() -> None:
    for value in numbers():
        rise, share = rise_at(rise_code(value)), share_at(share_code(value))
        assert rise is not None and share is not None
        assert abs(rise - value) <= max(0.5e-4, abs(value) * 0.05) * 1.001
        assert abs(share - value) <= (0.5e-3 if abs(value) < 0.1 else 0.5e-2) * 1.001
        assert rise * value >= 0 and share * value >= 0
    assert rise_at(rise_code(None)) is None and share_at(share_code(None)) is None


def test_rows_that_are_mostly_zero() -> None:
    values = [0.0, 0.0, 1.25, 0.0, -0.01, 0.0]
    assert spread(gaps(values), 6) == values and spread(gaps([]), 3) == [0.0] * 3


def test_circuits_read_back_are_those_of_the_cards(world: World, report: tuple[Artifact, Store]) -> None:
    artifact, store = report
    found = pieces(artifact)
    verdicts = found["head"]["verdicts"]
    cards = Cards(Job(world.config(store.root, "solver=exact", "l1_alpha=1e-3"), store))
    seen = 0
    for latent in cards.wiring.columns_of:
        rows = edges_at(found["edges0/0"], latent, verdicts)
        assert rows is not None and len(rows) == cards.wiring.circuit(latent)["n_edges"]
        for row, edge in zip(rows, cards.wiring.circuit(latent)["edges"], strict=False):
            seen += 1
            assert row["number"] == edge.get("input") and row["both"] == edge.get("both")
            assert row["weight"] == pytest.approx(edge["weight"], rel=6e-3)
            assert row["rise"] == pytest.approx(edge["rise"], rel=0.06, abs=0.6e-4)
            assert row.get("verdict") == edge.get("verdict")
            for name in ("claim", "effect"):
                value = edge.get(name)
                assert row.get(name) == (None if value is None else pytest.approx(value, abs=0.0052))
    assert seen > 100
    for latent in range(cards.sides.d_source):
        rows = edges_at(found["feeds0/0"], latent, verdicts)
        assert [f"OF{row['number']}" for row in rows or []] == [e["name"] for e in cards.wiring.source_feeds(latent)]


READ = """
import { readFileSync } from "node:fs";
const found = JSON.parse(readFileSync(process.argv[2], "utf8"));
const packed = (value) => new Blob([JSON.stringify(value)]).stream().pipeThrough(new CompressionStream("gzip"));
const texts = new Map([["head", JSON.stringify(found.head)]]);
for (const [name, value] of Object.entries(found)) {
  texts.set(`piece:${name}`, Buffer.from(await new Response(packed(value)).arrayBuffer()).toString("base64"));
}
globalThis.document = {
  readyState: "complete",
  getElementById: (id) => (texts.has(id) ? { textContent: texts.get(id) } : null),
};
const { besideOf, readCard, readCircuit, readFeeds } = await import(process.argv[3]);
const out = { target: [], source: [] };
for (let i = 0; i < found.head.d.target; i += 1) {
  const [card, circuit] = [await readCard("target", i), await readCircuit(0, i)];
  out.target.push({ ...card, ...circuit, beside: besideOf(circuit?.beside, card.examples) });
}
for (let i = 0; i < found.head.d.source; i += 1) {
  out.source.push({ ...(await readCard("source", i)), feeds: await readFeeds(0, i) });
}
console.log(JSON.stringify(out));
"""


def test_the_script_reads_what_python_reads(node: str, report: tuple[Artifact, Store], tmp_path: Path) -> None:
    artifact, _ = report
    data = tmp_path / "data.json"
    data.write_text(json.dumps(pieces(artifact)))
    read = json.loads(run(node, module(tmp_path, READ), data, STORED))
    opened = Opened(artifact)
    for latent in range(48):
        card: dict[str, Any] = dict(opened.target(latent).data)
        assert card.pop("explained") is True
        assert {name: value for name, value in read["target"][latent].items() if name in card} == card
    for latent in range(len(read["source"])):
        assert {**opened.source(latent).data} == {**read["source"][latent]}


def test_text_stands_on_the_page_once(world: World, report: tuple[Artifact, Store]) -> None:
    artifact, store = report
    found = pieces(artifact)
    held = [
        (int(sequence), stretch["at"] + i)
        for name, piece in found.items() if name.startswith("text/")
        for sequence, stretches in piece.items() for stretch in stretches for i in range(len(stretch["tokens"]))
    ]  # fmt: skip
    assert len(held) == len(set(held))
    job = Job(world.config(store.root, "solver=exact", "l1_alpha=1e-3"), store)
    facts = job.sides.target.facts
    assert len(held) <= sum(facts["sequences"].values()) * facts["context_size"]


BYTES = {"edges": 9.0, "feeds": 12.0}
"""The most that an edge may take of the page, compressed and before base64."""


def test_an_edge_takes_few_bytes(report: tuple[Artifact, Store]) -> None:
    """What keeps the default page below 25 MB: it has half a million edges."""
    artifact, _ = report
    found = pieces(artifact)
    with zipfile.ZipFile(artifact.file(DATA_FILE)) as archive:
        for kind, most in BYTES.items():
            names = [name for name in found if name.startswith(kind)]
            size = sum(len(archive.read(f"{name}.json.gz")) for name in names)
            n = sum(len(found[name]["number"]) for name in names)
            assert n > 300 and size / n < most, f"{kind}: {size / n:.1f} bytes each"
    edges = sum(sum(found[name]["n"]) for name in found if name.startswith("edges0"))
    assert edges == sum(n or 0 for n in found["index"]["fits"][0]["n_edges"])
    assert "edges" not in found["circuit0/0"]["3"], "no edge stands twice"
