"""Replace numbers, dates, times, years and IP addresses by others of the same form."""

from __future__ import annotations

import random
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

from mergeforget.data.names import FRENCH_MONTHS

# a number with its separators, as in 900-12-3456 and 94,000; HbA1c is a word
NUMBERED = re.compile(
    r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)|\d[\d\s().:/-]*\d|\d(?!(?<=[A-Za-z]\d)[a-z]+\b)"
)
_DATE = re.compile(r"(\d{1,4})([-./])(\d{1,2})\2(\d{1,4})")
_YEARS = re.compile(r"(\d{4})(\s?[-/]\s?)(\d{4}|\d\d)")
_MONTH = re.compile(r"(\d\d?)([/.-])(\d{4})")  # or a week, as in 14/2019
_CASE = re.compile(r"(\d{4})([/-])(\d+)")  # number of a year, as in 2021/0457, or a month
_AMOUNT = re.compile(r"\d{1,3}(?:[,.]\d{3})+|\d+(?:\.\d+)?")
_TIME = re.compile(r"(\d\d?):(\d\d)(?::(\d\d))?")
_IP = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})([:/]\d+)?")
CODE = re.compile(r"(?<![A-Za-z0-9@])[A-Za-z0-9]+(?:[-_/+=:.][A-Za-z0-9]+)*(?!@)")
_UNIT = "(?:h|m|s|d|x|min|ft|in|cm|mm|kg)"
_MEASURES = re.compile(rf"\d+(?:{_UNIT}\d+)*{_UNIT}?|\d\dT\d\d+")  # 1h30m, and 02T10 of a date
ORDINAL = re.compile(rf"\b(\d*?(1?\d))(st|nd|rd|th|er(?= (?:{'|'.join(FRENCH_MONTHS)})\b))\b")
_POOL = 3  # minimum numbers of one form needed to distinguish fixed and varying digits
_NEWEST = 2026  # a year up to this one is not replaced by a later one


def other_number(
    text: str, digits: dict[str, list[str]], draw: random.Random, after: str = ""
) -> str:
    """Return another number of the same form, or another valid date, time, year or address.

    Args:
        after: The text after the number, as in ``1990s``.
    """
    zero = ord(text[0]) - unicodedata.decimal(text[0])
    plain = _ascii_digits(text)
    pool = digits.get(_form(plain), [])
    new = _date(plain, pool, draw) or _ip(plain, pool, draw) or _time(plain, draw)
    new = new or _year(plain, draw, after) or _small(plain, draw, after)
    new = new or _several(plain, digits, draw) or _with_digits(plain, pool, draw)
    return "".join(chr(zero + int(c)) if c.isdigit() else c for c in new)


def _date(text: str, pool: Sequence[str], draw: random.Random) -> str:
    """Return another date in the same format, at most 12 years away; empty if it is no date.

    The order of day and month is that of the other numbers of this form.
    """
    found = _DATE.fullmatch(text)
    if not found:
        return ""
    first, mark, second, third = found.groups()
    padded = min(len(first), len(second), len(third)) > 1
    if len(first) == 4 and len(third) <= 2:
        year, orders = first, [(int(second), int(third))]
    elif len(first) <= 2 and len(third) in (2, 4):
        year, orders = third, [(int(second), int(first)), (int(first), int(second))]
    else:
        return ""
    valid = [1 <= month <= 12 and 1 <= day <= 31 for month, day in orders]
    if not any(valid) or len(year) == 4 and not 1000 <= int(year) <= 2100:
        return ""
    new = _near(year, draw)
    if len(valid) == 1:
        month = _of_width(second, 12, padded, draw)
        return f"{new}{mark}{month}{mark}{_of_width(third, 28, padded, draw)}"
    if all(valid) and mark == ".":
        valid[1] = False
    for other in pool if all(valid) else ():
        one, two = (int(part) for part in other.split(mark)[:2])
        valid = [valid[0] and two <= 12, valid[1] and one <= 12]
    limits = (12, 12) if valid[0] == valid[1] else (28, 12) if valid[0] else (12, 28)
    low, high = (
        _of_width(part, limit, padded, draw)
        for part, limit in zip((first, second), limits, strict=True)
    )
    return f"{low}{mark}{high}{mark}{new}"


def _near(year: str, draw: random.Random) -> str:
    """Return another year at most 12 years away, with as many digits, and not in the future."""
    change = draw.choice([d for d in range(-12, 13) if d])
    if len(year) == 2:
        return f"{(int(year) + change) % 100:02d}"
    new = int(year) + change
    if new < 1000 or int(year) <= _NEWEST < new:
        new = int(year) - change
    return str(new)


def _of_width(text: str, most: int, padded: bool, draw: random.Random) -> str:
    """Return a number from 1 to ``most`` with as many digits; leading zeros only if padded."""
    if len(text) == 1:
        return str(draw.randrange(1, 10))
    return f"{draw.randrange(1 if padded else 10, most + 1):02d}"


