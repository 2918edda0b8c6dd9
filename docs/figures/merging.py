"""Draws docs/figures/merging.png: what each method makes of the same two changes.

python docs/figures/merging.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.methods import MERGE_METHODS

METHODS = {
    "linear": {},
    "magnitude_prune": {"density": 0.5},
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "negmerge": {},
    "ram": {"epsilon": 0.3},
}
SHAPE = (10, 16)


def changes() -> Any:
    """Two changes, (2, *SHAPE), that agree on the left, oppose on the right, apart in between."""
    draw = np.random.default_rng(3)
    shared = draw.standard_normal(SHAPE)
    agree = np.linspace(1, -1, SHAPE[1])
    own = draw.standard_normal((2, *SHAPE)) * 0.4
    return np.stack([shared, shared * agree]).astype(np.float32) + own.astype(np.float32)


def merged(stack: Any, name: str, given: dict[str, Any]) -> Any:
    """The method's own result, at weights 1 and 1."""
    entry = MERGE_METHODS.get(name)
    chance = {"generator": NamedGenerator(0, "figure")} if "generator" in entry.parameters else {}
    return entry.fn(stack, np.ones(2), **given, **chance)


def main() -> None:
    stack = changes()
    panels = [("over", stack[0]), ("under", stack[1])]
    panels += [
        (" ".join([name, *(f"{k}={v:g}" for k, v in given.items())]), merged(stack, name, given))
        for name, given in METHODS.items()
    ]
    figure, axes = plt.subplots(2, 5, figsize=(13, 4.4), layout="constrained")
    for axis, (title, values) in zip(axes.flat, panels, strict=True):
        image = axis.imshow(values, cmap="RdBu_r", vmin=-3, vmax=3, interpolation="nearest")
        zero = 1 - np.count_nonzero(values) / values.size
        axis.set_title(f"{title}\n{zero:.0%} zero, norm {np.linalg.norm(values):.1f}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=axes, shrink=0.8, label="change of a weight (arbitrary units)")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
