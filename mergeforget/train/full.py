"""Train the model's own weights: all of them, the last layers, or chosen modules."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.distributed import on_main
from mergeforget.errors import RecipeError
from mergeforget.files import whole
from mergeforget.recipe import Training
from mergeforget.train.fit import TrainingJob, fit
from mergeforget.train.forward import decoder_layers
from mergeforget.train.precision import widened_weights
from mergeforget.train.reference import reference_of
from mergeforget.train.tokenize import encode_sets, within_positions
from mergeforget.train_config import Full


def train_model(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    job: TrainingJob,
    template: PromptTemplate = RAW,
) -> Path:
    """Train weights of the model itself and save it as a plain model folder.

    Args and errors as for ``train_adapter``; the model is changed in place.
    """
    assert training.full is not None
    set_seed(training.seed)
    choose_trained(model, training.full)
    training = within_positions(model, training)
    encoded = encode_sets(tokenizer, sets, training, template)
    with widened_weights(model):
        reference = reference_of(model, encoded, training, job.run.root)
        fit(model, tokenizer, encoded, training.objective, training, job, None, reference=reference)

    def save() -> None:
        with whole(job.run.root / job.stage) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        shutil.rmtree(job.checkpoints, ignore_errors=True)

    on_main(save)
    return job.run.root / job.stage


def choose_trained(model: Any, full: Full) -> None:
    """Freeze all weights except those a recipe selects.

    Raises:
        RecipeError: The recipe selects no weight of this model.
    """
    layers = decoder_layers(model)
    last = range(max(0, len(layers) - (full.last_layers or 0)), len(layers))
    numbers = last if full.layers is None else full.layers
    inside = {id(p) for n in numbers if n < len(layers) for p in layers[n].parameters()}
    every = full.last_layers is None and full.layers is None
    for name, parameter in model.named_parameters():
        here = every or id(parameter) in inside
        named = not full.modules or any(m in name.split(".") for m in full.modules)
        parameter.requires_grad_(here and named)
    if not any(p.requires_grad for p in model.parameters()):
        modules = ", ".join(n for n, _ in layers[0].named_modules() if n)
        raise RecipeError(
            f"full names no weight of this model: it has {len(layers)} layers, counted from 0, "
            f"with the modules {modules}."
        )
