"""From proxy to fine, along the densities and between groups of layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.adapter import read_adapter
from mergeforget.candidate import Candidate
from mergeforget.cli import main
from mergeforget.errors import UsageError
from mergeforget.files import read_json, read_jsonl
from mergeforget.merge.engine import merge_adapters
from mergeforget.recipe import SearchSpec
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.search.budget import SearchBudget
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.explore import Explorer, Place, climb, next_finalists
from mergeforget.search.grid import begin_at, grid, layer_groups, lines, with_densities
from mergeforget.search.objective import Rank, parse_objective
from mergeforget.search.store import Store

MODULES = [f"model.layers.{i}.mlp.up_proj" for i in range(12)] + ["lm_head"]


@given(st.integers(0, 29), st.integers(0, 29))
def test_pattern_search_reaches_the_maximum_from_any_start(top: int, start: int) -> None:
    asked = []

    def rank(place: Place) -> float:
        asked.append(place)
        return -abs(place[0] - top)

    assert climb(rank, (start,), 30) == (top,)
    assert len(asked) == len(set(asked)) <= 17


def test_a_good_prediction_halves_the_evaluations() -> None:
    asked = []

    def rank(place: Place) -> float:
        asked.append(place)
        return -abs(place[0] - 4)

    assert climb(rank, (4,), 10) == (4,)
    assert len(asked) == 5


def test_pattern_search_optimises_several_axes() -> None:
    top = (1, 7, 4)

    def rank(place: Place) -> float:
        return -sum((a - b) ** 2 for a, b in zip(place, top, strict=True))

    assert climb(rank, (5, 5, 5), 10) == top


def test_points_without_a_rank_are_excluded() -> None:
    """Nothing beyond 5 has a rank, as where the budget is spent."""
    assert climb(lambda p: p[0] if p[0] <= 5 else None, (3,), 10) == (5,)
    assert climb(lambda _: None, (3,), 10) == (3,)


def test_layer_groups_have_similar_sizes() -> None:
    groups = layer_groups(MODULES, 3)
    assert [len(g) for g in groups] == [4, 4, 4] and groups[0][1] == "model.layers.1."
    assert [len(g) for g in layer_groups(MODULES, 5)] == [2, 3, 2, 3, 2]
    with pytest.raises(UsageError, match="12 layers, too few for 13 groups"):
        layer_groups(MODULES, 13)


def test_each_group_is_merged_with_its_density(tiny_run: Run) -> None:
    """Module by module the same to the bit as a merge of everything at that density."""
    pair = [read_adapter(tiny_run.over, "over"), read_adapter(tiny_run.under, "under")]
    groups = layer_groups(pair[0].deltas, 2)
    mixed = merge_adapters(pair, with_densities(Candidate("ties", 0.5), groups, [0.2, 0.8]))
    for layer, density in enumerate((0.2, 0.8)):
        alone = merge_adapters(pair, Candidate("ties", density)).adapter
        mine = [m for m in alone.deltas if f"layers.{layer}." in m]
        assert mine
        for module in mine:
            assert (mixed.adapter.deltas[module].a == alone.deltas[module].a).all()
            assert (mixed.adapter.deltas[module].b == alone.deltas[module].b).all()
    assert mixed.candidate.density == 0.5 and mixed.candidate.densities == "0.20, 0.80"


def test_equal_group_densities_become_one_density() -> None:
    one = with_densities(Candidate("ties", 0.5), layer_groups(MODULES, 3), [0.3, 0.3, 0.3])
    assert one == Candidate("ties", 0.3)


def test_the_predicted_density_is_evaluated_first() -> None:
    line = [Candidate("ties", d) for d in (0.1, 0.9, 0.5)]
    assert [c.density for c in begin_at(line, 0.55)] == [0.5, 0.1, 0.9]
    assert begin_at(line, None) == line


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(tiny_run.root, tmp_path / "run")))


def call(run: Run, *arguments: str) -> None:
    command = ["search", str(run.root), "--device", "cpu", *arguments]
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0


def test_refine_starts_from_the_prediction_and_evaluates_few(run: Run) -> None:
    call(run, "--strategy", "refine", "--densities", "0.05:1.0:0.05")
    chosen = read_json(run.search / "chosen.json")
    assert 0 < chosen["predicted"] <= 1
    assert chosen["measured"] <= 2 and 4 <= chosen["explored"] <= 14


def test_another_objective_evaluates_missing_figures_again(run: Run) -> None:
    """Of an objective that reads the AUC alone no retain row was read."""
    arguments = ("--densities", "0.2,0.5,0.8", "--finalists", "1")
    call(run, *arguments)
    call(run, *arguments, "--objective", "0.5*mia + 0.5*retain")
    assert read_json(run.search / "chosen.json")["explored"] == 3


def explorer_of(objective: str, first: float) -> Explorer:
    """Return an explorer without measurements, whose predicted density is given."""
    explorer = Explorer.__new__(Explorer)
    explorer.objective = parse_objective(objective)
    explorer.guess = lambda *_: first  # type: ignore[assignment]
    explorer.store = Store.__new__(Store)
    explorer.store.explored, explorer.store.scores = {}, {}
    return explorer


def test_a_floor_reached_only_at_one_end_of_the_range_is_found(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AUC favours 0.8 and the floor 0.1, without a gradient in between."""
    seen = []

    def explored(self: Explorer, candidate: Candidate, *_: object) -> Rank:
        seen.append(candidate.density)
        kept = candidate.density == 0.1
        return Rank(0.0 if kept else -0.5, 1 - abs((candidate.density or 0) - 0.8), 0.0, 0.0)

    monkeypatch.setattr(Explorer, "_explore", explored)
    explorer = explorer_of("mia if retain >= 70%", first=0.7)
    explorer.refine(grid(SearchSpec()), SearchBudget())
    assert 0.1 in seen and len(seen) <= 7


