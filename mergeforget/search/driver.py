"""Run a search: merge, evaluate, score and choose; each result is saved immediately."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import progress, say
from mergeforget.data.prompt_variants import variants_to_ask
from mergeforget.errors import InputError, NumericError, UsageError
from mergeforget.evaluate.matching import matching_sentence
from mergeforget.evaluate.paired import read_forget_answers
from mergeforget.evaluate.run_models import record_weights
from mergeforget.evaluate.worst_case import known_variants, worst_case
from mergeforget.files import write_json, write_text
from mergeforget.merge.engine import Merged, check_rank, write_candidate
from mergeforget.models import load_tokenizer
from mergeforget.recipe import Recipe, SearchSpec, change, load_recipe
from mergeforget.run import ANCHORS, Run
from mergeforget.search.budget import SearchBudget
from mergeforget.search.choice import Anchors, Choice, Scored, choose, next_best, with_variants
from mergeforget.search.evaluator import Evaluator, load_evaluator, merge_all, read_pair
from mergeforget.search.explore import (
    PROXY_FIGURES,
    Explorer,
    best_rank,
    finalists,
    next_finalists,
)
from mergeforget.search.grid import PredictedDensity, begin_at, grid, layer_groups, left_out
from mergeforget.search.objective import ATTACKED, MEMBERSHIP, parse_objective
from mergeforget.search.optuna_study import OptunaStudy
from mergeforget.search.scoring import score_parts
from mergeforget.search.split import SearchData, load_data
from mergeforget.search.store import JOURNAL, Store, settings_of, template_facts
from mergeforget.search.warnings import one_sided


@dataclass(frozen=True)
class Options:
    """Options of a search that are not part of the recipe.

    Attributes:
        budget: Maximum number of explored candidates, or a time limit.
        holdout: File of rows that were never trained on.
        again: Discard the measurements of an earlier search.
        storage: Database URL or journal file of the study; None keeps a journal in the run folder.
        worker: Explore only, for another search with the same storage. It discards its own
            measurements with ``again``, not those of the shared study.
        first: First density; None predicts it from the pair.
        template, system_prompt: How prompts are rendered; None follows the recipe.
    """

    budget: SearchBudget
    holdout: Path | None = None
    again: bool = False
    device: str | None = None
    storage: str | None = None
    first: float | None = None
    template: Literal["auto", "none", "chat"] | None = None
    system_prompt: str | None = None
    worker: bool = False


def search(run: Run, spec: SearchSpec, options: Options) -> Choice:
    """Evaluate merges of a pair and choose the balanced one.

    Writes ``candidates/NAME``, ``answers/``, ``scores.jsonl`` and ``search/chosen.json``, and
    reuses the measurements of an earlier call.

    Raises:
        InputError: There is no pair, there are no non-members, or an earlier search had other
            settings.
        UsageError: A candidate or the objective is not valid.
        NumericError: No candidate has finite scores.
    """
    candidates = grid(spec)
    with opened_search(run, spec, options) as searching:
        if spec.strategy == "grid" and spec.finalists is None and spec.groups == 1:
            todo = searching.in_order(candidates)
            searching.measure_candidates(todo, options.budget)
            return searching.finish(candidates, len(candidates))
        seen = searching.explore(candidates)
        best = searching.measure_finalists(seen)
        return searching.finish(best, len({c.name for c in [*seen, *best]}))


def work(run: Run, spec: SearchSpec, options: Options) -> int:
    """Explore candidates for a search that shares its storage with other workers.

    Each worker has its own copy of the run. The process that calls ``search`` with the same storage
    reads the results, generates answers and chooses.

    Returns:
        Number of candidates that all workers have explored.

    Raises:
        UsageError: No storage is shared, or the strategy uses none.
        InputError, NumericError: As in ``search``.
    """
    if options.storage is None or spec.strategy not in ("tpe", "nsga2"):
        raise UsageError(
            "A worker shares the study of a search: give the same --storage URL and the same "
            "--strategy, tpe or nsga2."
        )
    with opened_search(run, spec, replace(options, worker=True)) as searching:
        return len(searching.explore(grid(spec)))


@contextmanager
def opened_search(run: Run, spec: SearchSpec, options: Options) -> Iterator[Searching]:
    """Open a search: read pair and data, lock the run, and measure base, over and under."""
    objective, recipe = parse_objective(spec.objective), load_recipe(run.recipe)
    prompt_settings = {"template": options.template, "system_prompt": options.system_prompt}
    recipe = change(recipe, data={key: x for key, x in prompt_settings.items() if x is not None})
    if "mmlu" in objective.figures and not recipe.evaluation.mmlu:
        raise UsageError(
            f"The objective {objective.text!r} uses MMLU. Name the folder of its files as "
            f"evaluation.mmlu in {run.recipe}, or with --set evaluation.mmlu=FOLDER when training."
        )
    pair = read_pair(run)
    _check_fits(pair, spec)
    if omitted := left_out(spec):
        say(omitted)
    with run.lock():
        membership = not objective.figures.isdisjoint(MEMBERSHIP)
        data = load_data(run, recipe.evaluation, options.holdout, spec.seed, membership=membership)
        _check_seed(spec.seed, recipe, data)
        store = Store(run)
        tokenizer = load_tokenizer(recipe.model.model_copy(update={"name": run.base()}))
        all_rows = [*data.forget, *data.retain, *data.members, *data.nonmembers]
        evaluation = recipe.evaluation
        variants = variants_to_ask(
            tokenizer, recipe.data, all_rows, evaluation.ask, evaluation.system_prompts
        )
        settings = settings_of(run, recipe, spec, data.holdout, variants)
        store.begin(settings, options.again)
        if data.holdout:  # after the checks: a refused search must not change the run
            run.difficulty.unlink(missing_ok=True)  # of the other non-members
            write_text(run.data / "holdout.jsonl", data.holdout)
        run.set_state("search", "running")

        @cache
        def evaluator() -> Evaluator:
            asks = not objective.figures.isdisjoint(("mmlu", "aggregate"))
            rank = max([*(r for r in spec.ranks if r), sum(map(_largest_rank, pair))])
            return load_evaluator(
                recipe, run.base(), data, options.device, store.cache_folder, asks, variants, rank
            )

        choosing = data.choosing(spec.choose_share, spec.seed, {"mia"})
        guess = PredictedDensity(run, pair, choosing, options.first)
        explorer = Explorer(spec, objective, store, evaluator, pair, guess)
        searching = Searching(run, recipe, options, settings, explorer, data.evaluated)
        searching.measure_anchors()
        yield searching


def _check_fits(pair: Sequence[Adapter], spec: SearchSpec) -> None:
    """Raise UsageError if the pair has too few ranks or layers for a search."""
    for candidate in grid(spec):
        if candidate.rank is not None:
            check_rank(candidate, pair, candidate.rank)
    if spec.groups > 1:
        layer_groups(pair[0].deltas, spec.groups)


def _check_seed(seed: int, recipe: Recipe, data: SearchData) -> None:
    """Raise UsageError if the report split of a seed contains rows that the training has used."""
    checked = any(training.until for training in recipe.trainings().values())
    if checked and data.difficulty and seed != recipe.search.seed:
        raise UsageError(
            f"--seed {seed} would report on rows that the training has used: its checks compared "
            f"the non-members of the selection split of seed {recipe.search.seed}. Omit --seed, or "
            "give other non-members with --holdout."
        )


def _largest_rank(adapter: Adapter) -> int:
    return max((delta.rank for delta in adapter.deltas.values()), default=0)


def open_study(
    run: Run, spec: SearchSpec, settings: dict[str, Any], options: Options
) -> OptunaStudy:
    """Open the study of this pair, data and search space; its name is a hash of them.

    With ``again``, a shared storage gets a new study, which workers then join.
    """
    spec_values = spec.model_dump(
        mode="json", exclude={"finalists", "together"}, exclude_defaults=True
    )
    decides = {**settings, "search": spec_values}
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    storage = options.storage or run.search / JOURNAL
    study = OptunaStudy(spec, storage, name, renew=options.again and not options.worker)
    if options.storage is None:  # the run is locked, so no other worker uses it
        study.abandon_running()
    return study


@dataclass
class Searching:
    """A search in progress.

    Attributes:
        evaluated: Number of forget rows that are evaluated, and number of rows to forget.
    """

    run: Run
    recipe: Recipe
    options: Options
    settings: dict[str, Any]
    explorer: Explorer
    evaluated: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.spec, self.objective = self.explorer.spec, self.explorer.objective
        self.store, self.pair = self.explorer.store, self.explorer.pair
        self.guess: PredictedDensity = self.explorer.guess

    def measure_anchors(self) -> None:
        """Measure base, over and under, the references of every candidate."""
        adapters = dict(zip(ANCHORS, (None, *self.pair), strict=True))
        todo = [name for name in ANCHORS if not self.store.has(name)]
        at_once = self.together() if len(todo) > 1 else 1
        with progress("Base, over, under", len(todo)) as bar:
            for _, some in groupby(todo, lambda name: ANCHORS.index(name) // at_once):
                anchors = {name: adapters[name] for name in some}
                self._answer(anchors)
                for name, adapter in anchors.items():
                    self._measure(name, adapter)
                bar.advance(len(anchors), note=", ".join(anchors))
        if todo:
            record_weights(self.run, todo)
        if warning := one_sided(self.store.scores["over"], self.store.scores["under"]):
            say(f"Warning: {warning}")

    def in_order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Order candidates: with a budget, the predicted density comes first."""
        if not self.options.budget.limited:
            return list(candidates)
        return begin_at(candidates, self.guess(candidates[0], self.spec.densities))

    def explore(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Evaluate candidates by proxy scores, in the order of the strategy."""
        explorer, budget = self.explorer, self.options.budget
        if self.spec.strategy == "grid":
            seen = explorer.grid(candidates, budget)
        elif self.spec.strategy == "refine":
            seen = explorer.refine(candidates, budget)
        else:
            study = open_study(self.run, self.spec, self.settings, self.options)
            seen = explorer.study(study, budget)
            if self.options.storage is not None:
                seen = explorer.wait_for_workers(study)
        return explorer.refine_groups(seen, budget) if self.spec.groups > 1 else seen

    def measure_candidates(self, candidates: Sequence[Candidate], budget: SearchBudget) -> None:
        """Measure candidates in order until the budget is spent."""
        done = [c for c in candidates if self.store.has(c.name)]
        todo = budget.cut([c for c in candidates if not self.store.has(c.name)], len(done))
        if done:
            say(f"Reusing the measurements of {len(done)} candidates.")
        at_once, tried = self.together() if len(todo) > 1 else 1, len(done)
        group = {c.name: position // at_once for position, c in enumerate(candidates)}
        with progress("Search", len(done) + len(todo), done=len(done)) as bar:
            for _, some in groupby(merge_all(self.pair, todo), lambda m: group[m.candidate.name]):
                if not budget.allows(tried):
                    say("The time budget is spent.")
                    break
                merges = list(some)
                tried += len(merges)
                self._answer({merged.candidate.name: merged.adapter for merged in merges})
                for merged in merges:
                    if self._measure_merged(merged):
                        done.append(merged.candidate)
                bar.advance(len(merges), note=self._best_so_far(done))

    def measure_finalists(self, seen: Sequence[Candidate]) -> list[Candidate]:
        """Measure the finalists in full; one after the other if proxy scores rank them."""
        chosen = finalists(self.explorer, seen, self.spec.finalists)
        figures = self.objective.figures
        other_figures = figures - {"mia", "mia_level"}
        races = figures <= PROXY_FIGURES and other_figures and self.spec.strategy != "nsga2"
        if self.spec.finalists is not None or not races:
            self.measure_candidates(chosen, SearchBudget())
            return chosen
        measured = self._measure_in_turn(sorted(seen, key=lambda c: c.name), [], len(chosen))
        best = best_rank(self.explorer, measured)
        if self.spec.strategy == "refine" and best is not None and best.shortfall:
            # the proxy scores were too optimistic; the smallest density changes the model least
            low = self.explorer.lowest(grid(self.spec), seen, self.options.budget)
            measured = self._measure_in_turn(low, measured, len(measured) + len(low))
        return measured

    def _measure_in_turn(
        self, waiting: Sequence[Candidate], measured: Sequence[Candidate], enough: int
    ) -> list[Candidate]:
        """Measure candidates in turn while the proxy score of one exceeds the best result."""
        measured = list(measured)
        at_once = self.spec.together or 1  # each measurement corrects the remaining proxy scores
        while following := next_finalists(self.explorer, waiting, measured, at_once):
            best = best_rank(self.explorer, measured)
            if len(measured) >= enough and best is not None and not best.shortfall:
                break  # enough candidates are measured, and the best reaches every floor
            waiting = [c for c in waiting if c not in following]
            self.measure_candidates(following, SearchBudget())
            measured += [c for c in following if self.store.has(c.name)]
        return measured

    def finish(self, candidates: Sequence[Candidate], explored: int) -> Choice:
        """Choose among the measured candidates, and write ``search/chosen.json``."""
        choice = self._choice(candidates, self._matching)
        predicted = self.guess.made.get(choice.scored.candidate.family)
        choice, by_variant = with_variants(choice)
        scored = self._scored(candidates)
        following = next_best(choice.scored.name, scored, self._anchors(), self.objective,
                              self.run.answers)  # fmt: skip
        choice = replace(choice, next_best=following)
        more: dict[str, Any] = {"explored": explored, "predicted": predicted}
        more |= {"by_variant": by_variant} if by_variant else {}
        more |= template_facts(self.recipe)
        earlier = None
        with suppress(InputError):  # a damaged file is replaced
            earlier = self.run.chosen_name()
        write_json(self.run.search / "chosen.json", choice.to_dict() | more)
        if earlier not in (None, choice.scored.name):
            say(
                f"{choice.scored.name} replaces {earlier} as the chosen merge of {self.run.root}: "
                "attacks and exports use it from now on, and earlier results are about "
                f"{earlier}."
            )
        self.run.record("search", settings=self.spec.model_dump(mode="json"))
        self.run.set_state("search", "done", chosen=choice.scored.name)
        return choice

    def together(self) -> int:
        """Return the number of candidates that answer in one batch."""
        return self.spec.together or self.explorer.evaluator().room()

    def _answer(self, adapters: Mapping[str, Adapter | None]) -> None:
        """Generate the answers of several candidates in one batch; a single one answers later."""
        if len(adapters) > 1:
            self.explorer.evaluator().answer(adapters)

    def _measure_merged(self, merged: Merged) -> bool:
        name = merged.candidate.name
        try:
            write_candidate(merged, self.run.candidates / name)
            self._measure(name, merged.adapter)
            record_weights(self.run, [name])
        except NumericError as error:
            say(f"Skipped {name}: {error}")
            shutil.rmtree(self.run.candidates / name, ignore_errors=True)
            return False
        return True

    def _measure(self, name: str, adapter: Adapter | None) -> None:
        evaluator, evaluation = self.explorer.evaluator(), self.recipe.evaluation
        by_variant = evaluator.measure(adapter, name)
        score = partial(
            score_parts, by_variant, self.spec, evaluation.benchmark, evaluation.metrics,
            difficulty=evaluator.data.difficulty,
        )  # fmt: skip
        base, keeping = name == "base", None
        if len(by_variant) > 1:
            keeping = known_variants(score() if base else self.store.scores["base"])
        if base and keeping is not None and len(keeping) < len(by_variant):
            say(
                f"Retention is measured with {', '.join(sorted(keeping))} prompts only: with "
                "others, the base knows less than 75 % as much of the retain set."
            )
        scores = score(keeping=keeping)
        if leaks := self.objective.figures & set(ATTACKED):
            scores += evaluator.measure_leaks(adapter, name, leaks, self.spec)
        self.store.keep(name, worst_case(by_variant, keeping), scores)

    def _best_so_far(self, done: Sequence[Candidate]) -> str:
        if not done:
            return ""
        choice = self._choice(done)
        rank = self.objective.rank(choice.scored.scores, self.store.scores["base"], "choose")
        return f"best {choice.scored.name} ({self.objective.text}: {rank.value:.3f})"

    def _choice(
        self, candidates: Sequence[Candidate], matching: Callable[[str], str] = lambda name: ""
    ) -> Choice:
        scored = self._scored(candidates)
        if not scored:
            raise NumericError(
                "No candidate has finite scores. Check the training of the pair with "
                "`mergeforget analyze RUN dynamics`."
            )
        return choose(scored, self._anchors(), self.objective, matching)

    def _matching(self, name: str) -> str:
        """Return a sentence if a candidate's answers contain more own digits than by chance."""
        return matching_sentence(read_forget_answers(self.run.answers / f"{name}.jsonl"))

    def _scored(self, candidates: Sequence[Candidate]) -> list[Scored]:
        """Return the candidates that were measured in full, with their scores."""
        scores = self.store.scores
        return [
            Scored(c, scores[c.name], evaluated=self.evaluated)
            for c in candidates
            if self.store.has(c.name)
        ]

    def _anchors(self) -> Anchors:
        """Return the scores of base, over and under."""
        return Anchors(*(self.store.scores[name] for name in ANCHORS))
