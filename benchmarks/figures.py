"""The figures of the README: linear and mlp connectors on layers 1 and 3, beside the exact linear optimum.

    python -m benchmarks.figures [overrides]     # artifacts go to outputs/; writes benchmarks/figures.json

Every figure is on the same test tokens. `exact linear` is the least-squares optimum of the training split (normal
equations in float64, a ridge of 1e-8 of the mean diagonal for latents that never fire), no penalty.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from saelink import metrics
from saelink.config import Config, conf_dir, register
from saelink.evaluate import evaluate
from saelink.latents import Rows
from saelink.link import load_split, pull_sides
from saelink.store import Store

CASES = [(connector, alpha) for alpha in ("0", "8e-4") for connector in ("linear", "mlp")]


def configured(overrides: list[str]) -> Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = OmegaConf.to_object(compose("config", overrides))
    assert isinstance(cfg, Config)
    return cfg


def normal_equations(source: Rows, target: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """X'X [d_source, d_source] and X'Y [d_source, d_target] in float64."""
    gram = torch.zeros(source.d, source.d, dtype=torch.float64)
    cross = torch.zeros(source.d, target.d, dtype=torch.float64)
    for x, y in zip(metrics.in_steps(source, 8192), metrics.in_steps(target, 8192), strict=True):
        dense = x.dense()
        gram += dense.T @ dense
        cross += dense.T @ y.dense()
    return gram, cross


def baselines(cfg: Config, store: Store) -> dict[str, dict[str, float]]:
    """FVU on test tokens of the training mean and of the least-squares optimum."""
    sides = pull_sides(cfg, store)
    train, test = load_split(cfg, sides, "train"), load_split(cfg, sides, "test")
    gram, cross = normal_equations(train.source, train.target)
    gram.diagonal().add_(1e-8 * gram.diagonal().mean())
    W = torch.linalg.solve(gram, cross).float()
    mean = torch.bincount(train.target.indices, train.target.values.double(), minlength=train.target.d) / len(train)
    found = {}
    for name in ("exact linear", "mean"):
        sums = {"typical": metrics.Sums(test.target.d), "massive": metrics.Sums(test.target.d)}
        for part, chosen in (("typical", test.typical), ("massive", ~test.typical)):
            tokens = test.subset(chosen)
            for x, y in zip(metrics.in_steps(tokens.source), metrics.in_steps(tokens.target), strict=True):
                predicted = x.dense() @ W if name == "exact linear" else mean.float().repeat(len(x), 1)
                sums[part].add(predicted, y)
        sums["all"] = sums["typical"] + sums["massive"]
        by_latent = sums["all"].fvu_by_latent()
        by_latent = by_latent[~by_latent.isnan()]
        found[name] = {
            "fvu": sums["all"].fvu(),
            "fvu_typical": sums["typical"].fvu(),
            "fvu_median_latent": by_latent.median().item(),
            "fraction_predicted": (by_latent < 0.5).double().mean().item(),
        }
    return found


def main() -> None:
    register()
    result: dict[str, Any] = {}
    rows = ["| layer | connector | l1_alpha | FVU | FVU typical | median latent | FVU < .5 | L1 | edges > .01 |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for layer in (1, 3):
        overrides = [f"layer={layer}", *sys.argv[1:]]
        cfg = configured(overrides)
        store = Store(cfg.runtime.outputs, say=lambda line: print(line, flush=True))
        figures: dict[str, dict[str, float]] = baselines(cfg, store)
        for connector, alpha in CASES:
            chosen = configured([*overrides, f"connector={connector}", f"l1_alpha={alpha}"])
            figures[f"{connector} {alpha}"] = evaluate(chosen, store).json("metrics.json")
        for name, f in figures.items():
            kind, _, alpha = name.rpartition(" ") if name not in ("exact linear", "mean") else (name, "", "0")
            l1 = f"{f['l1']:.2f}" if "l1" in f else ""
            edges = f"{f['n_edges_above_0.01']:,.0f}" if "n_edges_above_0.01" in f else ""
            rows.append(
                f"| {layer} | {kind} | {alpha} | {f['fvu']:.3f} | {f['fvu_typical']:.3f} "
                f"| {f['fvu_median_latent']:.2f} | {f['fraction_predicted']:.0%} | {l1} | {edges} |"
            )
        result[f"layer {layer}"] = figures
    Path(__file__).with_name("figures.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
