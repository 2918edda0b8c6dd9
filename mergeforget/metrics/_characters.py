"""Unifies the characters of a text: invisible ones, look-alikes, markup and escape sequences."""

from __future__ import annotations

import html
import re
import unicodedata
from itertools import groupby
from urllib.parse import unquote

NO_SPACES = (  # scripts without spaces, or (Hangul) with particles; for a character class
    r"\uac00-\ud7a3\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    r"\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff"
)
LETTER = rf"[^\W{NO_SPACES}]"  # of a script with spaces, or a digit or underscore


def _class_of_marks() -> str:
    """Return all marks, such as the vowel signs of Hindi and Thai, as ranges of a class."""
    marks = (c for c in range(0x300, 0x11A00) if unicodedata.category(chr(c))[0] == "M")
    runs = (list(run) for _, run in groupby(enumerate(marks), lambda one: one[1] - one[0]))
    return "".join(rf"\U{run[0][1]:08x}-\U{run[-1][1]:08x}" for run in runs)


MARKS = _class_of_marks()  # for a character class; they continue a word
_DIACRITICS = re.compile(  # of Latin, Greek, Cyrillic, Hebrew, Arabic, Syriac; in Hindi, of q and z
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a"
    "\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0711\u0730-\u074a"
    "\u08d3-\u08e1\u08e3-\u08ff\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20f0\ufe20-\ufe2f]"
    "|(?<=[\u0915-\u0917\u091c\u092b])\u093c"
)
UMLAUTS = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "æ": "ae", "Ä": "Ae", "Ö": "Oe",
     "Ü": "Ue", "Ø": "Oe", "Å": "Aa", "Æ": "Ae"}
)  # fmt: skip
LOOK_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u051b\u051d"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u03b1\u03bf\u03c1\u03bd\u03b9\u03ba\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1"
    "\u03a4\u03a5\u03a7\u0131\u0261"
    "\u1d00\u0299\u1d04\u1d05\u1d07\ua730\u0262\u029c\u026a\u1d0a\u1d0b\u029f\u1d0d\u0274\u1d0f\u1d18"
    "\u0280\ua731\u1d1b\u1d1c\u1d20\u1d21\u028f\u1d22",
    "aeopcyxijsdhqwABEKMHOPCTYXIJSaopvikABEZHIKMNOPTYXigabcdefghijklmnoprstuvwyz",
)  # Cyrillic and Greek letters that look like Latin ones, and small capitals
_BASE_LETTER = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ı": "i", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th",
     "\u0901": "\u0902"}
)  # fmt: skip  # letters that Unicode does not decompose, and two signs of one sound in Hindi
_HIDDEN = re.compile("[\u0640\u034f\u115f\u1160\u3164\uffa0\u180b-\u180d\ufe00-\ufe0f\u2800]")
_APOSTROPHES = str.maketrans(dict.fromkeys("\u02b9\u02bb\u02bc\u02bd\u02c8\uff07\u00b4", "'"))
_MATHS = re.compile(r"(?<![\w$])\$(\$?\d[\d.,]{0,20})\$(?!\d)")  # $4$ March
_FRACTIONS = str.maketrans({"½": " 1/2", "¼": " 1/4", "¾": " 3/4"})

_TAGS = re.compile(r"</?(?:b|i|u|s|em|strong|span|mark|code|sub|sup)\b[^<>]*>", re.I)
_BREAKS = re.compile(r"</?(?:br|p|div|li|td|tr)\b[^<>]*>", re.I)
_ELEMENT = re.compile(r"<([A-Za-z][\w.-]{0,30})>([^<>]{1,200})</\1>")  # <city>Rome</city>
_KEY_WORDS = r"[^\W\d_][\w.-]{0,20}(?: [\w.-]{1,20}){0,3}"
_KEY = re.compile(  # of JSON, YAML, a form, a call, or a table with two columns
    rf"(?:(?<=[{{(,;\n])|^)[ \t]*(?:[-*\u2022]+[ \t]+)?[\"'*_]*{_KEY_WORDS}[\"'*_]*[ \t]*"
    r"(?:=>|[:=](?!//))[*_]*[ \t]*(?=[^\s:=])"
    rf"|^[ \t]*\|[ \t]*[*_]*{_KEY_WORDS}[*_]*[ \t]*\|(?=[^|\n]+\|?[ \t]*$)",
    re.M,
)
_NUMBERED = re.compile(r"(?<!\S)[(*]{0,3}(\d{1,2}|[a-z])[.)][*]{0,2}\s+(?=\S)")
_EMPHASIS = re.compile(r"\*+(?=\S)|(?<=\S)\*+|`+|__+|~~+")
_LINK = re.compile(r"\[([^\[\]]{1,80})\]\([^()\s]{0,200}\)")
_PERCENT = re.compile(r"%[2-7c-fC-F][0-9A-Fa-f]")
_CODE_UNITS = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_CODE_POINT = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,5})\}|U000([0-9a-fA-F]{5})|x([0-9a-fA-F]{2}))")
_LATEX = re.compile(r"\\(?:text|textbf|textit|texttt|emph|boxed|mathrm|mathbf)\{([^{}]*)\}")
_WHITESPACE = re.compile(r"\\[nrt]")
_BACKSLASH = re.compile(r"\\(?=[^\w\s])|\\(?=[_\s])")


