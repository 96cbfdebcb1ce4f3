"""Writes docs/guides/plans.md: what `saelink plan` says of every set in conf/sae, at the rates of a quiet machine.

python scripts/plans.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from saelink import Observer, configure
from saelink.job import Job
from saelink.plan.layers import planned_over
from saelink.plan.rates import REFERENCE
from saelink.plan.steps import planned
from saelink.store.store import Store
from saelink.terminal.plan import plan_lines

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "plans.md"

SETS: list[tuple[str, ...]] = [
    (),
    ("sae=gpt2-small-res-jb", "layer=6"),
    ("sae=gpt2-small-v5-32k", "layer=3"),
    ("sae=pythia-70m-deduped-sm", "layer=3"),
    ("sae=gemma-scope-2-270m-pt", "layer=5"),
    ("sae=gemma-scope-2b-pt", "layer=12"),
    ("sae=post", "model=pythia-70m-deduped", "data=openwebtext-10k"),
    ("layers=0-3",),
]
"""The defaults and what is published; one's own (folder, hub, release, train) have no sizes before they are named."""

HEAD = """# What a job will take

`saelink plan` prints it before anything is fetched or computed: for each stage of `saelink run` and `saelink verify`
the tokens, the disk it writes, the memory of the whole process at its peak, and the time, from the sizes of model and
SAEs and two seconds of measuring this machine. Stages that are made already are said as done.

```sh
saelink plan sae=gemma-scope-2b-pt layer=12
saelink plan data.max_tokens=null
saelink plan layers=0-3
```

With `layers=...` it plans what `saelink graph`, `intervene` and `circuit` over these layers make, instead: one pass of
the model for all hooks, SAEs that are missing, the latents, each layer's fit (`circuit.edges`; `gradient` has none),
and the graph of a prompt, the intervention on it and the circuit of a latent, all at the longest prompt there is.
`train`, `evaluate` and `verify` of several layers are each layer's plan, `layer=0` and so on.

Sizes come from the model's `config.json` and the SAEs' configs or the heads of their files; for published sets from
`model.dimensions` and `sae.published` in `conf/sae`, so that no network is needed. What nothing says is reckoned with
16,384 latents, 64 of them active, or 1,000,000 tokens, and a line says so. The formulas are in
`saelink/plan/costs.py`, those of memory in `saelink/memory.py`.

**How far they can be trusted.** Against the measured run of the defaults (`benchmarks/run.json`) disk is within 1.5
times, memory and time within 3 times of what was taken, for the whole and for each stage of more than a few seconds;
the tests hold that. For wider SAEs nothing of this size has been run. The pairs of latents that meet are the least
certain: latents at random meet a third of what is reckoned with here, so that the products may take less than the
table says; `saelink train` counts a sample before it begins. What is fetched from the hub is not in the times. A plan
made while other work runs has the rates of that moment.

Of graphs over layers one was compared: 113 tokens over layers 0 to 3 of the default model with gradient edges took 18 s
on a busy core and 2.1 GB (planned at the longest prompt, 128 tokens, on quiet cores: 22 s and 2.9 GB). The time of
`circuit` was not compared with a run.

**What is left out.** Experiments (they say how many fits are missing when they begin), `saelink qk`, moved latents with
their effects through attention. A line says so where the settings ask for one of them. Names of latents and the
vocabulary take seconds and are in `evaluate`'s time.

`runtime.memory=8GB` holds a process below that: every stage states what it will need and is refused, in one line,
before it begins where that can't be had, within the limit, the machine's free memory and that of its control group.
The activations' pass and the encoding halve their step (`runtime.forward_tokens`) instead, down to 256 tokens; their
bytes stay the same.

The tables below were computed by `python scripts/plans.py` at the rates of two quiet cores: 189 GFLOP/s in a matrix
product, 160M products of active latents and 1 GB of disk a second.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for words in SETS:
        with tempfile.TemporaryDirectory() as folder:
            cfg = configure(*words, f"runtime.outputs={folder}/outputs", "runtime.device=cpu")
            how = planned if cfg.layers is None else planned_over
            plan = how(Job(cfg, Store(f"{folder}/outputs", Observer())), REFERENCE, look=False)
        lines = [*plan_lines(plan, remarks=False), *(line for line in plan.remarks if "reckoned with" in line)]
        parts.append(f"## {words[0].removeprefix('sae=') if words else 'The defaults'}")
        parts.append("\n".join(["```", f"$ saelink plan {' '.join(words)}".rstrip(), *lines, "```"]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
