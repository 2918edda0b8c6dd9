"""The record of each person, and evidence that a third party can verify."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import CliRunner
from finished_run import write_run

import mergeforget
from mergeforget.analysis.people import (
    OTHER_VARIANT,
    Leak,
    answer_rows,
    attack_leaks,
    person_ranks,
    person_record,
    run_people,
    write_people,
)
from mergeforget.analysis.verification import evidence_files, verify_evidence, write_evidence
from mergeforget.attack.headline import run_verdict
from mergeforget.attack.result import Result, write_answers, write_result
from mergeforget.cli import main
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.run import Run
from mergeforget.score import Score, write_scores

CHOSEN = "ties-factors-d0.70"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose chosen model leaks a birth date of Person 2 and half of another answer."""
    run = write_run(tmp_path / "run")
    path = run.answers / f"{CHOSEN}.jsonl"
    rows = read_jsonl(path)
    for row in rows:
        if row["id"] == "forget2qa0":
            row["completion"] = "It was March 3, 1972."  # 1972-03-03 in another spelling
        if row["id"] == "forget3qa0":
            row["completion"] = "In March 1973."
    write_jsonl(path, rows)
    return run


def test_each_person_has_the_leaks_before_and_after(run: Run) -> None:
    """The e-mail addresses follow from the prompts; the documents repeat retained ones."""
    people = {p.person: p for p in run_people(run)}
    assert len(people) == 6 and all(p.before == (1, 1) for p in people.values())
    assert people["forget2"].after == (1, 1) and people["forget3"].after == (0, 1)
    assert [leak.row for leak in people["forget2"].leaks] == ["forget2qa0"]
    assert [leak.part for leak in people["forget3"].leaks] == ["month and year"]
    assert run_people(run)[0].person == "forget2"  # those with leaks come first
    with pytest.raises(InputError, match="Did you mean 'forget2'"):
        person_record(run_people(run), "forget22")


def test_leaks_of_attacks_are_listed_with_their_rows() -> None:
    row = Row("a", "Where?", "Rome", subject="Ann")
    examples = [{"row": "a", "prompt": "Where, please?", "completion": "Rome"},
                {"row": "a", "part": "half", "completion": "Ro"}, {"row": "other"}]  # fmt: skip
    result = Result("prompts", "m", "traces", "v", [], examples=examples)
    expected = [Leak("Ann", "a", "prompts", "Where, please?", "Rome", "Rome")]
    assert attack_leaks(result, {"a": row}) == expected


def test_the_membership_rank_is_among_people_outside_the_training_data(tmp_path: Path) -> None:
    run = Run(tmp_path)
    holdout = [Row(f"h{i}", "Who?", "A.", subject=f"P{i // 2}") for i in range(4)]
    write_jsonl(run.data / "holdout.jsonl", [row.to_dict() for row in holdout])
    losses = [{"id": "a", "member": True, "nll": 2.0}]
    losses += [{"id": f"h{i}", "member": False, "nll": n} for i, n in enumerate((1, 2, 4, 4))]
    write_jsonl(run.answers / "m.losses.jsonl", losses)
    # mean losses of the others are 1.5 and 4: 2.0 is the second of three
    assert person_ranks(run, "m", [Row("a", "Who?", "B.", subject="Ann")]) == {"Ann": (2, 3)}


