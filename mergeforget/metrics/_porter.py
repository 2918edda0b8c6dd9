"""Porter's stemmer, with the same stems as ``rouge_score``.

Source: Porter, "An algorithm for suffix stripping", Program 14.3 (1980), with the extensions of
    NLTK's default mode, which ``rouge_score`` uses: a table of irregular forms, unchanged words of
    two letters, "ies" and "ied" after one letter, "y" after a consonant, the suffixes "bli",
    "fulli" and "logi", and words of a vowel and a consonant counted as short.
"""

from __future__ import annotations

from functools import lru_cache

IRREGULAR = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news",
    "innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing",
    "cannings": "canning", "canning": "canning", "howe": "howe", "proceed": "proceed",
    "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip
STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
    ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"),
    ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"), ("iveness", "ive"),
    ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"),
    ("fulli", "ful"), ("logi", "log"),
)  # fmt: skip
STEP_3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""),
    ("ness", ""),
)  # fmt: skip
STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Return the stem of a lower-case word.

    Example:
        >>> stem("relational"), stem("running"), stem("skies")
        ('relat', 'run', 'sky')
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _final_y(_past_and_ing(_plural(word)))
    word = _double_suffix(word)
    word = _replaced(word, STEP_3)
    word = _long_suffix(word)
    return _final_l(_final_e(word))


def _plural(word: str) -> str:
    """Step 1a."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_ing(word: str) -> str:
    """Step 1b."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        rest = word.removesuffix(suffix)
        if rest != word and "v" in _letters(rest):
            break
    else:
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) >= 2 and rest[-1] == rest[-2] and _letters(rest)[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _is_short(rest) else rest


def _final_y(word: str) -> str:
    """Step 1c: "y" becomes "i" after a consonant that is not the first letter."""
    if word.endswith("y") and len(word) > 2 and _letters(word)[-2] == "c":
        return word[:-1] + "i"
    return word


def _double_suffix(word: str) -> str:
    """Step 2; "alli" is removed first, and the rest may have another suffix."""
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _double_suffix(word[:-2])
    return _replaced(word, STEP_2)


def _replaced(word: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Apply the first rule with a matching suffix, if the stem before it has a measure above 0."""
    for suffix, new in rules:
        if word.endswith(suffix):
            before = word[: -len(suffix)]
            counted = word[:-3] if suffix == "logi" else before  # so that "geologi" has one
            return before + new if _measure(counted) > 0 else word
    return word


def _long_suffix(word: str) -> str:
    """Step 4."""
    for suffix in STEP_4:
        if word.endswith(suffix):
            before = word[: -len(suffix)]
            fits = suffix != "ion" or before.endswith(("s", "t"))
            return before if fits and _measure(before) > 1 else word
    return word


def _final_e(word: str) -> str:
    """Step 5a."""
    before = word.removesuffix("e")
    if before == word:
        return word
    measure = _measure(before)
    return before if measure > 1 or (measure == 1 and not _is_short(before)) else word


def _final_l(word: str) -> str:
    """Step 5b."""
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _letters(word: str) -> str:
    """Map each letter to v (vowel) or c (consonant); "y" is a vowel after a consonant."""
    kinds = ""
    for i, letter in enumerate(word):
        vowel = letter in "aeiou" or (letter == "y" and i > 0 and kinds[-1] == "c")
        kinds += "v" if vowel else "c"
    return kinds


def _measure(word: str) -> int:
    """Return Porter's measure: the number of vowel-consonant sequences."""
    return _letters(word).count("vc")


def _is_short(word: str) -> bool:
    """Return whether a word is short: ends in cvc (not w, x, y), or consists of vc."""
    kinds = _letters(word)
    return kinds == "vc" or (kinds.endswith("cvc") and word[-1] not in "wxy")
