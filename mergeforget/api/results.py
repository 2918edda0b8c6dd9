"""Result objects with a one-line repr and conversion to tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.errors import ResourceError, UsageError, suggest
from mergeforget.run import Run, open_run

if TYPE_CHECKING:
    from mergeforget.adapter import Adapter
    from mergeforget.attack.result import Result
    from mergeforget.evaluate.paired import PairedDifference
    from mergeforget.recipe import Recipe
    from mergeforget.score import Score
    from mergeforget.search.choice import Choice

HEADLINE = ("mia_auc", "exact_match", "aggregate")  # shown by the repr of scores


class Scores(Mapping[str, "list[Score]"]):
    """Scores by model: ``scores["over"]`` is a list of :class:`~mergeforget.score.Score`.

    Attributes:
        notes: Warnings and remarks on the scores, one sentence each.
        terms: The terms of the benchmark's aggregate, if it has one.
        differences: Differences from the first model on common rows, by model; of ``compare``.
    """

    def __init__(
        self,
        models: Mapping[str, Sequence[Score]],
        notes: Sequence[str] = (),
        terms: Sequence[float] = (),
        differences: Mapping[str, Sequence[PairedDifference]] | None = None,
    ) -> None:
        self._models = {name: list(scores) for name, scores in models.items()}
        self.notes = list(notes)
        self.terms = list(terms)
        self.differences = {name: list(found) for name, found in (differences or {}).items()}

    def __getitem__(self, model: str) -> list[Score]:
        return self._models[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        parts = []
        for name, scores in list(self.items())[:3]:
            shown = [
                f"{s.metric}[{s.split}]={s.value:.3f}"
                for s in scores
                if s.metric in HEADLINE and not s.task and s.part == "all"
            ]
            parts.append(f"{name}: {', '.join(shown) or f'{len(scores)} scores'}")
        more = f"; {len(self) - 3} more models" if len(self) > 3 else ""
        return f"Scores({'; '.join(parts)}{more})"

    def value(
        self, metric: str, split: str, *, model: str | None = None, task: str = "",
        part: str = "all",
    ) -> float:  # fmt: skip
        """Return the value of one score.

        Args:
            model: Name of the model; required if there are several.

        Raises:
            UsageError: There is no such score; the message names the nearest.
        """
        from mergeforget.score import find

        if model is None and len(self) != 1:
            raise UsageError(f"There are scores of {len(self)} models: {', '.join(self)}. Name one "
                             "with model=.")  # fmt: skip
        name = next(iter(self)) if model is None else model
        if name not in self:
            raise UsageError(f"There are no scores of {name!r}.{suggest(name, self)} There are "
                             f"scores of: {', '.join(self)}.")  # fmt: skip
        score = find(self[name], metric, split, task=task, part=part)
        if score is None:
            known = sorted({s.metric for s in self[name]})
            raise UsageError(
                f"{name!r} has no score {metric!r} on {split!r}.{suggest(metric, known)} "
                f"Its metrics: {', '.join(known)}."
            )
        return score.value

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one flat record per score: ``model``, ``metric``, ``split``, ``value``, ..."""
        return [
            {"model": name, "task": "", "part": "all", "low": None, "high": None}
            | {k: v for k, v in score.to_dict().items() if k != "interval"}
            | (dict(zip(("low", "high"), score.interval, strict=True)) if score.interval else {})
            for name, scores in self.items()
            for score in scores
        ]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per score."""
        return data_frame(self.to_dicts())

    def save(self, path: str | Path) -> Path:
        """Write the scores as JSON Lines, the format of ``RUN/scores.jsonl``."""
        from mergeforget.files import write_jsonl

        lines = [
            {"model": name, **score.to_dict()} for name, scores in self.items() for score in scores
        ]
        write_jsonl(Path(path), lines)
        return Path(path)


class AttackResults(Sequence["Result"]):
    """The results of attacks, in the order in which they were run.

    Attributes:
        folder: Folder of the results, tables and figures.
        files: Written files.
    """

    def __init__(self, results: Sequence[Result], folder: Path, files: Sequence[Path]) -> None:
        self._results, self.folder, self.files = list(results), folder, list(files)

    def __getitem__(self, index: Any) -> Any:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        found = ", ".join(f"{r.attack} on {r.model}: {r.finding}" for r in self._results[:4])
        more = f", {len(self) - 4} more" if len(self) > 4 else ""
        return f"AttackResults({found}{more})"

    @property
    def verdicts(self) -> dict[str, str]:
        """One sentence per attacked model: the worst case over its scores and attacks."""
        from mergeforget.attack.headline import verdicts_in

        return verdicts_in(self.folder, list(dict.fromkeys(r.model for r in self._results)))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one flat record per measured figure."""
        return [
            {"attack": r.attack, "attacked": r.model, "finding": r.finding} | row
            for r in self._results
            for row in r.rows
        ]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per measured figure."""
        return data_frame(self.to_dicts())


class SearchResult:
    """The chosen candidate of a search, and the scores of all measured candidates.

    Attributes:
        run: The run that was searched.
        choice: The candidate, its explanation, the Pareto front, and a warning or None.
    """

    def __init__(self, run: UnlearningRun, choice: Choice) -> None:
        self.run, self.choice = run, choice

    @property
    def name(self) -> str:
        """Name of the chosen candidate, for example ``ties-factors-d0.70``."""
        return self.choice.scored.name

    @property
    def folder(self) -> Path:
        """PEFT folder of the chosen candidate."""
        return self.run.paths.candidates / self.name

    @property
    def warning(self) -> str | None:
        """Warning about the choice, or None."""
        return self.choice.warning

    def __repr__(self) -> str:
        from mergeforget.search.choice import figures

        auc = figures(self.choice.scored.scores, "report").get("mia_auc")
        shown = "" if auc is None else f", report MIA AUC {auc:.3f}"
        warned = ", with a warning" if self.warning else ""
        return f"SearchResult({self.name}, best of {self.choice.measured}{shown}{warned})"

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with the scores of every candidate on both splits."""
        return self.run.scores_of_search().to_pandas()


