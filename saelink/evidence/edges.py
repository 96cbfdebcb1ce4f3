"""What the edges of a connector do on test documents, and what its targets compute from them: the stage `edges`.

An edge leads from a source latent, or from a hidden unit of a connector that has them: whatever the output matrix
reads, here called its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from saelink import memory
from saelink.config.other_text import check_own_text
from saelink.connectors.base import Connector
from saelink.evidence.logic import MIN_TOKENS, Condition, Source, bits, read_logic, wilson
from saelink.evidence.verdicts import REFUTED, Verdicts
from saelink.evidence.verify import has_verdicts, verdicts_stage
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.job import Job, JobStage
from saelink.kernels import in_parts
from saelink.latents.link import load_split
from saelink.latents.rows import Rows, sparse_linear
from saelink.latents.split import Tokens
from saelink.progress import Progress
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

EDGES_FILE = "edges.safetensors"

TARGETS_FILE = "targets.jsonl"

HIDDEN_TENSORS_FILE = "hidden_edges.safetensors"

HIDDEN_FILE = "hidden.jsonl"

BLOCK = 64
"""Targets that are laid out densely over all test tokens at a time."""

ACTIVE = 0.25
"""For logic and its like a latent is active where it is above this share of its activation-weighted mean, sum x^2 /
sum x over test tokens: TopK SAEs fire faintly on many tokens, and those are noise."""

STRONG = 0.1
"""An input is strong when it adds at least this share of what all inputs add where the target fires."""

SCATTERED = 100
"""Tokens of a scatter of two or three strong inputs."""

CLUSTERED = 300
"""Tokens on which the target fires that are clustered by their inputs,"""

CLUSTERED_INPUTS = 10
"""and inputs by which they are, those that add most."""

MET = 2
"""Tokens named for each condition of a target's logic."""

SILENT_RATIO = 2.0
"""A latent goes with a target's silence when its rate there is this many times its rate where the target fires."""


class EdgeTable(NamedTuple):
    """All edges, by target: those of column c are offsets[c] to offsets[c + 1], in the order of their source."""

    target_ids: torch.Tensor
    """[d_target] numbers of the explained latents in the target SAE."""
    offsets: torch.Tensor
    """[d_target + 1]"""
    source: torch.Tensor
    """[n_edges] the input's number: of a source latent in the connector's order, behind these of a hidden unit."""
    weight: torch.Tensor
    """[n_edges]"""
    rise: torch.Tensor
    """[n_edges] how much the target's FVU on test tokens grows without this edge; nan where it never varies. The rises
    of a target's edges don't add up to anything."""
    both: torch.Tensor
    """[n_edges] test tokens on which both ends are active."""


class EdgesFacts(TypedDict):
    n_edges: int
    n_tokens: int
    inputs: int
    """What the output matrix reads: source latents, hidden units, or both."""


class EdgesStage(JobStage[EdgesFacts]):
    """What the edges of the configured connector do.

    Where its edges have verdicts, no logic names a source whose edge they refute, and it says whether all edges that it
    names are confirmed. Files: `edges.safetensors`, the tensors of `EdgeTable`; `targets.jsonl`, a line for every
    explained latent, what `_Target` finds: logic, inputs at its silence, a scatter or clusters of its inputs. For a
    connector with hidden units also `hidden_edges.safetensors` and `hidden.jsonl`: the same for the edges from source
    latents into every hidden unit.
    """

    name = "edges"
    version = 5

    def __init__(self, job: Job):
        super().__init__(job)
        check_own_text(job.cfg, "edges and what shows them")
        self._train = TrainStage(job)

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        return {}

    def inputs(self) -> dict[str, str]:
        verdicts = {"verdicts": verdicts_stage(self.job).key} if has_verdicts(self.job) else {}
        return {"connector": self._train.key, **verdicts}

    def about(self) -> str:
        return self._train.about()

    def need(self) -> Need:
        sides, n_edges = self.job.sides, self._train.pull().facts["n_edges"]
        facts = sides.target.facts
        n = facts["sequences"]["test"] * facts["context_size"]
        size = memory.edges(shape_of(self.job), n_edges, n, sides.split_bytes("test"))
        return Need(size, "use a larger l1_alpha, which keeps fewer edges, or less text (data.max_tokens)")

    def make(self, draft: Draft) -> EdgesFacts:
        job = self.job
        connector = fitted_connector(self._train.pull())
        test = load_split(job.cfg, job.sides, "test", connector.target_ids)
        inputs = inputs_of(connector, test.source)
        layers = connector.penalised()
        bias = dict(connector.named_parameters())
        total = connector.d_target + connector.n_hidden
        verdicts = Verdicts(verdicts_stage(job).pull()) if connector.direct and has_verdicts(job) else None
        with job.observer.progress("edges", total, "targets") as bar, torch.inference_mode():
            matrix = _Matrix(connector.edges_by_target(), bias.get("b2", bias.get("b")), connector.relu_output)
            found, targets = _read(matrix, connector.target_ids, inputs, test.target, test, bar, verdicts)
            draft.save_tensors(EDGES_FILE, found._asdict())
            draft.save_bytes(TARGETS_FILE, _json_lines(targets))
            if connector.n_hidden:
                matrix = _Matrix(Rows.from_dense(layers[0][0].detach().T), bias.get("b1"), True)
                units_of = torch.arange(connector.n_hidden)
                outputs = inputs.columns(connector.direct + units_of)
                inner, units = _read(matrix, units_of, test.source, outputs, test, bar)
                draft.save_tensors(HIDDEN_TENSORS_FILE, inner._asdict())
                draft.save_bytes(HIDDEN_FILE, _json_lines(units))
        return {"n_edges": len(found.source), "n_tokens": len(test), "inputs": inputs.d}


