"""Cards of latents: what they say is what the artifacts hold, and any text in them stays text."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from saelink.evidence.edges import inputs_of
from saelink.evidence.hidden_units import CLASSES
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.report.cards.beside import FAINT_PREDICTION
from saelink.report.cards.cards import Cards
from saelink.store.store import Store
from saelink.terminal.cards import print_card

from helpers.world import Run, World


def rendered(card: dict[str, Any], width: int = 80) -> str:
    from rich.console import Console

    out = io.StringIO()
    print_card(card, Console(file=out, width=width, highlight=False, force_terminal=False))
    return out.getvalue()


def test_a_card_says_what_the_artifacts_hold(world: World, store: Store) -> None:
    cards = Cards(Job(world.config(store.root, "solver=exact", "l1_alpha=1e-3"), store))
    latent = int(cards.wiring.connector.target_ids[0])
    target = cards.target(latent)
    edges = cards.wiring.connector.edges(latent, 12)
    assert [edge["weight"] for edge in target["edges"]] == pytest.approx(edges.weights, rel=1e-3)
    assert [edge["name"] for edge in target["edges"]] == [f"IF{i}" for i in edges.ids]
    assert target["fvu"] == pytest.approx(
        cards.wiring.evaluation.tensors("latents.safetensors")["fvu"][latent].item(), rel=1e-3
    )
    assert sum(target["histogram"]) == target["active"] > 0
    assert sum(token["share"] for token in target["tokens"]) <= 1 + 1e-9
    assert all(token["fires"] <= token["occurs"] for token in target["tokens"])
    for example in target["examples"]:
        assert example["values"][example["at"]] == pytest.approx(example["value"], abs=6e-3)
        assert len(example["tokens"]) == len(example["values"])
        assert example["position"] >= 1, "position 0 is dropped"
    source = cards.source(edges.ids[0])
    weights = cards.wiring.connector.output_weight()[edges.ids[0]]
    assert source["feeds"][0]["weight"] == pytest.approx(weights[weights.abs().argmax()].item(), rel=1e-3)
    for card in (target, source):
        text = rendered(card)
        assert card["name"] in text and all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("connector", ["linear", "mlp"])
def test_what_stands_beside_an_example_is_the_connectors(world: World, store: Store, connector: str) -> None:
    """The prediction and the inputs under a target's examples, against the connector run on the whole split."""
    extra = ["connector.d_hidden=8"] if connector == "mlp" else []
    cfg = world.config(store.root, f"connector={connector}", "l1_alpha=1e-3", *extra)
    cards = Cards(Job(cfg, store))
    everything = load_split(cfg, cards.sides, "test", cards.wiring.connector.target_ids)
    z = cards.wiring.connector(everything.source)
    inputs = inputs_of(cards.wiring.connector, everything.source).dense()
    where = {int(row): n for n, row in enumerate(everything.row)}
    context, checked = cfg.data.context_size, 0
    first_test = sum(cards.sides.target.facts["sequences"][split] for split in ("train", "validation")) * context
    for latent in cards.wiring.connector.target_ids[:6].tolist():
        looked = cards.firing.looked(cards.sides.target)
        places = [int(looked.places[latent, column]) for column in looked.shown(latent)]
        card = cards.target(latent)
        assert len(card["beside"]) == len(card["examples"]) == len(places)
        for place, example, beside in zip(places, card["examples"], card["beside"], strict=True):
            assert len(beside["predicted"]) == len(example["tokens"])
            if place < first_test:
                continue
            n = where[place - first_test]
            column = cards.wiring.connector.column(latent)
            unit = cards.sides.scales[-1] / looked.facts["unit"]
            predicted = z[n, column].item() * unit
            shown = predicted if abs(predicted) >= FAINT_PREDICTION else 0.0
            assert beside["predicted"][example["at"]] == pytest.approx(shown, abs=6e-3)
            for entry in beside["inputs"]:
                number = int(entry["name"].lstrip("HIF"))
                if connector == "linear":
                    assert entry["values"][example["at"]] == pytest.approx(inputs[n, number].item(), abs=6e-3)
                else:
                    assert (entry["values"][example["at"]] > 0) == (inputs[n, number] > 0)
            checked += 1
    assert checked > 3


