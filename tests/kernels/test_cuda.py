"""The Triton kernels against the torch operations they stand for, and a whole fit on the GPU against the CPU's.

Without a GPU the kernels run in Triton's interpreter (tests/conftest.py turns it on), which Linux alone has.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.fit.lasso.batched import BatchedLasso
from saelink.fit.lasso.sparse import SparseLasso
from saelink.fit.products.paired import paired_gram
from saelink.fit.products.sparse import sparse_gram_of
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.job import Job
from saelink.kernels import cuda
from saelink.latents.split import Tokens
from saelink.store.store import Store

from helpers.fits import make, problem, solve
from helpers.rows import linked_tokens, random_rows
from helpers.world import World

pytestmark = pytest.mark.gpu

interpreted = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
device = "cuda" if torch.cuda.is_available() else "cpu"
needs_kernels = pytest.mark.skipif(
    not (torch.cuda.is_available() or interpreted), reason="needs Triton, which is there on Linux alone"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_kernels
@pytest.mark.parametrize("columns", [1, 300])
def test_gather_sum_is_embedding_bag(columns: int) -> None:
    rows = random_rows(40, 13).to(device)
    table = torch.randn(13, columns, generator=torch.Generator().manual_seed(0)).to(device)
    found = cuda.gather_sum(rows.offsets, rows.indices, rows.values, table)
    assert torch.allclose(found, rows.dense() @ table, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("proximal", [False, True])
def test_adam_step_is_torchs_with_the_penalty(proximal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(37, 51, generator=generator).to(device)
    reference = torch.nn.Parameter(weight.clone())
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = torch.optim.Adam([reference], lr=1e-2)
    l1 = 0.3
    for step in range(1, 6):
        gradient = torch.randn(37, 51, generator=generator).to(device)
        reference.grad = gradient if proximal else gradient + l1 * reference.detach().sign()
        optimizer.step()
        if proximal:
            v = optimizer.state[reference]["exp_avg_sq"]
            threshold = 1e-2 * l1 / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            with torch.no_grad():
                reference.sub_(torch.minimum(torch.maximum(reference, -threshold), threshold))
        cuda.adam_step(weight, gradient, first, second, step=step, lr=1e-2, l1=l1, proximal=proximal)
        assert torch.allclose(weight, reference.detach(), atol=1e-5)


@needs_kernels
def test_every_parameter_moves_penalised_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix outside the penalty too: the kernel takes what is penalised, torch the rest."""
    from saelink.connectors.linear import LinearConnector, LinearSettings
    from saelink.fit.solvers.adam import Columns

    class Gained(LinearConnector):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            self.gain = torch.nn.Parameter(torch.ones(1, self.d_target))

        def maps(self, rows: Any) -> tuple[torch.Tensor, None]:
            return super().maps(rows)[0] * self.gain, None

    monkeypatch.setattr(cuda, "usable", lambda tensor: True)
    monkeypatch.setattr(Columns, "fits", staticmethod(lambda connector, device: False))
    connector = Gained(LinearSettings(name="linear", bias=True), 12, torch.arange(9))
    connector.initialise(torch.Generator(), {"W": torch.rand(12, 9), "gain": torch.ones(1, 9)})
    before = {name: parameter.detach().clone() for name, parameter in connector.named_parameters()}
    task = problem(random_rows(60, 12), random_rows(60, 9, seed=5), 1e-3)._replace(device=device)
    solve(connector, task, tokens=60, batch_tokens=20)
    for name, parameter in connector.named_parameters():
        assert not torch.equal(parameter.detach().cpu(), before[name]), name


@needs_cuda
@pytest.mark.parametrize(
    ("name", "settings"), [("linear", {"bias": True}), ("mlp", {"d_hidden": 8}), ("nonlinear", {})]
)
@pytest.mark.parametrize("by", ["adam", "proximal"])
def test_a_fit_on_the_gpu_is_the_cpus(name: str, settings: dict[str, Any], by: str) -> None:
    source, target = random_rows(300, 40, seed=8, density=0.1), random_rows(300, 45, seed=9, density=0.3)
    task = problem(source, target, 1e-3)
    fits = [make(name, 40, 45, init="random", **settings) for _ in range(2)]
    for connector, where in zip(fits, ("cpu", "cuda"), strict=True):
        solve(connector, task._replace(device=where), by, tokens=600, batch_tokens=50)
    for ours, theirs in zip(fits[0].state_dict().values(), fits[1].state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs.cpu(), atol=1e-4)


@needs_cuda
def test_an_exact_fit_on_the_gpu_is_the_cpus() -> None:
    source, target = random_rows(300, 40, seed=8, density=0.1), random_rows(300, 45, seed=9, density=0.3)
    task = problem(source, target, 1e-3)
    fits = [make("linear", 40, 45, bias=True) for _ in range(2)]
    points = [
        solve(connector, task._replace(device=where), "exact", tolerance=1e-7).final
        for connector, where in zip(fits, ("cpu", "cuda"), strict=True)
    ]
    assert points[0]["training_objective"] == pytest.approx(points[1]["training_objective"], rel=1e-6)
    assert points[1]["worst_gap"] <= 1e-7


@needs_cuda
@pytest.mark.parametrize("centred", [False, True])
def test_a_wide_fit_on_the_gpu_is_the_cpus(centred: bool) -> None:
    tokens = Tokens.stack(linked_tokens(600, 40, 12, seed=3))
    expected, products = sparse_gram_of([tokens]), paired_gram(tokens, "cuda")
    for name, tensor in expected.tensors().items():
        assert torch.allclose(products.tensors()[name].double(), tensor.double(), rtol=1e-6, atol=0), name
    theirs = SparseLasso(expected, centred).solve(1e-2, 1e-7, 20_000)
    ours = BatchedLasso(products, centred, device="cuda").solve(1e-2, 1e-7, 20_000)
    assert torch.allclose(ours.errors, theirs.errors, rtol=1e-3)
    assert float((ours.gaps / (products.yy / 2).clamp(min=1e-300)).max()) <= 1e-7


@pytest.mark.parametrize("step", [3, 7, 100])
def test_batches_are_the_rows_in_order(step: int) -> None:
    rows = torch.randn(20, 4)
    assert torch.equal(torch.cat([batch.cpu() for batch in cuda.batches(rows, step, device)]), rows)


@needs_cuda
@pytest.mark.parametrize("name", ["mlp", "skip"])
def test_a_readout_on_the_gpu_is_as_good_as_the_cpus(name: str) -> None:
    source, target = random_rows(300, 40, seed=8, density=0.1), random_rows(300, 45, seed=9, density=0.3)
    task = problem(source, target, 1e-3)
    fits = [make(name, 40, 45, d_hidden=6, bias=True) for _ in range(2)]
    settings = {"tokens": 600, "batch_tokens": 50, "tolerance": 1e-7}
    points = [
        solve(connector, task._replace(device=where), "readout", **settings).final
        for connector, where in zip(fits, ("cpu", "cuda"), strict=True)
    ]
    assert points[0]["training_objective"] == pytest.approx(points[1]["training_objective"], rel=1e-4)


@needs_cuda
@pytest.mark.parametrize("link", ["mlp", "attn", "block"])
def test_effects_on_the_gpu_are_the_cpus(world: World, tmp_path: Path, link: str) -> None:
    found = []
    for where in ("cpu", "cuda"):
        store = Store(tmp_path / where)
        cfg = world.config(store.root, f"link={link}", f"runtime.device={where}")
        found.append(load_effects(EffectsStage(Job(cfg, store)).pull()))
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.allclose(found[0].dense(), found[1].dense(), atol=1e-4)
