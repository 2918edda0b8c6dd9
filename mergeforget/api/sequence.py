"""`unlearn_sequence`: forget several sets one after the other, and check earlier ones again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.data_checks import check_not_in
from mergeforget.api.earlier import REQUEST, earlier_rows, folded_base, share_of
from mergeforget.api.job import seconds_of
from mergeforget.api.options import Settings
from mergeforget.api.own_answers import own_answers
from mergeforget.api.sequence_merge import SOURCES, combine, joined, train_only
from mergeforget.api.training import assignments_of
from mergeforget.api.unlearn import ATTACKS, Unlearned, unlearn
from mergeforget.api.unlearn_data import Forget, RequestReader, renamed, turns_of
from mergeforget.api.unlearn_request import changes_of, check_sources, differences, facts_of

if TYPE_CHECKING:
    from mergeforget.data.schema import Row
    from mergeforget.evaluate.verdict_figures import EarlierAnswers
    from mergeforget.recipe import Recipe

SEQUENCE = "sequence.json"
SOON = 0.001  # seconds for a request from whose result the next one has begun: nothing is searched
Source = Forget | None


@dataclass
class UnlearnedSequence:
    """Result of `unlearn_sequence`.

    Attributes:
        root: Folder with one run per request, and ``sequence.json``.
        last: Result of the last request, or of the merge at the end. Its verdict includes the
            earlier requests.
        table: One record per request: ``request``, ``run``, its own ``verdict`` when it was done
            (None if the merge is at the end), and ``revealed``, the share of its answers that the
            model reveals, by the request after which it was measured.
    """

    root: Path
    last: Unlearned
    table: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """Verdict on the last model."""
        return self.last.verdict

    def __repr__(self) -> str:
        return f"UnlearnedSequence({len(self.table)} requests, {self.verdict}, {str(self.root)!r})"

    def __str__(self) -> str:
        return f"{self.last}\n\n{_table_text(self.table)}"

    def export(self, out: str | Path | None = None, *, full: bool = False) -> Path:
        """Write the last result; see :meth:`Unlearned.export`.

        With ``merge="each"`` the adapter belongs to the base folder of the last run, so that
        ``full`` is what others can use.
        """
        return self.last.export(out, full=full)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"root": str(self.root), "verdict": self.verdict, "requests": self.table,
                "last": self.last.to_dict()}  # fmt: skip


def unlearn_sequence(
    model: str | Path,
    *,
    forget: Sequence[Forget],
    retain: Source | Sequence[Source] = None,
    holdout: Source | Sequence[Source] = None,
    out: str | Path | None = None,
    merge: Literal["each", "end"] = "each",
    time_limit: float | str | None = None,
    recipe: str | Path | Recipe = "level",
    memorise: bool = False,
    control: str | None = None,
    adapter: str | Path | None = None,
    after: str | Path | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    turns: Literal["last", "every"] | None = None,
    full: bool = False,
    gguf: bool = False,
    push: str | None = None,
    attacks: Sequence[str] = ATTACKS,
    approve: Callable[[list[Any]], bool] | None = None,
    settings: Settings = (),
) -> UnlearnedSequence:
    """Make a model forget several sets one after the other.

    Each request starts from the result of the one before. After each request, the model is
    tested again on the forget rows of all earlier ones. Repeat the call with the same ``out`` to
    resume.

    Args:
        forget: One source per request, each as in :func:`unlearn`.
        retain, holdout: One source for all requests, or one per request; as in :func:`unlearn` when
            omitted. The model answers general questions once, before the first request.
        out: Folder with one run per request; ``runs/sequence-NAME`` when omitted.
        merge: ``each`` searches a merge and attacks it after each request. ``end`` only trains the
            pairs, continues from the mean of each, and then searches one merge of two adapters: the
            sum of all over-forgetting and the sum of all under-forgetting adapters.
        time_limit: Time limit of all requests. Each may use an equal part of the remaining time.
        memorise: Fine-tune the model on the rows of all requests and on the retain rows first, to
            try the method. The model before that is the control, unless another one is given.
        adapter, after: As in :func:`unlearn`, for the first request.
        full, gguf, push: As in :func:`unlearn`, for the last result.
        model, recipe, control, template, system_prompt, turns, attacks, approve, settings: As in
            :func:`unlearn`, for every request.

    Raises:
        UsageError: Fewer than two requests, another number of retain or holdout sources, or
            ``memorise`` with ``adapter`` or ``after``.
        InputError: As in :func:`unlearn`; a row to forget is in a retain or holdout set, or in two
            requests.
        NumericError, ResourceError: As :func:`mergeforget.train_pair`.

    Example:
        >>> result = unlearn_sequence("model", forget=["a.jsonl", "b.jsonl"])  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
    """
    from mergeforget.errors import UsageError
    from mergeforget.files import write_json

    if memorise and (adapter or after):
        raise UsageError(
            "memorise fine-tunes the model itself: leave adapter and after out, or merge them into "
            "the model first."
        )
    started, limit = time.monotonic(), seconds_of(time_limit)
    given: dict[str, list[Any]] = dict(zip(SOURCES, _sources(forget, retain, holdout), strict=True))
    # the rows of each request are written with the names of columns that mergeforget uses
    changes = [s for s in assignments_of(settings) if not s.startswith("data.columns")]
    common: dict[str, Any] = {
        "recipe": recipe, "control": control or (str(model) if memorise else None),
        "template": template, "system_prompt": system_prompt, "turns": turns,
        "settings": [*changes, "data.columns={}"] if _own_columns(recipe) else changes,
    }  # fmt: skip
    root = Path(out) if out is not None else Path("runs") / f"sequence-{_stem(forget[0])}"
    first: dict[str, Any] = {"adapter": adapter, "after": after}
    facts = {
        "model": str(model), "merge": merge,
        **{n: [facts_of(s, n) for s in given[n]] for n in given},
        "adapter": _text(adapter), "after": _text(after),
        "recipe": str(getattr(recipe, "name", recipe)), "memorise": memorise,
        "settings": changes_of(recipe, settings, template, system_prompt, turns),
    }  # fmt: skip
    files = _prepare(root, facts, given, recipe, approve)
    runs = [root / place for place in files]
    if memorise:
        model = _memorised(root, facts, list(files.values()), recipe)

    def time_left(requests: int) -> float | None:
        """Return an equal part of the remaining time."""
        if limit is None:
            return None
        return max(1.0, limit - (time.monotonic() - started)) / requests

    table: list[dict[str, Any]] = [
        {"request": place, "run": str(run), "verdict": None, "revealed": {}}
        for place, run in zip(files, runs, strict=True)
    ]
    deliver: dict[str, Any] = {"full": full, "gguf": gguf, "push": push}
    last: Unlearned | None = None
    for i, (place, sources) in enumerate(files.items()):
        start = first if i == 0 else {"adapter": None, "after": runs[i - 1]}
        if merge == "each":
            final = deliver if i == len(runs) - 1 else {}
            begun = i < len(runs) - 1 and (runs[i + 1] / REQUEST).exists()
            spare = SOON if begun else time_left(len(runs) - i)  # the next one keeps its model
            last = unlearn(model, **sources, out=runs[i], attacks=attacks, **start, **final,
                           time_limit=spare, **common)  # fmt: skip
            table[i]["verdict"] = last.verdict
            shares = {runs[i]: _own_answers(last)} | _earlier_answers(runs[i])
        else:
            shares = train_only(model, runs, i, sources, start, common)
        _note(table, place, shares)
        write_json(root / SEQUENCE, {"merge": merge, "requests": table})
    if merge == "end":
        combined = combine(model, root, runs, list(files.values()), first, common)
        last = unlearn(model, **combined, out=root / "merged", attacks=attacks, **first, **deliver,
                       time_limit=time_left(1), **common)  # fmt: skip
        _note(table, "the merge at the end", _earlier_answers(root / "merged"))
    assert last is not None
    result = UnlearnedSequence(root, last, table)
    write_json(root / SEQUENCE, {"merge": merge} | result.to_dict())
    return result


def _sources(
    forget: Sequence[Forget], retain: Any, holdout: Any
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return forget, retain and holdout sources, one of each per request."""
    from mergeforget.errors import UsageError

    if _is_one_source(forget) or len(forget) < 2:
        raise UsageError(
            "A sequence has at least two requests: give a list of two or more forget sets. "
            "`mergeforget unlearn MODEL --forget FILE` (mergeforget.unlearn) runs a single request."
        )
    sources = []
    for name, given in (("retain", retain), ("holdout", holdout)):
        several = [given] if _is_one_source(given) else list(given)
        if len(several) not in (1, len(forget)):
            raise UsageError(
                f"There are {len(forget)} forget sets and {len(several)} {name} sets. Give one "
                f"{name} set for all requests, or one per request, in the order of --forget."
            )
        sources.append(several * (len(forget) if len(several) == 1 else 1))
    return list(forget), sources[0], sources[1]


