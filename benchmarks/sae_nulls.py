"""How much of a circuit is the SAE's: other seeds, and SAEs that learned nothing. Tables in docs/results/evidence.md.

    python -m benchmarks.sae_nulls [NAME ...]     # an hour on 2 cores; writes benchmarks/sae_nulls.json
    python -m benchmarks.sae_nulls logic recur    # of those that were made: tested logic; what recurs

Layer 1 of the default model, its SAEs exchanged: `shipped`; `seed 0` to `seed 2`, both trained by `saelink sae` in one
pass over the default text, where the shipped ones had three over all of it; `seeds 0 and 1`, the sources' of one and
the targets' of the other; `random, fitted`, TopK of as many random directions, the decoder by least squares;
`random, frozen`, the same directions as the decoder, scaled by one number. Everything else is as by default, but that a
source is ablated on TOKENS tokens. Artifacts are taken from the folder `outputs` where they are there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import configured
from saelink.activations.cache import act_shards, cache_hooks
from saelink.compose import register
from saelink.config.schema import Config
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.logic import wilson
from saelink.evidence.logic_trials import LogicTrialsStage, named_logic
from saelink.evidence.rank_agreement import FIGURES
from saelink.evidence.verdicts import FAINT_CLAIM, VERDICTS, VERDICTS_FILE, judged, shuffled
from saelink.evidence.verify import VerdictsStage, claims_of
from saelink.fit.train import TrainStage
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.job import Job
from saelink.saes.load import pull_sae
from saelink.saes.sae import active_entries
from saelink.saes.training import SAEStage
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

FILE = Path(__file__).with_name("sae_nulls.json")

HOOKS = ("hook_resid_mid", "hook_mlp_out")

D_SAE, K = 2304, 32

EPOCHS = 1
"""Passes over the training split of the default text, 319,488 tokens, of the SAEs that are trained here."""

TOKENS = 64
"""On which a source is ablated: just enough to be judged."""

FITTED = 98_304
"""Training tokens that the decoder of a random SAE is fitted to."""

STEP = 4096

NAMES = ("shipped", "seed 0", "seeds 0 and 1", "seed 1", "seed 2", "random, fitted", "random, frozen")

ALIKE = 0.7
"""Cosine of two decoder directions, each the other's nearest, from which two latents are one."""

RESAMPLES = 1000

SHOWN = ("precision_1x", "recall_10x", "sign_1x", *FIGURES)


def main() -> None:
    register()
    store = Store("outputs", observer=TerminalObserver())
    for name in sys.argv[1:] or (*NAMES, "logic", "recur"):
        result: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"rows": {}}
        made = [each for each in NAMES if each in result["rows"]]
        if name == "recur":
            pairs = [(a, b) for i, a in enumerate(made) for b in made[i + 1 :] if "random" not in a + b]
            result["recur"] = {f"{a} in {b}": recurrence(job_of(a, store), job_of(b, store)) for a, b in pairs}
        elif name == "logic":
            result["logic"] = {each: LogicTrialsStage(job_of(each, store)).pull().facts["outcomes"] for each in made}
        else:
            result["rows"][name] = row_of(job_of(name, store))
        FILE.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result), flush=True)


def job_of(name: str, store: Store) -> Job:
    """The default job with one kind of SAEs at both of its hooks, made if they are not there."""
    words = ["layer=1", "wandb.mode=disabled", f"verify.tokens_per_source={TOKENS}"]
    if name == "shipped":
        return Job(configured(words), store)
    if name.startswith("seed"):
        seeds = [word for word in name.split() if word.isdigit()]
        paths = {}
        for hook, seed in zip(HOOKS, seeds * (3 - len(seeds)), strict=False):
            cfg = configured([*words, "sae=train", f"sae.seed={seed}", f"sae.epochs={EPOCHS}"])
            paths[hook] = SAEStage(cfg, store, f"blocks.1.{hook}").pull().path
    else:
        base = configured(words)
        paths = {hook: random_sae(base, store, hook, name.endswith("fitted")) for hook in HOOKS}
    cfg = configured([*words, "sae=folder", "sae.path=.", "sae.check=false"])
    files = {hook: str(path.resolve()) for hook, path in paths.items()}
    return Job(replace(cfg, sae=replace(cfg.sae, files=files)), store)


