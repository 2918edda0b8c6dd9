"""Attack the models of a run, or any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.measuring import data_of, is_run
from mergeforget.api.results import AnyRun, AttackResults, UnlearningRun, as_run, optional_path
from mergeforget.run import Run

if TYPE_CHECKING:
    from mergeforget.attack.result import Result
    from mergeforget.attack.target import Target


def attack(
    model: str | Path | Run | UnlearningRun | None = None,
    attacks: Sequence[str] = (),
    *,
    run: AnyRun | None = None,
    run_models: Sequence[str] = (),
    adapter: str | Path | None = None,
    base: str | None = None,
    control: str | None = None,
    forget: str | Path | None = None,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    again: bool = False,
    quick: bool = False,
    on_result: Callable[[Result], None] | None = None,
    **arguments: Any,
) -> AttackResults:
    """Try to recover the forgotten data, and judge the claim that it is gone.

    Args:
        model: A model (hub id, folder or ``smollm2``) or a run folder.
        attacks: Names of attacks (``mergeforget list attacks``); every attack when empty.
        run: Run to use when ``model`` is omitted; None is the newest under ``runs/``.
        run_models: Models of the run: chosen (the default), base, over, under or candidates.
        adapter: PEFT folder to load on the model.
        base: With a model: the model before unlearning.
        control: A model that never saw the data.
        forget, retain, holdout: Files of rows; the run's own when omitted.
        template, system_prompt: How prompts are rendered; as in the run's recipe when omitted, else
            ``auto``.
        limit: Maximum number of rows per split.
        max_new_tokens: Maximum number of tokens to generate per answer.
        seed: Random seed.
        batch_tokens: Tokens per batch; as many as fit when omitted.
        device: ``cpu``, ``cuda``, ...; the GPU where there is one.
        out: Folder of the results; ``RUN/attacks``, or ``attacks``, when omitted.
        again: Ignore cached measurements.
        quick: Run the quick set of attacks on at most 24 rows per split.
        on_result: Called with each result as soon as it is available.
        arguments: Arguments of the attacks, for example ``steps=20`` or ``bits=[8, 4]``.

    Raises:
        UsageError: No attack in ``attacks`` takes one of the arguments.
        InputError: A model or a file cannot be read, or no candidate is chosen.
    """
    from mergeforget.attack.driver import QUICK_ROWS, attack_names, carry_out

    names = attack_names(attacks, quick=quick)
    limit = QUICK_ROWS if quick and limit is None else limit
    check_arguments(arguments, names)
    if model is not None and is_run(model):
        model, run = None, model
    options = {
        "adapter": optional_path(adapter), "base": base, "control": control, "limit": limit,
        "forget": optional_path(forget), "retain": optional_path(retain),
        "holdout": optional_path(holdout), "max_new_tokens": max_new_tokens, "seed": seed,
        "batch_tokens": batch_tokens, "device": device, "out": optional_path(out), "again": again,
        "template": template, "system_prompt": system_prompt,
    }  # fmt: skip
    results, figures = [], []
    with _targets(None if model is None else str(model), run, run_models, options) as targets:
        for result, saved in carry_out(targets, names, arguments, quick=quick):
            results.append(result)
            if any(r.rows for r in saved):
                figures.append(_draw(saved, targets[0].folder))
            if on_result is not None:
                on_result(result)
        folder = targets[0].folder
    names = [*names, "verdict"]
    files = [*(folder / f"{name}.json" for name in names), *dict.fromkeys(figures)]
    return AttackResults(results, folder, files)


def check_arguments(arguments: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise UsageError for an argument that no named attack takes, or for a wrong type."""
    from mergeforget.attack.methods import ATTACKS
    from mergeforget.errors import UsageError, suggest

    takes = {name: set(ATTACKS.get(name).parameters) for name in ATTACKS.names()}
    for key, value in arguments.items():
        named = [name for name in names if key in takes[name]]
        for name in named:
            ATTACKS.get(name).check_value(key, value)
        if named:
            continue
        owners = [name for name, keys in takes.items() if key in keys]
        if owners:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(f"{option} belongs to the attack {', '.join(owners)}.")
        known = sorted(set().union(*takes.values()))
        raise UsageError(
            f"No attack takes {key!r}.{suggest(key, known)} Known: {', '.join(known)}."
        )


@contextmanager
def _targets(
    model: str | None, run: AnyRun | None, run_models: Sequence[str], options: dict[str, Any]
) -> Iterator[list[Target]]:
    """Yield the models to attack; a run is locked inside the block."""
    from mergeforget.attack.driver import SPLITS, target_of_model, targets_of_run
    from mergeforget.errors import UsageError
    from mergeforget.recipe import DataSpec, load_recipe

    names = ("seed", "again", "batch_tokens", "max_new_tokens")
    settings: dict[str, Any] = {n: options[n] for n in names if options[n] is not None}
    settings |= {n: options[n] for n in ("control", "limit", "device", "out")}
    settings["files"] = {name: options[name] for name in SPLITS}
    opened = None if model is not None else as_run(run)
    spec = DataSpec() if opened is None else load_recipe(opened.recipe).data
    settings["data"] = data_of(spec, options)
    if model is not None:
        if run is not None or run_models:
            raise UsageError("Give RUN or --model, not both; --run-model belongs to a run.")
        more = {"adapter": options["adapter"], "before": options["base"]}
        yield [target_of_model(model, **more, **settings)]
        return
    unfit = [f"--{n}" for n in ("adapter", "base") if options[n]]
    if unfit:
        raise UsageError(f"{', '.join(unfit)} belongs to --model; a run has its own.")
    assert opened is not None
    targets = targets_of_run(opened, run_models, **settings)
    with opened.lock() if options["out"] is None else nullcontext():
        yield targets


def _draw(results: list[Result], folder: Path) -> Path:
    """Draw the figure of an attack next to its numbers."""
    from mergeforget.analysis.attacks import draw_attack
    from mergeforget.analysis.style import save

    picture = draw_attack(results)
    save(picture, folder)
    return folder / f"{picture.name}.svg"
