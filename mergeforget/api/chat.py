"""Ask the model before and after unlearning the same question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from mergeforget.api.results import AnyRun, as_run


def open_chat(
    run: AnyRun | None = None,
    candidate: str = "",
    max_new_tokens: int = 64,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
) -> Callable[[str], dict[str, str]]:
    """Load the base of a run and one of its models, and return a function that asks both.

    Answers are decoded greedily, without a conversation history. The model is loaded
    once; the adapter is disabled for the answers of the base.

    Args:
        run: The run folder; None is the newest under ``runs/``.
        candidate: ``over``, ``under`` or a candidate's name; the chosen one when empty.
        max_new_tokens: Maximum number of tokens to generate per answer.
        template, system_prompt: How prompts are rendered; as in the run's recipe when omitted.

    Returns:
        A function from a prompt to ``{"prompt": ..., "before": ..., "after": ...}``.

    Raises:
        InputError: There is no such run or model, or nothing was chosen yet.
    """
    from mergeforget.api.measuring import data_of
    from mergeforget.data.templating import template_of
    from mergeforget.evaluate.generate import generate
    from mergeforget.models import load_model
    from mergeforget.recipe import load_recipe

    folder, name = _adapter(as_run(run), candidate)
    here = as_run(run)
    recipe = load_recipe(here.recipe)
    spec = recipe.model.model_copy(update={"name": here.base()})
    loaded = load_model(spec, adapter=folder)
    given = {"template": template, "system_prompt": system_prompt}
    way = template_of(loaded.tokenizer, data_of(recipe.data, given))

    def one(prompt: str) -> str:
        found: list[Any] = generate(
            loaded.model, loaded.tokenizer, [prompt], template=way,
            max_new_tokens=max_new_tokens, label=name,
        )  # fmt: skip
        return str(found[0]).strip()

    def ask(prompt: str) -> dict[str, str]:
        with loaded.model.disable_adapter():
            before = one(prompt)
        return {"prompt": prompt, "before": before, "after": one(prompt)}

    return ask


def _adapter(run: Any, candidate: str) -> tuple[Any, str]:
    from mergeforget.api.results import UnlearningRun
    from mergeforget.errors import InputError, suggest
    from mergeforget.evaluate.run_models import models_of

    known = {n: path for n, path in models_of(run).items() if path is not None}
    name = candidate or UnlearningRun(run).chosen
    if not name:
        raise InputError(
            f"No candidate is chosen in {run.root}. Run `mergeforget search`, or name a model with "
            "--candidate: "
            f"{', '.join(known) or 'none is trained yet'}."
        )
    if name not in known:
        raise InputError(
            f"{run.root} has no model {name!r}.{suggest(name, known)} It has: {', '.join(known)}."
        )
    return known[name], name
