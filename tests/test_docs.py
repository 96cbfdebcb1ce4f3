"""README and docs/: every command and every piece of Python and YAML on a page runs on the small world.

Indented `saelink` commands are run, with the small world's model, text and SAEs where they name none. Those in a fence
(```sh) need a network or hours: their settings are composed, and that is all. Code in a fence with a title is written
to the file of that name before the page's commands run: below saelink/ or conf/ in a copy of the package, any other
beside them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from test_house import LAYERS

from saelink.cli.app import app
from saelink.config.files import conf_dir

from helpers.documented import SMALL, completed
from helpers.hub import Hub
from helpers.slurm import PLUGINS, has, stub_slurm
from helpers.transcoders import write_transcoder
from helpers.world import Run, World, write_text

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

TOGETHER = {
    "first steps": [
        "README", "docs/quickstart", "docs/guides/report", "docs/guides/edges", "docs/guides/sharing",
        "docs/reference/commands",
    ],
    "attention": ["docs/guides/attention"],
    "your-model": ["docs/guides/your-model"],
    "your-saes": ["docs/guides/your-saes"],
    "config-files": ["docs/guides/config-files"],
    "wandb": ["docs/guides/wandb"],
    "sweeps": ["docs/guides/sweeps"],
}  # fmt: skip
"""Pages whose commands run one after the other in one folder, each command once."""

OF_ONE_FILE = [f"docs/guides/new-{what}" for what in ("connector", "solver", "format", "experiment")]
"""Guides to what is added to the package; they run in a copy of it, in one process."""

ONE_BY_ONE = """
import json, sys
from saelink.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["saelink", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
"""

COMPOSED = [
    *(page for pages in TOGETHER.values() for page in pages),
    "docs/guides/experiments",
    "docs/guides/attention-qk",
    "docs/guides/circuits",
    "docs/guides/plans",
    "docs/results/attention",
]
"""Pages with commands that need more than the small world."""


def text_of(page: str) -> str:
    return (ROOT / f"{page}.md").read_text()


def commands(page: str) -> list[list[str]]:
    """The saelink commands on a page that run."""
    lines = text_of(page).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("    saelink ")]


def composed_commands(page: str) -> list[list[str]]:
    """The saelink commands on a page that need more than the small world."""
    fences = re.findall(r"^```sh\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    lines = [line for fence in fences for line in fence.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("saelink ")]


def pieces(page: str) -> list[str]:
    """The Python on a page that is no file."""
    return re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def files(page: str) -> dict[str, str]:
    """By name what a page shows as a file."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text_of(page), re.DOTALL | re.MULTILINE))


@pytest.fixture
def place(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of: models/mine, texts, saes, others, plain, transcoder."""
    shutil.copytree(world.llama, tmp_path / "models/mine")
    (tmp_path / "texts").mkdir()
    write_text(tmp_path / "texts/a.jsonl")
    shutil.copytree(world.folder / "saes", tmp_path / "saes")
    for name, hook in (("into.1", "hook_resid_mid"), ("out_of.1", "hook_mlp_out")):
        original = world.folder / f"saes/blocks.1.{hook}"
        shutil.copytree(original, tmp_path / "others" / name)
        (tmp_path / f"plain/blocks.1.{hook}").mkdir(parents=True)
        arrays = load_file(original / "sae_weights.safetensors")
        W_enc, b_enc, W_dec, b_dec = (arrays[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
        plain = tmp_path / f"plain/blocks.1.{hook}/plain.npz"
        np.savez(plain, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, k=np.array(4))
    write_transcoder(tmp_path / "transcoder", skip=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LONG = ("sweeps", "wandb", "your-model", "your-saes")
"""Pages of which many commands, or processes, take a quarter of a minute and more."""


def can_run(words: list[str], launcher: str | None) -> bool:
    """Whether what a command needs is installed."""
    if launcher is not None and not has(PLUGINS[launcher]):
        return False
    if "sae=train" in words and not has("sae_lens"):  # it and transformer-lens 4 exclude each other
        return False
    return not any("optuna" in word for word in words) or has("hydra_plugins.hydra_optuna_sweeper")


@pytest.mark.parametrize(
    "pages",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in TOGETHER],
)
def test_every_command_of_a_page_runs(pages: str, place: Path, world: World, saelink: Run, hub: dict[str, str]) -> None:
    Hub.repositories |= {"me/my-model": world.llama, "me/my-text": place / "texts", "me/my-saes": place / "others"}
    stub_slurm(place / "slurm")
    for page in TOGETHER[pages]:
        for name, content in files(page).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(content)
    found = dict.fromkeys(tuple(words) for page in TOGETHER[pages] for words in commands(page))
    assert found
    for words in map(list, found):
        full = words if words[0] == "ls" else completed(world.overrides("outputs"), words)
        launcher = next((w.split("=")[1] for w in words if w.startswith("hydra/launcher=")), None)
        if launcher == "slurm":  # the stub answers once a minute: that command is test_launchers' own
            full = [w.replace("=slurm", "=slurm_local") for w in full if "partition" not in w]
            launcher = "slurm_local"
        if not can_run(words, launcher):
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


def test_what_needs_more_than_the_small_world_composes(saelink: Run) -> None:
    found = [words for page in COMPOSED for words in composed_commands(page)]
    assert found
    for words in found:
        if words[0] == "wandb":  # a command without settings
            code, out, err = saelink(*words, "--help", bare=True)
            assert code == 0 and "Usage" in out, (words, out + err)
            continue
        code, out, err = saelink(*words, "--cfg", "job", bare=True)
        assert code == 0 and "l1_alpha:" in out, (words, out + err)


@pytest.mark.usefixtures("place")
def test_the_python_of_a_page_runs(world: World) -> None:
    base = [o for o in world.overrides("outputs") if not o.startswith("solver")]
    small = ", ".join(repr(o) for o in [*base, *(o for o in SMALL if o.startswith("report") or "ce_tokens" in o)])
    found = "\n".join(pieces("docs/guides/python")).replace('"l1_alpha=1e-3")', f'"l1_alpha=1e-3", {small})')
    assert small in found
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = re.findall(r"^\| `(\w+)\(", text_of("docs/guides/python"), re.MULTILINE)
    import saelink as package

    named = {*api, "configure", "open", "open_sweep", "load_connector", "Observer", "SaelinkError"}
    assert named == set(package.__all__)
    assert all(callable(getattr(package, name)) for name in package.__all__)


def test_what_is_added_to_the_package_is_one_file(place: Path, world: World) -> None:
    checkout = place / "checkout"
    for folder in ("saelink", "conf"):  # with __pycache__: compiled kernels are found again
        shutil.copytree(ROOT / folder, checkout / folder)
    asked = []
    for page in OF_ONE_FILE:
        for name, content in files(page).items():
            assert not (checkout / name).exists(), name
            (checkout / name).write_text(content)
        assert commands(page)
        asked += [completed(world.overrides("outputs"), words) for words in commands(page)]
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, json.dumps(asked)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    for made in ("low_rank, l1_alpha 0", "linear, l1_alpha 0, by ridge", "bias: fit 4 of 4"):
        assert made in done.stdout, done.stdout


def test_a_wandb_sweep_starts_commands_that_exist(saelink: Run) -> None:
    sweep = yaml.safe_load((conf_dir() / "wandb_sweep.yaml").read_text())
    assert "wandb sweep conf/wandb_sweep.yaml" in text_of("docs/guides/wandb")
    chosen = []
    for name, values in sweep["parameters"].items():
        chosen.append(f"{name}={values['values'][-1] if 'values' in values else values['min']}")
    words = [w for w in sweep["command"] if not w.startswith("${")]
    assert sweep["command"][0] == "${program}" and sweep["program"] == "saelink" and words[0] == "train"
    code, out, err = saelink(*words, *chosen, "--cfg", "job", bare=True)
    assert code == 0 and "l1_alpha: 1.0e-05" in out, err


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "LOG.md")), *sorted(DOCS.rglob("*.md"))]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_every_page_of_commands_is_tested() -> None:
    run = {page for pages in TOGETHER.values() for page in pages} | {*OF_ONE_FILE}
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        page = str(path.relative_to(ROOT).with_suffix(""))
        assert page in run or not (commands(page) or files(page)), page
        assert page in COMPOSED or not composed_commands(page), page


def test_every_command_has_its_line() -> None:
    names = {each.name for each in [*app.registered_commands, *app.registered_groups]}
    reference = text_of("docs/reference/commands")
    assert names == set(re.findall(r"`saelink (\w+)", reference.split("| flag")[0]))
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        if path.parent.name != "log":
            assert set(re.findall(r"`saelink (\w+)", path.read_text())) <= names, path


def test_the_readme_is_short_and_its_tree_is_there() -> None:
    text = text_of("README")
    assert len(text.splitlines()) <= 150
    tree = re.search(r"```text\nsaelink/\n(.*?)```", text, re.DOTALL)
    assert tree
    packages = re.findall(r"^  (\w+)(?:/|\.py)", tree[1], re.MULTILINE)
    assert packages == [name for name in reversed(LAYERS) if name in packages]
    for line in tree[1].splitlines():
        indented, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        assert (ROOT / ("saelink" if indented else "") / name).exists(), name


def test_the_page_of_the_house_has_the_layers_in_order() -> None:
    rows = re.findall(r"^\| (`.*?) \|", text_of("docs/design/house").split("## Why")[0], re.MULTILINE)
    named = [re.sub(r"(\.py|/)$", "", name) for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert named == [name for name in reversed(LAYERS) if not name.startswith("_")]


def test_the_page_of_settings_is_the_scripts() -> None:
    from scripts.settings_reference import PAGE, page

    assert PAGE.read_text() == page(), "python scripts/settings_reference.py writes it"


def test_the_check_of_built_pages_finds_what_is_broken(tmp_path: Path) -> None:
    from scripts.docs import broken, lost

    (tmp_path / "good.html").write_text(
        '<h1 id="top">x</h1><a href="other.html#there">x</a><a href="https://x.y/">x</a>'
    )
    (tmp_path / "other.html").write_text('<h2 id="there">x</h2><img src="data:,"><a href="#there">x</a>')
    assert broken(tmp_path) == []
    (tmp_path / "other.html").write_text('<img src="no.png"><script src="https://x.y/z.js"></script>')
    assert len(broken(tmp_path)) == 3  # a place, a picture, a script from elsewhere
    (tmp_path / "a.md").touch()
    assert lost({"project": {"nav": ["a.md", {"x": ["b.md"]}]}}, tmp_path) == [
        "zensical.toml: b.md is in docs/ or in nav, not in both"
    ]


def test_the_tables_of_a_billion_tokens_are_the_scripts() -> None:
    from benchmarks.scale import CASES, text

    page = text_of("docs/guides/scale")
    assert all(text(case) in page for case in CASES)