def visible(text: str) -> str:
    """Unify compatibility forms and the digits of all scripts, and remove invisible characters."""
    if text.isascii():
        return text
    text = text.translate(_APOSTROPHES)
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c
        for c in _HIDDEN.sub("", unicodedata.normalize("NFKC", text))
        if unicodedata.category(c) != "Cf"
    )


def plain(text: str) -> str:
    """Lower case without diacritics; see also ``visible``.

    Only the marks of alphabets are diacritics: the vowel signs of other scripts make other words.
    """
    if text.isascii():
        return text.lower()
    parts = unicodedata.normalize("NFKD", visible(text).casefold())
    kept = _DIACRITICS.sub("", parts).translate(_BASE_LETTER)
    return unicodedata.normalize("NFC", kept)  # syllables of Hangul, which NFKD takes apart


def unescaped(text: str) -> str:
    r"""Remove markup, and decode the escape sequences of HTML, JSON, URLs, Markdown and LaTeX.

    >>> unescaped(r"**Zo\u00eb** &amp; [Ann](x.org), Caf%C3%A9, a\_b, line\nend")
    'Zoë & Ann, Café, a_b, line end'
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if "<" in text:
        text = _ELEMENT.sub(r"\1: \2, ", _BREAKS.sub(" ", _TAGS.sub("", text)))
    if "\\" in text:
        text = _CODE_UNITS.sub(_from_code_units, text)
        text = _CODE_POINT.sub(lambda m: chr(int(m[1] or m[2] or m[3], 16)), text)
        text = _WHITESPACE.sub(" ", _LATEX.sub(r"\1", text))
        text = _BACKSLASH.sub("", text)
    if "$" in text:
        text = _MATHS.sub(r"\1", text.replace("{,}", ","))
    if _PERCENT.search(text) and "\ufffd" not in (decoded := unquote(text)):
        text = decoded
    return _EMPHASIS.sub("", _LINK.sub(r"\1", text)).translate(_FRACTIONS)


def without_keys(text: str) -> str:
    """Remove the keys of JSON, YAML, XML, forms and tables of two columns, and keep the values.

    The numbers or letters of the items of a list (``1.``, ``2.``, ...) are removed, too.

    >>> without_keys('{"street": "Elm Street", "number": 42}')
    '{"Elm Street",42}'
    >>> without_keys("First name: Jane\\nLast name: Smith"), without_keys("at https://x.org, 10:30")
    ('Jane\\nSmith', 'at https://x.org, 10:30')
    >>> without_keys("1. Ann 2. Ben"), without_keys("in 5. Then 7. Ann")
    ('Ann Ben', 'in 5. Then 7. Ann')
    """
    text = without_numbering(text)
    if "<" in text:
        text = _ELEMENT.sub(r"\2, ", text)
    return _KEY.sub("", text)


def without_numbering(text: str) -> str:
    """Remove the numbers or letters of the items of a list, if it has at least two items."""
    marks = [match[1] for match in _NUMBERED.finditer(text)]
    orders = (range(1, len(marks) + 1), map(chr, range(ord("a"), ord("a") + len(marks))))
    if len(marks) > 1 and any(marks == [*map(str, order)] for order in orders):
        return _NUMBERED.sub("", text)
    return text


def _from_code_units(match: re.Match[str]) -> str:
    """Decode UTF-16 code units, of which two are one character outside the basic plane."""
    units = bytes.fromhex(match[0].replace("\\u", ""))
    return units.decode("utf-16-be", errors="replace")
