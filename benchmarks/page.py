"""How long a report takes to open: first paint, the list of circuits and a card, in Chromium, at 32,768 targets.

    python -m benchmarks.page       # from the newest report in outputs/; writes benchmarks/page.json

The page is a real one whose latents are repeated until there are enough of them; examples are kept for as many as
report.cards keeps by default.
"""

from __future__ import annotations

import gzip
import json
import shutil
import statistics
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from saelink.config.schema import ReportConfig
from saelink.report.render import DATA_FILE, packed, render
from saelink.store.artifact import Artifact
from saelink.store.store import Store

TARGETS = 32_768
RUNS = 5


NO_EXAMPLES: dict[str, list[Any]] = {"kind": [], "place": [], "value": [], "values": []}


def repeated_edges(read: dict[str, Any], kind: str, size: int, d: int) -> dict[str, bytes]:
    """The pieces of a kind's edges again and again, each time with latents that are `d` further on."""
    assert d % size == 0, "the report's latents fill its pieces"
    found = {}
    for number in range(-(-TARGETS // size)):
        columns, shift = read[f"{kind}/{number % (d // size)}"], number // (d // size) * d
        found[f"{kind}/{number}"] = packed({**columns, "latent": [latent + shift for latent in columns["latent"]]})
    return found


def enlarged(data: Path) -> bytes:
    """The page of a report with its targets and sources repeated up to TARGETS."""
    with zipfile.ZipFile(data) as archive:
        read = {n.removesuffix(".json.gz"): json.loads(gzip.decompress(archive.read(n))) for n in archive.namelist()}
    head, index, size = read["head"], read["index"], read["head"]["piece"]
    d = head["d"]["target"]
    times = -(-TARGETS // d)
    pieces: dict[str, bytes] = {"ablations/target": packed(read.get("ablations/target", {}))}
    kept = ReportConfig().cards
    pieces |= {name: packed(piece) for name, piece in read.items() if name.startswith("text/")}
    kinds = {name.split("/")[0] for name in read if "/" in name} - {"ablations", "experiment", "text"}
    for kind in kinds:
        if kind.startswith(("edges", "feeds")):
            pieces |= repeated_edges(read, kind, size, d)
            continue
        whole = {k: v for name, piece in read.items() if name.split("/")[0] == kind for k, v in piece.items()}
        for first in range(0, TARGETS, size):
            piece = {}
            for latent in range(first, min(first + size, TARGETS)):
                entry = whole.get(str(latent % d))
                if isinstance(entry, dict) and latent >= kept:
                    entry = {**entry, "examples": NO_EXAMPLES} if "examples" in entry else dict(entry)
                    entry.pop("beside", None)
                if entry is not None:
                    piece[str(latent)] = entry
            pieces[f"{kind}/{first // size}"] = packed(piece)

    def repeated(column: list[Any]) -> list[Any]:
        return (column * times)[:TARGETS]

    large = {name: repeated(value) for name, value in index.items() if name not in ("fits", "gains")}
    large["source_name"] = [f"IF{i}" for i in range(TARGETS)]
    large["fits"] = [{name: repeated(value) for name, value in fit.items()} for fit in index["fits"]]
    large["gains"] = [{**gain, "gain": repeated(gain["gain"])} for gain in index["gains"]]
    pieces["index"] = packed(large)
    head = {**head, "d": {**head["d"], "target": TARGETS, "source": TARGETS}, "cards": kept, "experiments": []}
    return render(head, pieces)


def sizes(report: Artifact[Any]) -> dict[str, Any]:
    """The size of a report's page, and what its edges and texts take of it, before base64."""
    with zipfile.ZipFile(report.file(DATA_FILE)) as archive:
        bytes_of: dict[str, int] = {}
        for info in archive.infolist():
            kind = info.filename.split("/")[0].split(".")[0].rstrip("0123456789")
            bytes_of[kind] = bytes_of.get(kind, 0) + info.file_size
        names = [name for name in archive.namelist() if name.startswith("edges")]
        edges = sum(len(json.loads(gzip.decompress(archive.read(name)))["number"]) for name in names)
    return {
        "report": report.key,
        "megabytes": round(report.facts["bytes"] / 1e6, 1),
        "edges": edges,
        "bytes an edge": round(bytes_of["edges"] / max(edges, 1), 2),
        "megabytes of data": {kind: round(size / 1e6, 2) for kind, size in sorted(bytes_of.items())},
    }


def main() -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    reports = [artifact for artifact in Store("outputs").artifacts() if artifact.stage == "report"]
    newest = max(reports, key=lambda report: report.manifest["provenance"]["made"])
    written = Path(__file__).with_name("page.json")
    written.write_text(json.dumps({"page as it is": sizes(newest)}, indent=1) + "\n")
    page = enlarged(newest.file(DATA_FILE))
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, "needs Chromium and its driver"
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_bytes(page)
        for _ in range(RUNS):
            options = webdriver.ChromeOptions()
            options.binary_location = chromium
            options.page_load_strategy = "none"
            for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
                options.add_argument(argument)
            browser = webdriver.Chrome(options=options, service=Service(driver))
            browser.get(f"file://{path}")

            def until(script: str, browser: Any = browser) -> float:
                started = time.perf_counter()
                while not browser.execute_script(f"return {script}"):
                    assert time.perf_counter() - started < 60, script
                    time.sleep(0.02)
                return time.perf_counter() - started

            until("performance.getEntriesByName('first-contentful-paint').length")
            row = {"first paint": browser.execute_script(
                "return performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
            )}  # fmt: skip
            until("document.readyState === 'complete'")
            row["whole file read"] = browser.execute_script(
                "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000"
            )
            browser.execute_script("location.hash = '#/circuits'")
            row["list of circuits"] = until("document.querySelector('main h1')?.textContent === 'Circuits'")
            browser.execute_script("location.hash = '#/target/20000'")
            row["a card"] = until("document.querySelector('main h1')?.textContent.startsWith('OF20000')")
            browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
            heap = browser.execute_cdp_cmd("Runtime.getHeapUsage", {})
            row["heap, megabytes"] = heap["usedSize"] / 1e6
            rows.append(row)
            browser.quit()
    result = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    heap = result.pop("heap, megabytes")
    result = {
        "page as it is": sizes(newest),
        "targets": TARGETS,
        "megabytes": round(len(page) / 1e6, 1),
        "megabytes of the script's heap after a card": heap,
        "seconds, median of 5": result,
    }
    print(json.dumps(result, indent=1))
    written.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
