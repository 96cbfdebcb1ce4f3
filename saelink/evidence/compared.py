"""Fits as rows that can be compared: what they are of, how they were fitted, where they stand between error and L1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from saelink.connectors import CONNECTORS
from saelink.errors import SaelinkError
from saelink.fit.solvers import SOLVERS
from saelink.fit.train import Described, TrainFacts, TrainStage
from saelink.interventions.oracle import OracleStage
from saelink.store.artifact import Artifact
from saelink.store.recipe import recipe_of
from saelink.store.store import Store

Row = dict[str, Any]
"""A fit: the columns of `settings_of`, `train` (its key) and `name`, and what it came to on validation documents."""

FIGURES = {"mse": "validation_mse", "fvu": "validation_fvu"}
"""Columns whose figures have longer names among a fit's facts; those of FACTS have the same."""

FACTS = ("l1", "n_edges", "n_edges_above_0.01")

OTHER_SETTINGS = {"normalise": "none", "latent_scale": "mean_active", "min_rate": 0.0, "drop_positions": 1} | {
    "max_norm_ratio": None,
    "part": None,
}
"""What else a recipe says of how it was fitted, with the default."""

UNITS = ("latent_scale", "drop_positions", "max_norm_ratio")
"""What a recipe says of units, and of the tokens that count."""

PLACE = ("model", "layer", "link", "data", "tokens", "sae", "sae_width")
"""Columns that say what a fit is of, in the order of a label."""


class Fit(NamedTuple):
    """A fit by its settings: one that is done, or one that is only about to begin."""

    recipe: Mapping[str, Any]
    """Of its train artifact."""
    described: Described
    tokens: int | None
    """Training tokens; None before they are counted."""


def described(connector: Artifact[TrainFacts]) -> Artifact[TrainFacts]:
    """The same. Raises SaelinkError for one of an earlier version, which does not say what it is of."""
    if "described" not in connector.facts:
        raise SaelinkError(f"{connector.path}: made by an earlier version of saelink; `saelink train` makes it anew")
    return connector


def fit_of(connector: Artifact[TrainFacts]) -> Fit:
    """The settings of a fit that is done."""
    return Fit(connector.recipe, connector.facts["described"], connector.facts["n_tokens"])


def settings_of(fit: Fit) -> Row:
    """One flat level: what the fit is of, connector, solver, l1_alpha, seed, and every setting of the first two.

    A setting's column has its owner's name in front, `connector_d_hidden`, `solver_lr`.
    """
    recipe, described, _ = fit
    row: Row = {
        "model": described["model"],
        "layer": described["layer"],
        "link": described["link"],
        "sources": " + ".join(described["sources"]),
        "target": described["target"],
        "data": described["data"],
        "tokens": fit.tokens,
        "sae": described["sae"],
        "sae_width": described["sae_width"][-1],
        "sae_l0": round(described["sae_l0"][-1], 2),
        "source_sae_width": sum(described["sae_width"][:-1]),
        "source_sae_l0": round(sum(described["sae_l0"][:-1]), 2),
        "connector": recipe["connector"]["name"],
        "solver": recipe["solver"]["name"],
        "l1_alpha": recipe["l1_alpha"],
        "seed": recipe.get("seed"),
    }
    row |= {name: recipe.get(name, default) for name, default in OTHER_SETTINGS.items()}
    for owner in ("connector", "solver"):
        row |= {f"{owner}_{name}": value for name, value in sorted(recipe[owner].items()) if name != "name"}
    return row


def row_of(connector: Artifact[TrainFacts]) -> Row:
    """The fit's settings and its figures on validation documents."""
    facts = cast("Mapping[str, Any]", connector.facts)
    figures = {column: facts[fact] for column, fact in FIGURES.items()} | {name: facts[name] for name in FACTS}
    fit = fit_of(connector)
    return {"train": connector.key, "name": name_of(fit), **settings_of(fit), **figures}


def place_of(described: Described) -> str:
    """What a fit is of, such as `smollm2 layer 1 mlp`; fits of one place are a group in W&B."""
    return f"{described['model']} layer {described['layer']} {described['link']}"


def name_of(fit: Fit) -> str:
    """A name that tells the fit from others: what it is of, and every setting that is not the default."""
    recipe, described, tokens = fit
    parts = [
        place_of(described),
        f"{recipe['connector']['name']} {recipe['solver']['name']}",
        f"l1_alpha {recipe['l1_alpha']:g}",
    ]
    defaults = {
        "connector": recipe_of(CONNECTORS[recipe["connector"]["name"]].Settings(name="")),
        "solver": recipe_of(SOLVERS[recipe["solver"]["name"]].Settings(name="")),
    }
    for owner, usual in defaults.items():
        for name, default in usual.items():  # in the order of its dataclass
            if name != "name" and recipe[owner].get(name, default) != default:
                parts.append(_setting(name, recipe[owner][name]))
    parts += [
        _setting(name, recipe.get(name, default))
        for name, default in OTHER_SETTINGS.items()
        if recipe.get(name, default) != default
    ]
    if recipe.get("seed"):
        parts.append(f"seed {recipe['seed']}")
    saes = " to ".join(str(width) for width in dict.fromkeys(described["sae_width"]))
    data = described["data"] if tokens is None else f"{described['data']} {tokens:,} tokens"
    return ", ".join([*parts, data, f"SAE {described['sae']} {saes}"])


