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
    except ModuleNotFoundError:
        raise SaelinkError("wandb workspace: needs wandb-workspaces, `pip install 'saelink[wandb]'`") from None

    sections = [_frontier(panels, workspaces), _fits(panels, workspaces), *_evidence(panels, workspaces)]
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def _scatter(panels: Any, title: str, x: str, y: str, **axes: Any) -> Any:
    x_axis, y_axis = panels.SummaryMetric(x), panels.SummaryMetric(y)
    return panels.ScatterPlot(title=title, x=x_axis, y=y_axis, log_x=True, **axes)


def _line(panels: Any, title: str, x: str, y: str, log_x: bool = True, log_y: bool = False) -> Any:
    return panels.LinePlot(title=title, x=x, y=[y], log_x=log_x, log_y=log_y)


def _frontier(panels: Any, workspaces: Any) -> Any:
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column

    settings = [Column(metric=panels.Config("l1_alpha"), log=True)]
    settings += [Column(metric=panels.Config(name)) for name in ("connector", "solver", "layer")]
    settings += [Column(metric=panels.SummaryMetric("final_edges"), log=True)]
    settings += [Column(metric=panels.SummaryMetric("final_fvu"))]
    shown = [
        _scatter(panels, "MSE against L1", "final_l1", "final_mse", log_y=True),
        _scatter(panels, "FVU against L1", "final_l1", "final_fvu", log_y=True),
        _scatter(panels, "FVU against edges", "final_edges", "final_fvu", log_y=True),
        panels.MediaBrowser(title="Frontier of the same latents", media_keys=["pareto/picture"]),
        panels.WeavePanelSummaryTable(table_name="pareto/table"),
        panels.ParallelCoordinatesPlot(title="Settings and what they come to", columns=settings),
    ]
    return workspaces.Section("Frontier, validation documents", shown, is_open=True)


def _fits(panels: Any, workspaces: Any) -> Any:
    shown = [
        _line(panels, "Way through error and L1", "way/l1", "way/mse", log_y=True),
        _line(panels, "Edges along the way", "way/l1", "way/edges", log_y=True),
        _line(panels, "Validation FVU", "tokens", "validation_fvu"),
        _line(panels, "Training MSE", "tokens", "train_mse", log_y=True),
        _line(panels, "Speed", "live/done", "live/per_second", log_x=False),
        _line(panels, "Seconds left", "live/done", "live/seconds_left", log_x=False),
        _line(panels, "Peak memory, GB", "live/done", "live/peak_memory_gb", log_x=False),
    ]
    return workspaces.Section("Fits", shown, is_open=True)


def _evidence(panels: Any, workspaces: Any) -> list[Any]:
    causal = ["verify/precision_1x", "verify/recall_suppressive_10x"]
    test = [
        _scatter(panels, "FVU against edges", "test/n_edges", "test/fvu", log_y=True),
        panels.BarPlot(title="Cross-entropy recovered", metrics=["test/ce_loss_recovered"]),
        panels.MediaBrowser(title="FVU by latent", media_keys=["test/fvu_by_latent"]),
        panels.WeavePanelSummaryTable(table_name="test/circuits"),
    ]
    verdicts = [
        _scatter(panels, "Precision against edges", "final_edges", "verify/precision_1x"),
        panels.BarPlot(title="How much of what a graph claims is causal", metrics=causal),
        panels.WeavePanelSummaryTable(table_name="verify/graphs"),
        panels.WeavePanelSummaryTable(table_name="verify/consequences"),
    ]
    experiments = [
        panels.MediaBrowser(title="Pictures", media_keys=["experiment/picture"]),
        panels.WeavePanelSummaryTable(table_name="experiment/table"),
    ]
    return [
        workspaces.Section("Test documents (saelink evaluate)", test),
        workspaces.Section("Verdicts", verdicts),
        workspaces.Section("Experiments", experiments),
    ]


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
