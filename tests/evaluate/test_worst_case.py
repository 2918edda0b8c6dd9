"""A model is asked raw and in chat; what it answers in any way is reported as known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer

from mergeforget.attack.methods.formats import formats
from mergeforget.attack.target import Models, Target, TargetModel
from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.data.tokens import encode_rows
from mergeforget.errors import InputError, UsageError
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.generate import generate
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.run_models import evaluate_any
from mergeforget.evaluate.table import notes
from mergeforget.evaluate.worst_case import known_variants, worst_case, worst_scores
from mergeforget.metrics import METRICS
from mergeforget.outputs import ANSWER
from mergeforget.recipe import DataSpec, EvaluationSpec, ModelSpec
from mergeforget.score import Score, find

QUESTIONS = [("Who?", "Ada."), ("Where?", "Lund."), ("When?", "1815."), ("Why?", "Fun."),
             ("How?", "By sea.")]  # fmt: skip
FORGET = [Row(f"q{i}", q, a, "", "forget") for i, (q, a) in enumerate(QUESTIONS)]
SYSTEM = "Answer the question."  # among attack/systems.txt


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a tiny chat model that answers every question in one way of asking."""

    @cache
    def learn(choice: Any, system: str | None = None) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"{choice}-{system}"
        tokenizer, model = build_tokenizer(), build_model()
        tokenizer.chat_template = CHAT_TEMPLATE
        way = PromptTemplate.resolve(tokenizer, choice, system)
        rows = encode_rows(tokenizer, FORGET, max_length=200, template=way)
        longest = max(map(len, rows))
        ids = torch.tensor([r.ids + [2] * (longest - len(r)) for r in rows])
        labels = torch.tensor(
            [[i if k == ANSWER else -100 for i, k in zip(r.ids, r.kinds, strict=True)]
             + [-100] * (longest - len(r)) for r in rows]
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(40):
            for _ in range(10):
                optimizer.zero_grad()
                model(input_ids=ids, labels=labels).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            model.eval()
            if repeated(model, tokenizer, way) == len(FORGET):
                break
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return learn


def repeated(model: Any, tokenizer: Any, way: PromptTemplate) -> int:
    """Answers that plain ``model.generate`` repeats."""
    right = 0
    for row in FORGET:
        prompt = torch.tensor([way.prompt_ids(tokenizer, row)])
        out = model.generate(prompt, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
        right += text.strip() == row.output
    return right


def evaluation_of(model: Path, folder: Path, **data: Any) -> Evaluation:
    own = {name: data.pop(name) for name in ("ask", "system_prompts") if name in data}
    settings = EvaluationSpec(benchmark="custom", max_new_tokens=12, **own)
    return Evaluation(
        str(model),
        ModelSpec(name=str(model)),
        settings,
        EvaluationRows(FORGET),
        folder,
        data=DataSpec(**data),
    )


@pytest.mark.parametrize(
    ("choice", "system", "own"),
    [("chat", None, "chat"), ("none", None, "raw"), ("chat", SYSTEM, "chat-system")],
)
def test_a_model_that_answers_one_prompt_variant_is_reported_as_knowing(
    learned: Callable[..., Path],
    tmp_path: Path,
    choice: Any,
    system: str | None,
    own: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = learned(choice, system)
    _, scores = evaluate_any(evaluation_of(folder, tmp_path, system_prompt=system), None, "m")
    exact = find(scores, "exact_match", "forget")
    rouge = find(scores, "verbatim_rouge", "forget")
    assert exact is not None and exact.value == 1 and rouge is not None and rouge.value == 1
    assert (
        exact.by_variant is not None and exact.by_variant[own] == 1 and len(exact.by_variant) == 3
    )
    told = notes(EvaluationSpec(benchmark="custom"), {"m": scores})
    assert min(exact.by_variant.values()) == 1 or any("depends on the prompt" in t for t in told)
    assert Score.from_dict(exact.to_dict()).by_variant == exact.by_variant
    assert "raw prompts only" not in capsys.readouterr().err


def test_a_model_that_answers_after_a_common_system_message_is_found(
    learned: Callable[..., Path], tmp_path: Path
) -> None:
    folder = learned("chat", SYSTEM)
    evaluation = evaluation_of(folder, tmp_path, system_prompts=["Be Bob.", SYSTEM])
    _, scores = evaluate_any(evaluation, None, "m")
    exact = find(scores, "exact_match", "forget")
    assert exact is not None and exact.value == 1 and exact.by_variant is not None
    assert exact.by_variant["chat-system-2"] == 1 and "chat-system-1" in exact.by_variant
    with pytest.raises(UsageError, match="--ask own"):
        evaluation_of(folder, tmp_path, ask="own", system_prompts=[SYSTEM]).variants()

    attacked = TargetModel("m", str(folder))
    models = Models(ModelSpec(name=str(folder)))
    target = Target(models, attacked, None, None, FORGET, [], [], tmp_path, max_new_tokens=12)
    found = formats(target, formats=["system"])
    assert found.figures["leaked_rows"] == [row.id for row in FORGET]
    assert {e["prompt"] for e in found.examples} == {row.input for row in FORGET}
    (tmp_path / "mine.txt").write_text(f"# mine\n{SYSTEM}\n")
    mine = formats(target, formats=["system"], systems=tmp_path / "mine.txt")
    assert mine.figures["prompts"] == 2 * len(FORGET) and mine.figures["rows"] == len(FORGET)
    assert mine.figures["leaked_rows"] == found.figures["leaked_rows"]


def test_the_chat_template_of_an_adapter_is_used(
    tiny_folder: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Fine-tuning tools save the tokenizer with the adapter; the base may have no template."""
    adapter = save_adapter(tmp_path / "adapter")
    evaluation = evaluation_of(tiny_folder, tmp_path)
    assert [way.name for way in evaluation.variants()] == ["raw"]
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(adapter)
    found = replace(evaluation, chat_from=adapter, _variants=[])
    assert [way.name for way in found.variants()] == ["chat", "raw", "chat-system"]
    models = Models(ModelSpec(name=str(tiny_folder)), chat_from=adapter)
    with models.opened(TargetModel("m", str(tiny_folder), adapter)) as (_, used):
        assert used.chat_template == CHAT_TEMPLATE
    assert models.facts(TargetModel("before", str(tiny_folder)))["chat"] == CHAT_TEMPLATE
    tokenizer.add_tokens(["<|turn|>"])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(InputError, match="a tokenizer with other tokens than the model's"):
        replace(evaluation, chat_from=adapter, _variants=[]).variants()


def test_evaluating_a_chat_model_with_raw_prompts_only_warns(
    learned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = learned("chat")
    evaluation = evaluation_of(folder, tmp_path, template="none", ask="own")
    _, scores = evaluate_any(evaluation, None, "m")
    exact = find(scores, "exact_match", "forget")
    assert exact is not None and exact.by_variant is None
    assert "raw prompts only" in capsys.readouterr().err


def test_measurements_are_cached_by_template(learned: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(learned("chat"), folder)
    evaluation = evaluation_of(folder, tmp_path)
    prints = {evaluation.fingerprint(None, way) for way in evaluation.variants()}
    assert len(prints) == 3 and evaluation.fingerprint(None) in prints
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("\n", "\n\n")
    tokenizer.save_pretrained(folder)
    changed = evaluation_of(folder, tmp_path)
    assert not prints & {changed.fingerprint(None, way) for way in changed.variants()[:1]}


def test_a_manually_rendered_prompt_is_answered_as_in_chat(learned: Callable[..., Path]) -> None:
    from mergeforget.models import load_model

    loaded = load_model(str(learned("chat")))
    chat = PromptTemplate.resolve(loaded.tokenizer)
    typed = [chat.prompt_text(loaded.tokenizer, row) for row in FORGET]
    texts = generate(loaded.model, loaded.tokenizer, typed, max_new_tokens=12, label="")
    assert texts == [row.output for row in FORGET]


def test_rows_known_under_different_variants_all_count_as_known() -> None:
    def way(known: int, split: str) -> Measured:
        rows = [Row("a", "Q", "yes", "", split), Row("b", "Q", "yes", "", split)]
        return Measured(
            [Answer(r, "yes" if i == known else "no") for i, r in enumerate(rows)],
            [DocumentLoss("a", True, float(known)), DocumentLoss("c", False, 0.5 + known / 4)],
            likelihoods=[AnswerLikelihood(r, 0.1 if i == known else 3.0, 2, float(i == known), 0.0)
                         for i, r in enumerate(rows)],
        )  # fmt: skip

    forget = worst_case({"raw": way(0, "forget"), "chat": way(1, "forget")})
    assert [a.completion for a in forget.answers] == ["yes", "yes"]
    assert [(x.nll, x.greedy) for x in forget.likelihoods] == [(0.1, 1.0), (0.1, 1.0)]
    retain = worst_case({"raw": way(0, "retain"), "chat": way(1, "retain")})
    assert [a.completion for a in retain.answers] == ["no", "no"]
    assert [(x.nll, x.greedy) for x in retain.likelihoods] == [(3.0, 0.0), (3.0, 0.0)]


def test_the_headline_is_never_better_than_any_variant() -> None:
    def scores(forget: float, retain: float, auc: float) -> list[Score]:
        return [
            Score("exact_match", "forget", forget, "lower", 4),
            Score("exact_match", "retain", retain, "higher", 4),
            Score("mia_auc", "mia", auc, "nearer", 4, target=0.5),
            Score("forget_quality", "forget", retain, "higher", 4),
        ]

    variants = {"raw": scores(0.2, 0.9, 0.6), "chat": scores(0.6, 0.7, 0.1)}
    found = worst_scores(scores(0.7, 0.6, 0.6), variants)
    assert [s.value for s in found] == [0.7, 0.6, 0.1, 0.7]
    assert found[0].by_variant == {"raw": 0.2, "chat": 0.6}


def test_retention_counts_only_variants_in_which_the_base_knows_the_rows() -> None:
    """Chat-trained answers that a raw prompt never gave are not lost when it gives none after."""

    def way(known: str) -> Measured:
        rows = [Row("a", "Q", "yes", "", split) for split in ("forget", "retain")]
        return Measured([Answer(r, "yes" if r.split in known else "no") for r in rows], [])

    def scored(measured: Measured) -> list[Score]:
        found = (METRICS.get("exact_match").fn(measured, split) for split in ("forget", "retain"))
        return [score for score in found if score is not None]

    before = {"chat": way("forget retain"), "raw": way("")}
    base = worst_scores(scored(worst_case(before)), {w: scored(m) for w, m in before.items()})
    keeping = known_variants(base)
    assert keeping == {"chat"} and known_variants(scored(before["chat"])) is None
    after = {"chat": way("retain"), "raw": way("forget")}
    found = worst_scores(
        scored(worst_case(after, keeping)), {w: scored(m) for w, m in after.items()}, keeping
    )
    assert [s.value for s in found] == [1.0, 1.0]  # forget: known raw; retain: kept in chat
    assert found[1].by_variant == {"chat": 1.0, "raw": 0.0}
    damaged = {"chat": way(""), "raw": way("retain")}
    assert worst_case(damaged, keeping).answers[1].completion == "no"
