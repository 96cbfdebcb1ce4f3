"""Measure a connector on test documents and read its circuits: the stage `evaluate`."""

from __future__ import annotations

from typing import Any

import torch

from saelink import metrics
from saelink.config import Config
from saelink.connectors import Connector
from saelink.connectors.base import Edges
from saelink.data import tokens as pull_tokens
from saelink.intervene import Splice, ce_baselines, ce_figures, ce_plan, spliced_tokens
from saelink.latents import Rows, Tokens, sparse_linear
from saelink.link import Sides, load_split, pull_sides
from saelink.loaded import CONFIG_FILE
from saelink.model import device_of, load_tokenizer, model_info
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, Store, recipe_of
from saelink.train import load_connector, train, train_plan

VERSION = 2

PREDICTED = 0.5
"""A target latent counts as predicted when its FVU is below this."""

HIDDEN_SHOWN = 2
"""Hidden units that are spelt out under a circuit, for connectors that have them."""


def evaluate_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a connector's evaluation."""
    plan = train_plan(cfg, store)
    settings = recipe_of(cfg.eval)
    del settings["verify"]  # what comes after
    if not cfg.eval.ce:
        settings = {name: value for name, value in settings.items() if name not in ("ce_tokens", "bootstrap")}
    inputs = {"connector": plan.key, **({"ce": ce_plan(cfg, store).key} if cfg.eval.ce else {})}
    return Plan("evaluate", VERSION, {"eval": settings}, inputs, plan.about)


