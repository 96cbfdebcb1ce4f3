"""Connectors on all text, layers 1 and 3: the exact linear optimum, Adam, an mlp, with and without a penalty.

    python -m benchmarks.figures [overrides]     # artifacts go to outputs/; writes benchmarks/figures.json

Every figure is on the same test tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from saelink.compose import register
from saelink.config.files import conf_dir
from saelink.config.schema import Config
from saelink.evidence.baselines import mean_predictor, variance
from saelink.evidence.evaluate import EvaluateStage
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

CASES = [
    (name, solver, alpha)
    for alpha in ("0", "8e-4")
    for name, solver in (("linear", "exact"), ("linear", "adam"), ("mlp", "adam"))
]


def configured(overrides: list[str]) -> Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = OmegaConf.to_object(compose("config", overrides))
    assert isinstance(cfg, Config)
    return cfg


def mean_fvu(cfg: Config, store: Store) -> float:
    """FVU on test tokens of predicting the training mean."""
    sides = pull_sides(cfg, store)
    test = load_split(cfg, sides, "test")
    return (mean_predictor([load_split(cfg, sides, "train")], test).sum() / variance(test).sum()).item()


def main() -> None:
    register()
    result: dict[str, Any] = {}
    rows = ["| layer | connector | l1_alpha | FVU | FVU typical | median latent | FVU < .5 | L1 | edges > .01 |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for layer in (1, 3):
        overrides = [f"layer={layer}", *sys.argv[1:]]
        cfg = configured(overrides)
        store = Store(cfg.runtime.outputs, observer=TerminalObserver())
        figures: dict[str, Any] = {"mean": {"fvu": mean_fvu(cfg, store)}}
        for connector, solver, alpha in CASES:
            chosen = configured([*overrides, f"connector={connector}", f"solver={solver}", f"l1_alpha={alpha}"])
            found = figures[f"{connector} {solver} {alpha}"] = (
                EvaluateStage(Job(chosen, store)).pull().json("metrics.json")
            )
            rows.append(
                f"| {layer} | {connector}, {solver} | {alpha} | {found['fvu']:.3f} | {found['fvu_typical']:.3f} "
                f"| {found['fvu_median_latent']:.2f} | {found['fraction_predicted']:.0%} | {found['l1']:.2f} "
                f"| {found['n_edges_above_0.01']:,} |"
            )
        result[f"layer {layer}"] = figures
    Path(__file__).with_name("figures.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