def test_the_density_with_interpolated_auc_one_half_is_evaluated_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The AUC falls evenly from 0.9 at 0.1 to 0.36 at 1.0: 0.8 is nearest to a half."""
    seen = []

    def explored(
        self: Explorer, candidate: Candidate, known: dict[str, Candidate], _: SearchBudget
    ) -> Rank:
        known[candidate.name] = candidate
        auc = 0.96 - 0.6 * (candidate.density or 0)
        if candidate.name not in self.store.explored:
            seen.append(candidate.density)
        found = Score("mia_auc", "mia", auc, "nearer", 20, part="choose")
        self.store.explored[candidate.name] = [found]
        return Rank(0.0, 1 - abs(auc - 0.5), 0.0, 0.0)

    monkeypatch.setattr(Explorer, "_explore", explored)
    explorer = explorer_of("mia", first=0.1)
    explorer.refine(grid(SearchSpec()), SearchBudget())
    assert seen == [0.1, 1.0, 0.8, 0.7, 0.9]


@pytest.mark.parametrize(
    ("over", "expected"),
    [(0.3, [0.7, 0.6, 0.8]), (0.1, [0.5, 0.4, 0.6]), (0.6, [0.5, 0.3, 0.7, 0.9])],
)
def test_a_line_of_weights_starts_where_the_line_from_under_to_over_crosses_one_half(
    over: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AUC falls evenly from 0.9 (under) to that of over."""
    weights = [[round(0.1 * i, 1), round(1 - 0.1 * i, 1)] for i in range(1, 10)]
    spec = SearchSpec(methods=["linear"], densities=[1.0], weights=weights)
    seen = []

    def score(auc: float) -> list[Score]:
        return [Score("mia_auc", "mia", auc, "nearer", 20, part="choose")]

    def explored(
        self: Explorer, candidate: Candidate, known: dict[str, Candidate], _: SearchBudget
    ) -> Rank:
        known[candidate.name] = candidate
        auc = 0.9 + candidate.weights[0] * (over - 0.9)
        seen.append(candidate.weights[0])
        self.store.explored[candidate.name] = score(auc)
        return Rank(0.0, 1 - abs(auc - 0.5), 0.0, 0.0)

    monkeypatch.setattr(Explorer, "_explore", explored)
    explorer = explorer_of("mia", first=0.1)
    explorer.store.explored = {"under": score(0.9), "over": score(over)}
    explorer.refine(grid(spec), SearchBudget())
    assert seen[: len(expected)] == expected and len(seen) <= 5