def random_sae(cfg: Config, store: Store, hook: str, fitted: bool) -> Path:
    """The folder of an SAE whose encoder is random: K of D_SAE directions, those that the activation has most of."""
    from safetensors.torch import save_file

    folder = store.root / "random" / ("fitted" if fitted else "frozen") / hook
    if (folder / "cfg.json").exists():
        return folder
    acts = cache_hooks(cfg, store, [f"blocks.1.{hook}"])[f"blocks.1.{hook}"]
    drop, rows, n = cfg.data.drop_positions, [], 0
    for _, shard in act_shards(acts, ["train"]):
        rows.append(shard[:, drop:].flatten(0, 1).float())
        n += len(rows[-1])
        if n >= FITTED:
            break
    x = torch.cat(rows)[:FITTED]
    tensors = random_tensors(x, fitted)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.to(torch.bfloat16) for key, value in tensors.items()}, folder / "sae_weights.safetensors")
    about = {"architecture": "topk", "d_in": x.shape[1], "d_sae": D_SAE, "k": K, "apply_b_dec_to_input": False}
    about |= {"dtype": "bfloat16", "device": "cpu", "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(about))
    return folder


def random_tensors(x: torch.Tensor, fitted: bool, d_sae: int = D_SAE, k: int = K) -> dict[str, torch.Tensor]:
    """Weights of such an SAE for activations x [n, d]; the bias of the decoder is fitted in either case."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(d_sae, x.shape[1], generator=generator), dim=1)
    mean = x.mean(0)
    zz, zx, z_mean = torch.zeros(d_sae, d_sae), torch.zeros(d_sae, x.shape[1]), torch.zeros(d_sae)
    for part in (x - mean).split(STEP):
        row, latent, value = active_entries(part @ directions.T, k, None)
        z = torch.zeros(len(part), d_sae).index_put_((row, latent), value)
        zz += z.T @ z / len(x)
        zx += z.T @ part / len(x)
        z_mean += z.sum(0) / len(x)
    zz -= torch.outer(z_mean, z_mean)
    if fitted:
        ridge = 1e-4 * zz.diagonal().mean() * torch.eye(d_sae)
        decoder = torch.linalg.solve(zz + ridge, zx)
    else:
        decoder = directions * ((zx * directions).sum() / ((zz @ directions) * directions).sum())
    return {
        "W_enc": directions.T.contiguous(), "b_enc": -(directions @ mean), "W_dec": decoder.contiguous(),
        "b_dec": mean - z_mean @ decoder,
    }  # fmt: skip


def row_of(job: Job) -> dict[str, Any]:
    """What the SAEs are worth, and what verify finds of the connector between them."""
    metrics = EvaluateStage(job.at(configured_without_verdicts(job.cfg))).pull().json("metrics.json")
    verdicts = VerdictsStage(job).pull()
    figures = verdicts.json("figures.json")
    judged_edges = sum(figures[f"edges_{word.replace(' ', '_')}"] for word in VERDICTS if word != "faint")
    measured = load_effects(EffectsStage(job).pull())
    claimed, ids = claims_of(job, TrainStage(job).pull(), measured)
    null = judged(shuffled(claimed, measured.d_source), measured, ids, job.cfg.verify.strong)[0]
    row: dict[str, Any] = {"saes": {}}
    for hook, side in zip(HOOKS, [*job.sides.sources, job.sides.target], strict=True):
        row["saes"][hook] = {key: side.facts[key] for key in ("fvu", "l0", "dead")}
    row |= {"fvu": metrics["fvu"], "n_edges": metrics["n_edges"], "judged": judged_edges}
    for word in ("confirmed", "no effect"):
        n = figures[f"edges_{word.replace(' ', '_')}"]
        row[word] = [n / max(judged_edges, 1), *wilson(n, judged_edges)]
    for key in SHOWN:
        row[key] = [figures[f"{key}{end}"] for end in ("", "_low", "_high")]
    row |= {"strong": figures["strong"], "precision_1x of shuffled pairs": null["precision_1x"]}
    return row


def configured_without_verdicts(cfg: Config) -> Config:
    """For figures of the fit alone."""
    return replace(cfg, eval=replace(cfg.eval, verify=False))


def recurrence(one: Job, other: Job) -> dict[str, Any]:
    """How much of the first's circuits is found in the second's, among latents that both have."""
    source, target = (matched(*(decoder(job, hook) for job in (one, other))) for hook in HOOKS)
    mine, theirs = (VerdictsStage(job).pull().tensors(VERDICTS_FILE) for job in (one, other))
    claimed, confirmed = (table(theirs, some) for some in (theirs["claim"].abs() >= FAINT_CLAIM, is_confirmed(theirs)))
    shuffled_targets = target.clone()
    both = target >= 0
    order = torch.randperm(int(both.sum()), generator=torch.Generator().manual_seed(0))
    shuffled_targets[both] = target[both][order]
    some = is_confirmed(mine) & (source[mine["source"].long()] >= 0) & (target[mine["target"].long()] >= 0)
    s, t = source[mine["source"][some].long()], mine["target"][some].long()
    found: dict[str, Any] = {
        "targets matched": int(both.sum()), "sources matched": int((source >= 0).sum()),
        "confirmed edges between matched": int(some.sum()),
    }  # fmt: skip
    found["drawn again"] = share(claimed[s, target[t]], t)
    found["confirmed again"] = share(confirmed[s, target[t]], t)
    found["drawn again, targets shuffled"] = share(claimed[s, shuffled_targets[t]], t)
    logic, others = dict(named_logic(one)), dict(named_logic(other))
    asked = {i: each for i, each in logic.items() if target[i] >= 0 and all(source[j] >= 0 for j in each["inputs"])}
    pairs = [(each, others.get(int(target[i]))) for i, each in asked.items()]
    same = [(each, its) for each, its in pairs if its is not None and its["word"] == each["word"]]
    inputs = [1 for each, its in same if {int(source[j]) for j in each["inputs"]} == set(its["inputs"])]
    found["named circuits"] = {
        "all": len(logic), "latents matched": len(asked), "same word": [len(same), *wilson(len(same), len(asked))],
        "same word and sources": [len(inputs), *wilson(len(inputs), len(asked))],
    }  # fmt: skip
    return found


def decoder(job: Job, hook: str) -> torch.Tensor:
    """[d_sae, d] unit directions."""
    sae = pull_sae(job.cfg, job.store, f"blocks.1.{hook}")
    return torch.nn.functional.normalize(sae.W_dec.float(), dim=1)


def matched(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[n] for each direction the other's that is the same, -1 where there is none."""
    cosine = one @ other.T
    best, place = cosine.max(1)
    mutual = cosine.argmax(0)[place] == torch.arange(len(one))
    return torch.where(mutual & (best >= ALIKE), place, -1)


def is_confirmed(edges: dict[str, torch.Tensor]) -> torch.Tensor:
    return edges["verdict"] == VERDICTS.index("confirmed")


def table(edges: dict[str, torch.Tensor], some: torch.Tensor) -> torch.Tensor:
    """[D_SAE, D_SAE] bool: which pairs of source and target are among some edges."""
    out = torch.zeros(D_SAE, D_SAE, dtype=torch.bool)
    out[edges["source"][some].long(), edges["target"][some].long()] = True
    return out


def share(hit: torch.Tensor, target: torch.Tensor) -> list[float]:
    """The share of hits [n], and its 95% interval over resampled targets [n], each with all its edges."""
    known, place = target.unique(return_inverse=True)
    counts = torch.stack([torch.bincount(place, hit.double()), torch.bincount(place).double()], 1)
    draws = torch.randint(len(known), (RESAMPLES, len(known)), generator=torch.Generator().manual_seed(0))
    sums = torch.stack([counts[row].sum(0) for row in draws])
    ends = (sums[:, 0] / sums[:, 1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [hit.double().mean().item(), *ends.tolist()]


if __name__ == "__main__":
    main()
