"""`experiment=post` on a random model and SAEs of exactly the original's shape and format, from a hub on loopback.

    python -m benchmarks.post FOLDER                # the original's size: 4.2M tokens of text, 3,074,048 a fit
    python -m benchmarks.post FOLDER --share 0.1    # a tenth of the tokens; model, SAEs and layers as they are
    python -m benchmarks.post FOLDER --minutes 9    # stops then; the same command again goes on where it was

When all layers are done it writes benchmarks/post.json: time, disk, peak memory, and every line of the comparison.
Its figures say nothing of the original's findings, because the model is random; that each is there is what counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.post_world import D_SAE, L0, served, write_world
from saelink.experiments.post import ORIGINAL

LAYERS = (1, 2, 3, 4, 5)
TOKENS, TEXT_TOKENS, BATCH = 3_074_048, 4_200_000, 1024
"""Of conf/experiment/post.yaml."""

STOPPED = (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""How a command ends that was told to, whoever did."""

NOT_DONE = 75
"""Exit status of a piece after which there is more to do."""


def overrides(share: float) -> list[str]:
    """The command, after `saelink`. sae.check: random dictionaries rebuild next to nothing."""
    tokens = max(round(TOKENS * share) // BATCH, 1) * BATCH
    return [
        "run", "experiment=post", "sae.check=false", f"solver.tokens={tokens}",
        f"data.max_tokens={round(TEXT_TOKENS * share)}", "wandb.mode=disabled",
    ]  # fmt: skip


def piece(folder: Path, share: float, seconds: float | None) -> dict[str, Any]:
    """One run of the command, ended after some seconds; what it took, and whether it came to its end."""
    repositories = write_world(folder / "hub")
    log = folder / "log.txt"
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with served(repositories, folder / "hf") as hub, log.open("a") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "saelink", *overrides(share)],
            cwd=folder, env=os.environ | hub, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code: int | None = child.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            child.send_signal(signal.SIGTERM)
            child.wait()
            code = None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = None if code in STOPPED else code
    if code:
        sys.exit(f"{log}: saelink ended with {code}\n" + "\n".join(log.read_text().splitlines()[-5:]))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.perf_counter() - started
    return {"seconds": round(wall), "processor": round(processor), "peak": after.ru_maxrss / 1e6, "done": code == 0}


def tables(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    """By layer and figure what `post` printed: ours and the original's, None where one is not there."""
    newest = max(folder.glob("outputs/sweeps/*/post.csv"), key=lambda path: path.stat().st_mtime)
    found: dict[int, dict[str, dict[str, float]]] = {}
    with newest.open() as file:
        for row in csv.DictReader(file):
            both = {name: float(row[name]) for name in ("ours", "original") if row[name]}
            found.setdefault(int(row["layer"]), {})[row["figure"]] = both
    return found


def empty_lines(table: dict[int, dict[str, dict[str, float]]]) -> list[str]:
    """The lines of the comparison that lack a figure."""
    return [
        f"layer {layer}: {figure}"
        for layer in LAYERS
        for figure in ORIGINAL
        if not math.isfinite(table.get(layer, {}).get(figure, {}).get("ours", math.nan))
    ]


def active(folder: Path) -> dict[str, float]:
    """By hook the active latents a token on test documents."""
    manifests = [json.loads(path.read_text()) for path in folder.glob("outputs/encode/*/manifest.json")]
    return {each["facts"]["hook_name"]: round(each["facts"]["l0"], 1) for each in manifests}


def disk(folder: Path) -> float:
    """GB of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e9


def by_stage(folder: Path) -> dict[str, dict[str, float]]:
    """By stage how many artifacts there are, their own seconds (with those they pulled), GB and highest memory."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("outputs/*/*/manifest.json")):
        manifest = json.loads(path.read_text())
        entry = found.setdefault(manifest["stage"], {"artifacts": 0, "seconds": 0.0, "GB": 0.0})
        entry["artifacts"] += 1
        entry["seconds"] = round(entry["seconds"] + manifest["provenance"]["seconds"], 1)
        entry["GB"] = round(entry["GB"] + sum(file["size"] for file in manifest["files"].values()) / 1e9, 3)
    return found


def result(folder: Path, share: float, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    table = tables(folder)
    return {
        "share of the original's tokens": share,
        "command": "saelink " + " ".join(overrides(share)),
        "SAEs": {"latents": D_SAE, "mean active, aimed at": L0, "mean active": active(folder)},
        "pieces": len(pieces),
        "minutes, wall": round(sum(each["seconds"] for each in pieces) / 60, 1),
        "minutes of one core": round(sum(each["processor"] for each in pieces) / 60, 1),
        "peak memory of a process, GB": round(max(each["peak"] for each in pieces), 2),
        "disk, GB": round(disk(folder / "outputs"), 2),
        "fetched, GB": round(disk(folder / "hf"), 2),
        "by stage": by_stage(folder),
        "lines of the comparison without a figure": empty_lines(table),
        "ours": {figure: [table[layer].get(figure, {}).get("ours") for layer in LAYERS] for figure in ORIGINAL},
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: version(name) for name in ("saelink", "torch", "transformers", "transformer-lens")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--result", type=Path, default=Path(__file__).with_name("post.json"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a piece took is noted first
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / f"pieces-{asked.share:g}.json"
    pieces: list[dict[str, Any]] = json.loads(noted.read_text()) if noted.exists() else []
    if not (pieces and pieces[-1]["done"]):
        pieces.append(piece(folder, asked.share, asked.minutes and 60 * asked.minutes))
        noted.write_text(json.dumps(pieces))
    if not pieces[-1]["done"]:
        print(f"not done after {sum(each['seconds'] for each in pieces) / 60:.0f} minutes; the same command goes on")
        sys.exit(NOT_DONE)
    found = result(folder, asked.share, pieces)
    asked.result.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if found["lines of the comparison without a figure"]:
        sys.exit("not every line of the comparison has a figure")


if __name__ == "__main__":
    main()
