"""The model card of an exported adapter or model: README.md with the hub's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mergeforget.analysis.attacks import run_attacks
from mergeforget.analysis.evidence import Chosen, MissingError, read_chosen, run_scores
from mergeforget.analysis.report import limits_of
from mergeforget.analysis.tables import Measure, cell_of, label_of, measures_of, shown_measures
from mergeforget.attack.headline import run_verdict
from mergeforget.embedded_model import HUB_COPY
from mergeforget.embedded_model import LICENCE as EMBEDDED_LICENCE
from mergeforget.embedded_model import NAME as EMBEDDED
from mergeforget.errors import MergeforgetError
from mergeforget.files import read_json_object
from mergeforget.model_files import HUB_ID
from mergeforget.parsing import parse_yaml
from mergeforget.recipe import Recipe, load_recipe
from mergeforget.run import ANCHORS, Run, versions
from mergeforget.score import Score, read_scores

CARD_LIMIT = 1_000_000  # characters of a base's card that are read


def card_of(run: Run, name: str, kind: str) -> str:
    """Return the text of the card.

    Args:
        name: Name of the candidate.
        kind: ``adapter`` or ``model``.
    """
    recipe = load_recipe(run.recipe)
    chosen = _if(read_chosen(run), name)
    parts = [
        _metadata(run, name, kind),
        f"# {_plain(name)}\n\nA language model that was made to forget chosen training data, by "
        "merging an over-forgetting and an under-forgetting LoRA adapter with "
        "[mergeforget](https://pypi.org/project/mergeforget/).",
        _verdict(run, name),
        _use(run, kind),
        _scores(run, name),
        _attacks(run, name),
        _choice(chosen),
        _provenance(run, recipe, name),
        "## Limits\n\n" + "\n".join(f"- {_plain(x)}" for x in limits_of(run, chosen)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(run: Run, name: str, kind: str) -> str:
    """Return the hub's metadata: licence and id of the base, and the scores as a model index."""
    named = run.named_model()
    base = _hub_name(named)
    values: dict[str, Any] = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        **_licence(named, base),
        "tags": ["unlearning", "machine-unlearning", "model-merging", "lora", "mergeforget"],
    }
    if base is not None:  # the hub takes the id of one of its models, and no path
        values["base_model"] = base
        if kind != "adapter":
            values["base_model_relation"] = "finetune"
    if index := _model_index(run, name):
        values["model-index"] = index
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + "---"


def _licence(model: str, base: str | None) -> dict[str, Any]:
    """Return the base's licence, which also applies to derived models.

    It is read from the base's card; if that has none, the metadata refer to the base.
    """
    if model == EMBEDDED:
        return {"license": EMBEDDED_LICENCE}
    folder = Path(model) if Path(model).is_dir() else None
    if folder is None and base is not None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(base, "README.md")
        folder = Path(cached).parent if isinstance(cached, str) else None
    stated = _card_metadata(folder / "README.md") if folder is not None else {}
    own = {key: stated[key] for key in ("license", "license_name", "license_link")
           if isinstance(stated.get(key), str)}  # fmt: skip
    if "license" in own:
        return own
    link = {"license_link": f"https://huggingface.co/{base}"} if base else {}
    return {"license": "other", "license_name": "license-of-the-base-model", **link}


def _card_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a model card; empty if there are none or they cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:CARD_LIMIT]
        parts = text.split("---\n", 2)
        metadata = parse_yaml(parts[1], str(path)) if text.startswith("---\n") else {}
    except (OSError, IndexError, MergeforgetError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _model_index(run: Run, name: str) -> list[dict[str, Any]]:
    """Return the candidate's scores on the report split as the hub's ``model-index``."""
    scores = read_scores(run.scores).get(name, [])
    results = []
    for split in dict.fromkeys(measure[1] for measure in measures_of({name: scores})):
        cells = [(m, cell_of(scores, m)) for m in measures_of({name: scores}) if m[1] == split]
        metrics = [
            {"type": measure[0], "name": label_of(measure), "value": cell.value}
            for measure, cell in cells
            if cell.value is not None
        ]
        if metrics:
            data = {"name": f"{split} rows of the unlearning request", "type": "private"}
            task = {"type": "text-generation", "name": "Unlearning"}
            results.append({"task": task, "dataset": data, "metrics": metrics})
    return [{"name": name, "results": results}] if results else []


def _verdict(run: Run, name: str) -> str:
    """Return the verdict with its reasons; empty before anything was scored."""
    if name not in read_scores(run.scores):
        return ""
    verdict = run_verdict(run, name)
    text = f"**{verdict.state}.** {_plain(' '.join(verdict.reasons))}"
    return f"{text} Uncertain: {_plain(' '.join(verdict.uncertain))}" if verdict.uncertain else text


def _choice(chosen: Chosen | None) -> str:
    """Return why the search chose this candidate, with its warning."""
    if chosen is None:
        return ""
    warning = f"\n\n**Warning.** {_plain(chosen.warning)}" if chosen.warning else ""
    return f"## How it was chosen\n\n{_plain(chosen.sentence)}{warning}"


def _use(run: Run, kind: str) -> str:
    if kind == "adapter":
        base = _hub_name(run.base())
        named = repr(base) if base else '"base"'
        remark = "" if base else "  # the folder of the model before unlearning"
        code = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({named}){remark}\n"
            'model = PeftModel.from_pretrained(base, "this folder")'
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM\n\n"
            'model = AutoModelForCausalLM.from_pretrained("this folder")'
        )
    return f"## Use\n\n```python\n{code}\n```"