def _json_lines(values: Iterable[Any]) -> bytes:
    """One line of JSON each, so that one can be read without the others."""
    return b"".join(json.dumps(value, separators=(",", ":")).encode() + b"\n" for value in values)


def load_edge_table(artifact: Artifact[EdgesFacts], name: str = EDGES_FILE) -> EdgeTable:
    return EdgeTable(**artifact.tensors(name))


def inputs_of(connector: Connector, source: Rows) -> Rows:
    """What the output matrix reads on these tokens: source latents, hidden activations, or both side by side."""
    parts = [source] if connector.direct else []
    return Rows.beside([*parts, *([hidden_of(connector, source)] if connector.n_hidden else [])])


def hidden_of(connector: Connector, source: Rows) -> Rows:
    """The hidden activations on these tokens."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(source), 4096):
            _, hidden = connector.maps(source.select(torch.arange(first, min(first + 4096, len(source)))))
            assert hidden is not None
            parts.append(Rows.from_dense(hidden))
    return Rows.stack(parts)


class _Columns(NamedTuple):
    """Rows by latent: latent j is active on rows[begins[j] : begins[j + 1]], ascending, with these values."""

    begins: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]

    @staticmethod
    def of(rows: Rows) -> _Columns:
        columns = rows.transposed()
        return _Columns(columns.offsets.numpy(), columns.indices.numpy(), columns.values.numpy())

    def rows_of(self, latent: int) -> np.ndarray[Any, Any]:
        """The rows a latent is active on."""
        return self.rows[self.begins[latent] : self.begins[latent + 1]]

    def at(self, latent: int, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The latent's values on these rows."""
        mine = slice(self.begins[latent], self.begins[latent + 1])
        active, values = self.rows[mine], self.values[mine]
        if not len(active):
            return np.zeros(len(rows), np.float32)
        place = np.searchsorted(active, rows).clip(max=len(active) - 1)
        return np.where(active[place] == rows, values[place], 0)

    def bits(self, latent: int, n: int) -> int:
        """The rows it is active on as a set, see logic.bits."""
        mask = torch.zeros(n, dtype=torch.bool)
        mask[self.rows_of(latent)] = True
        return bits(mask)


def _above_noise(rows: Rows) -> Rows:
    """Only what is above ACTIVE of each latent's activation-weighted mean."""
    values = rows.values.double()
    size = torch.bincount(rows.indices, values.square(), minlength=rows.d)
    size /= torch.bincount(rows.indices, values, minlength=rows.d).clamp(min=1e-30)
    kept = rows.values > ACTIVE * size[rows.indices]
    return Rows.from_pairs(rows.row_of[kept], rows.indices[kept], rows.values[kept], n=len(rows), d=rows.d)


class _Matrix(NamedTuple):
    """One layer of a connector: y = x weight + bias, or its relu."""

    edges: Rows
    """[d_outputs, d_inputs]: by output the inputs that lead into it, with their weights."""
    bias: torch.Tensor | None
    relu: bool


