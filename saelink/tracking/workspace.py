"""The workspace of a project in W&B: the panels that connectors are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelink.errors import SaelinkError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "saelink"


def workspace(entity: str, project: str) -> Workspace:
    """The saved view, not sent yet: frontier, fits live, test documents, verdicts, sweeps and experiments.

    Raises SaelinkError where wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn
    except ModuleNotFoundError:
        raise SaelinkError("wandb workspace: needs wandb-workspaces, `pip install 'saelink[wandb]'`") from None

    def scatter(title: str, x: str, y: str, **axes: Any) -> Any:
        x_axis, y_axis = panels.SummaryMetric(x), panels.SummaryMetric(y)
        return panels.ScatterPlot(title=title, x=x_axis, y=y_axis, log_x=True, **axes)

    def line(title: str, x: str, *y: str, log_y: bool = False) -> Any:
        return panels.LinePlot(title=title, x=x, y=list(y), log_x=True, log_y=log_y)

    def column(config: str | None = None, summary: str | None = None, log: bool = False) -> Any:
        metric = panels.Config(config) if config else panels.SummaryMetric(summary or "")
        return ParallelCoordinatesPlotColumn(metric=metric, log=log)

    def media(title: str, *keys: str) -> Any:
        return panels.MediaBrowser(title=title, media_keys=list(keys))

    settings = [column(config="l1_alpha", log=True), column(config="connector"), column(config="solver")]
    settings += [column(config="layer"), column(summary="final_edges", log=True), column(summary="final_fvu")]
    sections = [
        workspaces.Section(
            "Frontier, validation documents",
            [
                scatter("MSE against L1", "final_l1", "final_mse", log_y=True),
                scatter("FVU against L1", "final_l1", "final_fvu", log_y=True),
                scatter("FVU against edges", "final_edges", "final_fvu", log_y=True),
                media("Frontier of the same latents", "pareto/picture"),
                panels.WeavePanelSummaryTable(table_name="pareto/table"),
                panels.ParallelCoordinatesPlot(title="Settings and what they come to", columns=settings),
            ],
            is_open=True,
        ),
        workspaces.Section(
            "Fits",
            [
                line("Way through error and L1", "way/l1", "way/mse", log_y=True),
                line("Edges along the way", "way/l1", "way/edges", log_y=True),
                line("Validation FVU", "tokens", "validation_fvu"),
                line("Training MSE", "tokens", "train_mse", log_y=True),
                panels.LinePlot(title="Speed", x="live/done", y=["live/per_second"]),
                panels.LinePlot(title="Seconds left", x="live/done", y=["live/seconds_left"]),
                panels.LinePlot(title="Peak memory, GB", x="live/done", y=["live/peak_memory_gb"]),
            ],
            is_open=True,
        ),
        workspaces.Section(
            "Test documents (saelink evaluate)",
            [
                scatter("FVU against edges", "test/n_edges", "test/fvu", log_y=True),
                panels.BarPlot(title="Cross-entropy recovered", metrics=["test/ce_loss_recovered"]),
                media("FVU by latent", "test/fvu_by_latent"),
                panels.WeavePanelSummaryTable(table_name="test/circuits"),
            ],
        ),
        workspaces.Section(
            "Verdicts (saelink verify)",
            [
                scatter("Precision against edges", "final_edges", "verify/precision_1x"),
                panels.BarPlot(
                    title="How much of what a graph claims is causal",
                    metrics=["verify/precision_1x", "verify/recall_suppressive_10x"],
                ),
                panels.WeavePanelSummaryTable(table_name="verify/graphs"),
                panels.WeavePanelSummaryTable(table_name="verify/consequences"),
            ],
        ),
        workspaces.Section(
            "Experiments",
            [media("Pictures", "experiment/picture"), panels.WeavePanelSummaryTable(table_name="experiment/table")],
        ),
    ]
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def save_workspace(project: str, entity: str | None) -> str:
    """Create the workspace in W&B; its address. Raises SaelinkError without a key, and when W&B does not answer."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise SaelinkError("wandb workspace: no API key; `wandb login`, or set WANDB_API_KEY")
    try:
        name = entity or wandb.Api(timeout=20).default_entity
    except Exception as error:  # whatever wandb and what it calls raise
        raise _refused(error) from None
    if not name:
        raise SaelinkError("wandb workspace: W&B knows no default team or user of this key; give --entity")
    view = workspace(name, project)
    try:
        return view.save_as_new_view().url
    except Exception as error:  # as above
        raise _refused(error) from None


def _refused(error: Exception) -> SaelinkError:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return SaelinkError(f"wandb workspace: W&B did not take it: {line}; try again, or check --entity and --project")
