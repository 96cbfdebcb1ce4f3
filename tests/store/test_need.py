"""Every stage says what memory it needs, and is refused in one line before it begins where that can't be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import saelink.runtime as runtime
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.experiments import EXPERIMENTS
from saelink.experiments.base import ExperimentStage
from saelink.job import Job
from saelink.store.stage import Stage
from saelink.store.store import Store

from helpers.stages import ATTENTION, CHAIN, LAYERS, SEVERAL, Made, every_stage
from helpers.transcoders import write_transcoder
from helpers.world import with_solver

ELSEWHERE = {
    "encode": "several hooks are encoded together and promise it together, see encode_hooks",
    "products": "how many pairs meet is counted on a sample first, and refused by that, see check_memory",
}
"""Stages without a need of their own, and what checks memory for them."""

WORDS = (
    "layer=1",
    "solver=exact",
    "l1_alpha=1e-3",
    "verify.tokens=600",
    "data.max_tokens=8000",
    "normalise_layers=[0,1]",
)


@pytest.fixture(autouse=True)
def no_limit_afterwards() -> Iterator[None]:
    """The limit is the process's."""
    yield
    runtime.limit_memory(Config())


def test_every_stage_states_a_need_or_is_checked_elsewhere() -> None:
    silent = {kind.name for kind in every_stage() if kind.need is Stage.need}
    assert silent == set(ELSEWHERE), "a stage needs need(), or a reason here"


def test_the_tests_below_have_every_stage() -> None:
    made = {each.name for each in (*CHAIN, *ATTENTION, *SEVERAL)} | {"products"}
    assert {kind.name for kind in every_stage()} <= made


def refused(each: Made, words: tuple[str, ...], config: Callable[..., Config], store: Store, make: bool = True) -> None:
    """One line that names the stage, nothing written; then it is made."""
    words = tuple(with_solver(list(words), each.words))
    free = Job(config(*words), store)
    stage = each.build(free)
    if stage.find() is None:
        need = stage.need()  # what it follows from is made first
        assert each.name in ELSEWHERE or (need is not None and need.bytes > 0), each.name
        there = {artifact.key for artifact in store.artifacts()}
        limited = each.build(Job(config(*words, "runtime.memory=1MB"), store))
        with pytest.raises(SaelinkError) as mistake:
            limited.pull()
        line = str(mistake.value)
        assert "\n" not in line and "of memory, 0 bytes are free within runtime.memory=1.0 MB; " in line, line
        assert line.startswith(OWN_WORDS.get(each.name, f"{each.name}: ")), (each.name, line)
        assert {artifact.key for artifact in store.artifacts()} == there
        assert not list(store.root.glob("*/*.partial"))
    if make:
        each.build(Job(config(*words), store)).pull()


OWN_WORDS = {"gram": "solver=exact: "}


def test_a_stage_that_cannot_be_held_is_refused_before_it_begins(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    write_transcoder(tmp_path / "transcoder")
    words = (*WORDS, f"transcoder.path={tmp_path}/transcoder")
    for each in CHAIN:
        refused(each, words, config, store)


def test_stages_of_attention_too(config: Callable[..., Config], store: Store) -> None:
    words = (*WORDS, "link.kept=40", "verify.tokens_per_source=6", "qk.tokens=256", "qk.pairs=4", "qk.together=[1]")
    for each in ATTENTION:
        refused(each, words, config, store)


def test_stages_over_several_layers_too(config: Callable[..., Config], store: Store) -> None:
    for each in SEVERAL:
        refused(each, (*WORDS, *LAYERS), config, store, make=False)


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {"suite"}))
def test_every_experiment_knows_its_sizes_before_it_fits(
    name: str, config: Callable[..., Config], store: Store
) -> None:
    layers = "experiment.composed.layers=[0,1]", "experiment.several_layers.layers=[0,1]"
    needed = ExperimentStage(Job(config(*WORDS, *layers), store), EXPERIMENTS[name]).need().bytes
    assert needed > 0 and not list(store.root.glob("train/*"))
