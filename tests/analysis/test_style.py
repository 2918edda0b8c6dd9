"""Figures hold all of their words."""

from __future__ import annotations

import pytest

from mergeforget.analysis.style import legend, panels, styled


@pytest.mark.parametrize(
    ("words", "columns"), [("under", 3), ("ties delta, weights 0.9:0.9, reporting", 1)]
)
def test_a_legend_takes_fewer_columns_where_its_words_are_long(words: str, columns: int) -> None:
    with styled():
        figure, (ax,) = panels(1, 2.0)
        for i in range(5):
            ax.plot([0, 1], [i, i], label=f"{words} {i}")
        legend(figure, [ax])
        (drawn,) = figure.legends
        assert drawn.get_window_extent().width <= figure.bbox.width
        assert drawn._ncols == columns  # type: ignore[attr-defined]
