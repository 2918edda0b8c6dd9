"""`mergeforget plan`: estimate the cost of a recipe before any weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mergeforget.commands._options import (
    emit,
    json_option,
    set_option,
    template_options,
    turns_option,
)

if TYPE_CHECKING:
    from mergeforget.train.plan import Plan

FILE = click.Path(path_type=Path)


@click.command("plan")
@click.argument("recipe", default="zjuklab")
@click.option("--model", help="Hub id, folder, or `smollm2`.  [default: the recipe's]")
@click.option("--forget", type=FILE, multiple=True, help="Rows to forget; repeat it for a "
              "sequence of requests.  [default: made-up people]")  # fmt: skip
@click.option("--retain", type=FILE, help="Rows whose answers are to be kept.")
@click.option("--holdout", type=FILE, help="Rows of the same kind that are in neither set.  "
              "[default: for recipes with `until`, perturbed twins of forget rows]")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of rows per set.")
@template_options
@turns_option
@set_option
@json_option
def command(
    recipe: str,
    model: str | None,
    forget: tuple[Path, ...],
    retain: Path | None,
    holdout: Path | None,
    limit: int | None,
    template: Literal["auto", "none", "chat"] | None,
    system_prompt: str | None,
    turns: Literal["last", "every"] | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print batch size, steps, memory and time of RECIPE (default: zjuklab).

    Only the model's configuration and tokenizer are read. The time assumes the speed of one large
    matrix product, measured on this machine; training takes longer, on a CPU two to three times.
    """
    from mergeforget.api.training import plan
    from mergeforget.console import duration

    sources = forget if len(forget) > 1 else next(iter(forget), None)
    plans = plan(
        recipe, model=model, forget=sources, retain=retain, holdout=holdout, limit=limit,
        template=template, system_prompt=system_prompt, turns=turns, settings=settings,
    )  # fmt: skip
    facts = {place: one.to_dict() for place, one in plans.items()}
    texts = [_text(place, one) for place, one in plans.items()]
    if len(forget) > 1:
        total = sum(one.seconds for one in plans.values())
        texts.append(f"{len(forget)} requests: at least {duration(total)} of training")
    emit(facts, "\n\n".join(texts), as_json)


def _text(place: str, one: Plan) -> str:
    from mergeforget.console import duration

    rows = ", ".join(f"{n} {name}" for name, n in one.rows.items())
    parts = ", ".join(f"{name} {_size(n)}" for name, n in one.memory.items() if name != "total")
    steps = f"{one.steps} ({one.steps_per_epoch} per epoch, {one.warmup_steps} warm-up)"
    if one.expected_steps < one.steps:
        steps = f"at most {one.steps}, about {one.expected_steps} expected"
    how = " with gradient checkpointing" if one.gradient_checkpointing else ""
    return (
        f"{place}\n"
        f"  rows        {rows}; {one.epoch_tokens} forget tokens per epoch\n"
        f"  batch       {one.effective_batch} rows per step\n"
        f"  steps       {steps}\n"
        f"  parameters  {one.trained:,} of {one.parameters:,} trained\n"
        f"  memory      at least {_size(one.memory['total'])}{how}: {parts}\n"
        f"  time        at least {duration(one.seconds)} ({one.device})"
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