def _scores(run: Run, name: str) -> str:
    """Return the score tables of the candidate and of the models it is compared with."""
    try:
        scores = run_scores(run)
    except MissingError:
        return ""
    models = {model: scores[model] for model in (*ANCHORS, name) if model in scores}
    every, main = measures_of(models), shown_measures(models)
    others = _table(models, [measure for measure in every if measure not in main])
    text = (
        "## Scores\n\nThe worst case over the prompt variants, on the report split, or on all data "
        f"if it was not split, with 95 % intervals.\n\n{_table(models, main)}"
    )
    if len(every) > len(main):
        text += f"\n\n<details><summary>More scores</summary>\n\n{others}\n\n</details>"
    return text


def _table(models: dict[str, list[Score]], measures: list[Measure]) -> str:
    """Return the scores of several models as a Markdown table."""
    rows = [["score", *models], ["---"] + ["---:"] * len(models)]
    for measure in measures:
        cells = [cell_of(scores, measure) for scores in models.values()]
        texts = [
            f"{cell.text} [{cell.interval[0]:.3f}, {cell.interval[1]:.3f}]"
            if cell.interval
            else cell.text
            for cell in cells
        ]
        rows.append([label_of(measure), *texts])
    return "\n".join("| " + " | ".join(_plain(c) for c in row) + " |" for row in rows)


def _attacks(run: Run, name: str) -> str:
    """Return the verdict of each attack on the candidate, or a remark that there was none."""
    try:
        results = [result for result in run_attacks(run) if result.model == name]
    except MissingError:
        results = []
    lines = [f"- {result.attack}: {_plain(result.verdict)}" for result in results]
    return "## Attacks\n\n" + ("\n".join(lines) or "No attack was run on this candidate.")


def _provenance(run: Run, recipe: Recipe, name: str) -> str:
    path = run.candidates / name / "candidate.json"
    candidate = read_json_object(path) if path.is_file() else {}
    facts: dict[str, Any] = {"recipe": recipe.name, "source": recipe.source}
    facts |= {
        k: candidate[k] for k in ("method", "space", "density", "weights", "seed") if k in candidate
    }
    facts |= {f"seed of {where}": training.seed for where, training in recipe.trainings().items()}
    facts |= _prompts(run, recipe)
    facts |= versions()
    lines = [
        f"- {key}: {_plain(str(value))}" for key, value in facts.items() if value not in ("", None)
    ]
    return "## Provenance\n\n" + "\n".join(lines)


def _prompts(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Return how prompts were rendered in training, from the manifest or else the recipe."""
    stages = run.read_manifest()["stages"]
    recorded = stages.get("template", {})
    template = str(recorded.get("template", recipe.data.template))
    names = {"none": "raw", "chat": "the tokenizer's chat template", "auto": "auto"}
    return {
        "prompts": names.get(template, template),
        "system prompt": recorded.get("system_prompt", recipe.data.system_prompt),
    }


def _hub_name(name: str) -> str | None:
    """Return the hub id of a model; None for a folder, which exists only on this machine."""
    if name == EMBEDDED:
        return HUB_COPY
    if Path(name).exists() or name.startswith(".") or not HUB_ID.fullmatch(name):
        return None
    return name


def _if(chosen: Chosen | None, name: str) -> Chosen | None:
    return chosen if chosen and chosen.name == name else None


def _plain(text: str) -> str:
    """Escape the characters that Markdown would interpret."""
    for character in "\\`*[]<>|":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