def test_cards_of_hidden_units_and_of_several_sources(world: World, store: Store) -> None:
    mlp = Cards(Job(world.config(store.root, "connector=mlp", "connector.d_hidden=8"), store))
    card = mlp.target(int(mlp.wiring.connector.target_ids[0]))
    assert card["edges"][0]["name"].startswith("H") and card["edges"][0]["edges"][0]["name"].startswith("IF")
    assert all(fed["name"].startswith("H") for fed in mlp.source(0)["feeds"])
    unit = mlp.hidden_unit(card["edges"][0]["input"])
    assert unit["edges"][0]["name"].startswith("IF") and unit["feeds"][0]["name"].startswith("OF")
    assert unit["classed"]["kind"] in CLASSES
    rendered(unit)
    rendered(card)
    block = Cards(Job(world.config(store.root, "link=block", "solver=exact"), store))
    assert block.sides.source_name(block.source_number("1.5")) == "IF1.5"
    assert block.source(block.source_number("1.5"))["hook"] == "blocks.1.hook_attn_out"


@pytest.mark.parametrize(
    "token", ["<script>alert(1)</script>", "[bold]x[/]", "a\x1b[31m\r\n\x00b", "مرحبا", "👩‍👩‍👧", "�"]
)
def test_any_token_is_shown_as_text(token: str) -> None:
    example = {"kind": "top", "value": 1.0, "at": 1, "tokens": [token, token, "\n"], "values": [0.0, 1.0, 0.5]}
    card: dict[str, Any] = {
        "name": "OF1", "token": token, "hook": "blocks.0.hook_mlp_out", "active": 3, "tokens_seen": 10,
        "explained": True, "fvu": None, "edges": [{"name": "IF2", "weight": -0.5, "token": token}],
        "histogram": [1] * 48, "quantiles": {"0.5": 1.0, "0.99": 2.0},
        "tokens": [{"token": token, "share": 1.0, "fires": 1, "occurs": 2}], "examples": [example], "fired": 3,
        "logic": {"word": "copy", "confirmed": None, "inputs": ["IF2"], "covered": 1.0, "evidence": []},
    }  # fmt: skip
    text = rendered(card)
    assert "\x1b" not in text and "\x00" not in text and "\r" not in text
    if token.isprintable():
        assert token in text
    json.loads(json.dumps(card))


def test_show_on_the_command_line(saelink: Run) -> None:
    code, out, err = saelink("show", "target", "3", "--json", "solver=exact")
    assert code == 0, err
    card = json.loads(out)
    assert card["name"] == "OF3" and card["hook"] == "blocks.1.hook_mlp_out"
    code, out, _ = saelink("show", "target", "3", "solver=exact")
    assert code == 0 and "OF3" in out and "Traceback" not in out
    assert saelink("show", "source", "3", "solver=exact")[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["target"], "give a side and a latent"),
        (["hidden", "3"], "give a side and a latent"),
        (["target", "x"], "show target x: give the latent's number"),
        (["target", "48"], "the target SAE has latents 0 to 47"),
        (["source", "48"], "there are 48 source latents, from 0"),
        (["source", "1.3"], "there are 48 source latents, from 0"),
        (["source", "abc"], "show source abc: give a number such as 17"),
    ],
)
def test_mistakes_of_show(saelink: Run, words: list[str], expected: str) -> None:
    code, _, err = saelink("show", *words, "solver=exact")
    assert code == 1 and expected in err, err
    assert len(err.strip().splitlines()) == 1


def test_a_card_says_what_interventions_say_of_its_logic(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saelink.evidence.logic_trials import LogicTrialsStage, logic_trials
    from saelink.evidence.names import Names
    from saelink.share.logic import LOGIC_COLUMNS, logic_rows

    for name, value in {"HIGH": 0.05, "MIN_TOKENS": 2, "EXPLAINED": 0.01}.items():  # random latents: any logic will do
        monkeypatch.setattr(f"saelink.evidence.logic.{name}", value)
    job = Job(world.config(store.root, "solver=exact", "l1_alpha=1e-3"), store)
    before = {row["target"]: row for row in logic_rows(job, Names(job))}
    LogicTrialsStage(job).pull()
    found = logic_trials(job)
    assert found and all(row["tested"] is None for row in before.values())
    rows = {row["target"]: row for row in logic_rows(job, Names(job))}
    assert all(list(row) == LOGIC_COLUMNS for row in rows.values())
    cards = Cards(job)
    for latent, tried in list(found.items())[:5]:
        card = cards.target(int(latent))
        tested = card["logic"]["tested"]
        assert tested["outcome"] == tried["outcome"] == rows[int(latent)]["tested"]
        assert len(tested["trials"]) == len(tried["trials"])
        assert all(name.startswith("IF") for trial in tested["trials"] for name in trial["gone"])
        text = rendered(card)
        assert f"tested by interventions: {tried['outcome']}" in text
        assert all(len(line) <= 80 for line in text.splitlines())
