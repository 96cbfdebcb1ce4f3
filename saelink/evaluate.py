"""Measure a connector on test documents and read its circuits: the stage `evaluate`."""

from __future__ import annotations

from typing import Any

import torch

from saelink import metrics
from saelink.config import Config
from saelink.connectors import Connector
from saelink.connectors.base import Edges
from saelink.data import tokens as pull_tokens
from saelink.latents import Rows, Tokens
from saelink.model import device_of, load_tokenizer, model_info
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, Store, recipe_of
from saelink.train import CONFIG_FILE, load_connector, load_split, pull_sides, train, train_plan

VERSION = 1

PREDICTED = 0.5
"""A target latent counts as predicted when its FVU is below this."""

HIDDEN_SHOWN = 2
"""Hidden units that are spelt out under a circuit, for connectors that have them."""


def evaluate_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a connector's evaluation."""
    plan = train_plan(cfg, store)
    return Plan("evaluate", VERSION, {"eval": recipe_of(cfg.eval)}, {"connector": plan.key}, plan.about)


def evaluate(cfg: Config, store: Store) -> Artifact:
    """Pull a connector's evaluation on the test split.

    Files: `metrics.json`; `latents.safetensors` with, per target latent, `fvu` (nan where it never varies), `mse`,
    `variance` and `active` (test tokens); `circuits.json` and `circuits.txt`.
    """
    plan = evaluate_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    connector = train(cfg, store)
    return store.build(plan, lambda draft: _evaluate(cfg, store, connector, draft), device_of(cfg))


