"""What was merged and how: the recipe of one merge, and its name on the disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Space = Literal["factors", "delta"]


@dataclass(frozen=True)
class Candidate:
    """One way to merge the pair.

    Attributes:
        method: a merge method, see ``mergeforget list methods``.
        density: fraction of entries kept, in (0, 1]; None for a method that has none.
        weights: one multiplier per adapter.
        space: ``factors`` merges A and B apart (PEFT's ``ties``), ``delta`` merges ``B @ A``.
        rank: of the result, in delta space; None keeps the largest of the inputs.
        seed: of the methods that draw at random.
        arguments: further arguments of the method.
        by_module: what differs by module or depth: settings by ``density``, ``weights`` (a list,
            one setting per adapter) or an argument's name, see ``merge.by_module``.
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
        """Folder name, for example ``ties-factors-d0.70``; what is at its default is left out."""
        parts = [self.method, self.space]
        if self.density is not None:
            parts.append(
                f"d{self.density:.2f}"
                if round(self.density, 2) == self.density
                else f"d{self.density:g}"
            )
        if any(w != 1 for w in self.weights):
            parts.append("w" + ",".join(f"{w:g}" for w in self.weights))
        if self.rank is not None:
            parts.append(f"r{self.rank}")
        if self.seed:
            parts.append(f"s{self.seed}")
        parts += [f"{k}={v}" for k, v in sorted(self.arguments.items())]
        if self.by_module:
            text = json.dumps(self.by_module, sort_keys=True)
            parts.append("by" + hashlib.sha256(text.encode()).hexdigest()[:8])
        return "-".join(parts).replace("/", "_")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"weights": list(self.weights)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Candidate:
        """The inverse of ``to_dict``; other keys are left out."""
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        return cls(**known | {"weights": tuple(known.get("weights", (1.0, 1.0)))})
