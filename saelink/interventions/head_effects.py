"""What a target loses when one head alone reads the stream without a source latent.

As in moved_effects, over the same queries, with pattern and norms free; but only one head's queries, keys and values
are made without the source, the other heads' with it. The norm in front is the same module for all heads, so this is
what would happen if that head had a norm of its own. Effects of several heads need not sum to that of all of them: the
target's threshold, and a norm behind attention, stand between.
"""

from __future__ import annotations

import torch

from saelink.interventions.block import read_held
from saelink.interventions.moved_effects import Measuring


def head_effects(measuring: Measuring, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[p, n_heads] mean effects of sources [p] on targets [p] through each head, in units of the target's scale.

    0 for a source that is moved to no query.
    """
    few = measuring.only(source)
    queries = torch.bincount(few.chosen.source, minlength=few.d_source).clamp(min=1)
    slots = torch.unique(source)
    moves, ablation = few.moves, few.ablation()
    by_latent = torch.zeros(few.d_target)
    if moves.target.threshold is not None:
        by_latent = moves.target.threshold.cpu().clamp(min=0)
    sums = torch.zeros(moves.heads.n_heads, len(slots), few.d_target)
    device = few.job.device
    with torch.inference_mode():
        for looked in few.walk():
            mine = looked.source.to(device)
            taken = ablation.taken(looked.seen, looked.sequence, looked.latents, mine)
            acts = ablation.through_heads(looked.seen, looked.sequence, taken, mine, looked.query)
            whole, floor = looked.before.select(looked.row).dense(), looked.floor[looked.row]
            slot = torch.searchsorted(slots, looked.source)
            for head, changed in enumerate(acts):
                left = read_held(moves.target.pre_acts(changed), floor, by_latent).cpu()
                sums[head].index_add_(0, slot, whole - left)
    found = sums[:, torch.searchsorted(slots, source), target] / queries[source]
    return found.T / few.job.encoded.scales[-1]
