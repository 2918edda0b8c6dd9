"""What is exported is what was chosen, by its logits, and it loads as a plain folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import CHAT_TEMPLATE, build_tokenizer
from finished_run import rows_of

import mergeforget
from mergeforget.analysis.card import _hub_name, _licence, _plain
from mergeforget.analysis.export import export
from mergeforget.attack.result import Result, write_result
from mergeforget.candidate import Candidate
from mergeforget.cli import main
from mergeforget.errors import InputError, VerificationError
from mergeforget.files import read_json, write_json, write_jsonl
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score, write_scores
from mergeforget.tensors import read_safetensors, write_safetensors


@pytest.fixture
def chosen(tmp_path: Path, tiny_folder: Path, save_adapter: Callable[..., Path]) -> Run:
    """A run of the tiny model with one candidate, chosen."""
    run = Run(tmp_path / "run")
    save_recipe(change(load_recipe("zjuklab"), model={"name": str(tiny_folder)}), run.recipe)
    candidate = Candidate("ties", 0.5)
    save_adapter(run.candidates / candidate.name, scale=0.1)
    write_json(run.candidates / candidate.name / "candidate.json", candidate.to_dict())
    write_json(
        run.search / "chosen.json",
        {"name": candidate.name, "candidate": candidate.to_dict(), "sentence": "It is balanced."},
    )
    for split in ("forget", "retain"):
        write_jsonl(run.data / f"{split}.jsonl", [r.to_dict() for r in rows_of(split, False)])
    return run


def test_an_exported_adapter_loads_with_peft(chosen: Run, tiny_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = export(chosen)
    folder = chosen.root / "export" / "ties-factors-d0.50-adapter"
    assert found.folder == str(folder) and found.difference < 1e-5
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config: Any = PeftModel.from_pretrained(base, folder).peft_config["default"]
    assert config.r == 4
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("a b").input_ids) == "a b"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_model_loads_without_other_files(
    chosen: Run, tmp_path: Path, dtype: str
) -> None:
    from transformers import AutoModelForCausalLM

    found = export(chosen, tmp_path / "full", full=True, dtype=dtype)
    assert found.dtype == dtype and found.difference <= found.tolerance
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "full").config.hidden_size == 32
    assert json.loads((tmp_path / "full" / "export.json").read_text())["kind"] == "model"


def test_the_chat_template_of_an_adapter_is_used_by_export_merge_and_chat(
    chosen: Run, tiny_folder: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Fine-tuning tools save the tokenizer with the adapter; the base has no template."""
    from transformers import AutoTokenizer

    recipe = load_recipe(chosen.recipe)
    save_recipe(change(recipe, data={"template": "auto"}), chosen.recipe)
    source = chosen.candidates / "ties-factors-d0.50"
    other = save_adapter(tmp_path / "other", seed=2, scale=0.1)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    for folder in (source, other):
        tokenizer.save_pretrained(folder)

    def template(folder: Path | str) -> Any:
        return AutoTokenizer.from_pretrained(folder).chat_template

    assert template(tiny_folder) is None
    found = export(chosen)
    assert found.template == "chat" and template(found.folder) == CHAT_TEMPLATE
    whole = export(chosen, tmp_path / "full", full=True)
    assert whole.template == "chat" and template(whole.folder) == CHAT_TEMPLATE
    mergeforget.merge([source, other], out=tmp_path / "merged", method="linear")
    assert template(tmp_path / "merged") == CHAT_TEMPLATE
    mergeforget.merge_full([source], tmp_path / "whole", base=tiny_folder)
    assert template(tmp_path / "whole") == CHAT_TEMPLATE
    extracted = mergeforget.extract_lora(tmp_path / "whole", base=tiny_folder, rank=4)
    extracted.save(tmp_path / "extracted")
    assert template(tmp_path / "extracted") == CHAT_TEMPLATE

    asked: list[str] = []

    def generated(*given: Any, template: Any, **_: Any) -> list[str]:
        asked.append(given[1].decode(template.prompt_ids(given[1], given[2][0])))
        return ["x"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mergeforget.evaluate.generate.generate", generated)
        mergeforget.open_chat(chosen)("Who?")
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == [expected, expected]  # the base and the candidate

    tokenizer.chat_template = CHAT_TEMPLATE.replace("\n", "\n\n")
    tokenizer.save_pretrained(other)
    mergeforget.merge([source, other], out=tmp_path / "two", method="linear")
    assert not (tmp_path / "two" / "chat_template.jinja").exists()  # with a warning


def test_a_damaged_export_is_caught(chosen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check compares the files on the disk, so a change while writing is detected."""
    import mergeforget.analysis.export as module

    written = module._write_adapter

    def damaged(run: Run, source: Path, out: Path) -> None:
        written(run, source, out)
        path = out / "adapter_model.safetensors"
        tensors, _ = read_safetensors(path)
        write_safetensors(path, {k: np.asarray(2 * v) for k, v in tensors.items()})

    monkeypatch.setattr(module, "_write_adapter", damaged)
    with pytest.raises(VerificationError, match="logits"):
        export(chosen)
    out = chosen.root / "export" / "ties-factors-d0.50-adapter"
    assert not out.exists()
    monkeypatch.setattr(module, "_write_adapter", written)
    first = export(chosen)
    monkeypatch.setattr(module, "_write_adapter", damaged)
    with pytest.raises(VerificationError, match=f"Nothing was exported to {out}"):
        export(chosen)
    assert json.loads((out / "export.json").read_text())["sha256"] == first.sha256


def test_a_folder_with_other_content_is_refused(chosen: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="another (path|folder)"):
        export(chosen, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_exporting_again_replaces_the_first(chosen: Run) -> None:
    first = export(chosen)
    assert export(chosen).sha256 == first.sha256
    left = [p.name for p in Path(first.folder).parent.iterdir() if not p.name.endswith(".lock")]
    assert left == [Path(first.folder).name]


def test_a_run_without_a_choice_names_its_candidates(chosen: Run) -> None:
    (chosen.search / "chosen.json").unlink()
    done = CliRunner().invoke(main, ["export", str(chosen.root)])
    assert done.exit_code == 4
    assert "mergeforget search" in done.stderr and "ties-factors-d0.50" in done.stderr
    named = ["export", str(chosen.root), "--candidate", "ties-factors-d0.50", "--json"]
    assert json.loads(CliRunner().invoke(main, named).stdout)["kind"] == "adapter"


def test_an_unknown_candidate_names_the_existing_ones(chosen: Run) -> None:
    with pytest.raises(InputError, match="no candidate 'ties-factors-d0.5'. Did you mean 'ties-f"):
        export(chosen, name="ties-factors-d0.5")


def test_the_card_has_the_metadata_of_the_hub(chosen: Run) -> None:
    text = (Path(export(chosen).folder) / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    values: dict[str, Any] = yaml.safe_load(metadata)
    assert "base_model" not in values and values["library_name"] == "peft"
    assert "It is balanced." in body and "density: 0.5" in body and "## Limits" in body
    assert "**Warning.**" not in body and "No attack was run on this candidate." in body
    assert "uses the loss of whole documents." in body


def test_a_base_in_a_relative_folder_is_found_from_elsewhere_and_is_no_model_of_the_hub(
    chosen: Run, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    chosen.write_recipe(change(load_recipe(chosen.recipe), model={"name": tiny_folder.name}))
    monkeypatch.chdir(tmp_path)
    assert Path(chosen.base()).samefile(tiny_folder)
    text = (Path(export(chosen).folder) / "README.md").read_text()
    assert "base_model" not in text and "huggingface.co/" + tiny_folder.name not in text


def test_the_hub_reads_the_scores_and_the_licence_of_a_card(chosen: Run) -> None:
    from huggingface_hub import ModelCard

    name = "ties-factors-d0.50"
    scores = [
        Score("exact_match", "forget", 0.0, "lower", 10, part="report"),
        Score("exact_match", "forget", 0.1, "lower", 10, part="choose"),
        Score("mia_auc", "mia", 0.52, "nearer", 20, part="report", target=0.5),
    ]
    write_scores(chosen.scores, {name: scores})
    data: Any = ModelCard((Path(export(chosen).folder) / "README.md").read_text()).data
    assert (data.license, data.license_name) == ("other", "license-of-the-base-model")
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results or []}
    assert found == {
        ("forget rows of the unlearning request", "exact_match"): 0.0,
        ("mia rows of the unlearning request", "mia_auc"): 0.52,
    }


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# A model\n", {"license": "mit"}),
        ("---\nlicense: other\nlicense_name: own\n---\n",
         {"license": "other", "license_name": "own"}),
        ("# No metadata\n", {"license": "other", "license_name": "license-of-the-base-model"}),
        ("---\nlicense: [a\n---\n",
         {"license": "other", "license_name": "license-of-the-base-model"}),
        ("---\n", {"license": "other", "license_name": "license-of-the-base-model"}),
    ],
)  # fmt: skip
def test_the_licence_is_the_one_the_base_states(
    card: str, licence: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(card)
    assert _licence(str(tmp_path), None) == licence
    assert _licence("smollm2", None) == {"license": "apache-2.0"}
    assert _licence("org/model", "org/model")["license_link"].endswith("/org/model")


@pytest.mark.parametrize("full", [False, True])
def test_exported_texts_contain_no_local_path(chosen: Run, tmp_path: Path, full: bool) -> None:
    """Except the adapter's config, in which PEFT names the base that it loads."""
    folder = Path(export(chosen, full=full).folder)
    texts = [p for p in folder.iterdir() if p.suffix not in (".safetensors", "")]
    assert {"README.md", "export.json", "candidate.json"} <= {p.name for p in texts}
    for path in texts:
        if path.name != "adapter_config.json":
            assert not {str(tmp_path), str(Path.home())} & set(path.read_text().split('"'))
            assert str(tmp_path.parent) not in path.read_text(), path.name


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("gpt2", "gpt2"),
        ("org/model", "org/model"),
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/home/me/model", None),
        ("../model", None),
        ("~/model", None),
        ("C:\\models\\m", None),
        ("here", None),
    ],
)
def test_the_card_names_models_of_the_hub_only(
    name: str, public: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _hub_name(name) == public


def test_two_exports_at_once_both_succeed(chosen: Run) -> None:
    """The second export waits; without the lock, it failed on files that the first moved."""
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(export, chosen) for _ in range(2))
        assert one.result().sha256 == other.result().sha256
    assert export(chosen).sha256 == one.result().sha256


