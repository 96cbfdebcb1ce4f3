"""A prompt's graph: links add up, agree with small changes to the model itself, and stand in the format."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.latents.link import link_of
from saelink.model.describe import model_info
from saelink.model.load import load_bridge
from saelink.share.graph.prune import influences
from saelink.share.graph.stage import GraphStage
from saelink.share.graph.trace import Node, Tracer
from saelink.share.graph.write import INDEX_FILE, cantor
from saelink.store.store import Store

from helpers.world import Run

PROMPT = "the old king sat on the mat of a former dog"

KINDS = [
    ["layer=0", "connector=linear", "solver=exact", "l1_alpha=1e-3", "connector.bias=true"],
    ["layer=0", "connector=mlp", "connector.d_hidden=6"],
    ["connector=linear", "solver=exact", "l1_alpha=1e-3", "link=block"],
]


def traced(config: Callable[..., Config], store: Store, kind: list[str], model: str) -> tuple[Config, Tracer]:
    cfg = config(*kind, model=model)
    cfg.graph.prompt = PROMPT
    job = Job(cfg, store)
    return cfg, Tracer(job, fitted_connector(TrainStage(job).pull()))


@pytest.mark.parametrize("model", ["llama", "neox"])
@pytest.mark.parametrize("kind", KINDS)
def test_links_add_up(config: Callable[..., Config], store: Store, kind: list[str], model: str) -> None:
    cfg, tracer = traced(config, store, kind, model)
    trace = tracer.trace()
    targets = [node for node in trace.activations if node.kind == "target"]
    assert targets and all(node.position >= cfg.data.drop_positions for node in trace.activations)
    for node in targets:
        assert sum(trace.links[node].values()) == pytest.approx(trace.activations[node], rel=1e-4)
    if kind == KINDS[0]:  # what a linear map adds is known
        weight, scales = tracer.connector.output_weight(), tracer.sides.scales
        node = max(targets, key=lambda node: len(trace.links[node]))
        for source, found in trace.links[node].items():
            if source.kind == "source":
                w = weight[source.number, tracer.connector.column(node.number)].item()
                assert found == pytest.approx(w * trace.activations[source] / scales[0] * scales[1], rel=1e-3, abs=1e-5)
        assert len(trace.links[node]) > 2
    (best,) = [n for n in trace.links if n.kind == "logit" and n.number == next(iter(trace.probabilities))]
    (gradient,) = torch.autograd.grad(
        tracer.logits[best.number] - tracer.logits.mean(), tracer.target_acts, retain_graph=True
    )
    by_position = (gradient * tracer.target_acts).detach()[0].flatten(1).sum(1)
    for position, whole in enumerate(by_position.tolist()):
        found = sum(
            w for n, w in trace.links[best].items() if n.position == position and n.kind in ("target", "target_error")
        )
        assert found == pytest.approx(whole, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_links_say_what_a_small_change_does(config: Callable[..., Config], store: Store, model: str) -> None:
    cfg, tracer = traced(config, store, KINDS[0], model)
    trace = tracer.trace()
    ids, link, small = torch.tensor([tracer.ids]), link_of(cfg, store), 1e-2
    bridge = load_bridge(cfg, model_info(cfg, store), "cpu")

    def logits(changes: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The last logits less their mean, and the source acts; the target hook held but for its change."""
        seen = {}

        def look(acts: torch.Tensor, **_: object) -> torch.Tensor:
            seen["source"] = acts
            return acts

        hooks = [("hook_embed", lambda acts, hook=None: acts + changes.get("hook_embed", 0.0))]
        hooks += [(link.sources[0], look)]
        hooks += [(link.target, lambda acts, hook=None: tracer.target_acts.detach() + changes.get(link.target, 0.0))]
        with torch.no_grad():
            out = bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, -1].double()
        return out - out.mean(), seen["source"][0].double()

    def slope(change: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        up, down = (logits({hook: sign * small * c for hook, c in change.items()}) for sign in (1, -1))
        return (up[0] - down[0]) / 2 / small, (up[1] - down[1]) / 2 / small

    sae = tracer.target_sae
    best = next(node for node in trace.links if node.kind == "logit")
    strongest = sorted((n for n in trace.links[best] if n.kind == "target"), key=lambda n: -abs(trace.links[best][n]))
    for node in strongest[:3]:
        change = torch.zeros_like(tracer.target_acts)
        change[0, node.position] = trace.activations[node] * sae.W_dec[node.number]
        assert slope({link.target: change})[0][best.number].item() == pytest.approx(trace.links[best][node], rel=2e-2)
    sources = [node for node in trace.activations if node.kind == "source"][-3:]
    tracer.embed(trace, sources)
    position = sources[0].position - 1
    change = torch.zeros_like(tracer.embedding)
    change[0, position] = tracer.embedding.detach()[0, position]
    to_logits, to_source = slope({"hook_embed": change})
    token = Node("token", tracer.ids[position], position)
    assert to_logits[best.number].item() == pytest.approx(trace.links[best][token], rel=2e-2, abs=1e-4)
    for node in sources:
        expected = to_source[node.position] @ tracer.saes[0].W_enc[:, node.number].double()
        assert trace.links[node].get(token, 0.0) == pytest.approx(expected.item(), rel=2e-2, abs=1e-3)


def test_influence_is_handed_down_whole(config: Callable[..., Config], store: Store) -> None:
    _, tracer = traced(config, store, KINDS[0], "llama")
    trace = tracer.trace()
    tracer.embed(trace, [node for node in trace.activations if node.kind == "source"])
    influence, _ = influences(trace)
    ends = [v for n, v in influence.items() if n.kind in ("token", "target_error", "source_error")]
    assert sum(ends) == pytest.approx(1.0)
    assert sum(v for n, v in influence.items() if n.kind == "logit") == pytest.approx(1.0)


def test_the_file_is_what_circuit_tracer_reads(saelink: Run) -> None:
    code, out, err = saelink(
        "graph", PROMPT, "layer=0", "l1_alpha=1e-3", "+sae.neuronpedia.hook_mlp_out=tiny/LAYER-mlp"
    )
    assert code == 0, err
    assert "next  " in out and "OF" in out and "nodes" in out
    (artifact,) = [found for found in Store("outputs").artifacts() if found.stage == "graph"]
    document = json.loads(artifact.file(f"{artifact.facts['slug']}.json").read_text())
    (listed,) = json.loads(artifact.file(INDEX_FILE).read_text())["graphs"]
    assert listed == document["metadata"] and listed["prompt"] == PROMPT and listed["scan"] == "tiny"
    assert listed["prompt_tokens"][1:3] == ["the", "old"] and listed["schema_version"] == 1
    fields = {"feature": int, "ctx_idx": int, "layer": str, "feature_type": str, "jsNodeId": str, "clerp": str}
    ids = [node["node_id"] for node in document["nodes"]]
    assert len(set(ids)) == len(ids) and {"1_-1_11", "0_-1_11"} & set(ids)
    types = {node["feature_type"] for node in document["nodes"]}
    assert types == {"embedding", "logit", "cross layer transcoder", "mlp reconstruction error"}
    for node in document["nodes"]:
        assert all(isinstance(node[name], kind) for name, kind in fields.items())
        if node["feature_type"] == "cross layer transcoder":
            layer, latent, position = map(int, node["node_id"].split("_"))
            assert node["feature"] == cantor(layer, latent) and node["ctx_idx"] == position and node["activation"] > 0
            assert layer in (0, 1)
            assert node.get("vis_link") == document["metadata"]["saelink"]["pages"].get(node["node_id"])
        if node["feature_type"] not in ("embedding", "logit"):  # front ends hide what is above
            assert 0 < node["influence"] <= listed["node_threshold"]
        if node["feature_type"] == "logit":
            assert "(p=0." in node["clerp"] and node["layer"] == "3" and 0 < node["token_prob"] < 1
    assert sum(node["is_target_logit"] for node in document["nodes"]) == 1
    for link in document["links"]:
        assert link["source"] in ids and link["target"] in ids and link["weight"] == float(link["weight"])
    first = document["metadata"]["saelink"]["pages"]
    assert all(page.startswith("https://www.neuronpedia.org/tiny/0-mlp/") for page in first.values()) and first
    code, out, _ = saelink("graph", PROMPT, "layer=0", "l1_alpha=1e-3", "+sae.neuronpedia.hook_mlp_out=tiny/LAYER-mlp")
    assert code == 0 and f"graph {artifact.key}: up to date" in out


def test_a_list_of_penalties_is_refused(saelink: Run) -> None:
    code, _, err = saelink("graph", PROMPT, "l1_alpha=[1e-3,1e-2]")
    assert code == 1 and "has 2 penalties: this takes one" in err and len(err.strip().splitlines()) == 1
    code, out, err = saelink("graph", PROMPT, "--cfg", "job")
    assert code == 0 and "l1_alpha" in out, err


def test_cantor_numbers_every_pair_once() -> None:
    assert len({cantor(a, b) for a in range(40) for b in range(40)}) == 1600
    assert [cantor(0, 0), cantor(1, 0), cantor(0, 1)] == [0, 1, 2]


def test_a_prompt_that_can_not_be_used_gets_one_line(saelink: Run) -> None:
    for words, said in (
        ([], 'graph.prompt is missing: saelink graph "'),
        (["the", "cat"], 'give one text, in quotes: saelink graph "the cat"'),
        (["the cat sat on the mat " * 9], "graph.prompt has 54 tokens; with the one in front at most"),
        (["the cat", "graph.node_share=0"], "graph.node_share=0.0 must be above 0 and at most 1"),
    ):
        code, _, err = saelink("graph", *words, "l1_alpha=1e-3")
        assert code == 1 and said in err and len(err.strip().splitlines()) == 1, err


def test_no_prompt_in_python(config: Callable[..., Config], store: Store) -> None:
    with pytest.raises(SaelinkError, match=r"graph\.prompt is missing"):
        GraphStage(Job(config(), store)).pull()
