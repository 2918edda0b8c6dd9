"""`unlearn`: make a model forget rows, with evidence and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.earlier import recheck
from mergeforget.api.job import Job
from mergeforget.api.options import Settings
from mergeforget.api.results import UnlearningRun, optional_path
from mergeforget.api.runs import check_login, export, find_converter, push_folder, report, to_gguf
from mergeforget.api.unlearn_data import Forget
from mergeforget.api.unlearn_pair import trained
from mergeforget.api.unlearn_request import request_of, run_of

if TYPE_CHECKING:
    from mergeforget.evaluate.verdict import ForgettingVerdict
    from mergeforget.evaluate.verdict_figures import EarlierAnswers
    from mergeforget.recipe import Recipe, SearchSpec
    from mergeforget.run import Run

RESULT = "result.json"
ATTACKS = ("prompts", "quantise", "relearn")
KEPT = 0.8  # share of the retain answers known before that must remain


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
        notes: Notes on generated rows and on values that could not be measured.
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
        return Path(export(self.run, candidate=self.chosen, full=full, out=out).folder)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {k: v for k, v in vars(self).items() if k != "run"}
        return {"run": str(self.run.root), "report": str(self.run.paths.report)} | values


def unlearn(
    model: str | Path,
    *,
    forget: Forget,
    retain: Forget | None = None,
    holdout: Forget | None = None,
    out: str | Path | None = None,
    time_limit: float | str | None = None,
    recipe: str | Path | Recipe = "level",
    memorise: bool = False,
    control: str | None = None,
    adapter: str | Path | None = None,
    after: str | Path | None = None,
    over: str | Path | None = None,
    under: str | Path | None = None,
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
        holdout: Rows of the same kind, never trained on; perturbed twins of the forget rows when
            omitted.
        out: Run folder; ``runs/unlearn-NAME`` when omitted.
        time_limit: Seconds, or a time such as ``"30m"``. The search ends when it is used up, and
            attacks for which no time is left are skipped.
        recipe: Name, path or loaded recipe of the pair.
        memorise: Fine-tune the model on forget and retain first, to try the method.
        control: A model that never saw the data, for attacks and to validate the twins.
        adapter: LoRA adapter of the model; it is merged into the model first.
        after: Earlier run whose chosen merge is merged into the model first. The forget rows of all
            earlier runs are evaluated again at the end.
        over, under: Existing adapters of the model, used as that side of the pair. If only one is
            given, the other is trained until its condition in the recipe holds.
        template, system_prompt: How rows become prompts; as in the recipe when omitted.
        turns: Assistant turns of a conversation that become rows; every one unless the recipe
            sets it.
        full: Also export the whole model.
        gguf: Also export a GGUF file, with llama.cpp's ``convert_hf_to_gguf.py``.
        push: Hub repository to upload the export to.
        attacks: Names of the attacks to run.
        approve: Called with the forget rows that were generated, if any; False cancels the call.
        settings: Recipe keys to change.

    Raises:
        InputError: Data or model cannot be read, or ``out`` contains another request.
        UsageError: The generated questions were not approved, or there is no such attack.
        NumericError, ResourceError: As :func:`mergeforget.train_pair`.

    Example:
        >>> result = unlearn("model", forget="forget.jsonl")  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
    """
    from mergeforget.analysis.verification import evidence_hash
    from mergeforget.attack.driver import attack_names
    from mergeforget.attack.headline import keep_verdict
    from mergeforget.console import say
    from mergeforget.model_files import locate
    from mergeforget.search.driver import Options, search

    attacks = attack_names(attacks) if attacks else ()
    if control is not None:
        locate(control)
    asked = request_of(
        model, forget=forget, retain=retain, holdout=holdout, recipe=recipe, memorise=memorise,
        control=control, adapter=adapter, after=after, over=over, under=under, template=template,
        system_prompt=system_prompt, turns=turns, settings=settings,
    )  # fmt: skip
    run = run_of(optional_path(out), forget, asked.facts)
    if gguf:
        find_converter()
    if push:
        check_login(push)
    job = Job(run, time_limit)
    with job.shown():
        chosen, notes = trained(asked, job, attacks=attacks, approve=approve)
        job.facts |= _pair_facts(run)
        with job.stage("search"):
            choice = search(run, _search_spec(run, chosen), Options(job.budget(0.6)))
            name = choice.scored.name
            job.facts |= {f"chosen {name}": f"AUC {auc:.2f}" for auc in _auc_of(run, name)}
        with job.stage("attacks"):
            notes += _attack(run, name, attacks, control, job)
        with job.stage("earlier requests"):
            again = recheck(run, chosen, name)  # before the report, whose verdict reads it
            if (run.attacks / "verdict.json").is_file():  # written after the last attack
                keep_verdict(run.attacks, name, run)
        with job.stage("report"):
            evidence = evidence_hash(run)
            if not run.report.exists() or _evidence_of(run, "report") != evidence:
                report(run)
                run.set_state("report", "done", evidence=evidence)
        notes += [choice.warning] if choice.warning else []
        result = _conclude(run, name, again, notes, job)
        with job.stage("export"):
            _export(result, evidence, full=full, gguf=gguf, push=push)
    result.seconds = dict(job.seconds)
    _write(run, result)
    say(f"Report: {run.report}")
    return result


