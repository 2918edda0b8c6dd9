"""Exports the chosen adapter or the whole model, and verifies its logits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergeforget.adapter import WEIGHTS, Adapter, read_adapter
from mergeforget.adapter_config import CONFIG
from mergeforget.analysis.card import card_of
from mergeforget.analysis.evidence import MissingError, read_chosen
from mergeforget.candidate import Candidate
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate, TemplateSpec, template_of
from mergeforget.errors import InputError, VerificationError, suggest
from mergeforget.evaluate.decoding import full_pass
from mergeforget.files import replacing, sha256, take_place, write_json, write_text
from mergeforget.merge.apply import applied
from mergeforget.merge.checkpoint.full import fold_adapters
from mergeforget.merge.checkpoint.tensor_jobs import Output
from mergeforget.merge.inputs import check_free
from mergeforget.model_adapters import adopt_template
from mergeforget.model_files import locate, stored_template
from mergeforget.models import load_model, load_tokenizer
from mergeforget.recipe import load_recipe
from mergeforget.replace import explained, link_target, write_lock
from mergeforget.run import Run, now

MARK = "export.json"  # marks a folder that an export wrote and may replace
EXPORT_SECONDS = 3600.0  # maximum time to wait for another export to the same folder
TEXTS, TOKENS = 4, 128  # number and length of the texts on which logits are compared
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}  # of the largest logit


@dataclass(frozen=True)
class Exported:
    """An exported adapter or model.

    Attributes:
        difference: Largest difference of a logit from the candidate's, relative to the largest
            logit.
        tolerance: Allowed difference for the dtype.
        template: How the compared texts were rendered: ``raw``, ``chat``, ...
        gguf: The GGUF file of the model, if one was requested.
        pushed: Address of the upload, if one was requested.
    """

    name: str
    kind: str
    folder: str
    dtype: str
    difference: float
    tolerance: float
    sha256: str
    template: str = ""
    gguf: str = ""
    pushed: str = ""


def export(
    run: Run,
    out: Path | None = None,
    *,
    name: str = "",
    full: bool = False,
    dtype: str = "auto",
    data: TemplateSpec | None = None,
) -> Exported:
    """Write the adapter, or with ``full`` the whole model, with tokenizer and card.

    The written files are loaded again as a user would load them, and their logits are compared
    with those of the base plus the candidate's change in float32. An earlier export is replaced
    only after this check.

    Args:
        name: Name of a candidate; the chosen one when empty.
        dtype: Data type of a whole model; ``auto`` keeps that of the base.
        data: How the compared texts are rendered; as in the run's recipe when omitted.

    Raises:
        InputError: There is no such candidate, or ``out`` has other content.
        VerificationError: The logits differ; the written files remain in a hidden folder next to
            ``out``.
    """
    name = name or _chosen(run)
    source = run.candidates / name
    if not source.is_dir():
        known = sorted(p.name for p in run.candidates.glob("*") if p.is_dir())
        raise InputError(
            f"{run.root} has no candidate {name!r}.{suggest(name, known)} Known: "
            f"{', '.join(known) or 'none yet; mergeforget search creates them'}."
        )
    adapter = read_adapter(source, name)
    kind = "model" if full else "adapter"
    out = out or run.root / "export" / f"{name}-{kind}"
    with write_lock(out, EXPORT_SECONDS):
        return _export(run, out, adapter, kind, dtype, data)


def _export(
    run: Run, out: Path, adapter: Adapter, kind: str, dtype: str, data: TemplateSpec | None
) -> Exported:
    """Write, compare and put into place, while no other process writes to ``out``."""
    name, source = adapter.name, run.candidates / adapter.name
    check_free(out, [source, Path(run.base())], MARK, "export")
    place = link_target(out)
    fresh = place.parent / f".{place.name}.unchecked"
    if kind == "model":
        _write_model(run, adapter, fresh, dtype)
    else:
        _write_adapter(run, source, fresh)
    stored, difference, way = compare_logits(run, adapter, fresh, full=kind == "model", data=data)
    tolerance = TOLERANCE.get(stored, TOLERANCE["bfloat16"])
    if not difference <= tolerance:
        raise VerificationError(
            f"The logits of {fresh} differ from those of {name} by {difference:.2g} of the largest "
            f"logit; {tolerance:.0e} is allowed for {stored}. Nothing was exported to {out}. "
            "Export in float32 with --dtype float32, or merge the candidate again."
        )
    card = card_of(run, name, kind)
    with explained(out):
        write_text(fresh / "README.md", card)
        exported = Exported(name, kind, str(out), stored, difference, tolerance, sha256(fresh), way)
        write_json(fresh / MARK, asdict(exported) | {"folder": out.name, "time": now()})
        take_place(fresh, out)
    return exported


def compare_logits(
    run: Run, adapter: Adapter, out: Path, *, full: bool, data: TemplateSpec | None = None
) -> tuple[str, float, str]:
    """Compare the logits of the written files with those of the candidate.

    Returns:
        The stored dtype, max |difference| / max |logit| over some texts of the run, and the name
        of the template that rendered them.
    """
    recipe = load_recipe(run.recipe)
    spec = recipe.model
    base = spec.model_copy(update={"name": run.base(), "dtype": "float32"})
    loaded = load_model(base, device="cpu")
    adopt_template(loaded.tokenizer, adapter.tokenizer)
    texts, template = texts_of(run), template_of(loaded.tokenizer, data or recipe.data)
    with applied(loaded.model, adapter):
        meant = logits_of(loaded.model, loaded.tokenizer, texts, template)
    if full:
        del loaded  # frees memory before the second model is loaded
        loaded = load_model(
            spec.model_copy(update={"name": str(out), "dtype": "auto"}), device="cpu"
        )
        stored = _stored_dtype(out)
    else:
        loaded = load_model(base, device="cpu", adapter=out)
        loaded.tokenizer.chat_template = stored_template(out)
        stored = "float32"
    made = logits_of(loaded.model, loaded.tokenizer, texts, template)
    largest = max(float(x.abs().max()) for x in meant)
    distance = max(float((x - y).abs().max()) for x, y in zip(meant, made, strict=True))
    return stored, distance / largest, template.name


def logits_of(
    model: Any, tokenizer: Any, texts: Sequence[str | Row], template: PromptTemplate = RAW
) -> list[Any]:
    """Return the logits of each text, (length, vocabulary), float32."""
    import torch

    logits = []
    with torch.no_grad():
        for text in texts:
            row = Row("", text, "") if isinstance(text, str) else text
            cut = template.tokens(tokenizer, row)
            ids = torch.tensor([[*cut.prompt, *cut.answer][:TOKENS]])
            logits.append(full_pass(model, ids.to(model.device))[0].float().cpu())
    return logits


def texts_of(run: Run) -> list[str | Row]:
    """Return some rows of the forget and the retain set."""
    rows: list[str | Row] = []
    for split in ("forget", "retain"):
        path = run.data / f"{split}.jsonl"
        if path.exists() and path.stat().st_size:
            rows += read_rows(path)[: TEXTS // 2]
    return rows or ["What was forgotten, and what was kept?"]


def _write_adapter(run: Run, source: Path, out: Path) -> None:
    """Copy the candidate's files, and save the tokenizer next to them."""
    tokenizer = load_tokenizer(_base_spec(run))
    adopt_template(tokenizer, source)
    with replacing(out) as temporary:
        temporary.mkdir()
        for name in (CONFIG, WEIGHTS, "candidate.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        tokenizer.save_pretrained(temporary)


def _write_model(run: Run, adapter: Adapter, out: Path, dtype: str) -> None:
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(locate(run.base()), [adapter], itself, out, Output(dtype=dtype))


def _base_spec(run: Run) -> Any:
    return load_recipe(run.recipe).model.model_copy(update={"name": run.base()})


def _stored_dtype(folder: Path) -> str:
    """Return the dtype of a whole model from its config."""
    from mergeforget.files import read_json_object

    config = read_json_object(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _chosen(run: Run) -> str:
    chosen = read_chosen(run)
    if chosen is None:
        known = sorted(p.parent.name for p in run.candidates.glob("*/candidate.json"))
        raise MissingError(
            f"No candidate of {run.root} was chosen. Choose with `mergeforget search {run.root}`, "
            f"or name one with --candidate. Candidates: {', '.join(known) or 'none yet'}."
        )
    return chosen.name
