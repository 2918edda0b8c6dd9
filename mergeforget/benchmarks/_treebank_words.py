"""Splits English text into words and punctuation, as NLTK's ``word_tokenize`` does."""

from __future__ import annotations

import re

PAD, SPLIT = r" \g<0> ", r" \1 \2 "
RULES = [  # applied in this order; they put spaces between tokens
    (r"[«“‘„]|`+", PAD),
    (r'^"', " `` "),
    (r"``", PAD),
    (r"""([ ([{<])("|'')""", r"\1 `` "),
    (r"(?i)(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),  # opens a quotation
    (r"""(?<=[^.])\.(?=[])}>"'»”’ ]*\s*\Z)""", " . "),  # the last full stop; no other one
    (r"([:,])(\D)", r" \1 \2"),  # not within 10:30 or 1,250
    (r"[:,]$", PAD),
    (r"\.{2,}|[;@#$%&?!\u2012-\u2015]", PAD),
    (r"(?<=[^'])' ", " ' "),
    (r"[*\][(){}<>]", PAD),
    (r"--", PAD),
    (r"\A|\Z", " "),
    (r"[»”’]|''", PAD),
    (r'"', " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sSmMdD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    (r"(?i)\b(can)(not)\b", SPLIT),
    (r"(?i)\b(d)('ye)\b", SPLIT),
    (r"(?i)\b(gim|lem)(me)\b", SPLIT),
    (r"(?i)\b(gon)(na)\b", SPLIT),
    (r"(?i)\b(got)(ta)\b", SPLIT),
    (r"(?i)\b(more)('n)\b", SPLIT),
    (r"(?i)\b(wan)(na)(?=\s)", SPLIT),
    (r"(?i) ('t)(is)\b", SPLIT),
    (r"(?i) ('t)(was)\b", SPLIT),
]
COMPILED = [(re.compile(pattern), text) for pattern, text in RULES]
END = re.compile(r"""[.?!]["')\]}]*\s+""")
ABBREVIATIONS = frozenset(
    "adm ala ariz assn aug ave bros calif capt co col colo conn corp cos ct dec del dr feb fla fri"
    " ga gen gov hon ill inc jan jr kan ky la lt ltd maj mass messrs mich minn miss mo mon mr mrs"
    " ms nev nov oct okla ore pa ph prof rep reps rev sen sens sept sgt sr st tenn tues va vs vt"
    " wash wed wis yr a.d a.m b.c d.c n.c n.j n.y p.m ph.d u.k u.n u.s u.s.a u.s.s.r".split()
)  # after these, a full stop does not end a sentence


def english_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text.

    Source: NLTK's ``NLTKWordTokenizer`` (nltk/tokenize/destructive.py, Apache-2.0), whose rules are
        those of the Penn Treebank; a test compares the outputs. NLTK first finds sentences with
        the model Punkt, which is a separate download; ``english_sentences`` replaces it.

    Example:
        >>> english_words("He can't pay $1,250.50. Ask the U.S. Navy.")
        ['He', 'ca', "n't", 'pay', '$', '1,250.50', '.', 'Ask', 'the', 'U.S.', 'Navy', '.']
    """
    return [word for sentence in english_sentences(text) for word in sentence_words(sentence)]


def sentence_words(sentence: str) -> list[str]:
    """Return the words and punctuation marks of a sentence, in which quotes are `` and ''.

    Example:
        >>> sentence_words('"Long-term" costs: 3.5%')
        ['``', 'Long-term', "''", 'costs', ':', '3.5', '%']
    """
    for pattern, text in COMPILED:
        sentence = pattern.sub(text, sentence)
    return sentence.split()


def english_sentences(text: str) -> list[str]:
    """Return the sentences of a text.

    A sentence ends at a question mark, an exclamation mark, or a full stop, with whitespace after
    it, unless the full stop belongs to an initial or one of ``ABBREVIATIONS``.

    Example:
        >>> english_sentences("Dr. J. Lee left. Why? 3.5 % of it.")
        ['Dr. J. Lee left.', 'Why?', '3.5 % of it.']
    """
    sentences, start = [], 0
    for end in END.finditer(text):
        word = text[start : end.start()].split()[-1:]
        before = word[0].lstrip("\"'([{").lower() if word else ""
        if text[end.start()] != "." or not (before in ABBREVIATIONS or _is_initial(before)):
            sentences.append(text[start : end.end()].rstrip())
            start = end.end()
    return [*sentences, text[start:]] if text[start:].strip() else sentences


def _is_initial(word: str) -> bool:
    return len(word) == 1 and word.isalpha()
