"""Perturbed twins: rows of the same form as given ones, about people and facts that do not exist.

A twin keeps the wording of its row and replaces identifying parts: names by other names, numbers by
numbers of the same length, dates by dates, the letters and digits of codes by others, and e-mail
addresses accordingly. An answer without such a part is replaced by that of another row with the
same question. Twins are not in the training data, so they can serve as non-members if there are no
other rows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from math import inf, isfinite

from mergeforget.data.names import (
    LETTERS,
    TITLED,
    chunks,
    find_names,
    lower_case_words,
    months_like,
    names_in,
    word_key,
)
from mergeforget.data.schema import Row
from mergeforget.data.twin_names import NewNames, with_new_names
from mergeforget.data.twin_numbers import (
    NUMBERED,
    ORDINAL,
    digits_by_form,
    ordinal,
    other_number,
    with_other_letters,
)

_TRIES = 4  # draws of numbers until a twin differs from its row
OWN = "own"  # start of the ids of retain rows with the model's own answers: own0qa0
_OWN = re.compile(rf"{OWN}\d+qa0")
STAND_IN = "b-"  # prefix of the ids of twins that serve as holdout rows
LONG, CHANGED = 20, 0.1  # words of a passage, and least share of them that a twin replaces
NONMEMBERS = 48  # twins that serve as non-members, 24 per split, if MOST per row are as many
MOST = 4
CANDIDATES = 16  # twins of each row, of which the nearest are taken; fewer if ROWS is less in all
ROWS = 384


def make_twins(
    rows: Sequence[Row], *, corpus: Sequence[Row] = (), per_row: int = 1, seed: int = 0
) -> list[Row]:
    """Generate perturbed twins of some rows.

    Names are found by their upper-case first letter, so there are none in a script without case.

    Args:
        rows: Rows to imitate.
        corpus: Further rows of the same kind. They show which digits of a number vary (the ``900``
            of a made-up Social Security number does not) and which words are not names, and they
            have other answers to the same questions, unless they are holdout rows, which must stay
            unseen, or the model's own answers, which are likelier than any fact.
        per_row: Number of twins per row.
        seed: Random seed. The same rows and seed give the same twins.

    Returns:
        Twins in the order of ``rows``, with the split ``holdout`` and the id ``twinN:ID``. A row
        has no twin if its prompt contains no name or number to replace, or if the part of the
        answer that is not in the prompt contains none and no other row has the same question
        about another name and a different answer, or if the twin would equal a row of ``rows`` or
        ``corpus``.

    Example:
        >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02")
        >>> make_twins([row])[0].input != row.input
        True
        >>> rows = [row, Row("b-qa0", "Where does Ann Lee live?", "Rome")]
        >>> other = Row("c-qa0", "Where does Tom Cole live?", "Oslo")
        >>> [twin.output for twin in make_twins(rows[1:], corpus=[other])], len(make_twins(rows))
        (['Oslo'], 1)
    """
    everything = [*rows, *corpus]
    texts = [text for row in everything for text in (row.input, row.output)]
    common = lower_case_words(texts)
    digits = digits_by_form(texts)
    imitated = (row for row in corpus if row.split != "holdout" and not _OWN.fullmatch(row.id))
    told = [*rows, *imitated]  # no unseen fact is used, and no answer that the model expects
    answers = _rows_by_question(told, common)
    earlier = [row for row in corpus if origin_of(row) or stands_in(row)]
    taken = {row.document for row in everything} | {row.prompt for row in earlier}
    twins = []
    for number in range(per_row):
        people: dict[str, NewNames] = {}  # by subject: rows of one document stay consistent
        for row in rows:
            own = people.setdefault(row.subject, NewNames())
            own.add(row, common, random.Random(f"{seed}-{number}-{row.subject}"))
            draws = [
                random.Random(f"{seed}-{number}-{row.id}{f'-{attempt}' if attempt else ''}")
                for attempt in range(_TRIES)
            ]
            found = _twin(row, own, common, digits, answers, taken, draws)
            if found:
                taken |= {found.document, found.prompt}
                twins.append(replace(
                    found, id=f"twin{number}:{row.id}", split="holdout",
                    subject=f"twin{number}-{row.subject}", paraphrased="", perturbed=(),
                    further_answers=(),
                ))  # fmt: skip
    return twins


def nonmember_twins(rows: Sequence[Row], *, corpus: Sequence[Row] = (), seed: int = 0) -> list[Row]:
    """Generate twins that serve as non-members: several per row if there are few rows.

    With few non-members, an AUC says little: with 12 rows and six non-members, that of a model that
    never saw the data is outside .35 to .65 in one of three draws; with 24, in one of seven.

    Arguments and return value as in ``make_twins``.

    >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02")
    >>> len(nonmember_twins([row]))
    4
    """
    twins = make_twins(rows, corpus=corpus, seed=seed)
    if not twins or len(twins) >= NONMEMBERS:
        return twins
    per_row = min(MOST, -(-NONMEMBERS // len(twins)))
    return make_twins(rows, corpus=corpus, per_row=per_row, seed=seed)


def closest_twins(
    rows: Sequence[Row],
    nlls: Callable[[Sequence[Row]], Sequence[float]],
    *,
    corpus: Sequence[Row] = (),
    most: int = MOST,
    seed: int = 0,
) -> list[Row]:
    """Generate twins that a model without the data finds about as likely as their rows.

    A made-up name may be likelier than the one it replaces, and such a model then has an AUC other
    than 0.5. Of up to 16 twins of each subject, those are taken whose mean NLL is nearest to that
    of the subject's rows; as many as ``nonmember_twins`` takes. Of more than 192 rows, the
    twins are those of ``nonmember_twins``, because their likelihoods would take too long.

    Args:
        nlls: Returns the NLL of rows under a model that never saw the data, in nats per token; NaN
            if it has none.
        most: Maximum number of twins per row.

    Other arguments and return value as in ``make_twins``.

    >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02")
    >>> def years(rows):  # the later, the less likely
    ...     return [float(row.output[:4]) for row in rows]
    >>> near, far = closest_twins([row], years), make_twins([row], per_row=16)
    >>> max(abs(n - 1987) for n in years(near)) < max(abs(n - 1987) for n in years(far))
    True
    """
    per_row = min(CANDIDATES, ROWS // max(1, len(rows)))
    if per_row < 2:  # no choice within the number of likelihoods
        return nonmember_twins(rows, corpus=corpus, seed=seed)
    twins = make_twins(rows, corpus=corpus, per_row=per_row, seed=seed)
    origin = {row.id: row for row in rows}
    own = {row.id: nll for row, nll in zip(rows, nlls(rows), strict=True)}
    gaps: dict[str, dict[str, list[float]]] = {}  # by subject and twin of it
    for twin, nll in zip(twins, nlls(twins) if twins else (), strict=True):
        row = origin[origin_of(twin)]
        gap = nll - own[row.id]
        gaps.setdefault(row.subject, {}).setdefault(twin.subject, []).append(gap)
    wanted = min(most, -(-NONMEMBERS // max(1, len({origin_of(twin) for twin in twins}))))
    near: set[str] = set()
    for of_subject in gaps.values():
        mean = {twin: sum(values) / len(values) for twin, values in of_subject.items()}
        order = sorted(mean, key=lambda twin: abs(mean[twin]) if isfinite(mean[twin]) else inf)
        near.update(order[:wanted])
    return [twin for twin in twins if twin.subject in near]


def twins_of_unseen(
    holdout: Sequence[Row],
    nlls: Callable[[Sequence[Row]], Sequence[float]],
    *,
    trained: Sequence[Row] = (),
    seed: int = 0,
) -> list[Row]:
    """Generate further non-members if there are few: twins of the holdout rows, up to 48 in all.

    A twin has the subject of its row, so that both are in the same split and count as one document.
    The arguments are those of ``closest_twins``.

    Args:
        nlls: Returns the NLL under a model that did not see ``holdout``, such as the base.
        trained: Rows that no twin may equal, and whose answers no twin has.

    >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02", split="holdout")
    >>> twins = twins_of_unseen([row], lambda rows: [0.0] * len(rows))
    >>> len(twins), {twin.subject for twin in twins} == {row.subject}
    (4, True)
    """
    most = min(MOST, NONMEMBERS // max(1, len(holdout)) - 1)
    if most < 1:
        return []
    corpus = [replace(row, split="holdout") for row in trained]  # their answers are not used
    twins = closest_twins(holdout, nlls, corpus=corpus, most=most, seed=seed)
    if not enough(twins, holdout):
        return []
    subjects = {row.id: row.subject for row in holdout}
    return [
        replace(one, subject=subjects[origin_of(twin)])
        for one, twin in zip(as_stand_ins(twins), twins, strict=True)
    ]


def stands_in(row: Row) -> bool:
    """Return whether a row of the holdout set is a twin, for lack of real rows."""
    return bool(imitated_name(row.id))


def imitated_name(name: str) -> str:
    """Return the id or subject of the row that a twin of the holdout set imitates, otherwise "".

    >>> imitated_name("b-twin3:a-qa0"), imitated_name("b-twin3-Ann Lee"), imitated_name("Ann Lee")
    ('a-qa0', 'Ann Lee', '')
    """
    found = re.fullmatch(rf"{STAND_IN}twin\d+[-:](.*)", name, re.DOTALL)
    return found.group(1) if found else ""


def as_stand_ins(twins: Sequence[Row]) -> list[Row]:
    """Mark twins as rows of the holdout set; see ``stands_in``."""
    return [
        replace(t, id=f"{STAND_IN}{t.id}", subject=f"{STAND_IN}{t.subject}", split="holdout")
        for t in twins
    ]


def enough(twins: Sequence[Row], rows: Sequence[Row]) -> bool:
    """Return whether at least half of the rows have a twin, so that twins can be non-members."""
    return len({origin_of(twin) for twin in twins}) >= max(1, len(rows) // 2)


def stand_in_note(twins: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return a sentence on the twins that serve as non-members."""
    imitated = len({origin_of(twin) for twin in twins})
    return (
        f"No --holdout: {len(twins)} perturbed twins of {imitated} of {len(rows)} forget rows are "
        "used as unseen rows."
    )


