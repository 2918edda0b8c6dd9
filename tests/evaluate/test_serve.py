"""The vLLM backend: what it is asked, and what is said where it is absent."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mergeforget.adapter import read_adapter
from mergeforget.data.schema import Row
from mergeforget.errors import UsageError
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.generate import generate, generate_ids, stop_ids
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.run_models import evaluate_any
from mergeforget.evaluate.serve import Server
from mergeforget.files import read_jsonl
from mergeforget.merge.apply import applied
from mergeforget.models import load_model
from mergeforget.recipe import EvaluationSpec, ModelSpec, change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, search

ROWS = [Row(f"a{i}qa0", f"Who is {i}?", "Ann", "", "forget") for i in range(3)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> list[Any]:
    """Replace vLLM by modules that record the requests; the tiny model answers."""
    calls: list[Any] = []

    class Engine:
        def __init__(self, **settings: Any) -> None:
            calls.append(settings)
            folder = Path(settings["model"])
            self.model = (load_model(ModelSpec(name=str(folder))).model
                          if (folder / "config.json").exists() else tiny_model)  # fmt: skip

        def generate(self, prompts: Any, settings: Any, lora_request: Any, use_tqdm: bool) -> Any:
            calls.append((settings, lora_request))
            each = lora_request if isinstance(lora_request, list) else [lora_request] * len(prompts)
            found: list[Any] = [None] * len(prompts)
            for one in dict.fromkeys(each):
                places = [i for i, request in enumerate(each) if request == one]
                with self.having(one):
                    new = generate_ids(
                        self.model,
                        [prompts[i]["prompt_token_ids"] for i in places],
                        stop=settings.stop_token_ids,
                        max_new_tokens=settings.max_tokens,
                    )
                for i, ids in zip(places, new, strict=True):
                    found[i] = SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])
            return found

        def having(self, request: Any) -> Any:
            """The weights with the adapter of a request that names a PEFT folder."""
            folder = None if request is None else Path(request[2])
            if folder is None or not (folder / "adapter_config.json").exists():
                return nullcontext()
            return applied(self.model, read_adapter(folder), {})

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    vars(modules["vllm"]).update(LLM=Engine, SamplingParams=lambda **kw: SimpleNamespace(**kw))
    vars(modules["vllm.lora.request"]).update(LoRARequest=lambda *words: words)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_the_vllm_backend_has_the_interface_of_generate(
    engine: list[Any], tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    prompts, done = [row.input for row in ROWS], dict[int, Completion]()
    (tmp_path / "over").mkdir()
    server = Server(tmp_path, "float32", rank=20, adapter=tmp_path / "over")
    for _ in range(2):
        texts = server(
            tiny_model, tiny_tokenizer, prompts, max_new_tokens=5, on_done=done.__setitem__
        )
    assert texts == generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=5)
    assert [done[i].text(tiny_tokenizer) for i in range(len(prompts))] == texts
    started, (settings, lora), _ = engine  # one engine for both calls
    assert started["enable_lora"] and started["max_lora_rank"] == 32
    assert settings.temperature == 0 and lora[0] == "over" and lora[2] == str(tmp_path / "over")
    assert settings.stop_token_ids == stop_ids(tiny_model, tiny_tokenizer)


def test_the_vllm_backend_generates_only_answers(
    engine: list[Any], tmp_path: Path, tiny_folder: Path, save_adapter: Callable[..., Path]
) -> None:
    name = str(tiny_folder)
    spec = EvaluationSpec(benchmark="custom", max_new_tokens=4, backend="vllm")
    evaluation = Evaluation(name, ModelSpec(name=name), spec, EvaluationRows(ROWS), tmp_path)
    measured, _ = evaluate_any(evaluation, save_adapter(tmp_path / "over"), "over")
    assert len(measured.answers) == len(measured.likelihoods) == 3
    assert engine[0]["dtype"] == "float32" and engine[0]["max_lora_rank"] == 8
    assert engine[1][1][2] == str(tmp_path / "over")
    same = EvaluationSpec(benchmark="custom", max_new_tokens=4)
    other = Evaluation(name, ModelSpec(name=name), same, EvaluationRows(ROWS), tmp_path)
    assert other.fingerprint(None) != evaluation.fingerprint(None)


def test_a_search_asks_vllm_for_several_candidates_at_once(
    engine: list[Any], tiny_run: Run, tmp_path: Path
) -> None:
    answers = {}
    for backend in ("transformers", "vllm"):
        run = Run(Path(shutil.copytree(tiny_run.root, tmp_path / backend)))
        recipe = change(load_recipe(run.recipe), evaluation={"backend": backend})
        save_recipe(recipe, run.recipe)
        search(run, recipe.search, Options(SearchBudget(), device="cpu"))
        answers[backend] = {path.name: [row["completion"] for row in read_jsonl(path)]
                            for path in run.answers.glob("*[!s].jsonl")}  # fmt: skip
    assert len(answers["vllm"]) == 6 and answers["vllm"] == answers["transformers"]
    (started, *asked) = engine  # base, over and under, then three candidates
    assert started["max_loras"] == 16 and started["max_lora_rank"] == 8
    adapters = [{request and request[0] for request in requests} for _, requests in asked]
    assert adapters[0] == {None, "over", "under"} and len(adapters[1]) == 3 and len(asked) == 2


def test_a_missing_package_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"pip install 'mergeforget\[serve\]'"):
        Server(tmp_path, "float32")(tiny_model, tiny_tokenizer, ["a"])