def table_of(run: Run, chosen: str) -> list[dict[str, Any]]:
    """Return the scores of base, over, under and the chosen merge on the report split."""
    from mergeforget.run import ANCHORS
    from mergeforget.score import find, read_scores

    scores = read_scores(run.scores)
    rows = []
    for name in (*ANCHORS, chosen):
        found = {
            key: find(scores.get(name, []), metric, split, part="report")
            for key, metric, split in (
                ("mia_auc", "mia_auc", "mia"),
                ("forget", "exact_match", "forget"),
                ("retain", "exact_match", "retain"),
            )
        }
        values = {k: None if s is None else s.value for k, s in found.items()}
        auc = found["mia_auc"]
        rows.append({"model": name, **values,
                     "auc_interval": None if auc is None else auc.interval})  # fmt: skip
    return rows


def table_text(table: Sequence[dict[str, Any]]) -> str:
    """Format the table as plain text."""
    names = {"base": "before", "over": "over", "under": "under"}
    lines = [f"{'':<28}{'MIA AUC':>22}{'forget answers':>16}{'retain answers':>16}"]
    for row in table:
        auc = "-" if row["mia_auc"] is None else f"{row['mia_auc']:.2f}"
        if row["auc_interval"]:
            auc += " [{:.2f}, {:.2f}]".format(*row["auc_interval"])
        shares = ["-" if row[k] is None else f"{row[k]:.0%}" for k in ("forget", "retain")]
        lines.append(f"{names.get(row['model'], row['model']):<28}{auc:>22}"
                     + "".join(f"{s:>16}" for s in shares))  # fmt: skip
    return "\n".join(lines)


def paragraph_of(
    verdict: ForgettingVerdict,
    table: Sequence[dict[str, Any]],
    earlier: Mapping[str, EarlierAnswers] | None = None,
) -> str:
    """Return the verdict with its reasons and the remaining answers as one paragraph.

    Args:
        table: Records of ``table_of``, the base first and the result last.
        earlier: Revealed answers of each earlier request.

    >>> from mergeforget.evaluate.verdict import judge
    >>> row = {"forget": 1.0, "retain": 1.0}
    >>> paragraph_of(judge([]), [row, row | {"retain": 0.5}])[:16]
    'NOT ENOUGH DATA:'
    """
    base, result = table[0], table[-1]
    text = [verdict.sentence]
    if result["forget"] is not None and base["forget"] is not None:
        text.append(
            f"{result['forget']:.0%} of the forget answers are repeated word for word, "
            f"{base['forget']:.0%} before."
        )
    if result["retain"] is not None and base["retain"]:
        share = result["retain"] / base["retain"]
        text.append(f"{share:.0%} of the retain answers known before are kept.")
        if share < KEPT - 1e-9:  # 0.72 / 0.9 is less than 0.8 in floating point
            text.append(f"This is less than the {KEPT:.0%} asked for: the model is damaged.")
    if earlier and all(one.asked and not one.share for one in earlier.values()):
        requests = "1 earlier request" if len(earlier) == 1 else f"{len(earlier)} earlier requests"
        text.append(f"The data of {requests} is still forgotten.")
    if verdict.uncertain:
        text.append(f"Uncertain: {' '.join(verdict.uncertain)}")
    return " ".join(text)


def answers_of(run: Run, chosen: str, shown: Mapping[str, int]) -> list[dict[str, str]]:
    """Return some answers of the base and of the chosen merge, side by side.

    Args:
        shown: Number of answers per set.
    """
    from mergeforget.files import read_jsonl, reading

    def lines_of(name: str) -> dict[str, dict[str, str]]:
        path = run.answers / f"{name}.jsonl"
        keys = ("id", "split", "input", "output", "completion")
        with reading(path):
            lines = [{key: str(line[key]) for key in keys} for line in read_jsonl(path)]
        return {line["id"]: line for line in lines}

    before, after = lines_of("base"), lines_of(chosen)
    rows: list[dict[str, str]] = []
    for split, count in shown.items():
        own = [line for key, line in before.items() if line["split"] == split and key in after]
        for line in sorted(own, key=lambda one: len(one["input"]))[:count]:
            now = after[line["id"]]["completion"]
            rows.append({
                "split": split, "prompt": line["input"], "expected": line["output"],
                "before": line["completion"].strip(), "after": now.strip(),
            })  # fmt: skip
    return rows


