"""What a connector claims of the model's latents against what ablating them does: the stage `verify`.

A connector claims that target i loses  claim_ij  on average when source j goes: what its own prediction loses on the
tokens where j is active. For a linear map that is w_ij times j's mean activation there.
"""

from __future__ import annotations

from typing import Any

from saelink.config.schema import Config
from saelink.evidence.verdicts import FIGURES_FILE, NULLS_FILE, VERDICTS_FILE, claims, judged, shuffled
from saelink.fit.train import fitted_connector, train, train_plan
from saelink.interventions.effects import check_measurable, effects, effects_plan, load_effects, measurable, nulls_of
from saelink.latents.link import load_split, pull_sides
from saelink.runtime import device_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 4


def verify_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a connector's verdicts. Raises SaelinkError for a link whose effects can't be measured."""
    check_measurable(cfg)
    plan = train_plan(cfg, store)
    recipe = {"strong": cfg.verify.strong}
    inputs = {"connector": plan.key, "effects": effects_plan(cfg, store).key}
    inputs |= {null: effects_plan(cfg, store, null=null).key for null in nulls_of(cfg)}
    return Plan("verify", VERSION, recipe, inputs, plan.about)


def verify(cfg: Config, store: Store) -> Artifact:
    """Pull the verdicts on the edges of the configured connector.

    Files: `figures.json`; `nulls.json`, the same figures against effects that the edges should not agree with, those
    of effects.NULLS and "shuffled pairs", every source with the effects of another; `edges.safetensors` with, by
    claimed edge, `target`, `source`, `claim`, `effect` and `verdict` (a place in VERDICTS), and `missed_target`,
    `missed_source`, `missed_effect` for strong effects it lacks.
    Claims and effects are in units of the target's mean active value.
    """
    plan = verify_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    measured = load_effects(effects(cfg, store))
    connector = fitted_connector(train(cfg, store))
    sides = pull_sides(cfg, store)
    nulls = {null: effects(cfg, store, null=null) for null in nulls_of(cfg)}

    def make(draft: Draft) -> dict[str, Any]:
        ids, strong = connector.target_ids, cfg.verify.strong  # on the CPU; `claims` moves the connector
        test = load_split(cfg, sides, "test", ids)
        claimed = claims(connector, measured, test, cfg.verify.tokens_per_source, device_of(cfg))
        figures, tensors = judged(claimed, measured, ids, strong)
        draft.save_json(FIGURES_FILE, figures)
        found = {name: judged(claimed, load_effects(null), ids, strong)[0] for name, null in nulls.items()}
        draft.save_json(NULLS_FILE, found | {"shuffled pairs": judged(claimed, shuffled(measured), ids, strong)[0]})
        draft.save_tensors(VERDICTS_FILE, tensors)
        return figures

    return store.build(plan, make, device_of(cfg))


def verified(cfg: Config, store: Store) -> Artifact | None:
    """The verdicts on the configured connector where they have been made."""
    return store.find(verify_plan(cfg, store)) if measurable(cfg) else None
