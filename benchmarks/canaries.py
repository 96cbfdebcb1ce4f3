"""Secrets in 50 places of a machine, each with a mark of its own: none is found in what saelink writes or prints.

One process goes through the commands once (fits, a sweep with jobs that fail, verdicts, report, export, W&B offline);
a case looks for one mark in all of it, as it is and encoded, inside of compressed files and pages too.
"""

from __future__ import annotations

import atexit
import base64
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import quote

from benchmarks.small_world import overrides, write_world

VARIABLES = [
    "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET", "GOOGLE_API_KEY", "GITHUB_TOKEN", "GH_TOKEN", "GITLAB_TOKEN", "NPM_TOKEN",
    "TWINE_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "SLURM_JWT", "KAGGLE_KEY", "COMET_API_KEY",
    "MLFLOW_TRACKING_PASSWORD", "NEPTUNE_API_TOKEN", "DOCKER_AUTH_CONFIG", "VAULT_TOKEN", "MY_PASSWORD",
]  # fmt: skip
"""Environment variables that are a secret."""

URLS = ["DATABASE_URL", "REDIS_URL", "PIP_INDEX_URL", "UV_INDEX_URL", "HF_ENDPOINT", "WANDB_BASE_URL", "http_proxy",
        "HTTPS_PROXY", "ALL_PROXY"]  # fmt: skip
"""Those that are an address with a password in it."""

FILES = {
    ".netrc": "machine api.wandb.ai\n  login user\n  password {}\n",
    ".git-credentials": "https://user:{}@github.com\n",
    ".cache/huggingface/token": "{}",
    ".huggingface/token": "{}",
    ".aws/credentials": "[default]\naws_secret_access_key = {}\n",
    ".pypirc": "[pypi]\npassword = {}\n",
    ".config/pip/pip.conf": "[global]\nindex-url = https://user:{}@127.0.0.1:9/\n",
    ".config/wandb/settings": "[default]\nroot_dir = /tmp\nhost = {}\n",
    ".kaggle/kaggle.json": '{{"key": "{}"}}',
    ".ssh/id_rsa": "{}",
}
"""Files in the home folder."""

AROUND = ["the address of a git remote", "a header for git", ".env", "a setting of a job that fails",
          "hydra.job.env_set"]  # fmt: skip
"""In the folder where the commands run, and on their command line."""

PLACES = [*VARIABLES, *URLS, *FILES, *AROUND]

COMMANDS = """
import json, sys
from saelink.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["saelink", *words]
    print("$", words[0], flush=True)
    try:
        main()
    except SystemExit as stop:
        print("exit code", stop.code, flush=True)
"""


def mark(place: str) -> str:
    """What stands for the secret of a place."""
    return f"canary{PLACES.index(place):02d}{zlib.crc32(place.encode()):08x}" + "0" * 24  # as long as W&B's keys


@cache
def written() -> dict[str, bytes]:
    """What the commands wrote, by file, and what they printed."""
    folder = Path(tempfile.mkdtemp(prefix="saelink-canaries-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    home, here = folder / "home", folder / "here"
    for name, text in FILES.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(mark(name)))
    here.mkdir()
    subprocess.run(["git", "init", "-q", str(here)], check=True)
    remote, header, variables, setting, env_set = map(mark, AROUND)
    with (here / ".git/config").open("a") as file:
        file.write(f'[remote "origin"]\n\turl = https://user:{remote}@127.0.0.1:9/x.git\n')
        file.write(f'[http]\n\textraheader = "Authorization: Basic {header}"\n')
    (here / ".env").write_text(f"SECRET={variables}\n")
    base = overrides(write_world(folder / "world"), "outputs")
    places = {name: mark(name) for name in VARIABLES}
    places |= {name: f"http://user:{mark(name)}@127.0.0.1:9" for name in URLS}
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG", "OMP_NUM_THREADS")
    }
    failing = f"https://user:{setting}@127.0.0.1:9/model"
    commands = [
        ["train", "-m", *base, "layer=0,7", f"+hydra.job.env_set.SECRET={env_set}"],
        ["train", "-m", *base, "model=hub", f"model.path={failing},owner/name"],
        ["run", *base], ["verify", *base], ["export", *base], ["report", *base], ["ls"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)], cwd=here, capture_output=True, timeout=3600,
        env={**kept, **places, "HOME": str(home), "WANDB_MODE": "offline"},
    )  # fmt: skip
    made = {path.parent.parent.name for path in here.glob("outputs/*/*/manifest.json")}
    assert done.returncode == 0 and {"train", "evaluate", "verify", "export", "report"} <= made, done.stderr.decode()
    assert list(here.glob("outputs/wandb/offline-run-*")) and list(here.glob("outputs/sweeps/*/failed/*.json"))
    found = {"what was printed": done.stdout + done.stderr}
    for path in (*here.rglob("*"), *home.rglob("*")):
        own = path.relative_to(here if path.is_relative_to(here) else home)
        if path.is_file() and str(own) not in FILES and str(own) not in (".env", ".git/config"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return {name: b"\n".join(_layers(name, data)) for name, data in found.items()}


def _layers(name: str, data: bytes) -> Iterator[bytes]:
    """The bytes, and what they hold once they are unpacked."""
    yield data
    if name.endswith(".parquet"):
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(io.BytesIO(data))
        yield json.dumps([str(table.schema), table.to_pylist()]).encode()
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for inner in archive.namelist():
                yield from _layers(inner, archive.read(inner))
    if data[:2] == b"\x1f\x8b":
        yield from _layers("", gzip.decompress(data))
    for text in re.findall(rb"[A-Za-z0-9+/]{200,}={0,2}", data):
        with suppress(ValueError, OSError, EOFError, zlib.error):
            yield from _layers("", base64.b64decode(text + b"=" * (-len(text) % 4)))


def canary_case(case: int, _: Path) -> str:
    """Look for the mark of one place. Raises AssertionError with the files that have it."""
    place = PLACES[case]
    secret = mark(place)
    forms = {secret.encode(), secret.encode().hex().encode(), quote(secret).encode(), secret[::-1].encode()}
    for shift in range(3):  # as a part of something in base64
        forms.add(base64.b64encode(b"x" * shift + secret.encode())[4:-4])
    found = [name for name, data in written().items() if any(form in data for form in forms)]
    assert not found, f"{place}: in {', '.join(found)}"
    return "not found"
