"""Figures hold all of their words."""

from __future__ import annotations

import pytest

from mergeforget.analysis.style import legend, panels, styled, widen_axis


@pytest.mark.parametrize(
    ("words", "columns"), [("under", 3), ("ties delta, weights 0.9:0.9, reporting", 1)]
)
def test_long_labels_reduce_the_columns_of_a_legend(words: str, columns: int) -> None:
    with styled():
        figure, (ax,) = panels(1, 2.0)
        for i in range(5):
            ax.plot([0, 1], [i, i], label=f"{words} {i}")
        legend(figure, [ax])
        (drawn,) = figure.legends
        assert drawn.get_window_extent().width <= figure.bbox.width
        assert drawn._ncols == columns  # type: ignore[attr-defined]


def test_axis_range_is_widened_for_nearly_equal_values() -> None:
    with styled():
        _, (flat, steep) = panels(2, 2.0)
        flat.plot([0, 1], [0.0, 1e-17])
        steep.plot([0, 1], [0.0, 0.5])
        before = steep.get_ylim()
        for ax in (flat, steep):
            widen_axis(ax)
        low, high = flat.get_ylim()
        assert high - low >= 0.02 and low < 0 < high
        assert steep.get_ylim() == before
