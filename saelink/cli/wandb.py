"""`saelink wandb`: what is set up in W&B once."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Set up a project in Weights & Biases.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Set up a project in Weights & Biases."""


@app.command("workspace")
def workspace(
    project: Annotated[str, typer.Option(help="W&B project.", envvar="WANDB_PROJECT")] = "saelink",
    entity: Annotated[str | None, typer.Option(help="Team or user; else your default.")] = None,
) -> None:
    """Make the panels that connectors are compared by.

    Needs the extra wandb and an API key.
    """
    from saelink.tracking.workspace import save_workspace

    print(save_workspace(project, entity))
