"""What a store holds, as a list that two versions of saelink can be compared by: keys, tensors, tables.

    python scripts/fingerprint.py list outputs            the list of a store, and its digest
    python scripts/fingerprint.py small /tmp/small        make the small run there (a minute or so), then its list
    python scripts/fingerprint.py default /tmp/default    the same for the default model and text (about 15 minutes)

A refactoring has changed nothing if the lists before and after are the same. Each artifact gives a line with its stage
and key, and one for every tensor and table in it: the sha256 of its contents. What latents are called (top tokens) is
left out of the tables; `--labels` keeps it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LABELS = {
    "command",
    "token",
    "tokens",
    "source_token",
    "target_token",
    "top_token",
    "on_top_token",
    "clerp",
    "texts",
    "lines",
}
"""Fields of tables that say what a latent is called, or that quote text."""

SKIPPED = {"manifest.json", "report.html", "README.md", "circuits.txt", "text.txt", "graph-metadata.json"}
"""Prose, and pages made of what is listed anyway."""

SMALL: list[list[str]] = [
    ["run", "l1_alpha=[1e-3,1e-2]", "solver=exact", "eval.ce=true"],
    ["verify", "solver=exact", "l1_alpha=1e-3", "verify.consequences=2", "outliers.shares.massive=0"],
    ["report", "solver=exact", "l1_alpha=1e-3", "eval.ce=true", "report.l1_alphas=[1e-2]"],
    ["export", "solver=exact", "l1_alpha=1e-3"],
    ["graph", "the old king sat on", "solver=exact", "l1_alpha=1e-3"],
    ["train", "connector=linear", "l1_alpha=1e-3", "connector.bias=true"],
    ["evaluate", "connector=nonlinear", "solver=proximal", "l1_alpha=1e-3", "solver.tokens=8192"],
    ["verify", "connector=linear", "solver=causal", "l1_alpha=1e-3"],
    ["verify", "connector=nonlinear", "solver=causal", "l1_alpha=1e-3", "solver.tokens=4096"],
    ["run", "connector=mlp", "connector.d_hidden=8", "l1_alpha=1e-3", "solver.tokens=8192"],
    ["evaluate", "connector=two_nonlinear", "connector.d_hidden=8", "l1_alpha=1e-4", "solver.tokens=8192"],
    ["evaluate", "connector=sae", "connector.d_hidden=8", "l1_alpha=1e-4", "solver.tokens=8192"],
    ["run", "connector=skip", "connector.d_hidden=8", "l1_alpha=1e-3", "solver.tokens=8192", "solver=readout"],
    ["verify", "solver=exact", "l1_alpha=1e-3", "link=attn", "verify.tokens=256"],
    ["evaluate", "solver=exact", "l1_alpha=1e-3", "link=block", "normalise=post", "normalise_layers=[0,1]"],
    ["train", "solver=exact", "normalise=energy", "latent_scale=none", "data.drop_positions=2"],
]
"""Commands that go through every stage at the size of the tests' models."""

EXPERIMENTS = [
    "normalise_layers=[0,1]", "eval.ce_tokens=256", "eval.bootstrap=20", "solver.tokens=4096",
    "experiment.d_hidden=8", "experiment.tokens=4096", "experiment.sweep_tokens=2048",
]  # fmt: skip
"""Settings under which the post's experiments take a minute there."""

DEFAULT = [
    ["run", "eval.ce=true", "eval.ce_tokens=2048"],
    ["verify"],
    ["export"],
    ["graph", "The old king sat on the"],
]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def without_labels(value: Any, labels: bool) -> Any:
    if isinstance(value, dict):
        return {k: without_labels(v, labels) for k, v in sorted(value.items()) if labels or k not in LABELS}
    return [without_labels(item, labels) for item in value] if isinstance(value, list) else value


def table(value: Any, labels: bool) -> str:
    return digest(json.dumps(without_labels(value, labels), sort_keys=True).encode())


