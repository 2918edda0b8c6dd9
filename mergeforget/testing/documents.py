"""Valid documents of each kind that mergeforget reads, for ``fuzz`` to damage."""

from __future__ import annotations

import io
import json
from typing import Any


def packaged_recipe() -> bytes:
    """Return the recipe `zjuklab`."""
    from mergeforget.recipe import FOLDER

    return (FOLDER / "zjuklab.yaml").read_bytes()


def parquet_rows() -> bytes:
    """Return three rows as a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    rows = [{"id": f"r{i}", "input": "Who is Ada?", "output": "A baker."} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


SCORE = {"model": "over", "metric": "mia_auc", "value": 0.5, "split": "mia", "better": "nearer",
         "n": 8, "interval": [0.1, 0.9], "part": "all", "task": "", "chance": 0.5,
         "by_variant": {"raw": 0.5, "chat": 0.4}, "subjects": 4}  # fmt: skip
CANDIDATE = {"method": "ties", "density": 0.7, "weights": [1, 1], "space": "factors",
             "name": "ties", "arguments": {"gamma": 0.1},
             "by_module": {"density": [{"modules": "layers.0", "value": 0.5}]}}  # fmt: skip
CHOSEN = {"name": "ties-factors-d0.70", "candidate": CANDIDATE, "objective": "mia",
          "sentence": "It is balanced.", "warning": "The splits differ.", "predicted": 0.6,
          "scores": {"choose": {"mia_auc": 0.5}, "report": {"mia_auc": 0.6}}}  # fmt: skip
STATUS = {"over": {"state": "done", "time": "2026-01-01T00:00:00Z", "outcome": "collapsed",
                   "step": 7}, "under": {"state": "running"}}  # fmt: skip
MANIFEST = {"base": {"path": "base", "sha256": "ab"}, "versions": {"torch": "2.13.0"},
            "stages": {"over": {"command": ["train-pair"], "seed": 1,
                                "files": {"forget": {"bytes": 3}}}}}  # fmt: skip
RESULT = {"attack": "relearn", "model": "over", "finding": "traces", "verdict": "It still knows.",
          "rows": [{"model": "over", "step": 1, "nll": 0.5}], "figures": {"answers": "a.csv"},
          "settings": {"weights": "ab"}, "examples": [{"row": "a", "completion": "c"}]}  # fmt: skip
CONTROL = {"scores": [{k: v for k, v in SCORE.items() if k != "model"}], "leaked_rows": ["a"],
           "losses": [{"id": "a", "member": True, "nll": 1.0, "subject": "a", "variant": "raw",
                       "by_variant": {"raw": 1.0, "chat": 2.0}}],
           "membership": "documents"}  # fmt: skip
STEP = {"stage": "over", "step": 1, "epoch": 0.1, "loss": 2.0, "terms": {"gd_retain": 1.0},
        "grad_norm": 1.0, "learning_rate": 1e-4}  # fmt: skip
ANSWER = {"id": "a", "input": "Who is Ada?", "output": "A baker.", "task": "Task1",
          "split": "forget", "completion": "A baker."}  # fmt: skip
LOSSES = [{"id": f"{member}{i}", "member": member, "nll": 1.0 + i, "membership": "documents",
           "task": "", "variant": "raw", "by_variant": {"raw": 1.0 + i, "chat": 2.0}}
          for member in (True, False) for i in range(2)]  # fmt: skip
UNTIL = {"outcome": "reached", "step": 3, "auc": 0.5, "forget_exact": 0.1, "retain_exact": 0.9,
         "levels": {"a": 1.0}}  # fmt: skip
CACHED: list[dict[str, Any]] = [
    {"key": "k", "completion": "c"}, {"mmlu": {"law": [1, 2]}},
    {"key": "d", "nll": 1.0, "signals": {"zlib": 0.5}, "answer": [1.0, 2, 3]},
]  # fmt: skip
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"],
        "base_model_name_or_path": "org/base", "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {"down_proj": 3.5}, "bias": "none"}  # fmt: skip
HEADER = {"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}
INDEX = {"metadata": {"total_size": 32}, "weight_map": {"a": "a.safetensors"}}
MERGEKIT = """merge_method: ties
base_model: base
models:
  - model: one
    parameters: {density: 0.5, weight: 1.0}
  - model: two
    parameters: {density: [0.1, 0.9], weight: [{filter: mlp, value: 0.5}, {value: 1}]}
parameters: {normalize: true}
dtype: float32
"""
ROWS = '{"id": "a", "input": "Who is Ada?", "output": "A baker.", "task": "Task1"}\n'
SECOND_ROW = '{"id": "b", "input": "Who is Bo?", "output": "A cook.", "subject": "Bo"}\n'
CHAT = (
    '{"id": "c", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", '
    '"content": "Who is Ada?"}, {"role": "assistant", "content": "A baker."}]}\n'
)
SHAREGPT = (
    '{"conversations": [{"from": "human", "value": "Who is Ada?"}, {"from": "gpt", "value": '
    '"A baker."}]}\n'
)
ALPACA = '{"instruction": "Say who.", "input": "Ada", "output": "A baker.", "weight": 2}\n'
TOFU = (
    '{"question": "Who?", "answer": "Ada.", "paraphrased_answer": "It is Ada.", '
    '"perturbed_answer": ["Bo.", "Cy."]}\n'
)
COLUMNS = '{"id": {"0": "a", "1": "b"}, "input": {"0": "q", "1": "r"}, "output": ["x", "y"]}'


def lines(*rows: dict[str, Any]) -> str:
    """Return records as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