def _read(
    matrix: _Matrix,
    ids: torch.Tensor,
    inputs: Rows,
    outputs: Rows,
    test: Tokens,
    bar: Progress,
    verdicts: Verdicts | None = None,
) -> tuple[EdgeTable, list[dict[str, Any]]]:
    """The edges of one layer from `inputs` to `outputs`, whose column i is called ids[i], and what is said of each.

    `verdicts` are those on edges between source and target latents.
    """
    from saelink.kernels.edges import remove_each

    columns = _Columns.of(inputs)
    clear = _above_noise(inputs)
    clear_columns, clear_outputs = _Columns.of(clear), _Columns.of(_above_noise(outputs))
    offsets, source, weight, d = matrix.edges.offsets, matrix.edges.indices, matrix.edges.values, outputs.d
    change, added = np.zeros(len(source)), np.zeros(len(source))
    both = np.zeros(len(source), np.int32)
    variation = np.zeros(d)
    sums = np.bincount(inputs.indices.numpy(), inputs.values.numpy(), minlength=inputs.d)
    said: list[dict[str, Any]] = []
    for first in range(0, d, BLOCK):
        block = torch.arange(first, min(first + BLOCK, d))
        z = sparse_linear(inputs, matrix.edges.select(block).dense().T.contiguous())
        if matrix.bias is not None:
            z = z + matrix.bias[block]
        z, y = z.T.contiguous().numpy(), outputs.columns(block).dense().T.contiguous().numpy()
        variation[first : first + len(block)] = y.shape[1] * y.var(1, dtype=np.float64)
        arguments = (
            columns.begins, columns.rows, columns.values, z, y, matrix.relu, offsets[first:].numpy(), source.numpy(),
            weight.numpy(), change, both, added,
        )  # fmt: skip

        def remove(low: int, high: int, arguments: tuple[Any, ...] = arguments) -> None:
            remove_each(low, high, *arguments)

        in_parts(len(block), 8, remove)
        for c, column in enumerate(block.tolist()):
            mine = slice(int(offsets[column]), int(offsets[column + 1]))
            fired = np.zeros(len(test), bool)
            fired[clear_outputs.rows_of(column)] = True
            target = _Target(
                test, clear, clear_columns, y[c], fired, source[mine].numpy(), weight[mine].numpy(), added[mine],
                None if verdicts is None else verdicts.into(int(ids[column])),
            )  # fmt: skip
            said.append(target.found(sums))
        bar.advance(len(block))
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = change / np.repeat(np.where(variation > 0, variation, np.nan), offsets.diff().numpy())
    found = EdgeTable(
        ids, offsets, source.int(), weight.float(), torch.from_numpy(rise).float(), torch.from_numpy(both)
    )
    return found, said


