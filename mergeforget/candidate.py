"""The candidate: the definition of one merge, and its folder name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mergeforget.errors import InputError

Space = Literal["factors", "delta"]


@dataclass(frozen=True)
class Candidate:
    """One way to merge the pair.

    Attributes:
        method: Name of a merge method, see ``mergeforget list methods``.
        density: Fraction of entries kept, in (0, 1]; None for methods without density.
        weights: One multiplier per adapter.
        space: ``factors`` merges A and B separately (PEFT's ``ties``), ``delta`` merges ``B @ A``.
        rank: Rank of the result, in delta space; None is the largest rank of the inputs.
        seed: Random seed.
        arguments: Further arguments of the method.
        by_module: Settings that depend on module or depth, for ``density``, ``weights`` (a list,
            one setting per adapter) or an argument; see ``merge.request``.
    """

    method: str
    density: float | None = None
    weights: tuple[float, ...] = (1.0, 1.0)
    space: Space = "factors"
    rank: int | None = None
    seed: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    by_module: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder name, for example ``ties-factors-d0.70``, without values at their defaults."""
        parts = [self.method, self.space]
        if self.density is not None:
            parts.append("d" + _two_digits(self.density))
        parts += [short for short, _ in self._beside()]
        if self.by_module:
            parts.append("by" + _digest(self.by_module))
        return "-".join(parts).replace("/", "_")

    @property
    def family(self) -> str:
        """Description without the density, for example ``ties factors weights 1:0.5``."""
        parts = [self.method, self.space, *(words for _, words in self._beside())]
        others = {key: value for key, value in self.by_module.items() if key != "density"}
        if "density" in self.by_module:
            parts.append("by layer")
        if others:
            parts.append(f"by module {_digest(others)}")
        return " ".join(parts)

    @property
    def densities(self) -> str:
        """The density as text, ``0.70``, or ``0.30, 0.50`` if it differs by module."""
        if self.density is None:
            return ""
        setting = self.by_module.get("density")
        if not isinstance(setting, list) or not all(isinstance(one, dict) for one in setting):
            return _two_digits(self.density)
        values = [one["value"] for one in setting]
        runs = [v for i, v in enumerate(values) if i == 0 or v != values[i - 1]]
        return ", ".join(_two_digits(v) if isinstance(v, float) else str(v) for v in runs)

    def _beside(self) -> list[tuple[str, str]]:
        """Return the values other than defaults, as a short name and in words."""
        found = []
        if any(w != 1 for w in self.weights):
            every = [f"{w:g}" for w in self.weights]
            found.append(("w" + ",".join(every), "weights " + ":".join(every)))
        if self.rank is not None:
            found.append((f"r{self.rank}", f"rank {self.rank}"))
        if self.seed:
            found.append((f"s{self.seed}", f"seed {self.seed}"))
        return found + [(f"{k}={v}",) * 2 for k, v in sorted(self.arguments.items())]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"weights": list(self.weights)}

    @classmethod
    def from_dict(cls, values: Any, where: object = "the candidate") -> Candidate:
        """Create a candidate from ``to_dict``; other keys are ignored.

        Args:
            values: Content of a file.
            where: Name of the file, for messages.

        Raises:
            InputError: A value is missing or has another type.
        """
        known = {k: v for k, v in values.items() if k in _TYPES} if isinstance(values, dict) else {}
        if not isinstance(known.get("method"), str):
            raise InputError(f"{where} does not describe a candidate: it has no method.")
        for key, value in known.items():
            if isinstance(value, bool) or not isinstance(value, _TYPES[key]):
                raise InputError(f"{where} is damaged: {key} is {str(value)[:40]!r}.")
        weights = known.get("weights", (1.0, 1.0))
        if any(isinstance(w, bool) or not isinstance(w, int | float) for w in weights):
            raise InputError(f"{where} has weights that are not numbers: {str(weights)[:40]}.")
        for key, setting in known.get("by_module", {}).items():
            filters = [one for one in _listed(setting) if isinstance(one, dict)]
            if any("value" not in one for one in filters):
                raise InputError(f"{where} has a filter of {key} without a value in by_module.")
        return cls(**known | {"weights": tuple(weights)})


DEFAULT = Candidate("ties", 0.8)
"""The default merge of the API, the commands, recipes and searches.
The density applies to methods that need one."""

_TYPES: dict[str, Any] = {
    "method": str,
    "density": (int, float, type(None)),
    "weights": (list, tuple),
    "space": str,
    "rank": (int, type(None)),
    "seed": int,
    "arguments": dict,
    "by_module": dict,
}


def _listed(setting: Any) -> list[Any]:
    """Return the filters of a setting; weights have one setting per adapter."""
    rows = setting if isinstance(setting, list) else [setting]
    return [one for row in rows for one in (row if isinstance(row, list) else [row])]


def _two_digits(density: float) -> str:
    return f"{density:.2f}" if round(density, 2) == density else f"{density:g}"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
