"""Writes number words as digits: English, German, French, Spanish, Chinese and Japanese.

Cardinals become plain digits and ordinals digits with ``th``, whatever their number: ``third`` and
``dritten`` become ``3th``. Years may be read in pairs of digits (``nineteen eighty-four``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cache, lru_cache

from mergeforget.metrics._characters import NO_SPACES

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen " \
    "fifteen sixteen seventeen eighteen nineteen".split()  # fmt: skip
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth".split()
)
_CARDINAL = {word: i for i, word in enumerate(_UNITS)}
_CARDINAL |= {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_ORDINAL = {word: i for i, word in enumerate(_ORDINALS, 1)}
_ORDINAL |= {f"{word[:-1]}ieth": 20 + 10 * i for i, word in enumerate(_TENS)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_DE_UNITS = "null ein zwei drei vier fuenf sechs sieben acht neun zehn elf zwoelf dreizehn " \
    "vierzehn fuenfzehn sechzehn siebzehn achtzehn neunzehn".split()  # fmt: skip
_DE_TENS = "zwanzig dreissig vierzig fuenfzig sechzig siebzig achtzig neunzig".split()
_FR_UNITS = "zero un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze " \
    "quinze seize".split()  # fmt: skip
_FR_TENS = {20: "vingt", 30: "trente", 40: "quarante", 50: "cinquante", 60: "soixante"}
_ES_UNITS = "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce " \
    "quince dieciseis diecisiete dieciocho diecinueve veinte veintiuno veintidos veintitres " \
    "veinticuatro veinticinco veintiseis veintisiete veintiocho veintinueve".split()  # fmt: skip
_ES_TENS = {30: "treinta", 40: "cuarenta", 50: "cincuenta", 60: "sesenta", 70: "setenta",
            80: "ochenta", 90: "noventa"}  # fmt: skip
_ES_HUNDREDS = "x ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos " \
    "ochocientos novecientos".split()  # fmt: skip
HIGHEST = 2999  # in German, French and Spanish
ONES = frozenset("one un une uno una ein eine eins".split())  # numbers only as a whole text
AMBIGUOUS = frozenset("once elf cent cents mil mille sept null seize".split())  # alone no numbers
_TOKEN = re.compile(r"(?<!\d)[^\W\d_]+")
_GAP = re.compile(r"\s?-\s?|\s+")  # between the words of one number
_ACCENTS = str.maketrans("áéíóúñèêûàç", "aeiouneeuac")
LONGEST = 9  # words of a number
_HAN_DIGIT = dict(zip("〇零一二三四五六七八九两兩",
                      (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 2), strict=True))  # fmt: skip
_HAN_UNIT = {"十": 10, "百": 100, "千": 1000}  # ten, hundred, thousand
_HAN_SCALE = {"万": 10**4, "萬": 10**4, "億": 10**8, "亿": 10**8}
_HAN = "".join((*_HAN_DIGIT, *_HAN_UNIT, *_HAN_SCALE))
_SCALES_OF_HAN = "".join(_HAN_SCALE)
_COUNTED = "年月日号號岁歲歳才元円圓圆块塊時时点點人个個名"
_HAN_NUMBER = re.compile(  # before what it counts, or on its own: 三 is also a part of names
    rf"(?<![{_HAN}\d])(?!一[人个個名])(?:[{_HAN}]+(?=[{_COUNTED}])"
    rf"|(?<![{NO_SPACES}])[{_HAN}]+(?:(?![{NO_SPACES}])|(?=です))"
    rf"|\d+(?:\.\d+)?[{_SCALES_OF_HAN}](?:\d+[{_SCALES_OF_HAN}]?|[{_HAN}])*)"
)
_BEFORE_ERA = {"明治": 1867, "大正": 1911, "昭和": 1925, "平成": 1988, "令和": 2018}  # of Japan
_ERA = re.compile(rf"({'|'.join(_BEFORE_ERA)})\s?(元|\d{{1,2}})\s?(?=年)")


@lru_cache(maxsize=1 << 14)
def with_digits(text: str) -> str:
    """Write the number words of a text as digits.

    Args:
        text: Text with umlauts as ``ae``, ``oe``, ``ue``.

    >>> with_digits("the twenty-third of May, nineteen eighty-four")
    'the 23th of May, 1984'
    >>> with_digits("Sie ist dreiundzwanzig und hat zwei von tausend.")
    'Sie ist 23 und hat 2 von 1000.'
    >>> with_digits("one of them"), with_digits("one")
    ('one of them', '1')
    """
    tokens = list(_TOKEN.finditer(text))
    known = _first_words()
    lower = [token[0].casefold().translate(_ACCENTS) for token in tokens]
    places = [i for i, word in enumerate(lower) if word in known]
    words_out, end, after = [], 0, 0
    for i in places:
        scaled = (
            lower[i] in (*_SCALES, "hundred") and text[: tokens[i].start()].rstrip()[-1:].isdigit()
        )
        if i < after or scaled:  # 3 million
            continue
        last = i + 1
        while last < min(len(tokens), i + LONGEST) and _GAP.fullmatch(
            text, tokens[last - 1].end(), tokens[last].start()
        ):
            last += 1
        words = lower[i:last]
        number = _number(words)
        alone = number is not None and number[1] == 1
        if number is None or (
            alone and (words[0] in AMBIGUOUS or (words[0] in ONES and len(tokens) > 1))
        ):
            continue
        after = i + number[1]
        words_out += [text[end : tokens[i].start()], number[0]]
        end = tokens[after - 1].end()
    return "".join([*words_out, text[end:]]) if words_out else text


def with_han_digits(text: str) -> str:
    """Write the numbers and Japanese eras of a Chinese or Japanese text as digits.

    >>> with_han_digits("一九九〇年三月四日, 平成2年, 四十二歳, 5.43万元")
    '1990年3月4日, 1990年, 42歳, 54300元'
    """
    if text.isascii():
        return text
    text = _HAN_NUMBER.sub(lambda match: _han_value(match[0]), text)
    return _ERA.sub(lambda m: str(_BEFORE_ERA[m[1]] + (1 if m[2] == "元" else int(m[2]))), text)


def _han_value(number: str) -> str:
    """Return the digits of a Chinese or Japanese number: digit by digit, or with its units."""
    if not set(number) & {*_HAN_UNIT, *_HAN_SCALE}:
        return "".join(str(_HAN_DIGIT[sign]) for sign in number)
    total = group = Decimal(0)
    value = None
    for sign in re.findall(r"\d+(?:\.\d+)?|\D", number):
        if sign in _HAN_UNIT:
            group += (1 if value is None else value) * _HAN_UNIT[sign]
            value = None
        elif sign in _HAN_SCALE:
            total += (group + (value or 0) or 1) * _HAN_SCALE[sign]
            group, value = Decimal(0), None
        else:
            value = Decimal(_HAN_DIGIT.get(sign, sign))
    total += group + (value or 0)
    return f"{total.normalize():f}" if total == int(total) else number


def _number(words: Sequence[str]) -> tuple[str, int] | None:
    """Return the number at the start of adjacent words, and how many words it has."""
    found = _english(words)
    phrases = _phrases()
    for n in range(min(len(words), LONGEST), found[1] if found else 0, -1):
        if value := phrases.get(" ".join(words[:n])):
            return value, n
    return found


def _english(words: Sequence[str]) -> tuple[str, int] | None:
    """Return an English number at the start of adjacent words."""
    value, used, ordinal = _read(words)
    if not used:
        return None
    rest = words[used:]
    if 10 <= value <= 21 and not ordinal and rest:  # a year: nineteen eighty-four, nineteen oh five
        if rest[0] in ("oh", "o", "zero") and 0 < _CARDINAL.get("".join(rest[1:2]), 0) < 10:
            value, used = 100 * value + _CARDINAL[rest[1]], used + 2
        else:
            pair, more, _ = _read(rest)
            if 10 <= pair <= 99 and rest[0] in _CARDINAL:
                value, used = 100 * value + pair, used + more
    return f"{value}{'th' if ordinal else ''}", used


def _read(words: Sequence[str]) -> tuple[int, int, bool]:
    """Return a value, how many words it has (0 without a number), and whether it is an ordinal."""
    total, group, used, scale = 0, -1, 0, 10**12  # group: the part below a thousand, -1 for none
    for k, word in enumerate(words):
        plain = word.removesuffix("th") if word in ("hundredth", "thousandth") else word
        ordinal = word in _ORDINAL or plain != word
        value = _CARDINAL.get(word, _ORDINAL.get(word))
        if word == "and" and used == k and k and (group < 0 or group % 100 == 0):
            continue  # one hundred and five
        if value is not None and (used == k or words[k - 1] == "and"):
            if group < 0:
                group = value
            elif value and (
                (group >= 100 and group % 100 == 0)
                or (group % 100 >= 20 and group % 10 == 0 and value < 10)
            ):
                group += value
            else:
                break
        elif plain == "hundred" and (group < 0 or 0 < group < 100):
            group = 100 * abs(group)
        elif plain in _SCALES and _SCALES[plain] < scale and group:
            scale = _SCALES[plain]
            total, group = total + abs(group) * scale, -1
        else:
            break
        used = k + 1
        if ordinal:
            return total + max(0, group), used, True
    return total + max(0, group), used, False


@cache
def _first_words() -> frozenset[str]:
    """Return all words with which a number begins."""
    english = {*_CARDINAL, *_ORDINAL, *_SCALES, "hundred", "hundredth", "thousandth"}
    return frozenset(english | {phrase.split()[0] for phrase in _phrases()})


@cache
def _phrases() -> dict[str, str]:
    """Return the numbers of the other languages by their words, with a space for each hyphen."""
    phrases: dict[str, str] = {}
    for n in range(HIGHEST + 1):
        phrases[_spanish(n)] = str(n)
        phrases |= dict.fromkeys(_french(n), str(n))
        for word in _german(n):
            for spelling in {word, word.replace("ue", "u").replace("oe", "o")}:
                phrases[spelling] = str(n)
                if n < 100:
                    phrases |= dict.fromkeys(_german_ordinals(spelling, n), f"{n}th")
    phrases |= {"premier": "1th", "primero": "1th", "cien": "100"}
    return phrases


def _german(n: int) -> Iterator[str]:
    """Yield the words for a number; years may count hundreds."""
    if n < 20:
        yield _DE_UNITS[n]
        if n == 1:
            yield "eins"
    elif n < 100:
        tens, unit = _DE_TENS[n // 10 - 2], n % 10
        yield f"{_DE_UNITS[unit]}und{tens}" if unit else tens
    elif n < 2000:
        hundreds, rest = divmod(n, 100)
        front = [f"{_DE_UNITS[hundreds]}hundert"] if hundreds != 10 else []
        front += ["hundert"] if hundreds == 1 else []
        thousand = [f"{one}tausend" for one in ("ein", "")] if n >= 1000 else []
        if n >= 1000:
            front += [f"{one}{_DE_UNITS[hundreds - 10]}hundert" if hundreds > 10 else one
                      for one in thousand]  # fmt: skip
        for start in front:
            yield from (start + end for end in (_german(rest) if rest else [""]))
    else:
        thousands, rest = divmod(n, 1000)
        start = f"{_DE_UNITS[thousands]}tausend"
        yield from (start + end for end in (_german(rest) if rest else [""]))


def _german_ordinals(word: str, n: int) -> Iterator[str]:
    irregular = {1: "erst", 3: "dritt", 7: "siebt", 8: "acht"}
    stem = irregular.get(n, f"{word}{'t' if n < 20 else 'st'}")
    return (f"{stem}{end}" for end in ("e", "en", "er", "es", "em"))


def _french(n: int) -> list[str]:
    """Return the words for a number, with and without the plural of ``vingt`` and ``cent``."""
    if n < 17:
        return [_FR_UNITS[n]]
    if n < 20:
        return [f"dix {_FR_UNITS[n - 10]}"]
    if n < 70:
        tens, unit = _FR_TENS[n // 10 * 10], n % 10
        joint = " et " if unit == 1 else " "
        return [f"{tens}{joint}{_FR_UNITS[unit]}" if unit else tens]
    if n < 80:
        joint = " et " if n == 71 else " "
        return [f"soixante{joint}{end}" for end in _french(n - 60)]
    if n < 100:
        ends = _french(n - 80) if n > 80 else []
        return [f"quatre vingt {end}" for end in ends] or ["quatre vingts", "quatre vingt"]
    size, name = (1000, "mille") if n >= 1000 else (100, "cent")
    many, rest = divmod(n, size)
    start = name if many == 1 else f"{_FR_UNITS[many]} {name}"
    if not rest:
        return [start, f"{start}s"] if name == "cent" else [start]
    return [f"{start} {end}" for end in _french(rest)]


def _spanish(n: int) -> str:
    if n < 30:
        return _ES_UNITS[n]
    if n < 100:
        tens, unit = _ES_TENS[n // 10 * 10], n % 10
        return f"{tens} y {_ES_UNITS[unit]}" if unit else tens
    size = 1000 if n >= 1000 else 100
    many, rest = divmod(n, size)
    start = _ES_HUNDREDS[many] if size == 100 else f"{_ES_UNITS[many]} mil".removeprefix("uno ")
    return f"{start} {_spanish(rest)}" if rest else start