def _evaluate(cfg: Config, store: Store, artifact: Artifact, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    sides = pull_sides(cfg, store)
    connector = load_connector(artifact, device)
    test = load_split(cfg, sides, "test")
    sums = measure(connector, test, device)
    figures = {
        "n_tokens": sums["all"].n,
        "n_tokens_typical": sums["typical"].n,
        "mse": sums["all"].mse(),
        "fvu": sums["all"].fvu(),
        "fvu_typical": sums["typical"].fvu(),
        "l1": connector.l1(),
        "n_edges": connector.n_edges(),
        **{f"n_edges_above_{threshold:g}": connector.n_edges(threshold) for threshold in cfg.eval.edge_thresholds},
    }
    by_latent = sums["all"].fvu_by_latent()
    varying = ~by_latent.isnan()
    figures |= {
        "fvu_median_latent": by_latent[varying].median().item(),
        "fraction_predicted": (by_latent[varying] < PREDICTED).double().mean().item(),
        "n_targets": int(varying.sum()),
        "d_target": len(by_latent),
    }
    if cfg.normalise.name != "none":
        figures["normalised_mse"] = figures["mse"] / artifact.facts["c"]
    draft.save_json("metrics.json", figures)
    n = sums["all"].n
    draft.save_tensors(
        "latents.safetensors",
        {
            "fvu": by_latent,
            "mse": sums["all"].squared_error / n,
            "variance": sums["all"].variation() / n,
            "active": sums["all"].active,
        },
    )
    circuits = _circuits(cfg, store, connector, test, by_latent, sums["all"].active)
    draft.save_json("circuits.json", circuits)
    draft.save_bytes("circuits.txt", ("\n".join(map(circuit_text, circuits)) + "\n").encode())
    return figures


def measure(connector: Connector, test: Tokens, device: str) -> dict[str, metrics.Sums]:
    """Sums over `all` tokens that count, and over the `typical` ones among them."""
    parts = {
        name: test.subset(rows) for name, rows in (("typical", test.typical), ("massive", ~test.typical)) if rows.any()
    }
    sums = {"typical": metrics.Sums(test.target.d), "massive": metrics.Sums(test.target.d)}
    with Progress("evaluate", len(test)) as bar, torch.inference_mode():
        for name, part in parts.items():
            for source, target in zip(metrics.in_steps(part.source), metrics.in_steps(part.target), strict=True):
                sums[name].add(connector(source.to(device)).cpu(), target)
                bar.advance(len(source))
    return {"all": sums["typical"] + sums["massive"], "typical": sums["typical"]}


# --------------------------------------------------------------------------- circuits


def top_tokens(rows: Rows, ids: torch.Tensor) -> dict[int, int]:
    """For each latent the token id that carries most of its activation; `ids` [n] are the rows' tokens."""
    n_ids = int(ids.max()) + 1
    pair = rows.indices * n_ids + ids[rows.row_of]
    pairs, place = pair.unique(return_inverse=True)
    total = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, place, rows.values.double())
    order = total.argsort(descending=True, stable=True)
    best: dict[int, int] = {}
    for latent, token in zip((pairs[order] // n_ids).tolist(), (pairs[order] % n_ids).tolist(), strict=True):
        best.setdefault(latent, token)
    return best


def _circuits(
    cfg: Config, store: Store, connector: Connector, test: Tokens, fvu: torch.Tensor, active: torch.Tensor
) -> list[dict[str, Any]]:
    """The circuits of the best predicted target latents that are active often enough to be believed."""
    tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)
    ids = pull_tokens(cfg, store).tensors("test.safetensors")["ids"].flatten().long()[test.row]
    labels = {"OF": top_tokens(test.target, ids), "IF": top_tokens(test.source, ids)}

    def unit(prefix: str, number: int) -> dict[str, Any]:
        token = labels.get(prefix, {}).get(number)
        return {"unit": f"{prefix}{number}"} if token is None else {"unit": f"{prefix}{number}", "token": decode(token)}

    def decode(token: int) -> str:
        return tokenizer.decode([token]).strip() or tokenizer.decode([token])

    def terms(prefix: str, edges: Edges) -> list[dict[str, Any]]:
        return [{"weight": weight, **unit(prefix, i)} for i, weight in zip(edges.ids, edges.weights, strict=True)]

    believed = (active >= cfg.eval.min_active) & ~fvu.isnan()
    order = torch.where(believed, fvu, torch.inf).argsort(stable=True)[: min(cfg.eval.circuits, int(believed.sum()))]
    circuits = []
    for target in order.tolist():
        edges = connector.edges(target, cfg.eval.edges)
        hidden = {i: connector.hidden_edges(i, cfg.eval.edges) for i in edges.ids[:HIDDEN_SHOWN]}
        circuit = {**unit("OF", target), "fvu": fvu[target].item(), "active": int(active[target])}
        if any(inner is not None for inner in hidden.values()):
            circuit["terms"] = terms("H", edges)
            circuit["hidden"] = [
                {"unit": f"H{i}", "terms": terms("IF", inner)} for i, inner in hidden.items() if inner is not None
            ]
        else:
            circuit["terms"] = terms("IF", edges)
        circuits.append(circuit)
    return circuits


def _sum_text(terms: list[dict[str, Any]]) -> str:
    text = ""
    for term in terms:
        sign = ("-" if term["weight"] < 0 else "+") if text else ("-" if term["weight"] < 0 else "")
        size = f"{abs(term['weight']):.2f}".removeprefix("0")
        text += (f" {sign} " if text else sign) + f"{size} {_unit_text(term)}"
    return text or "0"


def _unit_text(unit: dict[str, Any]) -> str:
    if "token" not in unit:
        return unit["unit"]
    token = unit["token"].encode("unicode_escape").decode() if not unit["token"].isprintable() else unit["token"]
    return f'{unit["unit"]} "{token}"'


def circuit_text(circuit: dict[str, Any]) -> str:
    """One circuit as text: OF1064 "history" = .37 IF324 "history" + .11 IF1484 "philosophy"."""
    head = f"{_unit_text(circuit)} = {_sum_text(circuit['terms'])}"
    inner = [f"    {hidden['unit']} = relu({_sum_text(hidden['terms'])})" for hidden in circuit.get("hidden", [])]
    return "\n".join([head, *inner])


# --------------------------------------------------------------------------- for the terminal


def print_evaluation(store: Store, connector: Artifact, evaluation: Artifact) -> None:
    """The table of figures and the circuits, from the artifacts alone."""
    figures = evaluation.json("metrics.json")
    config = connector.json(CONFIG_FILE)
    sources = " + ".join(source["hook_name"] for source in config["sources"])
    rows = [
        ("connector", f"{config['connector']['name']}, l1_alpha {config['l1_alpha']:g}, by {config['solver']['name']}"),
        ("link", f"{sources} -> {config['target']['hook_name']}"),
        ("test tokens", f"{figures['n_tokens']:,}"),
        ("MSE", f"{figures['mse']:.3g} per target latent (latents in units of {config['target']['scale']:.3g})"),
        ("FVU", f"{figures['fvu']:.3f} (0 is perfect, 1 predicts the mean)"),
        (
            "FVU typical",
            f"{figures['fvu_typical']:.3f} without the {1 - figures['n_tokens_typical'] / figures['n_tokens']:.1%} "
            "of tokens with massive activations",
        ),
        ("FVU median", f"{figures['fvu_median_latent']:.3f} over target latents"),
        ("predicted", f"{figures['fraction_predicted']:.0%} of {figures['n_targets']:,} target latents have FVU < .5"),
        ("L1", f"{figures['l1']:.3f}"),
        ("edges", _edges_text(figures)),
    ]
    store.say("")
    for name, text in rows:
        store.say(f"  {name:12} {text}")
    store.say("\n  Best predicted target latents (OF) from source latents (IF), each with its top token:\n")
    for line in evaluation.file("circuits.txt").read_text().splitlines():
        store.say(f"  {line}")
    store.say(f"\n  connector  {connector.path}\n  evaluation {evaluation.path}")


def _edges_text(figures: dict[str, Any]) -> str:
    above = [
        f"{count:,} above {name.removeprefix('n_edges_above_')}"
        for name, count in figures.items()
        if name.startswith("n_edges_above_")
    ]
    return f"{figures['n_edges']:,} non-zero, {', '.join(above)}"