class UnlearningRun:
    """An open run folder: recipe, adapters, scores and history as Python objects.

    Attributes:
        paths: Paths of the files of the run.
    """

    def __init__(self, paths: Run) -> None:
        self.paths = paths

    def __repr__(self) -> str:
        held = [n for n in ("over", "under", "adapter", "model") if (self.root / n).is_dir()]
        chosen = f", chosen {self.chosen}" if self.chosen else ""
        return (
            f"UnlearningRun({str(self.root)!r}: {', '.join(held) or 'nothing trained yet'}, "
            f"{len(self.candidates)} candidates{chosen})"
        )

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.paths.root

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        from mergeforget.recipe import load_recipe

        return load_recipe(self.paths.recipe)

    @property
    def base(self) -> str:
        """Name or folder of the model before unlearning."""
        return self.paths.base()

    @property
    def over(self) -> Adapter:
        """The over-forgetting adapter."""
        return self._adapter("over")

    @property
    def under(self) -> Adapter:
        """The under-forgetting adapter."""
        return self._adapter("under")

    @property
    def candidates(self) -> list[str]:
        """Names of the merged adapters of this run, sorted."""
        return sorted(p.parent.name for p in self.paths.candidates.glob("*/candidate.json"))

    @property
    def chosen(self) -> str | None:
        """Name of the candidate that the search chose, or None."""
        return self.paths.chosen_name()

    @property
    def scores(self) -> Scores:
        """Scores over all rows, by model; empty before `evaluate`."""
        return self._scores("all")

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per optimizer step: stage, step, epoch, losses, gradient norm, rate."""
        from mergeforget.files import read_jsonl

        return read_jsonl(self.paths.history)

    def scores_of_search(self) -> Scores:
        """Scores on the selection and the report split (``part``), by model."""
        both = [self._scores("choose"), self._scores("report")]
        names = dict.fromkeys(name for scores in both for name in scores)
        return Scores({name: [s for part in both for s in part.get(name, [])] for name in names})

    def _scores(self, part: str) -> Scores:
        from mergeforget.score import read_scores

        return Scores(read_scores(self.paths.scores, part) if self.paths.scores.exists() else {})

    def _adapter(self, side: str) -> Adapter:
        from mergeforget.adapter import read_adapter

        return read_adapter(self.root / side, side)


AnyRun = str | Path | Run | UnlearningRun


def as_run(run: AnyRun | None) -> Run:
    """Return the run; None is the newest under ``runs/``.

    Raises:
        InputError: There is no such run; the message names the existing ones.
    """
    if isinstance(run, UnlearningRun):
        return run.paths
    if isinstance(run, Run):
        return run
    return open_run(None if run is None else Path(run))


def optional_path(path: str | Path | None) -> Path | None:
    """Convert to a path; None stays None."""
    return None if path is None else Path(path)


def data_frame(records: list[dict[str, Any]]) -> Any:
    """Return a ``pandas.DataFrame`` with one row per record.

    Raises:
        ResourceError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ResourceError(
            "to_pandas() needs pandas, which is not installed: pip install pandas. to_dicts() "
            "returns the same records as a list."
        ) from error
    return pandas.DataFrame(records)