def origin_of(twin: Row) -> str:
    """Return the id of the row that a twin imitates; empty for a row that is not a twin."""
    start, _, rest = twin.id.partition(":")
    return rest if start.startswith("twin") and start[4:].isdigit() else ""


def _secret(row: Row) -> list[str]:
    """Return the words of an answer that its prompt does not give."""
    given = set(chunks(row.prompt))
    return [word for word in chunks(row.output) if word not in given]


def _differs(row: Row, twin: Row) -> bool:
    """Return whether a twin is about another name or number, and has another answer.

    A row that completes a text or is part of a document may have the same prompt; a question is
    another one. An answer that differs only in words of the prompt, such as ``Ann Lee lives in
    Rome``, is the same answer, and so is a passage of a story in which only a name is another one.
    """
    completes = row.kind == "sc" and not row.prompt.rstrip().endswith(("?", "？", "؟"))
    if twin.prompt == row.prompt and not completes and not row.window:
        return False
    if not row.output:
        return True
    secret, other = _secret(row), _secret(twin)
    if len(secret) > LONG:
        kept = SequenceMatcher(None, secret, other, False).get_matching_blocks()
        return 1 - sum(block.size for block in kept) / len(secret) >= CHANGED
    return twin.output != row.output and (not secret or other != secret)