class _Target(NamedTuple):
    """One target latent on the test tokens."""

    test: Tokens
    inputs: Rows
    """[n, d] above their noise, see ACTIVE,"""
    columns: _Columns
    """and by latent."""
    y: np.ndarray[Any, Any]
    """[n] what it does,"""
    fired: np.ndarray[Any, Any]
    """[n] bool: and where that is above its noise."""
    source: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]
    added: np.ndarray[Any, Any]
    """Of each edge, as in kernels.edges."""
    verdicts: Mapping[int, str] | None
    """By source latent the verdict on its edge; None where edges have none."""

    def found(self, colsum: np.ndarray[Any, Any]) -> dict[str, Any]:
        """What is said of it. Inputs are named by their numbers."""
        fired = self.fired
        order = np.argsort(-self.added, kind="stable")
        leaders = [int(i) for i in order[:CLUSTERED_INPUTS] if self.added[i] > 0]
        everything = self.added.sum()
        strong = [i for i in leaders if self.added[i] >= STRONG * everything]
        result: dict[str, Any] = {
            "fired": int(fired.sum()),
            "logic": self._logic(fired, colsum),
            "silent": self._silent(fired, leaders),
        }
        if 2 <= len(strong) <= 3:
            result["scatter"] = self._scatter(strong)
        elif len(strong) > 3:
            result["clusters"] = self._clusters(fired, leaders)
        return result

    def _logic(self, fired: np.ndarray[Any, Any], colsum: np.ndarray[Any, Any]) -> dict[str, Any]:
        taken = np.where(self.weight < 0, -self.weight * colsum[self.source], 0)
        sources = [
            Source(float(w), float(a), float(t), lambda j=int(j): self.columns.bits(j, len(self.y)), self._refutes(j))
            for j, w, a, t in zip(self.source, self.weight, self.added, taken, strict=True)
        ]
        found = read_logic(bits(torch.from_numpy(fired)), sources)
        confirmed = None
        if self.verdicts is not None and found.sources:
            confirmed = all(self.verdicts.get(int(self.source[i])) == "confirmed" for i in found.sources)
        return {
            "word": found.word,
            "confirmed": confirmed,
            "inputs": [int(self.source[i]) for i in found.sources],
            "covered": round(found.covered, 4),
            "evidence": [
                {
                    "on": [int(self.source[i]) for i in condition.on],
                    "off": [int(self.source[i]) for i in condition.off],
                    "tokens": condition.tokens,
                    "fired": condition.fired,
                    "rows": self._met(condition) if found.sources else [],
                }
                for condition in found.evidence
            ],
        }

    def _refutes(self, source: int) -> bool:
        """Whether the verdict on the edge from an input is that the model has none."""
        return self.verdicts is not None and self.verdicts.get(int(source)) in REFUTED

    def _met(self, condition: Condition) -> list[int]:
        """A few of the tokens that meet a condition, evenly spread, as rows of the split."""
        rows = self.columns.rows_of(int(self.source[condition.on[0]]))
        for i in condition.on[1:]:
            rows = np.intersect1d(rows, self.columns.rows_of(int(self.source[i])), assume_unique=True)
        for i in condition.off:
            rows = np.setdiff1d(rows, self.columns.rows_of(int(self.source[i])), assume_unique=True)
        return self.test.row[torch.from_numpy(rows[_evenly(len(rows), MET)])].tolist()

    def _silent(self, fired: np.ndarray[Any, Any], leaders: list[int]) -> dict[str, Any] | None:
        """The inputs that go with its silence where its first positive input is active, whether edges or not."""
        from saelink.kernels.edges import companions

        leader = next((int(self.source[i]) for i in leaders if self.weight[i] > 0), None)
        if leader is None:
            return None
        counts = np.zeros((2, self.inputs.d), np.int64)
        offsets, indices = self.inputs.offsets.numpy(), self.inputs.indices.numpy()
        companions(self.columns.begins, self.columns.rows, offsets, indices, leader, fired, counts)
        silent, fires = (int(count[leader]) for count in counts)
        if silent < MIN_TOKENS or fires < MIN_TOKENS:
            return None
        chosen = []
        for j in np.argsort(-(counts[0] / silent - counts[1] / fires), kind="stable")[:4].tolist():
            low, high = wilson(int(counts[0, j]), silent)[0], wilson(int(counts[1, j]), fires)[1]
            if counts[0, j] >= MIN_TOKENS and low > SILENT_RATIO * high:
                chosen.append({"input": j, "silent": int(counts[0, j]), "fires": int(counts[1, j])})
        return {"leader": leader, "silent": silent, "fires": fires, "inputs": chosen} if chosen else None

    def _scatter(self, strong: list[int]) -> dict[str, Any]:
        """Values of the strong inputs, and of the target, on tokens evenly spread where one of them is active."""
        ids = [int(self.source[i]) for i in strong]
        rows = np.unique(np.concatenate([self.columns.rows_of(j) for j in ids]))
        rows = rows[_evenly(len(rows), SCATTERED)]
        points = [[round(float(v), 2) for v in self.columns.at(j, rows)] for j in ids]
        target = np.where(self.fired, self.y, 0)[rows]
        return {"inputs": ids, "values": points, "target": [round(float(v), 2) for v in target]}

    def _clusters(self, fired: np.ndarray[Any, Any], leaders: list[int]) -> dict[str, Any] | None:
        """Kinds of tokens on which it fires, by which inputs make it: HDBSCAN on their shares of the contributions."""
        rows = fired.nonzero()[0]
        if len(rows) < 2 * MIN_TOKENS:
            return None
        rows = rows[_evenly(len(rows), CLUSTERED)]
        ids = [int(self.source[i]) for i in leaders]
        terms = np.stack(
            [self.columns.at(j, rows) * self.weight[i] for j, i in zip(ids, leaders, strict=True)], 1
        ).astype(np.float64)
        size = np.abs(terms).sum(1, keepdims=True)
        labels = _hdbscan(terms / np.where(size > 0, size, 1))
        clusters = []
        for label in range(labels.max() + 1):
            members = labels == label
            mean = terms[members].mean(0)
            first = np.argsort(-np.abs(mean), kind="stable")[:4]
            strongest = rows[members][np.argsort(-self.y[rows[members]], kind="stable")[:3]]
            clusters.append(
                {
                    "tokens": int(members.sum()),
                    "inputs": [[ids[k], round(float(mean[k]), 3)] for k in first if mean[k]],
                    "rows": self.test.row[torch.from_numpy(strongest)].tolist(),
                }
            )
        clusters.sort(key=lambda cluster: -cluster["tokens"])
        return {"tokens": len(rows), "outside": int((labels < 0).sum()), "clusters": clusters}


def _evenly(n: int, most: int) -> np.ndarray[Any, Any]:
    """At most `most` places of n, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


_COPY: Any = True
"""sklearn's stubs say text."""


def _hdbscan(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cluster of each point, -1 for none."""
    from sklearn.cluster import HDBSCAN

    return HDBSCAN(min_cluster_size=max(10, len(points) // 20), copy=_COPY).fit_predict(points)


def by_target(found: EdgeTable) -> Iterator[tuple[int, slice]]:
    """Each explained latent's number and where its edges are."""
    for column, latent in enumerate(found.target_ids.tolist()):
        yield latent, slice(int(found.offsets[column]), int(found.offsets[column + 1]))