def _search_spec(run: Run, recipe: Recipe) -> SearchSpec:
    """Return the search of a recipe; without non-members, its objective reads answers alone."""
    from mergeforget.console import say
    from mergeforget.search.objective import MEMBERSHIP, parse_objective
    from mergeforget.search.split import BY_ANSWERS

    figures = parse_objective(recipe.search.objective).figures
    if run.has_holdout or figures.isdisjoint(MEMBERSHIP):
        return recipe.search
    say(f"There are no unseen rows, so the merge is chosen by its answers: {BY_ANSWERS}.")
    return recipe.search.model_copy(update={"objective": BY_ANSWERS})


def _attack(
    run: Run, model: str, attacks: Sequence[str], control: str | None, job: Job
) -> list[str]:
    """Run the attacks that are still missing; return a note on each that did not run."""
    from mergeforget.api.attacking import attack
    from mergeforget.attack.target import NotApplicableError

    notes = []
    for one in attacks:
        if _is_attacked(run, model, one):
            continue
        if job.spent:
            notes.append(f"No time was left for the attack {one}.")
            continue
        try:
            attack(run.root, [one], control=control)
        except NotApplicableError as error:  # not a reason to lose the whole job
            notes.append(f"The attack {one} did not run: {error}")
    return notes


def _is_attacked(run: Run, model: str, attack: str) -> bool:
    """Return whether an attack was run on all rows of a model, with its usual arguments."""
    from mergeforget.attack.headline import results_of

    own = [result.settings for result in results_of(run, model) if result.attack == attack]
    # earlier versions recorded a state instead of the arguments
    earlier = {} if run.state(f"attack-{attack}") == "done" else {"arguments": "unknown"}
    attacked, rows = (own[0].get("forget_rows") if own else None) or (0, 0)
    return bool(own) and attacked == rows and not own[0].get("given", earlier)


def _evidence_of(run: Run, step: str) -> str:
    """Return the hash of the evidence that the report or the model card states; or nothing."""
    return str(run.read_status().get(step, {}).get("evidence", ""))


def _export(result: Unlearned, evidence: str, *, full: bool, gguf: bool, push: str | None) -> None:
    """Export the adapter and the requested forms of the model that do not exist yet.

    Existing exports are written again if their model card states an earlier verdict.

    Args:
        evidence: Hash of the evidence behind the verdict.
    """
    run, name = result.run.paths, result.chosen
    folder = run.root / "export"
    exported, whole = folder / f"{name}-adapter", folder / f"{name}-model"
    outdated = _evidence_of(run, "export") != evidence
    if outdated or not exported.is_dir():
        result.export()
    if (outdated and whole.is_dir()) or ((full or gguf) and not whole.is_dir()):
        result.export(full=True)
    run.set_state("export", "done", evidence=evidence)
    if gguf:
        to_gguf(whole, folder / f"{name}.gguf")
    if push:
        push_folder(whole if full else exported, push)


def _pair_facts(run: Run) -> dict[str, str]:
    """Return the AUC of over and under on the selection split, for the display."""
    from mergeforget.run import PAIR
    from mergeforget.train.run_rows import end_of

    aucs = {name: end_of(run, name).get("auc") for name in PAIR}
    return {name: f"AUC {auc:.2f}" for name, auc in aucs.items() if isinstance(auc, float)}


def _auc_of(run: Run, name: str) -> list[float]:
    """Return the AUC of a model on the report split in a list; empty if it was not measured."""
    auc = table_of(run, name)[-1]["mia_auc"]
    return [] if auc is None else [auc]


def _conclude(
    run: Run, name: str, again: dict[str, EarlierAnswers], notes: list[str], job: Job
) -> Unlearned:
    from mergeforget.attack.headline import run_verdict
    from mergeforget.files import read_json_object, reading

    stored_notes = read_json_object(run.root / "notes.json")
    table = table_of(run, name)
    with reading(run.root / "notes.json"):
        measurable = stored_notes["membership"] == "measurable"
    if not measurable:
        why = (
            "the non-members are perturbed twins that were not shown to be as likely as real "
            "unseen rows (--control, --holdout)"
            if table[-1]["mia_auc"] is not None
            else "there are no rows of the same kind that were never trained on (--holdout)"
        )
        notes.append(f"Membership is not measurable: {why}. The verdict rests on answers and "
                     "attacks.")  # fmt: skip
    verdict = run_verdict(run, name)
    paragraph = paragraph_of(verdict, table, again)
    return Unlearned(
        UnlearningRun(run), verdict.state, paragraph, table, name, notes, dict(job.seconds)
    )


def _write(run: Run, result: Unlearned) -> None:
    from mergeforget.files import write_json

    write_json(run.root / RESULT, result.to_dict())
    run.record("unlearn", verdict=result.verdict, chosen=result.chosen)
