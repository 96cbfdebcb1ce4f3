"""A hub on loopback: the few answers that the clients ask for."""

from __future__ import annotations

import base64
import http.server
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from helpers.world import World

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
            kind = "datasets" if name.startswith("data/") or name.endswith("-text") else "models"
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
        return self.answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)

    uploads: ClassVar[Path]

    def do_POST(self) -> None:
        """Just enough for a commit of small files, kept under `uploads`."""
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        root = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            asked = json.loads(body)
            return self.answer(json.dumps({"url": f"{root}/{asked['organization']}/{asked['name']}"}).encode())
        if path == "/api/validate-yaml":
            return self.answer(b'{"errors": [], "warnings": []}')
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if "/preupload/" in path:
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **kept} for file in json.loads(body)["files"]]
            return self.answer(json.dumps({"files": files}).encode())
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                target = self.uploads / name / entry["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(entry["value"]["content"]))
        return self.answer(json.dumps({"commitUrl": f"{root}/{name}/commit/{COMMIT}", "commitOid": COMMIT}).encode())

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def write_learned_dicts(folder: Path, d_in: int, d_sae: int = 40) -> None:
    """Files as the original work saved them: objects of classes from a package that only exists here and now."""
    import torch

    module = types.ModuleType("autoencoders.learned_dict")
    for name in ("TiedSAE", "UntiedSAE", "Other"):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
    sys.modules["autoencoders"], sys.modules[module.__name__] = types.ModuleType("autoencoders"), module
    try:
        for number, (file, kind) in enumerate(
            [
                ("Pythia-70M-deduped-0.pt", "TiedSAE"),
                ("Pythia-70M-deduped-mlp-1.pt", "UntiedSAE"),
                ("Pythia-70M-deduped-attention-1.pt", "TiedSAE"),
                ("other.pt", "Other"),
                ("more.pt", "TiedSAE"),
            ]
        ):
            generator = torch.Generator().manual_seed(number)
            sae = getattr(module, kind)()
            sae.encoder = torch.nn.Parameter(torch.randn(d_sae, d_in, generator=generator))
            sae.encoder_bias = torch.full((d_sae,), -0.5)
            sae.n_feats, sae.activation_size = d_sae, d_in
            if kind == "UntiedSAE":
                sae.decoder = torch.randn(d_sae, d_in, generator=generator)
            else:
                sae.norm_encoder = True
            if file == "more.pt":
                sae.extra = "text"
            torch.save(sae, folder / file)
    finally:
        del sys.modules["autoencoders"], sys.modules[module.__name__]


def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "saelink", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment})


def overrides(world: World) -> list[str]:
    chosen = ["model=hub", "model.path=models/tiny", "data=hub", "data.path=data/tiny"]
    kept = [o for o in world.overrides("outputs", "neox") if not o.startswith(("model", "data=", "data.path"))]
    return chosen + kept