def _twin(
    row: Row,
    people: NewNames,
    common: frozenset[str],
    digits: dict[str, list[str]],
    answers: Mapping[str, Sequence[Row]],
    taken: set[str],
    draws: Sequence[random.Random],
) -> Row | None:
    """Return a row with other names, numbers and dates, or with another row's answer.

    A capitalised word of the answer that may be no name, such as a city or a job title, is replaced
    by a name only if no row with the same question has another answer.

    Args:
        answers: Rows by question; see ``_question``.
        taken: Texts of rows, which a twin must not equal, and prompts of twins, which it only has
            if no try has another one.
        draws: A source of random numbers for each try.
    """

    def allowed(twin: Row) -> bool:
        return twin.document not in taken and _differs(row, twin)

    tries = [_perturbed(row, people.words, people.handles, digits, draw) for draw in draws]
    found = [one for one in tries if allowed(one)]
    twin = next((one for one in found if one.prompt not in taken), next(iter(found), None))
    if twin and people.doubtful:
        sure = {old: new for old, new in people.words.items() if old not in people.doubtful}
        draw = random.Random(0)
        if _differs(row, _perturbed(row, sure, people.handles, digits, draw)):
            return twin
    elif twin:
        return twin
    others = [o for o in answers.get(_question(row, common), ()) if _secret(o) != _secret(row)]
    outputs: list[str] = []
    for some in ([o for o in others if o.split == "retain"], others):  # rather no forget answer
        told = (_answer_of(one, row, tries[0], people.words, common) for one in some)
        outputs = outputs or [
            text for text in dict.fromkeys(told) if allowed(replace(tries[0], output=text))
        ]
    return replace(tries[0], output=draws[0].choice(outputs)) if outputs else twin


