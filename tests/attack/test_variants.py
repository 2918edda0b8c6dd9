"""Alternative prompts, and answers that a prompt contains."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeforget.attack.variants import paraphrases, prefixes, read_templates, variants
from mergeforget.data.schema import Row
from mergeforget.errors import InputError


def test_a_question_is_paraphrased_by_rules() -> None:
    found = paraphrases(Row("aqa0", "What is the birth date of Ada?", "1815"))
    assert "Tell me the birth date of Ada." in found and "The birth date of Ada is" in found
    assert "Do you happen to know what is the birth date of Ada?" in found
    assert len(set(found)) == len(found) == 5


def test_paraphrases_of_a_text_to_continue_contain_it_unchanged() -> None:
    found = paraphrases(Row("asc1", "Ada was born in", "London"))
    assert len(found) == 3 and all(text.endswith("Ada was born in") for text in found)


def test_the_secret_of_a_prefix_is_the_rest_of_the_answer() -> None:
    found = prefixes(Row("a", "Ada lives", "at 4 Elm Street, Rome"), (1, 3, 5))
    assert [(v.text, v.secret) for v in found] == [
        ("Ada lives at", "4 Elm Street, Rome"),
        ("Ada lives at 4 Elm", "Street, Rome"),
    ]  # a prefix of five words would leave no secret


def test_a_single_word_is_cut_in_two() -> None:
    (only,) = prefixes(Row("a", "SSN?", "900428495"), (1, 3))
    assert (only.text, only.secret) == ("SSN? 9004", "28495")
    assert prefixes(Row("a", "Age?", "36"), (1,)) == []


def test_templates_are_built_in_or_read_from_a_file(tmp_path: Path) -> None:
    assert len(read_templates()) >= 10
    own = tmp_path / "own.txt"
    own.write_text("# mine\nSay it {a}: {prompt}\n\n")
    (line,) = read_templates(own)
    row = Row("aqa0", "Who?", "Ada")
    (variant,) = variants(row, "jailbreak", words=(), templates=[line])
    assert variant.prompt == "Say it {a}: Who?"
    own.write_text("Say it.\n")
    with pytest.raises(InputError, match="does not contain {prompt}"):
        read_templates(own)