def entries(path: Path, labels: bool) -> Iterator[tuple[str, str]]:
    """Name and digest of everything one file of an artifact holds."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        for name, tensor in sorted(load_file(path).items()):
            raw = tensor.contiguous().flatten().view(dtype=_bytes()).numpy().tobytes() if tensor.numel() else b""
            yield f"{path.name} {name}", digest(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + raw)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            for name in sorted(archive.namelist()):
                yield f"{path.name} {name}", table(json.loads(gzip.decompress(archive.read(name))), labels)
    elif path.suffix == ".json":
        yield path.name, table(json.loads(path.read_bytes()), labels)
    elif path.suffix == ".csv":
        import csv

        rows = list(csv.DictReader(io.StringIO(path.read_text(errors="surrogateescape"))))
        yield path.name, table(rows, labels)
    elif labels:
        yield path.name, digest(path.read_bytes())


def _bytes() -> Any:
    import torch

    return torch.uint8


def fingerprint(outputs: Path, labels: bool = False) -> list[str]:
    """The list of a store: a line for every artifact, tensor and table, sorted."""
    lines = []
    for manifest in sorted(outputs.glob("*/*/manifest.json")):
        folder = manifest.parent
        known = json.loads(manifest.read_bytes())
        facts = without_labels(known["facts"], labels)
        lines.append(f"{known['stage']} {known['key']} facts {table(facts, labels)}")
        for name in sorted(known["files"]):
            if name not in SKIPPED or labels:
                lines += [
                    f"{known['stage']} {known['key']} {what} {sha}" for what, sha in entries(folder / name, labels)
                ]
    return lines


def run(commands: list[list[str]], base: list[str], folder: Path) -> None:
    """Run saelink commands one after the other, on one thread so that sums have one order."""
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", "saelink", command[0], *base, *command[1:]],
            cwd=folder,
            check=True,
            stdout=sys.stderr,
        )


def make_small(folder: Path) -> Path:
    tests = str(Path(__file__).resolve().parent.parent / "tests")
    sys.path.insert(0, tests)
    from helpers.world import World

    os.environ["OMP_NUM_THREADS"] = "1"
    folder.mkdir(parents=True)
    outputs = folder / "outputs"
    names = ["model.name=small", "data.name=text", "sae.name=random"]
    base = [*World(folder / "world").overrides(outputs), *names, "runtime.threads=1"]
    # without the solver of the small world, which takes settings that not every solver has
    solver = [override for override in base if override.startswith("solver")]
    plain = [override for override in base if not override.startswith("solver")]
    for command in SMALL:
        own = any(word.startswith("solver=") for word in command)
        tokens = any(word.startswith("solver.tokens") for word in command)
        given = [] if own else [word for word in solver if not (tokens and word.startswith("solver.tokens"))]
        run([command], [*plain, *given], folder)
    names = (
        "[norms,dense,percent_linear,pareto,sparse_linear,hidden_size,noise_threshold,outliers,closure,edges_kept,skip]"
    )
    run([["run", "experiment=dense", f"experiment.names={names}", *EXPERIMENTS]], [*base, "layer=1"], folder)
    return outputs


def make_default(folder: Path) -> Path:
    folder.mkdir(parents=True)
    run(DEFAULT, ["wandb.mode=disabled", f"runtime.outputs={folder}/outputs", "runtime.threads=1"], folder)
    return folder / "outputs"


def main() -> None:
    parser = argparse.ArgumentParser(description="The list of what a store holds, and its digest.")
    parser.add_argument("what", choices=["list", "small", "default"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", action="store_true", help="also what latents are called")
    arguments = parser.parse_args()
    makers = {"small": make_small, "default": make_default, "list": lambda folder: folder}
    lines = fingerprint(makers[arguments.what](arguments.folder.resolve()), arguments.labels)
    print("\n".join(lines))
    print(f"digest {digest(''.join(lines).encode())} of {len(lines)} lines", file=sys.stderr)


if __name__ == "__main__":
    main()
