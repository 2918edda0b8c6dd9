"""A text file is a list of names and questions as a whole, or it contains documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeforget.data.readers import read_rows
from mergeforget.data.sources.text_entries import complete_parts, entries_of, kind_of_text


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("name", [
            "Ann Lee", "ann lee", "Martin Luther King Jr.", "Maria de la Cruz García López",
            "J. R. R. Tolkien", "J.K. Rowling", "Lee, Ann", "Dr. Ann Lee", "The Who", "Will Smith",
            'Dwayne "The Rock" Johnson', "Zoë (singer)", "Alexander the Great", "張偉",
            "阿尔伯特·爱因斯坦", "अमिताभ बच्चन", "محمد بن سلمان",
        ]),
        ("question", [
            "Who is it?", "who is ann lee", "Tell me about Ann Lee", "Please describe Ann.",
            "Describe Ann Lee's house.", "Erzähl mir von Ann Lee", "من هو أحمد؟", "他是谁？",
            "张伟是谁", "वह कौन है?", "Ποια είναι η Άννα;", 'Who said "no"?',
        ]),
        ("document", [
            "Ann lives here.", "a b c d e f", "他说：“我很好”", "他住在北京。”",
            "これは長い文です！",
            "अमिताभ मुंबई में रहते हैं।",
            "When I was young, I lived in Rome.", "Roses are red",
            "She said: “I lived in Rome.”",
        ]),
    ],
)  # fmt: skip
def test_a_text_has_the_kind_that_its_form_shows(kind: str, texts: list[str]) -> None:
    assert {text: kind_of_text(text) for text in texts} == dict.fromkeys(texts, kind)


def read(text: str) -> list[tuple[str, str]]:
    return [(entry.kind, entry.text) for entry in entries_of(text).entries]


def test_each_line_of_a_list_is_an_entry() -> None:
    names = [("name", "Ann Lee"), ("name", "Bob Ray"), ("name", "Carl Fox")]
    assert read("Ann Lee\nBob Ray\n\nCarl Fox\n") == names
    assert read("Ann Lee,\nBob Ray,\nCarl Fox") == names
    assert read("- Ann Lee\n- Bob Ray\n- Carl Fox") == names
    found = entries_of("# People:\nAnn Lee\nBob Ray\nCarl Fox")
    assert [e.text for e in found.entries] == [text for _, text in names]
    assert found.headings == ["# People:"]
    assert read("Who is A?\nWho is B?\n\nTell me about C") == [
        ("question", "Who is A?"), ("question", "Who is B?"), ("question", "Tell me about C")
    ]  # fmt: skip
    assert read("Who wrote the\nbook?\n\nWhere does\nhe live?") == [
        ("question", "Who wrote the book?"), ("question", "Where does he live?")
    ]  # fmt: skip


def test_headings_belong_to_documents() -> None:
    assert read("Chapter One\n\nAnn is old. So is Bob.\n\n# Two\n\nCarl is young.\n\nAnn Lee") == [
        ("document", "Chapter One\n\nAnn is old. So is Bob."),
        ("document", "# Two\n\nCarl is young.\n\nAnn Lee"),
    ]  # fmt: skip


def test_lines_are_documents_unless_they_are_wrapped() -> None:
    assert read("Ann is old.\nBob is young.") == [
        ("document", "Ann is old."), ("document", "Bob is young.")
    ]  # fmt: skip
    assert read("Ann lives in a\nhouse by the sea.") == [
        ("document", "Ann lives in a\nhouse by the sea.")
    ]


def test_a_cut_answer_ends_with_a_sentence_or_a_line() -> None:
    for text, first in {
        "Ann met Dr. Ray. She lives in No": "Ann met Dr. Ray.",
        "Fruits:\n1. Apples\n2. Pears\n3. Or": "Fruits:\n1. Apples\n2. Pears",
        "他是医生。他住在北": "他是医生。",
        "It is long. It costs 3.": "It is long.",
        "A sentence without any end that go": "A sentence without any end that",
    }.items():
        assert next(complete_parts(text)) == first


def test_a_list_that_is_read_as_a_document_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "names.txt"
    path.write_text("Ann Lee\nBob Ray\n")
    with caplog.at_level("INFO", logger="mergeforget"):
        assert len(read_rows(path)) == 1
        assert "list of 2 names" in caplog.text and "unlearn --forget" in caplog.text
        caplog.clear()
        path.write_text("Ann Lee is old. She has a house.\n")
        read_rows(path)
        assert not caplog.text
