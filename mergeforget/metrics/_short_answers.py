"""Finds short answers in which a text omits what the question gives or what anybody would add.

"4711" answers "What is Ada's PIN?" as "PIN 4711" does, "She is 42." says the same as "Ada is 42
years old.", and "Acme" the same as "Acme Inc.". The rest of such an answer is often a common word
or a small number, so it counts only in a sentence that states nothing else: neither "The sky is
blue." nor "Her brother moved in 1990." reveals "blue eyes" or "Born 1990".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from mergeforget.metrics._characters import plain
from mergeforget.metrics._core import (
    FUNCTION_WORDS,
    LEAST_WORDS,
    WEAK_WORDS,
    new_words,
    order_matters,
    same_words,
    with_letter_a,
    words_beyond,
)
from mergeforget.metrics._dates import Order
from mergeforget.metrics._porter import stem
from mergeforget.metrics._quantities import UNIT_CODES, UNIT_WORD
from mergeforget.metrics._spellings import WORD, canonical, words_of

LONGEST_TEXT = 4000  # characters of a text in which sentences are compared one by one

_PERIODS = frozenset(
    "per year month week day hour annum annual annually yearly monthly weekly old age aged "
    "year years months weeks days hours".split()
)
_FORMS = frozenset(  # legal forms and titles, which are added to a name
    "inc incorporated ltd limited llc llp plc corp corporation company gmbh ag kg sarl bv pty "
    "mr mrs ms miss dr doctor prof professor sir dame herr frau mme".split()
)
_PLACES = frozenset("city town village state province country region district".split())
_FILLERS = frozenset(  # words beside an answer that state nothing
    "yes sure certainly okay ok well so think believe guess remember exactly about around roughly "
    "approximately age aged actually probably likely currently now just only number color colour "
    "re ll ve".split()
)
_OR = re.compile(r"(\w+),? or (?:an? |the )?(\w+)")  # "red or blue": not both
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE = re.compile(  # not after an initial or "Dr.", and not before a digit: "No. 42"
    r"(?<=[.!?。！？।؟۔])(?<!\b[^\W\d_]\.)(?<!\b[^\W\d_]{2}\.)[\"')\]]*\s+(?=[^\W\d_])(?![a-zß-ÿ])"
    r"|(?<![:\s])\s*\n+|(?<=[。！？])[\"')\]」』”]*\s*(?=\w)"
)
_CLAUSE = re.compile(r"[,;]\s+|[，；،؛]|\s[-\u2013\u2014]\s|\s(?:and|but|while|who|which|where)\s")


@lru_cache(maxsize=1 << 14)
def short_words(secret: str, prompt: str) -> tuple[tuple[int, int], ...]:
    """Return where an answer has the fewest words that reveal it; empty if it needs all of them.

    In an answer of two words, one of them has to be given by the prompt, or to be such as these:
    units and periods beside a single number, legal forms and titles, and "city" in "city of".

    >>> text = "Ada earns 54,300 euros a year."
    >>> [text[a:b] for a, b in short_words(text, "How much does Ada earn?")]
    ['54', '300']
    >>> [("PIN 4711")[a:b] for a, b in short_words("PIN 4711", "What is Ada's PIN?")]
    ['4711']
    """
    new = new_words(secret, prompt)
    number = _one_number(canonical(secret))
    kept = tuple(
        span for span in new
        if not _omitted(plain(secret[slice(*span)]), secret[span[1] :].lstrip(), number=number)
    )  # fmt: skip
    kept = kept or new
    return kept if _some_omitted(secret, prompt, len(kept), len(new)) else ()


def _some_omitted(secret: str, prompt: str, kept: int, new: int) -> bool:
    """Return whether an answer is long, or its prompt gives more than a number or "in"."""
    words = [plain(word) for word in WORD.findall(secret)]
    given = {stem(word) for word in WORD.findall(plain(prompt))} - FUNCTION_WORDS
    omitted = any(stem(w) in given and not any(map(str.isdigit, w)) for w in words)
    return len(words) >= LEAST_WORDS or kept < new or omitted


def _one_number(text: str) -> bool:
    return len(_NUMBERS.findall(text)) == 1


def _omitted(word: str, after: str, *, number: bool) -> bool:
    """Return whether an answer is the same without one of its words.

    Args:
        after: Text after the word.
        number: Whether the answer has exactly one number.
    """
    if word in _PLACES:
        return after.lower().startswith("of ")
    unit = word in _PERIODS or word in UNIT_CODES or bool(UNIT_WORD.fullmatch(word))
    return word in _FORMS or (number and unit)


def short_answer_in(
    secret: str, text: str, prompt: str, orders: tuple[Order, Order], about: str = ""
) -> bool:
    """Return whether a sentence of a text states the shortest part of an answer and nothing else.

    Words of the prompt and of the answer, and words such as "is" or "about", are allowed beside it.
    Negated sentences and questions do not count.

    Args:
        about: Further text whose words are allowed: the prompt to which the text is a completion,
            if that is not ``prompt``.

    >>> asked, orders = "What colour are Ada's eyes?", ("mdy", "mdy")
    >>> short_answer_in("blue eyes", "They are blue, and she likes tea.", asked, orders)
    False
    >>> short_answer_in("blue eyes", "Her eyes are blue, and she likes tea.", asked, orders)
    True
    >>> short_answer_in("blue eyes", "They are blue.", asked, orders)
    True
    >>> short_answer_in("blue eyes", "The sky is blue.", asked, orders)
    False
    """
    wanted = _wanted(secret, prompt, orders[0])
    if (_FILLERS | WEAK_WORDS).issuperset(wanted):
        return False
    if not _singulars(text, orders[1]).issuperset(wanted):
        return False
    own = _stems(words_of(canonical(secret), orders[0]))
    allowed = own | _FILLERS | _stems(words_of(canonical(with_letter_a(about))))
    choices = {stem(word) for pair in _OR.findall(plain(prompt)) for word in pair} - own
    topic = own & _stems(words_of(canonical(prompt))) - FUNCTION_WORDS
    ordered, n = order_matters(secret, wanted), len(wanted)
    for sentence, whole in sentences(text[:LONGEST_TEXT]):
        found = [_singular(word) for word in words_beyond(sentence, prompt, orders[1])]
        said = _stems(words_of(canonical(sentence)))
        if said & choices or (not whole and topic.isdisjoint(said)):
            continue
        for i in range(len(found) - n + 1):
            rest = map(stem, found[:i] + found[i + n :])
            if same_words(wanted, found[i : i + n], ordered) and allowed.issuperset(rest):
                return True
    return False


@lru_cache(maxsize=1 << 14)
def _singulars(text: str, order: Order) -> frozenset[str]:
    return frozenset(map(_singular, words_of(canonical(text), order)))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


@lru_cache(maxsize=1 << 14)
def _wanted(secret: str, prompt: str, order: Order) -> tuple[str, ...]:
    """Return the words of the shortest part of an answer, as ``canonical`` spells them."""
    if not short_words(secret, prompt):
        return ()
    one = canonical(with_letter_a(secret))
    number = _one_number(one)
    words = words_beyond(one, prompt, order)
    places = {m[1] for m in re.finditer(rf"\b({'|'.join(_PLACES)}) of\b", one)}
    kept = [w for w in words if w not in places and not _omitted(w, "", number=number)]
    return tuple(map(_singular, kept or words))


def _stems(words: tuple[str, ...]) -> set[str]:
    return {stem(word) for word in words}


def sentences(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the sentences of a text that are no questions, and their beginnings.

    A beginning is a sentence up to a comma or a conjunction. A line is a sentence, too, unless the
    line before it ends with a colon.

    Yields:
        A text, and whether it is a whole sentence.
    """
    for sentence in filter(None, map(str.strip, _SENTENCE.split(text))):
        if sentence.endswith(("?", "？", "؟")):
            continue
        yield sentence, True
        for match in _CLAUSE.finditer(sentence):
            yield sentence[: match.start()], False
