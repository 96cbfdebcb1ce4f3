"""Hub models and data sets, through the real client, from small repositories served on loopback."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saelink.errors import SaelinkError
from saelink.saes.formats import read_sae
from saelink.store.store import Store

from helpers.hub import COMMIT, Hub, overrides, run, write_learned_dicts
from helpers.world import TESTS, Bomb, World, with_solver, write_sae


def test_model_and_text_from_a_hub(world: World, hub: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, hub, "cache", *overrides(world))
    assert done.returncode == 0, done.stderr
    recipes = {artifact.stage: artifact.recipe for artifact in Store(tmp_path / "outputs").artifacts()}
    assert recipes["model"] == {"hub": "models/tiny", "commit": COMMIT}
    assert recipes["tokens"]["text"]["commit"] == COMMIT
    # Off line later on: what was fetched is still known by its commit.
    gone = {**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}
    pinned = [f"data.revision={COMMIT}", f"model.revision={COMMIT}"]
    later = run(tmp_path, gone, "cache", *overrides(world), *pinned)
    assert later.returncode == 0 and "up to date" in later.stdout and "done in" not in later.stdout, later.stderr


def test_an_adapter_on_a_hub_is_refused(world: World, hub: dict[str, str], tmp_path: Path) -> None:
    """As in a folder, and whether or not peft is installed, which would read other weights."""
    folder = Path(shutil.copytree(world.neox, tmp_path / "adapted"))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "no/where"}')
    Hub.repositories["models/tiny"] = folder
    done = run(tmp_path, hub, "cache", *overrides(world))
    assert done.returncode == 1
    assert (
        done.stderr.startswith("saelink: model.path=models/tiny: that is an adapter") and done.stderr.count("\n") == 1
    )


def test_a_stream_gives_the_same_tokens(world: World, hub: dict[str, str], tmp_path: Path) -> None:
    for streaming in ("false", "true"):
        outputs = f"runtime.outputs={streaming}"
        done = run(tmp_path, hub, "cache", *overrides(world), f"data.streaming={streaming}", outputs)
        assert done.returncode == 0, done.stderr
    first, second = (sorted((tmp_path / name / "tokens").glob("*/*.safetensors")) for name in ("false", "true"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("wrong", [["model.path=models/none"], ["data.path=data/none"], ["data.split=nope"]])
def test_what_the_hub_lacks_gets_one_line(world: World, hub: dict[str, str], tmp_path: Path, wrong: list[str]) -> None:
    done = run(tmp_path, hub, "cache", *overrides(world), *wrong)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("saelink: ")


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.parquet", "texts.txt", "texts.csv"])
def test_local_files_of_every_kind(world: World, tmp_path: Path, name: str) -> None:
    import datasets

    texts = [json.loads(line)["text"] for line in world.text.read_text().splitlines()]
    table = datasets.Dataset.from_dict({"text": texts})
    if name.endswith("txt"):
        folder = tmp_path / "txt"
        folder.mkdir()
        for number, text in enumerate(texts):
            (folder / f"{number:04d}.txt").write_text(text)
        path = folder
    else:
        path = tmp_path / name
        {"jsonl": table.to_json, "parquet": table.to_parquet, "csv": table.to_csv}[name.split(".")[1]](path)
    done = run(tmp_path, {"HF_HOME": str(tmp_path / "hf")}, "cache", *world.overrides("outputs"), f"data.path={path}")
    assert done.returncode == 0, done.stderr
    facts = next(a.facts for a in Store(tmp_path / "outputs").artifacts() if a.stage == "tokens")
    assert sum(facts["documents"].values()) == len(texts)


# --------------------------------------------------------------------------- the original's setting


POST = [
    "model.path=models/tiny", "data.path=data/tiny", "sae.hub=models/saes", "layer=1", "normalise_layers=[0,1]",
    "data.context_size=16", "data.max_tokens=null", "solver.tokens=8192", "solver.batch_tokens=256",
    "experiment.d_hidden=12", "experiment.percent_linear.bootstrap=20", "eval.ce_tokens=256", "eval.bootstrap=20",
    "runtime.forward_tokens=512", "wandb.mode=disabled", "sae.check=false",
]  # fmt: skip


def test_the_posts_experiment_from_a_hub(hub: dict[str, str], tmp_path: Path) -> None:
    """The model, its SAEs and the text as the original had them, in small: ours stands beside the original's."""
    done = run(tmp_path, hub, "run", "experiment=post", *POST)
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = tmp_path.glob("outputs/sweeps/*/post.csv")
    with table.open() as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    assert rows["percent linear"]["original"] == "78" and 0 <= float(rows["percent linear"]["ours"]) <= 100
    assert rows["dense mlp, MSE"]["original"] == "0.00081" and float(rows["dense mlp, MSE"]["ours"]) > 0
    assert float(rows["CE, model"]["ours"]) > 0 and rows["CE, oracle"]["original"] == ""
    assert {"SAE connector, hidden L0", "alive target latents", "norm of mlp_out"} < set(rows)
    assert {"sparse linear, L1", "sparse mlp, L1"} & set(rows), "the linear latents, the rest, or both"
    encodes = [artifact for artifact in Store(tmp_path / "outputs").artifacts() if artifact.stage == "encode"]
    assert {artifact.recipe["hook_name"] for artifact in encodes} == {
        "blocks.0.hook_resid_post",
        "blocks.1.hook_mlp_out",
    }
    assert all(artifact.manifest["inputs"]["sae"].startswith("hub:models/saes@" + COMMIT) for artifact in encodes)


