"""Tests of circuits: p-values are what they say, and planted circuits pass where they should."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

import saelink
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.hypotheses import binomial_tail, equivalence, holm, independence
from saelink.evidence.protocol import LEVEL, TESTS_FILE, CircuitTest, circuit_test, corrected, tokens_of
from saelink.interventions.joint import Joint

from helpers.planted import RULES, Rule, planted_block, sources
from helpers.world import Run


def test_binomial_tails_are_scipys() -> None:
    from scipy.stats import binom

    for hits, n, rate in ((3, 10, 0.5), (0, 5, 0.2), (5, 5, 0.6), (60, 100, 0.4), (7, 6, 0.5), (900, 1000, 0.6)):
        assert binomial_tail(hits, n, rate) == pytest.approx(binom.sf(hits - 1, n, rate), rel=1e-9, abs=1e-300)


def test_equivalence_is_refuted_as_rarely_as_it_says() -> None:
    """At the border of the hypothesis, and far more often outside it."""
    generator = torch.Generator().manual_seed(0)
    for rate, least, most in ((0.5, 0.0, 0.01), (0.6, 0.02, 0.06), (0.8, 0.97, 1.0)):
        hits = (torch.rand(2000, 120, generator=generator) < rate).sum(1).tolist()
        refuted = sum(equivalence(hit, 120 - hit, 0.1) < LEVEL for hit in hits) / 2000
        assert least <= refuted <= most, rate
    assert equivalence(0, 0, 0.1) == 1.0


def test_independence_is_refuted_as_rarely_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    p = [independence(*torch.randn(2, 40, generator=generator), permutations=99)[1] for _ in range(200)]
    assert sum(value < LEVEL for value in p) / 200 < 0.09
    x = torch.randn(60, generator=generator)
    hsic, p_value = independence(x, x.square())  # no correlation, all dependence
    assert p_value < 0.01 and hsic > 0.1
    assert independence(x, torch.ones(60)) == (0.0, 1.0) and independence(x, x)[0] == pytest.approx(1)


def test_holm_against_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def circuit(rule: Rule, of: list[int], density: float = 0.4) -> CircuitTest:
    a = sources(n=4000, density=density)
    joint = Joint(planted_block(a, [rule]), [1.0, 1.0])
    return circuit_test(joint, torch.arange(len(a)) // 20, 0, of)


def test_the_true_circuit_passes() -> None:
    found = circuit(lambda s: s[:, 0] + s[:, 1], [0, 1])
    assert found["equivalence_p"] == 1.0 and found["independence_p"] == 1.0
    assert found["fires_alone"] == found["fires"] > 20 and found["fires_else"] == found["fires_without"] == 0
    assert found["tokens"] <= 200, "one a document"
    assert all(edge["p"] is not None and edge["p"] < 1e-6 and edge["more"] == 1.0 for edge in found["edges"])


def test_a_circuit_that_lacks_a_source_is_refuted() -> None:
    found = circuit(lambda s: s[:, 0] + s[:, 2], [0])
    assert found["equivalence_p"] is not None and found["equivalence_p"] < LEVEL
    assert found["independence_p"] is not None and found["independence_p"] < LEVEL
    whole = circuit(lambda s: s[:, 0] + s[:, 2], [0, 2])
    assert whole["equivalence_p"] == 1.0 and whole["independence_p"] == 1.0


def test_a_superfluous_edge_is_not_needed() -> None:
    found = circuit(lambda s: s[:, 0] + s[:, 1] + 0.1 * s[:, 5], [0, 3])
    needed, superfluous = found["edges"]
    assert needed["p"] is not None and needed["p"] < 1e-6
    assert superfluous["p"] is not None and superfluous["p"] > LEVEL


def test_few_tokens_are_not_tested() -> None:
    a = torch.zeros(100, 4)
    a[:3, 0] = 1.0
    joint = Joint(planted_block(a, [RULES["copy"]]), [1.0, 1.0])
    found = circuit_test(joint, torch.arange(100), 0, [0])
    assert found["tokens"] == 3 and found["equivalence_p"] is None and found["edges"][0]["p"] is None
    rows = corrected([found])
    assert rows[0]["equivalence_p_corrected"] is None and rows[0]["edges"][0]["p_corrected"] is None
    assert len(tokens_of(joint, torch.arange(100), 0, [0])) == 3


def test_more_circuits_are_corrected_for() -> None:
    one = circuit(lambda s: s[:, 0] + s[:, 2], [0])
    alone, many = corrected([one])[0], corrected([one] * 5)[0]
    assert many["equivalence_p_corrected"] == pytest.approx(min(5 * alone["equivalence_p"], 1.0))


def test_on_the_command_line(saelink: Run) -> None:
    code, out, err = saelink("test", "OF1", "2", "solver=exact", "l1_alpha=1e-3", "eval.verify=false")
    assert code == 0, err
    assert "OF1" in out and "OF2" in out and "equivalence" in out and "corrected (Holm) for 2 circuits" in out
    table = out[out.index("  OF1 ") : out.index("corrected")].splitlines()
    assert all(len(line) <= 80 for line in table), table


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "test: name at least one target latent, such as `saelink test OF138`"),
        (["IF3"], "test IF3: give a target latent by its name, such as OF138"),
        (["OF99"], "test OF99: the target SAE has latents OF0 to OF47"),
        (["OF1", "l1_alpha=1e3"], "test OF1: no edge leads to it at l1_alpha=1000; a smaller one keeps more edges"),
        (["OF1", "connector=mlp", "solver=adam"], "test OF1: connector=mlp has hidden units; test a linear one"),
        (["OF1", "link=mlp_from_parts"], "link=mlp_from_parts: effects of single edges are measured between"),
    ],
)
def test_mistakes(saelink: Run, words: list[str], expected: str) -> None:
    given = words if any(word.startswith("solver") for word in words) else [*words, "solver=exact"]
    code, _, err = saelink("test", *given, "eval.verify=false")
    assert code == 1 and expected in err and len(err.strip().splitlines()) == 1, err


def test_from_python(config: Callable[..., Config]) -> None:
    cfg = config("solver=exact", "l1_alpha=1e-3", "eval.verify=false")
    quiet = saelink.Observer()
    artifact = saelink.test(cfg, "OF1", "OF5", observer=quiet)
    found = artifact.json(TESTS_FILE)
    assert [test["target"] for test in found] == [1, 5] and json.dumps(found)
    assert saelink.test(cfg, "1", "of5", "OF1", observer=quiet).key == artifact.key
    with pytest.raises(SaelinkError, match="name at least one"):
        saelink.test(cfg, observer=quiet)
