"""`unlearn`: make a model forget rows, with evidence and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.delivery import (
    REQUEST,
    find_converter,
    folded_base,
    push_folder,
    recheck,
    to_gguf,
)
from mergeforget.api.job import Job
from mergeforget.api.options import Settings
from mergeforget.api.results import UnlearningRun, optional_path
from mergeforget.api.training import assignments_of
from mergeforget.api.unlearn_data import Forget, check_rows, own_answers, read_request, renamed
from mergeforget.api.verdict import paragraph_of, table_of, table_text

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run

RESULT = "result.json"
ATTACKS = ("prompts", "quantise", "relearn")


@dataclass
class Unlearned:
    """Result of `unlearn`.

    Attributes:
        run: The run folder, with adapters, scores, attacks and the report.
        verdict: ``FORGOTTEN``, ``NOT FORGOTTEN`` or ``NOT ENOUGH DATA``.
        paragraph: The verdict in words, with the evidence for and against it.
        table: One record per model (before, over, under, result): AUC, share of forget and of
            retain answers repeated, on the report split.
        chosen: Name of the exported candidate.
        notes: What was generated, and what could not be measured.
        seconds: Time spent by stage.
    """

    run: UnlearningRun
    verdict: str
    paragraph: str
    table: list[dict[str, Any]]
    chosen: str
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Unlearned({self.verdict}, {self.chosen}, run {str(self.run.root)!r})"

    def __str__(self) -> str:
        return f"{self.paragraph}\n\n{table_text(self.table)}"

    def export(self, out: str | Path | None = None, *, full: bool = False) -> Path:
        """Write the adapter, or with ``full`` the whole model, with tokenizer and model card."""
        from mergeforget.api.runs import export

        return Path(export(self.run, candidate=self.chosen, full=full, out=out).folder)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {k: v for k, v in vars(self).items() if k != "run"}
        return {"run": str(self.run.root), "report": str(self.run.paths.report)} | values


def unlearn(
    model: str | Path,
    *,
    forget: Forget,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    out: str | Path | None = None,
    time_limit: float | str | None = None,
    recipe: str | Path | Recipe = "level",
    memorise: bool = False,
    control: str | None = None,
    adapter: str | Path | None = None,
    after: str | Path | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    turns: Literal["last", "every"] | None = None,
    full: bool = False,
    gguf: bool = False,
    push: str | None = None,
    attacks: Sequence[str] = ATTACKS,
    approve: Callable[[list[Any]], bool] | None = None,
    settings: Settings = (),
) -> Unlearned:
    """Make a model forget rows, and collect the evidence.

    Checks the data, estimates the time, trains a pair that brackets the level of unseen rows,
    searches its merges, attacks the best one, exports it and writes a report. Repeat the call with
    the same ``out`` to resume.

    Args:
        model: Hub id, folder, or ``smollm2``.
        forget: Rows to forget: a data file, a text file or a list of names, questions or documents.
        retain: Rows to retain; the model's own answers to general questions when omitted.
        holdout: Rows of the same kind that no training saw; perturbed twins of the forget rows when
            omitted.
        out: Run folder; ``runs/unlearn-NAME`` when omitted.
        time_limit: Seconds, or a time such as ``"30m"``. The search ends when it is used up, and
            attacks for which no time is left are skipped.
        recipe: Name, path or loaded recipe of the pair.
        memorise: Fine-tune the model on forget and retain first, to try the method.
        control: A model that never saw the data, for attacks and for the control of twins.
        adapter: LoRA adapter of the model; it is merged into the model first.
        after: Earlier run whose chosen merge is merged into the model first. The forget rows of all
            earlier runs are evaluated again at the end.
        template, system_prompt, turns: How rows become prompts; as in the recipe when omitted.
        full: Also export the whole model.
        gguf: Also export a GGUF file, with llama.cpp's ``convert_hf_to_gguf.py``.
        push: Hub repository to upload the export to.
        attacks: Names of the attacks to run.
        approve: Called with the forget rows if questions were generated; False cancels the call.
        settings: Recipe keys to change.

    Raises:
        InputError: Data or model cannot be read, or ``out`` contains another request.
        UsageError: The generated questions were not approved.
        NumericError, ResourceError: As :func:`mergeforget.train_pair`.

    Example:
        >>> result = unlearn("model", forget="forget.jsonl")  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
    """
    from mergeforget.api.attacking import attack
    from mergeforget.api.runs import report
    from mergeforget.attack.headline import EARLIER
    from mergeforget.console import say
    from mergeforget.files import write_json
    from mergeforget.search.driver import Options, search
    from mergeforget.train.pair import train_pair

    given = {"template": template, "system_prompt": system_prompt, "turns": turns}
    rendered = {f"data.{key}": value for key, value in given.items() if value is not None}
    settings = assignments_of(settings) + assignments_of(rendered)
    request = {
        "model": str(model), "forget": _facts(forget), "retain": _facts(retain),
        "holdout": _facts(holdout), "memorise": memorise, "control": control,
        "adapter": None if adapter is None else str(adapter),
        "after": None if after is None else str(after),
        "settings": settings, "recipe": str(getattr(recipe, "name", recipe)),
    }  # fmt: skip
    run = _run_of(optional_path(out), forget, request)
    if gguf:
        find_converter()
    job = Job(run, time_limit)
    with job.shown():
        with job.stage("data"):
            request["base"] = folded_base(run, request)
            sources = (forget, retain, holdout)
            chosen, notes = _prepare(run, request, recipe, settings, sources, _asking(job, approve))
            job.expected = _expected(run, attacks)
        with job.stage("pair"):
            train_pair(chosen, run, memorise_first=memorise, resume=run.recipe.exists())
            notes += _bracket_notes(run)
            job.facts |= _pair_facts(run)
        with job.stage("search"):
            choice = search(run, chosen.search, Options(job.budget(0.6)))
            name = choice.scored.name
            job.facts |= {f"chosen {name}": f"AUC {auc:.2f}" for auc in _auc_of(run, name)}
        changed = False
        with job.stage("attacks"):
            for one in attacks:
                if job.spent:
                    notes.append(f"No time was left for the attack {one}.")
                    continue
                if run.state(f"attack-{one}") != "done":
                    attack(run.root, [one], control=control)
                    run.set_state(f"attack-{one}", "done")
                    changed = True
        with job.stage("earlier requests"):
            again = recheck(run, chosen, name)
            write_json(run.root / EARLIER, again)  # before the report, whose verdict reads it
        with job.stage("report"):
            if changed or not run.report.exists():
                report(run)
        notes += [choice.warning] if choice.warning else []
        result = _conclude(run, name, again, notes, job)
        with job.stage("export"):
            _export(result, full=full, gguf=gguf, push=push)
    result.seconds = dict(job.seconds)
    _write(run, result)
    say(f"Report: {run.report}")
    return result


def _asking(job: Job, approve: Callable[[list[Any]], bool] | None) -> Callable[[list[Any]], bool]:
    """Return a function that hides the display and asks for approval; by default it approves."""

    def ask(rows: list[Any]) -> bool:
        if approve is None:
            return True
        with job.paused():
            return approve(rows)

    return ask


def _export(result: Unlearned, *, full: bool, gguf: bool, push: str | None) -> None:
    """Export the adapter and the requested forms of the model that do not exist yet."""
    folder, name = result.run.root / "export", result.chosen
    exported, whole = folder / f"{name}-adapter", folder / f"{name}-model"
    if not exported.is_dir():
        result.export()
    if (full or gguf) and not whole.is_dir():
        result.export(full=True)
    if gguf:
        to_gguf(whole, folder / f"{name}.gguf")
    if push:
        push_folder(whole if full else exported, push)


def _expected(run: Run, attacks: Sequence[str]) -> dict[str, float]:
    """Return the seconds that each stage is expected to take, as estimated from the data."""
    from mergeforget.files import read_json_object, reading

    path = run.root / "notes.json"
    facts = read_json_object(path)
    with reading(path):
        found = {str(name): float(seconds) for name, seconds in facts.get("expected", {}).items()}
    together = sum(found.get(name, 0.0) for name in attacks)
    return {name: found[name] for name in ("pair", "search") if name in found} | (
        {"attacks": together} if found else {}
    )


def _pair_facts(run: Run) -> dict[str, str]:
    """Return the AUC of over and under on the selection split, for the display."""
    from mergeforget.train.pair import end_of

    aucs = {name: end_of(run, name).get("auc") for name in ("over", "under")}
    return {name: f"AUC {auc:.2f}" for name, auc in aucs.items() if isinstance(auc, float)}


def _auc_of(run: Run, name: str) -> list[float]:
    """Return the AUC of a model on the report split in a list; empty if it was not measured."""
    auc = table_of(run, name)[-1]["mia_auc"]
    return [] if auc is None else [auc]


def _run_of(out: Path | None, forget: Forget, request: dict[str, Any]) -> Run:
    """Return the run of a request: a new one, or one with the same request."""
    from mergeforget.errors import InputError
    from mergeforget.files import read_json_object
    from mergeforget.run import RUNS, Run

    stem = Path(forget).stem if isinstance(forget, str | Path) else "list"
    run = Run(out or RUNS / f"unlearn-{stem}")
    path = run.root / REQUEST
    if path.exists():
        earlier = read_json_object(path)
        changed = [key for key in request if earlier.get(key) != request[key]]
        if changed:
            raise InputError(
                f"{run.root} contains another request ({', '.join(changed)} differ). Choose "
                "another folder with --out, or repeat the same call to resume."
            )
    elif run.recipe.exists():
        raise InputError(
            f"{run.root} contains a run that unlearn did not start. Choose another --out."
        )
    return run


def _facts(source: Any) -> Any:
    """Return what identifies a data source: hashes of files, name of a hub data set, or items."""
    from mergeforget.files import sha256

    if source is None:
        return None
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            files = (p for p in sorted(path.rglob("*")) if p.is_file())
            return {
                "name": path.name,
                "files": {str(p.relative_to(path)): sha256(p) for p in files},
            }
        if path.is_file():
            return {"name": path.name, "sha256": sha256(path)}
        return {"name": str(source)}
    return [dict(item) if not isinstance(item, str) else item for item in source]


def _prepare(
    run: Run,
    request: dict[str, Any],
    recipe: str | Path | Recipe,
    settings: Settings,
    sources: tuple[Forget, Any, Any],
    approve: Callable[[list[Any]], bool],
) -> tuple[Recipe, list[str]]:
    """Read and complete the data in the first call, check the base, and return the recipe."""
    from mergeforget.errors import UsageError
    from mergeforget.files import read_json_object, reading, write_json, write_jsonl
    from mergeforget.recipe import Recipe, change, load_recipe

    notes_file = run.root / "notes.json"
    folder = run.root / "request"
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, assignments_of(settings))
    chosen = change(chosen, model={"name": request["base"]})
    if not notes_file.exists():
        asked: list[str] = []

        def ask(prompts: list[str]) -> list[str]:
            asked.extend(prompts)
            return own_answers(chosen, prompts)

        rows = read_request(*sources, ask, chosen.data.turns)
        if asked and not approve(rows.forget):
            raise UsageError("The generated rows were not approved; nothing was trained.")
        for split in ("forget", "retain", "holdout"):
            own = renamed(getattr(rows, split), split)
            if own:
                write_jsonl(folder / f"{split}.jsonl", [row.to_dict() for row in own])
        facts = check_rows(chosen, rows, request)
        write_json(run.root / REQUEST, request)
        write_json(notes_file, {"notes": rows.notes + facts.pop("notes"), **facts})
    kept = read_json_object(notes_file)
    data = {n: str(folder / f"{n}.jsonl") for n in ("forget", "retain", "holdout")
            if (folder / f"{n}.jsonl").exists()}  # fmt: skip
    with reading(notes_file):
        new_tokens = min(chosen.evaluation.max_new_tokens, int(kept["answer_tokens"]) + 8)
        notes = [str(note) for note in kept["notes"]]
    chosen = change(chosen, data=data, evaluation={"max_new_tokens": new_tokens})
    return chosen, notes


def _bracket_notes(run: Run) -> list[str]:
    from mergeforget.train.pair import end_of

    end = end_of(run, "over")
    if not end or end["outcome"] == "reached":
        return []
    what = {"max_steps": "did not reach its condition", "collapsed": "collapsed"}[end["outcome"]]
    return [f"The training of the pair {what}; step {end['step']} is used."]


def _conclude(
    run: Run, name: str, again: dict[str, float], notes: list[str], job: Job
) -> Unlearned:
    from mergeforget.attack.headline import run_verdict
    from mergeforget.files import read_json_object, reading

    kept = read_json_object(run.root / "notes.json")
    table = table_of(run, name)
    with reading(run.root / "notes.json"):
        measurable = kept["membership"] == "measurable"
    if not measurable:
        notes.append(
            "Membership is not measurable: the non-members are perturbed twins, and no model that "
            "never saw the data shows that they are as likely as real rows (--control). The "
            "verdict rests on answers and attacks."
        )
    verdict = run_verdict(run, name)
    paragraph = paragraph_of(verdict, table, again)
    return Unlearned(
        UnlearningRun(run), verdict.state, paragraph, table, name, notes, dict(job.seconds)
    )


def _write(run: Run, result: Unlearned) -> None:
    from mergeforget.files import write_json

    write_json(run.root / RESULT, result.to_dict())
    run.record("unlearn", verdict=result.verdict, chosen=result.chosen)
