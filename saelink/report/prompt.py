"""A prompt's graph as one page: the stage `graph_page`."""

from __future__ import annotations

from typing import Any, TypedDict

from saelink import memory
from saelink.circuits.stage import LayersGraphStage
from saelink.job import Job, JobStage
from saelink.report.render import render_graph
from saelink.share.graph.stage import GraphStage
from saelink.store.draft import Draft
from saelink.store.stage import Need


class GraphPageFacts(TypedDict):
    bytes: int
    file: str
    """The page's name: that of the graph's file."""


class GraphPageStage(JobStage[GraphPageFacts]):
    """The graph of cfg.graph.prompt as a page that shows it without another tool, and fetches nothing.

    File: `<slug>.html`.
    """

    name = "graph_page"
    version = 1

    def __init__(self, job: Job):
        super().__init__(job)
        self._graph = GraphStage(job) if job.cfg.layers is None else LayersGraphStage(job)

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        return {}

    def inputs(self) -> dict[str, str]:
        return {"graph": self._graph.key}

    def about(self) -> str:
        return self._graph.about()

    def check(self) -> None:
        self._graph.check()

    def need(self) -> Need:
        return Need(memory.graph_page(self._graph.pull().size), "keep less of the graph (graph.node_share)")

    def make(self, draft: Draft) -> GraphPageFacts:
        graph = self._graph.pull()
        slug = graph.facts["slug"]
        page = render_graph(graph.json(f"{slug}.json"))
        draft.save_bytes(f"{slug}.html", page)
        return {"bytes": len(page), "file": f"{slug}.html"}