def test_weights_are_searched_along_a_line_only_with_one_density() -> None:
    pairs = [Candidate("ties", d, weights=(w, 1 - w)) for d in (0.2, 0.8) for w in (0.25, 0.75)]
    assert [[c.density for c in line] for line in lines(pairs)] == [[0.2, 0.8], [0.2, 0.8]]
    (line,) = lines([pairs[1], pairs[0]])
    assert [c.weights[0] for c in line] == [0.25, 0.75]
    negative = Candidate("ties", 0.2, weights=(1.0, -0.5))
    assert len(lines([pairs[0], negative])) == 2


def test_the_lowest_density_is_evaluated_if_proxy_scores_were_too_optimistic(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every proxy score reaches the floor, but no full measurement does."""
    honest = Explorer.rank
    monkeypatch.setattr(
        Explorer, "rank", lambda self, name: honest(self, name)._replace(shortfall=0.0)
    )
    monkeypatch.setattr(Explorer, "_crossing", lambda *_: None)
    monkeypatch.setattr("mergeforget.search.explore.climb", lambda *_: None)
    options = ("--strategy", "refine", "--densities", "0.1:1.0:0.1", "--first", "0.7")
    call(run, *options, "--objective", "mia if retain >= 2")
    looked = [row["density"] for row in read_jsonl(run.search / "explored.jsonl")]
    assert looked == [0.7, 1.0, 0.1]


def test_a_finalist_that_confirms_its_proxy_score_ends_the_search(run: Run) -> None:
    """The next candidate would have to exceed its proxy score."""
    arguments = ("--strategy", "refine", "--densities", "0.1:1.0:0.1", "--objective")
    call(run, *arguments, "0.5*mia + 0.5*retain")
    chosen = read_json(run.search / "chosen.json")
    assert chosen["measured"] == 1 and chosen["explored"] >= 3


def test_proxy_scores_are_corrected_by_full_evaluations() -> None:
    """Proxy retention is 0.3 too high: only a proxy score of 1.0 reaches a floor of 0.7."""

    def scores(auc: float, retain: float, metric: str) -> list[Score]:
        return [
            Score("mia_auc", "mia", auc, "nearer", 20, part="choose"),
            Score(metric, "retain", retain, "higher", 10, part="choose"),
        ]

    low, middle, high = (Candidate("ties", d) for d in (0.1, 0.5, 0.7))
    explorer = Explorer.__new__(Explorer)
    explorer.objective = parse_objective("mia if retain >= 70%")
    explorer.store = Store.__new__(Store)
    explorer.store.scores = {"base": scores(1.0, 1.0, "knowledge")}
    explorer.store.explored = {
        low.name: scores(0.99, 1.0, "greedy_match"),
        middle.name: scores(0.6, 0.8, "greedy_match"),
        high.name: scores(0.55, 0.8, "greedy_match"),
    }
    assert next_finalists(explorer, [low, middle, high], []) == [high]
    explorer.store.scores[high.name] = scores(0.55, 0.5, "knowledge")
    assert next_finalists(explorer, [low, middle], [high]) == [low]
    explorer.store.scores[low.name] = scores(0.99, 1.0, "knowledge")
    assert next_finalists(explorer, [middle], [high, low]) == []


def test_groups_are_refined_from_the_best_of_all(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--groups", "2", "--densities", "0.2,0.5,0.8", "--objective", "0.5*mia+0.5*retain")
    call(run, *arguments)
    noted = {
        row["name"]: Candidate.from_dict(row) for row in read_jsonl(run.search / "explored.jsonl")
    }
    mixed = [c for c in noted.values() if c.by_module]
    assert len(noted) > 3 and mixed and all(c.name == name for name, c in noted.items())
    before = read_json(run.search / "chosen.json")

    def refused(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Evaluator, "measure_proxy", refused)
    monkeypatch.setattr(Evaluator, "measure", refused)
    call(run, *arguments)
    assert read_json(run.search / "chosen.json") == before