def _is_one_source(given: Any) -> bool:
    """Return whether a value is one set: a file, a DataFrame, or a list of rows."""
    if given is None or isinstance(given, str | Path) or hasattr(given, "columns"):
        return True
    return bool(len(given)) and all(isinstance(item, Mapping) for item in given)


def _stem(source: Forget) -> str:
    return Path(source).stem if isinstance(source, str | Path) else "list"


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _prepare(
    root: Path,
    facts: dict[str, Any],
    given: dict[str, list[Any]],
    recipe: str | Path | Recipe,
    approve: Callable[[list[Any]], bool] | None,
) -> dict[str, dict[str, Any]]:
    """Read every request before the first training, and write its rows; return the files.

    The result maps the name of a request to its sources. A repeated call reads what the first one
    wrote.
    """
    from mergeforget.errors import InputError
    from mergeforget.files import read_json_object, write_json, write_jsonl

    names = [f"{i}-{_stem(source)}" for i, source in enumerate(given["forget"], 1)]
    folder = root / "requests"
    files = {
        name: {n: folder / f"{name}.{n}.jsonl" for n in SOURCES if n != "holdout" or outside}
        for name, outside in zip(names, given["holdout"], strict=True)
    }
    if (root / REQUEST).exists():
        earlier = read_json_object(root / REQUEST)
        if changed := differences(earlier, facts):
            raise InputError(
                f"{root} contains another sequence: {'; '.join(changed)}. Choose another folder "
                "with --out, or repeat the same call to resume."
            )
        return files
    if (root / "recipe.yaml").exists():
        raise InputError(f"{root} contains a run. Choose another --out for a sequence.")
    chosen = _recipe(recipe, facts)
    requests = _read_requests(root, names, facts, given, chosen, approve)
    for name, sets in requests.items():
        for split, rows in sets.items():
            write_jsonl(files[name][split], [row.to_dict() for row in rows])
    write_json(root / REQUEST, facts)
    return files


