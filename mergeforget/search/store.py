"""Store the measurements of a search in the run folder; a repeated search resumes from them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergeforget.adapter_config import read_config
from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.data.schema import Measured
from mergeforget.data.templating import PromptTemplate
from mergeforget.errors import InputError
from mergeforget.evaluate.mmlu import mmlu_key
from mergeforget.files import (
    append_jsonl,
    read_json_object,
    read_lines,
    sha256,
    write_json,
    write_jsonl,
)
from mergeforget.metrics.leak_rate import of_earlier_definition
from mergeforget.model_files import content_of, locate
from mergeforget.parsing import plain_name
from mergeforget.recipe import EvaluationSpec, Recipe, SearchSpec
from mergeforget.run import Run
from mergeforget.score import Score, read_scores, write_scores

SETTINGS = "settings.json"
EXPLORED = "explored.jsonl"
JOURNAL = "study.journal"  # trials of Optuna that no other worker shares
SCALING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


class Store:
    """Scores by model; the file is replaced as a whole after each model."""

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
            name = plain_name(row.get("name"), where)
            if not any(map(of_earlier_definition, scores)):
                self.explored[name] = scores
        for name, of_model in self.scores.items():  # completions are cached, so this is fast
            if any(s.part != "all" and of_earlier_definition(s) for s in of_model):
                self.scores[name] = [s for s in of_model if s.part == "all"]

    @property
    def cache_folder(self) -> Path:
        """Folder of cached likelihoods and answers, which later evaluations reuse."""
        return self.run.search / "readings"

    def begin(self, settings: dict[str, Any], again: bool) -> None:
        """Compare the settings with those of an earlier search in this run.

        Args:
            settings: Everything that determines a score, as plain values.
            again: Discard the earlier measurements.

        Raises:
            InputError: The settings differ, so old and new scores are not comparable.
        """
        path = self.run.search / SETTINGS
        before = _known(read_json_object(path)) if path.exists() else None
        if before is not None and "pair_scaling" in settings:  # an older search did not record it
            before.setdefault("pair_scaling", settings["pair_scaling"])
        if before is not None and "forget_rows" in settings and "forget_rows" not in before:
            say("An earlier version measured the candidates on half of the forget rows; they are "
                "measured again on all of them.")  # fmt: skip
            before = None
        if again or before is None:
            self.forget_searched()
        elif before != settings:
            changed = [k for k in settings if before.get(k) != settings[k]]
            differences = "; ".join(
                f"{k} was {before.get(k)!r}, now {settings[k]!r}" for k in changed
            )
            raise InputError(
                f"The candidates in {self.run.root} were measured with other settings: "
                f"{differences}. Measure them again with --again, or restore these settings."
            )
        write_json(path, settings)

    def forget_searched(self) -> None:
        """Discard the measurements of searches; scores of `mergeforget evaluate` are kept."""
        (self.run.search / EXPLORED).unlink(missing_ok=True)
        for path in self.run.search.glob(f"{JOURNAL}*"):  # with its lock
            path.unlink(missing_ok=True)
        shutil.rmtree(self.cache_folder, ignore_errors=True)
        self.explored = {}
        searched = [name for name in self.scores if self.has_proxy(name)]
        for name in searched:
            self._answers(name).unlink(missing_ok=True)
            self.scores[name] = [s for s in self.scores[name] if s.part == "all"]
        if searched:
            self._write()

    def has(self, model: str) -> bool:
        """Return whether a search has measured a model in full.

        A proxy evaluation scores the selection split only; `mergeforget evaluate` writes answers,
        but does not score the splits.
        """
        full = any(score.part == "report" for score in self.scores.get(model, []))
        return full and self._answers(model).exists()

    def has_proxy(self, model: str) -> bool:
        """Return whether a search has measured a model, in full or by proxy."""
        return any(score.part == "choose" for score in self.scores.get(model, []))

    def keep_scores(self, model: str, scores: Sequence[Score]) -> None:
        """Replace the scores of a model, and discard its answers."""
        self._answers(model).unlink(missing_ok=True)
        self.scores[model] = list(scores)
        self._write()

    def keep_explored(self, candidate: Candidate, scores: Sequence[Score]) -> None:
        """Save the proxy scores of a candidate.

        They are kept when the candidate is measured in full, since its full scores differ by
        rounding: a repeated search then ranks candidates in the same order.
        """
        values = [score.to_dict() for score in scores]
        self.explored[candidate.name] = list(scores)
        row = {"name": candidate.name, **candidate.to_dict(), "scores": values}
        append_jsonl(self.run.search / EXPLORED, [row])
        self.keep_scores(candidate.name, scores)

    def keep(self, model: str, measured: Measured, scores: Sequence[Score]) -> None:
        """Save a full measurement; the answers are written last and mark it as complete."""
        answers = [answer.to_dict() for answer in measured.answers]
        losses = [loss.to_dict() | {"membership": measured.membership} for loss in measured.losses]
        self.keep_scores(model, scores)
        write_jsonl(self.run.answers / f"{model}.losses.jsonl", losses)
        write_jsonl(self._answers(model), answers)

    def _answers(self, model: str) -> Path:
        return self.run.answers / f"{model}.jsonl"

    def _write(self) -> None:
        write_scores(self.run.scores, self.scores)


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop settings at their default, and rename keys of earlier versions.

    A new key with its default changes nothing, so an older search resumes.
    """
    defaults = EvaluationSpec().model_dump(mode="json")
    evaluation = settings.get("evaluation", {})
    changed = {key: value for key, value in evaluation.items() if defaults.get(key) != value}
    renamed = {"variants" if key == "ways" else key: value for key, value in settings.items()}
    return renamed | {"evaluation": changed}


def _scaling(folder: Path) -> dict[str, Any]:
    """Return what determines the scaling of an adapter's weights, which are in another file."""
    config = read_config(folder)
    return {name: config[name] for name in SCALING if config.get(name)}


def template_facts(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the prompt template; empty for raw prompts, as in older searches."""
    data = recipe.data
    raw = data.template == "none"
    return {} if raw else {"template": [data.template, data.system_prompt]}


def settings_of(
    run: Run,
    recipe: Recipe,
    spec: SearchSpec,
    holdout: str,
    variants: Sequence[PromptTemplate] = (),
) -> dict[str, Any]:
    """Return everything that determines a candidate's scores, to compare two calls.

    Args:
        holdout: Text of a new ``data/holdout.jsonl``, if there is one.
        variants: The prompt variants; recorded if there are several.
    """
    data = {p.stem: sha256(p) for p in sorted(run.data.glob("*.jsonl"))}
    if holdout:
        data["holdout"] = hashlib.sha256(holdout.encode("utf-8")).hexdigest()
    base = locate(run.base(), trust_remote_code=recipe.model.trust_remote_code)
    return {
        "pair": [sha256(folder / "adapter_model.safetensors") for folder in (run.over, run.under)],
        "pair_scaling": [_scaling(folder) for folder in (run.over, run.under)],
        "data": data,
        "base": content_of(base),
        "mmlu": mmlu_key(recipe.evaluation),
        **template_facts(recipe),
        **({"variants": [variant.name for variant in variants]} if len(variants) > 1 else {}),
        "evaluation": recipe.evaluation.model_dump(
            mode="json", exclude_defaults=True, exclude={"mmlu"}
        ),
        "choose_share": spec.choose_share,
        "forget_rows": "in both splits",
        "seed": spec.seed,
    }
