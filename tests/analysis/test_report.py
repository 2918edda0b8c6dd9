"""The report as a file: whole, escaped, without a request to anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from finished_run import HOSTILE, write_pair

from mergeforget.analysis.report import flat, limits_of, write_report
from mergeforget.analysis.sections import compare_answers, matching_parts, take_turns
from mergeforget.analysis.tables import cell_of, label_of
from mergeforget.cli import main
from mergeforget.data.schema import Row
from mergeforget.files import write_jsonl
from mergeforget.recipe import load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score


@pytest.fixture
def page(reported: Run) -> str:
    return reported.report.read_text()


def test_hostile_text_is_escaped(page: str) -> None:
    assert HOSTILE not in page and "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page  # text of the data is not a template


def test_the_page_makes_no_network_request(page: str) -> None:
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert addresses
    allowed = ("data:", "#")
    outside = [a for a in addresses if not a.startswith(allowed)]
    assert [a for a in outside if a != "x"] == []  # x: the escaped <img src=x> of the data
    assert "default-src 'none'" in page


def test_the_page_has_every_part(page: str) -> None:
    for part in ("candidates", "density", "mia", "attacks", "angles", "dynamics", "answers",
                 "limits"):  # fmt: skip
        assert f'id="{part}"' in page
    assert "the claim that the data is gone: relearn." in page and 'id="attack-probe"' in page
    assert "ties-factors-d0.70 is the nearest to balance" in page
    assert "The two splits disagree" in page
    assert page.count("<tr class=") >= 23  # base, over, under, 20 candidates
    assert '<mark class="leak">1970-03-01</mark>' in page


def test_the_page_of_an_early_run_names_the_next_commands(tmp_path: Path) -> None:
    run = Run(tmp_path / "young")
    save_recipe(load_recipe("zjuklab"), run.recipe)
    write_pair(run)
    page = write_report(run).read_text()
    assert page.count("mergeforget search") >= 3 and "mergeforget evaluate" in page
    assert "angles-over" in page and "mergeforget attack" in page


@pytest.mark.parametrize(("real", "twins", "said"), [(2, 0, ""), (2, 4, " 4 of"), (0, 4, "")])
def test_the_limits_say_how_many_unseen_rows_are_made_up(
    real: int, twins: int, said: str, tmp_path: Path
) -> None:
    run = Run(tmp_path / "young")
    save_recipe(load_recipe("zjuklab"), run.recipe)
    ids = [*(f"a{i}" for i in range(real)), *(f"b-twin{i}:f0" for i in range(twins))]
    write_jsonl(run.data / "holdout.jsonl", [{"id": i, "input": "?", "output": i} for i in ids])
    found = [text for text in limits_of(run, None) if "perturbed twins" in text]
    assert len(found) == bool(twins)
    assert all(f"inference,{said} the {real + twins} rows" in text for text in found)


def test_report_names_its_file(tmp_path: Path) -> None:
    run, out = Run(tmp_path / "young"), tmp_path / "page.html"
    save_recipe(load_recipe("zjuklab"), run.recipe)
    done = CliRunner().invoke(main, ["report", str(run.root), "--out", str(out)])
    assert done.exit_code == 0 and done.stdout == f"Report: {out}\n" and out.exists()


@pytest.mark.parametrize(
    ("completion", "reference", "prompt", "expected"),
    [
        ("Ada lives in Rome, I think", "She lives in Rome.", "", ["lives in Rome"]),
        ("in a house", "in a boat", "", []),  # two words may be chance
        ("Rome", "Rome", "", ["Rome"]),  # the whole of a short answer
        ("RoMe!", "rome", "", ["RoMe"]),
        ("call 555-0199 now", "Her number is 555-0199.", "", ["555-0199"]),
        ("at ada@x.org.", "Write to ada@x.org", "", ["ada@x.org"]),
        ("Who is Ada Lovelace then", "Ada Lovelace then", "Who is Ada Lovelace then", []),
        ("1990", "born in 1990", "Who was born in 1990?", []),  # the word is in the question
        ("", "Rome", "", []),
        ("Rome", "", "", []),
    ],
)
def test_leaked_parts_of_an_answer_are_marked(
    completion: str, reference: str, prompt: str, expected: list[str]
) -> None:
    segments = matching_parts(completion, reference, prompt)
    assert "".join(text for text, _ in segments) == completion
    assert [text for text, same in segments if same] == expected


def test_questions_alternate_between_tasks() -> None:
    rows = [Row(f"{t}{i}qa0", "", "", t, "forget") for t in ("A", "B") for i in range(3)]
    assert [r.task for r in take_turns(rows, 4)] == ["A", "B", "A", "B"]


def test_questions_are_those_that_every_model_answered(finished: Run) -> None:
    found = compare_answers(finished, 5)
    assert [c.row.split for c in found] == ["forget"] * 5 + ["retain"] * 5
    assert all(
        [s for s, _ in c.answers] == ["base", "over", "under", "ties-factors-d0.70"] for c in found
    )


def test_the_report_split_comes_first() -> None:
    by_split = [
        Score("mia_auc", "mia", 0.5, "nearer", 10, part="choose"),
        Score("mia_auc", "mia", 0.6, "nearer", 12, part="report", interval=(0.4, 0.8)),
    ]
    cell = cell_of(by_split, ("mia_auc", "mia"))
    assert (cell.value, cell.choose, cell.n) == (0.6, 0.5, 12)
    assert cell.note == "0.400 to 0.800, 95\N{NO-BREAK SPACE}%; n 12"
    assert cell_of(by_split[:1], ("mia_auc", "mia")).choose is None
    assert cell_of([], ("mia_auc", "mia")).text == ""


def test_measures_of_membership_have_readable_names() -> None:
    names = {m: label_of((m, "mia")) for m in ("mia_auc_level", "mia_auc_min_k_20", "mia_tpr")}
    assert names == {
        "mia_auc_level": "MIA AUC relative to the twins",
        "mia_auc_min_k_20": "MIA AUC min k 20",
        "mia_tpr": "MIA TPR",
    }
    assert label_of(("exact_memorisation", "forget")) == "Exact memorisation, forget"


def test_nested_values_are_flattened_to_lines() -> None:
    values = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 3}]}
    assert flat(values) == {"a.b": "1", "a.c": "1 2", "d.0.e": "3"}