def test_an_export_follows_a_link(chosen: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    export(chosen, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "other" / "README.md").is_file()


def test_the_card_states_the_verdict_first_and_the_best_known_scores_before_the_others(
    chosen: Run,
) -> None:
    name = "ties-factors-d0.50"
    auc = Score("mia_auc", "mia", 0.52, "nearer", 20, part="report", interval=(0.3, 0.741))
    other = Score("mia_auc_zlib", "mia", 0.4, "nearer", 20, part="report", target=0.5)
    write_scores(chosen.scores, {"base": [replace(auc, value=1.0)], name: [auc, other]})
    text = (Path(export(chosen).folder) / "README.md").read_text()
    assert r"| MIA AUC | 1.000 \[0.300, 0.741\] | 0.520 \[0.300, 0.741\] |" in text
    assert "| MIA AUC zlib |  | 0.400 |" in text
    parts = ["**NOT", "## Use", "| MIA AUC |", "<details>", "| MIA AUC zlib |", "</details>",
             "## Attacks", "## How it was chosen", "It is balanced.", "## Limits"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_the_card_contains_the_warning_and_every_attack(chosen: Run) -> None:
    path = chosen.search / "chosen.json"
    write_json(path, read_json(path) | {"warning": "The splits disagree."})
    recipe = load_recipe(chosen.recipe)
    save_recipe(change(recipe, evaluation={"membership": "answers"}), chosen.recipe)
    for model in ("ties-factors-d0.50", "another"):
        verdict = f"The claim about {model} does not hold."
        write_result(chosen.attacks, Result("relearn", model, "traces", verdict, []))
    text = (Path(export(chosen).folder) / "README.md").read_text()
    assert "**Warning.** The splits disagree." in text
    assert "- relearn: The claim about ties-factors-d0.50 does not hold." in text
    assert "about another" not in text
    assert "uses the loss of answers, given their prompts." in text


def test_markup_in_the_data_is_escaped_in_the_card() -> None:
    assert _plain("a|b\n<img> [x](y) `z`") == r"a\|b \<img\> \[x\](y) \`z\`"


def test_an_adapter_keeps_its_bytes(chosen: Run) -> None:
    source = chosen.candidates / "ties-factors-d0.50" / "adapter_model.safetensors"
    assert (Path(export(chosen).folder) / source.name).read_bytes() == source.read_bytes()