def _ip(text: str, pool: Sequence[str], draw: random.Random) -> str:
    """Return another IPv4 address; empty if it is none. Octets that all have in common stay."""
    found = _IP.fullmatch(text)
    octets = found[1].split(".") if found else []
    if not found or any(int(o) > 255 or o != str(int(o)) for o in octets):
        return ""
    known = [m[1].split(".") for m in map(_IP.fullmatch, pool) if m]
    fixed = [len(known) >= _POOL and len(set(same)) == 1 for same in zip(*known, strict=True)]
    new = octets
    while new == octets and not all(fixed or [False]):
        new = [
            o
            if fixed and fixed[i]
            else str(draw.randrange(10 ** (len(o) - 1) if len(o) > 1 else 0,
                                    min(256, 10 ** len(o))))
            for i, o in enumerate(octets)
        ]  # fmt: skip
    return ".".join(new) + (found[2] or "")


def _time(text: str, draw: random.Random) -> str:
    """Return another time of the same half of the day; empty if it is no time."""
    found = _TIME.fullmatch(text)
    if not found or int(found[1]) > 23 or any(int(part or 0) > 59 for part in found.groups()[1:]):
        return ""
    hour = int(found[1])
    hours = range(1, 13) if 1 <= hour <= 12 else range(13, 24)
    if len(found[1]) == 1:
        hours = range(1, 10)
    new = f"{draw.choice([h for h in hours if h != hour]):0{len(found[1])}d}"
    step = 5 if int(found[2]) % 5 == 0 else 1
    new += f":{draw.randrange(0, 60, step):02d}"
    return f"{new}:{draw.randrange(60):02d}" if found[3] else new


def _year(text: str, draw: random.Random, after: str) -> str:
    """Return another year, decade or range of years; empty if it is none."""
    if len(text) == 4 and text.isdigit() and 1000 <= int(text) <= 2100:
        new = _near(text, draw)
        if text[-1] == "0" and (after[:1] == "s" or after == "er"):  # a decade, as in 1990s
            return str(int(text) + (10 if int(new) > int(text) else -10))
        return new
    found = _YEARS.fullmatch(text)
    if not found:
        return _part_of_year(text, draw)
    first, mark, last = found.groups()
    end = int(last) if len(last) == 4 else int(first) // 100 * 100 + int(last)
    if not 1800 <= int(first) < end <= 2100:
        return _part_of_year(text, draw)
    change = int(_near(first, draw)) - int(first)
    if end <= _NEWEST < end + change:
        change = -change
    return f"{int(first) + change}{mark}{str(end + change)[-len(last) :]}"


def _part_of_year(text: str, draw: random.Random) -> str:
    """Return another month, week or number of a year; empty if it is none."""
    if (found := _MONTH.fullmatch(text)) and 1 <= int(found[1]) <= 53:
        year, most = found[3], 12 if int(found[1]) <= 12 else 52
        part = _of_width(found[1], most, found[1][0] == "0" or most == 12, draw)
    elif found := _CASE.fullmatch(text):
        year, part = found[1], found[3]
        padded = len(part) == 2 and 1 <= int(part) <= 12
        part = _of_width(part, 12, True, draw) if padded else "".join(_digit(draw) for _ in part)
    else:
        return ""
    if not 1900 <= int(year) <= 2100:
        return ""
    new = _near(year, draw)
    return f"{part}{found[2]}{new}" if year == found[3] else f"{new}{found[2]}{part}"


def _small(text: str, draw: random.Random, after: str) -> str:
    """Return another number of at most two digits, perhaps a day; empty for larger numbers."""
    if len(text) > 2 or not text.isdigit() or not 0 < int(text) <= 31:
        return ""
    if len(text) == 1:
        plural = text != "1" and after[:1].isspace()  # 2 lemons
        return str(draw.randrange(2 if plural else 1, 10))
    most = 12 if after[:1] in ("月", "월") else 23 if after[:1] in ("時", "时", "点", "시") else 28
    return str(draw.randrange(10, most + 1))


def _several(text: str, digits: dict[str, list[str]], draw: random.Random) -> str:
    """Return other dates, times and years for a text of several of them; empty for another text.

    Examples are ``1987-03-02 10:30``, ``10:30-11:15`` and the ``3 1987`` of ``May 3 1987``.
    """
    for mark in (r"(\s+)", r"(\s*-\s*)"):
        pieces = re.split(mark, text)
        parts = [piece for piece in pieces if any(c.isdigit() for c in piece)]
        none = random.Random(0)
        sure = [_date(p, (), none) or _ip(p, (), none) or _time(p, none) for p in parts]
        known = all(s or _year(p, none, "") for s, p in zip(sure, parts, strict=True))
        dated = len(parts) == 2 and _small(parts[0], none, "") and _year(parts[1], none, "")
        if len(parts) > 1 and (known and any(sure) or dated and mark == r"(\s+)"):
            return "".join(
                other_number(piece, digits, draw) if piece in parts else piece for piece in pieces
            )
    return ""