def test_the_originals_saes_encode_as_it_says(tmp_path: Path) -> None:
    import torch

    write_learned_dicts(tmp_path, 6, 10)
    x = torch.randn(5, 6)
    for file, tied in (("Pythia-70M-deduped-0.pt", True), ("Pythia-70M-deduped-mlp-1.pt", False)):
        found = read_sae(tmp_path / file, "sae.path")
        generator = torch.Generator().manual_seed(0 if tied else 1)
        encoder = torch.randn(10, 6, generator=generator)
        decoder = encoder if tied else torch.randn(10, 6, generator=generator)
        unit = torch.nn.functional.normalize(encoder, dim=1) if tied else encoder
        latents = torch.relu(x @ unit.T - 0.5)
        assert torch.allclose(found.encode(x), latents, atol=1e-6)
        rebuilt = latents @ torch.nn.functional.normalize(decoder, dim=1)
        assert torch.allclose(found.decode(latents), rebuilt, atol=1e-6)


def test_a_malicious_or_foreign_file_is_refused_and_nothing_runs(hub: dict[str, str], tmp_path: Path) -> None:
    import torch

    saes = Hub.repositories["models/saes"]
    witness = tmp_path / "ran"
    torch.save(Bomb(witness), saes / "bomb.pt")
    torch.save({"encoder": Bomb(witness)}, saes / "inside.pt")
    torch.save({"encoder": torch.zeros(3, 3)}, saes / "plain.pt")
    (saes / "broken.pt").write_bytes(b"\x80\x02not a file")
    reasons = {
        "bomb.pt": "is refused",
        "inside.pt": "is refused",
        "other.pt": "is refused",
        "more.pt": "attribute extra is a str",
        "plain.pt": "it holds dict",
        "broken.pt": "is refused",
        "nowhere.pt": "is missing",
    }
    for file, reason in reasons.items():
        with pytest.raises(SaelinkError, match=reason):
            read_sae(saes / file, "sae.hub")
    assert not witness.exists()
    settings = [setting for setting in POST if not setting.startswith("solver.")]  # encoding has no solver of Adam's
    done = run(tmp_path, hub, "encode", "experiment.names=[]", "model=hub", "data=hub", "sae=post", *settings,
               "sae.files.hook_mlp_out=bomb.pt")  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "hf://models/saes/bomb.pt: the SAE in " in done.stderr and not witness.exists()
    done = run(tmp_path, hub, "encode", "model=hub", "data=hub", "sae=post", *settings, "sae.files.hook_mlp_out=no.pt")
    assert done.returncode == 1 and "no SAE at no.pt" in done.stderr and len(done.stderr.strip().splitlines()) == 1


# --------------------------------------------------------------------------- SAEs of every format from a hub


PULL = """
import json, sys
from helpers.world import composed
from saelink.errors import SaelinkError
from saelink.saes.choice import sae_choice
from saelink.saes.load import pull_sae
from saelink.store.store import Store

store = Store("outputs")
for line in sys.stdin:
    hook, overrides = json.loads(line)
    cfg = composed(overrides)
    try:
        choice, sae = sae_choice(cfg, store, hook), pull_sae(cfg, store, hook)
        print(json.dumps([choice.key, sae.W_enc.double().sum().item(), sae.d_sae]))
    except SaelinkError as error:
        print(json.dumps(["error", str(error), 0]))
"""