def _read_requests(
    root: Path,
    names: Sequence[str],
    facts: dict[str, Any],
    given: dict[str, list[Any]],
    recipe: Recipe,
    approve: Callable[[list[Any]], bool] | None,
) -> dict[str, dict[str, list[Row]]]:
    """Read and check the rows of every request; return them by request and split."""
    from mergeforget.errors import UsageError
    from mergeforget.recipe import change
    from mergeforget.run import Run

    for sources in zip(*given.values(), strict=True):
        check_sources(recipe, dict(zip(SOURCES, sources, strict=True)))
    turns = turns_of(recipe)
    recipe = change(recipe, model={"name": folded_base(Run(root / names[0]), facts)})
    reader = RequestReader(partial(own_answers, recipe), turns, recipe.data.columns)
    forget = [renamed(reader.read(one), "forget") for one in given["forget"]]
    if reader.generated and approve is not None and not approve(reader.generated):
        raise UsageError("The generated rows were not approved; nothing was trained.")
    _check_distinct(names, forget)
    gone = [*(row for rows in forget for row in rows), *earlier_rows(facts)]
    own = reader.own_retain(gone) if None in given["retain"] else []
    requests = {}
    for place, name in enumerate(names):
        sets = {"forget": forget[place]}
        for split in ("retain", "holdout"):
            source = given[split][place]
            if source is not None or split == "retain":
                rows = own if source is None else reader.read(source, split)
                check_not_in(gone, rows, split)
                sets[split] = renamed(rows, split)
        requests[name] = sets
    return requests


