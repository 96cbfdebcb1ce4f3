"""What each experiment promised to need in memory beside what the kernel counted: a process of its own for each.

Everything that an experiment reads is made first, so that its own work is what is counted: `python -m
benchmarks.promises FOLDER make NAME...`, then `... FOLDER count NAME`; `python -m benchmarks promises` does all of it.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.small_world import write_sae, write_world
from benchmarks.work import Row

D_SAE = 1500
"""Latents of every SAE: matrices of sources and targets are most of what is counted, beside the libraries."""

LEFT_OUT = {"suite": "it trains SAEs and has tables alone besides"}

SLACK = 40e6
"""What a process may take beside: imports, and memory that was freed and is not given back."""

HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out")


def rows() -> Iterator[Row]:
    """By experiment what it promised and what it took."""
    from saelink.experiments import EXPERIMENTS

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder)
        places = [(layer, hook) for layer in (0, 1) for hook in HOOKS] + [(1, "hook_resid_post")]
        for seed, (layer, hook) in enumerate(places):
            write_sae(folder / "wide" / f"blocks.{layer}.{hook}", seed, D_SAE, 16)
        names = sorted(set(EXPERIMENTS) - set(LEFT_OUT))
        _process(folder, "make", *names)
        for experiment in names:
            promised, grown = json.loads(_process(folder, "count", experiment))
            yield Row(
                f"memory of experiment {experiment}",
                "at most what it promised",
                f"{grown / 1e6:,.0f} of {promised / 1e6:,.0f} MB",
                grown <= promised + SLACK,
                {"bytes promised": promised, "bytes taken": grown},
            )


def _process(folder: Path, *words: str) -> str:
    """The last line that such a process prints."""
    command = [sys.executable, "-m", "benchmarks.promises", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return (done.stdout.splitlines() or [""])[-1]


def settings(folder: Path) -> list[str]:
    """Of all experiments: few tokens, few and short fits."""
    return [
        "model=folder", f"model.path={folder}/model", "data=files", f"data.path={folder}/text.jsonl",
        "data.context_size=32", "sae=folder", f"sae.path={folder}/wide", "sae.check=false", "layer=1",
        f"runtime.outputs={folder}/outputs", "wandb.mode=disabled", "normalise_layers=[0,1]", "verify.tokens=300",
        "verify.tokens_per_source=8", "verify.fit_tokens=1000", "eval.ce_tokens=512", "eval.bootstrap=20",
        "eval.verify=false", "experiment.seeds=[0]", "experiment.d_hidden=512", "experiment.tokens=2048",
        "experiment.sweep_tokens=2048", "experiment.l1_grid=[1e-2]", "experiment.pareto.l1_alphas=[1e-2]",
        "experiment.pareto.ce_at=[]", "experiment.hidden_size.sizes=[8]", "experiment.sparse_alpha=1e-2",
        "experiment.sae_connector.alphas=[1e-2]", "experiment.sae_connector.bias_alphas=[1e-2]",
        "experiment.percent_linear.bootstrap=20", "experiment.composed.layers=[0,1]",
        "experiment.several_layers.layers=[0,1]", "experiment.kept_edges=[1,1000]", "experiment.kept_tokens=512",
        "experiment.faithfulness.shares=[.1,1]", "experiment.faithfulness.tokens=512",
        "experiment.noise_threshold.levels=[1e-2]", "solver=adam", "solver.tokens=2048",
    ]  # fmt: skip


def status(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def counted(name: str, folder: Path) -> tuple[float, int]:
    """The bytes that an experiment promised, and those that the process grew by while it was made anew."""
    from saelink import configure
    from saelink.experiments import EXPERIMENTS
    from saelink.experiments.base import ExperimentStage
    from saelink.job import Job
    from saelink.store.store import Store

    cfg = configure(*settings(folder))
    stage = ExperimentStage(Job(cfg, Store(cfg.runtime.outputs)), EXPERIMENTS[name])
    stage.store.remove(stage.key)
    promised = stage.need().bytes
    gc.collect()
    start = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    stage.pull()
    return promised, status("VmHWM") - start


def main() -> None:
    from saelink import configure
    from saelink.experiments import EXPERIMENTS
    from saelink.job import Job
    from saelink.store.store import Store

    folder, what, *names = sys.argv[1:]
    if what == "count":
        print(json.dumps(counted(names[0], Path(folder))))
        return
    cfg = configure(*settings(Path(folder)))
    for name in names:
        EXPERIMENTS[name].run(Job(cfg, Store(cfg.runtime.outputs)))


if __name__ == "__main__":
    main()
