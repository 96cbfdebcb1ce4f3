"""An evaluation as tables: figures, cross-entropies, circuits, a transcoder beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelink.connectors.exported import CONFIG_FILE
from saelink.evidence.circuits import circuit_text
from saelink.evidence.evaluate import EvaluateFacts
from saelink.evidence.transcoder import TRANSCODER_FILE, TranscoderFacts
from saelink.evidence.verdicts import VERDICTS, Verdicts
from saelink.fit.train import TrainFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, formula_lines, pair_lines, table_lines, terminal_width


def evaluation_rows(connector: Artifact[TrainFacts], evaluation: Artifact[EvaluateFacts]) -> list[tuple[str, str]]:
    """What there is to say of an evaluated connector: a name and a text for each line."""
    figures = evaluation.json("metrics.json")
    config = connector.json(CONFIG_FILE)
    sources = " + ".join(source["hook_name"] for source in config["sources"])
    rows = [
        ("connector", f"{config['connector']['name']}, l1_alpha {config['l1_alpha']:g}, by {config['solver']['name']}"),
        ("link", f"{sources} -> {config['target']['hook_name']}"),
        ("test tokens", f"{figures['n_tokens']:,}{_on_other_text(figures)}"),
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
        ("edges", edges_text(figures)),
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
    return rows


def _on_other_text(figures: Mapping[str, Any]) -> str:
    other = figures.get("other_text")
    return "" if other is None else f" of {other}, which the connector was not fitted to"


def print_evaluation(
    observer: Observer, connector: Artifact[TrainFacts], evaluation: Artifact[EvaluateFacts], verdicts: Verdicts | None
) -> None:
    """The table of figures and the circuits, with the verdicts on their edges if there are any."""
    width = terminal_width()
    rows = evaluation_rows(connector, evaluation)
    if verdicts is not None:
        rows.append(("verdicts", _verdicts_text(verdicts)))
    observer.say("")
    for line in pair_lines(rows, width):
        observer.say(line)
    if "ce.json" in evaluation.files:
        _print_ce(observer, evaluation.json("ce.json"), int(evaluation.json("metrics.json")["ce_tokens"]))
    observer.say("\n  The best predicted target latents (OF), source latents (IF), with top tokens.")
    if verdicts is None:
        observer.say("  Unverified: `saelink verify` tells which edges the model has.\n")
    else:
        observer.say("  Edges that ablation in the model confirms come first; the others say why.\n")
    for circuit in evaluation.json("circuits.json"):
        for text in circuit_text(circuit, verdicts and verdicts.word).splitlines():
            for line in formula_lines(text, width):
                observer.say(line)
    observer.say("")
    for line in pair_lines([("connector", str(connector.path)), ("evaluation", str(evaluation.path))], width):
        observer.say(line)


def _verdicts_text(verdicts: Verdicts) -> str:
    figures = verdicts.figures
    total = max(figures["edges"] - figures["edges_faint"], 1)
    words = [word for word in VERDICTS if word != "faint"]
    shares = [f"{figures['edges_' + word.replace(' ', '_')] / total:.0%} {word}" for word in words]
    return f"{', '.join(shares)}, of {total:,} edges that claim 1% or more"


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


def _print_ce(observer: Observer, figures: dict[str, dict[str, float]], n_tokens: int) -> None:
    rows = []
    for name, text in CE_NAMES.items():
        entry = figures[name]
        interval = f"({entry['recovered_low']:.3f} to {entry['recovered_high']:.3f})"
        beside = (f"{entry['kl']:.3f}", f"{entry['top1']:.1%}")
        rows.append((text, f"{entry['ce']:.4f}", f"{entry['recovered']:.3f}", interval, *beside))
    observer.say(f"\n  Cross-entropy with this at the target hook, {n_tokens:,} test tokens")
    columns = [Column(), Column("CE", right=True), Column("recovered", right=True), Column("(95%)")]
    columns += [Column("KL", right=True), Column("top-1", right=True)]
    for line in table_lines(columns, rows, indent=2):
        observer.say(line)


def edges_text(figures: Mapping[str, Any]) -> str:
    """How many edges there are, and how many above each threshold."""
    above = [
        f"{count:,} above {name.removeprefix('n_edges_above_')}"
        for name, count in figures.items()
        if name.startswith("n_edges_above_")
    ]
    return f"{figures['n_edges']:,} non-zero, {', '.join(above)}"


def print_comparison(observer: Observer, comparison: Artifact[TranscoderFacts]) -> None:
    """The comparison as a table."""
    table = comparison.json(TRANSCODER_FILE)
    names = {"transcoder": "transcoder", "connector": "this connector", "sae": "target SAE's reconstruction"}
    with_ce = "ce" in table["transcoder"]
    figures = {"fvu_acts": "FVU of acts", "fvu_latents": "of latents", "l0": "L0"}
    figures |= {"ce": "CE", "recovered": "recovered", "kl": "KL", "top1": "top-1"} if with_ce else {}
    digits = {"l0": 1}
    rows = [
        (names[name], *(f"{row[figure]:.{digits.get(figure, 3)}f}" for figure in figures))
        for name, row in table.items()
    ]
    columns = [Column("Beside the transcoder"), *(Column(title, right=True) for title in figures.values())]
    observer.say("")
    for line in table_lines(columns, rows, indent=2):
        observer.say(line)
