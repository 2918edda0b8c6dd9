"""What is attacked: a model, those it is compared with, and the rows; measured once and kept."""

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
from mergeforget.files import read_json, write_json
from mergeforget.models import content_of, default_device, load_model, locate
from mergeforget.recipe import DataSpec, ModelSpec
from mergeforget.run import Run, versions

Facts = dict[str, Any]  # what is kept of one measurement; plain values for JSON
HASHED = (".safetensors", ".json", ".jinja")  # weights, configuration, tokenizer, chat template
DECIDING = ("torch", "transformers", "peft", "mergeforget")  # versions that may change figures


class NotApplicableError(InputError):
    """An attack that cannot be carried out on this data or model; the others can."""


@dataclass(frozen=True)
class Suspect:
    """One model: a base by name or folder, and an adapter on it or none.

    Attributes:
        role: how results call it: the attacked model's own name, ``before`` or ``control``.
        name: what it is, for a person.
    """

    role: str
    base: str
    adapter: Path | None = None
    name: str = ""


@dataclass
class Models:
    """Opens models; the last base stays loaded, so that several adapters share it."""

    spec: ModelSpec
    device: str | None = None
    _name: str = ""
    _loaded: Any = None
    fresh: set[Path] = field(default_factory=set)  # measured by this process
    _hashes: dict[Path, str] = field(default_factory=dict)

    @contextmanager
    def opened(self, suspect: Suspect) -> Iterator[tuple[Any, Any]]:
        """Model and tokenizer, with the adapter's change in the weights while the block runs."""
        from mergeforget.merge.apply import applied

        if self._name != suspect.base:
            self._loaded = None  # two models at once may not fit
            spec = self.spec.model_copy(update={"name": suspect.base})
            self._loaded, self._name = load_model(spec, device=self.device), suspect.base
        adapter = read_adapter(suspect.adapter) if suspect.adapter else None
        with applied(self._loaded.model, adapter) if adapter else nullcontext():
            yield self._loaded.model, self._loaded.tokenizer

    def facts(self, suspect: Suspect) -> Facts:
        """What decides the figures of a model: hashes of its weights, dtype, device, versions."""
        base = locate(suspect.base, trust_remote_code=self.spec.trust_remote_code)
        known = versions()
        return {
            "base": self._hash(base),
            "adapter": self._hash(suspect.adapter) if suspect.adapter else "",
            "dtype": self.spec.dtype,
            "device": (self.device or default_device()).split(":")[0],
            "versions": {name: known.get(name, "") for name in DECIDING},
        }

    def _hash(self, folder: Path) -> str:
        """Of the weights, configuration and tokenizer in a folder."""
        if folder not in self._hashes:
            self._hashes[folder] = content_of(folder)
        return self._hashes[folder]


@dataclass
class Target:
    """The attacked model, what it is compared with, and the data.

    Attributes:
        before: the model before unlearning, which knew the data.
        control: a model that never saw the data.
        forget, retain, holdout: rows; those of the holdout were seen by none of the models.
        folder: where results go; what was measured is in ``kept`` below it.
        again: measure anew what was measured before.
        data: decides how prompts are rendered, by ``template`` and ``system_prompt``.
        run: the run that the model belongs to, or None.
    """

    models: Models
    suspect: Suspect
    before: Suspect | None
    control: Suspect | None
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
    run: Run | None = None

    def template(self, tokenizer: Any) -> PromptTemplate:
        """How prompts are rendered for a model with this tokenizer."""
        return template_of(tokenizer, self.data)

    def suspects(self) -> list[Suspect]:
        """The model, and those of the others that there are."""
        return [s for s in (self.suspect, self.before, self.control) if s is not None]

    def names(self) -> dict[str, str]:
        """What each of the models is, by role, for the record."""
        return {s.role: s.name or s.base for s in self.suspects()}

    def compared(self) -> list[Row]:
        """Of the holdout, the documents that an evaluation compares with the forget set's.

        At most twice as many, task by task: a large holdout would cost time and tell no more.
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
                    f"This attack needs {split} rows and there are none. Give a file with "
                    f"--{split}."
                )

    def measured(
        self,
        suspect: Suspect,
        attack: str,
        settings: Mapping[str, Any],
        rows: Sequence[Row],
        work: Callable[[Any, Any], Facts],
    ) -> Facts:
        """What ``work(model, tokenizer)`` gives, or gave when the same was measured before.

        Args:
            settings: everything besides model and rows that decides the figures.
            rows: all that are read.
        """
        facts = self.models.facts(suspect) | {
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
        path = self.folder / "kept" / f"{attack}-{digest[:24]}.json"
        if path.is_file() and (not self.again or path in self.models.fresh):
            say(f"{attack}: {suspect.role} was measured before and is kept; --again measures anew.")
            return dict(read_json(path))
        say(f"{attack}: {suspect.role} ({suspect.name or suspect.base})")
        with self.models.opened(suspect) as (model, tokenizer):
            found = work(model, tokenizer)
        write_json(path, found)
        self.models.fresh.add(path)
        return dict(read_json(path))