def test_saes_of_every_format_from_a_hub(world: World, hub: dict[str, str], tmp_path: Path) -> None:
    from helpers.sae_files import write_dictionary, write_gemma, write_sparsify

    folder = tmp_path / "formats"
    made = {
        "sparsify/layers.1.mlp": write_sparsify(folder / "sparsify/layers.1.mlp"),
        "dictionary/layer_1": write_dictionary(folder / "dictionary/layer_1", "BatchTopKSAE"),
        "gemma/layer_1/average_l0_7": write_gemma(folder / "gemma/layer_1/average_l0_7", 1),
        "gemma2/layer_1": write_gemma(folder / "gemma2/layer_1", 2),
        "lens/blocks.1.hook_mlp_out": write_sae(folder / "lens/blocks.1.hook_mlp_out"),
        "blocks.1.hook_mlp_out": write_sae(folder / "blocks.1.hook_mlp_out", seed=3),
    }
    Hub.repositories["models/formats"] = folder
    hook, base = "blocks.1.hook_mlp_out", world.overrides("outputs")
    by_file = [[*base, f"sae.path={folder}", f"+sae.files.hook_mlp_out=hf://models/formats/{path}"] for path in made]
    others = [
        [*base, "sae.name=x", "sae.path=null", "sae.hub=models/formats"],  # a folder of the hook's name
        [*base, f"sae.path={folder}", "+sae.files.hook_mlp_out=hf://models/formats@main/nowhere/at/all"],
        [*base, f"sae.path={folder}", "+sae.files.hook_mlp_out=hf://models/none/x"],
    ]
    lines = "".join(json.dumps([hook, overrides]) + "\n" for overrides in [*by_file, *others])
    environment = {**os.environ, **hub, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", PULL], input=lines, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for (path, local), (key, total, d_sae) in zip(made.items(), found, strict=False):
        sae = read_sae(local, "sae.path")
        assert key == f"hub:models/formats@{COMMIT}/{path} read 2" and d_sae == sae.d_sae
        assert total == pytest.approx(sae.W_enc.double().sum().item())
    assert found[-3][0] == f"hub:models/formats@{COMMIT}/blocks.1.hook_mlp_out read 2"
    assert "the repository has no SAE at nowhere/at/all; it would hold " in found[-2][1]
    assert "models/none: the hub has no such repository" in found[-1][1]


def test_a_connector_goes_to_a_hub_and_comes_back(world: World, hub: dict[str, str], tmp_path: Path) -> None:
    base = with_solver(world.overrides("outputs"), ["connector=linear", "solver=exact", "l1_alpha=1e-2"])
    done = run(tmp_path, hub, "export", *base)
    assert done.returncode == 0, done.stderr
    artifacts = {artifact.stage: artifact for artifact in Store(tmp_path / "outputs").artifacts()}
    Hub.uploads = tmp_path / "uploads"
    done = run(tmp_path, {**hub, "HF_TOKEN": "hf_x"}, "push", artifacts["train"].key, "me/mine")
    assert done.returncode == 0 and "/me/mine/commit/" in done.stdout, done.stderr
    for name in artifacts["export"].files:
        assert (Hub.uploads / "me/mine" / name).read_bytes() == artifacts["export"].file(name).read_bytes()
    Hub.repositories["me/mine"] = Hub.uploads / "me/mine"
    script = "import saelink; print(saelink.load_connector('hf://me/mine').weight.abs().double().sum().item())"
    back = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **hub})
    assert back.returncode == 0, back.stderr
    done = run(tmp_path, hub, "train", *with_solver(base, ["connector.init=hf://me/mine", "solver=proximal"]))
    assert done.returncode == 0, done.stderr
    weight = artifacts["train"].tensors("connector.safetensors")["W"]
    assert float(back.stdout) == pytest.approx(weight.abs().double().sum().item())
    for wrong, said in (
        ([artifacts["encode"].key, "me/mine"], "is a encode artifact without an export"),
        (["ffff", "me/mine"], "no artifact has a key starting with"),
        ([artifacts["export"].key, "a/b/c"], "Repo id must"),
    ):
        done = run(tmp_path, hub, "push", *wrong)
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
