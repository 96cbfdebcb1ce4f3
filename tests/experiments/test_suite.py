"""A suite of SAEs: one row and one card for each, gone on with where it was stopped."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.experiments import EXPERIMENTS
from saelink.experiments.suite import depths
from saelink.experiments.tables import rows_of
from saelink.job import Job
from saelink.store.store import Store

from helpers.world import Run, World

Compose = Callable[..., Config]

SMALL = [
    "experiment.suite.layers=[0,1]", "experiment.suite.widths=[24,48]", "sae.k=4", "sae.epochs=2",
    "sae.batch_tokens=256", "eval.ce_tokens=256", "eval.bootstrap=20",
]  # fmt: skip


def test_a_suite_is_trained_measured_and_never_twice(saelink: Run, world: World, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    base = [o for o in world.overrides("outputs") if not o.startswith(("sae", "solver"))]
    command = ["run", *base, "experiment=suite", *SMALL]
    code, out, err = saelink(*command, bare=True)
    assert code == 0, out + err
    (table,) = (tmp_path / "outputs/sweeps").glob("*/suite.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    names = ("blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")
    assert [(row["hook"], row["latents"]) for row in rows] == [
        (name, width) for name in names for width in ("24", "48")
    ]
    (result,) = (tmp_path / "outputs/experiment").glob("*/manifest.json")
    for row in rows:
        assert 0 < float(row["fvu"]) < 1.5 and 0 < float(row["l0"]) <= 4 and float(row["minutes"]) > 0
        card = (result.parent / f"card-{row['hook']}-{row['latents']}.md").read_text()
        assert f"| error, FVU | {float(row['fvu']):.4f} |" in card and row["training tokens"].isdigit()
        assert (tmp_path / "outputs/sae" / row["key"] / "cfg.json").exists()
        share = (float(row["zero"]) - float(row["ce"])) / (float(row["zero"]) - float(row["clean"]))
        assert float(row["recovered"]) == pytest.approx(share, rel=1e-4)
    saes = {artifact.key for artifact in Store(tmp_path / "outputs").artifacts() if artifact.stage == "sae"}
    assert saes == {row["key"] for row in rows}
    code, out, err = saelink(*command, bare=True)
    assert code == 0 and "done in" not in out, out + err
    code, out, err = saelink(*command, "experiment.suite.widths=[24,48,96]", bare=True)  # gone on with
    assert code == 0 and out.count("\nsae ") >= 4, out + err
    assert saes < {artifact.key for artifact in Store(tmp_path / "outputs").artifacts() if artifact.stage == "sae"}


def test_saes_that_exist_are_measured(config: Compose, store: Store) -> None:
    cfg = config("experiment.suite.layers=[1]", "eval.ce_tokens=256", "eval.bootstrap=20", "experiment.names=[suite]")
    rows = rows_of(EXPERIMENTS["suite"].run(Job(cfg, store)))
    assert [row["latents"] for row in rows] == [48, 48] and all(row["minutes"] is None for row in rows)


def test_four_depths() -> None:
    assert depths(30) == [0, 7, 15, 29] and depths(18) == [0, 4, 9, 17] and depths(2) == [0, 1] and depths(1) == [0]


def test_layers_of_a_model_whose_size_is_not_known(config: Compose, store: Store) -> None:
    with pytest.raises(SaelinkError, match=r"experiment\.suite\.layers=\[\]: give the layers"):
        EXPERIMENTS["suite"].run(Job(config(), store))


@pytest.mark.parametrize("wrong", ["layers=[-1]", "hooks=[]", "widths=[0]"])
def test_a_wrong_setting_is_one_line(saelink: Run, wrong: str) -> None:
    code, _, err = saelink("run", "experiment=suite", f"experiment.suite.{wrong}")
    assert code == 1 and err.count("\n") == 1 and f"experiment.suite.{wrong}" in err
