"""Hub models and data sets, through the real client, from small repositories served on loopback."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from saelink.store import Store

from conftest import World

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of a hub that the clients ask for: repository info, tree, files."""

    repositories: dict[str, Path] = {}  # noqa: RUF012

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        for name, folder in self.repositories.items():
            kind = "datasets" if name.startswith("data/") else "models"
            prefix = "datasets/" if kind == "datasets" else ""
            files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            if path.startswith(f"api/{kind}/{name}/tree/") or path.startswith(f"api/{kind}/{name}/paths-info/"):
                entries = [
                    {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0" * 40} for f in files
                ]
                return self.answer(json.dumps(entries).encode())
            if path == f"api/{kind}/{name}" or path.startswith(f"api/{kind}/{name}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                info = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "gated": False}
                return self.answer(json.dumps(info).encode())
            if path.startswith(f"{prefix}{name}/resolve/"):
                file = "/".join(path.removeprefix(f"{prefix}{name}/resolve/").split("/")[1:])
                if file in files:
                    return self.answer((folder / file).read_bytes(), {"ETag": f'"{abs(hash(file)):x}"'})
                return self.answer(b"{}", {"X-Error-Code": "EntryNotFound"}, 404)
        self.answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(world: World, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables that point the clients at a hub with a model and a data set."""
    data = tmp_path / "hub-data"
    data.mkdir()
    (data / "train.jsonl").write_text(world.text.read_text())
    Hub.repositories = {"models/tiny": world.neox, "data/tiny": data}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", **home}
    server.shutdown()
    thread.join()


def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "saelink", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment})


def overrides(world: World) -> list[str]:
    chosen = ["model=hub", "model.path=models/tiny", "data=hub", "data.path=data/tiny"]
    kept = [o for o in world.overrides("outputs", "neox") if not o.startswith(("model", "data=", "data.path"))]
    return chosen + kept


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
    assert later.returncode == 0 and later.stdout.count("up to date") == 2, later.stderr


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
