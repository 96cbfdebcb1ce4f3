"""Experiments: many fits, one table, one picture. One file each, registered by being here.

An experiment file has one subclass of `base.Experiment`; the file's name is what `experiment.names` takes.
"""

from __future__ import annotations

import sys

from saelink.experiments.base import Experiment
from saelink.registry import registered

KINDS = registered(sys.modules[__name__], Experiment, but=("base", "fits", "tables", "runner"))

EXPERIMENTS: dict[str, Experiment] = {name: kind() for name, kind in KINDS.items()}
