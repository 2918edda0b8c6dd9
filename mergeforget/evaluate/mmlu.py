"""MMLU from its original csv files, with the prompts of SemEval-2025 Task 4."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeforget.console import progress
from mergeforget.data.templating import RAW
from mergeforget.data.tokens import check_token_ids, cut_to_positions, position_limit
from mergeforget.distributed import ALONE, RankShare
from mergeforget.errors import InputError
from mergeforget.evaluate.batching import in_batches, token_budget
from mergeforget.evaluate.decoding import cached_prefix_logits, check_finite
from mergeforget.evaluate.self_check import safe_modes
from mergeforget.files import sha256
from mergeforget.parsing import read_text
from mergeforget.recipe import EvaluationSpec

LETTERS = "ABCD"
LONGEST = 2048  # maximum number of tokens per prompt; examples are removed until it fits


@dataclass(frozen=True)
class Question:
    """One question with four choices, and the letter of the correct one."""

    text: str
    choices: tuple[str, str, str, str]
    answer: str


def ask_mmlu(
    model: Any, tokenizer: Any, spec: EvaluationSpec, **more: Any
) -> dict[str, tuple[int, int]]:
    """Call ``run_mmlu`` with the settings of a recipe; ``spec.mmlu`` names the folder."""
    folder, limit = Path(spec.mmlu or ""), mmlu_limit(spec)
    return run_mmlu(model, tokenizer, folder, shots=spec.mmlu_shots, limit=limit, **more)


def mmlu_limit(spec: EvaluationSpec) -> int | None:
    """Return the maximum number of questions per subject; None means all."""
    return spec.mmlu_limit or spec.limit


def mmlu_key(spec: EvaluationSpec) -> list[Any] | None:
    """Return the cache key of MMLU: a hash of the questions' content, and the settings.

    Returns None if MMLU is not evaluated.
    """
    if not spec.mmlu:
        return None
    folder = Path(spec.mmlu)
    files = [file for part in ("dev", "test") for file in sorted((folder / part).glob("*.csv"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name} {sha256(file)}\n".encode())
    return [digest.hexdigest(), spec.mmlu_shots, mmlu_limit(spec)]


def run_mmlu(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    shots: int = 5,
    limit: int | None = None,
    batch_tokens: int | None = None,
    sharing: RankShare = ALONE,
) -> dict[str, tuple[int, int]]:
    """Evaluate MMLU and return (correct, asked) by subject.

    The model's choice is the letter with the largest next-token logit, where a letter is the last
    token of " A" to " D".

    Args:
        folder: Folder with ``dev/SUBJECT_dev.csv`` and ``test/SUBJECT_test.csv``.
        shots: Number of examples before the question, 0 to 5. The last ones are removed while the
            prompt has more than 2048 tokens, or more than the model has positions.
        limit: Maximum number of questions per subject; the first ones are used.
        sharing: The processes that share the subjects.

    Raises:
        InputError: The folder does not contain MMLU, or a file is malformed.
    """
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1]
               for letter in LETTERS]  # fmt: skip
    longest = min(LONGEST, position_limit(model) or LONGEST)
    subjects_in_folder = mmlu_subjects(folder)
    sizes = {s: (folder / "test" / f"{s}_test.csv").stat().st_size for s in subjects_in_folder}
    subjects = sharing.share(subjects_in_folder, sizes.__getitem__)
    results = {}
    with progress(sharing.label("MMLU"), len(subjects)) as bar:
        for subject in subjects:
            questions = read_questions(folder / "test" / f"{subject}_test.csv")[:limit]
            examples = read_questions(folder / "dev" / f"{subject}_dev.csv")[:shots]
            prompts = [fitting_prompt(tokenizer, subject, examples, q, longest) for q in questions]
            chosen = choose(model, prompts, letters, batch_tokens)
            right = sum(q.answer == LETTERS[c] for q, c in zip(questions, chosen, strict=True))
            results[subject] = (right, len(questions))
            bar.advance(note=subject)
    return dict(sorted(sharing.gather(list(results.items()))))


def mmlu_subjects(folder: Path) -> list[str]:
    """Return the subjects that have questions in the folder, sorted."""
    names = sorted(p.name.removesuffix("_test.csv") for p in (folder / "test").glob("*_test.csv"))
    if not names:
        raise InputError(
            f"{folder} does not contain MMLU: there is no test/SUBJECT_test.csv. Pass the folder "
            "of the original files, with dev/ and test/."
        )
    return names


def read_questions(path: Path) -> list[Question]:
    """Read the questions of one file as text: ``None`` is a choice, not a missing value."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:  # a field of more than 128 kB
        raise InputError(f"{path} is not CSV: {error}.") from error
    for line, row in enumerate(rows, 1):
        if len(row) != 6 or row[5] not in LETTERS:
            raise InputError(
                f"{path}, question {line}: expected the question, four choices and a letter A to "
                f"D, found {len(row)} fields."
            )
    return [Question(r[0], (r[1], r[2], r[3], r[4]), r[5]) for r in rows]


def prompt_of(subject: str, examples: Sequence[Question], question: Question) -> str:
    """Return the prompt as the task's script writes it, with two spaces before the subject."""
    name = "".join(f" {word}" for word in subject.split("_"))
    header = f"The following are multiple choice questions (with answers) about {name}.\n\n"
    shown = "".join(f"{_asked(e)} {e.answer}\n\n" for e in examples)
    return header + shown + _asked(question)


def fitting_prompt(
    tokenizer: Any,
    subject: str,
    examples: Sequence[Question],
    question: Question,
    longest: int = LONGEST,
) -> list[int]:
    """Return the token ids of the prompt, with as many examples as fit into ``longest`` tokens."""
    for k in range(len(examples), -1, -1):
        ids = RAW.prompt_ids(tokenizer, prompt_of(subject, examples[:k], question))
        if len(ids) <= longest:
            break
    return ids


def choose(
    model: Any, prompts: Sequence[list[int]], letters: Sequence[int], batch_tokens: int | None
) -> list[int]:
    """Return the index of the most likely letter after each prompt; independent of the batch size.

    The shared prefix of the prompts (header and examples) is processed once per batch if the
    self-check allows it for this model.

    Raises:
        NumericError: The outputs of the model are not finite.
    """
    if not prompts:
        return []
    check_token_ids(model, prompts)
    prompts, _ = cut_to_positions(model, prompts)
    modes = safe_modes(model)
    shared = min(common_prefix(prompts), min(map(len, prompts)) - 1) if modes.prefix else 0

    def work(places: list[int]) -> list[int]:
        logits = cached_prefix_logits(model, [prompts[i] for i in places], shared)
        check_finite(logits)
        return [int(i) for i in logits[:, list(letters)].argmax(-1)]

    return in_batches(
        model,
        [len(p) for p in prompts],
        work,
        budget=(batch_tokens or token_budget(model)) if modes.scored_together else 1,
    )


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """Return the length of the longest common prefix of all prompts, in tokens."""
    low, high = min(prompts), max(prompts)  # in sorted order, first and last differ the earliest
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(differ, min(len(low), len(high)))


def _asked(question: Question) -> str:
    options = "".join(f"\n{x}. {c}" for x, c in zip(LETTERS, question.choices, strict=True))
    return f"{question.text}{options}\nAnswer:"
