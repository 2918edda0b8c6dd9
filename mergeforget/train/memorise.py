"""Fine-tune a base model on the data that it will then unlearn."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergeforget.console import quiet, say
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import encode_rows, truncation
from mergeforget.distributed import on_main, sharded
from mergeforget.embedded_model import cache_folder
from mergeforget.errors import InputError, UsageError
from mergeforget.files import read_json_object, replacing, sha256, write_json
from mergeforget.model_files import locate
from mergeforget.models import default_device, dtype_for
from mergeforget.recipe import Memorise, Recipe, Term
from mergeforget.run import versions
from mergeforget.train.fit import TrainingJob, fit
from mergeforget.train.precision import widened_weights
from mergeforget.train.tokenize import within_positions

REVISION = re.compile("[0-9a-f]{40}")
READ = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")  # files that define a model
TERMS = [Term.model_construct(loss="gd", on="memorise", weight=1.0)]


def memorised_folder(recipe: Recipe, rows: Sequence[Row]) -> Path:
    """Return the cache folder of a model that memorised these rows with these settings.

    The name is a hash of everything that determines the weights, so later runs reuse the model.

    Raises:
        InputError: The base does not exist.
    """
    spec = recipe.model
    facts: dict[str, Any] = {
        "base": _content(locate(spec.name, trust_remote_code=spec.trust_remote_code)),
        "dtype": str(dtype_for(spec, default_device())),
        "rows": [row.to_dict() for row in rows],
        "settings": _settings(recipe.memorise),
        "versions": {k: v for k, v in versions().items() if k in ("torch", "transformers")},
    }
    if recipe.data.template != "none":  # the tokenizer's files, with its template, are in the base
        facts["template"] = [recipe.data.template, recipe.data.system_prompt]
    text = json.dumps(facts, sort_keys=True).encode()
    name = hashlib.sha256(text).hexdigest()[:16]
    return cache_folder() / "memorised" / name


def _settings(spec: Memorise) -> dict[str, Any]:
    """Return the settings; ``stop_at`` only if it is set, so that older models are found."""
    values = spec.model_dump(mode="json")
    return {key: value for key, value in values.items() if key != "stop_at" or value is not None}


def _content(base: Path) -> str | dict[str, str]:
    """Return what identifies a base: its revision on the hub, or the hash of each file."""
    if base.parent.name == "snapshots" and REVISION.fullmatch(base.name):  # in the cache of the Hub
        return base.name
    files = (p for p in base.iterdir() if p.is_file() and p.suffix in READ)
    return {p.name: sha256(p) for p in sorted(files)}


def memorise(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    settings: Memorise,
    folder: Path,
    job: TrainingJob,
    template: PromptTemplate = RAW,
) -> Path:
    """Fine-tune all weights on the rows and save a plain model folder.

    Args:
        model: Model, trained in place.
        rows: Forget and retain rows.
        folder: Folder to write the model to.
        template: Template of the prompts.
    """
    settings = within_positions(model, settings)
    documents = settings.trained == "documents"
    encoded = encode_rows(
        tokenizer, rows, max_length=settings.max_length, template=template, whole=documents
    )
    if cut := truncation(encoded, "forget and retain", settings.max_length):
        say(cut)
    with widened_weights(model):
        fit(model, tokenizer, {"memorise": encoded}, TERMS, settings, job)

    def save() -> None:
        with replacing(folder) as temporary, quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_json(temporary / "memorised.json", {"rows": len(rows), **settings.model_dump()})
        shutil.rmtree(job.checkpoints, ignore_errors=True)

    on_main(save)
    return folder


def check_whole() -> None:
    """Raise UsageError under FSDP: memorising trains all weights, not an adapter."""
    if sharded():
        raise UsageError(
            "--memorise fine-tunes the whole model, and FSDP is supported for adapters only. Run "
            "the same command once with --multi_gpu instead of --use_fsdp and stop it when the "
            "first adapter begins: the next run reuses the memorised model. Or start from a model "
            "that knows the data already."
        )


def is_memorised(folder: Path) -> bool:
    """Return whether the folder contains a finished model; folders are written atomically.

    Raises:
        InputError: The record of the model is damaged.
    """
    record = folder / "memorised.json"
    if not record.exists():
        return False
    try:
        return bool(read_json_object(record))
    except InputError as error:
        raise InputError(f"{error} Delete {folder} to memorise the rows again.") from error