def _recipe(recipe: str | Path | Recipe, facts: dict[str, Any]) -> Recipe:
    from mergeforget.recipe import Recipe, load_recipe

    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe, facts["settings"])


def _own_columns(recipe: str | Path | Recipe) -> bool:
    """Return whether a recipe names columns of the files."""
    return bool(_recipe(recipe, {"settings": ()}).data.columns)


def _memorised(
    root: Path,
    facts: dict[str, Any],
    files: Sequence[dict[str, Path]],
    recipe: str | Path | Recipe,
) -> str:
    """Fine-tune the model on the rows of all requests; return its folder."""
    from mergeforget.data.readers import read_rows
    from mergeforget.recipe import change
    from mergeforget.run import Run
    from mergeforget.train.pair import memorised_base
    from mergeforget.train.run_rows import Sets

    chosen = change(_recipe(recipe, facts), model={"name": facts["model"]})
    forget, retain = (
        joined([read_rows(one[split], split=split) for one in files]) for split in SOURCES[:2]
    )
    run = Run(root / "memorised")
    with run.lock():
        resume = bool(run.read_status())
        return memorised_base(chosen, run, Sets(forget, retain, []), resume=resume)


def _check_distinct(names: Sequence[str], forget: Sequence[Sequence[Row]]) -> None:
    """Raise InputError for a row in two requests."""
    from mergeforget.data.overlap import shared_rows
    from mergeforget.errors import InputError

    for i, name in enumerate(names):
        for other, earlier in zip(names[:i], forget, strict=False):
            for _, row in shared_rows(earlier, forget[i])[:1]:
                raise InputError(
                    f"The row {row.id} of request {name} is also in request {other}. Remove it "
                    "from one of them: after the first, there is nothing to forget."
                )


def _own_answers(result: Unlearned) -> EarlierAnswers:
    """Return the forget answers of its own request that a result reveals."""
    from mergeforget.evaluate.paired import read_with_patterns
    from mergeforget.evaluate.texts import repeated_rows

    run = result.run.paths
    answers, patterns, _ = read_with_patterns(run, result.chosen)
    return share_of(answers, repeated_rows(run.answers, result.chosen), patterns)


def _earlier_answers(run: Path) -> dict[Path, EarlierAnswers]:
    """Return the revealed answers of earlier requests that a run measured."""
    from mergeforget.attack.headline import EARLIER, read_earlier

    return {Path(name): one for name, one in (read_earlier(run / EARLIER) or {}).items()}


def _note(table: list[dict[str, Any]], place: str, found: dict[Path, EarlierAnswers]) -> None:
    """Add the shares measured after a request; None if no answer can be counted."""
    for record in table:
        if (answers := found.get(Path(record["run"]))) is not None:
            record["revealed"][place] = answers.share if answers.asked else None


def _table_text(table: Sequence[dict[str, Any]]) -> str:
    """Return the table as text: one line per request, one column per measurement."""
    columns = list(dict.fromkeys(place for record in table for place in record["revealed"]))
    width = max(12, *(len(record["request"]) + 2 for record in table))
    lines = [
        "Share of the answers of each request that is revealed, after:",
        f"{'':<{width}}{'verdict then':<18}" + "".join(f"{c:>{len(c) + 2}}" for c in columns),
    ]
    for record in table:
        shares = (record["revealed"].get(place) for place in columns)
        cells = ("-" if share is None else f"{share:.0%}" for share in shares)
        lines.append(f"{record['request']:<{width}}{record['verdict'] or '-':<18}" + "".join(
            f"{cell:>{len(c) + 2}}" for cell, c in zip(cells, columns, strict=True)))  # fmt: skip
    return "\n".join(lines)