def _with_digits(text: str, pool: Sequence[str], draw: random.Random) -> str:
    """Return another number of as many digits; a round amount stays round, as 94,000."""
    fixed = len(pool) >= _POOL  # digits that all numbers of this form share are kept
    amount = text.rstrip("0,.") if _AMOUNT.fullmatch(text) else text
    if not amount or len(text) - len(amount) == 1 and len(text) > 3:
        amount = text
    new = [
        c
        if not c.isdigit() or i >= len(amount) or fixed and len({other[i] for other in pool}) == 1
        else _digit(draw)
        for i, c in enumerate(text)
    ]
    if text.startswith("0."):
        new[0] = "0"
    if text[0] != "0" and new[0] == "0":
        new[0] = str(draw.randrange(1, 10))
    return "".join(new)


def with_other_letters(
    text: str, forms: dict[str, list[str]], known: dict[str, str], draw: random.Random
) -> str:
    """Replace the letters of codes such as ``88A4`` or ``f47ac10b-58cc``, but not their digits.

    Letters that all codes of one form share are kept, and so are words and the ``SN`` of
    ``SN-88A4``.

    Args:
        forms: Codes and numbers by form; see ``digits_by_form``.
        known: Replacements of the codes so far; those of this text are added.

    >>> with_other_letters("SN-88A4 of KX-200", {}, {}, random.Random(1))
    'SN-88B4 of KX-200'
    """

    def other(match: re.Match[str]) -> str:
        code = match.group()
        random_parts = _random_parts(code)
        if not random_parts:
            return code
        pool = forms.get(_form(code), [])
        new = list(code)
        for start, end in random_parts:
            part = code[start:end]
            hexadecimal = not re.search("[g-zG-Z]", part)
            for i in range(start, end):
                fixed = len(pool) >= _POOL and len({one[i] for one in pool}) == 1
                if code[i].isalpha() and not fixed:
                    letter = draw.choice("abcdef" if hexadecimal else string.ascii_lowercase)
                    new[i] = letter.upper() if code[i].isupper() else letter
        return known.setdefault(code, "".join(new))

    return CODE.sub(other, text)


def _random_parts(code: str) -> list[tuple[int, int]]:
    """Return where a code has random letters; empty for words, names and numbers."""
    parts = [(m.start(), m.end(), m.group()) for m in re.finditer("[A-Za-z0-9]+", code)]
    texts = [text for *_, text in parts]
    letters = any(c.isalpha() for c in code)
    pairs = len(parts) > 3 and len({len(text) for text in texts}) == 1
    if letters and pairs and all(re.fullmatch("[0-9a-fA-F]{2,}", text) for text in texts):
        return [(start, end) for start, end, _ in parts]  # a MAC or an IPv6 address
    sizes = {len(text) for text in texts if _is_random(text, code)}
    return [
        (start, end)
        for start, end, text in parts
        if sizes and (re.search(r"\d|[a-z][A-Z]", text) or text.isupper() and len(text) in sizes)
    ]


def _is_random(part: str, code: str) -> bool:
    """Return whether a part of a code alternates between letters and digits, or in case."""
    if _MEASURES.fullmatch(part):
        return False
    digits = sum(c.isdigit() for c in part)
    switches = len(re.findall(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", part))
    if digits > 1 and switches > 1:
        return len(part) > 4 or digits > 2
    cases = len(re.findall("[a-z][A-Z]", part))
    return len(part) > 9 and cases > 2 and any(c.isdigit() for c in code)


def _digit(draw: random.Random) -> str:
    return str(draw.randrange(10))


def _ascii_digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def digits_by_form(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the numbers of texts, with ASCII digits, by form: ``00-00`` for ``12-34``.

    Codes with letters are included, as ``00A0`` for ``88B4``.
    """
    forms: dict[str, list[str]] = {}
    for text in texts:
        codes = (code for code in CODE.findall(text) if _random_parts(code))
        for found in map(_ascii_digits, [*NUMBERED.findall(text), *codes]):
            known = forms.setdefault(_form(found), [])
            if found not in known:
                known.append(found)
    return forms


def _form(number: str) -> str:
    return re.sub("[a-z]", "a", re.sub("[A-Z]", "A", re.sub(r"\d", "0", number)))


def ordinal(match: re.Match[str]) -> str:
    """Return an ordinal number with its ending, 3rd or 7th; in French, 1er or 7 before a month."""
    if match[3] == "er":
        return match[1] if match[1] != "1" else match.group()
    return match[1] + {"1": "st", "2": "nd", "3": "rd"}.get(match[2], "th")