def evaluate(cfg: Config, store: Store) -> Artifact:
    """Pull a connector's evaluation on the test split.

    Files: `metrics.json`; `latents.safetensors` with, for every latent of the target SAE, `fvu`, `mse`, `variance`
    (nan where it is not explained; fvu also where it never varies) and `active` (test tokens), for a connector with a
    linear part beside hidden units also `linear`, see linear_shares; `circuits.json` and
    `circuits.txt`; with eval.ce also `ce.json`, the cross-entropies of intervene.ce_figures.
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
    ids = connector.target_ids.cpu()
    test = load_split(cfg, sides, "test", ids)
    sums, extra = measure(connector, test, device)
    figures = {
        "n_tokens": sums["all"].n,
        "n_tokens_typical": sums["typical"].n,
        "mse": sums["all"].mse(),
        "fvu": sums["all"].fvu(),
        "fvu_typical": sums["typical"].fvu(),
        "l1": connector.l1(),
        "n_edges": connector.n_edges(),
        **{f"n_edges_above_{threshold:g}": connector.n_edges(threshold) for threshold in cfg.eval.edge_thresholds},
        **extra,
    }
    by_latent = sums["all"].fvu_by_latent()
    varying = ~by_latent.isnan()
    shares = linear_shares(connector, test, sums["all"], device)
    if shares is not None:
        known = shares[~shares.isnan()]
        figures["linear_share_median"] = known.median().item() if len(known) else None
        figures["n_targets_linear"] = int((connector.output_weight()[connector.direct :] == 0).all(0).sum())
    figures |= {
        "fvu_median_latent": by_latent[varying].median().item(),
        "fraction_predicted": (by_latent[varying] < PREDICTED).double().mean().item(),
        "n_targets": len(ids),
        "n_targets_active": int(varying.sum()),
        "d_target": sides.d_target,
    }
    if cfg.normalise.name != "none":
        figures["normalised_mse"] = figures["mse"] / artifact.facts["c"]
    if cfg.eval.ce:
        losses = _ce(cfg, store, sides, connector, draft)
        figures |= {
            f"ce_{name}": losses[name]["ce"] for name in ("clean", "sae", "connector", "oracle", "mean", "zero")
        }
        figures["ce_loss_recovered"] = losses["connector"]["recovered"]
        figures["ce_tokens"] = spliced_tokens(cfg, store, sides, cfg.eval.ce_tokens).ids.numel()
    draft.save_json("metrics.json", figures)
    n = sums["all"].n

    def everywhere(values: torch.Tensor, elsewhere: float) -> torch.Tensor:
        return torch.full((sides.d_target,), elsewhere, dtype=values.dtype).scatter(0, ids, values)

    draft.save_tensors(
        "latents.safetensors",
        {
            "fvu": everywhere(by_latent, torch.nan),
            "mse": everywhere(sums["all"].squared_error / n, torch.nan),
            "variance": everywhere(sums["all"].variation() / n, torch.nan),
            "active": everywhere(sums["all"].active, 0),
            **({} if shares is None else {"linear": everywhere(shares, torch.nan)}),
        },
    )
    circuits = _circuits(cfg, store, sides, connector, test, by_latent, sums["all"].active, shares)
    draft.save_json("circuits.json", circuits)
    draft.save_bytes("circuits.txt", ("\n".join(map(circuit_text, circuits)) + "\n").encode())
    return figures


def measure(connector: Connector, test: Tokens, device: str) -> tuple[dict[str, metrics.Sums], dict[str, float]]:
    """Sums over `all` tokens that count and over the `typical` ones among them; figures of some connectors only.

    Those are hidden_l0 and hidden_l1, the mean number and the mean l1 norm of active hidden units per token, and
    dead_outputs, the target latents that a connector with relu outputs never predicts above zero.
    """
    parts = {
        name: test.subset(rows) for name, rows in (("typical", test.typical), ("massive", ~test.typical)) if rows.any()
    }
    sums = {"typical": metrics.Sums(test.target.d), "massive": metrics.Sums(test.target.d)}
    hidden_l0, hidden_l1, hidden_units = 0, 0.0, False
    predicted_once = torch.zeros(test.target.d, dtype=torch.bool, device=device)
    with Progress("evaluate", len(test)) as bar, torch.inference_mode():
        for name, part in parts.items():
            for source, target in zip(metrics.in_steps(part.source), metrics.in_steps(part.target), strict=True):
                z, hidden = connector.maps(source.to(device))
                if connector.relu_output:
                    z = torch.relu(z)
                    predicted_once |= (z > 0).any(0)
                if hidden is not None:
                    hidden_units = True
                    hidden_l0 += int((hidden > 0).sum())
                    hidden_l1 += hidden.double().sum().item()
                sums[name].add(z.cpu(), target)
                bar.advance(len(source))
    extra: dict[str, float] = {}
    if hidden_units:
        extra |= {"hidden_l0": hidden_l0 / len(test), "hidden_l1": hidden_l1 / len(test)}
    if connector.relu_output:
        extra["dead_outputs"] = int((~predicted_once).sum())
    return {"all": sums["typical"] + sums["massive"], "typical": sums["typical"]}, extra


def linear_shares(
    connector: Connector, test: Tokens, together: metrics.Sums, device: str
) -> torch.Tensor | None:  # fmt: skip
    """[d_target] of what a connector with a linear part and hidden units explains, the share that is linear.

    (1 - FVU of the linear part beside the hidden part's mean) / (1 - FVU), between 0 and 1; nan where nothing is
    explained. `together` are the connector's own sums on these tokens. None for a connector without either part.
    """
    if not (connector.direct and connector.n_hidden):
        return None
    linear, through = connector.output_weight().split([connector.direct, connector.n_hidden])
    bias = dict(connector.named_parameters()).get("b2")
    hidden = torch.zeros(connector.n_hidden, dtype=torch.float64)
    with torch.inference_mode():
        for source in metrics.in_steps(test.source):
            found = connector.maps(source.to(device))[1]
            assert found is not None
            hidden += found.double().sum(0).cpu()
        constant = (hidden / len(test)) @ through.double().cpu()
        constant += 0 if bias is None else bias.detach().double().cpu()
        sums = metrics.Sums(test.target.d)
        for source, target in zip(metrics.in_steps(test.source), metrics.in_steps(test.target), strict=True):
            sums.add(sparse_linear(source.to(device), linear).cpu() + constant.float(), target)
    explained = 1 - together.fvu_by_latent()
    share = ((1 - sums.fvu_by_latent()) / explained).clamp(0, 1)
    return torch.where(explained > 0, share, torch.nan)


def _ce(cfg: Config, store: Store, sides: Sides, connector: Connector, draft: Draft) -> dict[str, dict[str, float]]:
    """Cross-entropy with the connector's prediction in place of the target acts, with and without the SAE's error.

    Target latents that the connector does not explain keep their true value.
    """
    baselines = ce_baselines(cfg, store)
    losses = baselines.tensors("losses.safetensors")
    test = spliced_tokens(cfg, store, sides, cfg.eval.ce_tokens)
    device = device_of(cfg)
    ids = connector.target_ids.cpu()
    with Splice(cfg, store, sides, test, 2) as splice:
        counted = load_split(cfg, sides, "test", ids)
        counted = counted.subset(counted.row < test.ids.numel())
        change = prediction_change(connector, counted, sides, test.ids.numel(), device)
        moved = splice.decode_change(change)
        losses["connector"] = splice.losses(splice.decode(splice.true_latents()) + moved)
        losses["connector_with_error"] = splice.losses_of_change(moved)
    figures = ce_figures(losses, test.document, cfg.eval.bootstrap)
    draft.save_json("ce.json", figures)
    return figures


def prediction_change(
    connector: Connector, counted: Tokens, sides: Sides, positions: int, device: str
) -> torch.Tensor:  # fmt: skip
    """[positions, d_sae] prediction minus truth in raw units; 0 where a latent or a position is not predicted."""
    change = torch.zeros(positions, sides.d_target)
    ids = connector.target_ids.cpu()
    with torch.inference_mode():
        for first in range(0, len(counted), 2048):
            chosen = torch.arange(first, min(first + 2048, len(counted)))
            difference = connector(counted.source.select(chosen).to(device)).cpu()
            difference -= counted.target.select(chosen).dense()
            change[counted.row[chosen][:, None], ids] = difference * sides.scales[-1]
    return change


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
    cfg: Config,
    store: Store,
    sides: Sides,
    connector: Connector,
    test: Tokens,
    fvu: torch.Tensor,
    active: torch.Tensor,
    shares: torch.Tensor | None,
) -> list[dict[str, Any]]:
    """The circuits of the best predicted target latents that are active often enough to be believed.

    `fvu`, `active` and `shares` (see linear_shares) are by column; what is printed are the SAEs' own numbers. With
    several sources their order stands before a latent's number: IF0.17 is latent 17 of the first source.
    """
    tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)
    ids = pull_tokens(cfg, store).tensors("test.safetensors")["ids"].flatten().long()[test.row]
    targets = connector.target_ids.tolist()
    of = {targets[column]: token for column, token in top_tokens(test.target, ids).items()}
    labels = {"OF": of, "IF": top_tokens(test.source, ids)}

    def unit(prefix: str, number: int) -> dict[str, Any]:
        token = labels.get(prefix, {}).get(number)
        name = sides.source_name(number) if prefix == "IF" else f"{prefix}{number}"
        named = {"unit": name, "id": number}
        return named if token is None else {**named, "token": decode(token)}

    def decode(token: int) -> str:
        return tokenizer.decode([token]).strip() or tokenizer.decode([token])

    def term(number: int, inputs: int) -> dict[str, Any]:
        return unit("IF", number) if number < inputs else unit("H", number - inputs)

    def terms(edges: Edges, inputs: int) -> list[dict[str, Any]]:
        """`inputs` source latents are numbered first, hidden units behind them."""
        return [{"weight": weight, **term(i, inputs)} for i, weight in zip(edges.ids, edges.weights, strict=True)]

    believed = (active >= cfg.eval.min_active) & ~fvu.isnan()
    order = torch.where(believed, fvu, torch.inf).argsort(stable=True)[: min(cfg.eval.circuits, int(believed.sum()))]
    circuits = []
    for column in order.tolist():
        target = targets[column]
        edges = connector.edges(target, cfg.eval.edges)
        circuit = {**unit("OF", target), "fvu": fvu[column].item(), "active": int(active[column])}
        circuit["terms"] = terms(edges, connector.direct)
        if shares is not None and not shares[column].isnan():
            circuit["linear"] = shares[column].item()
        if connector.n_hidden:
            units = [i - connector.direct for i in edges.ids if i >= connector.direct][:HIDDEN_SHOWN]
            inner = {i: connector.hidden_edges(i, cfg.eval.edges) for i in units}
            circuit["hidden"] = [
                {"unit": f"H{i}", "terms": terms(e, connector.d_source)} for i, e in inner.items() if e is not None
            ]
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
    if "linear" in circuit:
        head += f"   ({circuit['linear']:.0%} linear)"
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
        (
            "predicted",
            f"{figures['fraction_predicted']:.0%} of {figures['n_targets_active']:,} target latents active there "
            f"have FVU < .5",
        ),
        ("targets", f"{figures['n_targets']:,} of the SAE's {figures['d_target']:,} latents are explained"),
        ("L1", f"{figures['l1']:.3f}"),
        ("edges", _edges_text(figures)),
    ]
    if "relative_gradient" in connector.facts:
        rows.append(("optimum", f"least squares; gradient at most {connector.facts['relative_gradient']:.0e} of X'y"))
    if "relative_gap" in connector.facts:
        rows.append(("gap", f"{connector.facts['relative_gap']:.1e} of the training objective, at most"))
    if "readout_gap" in connector.facts:
        text = f"{connector.facts['readout_gap']:.1e} of the objective, at most, given the hidden units"
        rows.append(("gap", text))
    if "hidden_l0" in figures:
        rows.append(("hidden", f"{figures['hidden_l0']:.1f} units active per token, l1 {figures['hidden_l1']:.3g}"))
    if figures.get("linear_share_median") is not None:
        rows.append(
            (
                "linear",
                f"{figures['linear_share_median']:.0%} of what is explained of the median target; "
                f"{figures['n_targets_linear']:,} targets use no hidden unit",
            )
        )
    if figures.get("dead_outputs"):
        rows.append(("dead", f"{figures['dead_outputs']:,} target latents are never predicted above 0"))
    store.say("")
    for name, text in rows:
        store.say(f"  {name:12} {text}")
    if "ce.json" in evaluation.files:
        _print_ce(store, evaluation.json("ce.json"), int(figures["ce_tokens"]))
    store.say("\n  Best predicted target latents (OF) from source latents (IF), each with its top token:\n")
    for line in evaluation.file("circuits.txt").read_text().splitlines():
        store.say(f"  {line}")
    store.say(f"\n  connector  {connector.path}\n  evaluation {evaluation.path}")


CE_NAMES = {
    "clean": "the model as it is",
    "sae": "target SAE's reconstruction",
    "connector": "this connector",
    "connector_with_error": "  + the SAE's error",
    "oracle": "oracle",
    "oracle_with_error": "  + the SAE's error",
    "mean": "mean ablation",
    "zero": "zero ablation",
}


def _print_ce(store: Store, figures: dict[str, dict[str, float]], n_tokens: int) -> None:
    store.say(f"\n  Cross-entropy at the target hook, {n_tokens:,} test tokens    CE    recovered (95%)")
    for name, text in CE_NAMES.items():
        entry = figures[name]
        interval = f"{entry['recovered_low']:.3f} to {entry['recovered_high']:.3f}"
        store.say(f"  {text:30} {entry['ce']:24.4f}    {entry['recovered']:.3f}  ({interval})")


def _edges_text(figures: dict[str, Any]) -> str:
    above = [
        f"{count:,} above {name.removeprefix('n_edges_above_')}"
        for name, count in figures.items()
        if name.startswith("n_edges_above_")
    ]
    return f"{figures['n_edges']:,} non-zero, {', '.join(above)}"
