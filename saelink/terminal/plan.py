"""A plan as a table of at most 80 columns, or as JSON."""

from __future__ import annotations

import json
from typing import Any

from saelink.config.size import gigabytes
from saelink.plan.costs import Cost
from saelink.plan.steps import Planned, Step
from saelink.progress import Observer
from saelink.terminal.table import Column, table_lines

WIDTH = 80


def print_plan(observer: Observer, plan: Planned) -> None:
    """The lines of a plan."""
    for line in plan_lines(plan):
        observer.say(line)


def plan_lines(plan: Planned, remarks: bool = True) -> list[str]:
    """A line for each stage, totals of what is missing, and unless without `remarks` what is to be said of it."""
    columns = [
        Column("stage"), Column("what", wraps=True), Column("tokens", right=True), Column("disk", right=True),
        Column("memory", right=True), Column("time", right=True),
    ]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for command in plan.commands:
        steps = [step for step in plan.steps if step.command == command]
        rows += [_row(step) for step in steps]
        done = all(step.done for step in steps)
        rows.append((f"saelink {command}", "in all", "", *_figures(plan.total(command), not done)))
    together = "both" if plan.commands[0] == "run" else "together"
    rows.append((together, "in all", "", *_figures(plan.total(), not all(step.done for step in plan.steps))))
    lines = table_lines(columns, rows, WIDTH)
    if not remarks:
        return lines
    rates = f"{plan.rates.gemm / 1e9:,.0f} GFLOP/s, {plan.rates.pairs / 1e6:,.0f}M pairs/s"
    return [*lines, f"on this machine now: {rates}, {gigabytes(plan.rates.disk)}/s to disk", *plan.remarks]


def _row(step: Step) -> tuple[str, ...]:
    tokens = f"{step.cost.tokens:,.0f}" if step.cost.tokens else ""
    if step.done:
        return (step.stage, step.what, tokens, "", "", "done")
    return (step.stage, step.what, tokens, *_figures(step.cost, True))


def _figures(cost: Cost, missing: bool) -> tuple[str, str, str]:
    if not missing:
        return ("", "", "done")
    return (gigabytes(cost.disk) if cost.disk >= 1 else "", gigabytes(cost.memory), duration(cost.seconds))


def duration(seconds: float) -> str:
    """A time for a person: 40 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_plan_json(observer: Observer, plan: Planned) -> None:
    """An object: the stages, the totals, the rates, the remarks; sizes in bytes, times in seconds."""

    def figures(cost: Cost) -> dict[str, int]:
        numbers = {"disk_bytes": cost.disk, "memory_bytes": cost.memory, "seconds": cost.seconds}
        return {name: round(number) for name, number in numbers.items()}

    steps: list[dict[str, Any]] = [
        {
            "command": step.command, "stage": step.stage, "what": step.what, "done": step.done,
            "tokens": round(step.cost.tokens), **figures(step.cost),
        }
        for step in plan.steps
    ]  # fmt: skip
    commands = ("run", "verify") if plan.commands[0] == "run" else plan.commands
    totals = {command: figures(plan.total(command)) for command in commands} | {"both": figures(plan.total())}
    rates = {name: round(rate) for name, rate in plan.rates._asdict().items()}
    found = {"steps": steps, "missing": totals, "rates": rates, "remarks": plan.remarks}
    observer.say(json.dumps(found, indent=1, ensure_ascii=False))
