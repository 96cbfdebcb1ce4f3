"""The pages of docs/: every command and piece of Python on them runs on the small world, in one folder a page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from saelink.config.files import conf_dir

from helpers.hub import Hub
from helpers.slurm import PLUGINS, has, stub_slurm
from helpers.transcoders import write_transcoder
from helpers.world import Run, World, write_text

DOCS = Path(__file__).parent.parent / "docs"

PAGES = ["your-model", "your-saes", "cluster", "new-connector", "python", "wandb"]

SMALL = [
    "data.context_size=16", "runtime.forward_tokens=512", "sae.d_sae=48", "sae.k=4", "sae.batch_tokens=128",
    "sae.epochs=1", "eval.circuits=2", "eval.ce_tokens=256", "report.ablated=1",
]  # fmt: skip
"""Sizes of the small world, where a command does not say its own."""

FEW_STEPS = ["solver.tokens=4096", "solver.batch_tokens=256", "solver.validate_every=2048"]


def commands(page: str) -> list[list[str]]:
    """The saelink commands on a page."""
    lines = (DOCS / f"{page}.md").read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    saelink ")]


def pieces(page: str) -> list[str]:
    """The Python on a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)


@pytest.fixture
def place(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the pages speak of: models/mine, texts, saes, others, transcoder."""
    shutil.copytree(world.llama, tmp_path / "models/mine")
    (tmp_path / "texts").mkdir()
    write_text(tmp_path / "texts/a.jsonl")
    shutil.copytree(world.folder / "saes", tmp_path / "saes")
    for name, hook in (("into.1", "hook_resid_mid"), ("out_of.1", "hook_mlp_out")):
        shutil.copytree(world.folder / f"saes/blocks.1.{hook}", tmp_path / "others" / name)
    write_transcoder(tmp_path / "transcoder", skip=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def completed(world: World, words: list[str]) -> list[str]:
    """A command with the small world's model, text and SAEs where it names none, and sizes that fit them."""
    said = {word.split("=", 1)[0].lstrip("+") for word in words if "=" in word}
    given = [o for o in world.overrides("outputs") if not o.startswith(("solver", "sae.check", "eval", "wandb"))]
    for group in ("model", "data", "sae"):
        if group in said:
            given = [o for o in given if not o.startswith((f"{group}=", f"{group}."))]
    learnt = any(f"connector={kind}" in words for kind in ("mlp", "low_rank"))
    extra = [*given, *SMALL, *(FEW_STEPS if learnt else [])]
    if "sae.published" not in said:
        extra.append("sae.check=false")
    if "wandb.mode" not in said:
        extra.append("wandb.mode=disabled")
    kept = {o.split("=", 1)[0]: o for o in extra if o.split("=", 1)[0] not in said}
    return [*words, *kept.values()]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "cluster" else [])  # many processes
        for name in PAGES
        if name != "new-connector"
    ],
)
def test_every_command_of_a_page_runs(page: str, place: Path, world: World, saelink: Run, hub: dict[str, str]) -> None:
    Hub.repositories |= {"me/my-model": world.llama, "me/my-text": place / "texts", "me/my-saes": place / "others"}
    stub_slurm(place / "slurm")
    found = commands(page)
    assert found or page == "python"
    for words in found:
        full = completed(world, words)
        launcher = next((w.split("=")[1] for w in words if w.startswith("hydra/launcher=")), None)
        if launcher == "slurm":  # the stub answers once a minute: that command is test_launchers' own
            full = [w.replace("=slurm", "=slurm_local") for w in full if "partition" not in w]
            launcher = "slurm_local"
        if launcher is not None and not has(PLUGINS[launcher]):
            continue
        if "sae=train" in words and not has("sae_lens"):  # it and transformer-lens 4 exclude each other
            continue
        if any("optuna" in word for word in words) and not has("hydra_plugins.hydra_optuna_sweeper"):
            continue
        if launcher or "hub" in " ".join(words):
            environment = {**os.environ, **hub, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-m", "saelink", *full], capture_output=True, text=True, env=environment
            )
            code, said = done.returncode, done.stdout + done.stderr
        else:
            code, out, err = saelink(*full, bare=True)
            said = out + err
        assert code == 0, (words, said)


@pytest.mark.parametrize("page", ["python"])
def test_the_python_of_a_page_runs(page: str, place: Path, world: World) -> None:
    base = [o for o in world.overrides("outputs") if not o.startswith("solver")]
    small = ", ".join(repr(o) for o in [*base, *(o for o in SMALL if o.startswith("report") or "ce_tokens" in o)])
    found = "\n".join(pieces(page)).replace('"l1_alpha=1e-3")', f'"l1_alpha=1e-3", {small})')
    assert small in found
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = re.findall(r"^\| `(\w+)\(", (DOCS / "python.md").read_text(), re.MULTILINE)
    import saelink as package

    assert {*api, "configure", "open", "load_connector", "SaelinkError"} == set(package.__all__)
    assert all(callable(getattr(package, name)) for name in package.__all__)


def test_a_new_connector_is_one_file(place: Path, world: World) -> None:
    root = Path(__file__).parent.parent
    checkout = place / "checkout"
    shutil.copytree(root / "saelink", checkout / "saelink")
    shutil.copytree(root / "conf", checkout / "conf")
    (code,) = pieces("new-connector")
    (checkout / "saelink/connectors/low_rank.py").write_text(code)
    for words in commands("new-connector"):
        done = subprocess.run(
            [sys.executable, "-m", "saelink", *completed(world, words)], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip
        assert done.returncode == 0 and "low_rank" in done.stdout, done.stderr


def test_a_wandb_sweep_starts_commands_that_exist(saelink: Run) -> None:
    for path in (conf_dir() / "sweep").glob("*.yaml"):
        sweep = yaml.safe_load(path.read_text())
        assert f"wandb sweep conf/sweep/{path.name}" in (DOCS / "wandb.md").read_text()
        chosen = []
        for name, values in sweep["parameters"].items():
            chosen.append(f"{name}={values['values'][-1] if 'values' in values else values['min']}")
        words = [w for w in sweep["command"] if not w.startswith("${")]
        assert sweep["command"][0] == "${program}" and sweep["program"] == "saelink" and words[0] == "train"
        code, out, err = saelink(*words, *chosen, "--cfg", "job", bare=True)
        assert code == 0 and "l1_alpha: 1.0e-05" in out, err


def test_the_pages_are_named_in_the_readme() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    for page in [*PAGES, "scale"]:
        assert f"docs/{page}.md" in readme, page
        text = (DOCS / f"{page}.md").read_text()
        for link in re.findall(r"\]\(([\w-]+\.md)\)", text):
            assert (DOCS / link).exists(), f"{page}: {link}"


def test_the_tables_of_a_billion_tokens_are_the_scripts() -> None:
    from benchmarks.scale import CASES, text

    page = (DOCS / "scale.md").read_text()
    assert all(text(case) in page for case in CASES)
