"""The attacked model, the models it is compared with, the rows, and cached measurements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeforget.adapter import read_adapter
from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate, template_of
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import Membership, membership_documents
from mergeforget.evaluate.membership import matched
from mergeforget.files import read_json_object, write_json
from mergeforget.model_adapters import adopt_template
from mergeforget.model_files import content_of, locate, stored_template
from mergeforget.models import check_resident, load_model, main_device
from mergeforget.recipe import DataSpec, ModelSpec
from mergeforget.run import Run, versions

Facts = dict[str, Any]  # one cached measurement, as plain values for JSON
HASHED = (".safetensors", ".json", ".jinja")  # weights, configuration, tokenizer, chat template
DECIDING = ("torch", "transformers", "peft", "mergeforget")  # versions in the cache key


class NotApplicableError(InputError):
    """The attack does not apply to this data or model; other attacks may."""


@dataclass(frozen=True)
class TargetModel:
    """A model: a base, by name or folder, and an optional adapter.

    Attributes:
        role: Name in results: that of the attacked model, ``before`` or ``control``.
        name: Description for users.
    """

    role: str
    base: str
    adapter: Path | None = None
    name: str = ""


@dataclass
class Models:
    """Loads models; the last base remains loaded and is shared by several adapters."""

    spec: ModelSpec
    device: str | None = None
    chat_from: Path | None = None  # adapter whose chat template all models are asked with
    _name: str = ""
    _loaded: Any = None
    fresh: set[Path] = field(default_factory=set)  # measured by this process
    _hashes: dict[Path, str] = field(default_factory=dict)

    @contextmanager
    def opened(self, target_model: TargetModel) -> Iterator[tuple[Any, Any]]:
        """Yield model and tokenizer, with the adapter merged into the weights in the block."""
        from mergeforget.merge.apply import applied

        if self._name != target_model.base:
            self._loaded = None  # two models at once may not fit
            spec = self.spec.model_copy(update={"name": target_model.base})
            self._loaded, self._name = load_model(spec, device=self.device), target_model.base
            adopt_template(self._loaded.tokenizer, self.chat_from)
        check_resident(self._loaded.model, "An attack")
        adapter = read_adapter(target_model.adapter) if target_model.adapter else None
        with applied(self._loaded.model, adapter) if adapter else nullcontext():
            yield self._loaded.model, self._loaded.tokenizer

    def facts(self, target_model: TargetModel) -> Facts:
        """Return the cache key of a model: hashes of its weights, dtype, device and versions."""
        base = locate(target_model.base, trust_remote_code=self.spec.trust_remote_code)
        known = versions()
        chat = self.chat_from and stored_template(self.chat_from)
        return {
            **({"chat": chat} if chat else {}),
            "base": self._hash(base),
            "adapter": self._hash(target_model.adapter) if target_model.adapter else "",
            "dtype": self.spec.dtype,
            "device": main_device(self.device).split(":")[0],
            "versions": {name: known.get(name, "") for name in DECIDING},
        }

    def _hash(self, folder: Path) -> str:
        """Return the hash of weights, configuration and tokenizer in a folder."""
        if folder not in self._hashes:
            self._hashes[folder] = content_of(folder)
        return self._hashes[folder]


@dataclass
class Target:
    """The attacked model, the models it is compared with, and the data.

    Attributes:
        before: The model before unlearning, which knew the data.
        control: A model that never saw the data.
        forget, retain, holdout: Rows; no model was trained on the holdout.
        folder: Folder of the results; cached measurements are in its subfolder ``cache``.
        again: Ignore cached measurements.
        data: Selects how prompts are rendered: ``template`` and ``system_prompt``.
        systems: Further system messages with which an evaluation asks.
        run: The run that the model belongs to, or None.
        whole: All rows by split, if ``forget``, ``retain`` and ``holdout`` are a part of them.
    """

    models: Models
    attacked: TargetModel
    before: TargetModel | None
    control: TargetModel | None
    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    folder: Path
    membership: Membership = "documents"
    max_new_tokens: int = 256
    seed: int = 0
    again: bool = False
    batch_tokens: int | None = None
    data: DataSpec = DataSpec()
    systems: Sequence[str] = ()
    run: Run | None = None
    whole: Mapping[str, list[Row]] = field(default_factory=dict)

    def all_rows(self, split: str) -> list[Row]:
        """Return the rows of a split, with those that are not attacked."""
        return self.whole.get(split) or list(getattr(self, split))

    def template(self, tokenizer: Any) -> PromptTemplate:
        """Return the prompt template for a model with this tokenizer."""
        return template_of(tokenizer, self.data)

    def measured_models(self) -> list[TargetModel]:
        """Return the attacked model, and the model before unlearning and the control if given."""
        models = (self.attacked, self.before, self.control)
        return [model for model in models if model is not None]

    def names(self) -> dict[str, str]:
        """Return a description of each model by role."""
        return {m.role: m.name or m.base for m in self.measured_models()}

    def compared(self) -> list[Row]:
        """Return the holdout rows that an evaluation compares with the forget set.

        There are at most as many documents as ``match_tasks`` draws, because more would cost time
        and add little.
        """
        inside, outside = (
            membership_documents(rows, self.membership) for rows in (self.forget, self.holdout)
        )
        drawn = {row.subject for row in matched(inside, outside, self.seed)[1]}
        return [row for row in self.holdout if row.subject in drawn]

    def need(self, *splits: str) -> None:
        """Raise NotApplicableError for a split that has no rows."""
        for split in splits:
            if not getattr(self, split):
                raise NotApplicableError(
                    f"This attack needs {split} rows, but there are none. Pass a file with "
                    f"--{split}."
                )

    def measured(
        self,
        target_model: TargetModel,
        attack: str,
        settings: Mapping[str, Any],
        rows: Sequence[Row],
        work: Callable[[Any, Any], Facts],
    ) -> Facts:
        """Return ``work(model, tokenizer)``, or its cached result.

        Args:
            settings: All settings that affect the result, as part of the cache key.
            rows: All rows that are used, as part of the cache key.
        """
        facts = self.models.facts(target_model) | {
            "attack": attack,
            **(
                {"template": [self.data.template, self.data.system_prompt]}
                if self.data.template != "none"
                else {}
            ),
            "settings": dict(settings),
            "rows": [row.to_dict() for row in rows],
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        path = self.folder / "cache" / f"{attack}-{digest[:24]}.json"
        earlier = self.folder / "kept" / path.name  # the folder of earlier versions
        path = earlier if earlier.is_file() and not path.is_file() else path
        if path.is_file() and (not self.again or path in self.models.fresh):
            if (cached := _unchanged(path)) is not None:
                say(
                    f"{attack}: using cached measurements of {target_model.role}; "
                    "--again ignores them."
                )
                return cached
            say(f"Warning: {path} is damaged, so {target_model.role} is measured again.")
        say(f"{attack}: {target_model.role} ({target_model.name or target_model.base})")
        with self.models.opened(target_model) as (model, tokenizer):
            values = work(model, tokenizer)
        write_json(path, {"sha256": _digest(values), "found": values})
        self.models.fresh.add(path)
        return dict(json.loads(json.dumps(values)))  # the same types as from the cache


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _unchanged(path: Path) -> Facts | None:
    """Return cached measurements; None if the file is not as it was written."""
    try:
        stored = read_json_object(path)
    except InputError:
        return None
    facts = stored.get("found")
    intact = isinstance(facts, dict) and stored.get("sha256") == _digest(facts)
    return facts if intact else None
