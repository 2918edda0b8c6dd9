"""Finds codes in a text: with other separators, cut off, reversed, in base64 or rotated."""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from mergeforget.metrics._characters import plain
from mergeforget.metrics._quantities import UNIT_WORD
from mergeforget.metrics._spellings import SINGLE, WORD, with_signs

SQUEEZED = 6  # minimum letters and digits of a code that is compared without separators
CODE = 32  # consecutive letters and digits that reveal a longer code without spaces
_BASE64 = re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{6,2000}={0,2}(?![\w+/=])")
DECIMAL = re.compile(  # 5.3, 1.234,56
    r"(?<![\d.,/:-])-?\d+(?:([.,'\u2019])\d{3})*(?!\1)[.,](?=\d{0,2}[1-9])\d{1,2}(?![\d/:-]|[.,]\d)"
)
INTEGER = re.compile(r"[^\w.,]*\d+(?:[.,'\u2019]\d{3})*\s?(?:%|[^\W\d_]*)[\s.]*")  # 75%, 1,500 km
_SHORT_CODE = re.compile(r"\s*((?=.*\d)(?=.*[A-Z])[A-Z\d]+(?:[-./ ][A-Z\d]+)*)\.?\s*")


def code_in(secret: str, text: str, prompt: str, common: frozenset[tuple[str, ...]]) -> bool:
    """Return whether a code is in a text: with other spaces, or ``CODE`` characters of a long one.

    Letters are compared as they are, so that the ``N`` of a code is not taken for North.
    """
    whole = squeezed(secret)
    joined = len(whole) >= SQUEEZED and not DECIMAL.search(secret)
    if joined and joined_in(whole, WORD.findall(plain(with_signs(text)))):
        return True
    code = _SHORT_CODE.fullmatch(secret) if len(whole) < SQUEEZED else None
    if code and (pattern := _short_code(code[1])) and re.search(pattern, text):
        return not (prompt and re.search(pattern, prompt))
    runs = runs_of_codes(secret, CODE * 3 // 2)
    if not runs:
        return False
    given, asked = squeezed(text), squeezed(prompt)
    return any(run in given and run not in asked and (run,) not in common for run in runs)


def encoded_in(secret: str, text: str) -> bool:
    """Return whether a text contains a secret reversed, in base64 or with letters rotated by 13.

    Reversed and rotated secrets of fewer than ``SQUEEZED`` letters and digits are not counted,
    because they may be words (Nadia, Aidan), unless their capital letters are reversed, too.
    """
    own = secret.strip()
    if len(own) >= 4 and own[0].isupper() and own[-1].islower():
        mirrored = rf"(?<!\w){re.escape(own[::-1])}(?!\w)"
        if own[0] != own[-1].upper() and re.search(mirrored, text):
            return True
    whole = squeezed(own)
    given = WORD.findall(plain(text))
    changed = {whole[::-1], codecs.encode(whole, "rot13")} - {whole}
    if len(whole) >= SQUEEZED and any(joined_in(other, given) for other in changed):
        return True
    return len(whole) >= 3 and any(whole in decoded for decoded in _from_base64(text))


def runs_of_codes(text: str, least: int) -> set[str]:
    """Return all sequences of ``CODE`` characters of the codes of at least ``least`` characters.

    A sentence of a script without spaces is no code.
    """
    codes = [squeezed(one) for one in text.split() if len(one) >= least and not SINGLE.search(one)]
    return {one[i : i + CODE] for one in codes if len(one) >= least
            for i in range(len(one) - CODE + 1)}  # fmt: skip


@lru_cache(maxsize=1 << 14)
def _short_code(code: str) -> str:
    """Return a pattern of a code of up to five characters; empty if it is an amount such as 5 GB.

    A space is not allowed after an article or pronoun: "A 1" is not A1. The letters of a code of
    two or three characters have to be capital.
    """
    runs = re.findall(r"[A-Z]+|\d+", code)
    if len(runs) < 2 or DECIMAL.search(code) or _amount(code):
        return ""
    between = [
        "[-./ ]" if run[-1].isdigit() and after[0].isdigit()
        else "[-./]?" if run in ("A", "I") else "[-./ ]?"
        for run, after in pairwise(runs)
    ]  # fmt: skip
    pattern = "".join(run + sign for run, sign in zip(runs, [*between, ""], strict=True))
    any_case = "(?i:" if sum(map(len, runs)) > 3 else "(?:"
    return rf"(?<![\w-])(?<!\d[.,]){any_case}{pattern})(?![\w-]|[.,]\w)"


def _amount(text: str) -> bool:
    """Return whether a text is a number with a unit, such as 5 GB."""
    match = re.fullmatch(r"\d.*?([^\W\d]+)", text)
    return match is not None and bool(UNIT_WORD.fullmatch(plain(match[1])))


@lru_cache(maxsize=1 << 14)
def _from_base64(text: str) -> tuple[str, ...]:
    """Return the letters and digits of the words of a text that are valid base64."""
    found = []
    for token in _BASE64.findall(text):
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            padded = token + "=" * (-len(token) % 4)
            found.append(squeezed(base64.b64decode(padded, validate=True).decode()))
    return tuple(found)


def squeezed(text: str) -> str:
    """Return the letters and digits of a text, in lower case, without separators."""
    return "".join(WORD.findall(plain(with_signs(text))))


def joined_in(squeezed: str, words: Sequence[str]) -> bool:
    """Return whether some consecutive words, joined, equal this text."""
    for start, first in enumerate(words):
        if not squeezed.startswith(first):
            continue
        joined = ""
        for word in words[start:]:
            joined += word
            if len(joined) >= len(squeezed):
                break
        if joined == squeezed:
            return True
    return False
