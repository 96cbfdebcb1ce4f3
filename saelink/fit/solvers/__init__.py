"""Solvers: how a connector's weights are found. One file each, registered by being here.

A solver file has one subclass of `base.Solver`, whose `Settings` is the dataclass of its settings; the file's name is
what `solver=` takes.
"""

from __future__ import annotations

import sys

from saelink.fit.solvers.base import Solver
from saelink.registry import registered

SOLVERS: dict[str, type[Solver]] = registered(sys.modules[__name__], Solver, but=("base",))