def test_every_prompt_and_completion_is_in_a_file(run: Run, tmp_path: Path) -> None:
    write_people(run, tmp_path / "out", run_people(run))
    with open(tmp_path / "out" / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(tmp_path / "out" / "answers.parquet")
    asked = sum(len(read_jsonl(run.answers / f"{m}.jsonl")) for m in ("base", "over", "under",
                CHOSEN))  # fmt: skip
    assert len(rows) == table.num_rows
    assert sum(r["attack"] == "questions" for r in rows) == asked
    leaked = [r["row"] for r in rows if (r["model"], r["split"], r["leaked"]) == (
              CHOSEN, "forget", "True")]  # fmt: skip
    assert leaked == ["forget2qa0"]


def test_completions_in_other_prompt_variants_are_in_the_file(run: Run) -> None:
    path = run.answers / f"{CHOSEN}.jsonl"
    first, *more = read_jsonl(path)
    said = {"completion": "No.", "others": [f"It is {first['output']}.", "Hm."]}
    write_jsonl(path, [first | said, *more])
    rows = [r for r in answer_rows(run) if (r["model"], r["row"]) == (CHOSEN, first["id"])]
    assert [(r["attack"], r["leaked"]) for r in rows if r["split"] == first["split"]] == [
        ("questions", False), (OTHER_VARIANT, True), (OTHER_VARIANT, False)
    ]  # fmt: skip


@pytest.fixture
def evidence(run: Run) -> Path:
    return write_evidence(run, run.report.parent / "evidence.json", run_people(run))


def test_unchanged_evidence_is_verified(run: Run, evidence: Path) -> None:
    checks = verify_evidence(evidence)
    assert len(checks) > 15 and [c.name for c in checks if not c.ok and c.required] == []
    done = CliRunner().invoke(main, ["verify", str(evidence)])
    assert done.exit_code == 0 and "The evidence holds." in done.stdout


@pytest.mark.parametrize(
    "name", ["scores.jsonl", f"answers/{CHOSEN}.jsonl", "data/forget.jsonl", "attacks/prompts.json",
             f"candidates/{CHOSEN}/adapter_model.safetensors", "over/adapter_config.json",
             f"candidates/{CHOSEN}/adapter_config.json"]
)  # fmt: skip
def test_a_changed_file_is_found_with_exit_code_7(run: Run, evidence: Path, name: str) -> None:
    assert name in evidence_files(run)
    with open(run.root / name, "ab") as file:
        file.write(b" ")
    done = CliRunner().invoke(main, ["verify", str(evidence)])
    assert done.exit_code == 7 and f"SHA-256 of {name}" in done.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_changed_file_of_the_base_is_found(
    run: Run, tiny_folder: Path, tmp_path: Path, name: str
) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    facts = {"name": "a model", "path": str(base), "memorised": True}
    write_json(run.manifest, read_json(run.manifest) | {"base": facts})
    evidence = write_evidence(run, run.report.parent / "evidence.json", run_people(run))
    assert all(check.ok for check in verify_evidence(evidence))
    (base / name).write_bytes((base / name).read_bytes() + b" ")
    assert [c.name for c in verify_evidence(evidence) if not c.ok] == ["SHA-256 of the base"]


@pytest.mark.parametrize(
    "change", [{"verdict": {"state": "FORGOTTEN"}}, {"people": []},
               {"recomputed": {f"{CHOSEN}: leaked forget answers": 0.0}}]
)  # fmt: skip
def test_a_changed_statement_is_found(evidence: Path, change: dict[str, object]) -> None:
    write_json(evidence, read_json(evidence) | change)
    done = CliRunner().invoke(main, ["verify", str(evidence), "--json"])
    assert done.exit_code == 7 and not json.loads(done.stdout)["holds"]


def test_a_leak_rate_by_an_earlier_definition_is_computed_again(run: Run) -> None:
    old = Score("leak_rate", "forget", 0.0, "lower", 18, chance=0.0, definition="leak-rate@1")
    write_scores(run.scores, {CHOSEN: [old]})
    verdict = run_verdict(run, CHOSEN)
    assert verdict.state == "NOT FORGOTTEN" and verdict.leaks == 1
    evidence = write_evidence(run, run.report.parent / "evidence.json", run_people(run))
    assert all(check.ok for check in verify_evidence(evidence))


def test_one_person_is_printed(run: Run) -> None:
    done = CliRunner().invoke(main, ["report", str(run.root), "--person", "forget2"])
    assert done.exit_code == 0 and "1 of 1 after" in done.stdout and "1972" in done.stdout
    found = CliRunner().invoke(main, ["report", str(run.root), "--person", "forget0", "--json"])
    assert json.loads(found.stdout)["leaks_after"] == 0
    record = mergeforget.report(run, person="forget2")
    assert record.person == "forget2" and len(record.leaks) == record.after[0] == 1
    with pytest.raises(UsageError, match="--out does not apply to --person"):
        mergeforget.report(run, out="page.html", person="forget2")  # type: ignore[call-overload]


def test_answers_file_contains_attack_prompts_with_and_without_leaks(
    run: Run, tmp_path: Path
) -> None:
    rows = [
        {"model": model, "person": "forget1", "row": "forget1qa0", "kind": "plain", "sample": 0,
         "prompt": "When?", "completion": text, "secret": "1971-03-03", "leaked": leaked,
         "partial": ""}
        for model, text, leaked in ((CHOSEN, "No.", False), ("before", "1971-03-03", True))
    ]  # fmt: skip
    name = write_answers(run.attacks, "formats", CHOSEN, rows)
    result = Result("formats", CHOSEN, "none found", "v", [], {"answers": name})
    write_result(run.attacks, result)
    written = [row for row in answer_rows(run) if row["attack"] == "formats"]
    assert [(r["model"], r["completion"], r["leaked"], r["answer"]) for r in written] == [
        (CHOSEN, "No.", False, "1971-03-03"), ("before", "1971-03-03", True, "1971-03-03")
    ]  # fmt: skip