def tags_of(fit: Fit) -> list[str]:
    """What runs are found by in W&B."""
    row = settings_of(fit)
    return [row["model"], f"layer {row['layer']}", row["link"], row["connector"], row["solver"], row["data"]]


def _setting(name: str, value: Any) -> str:
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}".replace("True", "on")


# --------------------------------------------------------------------------- beside one another


def measured_on(connector: Artifact[TrainFacts]) -> tuple[Any, ...]:
    """Equal for fits whose errors and L1 can be compared: the same latents and targets, units and tokens."""
    inputs, recipe = connector.manifest["inputs"], connector.recipe
    latents = sorted((role, key) for role, key in inputs.items() if role == "target" or role.startswith("source"))
    chosen = (connector.facts["n_targets"], recipe["min_rate"], inputs.get("subset"), recipe.get("part"))
    return (tuple(latents), *chosen, *(recipe[name] for name in UNITS))


def comparable(store: Store, connector: Artifact[TrainFacts]) -> list[Row]:
    """The rows of all fits in the store that can be compared with this one, itself among them, with `pareto`."""
    mine = measured_on(connector)
    found = [each for each in fits_in(store) if measured_on(each) == mine]
    return marked([row_of(each) for each in found], [mine] * len(found))


def fits_in(store: Store) -> list[Artifact[TrainFacts]]:
    """The store's train artifacts; those that say less of themselves, of an earlier version, are left out."""
    return [each for each in store.artifacts() if each.stage == TrainStage.name and "described" in each.facts]


def marked(rows: list[Row], places: Sequence[Any]) -> list[Row]:
    """The rows with `pareto`: none of the same place has both a lower error and a lower L1, and it beats the mean."""
    for row, place in zip(rows, places, strict=True):
        rivals = [other for other, theirs in zip(rows, places, strict=True) if theirs == place]
        row["pareto"] = row["fvu"] < 1 and not any(
            other["mse"] <= row["mse"]
            and other["l1"] <= row["l1"]
            and (other["mse"] < row["mse"] or other["l1"] < row["l1"])
            for other in rivals
        )
    return rows


def differing(rows: Sequence[Row]) -> list[str]:
    """The settings by which the fits differ, l1_alpha aside: what makes one line of points another than the next.

    A setting of a connector or solver counts where fits of one connector and solver differ in it, and the size of text
    or SAE where its name does not tell.
    """
    found = [name for name in ("model", "layer", "link", "data", "sae") if _differs(rows, name)]
    found += [name for name in ("tokens",) if _differs(rows, name, ("model", "data", "layer", "link"))]
    found += [name for name in ("sae_width",) if _differs(rows, name, ("model", "sae", "layer", "link"))]
    found += [name for name in ("connector", "solver") if _differs(rows, name)]
    owned = dict.fromkeys(name for row in rows for name in row if name.startswith(("connector_", "solver_")))
    settings = ["seed", *OTHER_SETTINGS, *owned]
    return found + [name for name in settings if _differs(rows, name, ("connector", "solver"))]


def _differs(rows: Sequence[Row], name: str, within: Iterable[str] = ()) -> bool:
    seen: dict[tuple[Any, ...], Any] = {}
    within = tuple(within)
    return any(seen.setdefault(tuple(row[w] for w in within), row.get(name)) != row.get(name) for row in rows)


def series_of(row: Row, names: Sequence[str]) -> str:
    """What a row's line is called among others that differ by `names`; always with its connector and solver."""
    place = [f"layer {row[name]}" if name == "layer" else str(row[name]) for name in PLACE if name in names]
    parts = [" ".join(place)] if place else []
    parts.append(f"{row['connector']} {row['solver']}")
    for name in names:
        if name not in (*PLACE, "connector", "solver") and row.get(name) is not None:
            parts.append(_setting(name.removeprefix("connector_").removeprefix("solver_"), row[name]))
    return ", ".join(parts)


# --------------------------------------------------------------------------- what bounds them


def mean_predictor(row: Row) -> float:
    """The squared error of predicting each target's mean, on the tokens that the row was measured on."""
    return row["mse"] / row["fvu"]


def oracle(store: Store, connector: Artifact[TrainFacts]) -> float | None:
    """The oracle's squared error on the same validation tokens and targets, where the store has it."""
    inputs, recipe = connector.manifest["inputs"], connector.recipe
    for artifact in store.artifacts():
        if artifact.stage != OracleStage.name or artifact.recipe.get("split") != "validation":
            continue
        theirs = artifact.manifest["inputs"]
        same = all(theirs.get(role) == inputs.get(role) for role in {*theirs, *inputs} if _is_side(role))
        if same and all(artifact.recipe[name] == recipe[name] for name in UNITS):
            try:
                ids = connector.tensors("connector.safetensors")["target_ids"]
                return artifact.tensors("errors.safetensors")["mse"][ids].mean().item()
            except SaelinkError:  # damaged; a picture does without it
                return None
    return None


def _is_side(role: str) -> bool:
    return role == "target" or role.startswith("source")
