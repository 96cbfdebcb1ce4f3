"""The elbow of error against sparsity."""

from __future__ import annotations

import torch


def kneedle(x: list[float], y: list[float]) -> int | None:
    """Which point is the elbow of a falling convex curve; None below three points.

    Kneedle (V. Satopaa, J. Albrecht, D. Irwin, B. Raghavan, "Finding a 'Kneedle' in a Haystack", 2011) without its
    smoothing: on log x and y scaled to [0, 1] the point farthest below the line between the curve's ends.
    """
    if len(x) < 3:
        return None
    points = torch.tensor([x, y], dtype=torch.float64)
    points[0] = points[0].log()
    spread = points.amax(1, keepdim=True) - points.amin(1, keepdim=True)
    if (spread == 0).any():
        return None
    scaled = (points - points.amin(1, keepdim=True)) / spread
    first, last = scaled[:, scaled[0].argmin()], scaled[:, scaled[0].argmax()]
    chord = first[1] + (last[1] - first[1]) * (scaled[0] - first[0]) / (last[0] - first[0])
    return int((chord - scaled[1]).argmax())
