"""Names of people in texts."""

from __future__ import annotations

import pytest

from mergeforget.data.names import names_in


def test_words_that_occur_in_lower_case_are_not_names() -> None:
    assert names_in("Birth Date of Ann Lee", frozenset({"birth", "date"})) == ["Ann Lee"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Where does Mr. O'Brien live?", ["O'Brien"]),
        ("Wo wohnt Frau Dr. Anna Schmidt?", ["Anna Schmidt"]),
        ("Où habite Mme Dubois ?", ["Dubois"]),
        ("¿Dónde vive la Sra. García López?", ["García López"]),
        ("Is Don José Núñez or Don Draper here?", ["José Núñez", "Don Draper"]),
        ("What is Sammy Davis Jr.'s age?", ["Sammy Davis"]),
        ("Quelle est l'adresse d'Anna Dupont ?", ["Anna Dupont"]),
        ("L'adresse de Élodie Örn", ["Élodie Örn"]),
        ("Who is J. K. Rowling?", ["J. K. Rowling"]),
        ("Где живёт Анна Иванова?", ["Анна Иванова"]),
        ("What's Ann Lee's café, iPhone?", ["Ann Lee"]),
        ("李明的电话号码是多少？ متى ولد أحمد؟", []),
    ],
)  # fmt: skip
def test_names_have_upper_case_and_no_title_or_ending(text: str, names: list[str]) -> None:
    assert names_in(text) == names
