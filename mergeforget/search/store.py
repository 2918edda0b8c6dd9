"""What a search has measured, in the run folder; a search that is called again goes on from it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergeforget.candidate import Candidate
from mergeforget.data.schema import Measured
from mergeforget.errors import InputError
from mergeforget.files import append_jsonl, read_json_object, read_lines, write_json, write_jsonl
from mergeforget.parsing import plain_name
from mergeforget.recipe import EvaluationSpec
from mergeforget.run import Run
from mergeforget.score import Score, read_scores, write_scores

SETTINGS = "settings.json"
EXPLORED = "explored.jsonl"


class Store:
    """Scores by model, written whole after each, so that a kill leaves no half model."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.scores = read_scores(run.scores)
        self.explored: dict[str, list[Score]] = {}
        for number, row in read_lines(run.search / EXPLORED):
            where = f"{run.search / EXPLORED}, line {number},"
            try:
                scores = [Score.from_dict(score) for score in row["scores"]]
            except (TypeError, KeyError, AttributeError) as error:
                raise InputError(f"{where} is damaged. Search again with --again.") from error
            self.explored[plain_name(row.get("name"), where)] = scores

    @property
    def readings(self) -> Path:
        """What glances have read, a file a candidate: a finalist's half is not read twice."""
        return self.run.search / "readings"

    def begin(self, settings: dict[str, Any], again: bool) -> None:
        """Compare with the search that was here before.

        Args:
            settings: what decides every figure, as plain values.
            again: throw away what was measured.

        Raises:
            InputError: it was measured otherwise, so that old and new cannot be compared.
        """
        path = self.run.search / SETTINGS
        before = _known(read_json_object(path)) if path.exists() else None
        if again or before is None:
            self.forget_searched()
        elif before != settings:
            changed = [k for k in settings if before.get(k) != settings[k]]
            told = "; ".join(f"{k} was {before.get(k)!r}, now {settings[k]!r}" for k in changed)
            raise InputError(
                f"The candidates in {self.run.root} were measured otherwise: {told}. Measure them "
                "anew with --again, or search with what it was."
            )
        write_json(path, settings)

    def forget_searched(self) -> None:
        """Drop what a search measured; scores of the command evaluate stay."""
        (self.run.search / EXPLORED).unlink(missing_ok=True)
        shutil.rmtree(self.readings, ignore_errors=True)
        self.explored = {}
        searched = [name for name in self.scores if self.glanced(name)]
        for name in searched:
            self._answers(name).unlink(missing_ok=True)
            self.scores[name] = [s for s in self.scores[name] if s.part == "all"]
        if searched:
            self._write()

    def has(self, model: str) -> bool:
        """Whether a search has measured it in full.

        A look scores the choosing half only; the command evaluate writes answers, but no halves.
        """
        full = any(score.part == "report" for score in self.scores.get(model, []))
        return full and self._answers(model).exists()

    def glanced(self, model: str) -> bool:
        """Whether a search has measured it, in full or by likelihoods alone."""
        return any(score.part == "choose" for score in self.scores.get(model, []))

    def keep_glance(self, model: str, scores: Sequence[Score]) -> None:
        """Write scores that were measured by likelihoods alone."""
        self._answers(model).unlink(missing_ok=True)
        self.scores[model] = list(scores)
        self._write()

    def keep_explored(self, candidate: Candidate, scores: Sequence[Score]) -> None:
        """Write what likelihoods alone tell of a candidate that may never get a folder.

        It stays as it was when the candidate is measured in full, whose figures differ by a
        rounding: a search that is called again then ranks, and goes, the same way.
        """
        found = [score.to_dict() for score in scores]
        self.explored[candidate.name] = list(scores)
        row = {"name": candidate.name, **candidate.to_dict(), "scores": found}
        append_jsonl(self.run.search / EXPLORED, [row])
        self.keep_glance(candidate.name, scores)

    def keep(self, model: str, measured: Measured, scores: Sequence[Score]) -> None:
        """Write scores in the place of earlier ones; the answers come last and mark the end."""
        answers = [{**a.row.to_dict(), "completion": a.completion} for a in measured.answers]
        losses = [
            {"id": x.id, "member": x.member, "task": x.task, "membership": measured.membership,
             "nll": x.nll}
            for x in measured.losses
        ]  # fmt: skip
        self.keep_glance(model, scores)
        write_jsonl(self.run.answers / f"{model}.losses.jsonl", losses)
        write_jsonl(self._answers(model), answers)

    def _answers(self, model: str) -> Path:
        return self.run.answers / f"{model}.jsonl"

    def _write(self) -> None:
        write_scores(self.run.scores, self.scores)


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what is at its default, so that a key added since then changes nothing."""
    defaults = EvaluationSpec().model_dump(mode="json")
    evaluation = settings.get("evaluation", {})
    told = {key: value for key, value in evaluation.items() if defaults.get(key) != value}
    return settings | {"evaluation": told}
