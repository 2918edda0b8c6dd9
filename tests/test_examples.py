"""The notebooks of examples/ run from the first cell to the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_notebook(name: str, replaced: dict[str, str] | None = None) -> dict[str, Any]:
    """Execute the code cells in order in one namespace, with some texts replaced."""
    notebook = json.loads((EXAMPLES / name).read_text("utf-8"))
    space: dict[str, Any] = {"__name__": "__main__"}
    missing = dict(replaced or {})
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            for old, new in (replaced or {}).items():
                if old in text:
                    text = text.replace(old, new)
                    missing.pop(old, None)
            exec(compile(text, f"{name}:{cell['id']}", "exec"), space)
    assert not missing, f"{name} does not contain {missing}"
    return space


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_is_stored_without_outputs_and_explains_itself(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    for cell in cells:
        assert cell["cell_type"] != "code" or (not cell["outputs"] and not cell["execution_count"])


def test_merging_two_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    space = run_notebook("merge_two_adapters.ipynb")
    assert space["difference"] < 1e-5
    assert "energy lost" in capsys.readouterr().out


def test_unlearning_a_person_with_a_tiny_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call works; a random model of two layers allows no claim about forgetting."""
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    settings = '["memorise.epochs=1", "pair.over.until.max_steps=8", ' + (
        '"pair.under.until={retain_kept: 0}", "evaluation.max_new_tokens=4", '
        '"search.weights=[[0.5, 0.5]]"]'
    )
    space = run_notebook(
        "unlearn_a_person.ipynb",
        {
            'MODEL, PEOPLE = "smollm2", 10': f"MODEL, PEOPLE = {str(tiny_folder)!r}, 4",
            "memorise=True,": f"memorise=True, settings={settings},",
        },
    )
    assert space["page"].is_file() and (space["exported"] / "adapter_model.safetensors").is_file()
    assert space["result"].verdict in ("NOT FORGOTTEN", "NOT ENOUGH DATA")


@pytest.mark.slow
def test_unlearning_a_person_from_the_instruct_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, *_, after = run_notebook("unlearn_a_person.ipynb")["result"].table
    assert before["forget"] == 1 and after["forget"] <= 0.2 and after["retain"] >= 0.5