def _perturbed(
    row: Row,
    words: Mapping[str, str],
    handles: Mapping[str, str],
    digits: dict[str, list[str]],
    draw: random.Random,
) -> Row:
    """Return a row with other words and numbers; equal numbers and months stay equal."""
    known: dict[str, str] = {}

    def changed(text: str) -> str:
        renamed = with_new_names(text, words, handles, known, draw)
        renamed = with_other_letters(renamed, digits, known, draw)

        def number(match: re.Match[str]) -> str:
            new = other_number(match.group(), digits, draw, renamed[match.end() : match.end() + 2])
            return known.setdefault(match.group(), new)

        return ORDINAL.sub(ordinal, NUMBERED.sub(number, renamed))

    prompt, answer = changed(row.input), changed(row.output)
    messages = tuple(
        m if m.role == "system" else replace(m, content=changed(m.content)) for m in row.messages
    )
    return replace(row, input=prompt, output=answer, messages=messages)


def _question(row: Row, common: frozenset[str]) -> str:
    """Return a prompt with placeholders for names, months and numbers.

    >>> _question(Row("a", "Where did Mr. Lee live in May 1987?", ""), frozenset())
    'Where did * live in * #?'
    """
    text = row.prompt
    for name in sorted(names_in(row.input, common), key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", "*", text)
    text = LETTERS.sub(
        lambda m: "*" if months_like(m.group()) else m.group(), TITLED.sub("*", text)
    )
    return NUMBERED.sub("#", text)


def _rows_by_question(rows: Iterable[Row], common: frozenset[str]) -> dict[str, list[Row]]:
    """Return the rows with an answer by question; windows of documents have none."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.output and not row.window:
            found.setdefault(_question(row, common), []).append(row)
    return found


def _answer_of(
    other: Row, row: Row, twin: Row, words: Mapping[str, str], common: frozenset[str]
) -> str:
    """Return another row's answer to the same question, with the names and numbers of a twin."""
    text, new = other.output, dict[str, str]()
    names = zip(find_names(other.input, common), find_names(row.input, common), strict=False)
    for theirs, ours in names:
        name = with_new_names(ours.text, words, {}, {})
        text = re.sub(rf"(?<!\w){re.escape(theirs.text)}(?!\w)", name, text)
        new |= {word_key(theirs.parts[i]): word_key(name.split(" ")[i]) for i in (0, -1)}
    replaced = NUMBERED.findall(other.input), NUMBERED.findall(twin.input)
    numbers = dict(zip(*replaced, strict=False))
    return NUMBERED.sub(
        lambda m: numbers.get(m.group(), m.group()), with_new_names(text, new, {}, {})
    )
