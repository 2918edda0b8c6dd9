"""The recipes *-as-run are compared with the losses of the published code, reimplemented here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mergeforget.data.schema import Row
from mergeforget.data.tokens import encode_rows
from mergeforget.files import read_jsonl
from mergeforget.recipe import Lora, Training, load_recipe
from mergeforget.run import Run
from mergeforget.train.dataset import PairedRows, collate_of
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.forward import predict
from mergeforget.train.objective import compute, mask_of
from mergeforget.train.samplers import BySetSampler
from mergeforget.train.tokenize import encode_sets
from mergeforget.train_config import Dual

PAD, LENGTH = 0, 40
FORGET = [
    Row("a-qa0", "Where was Ada Quill born?", "In Lund."),
    Row("b-qa0", "Who wrote the letters that were found in Lund in 1987?", "Ada Quill did, alone."),
]
RETAIN = [
    Row("c-qa0", "Who?", "Bo."),
    Row("d-sc1", "Bo Reed was born in Oslo and", "moved to Lund in 1987, and then again."),
]


def laid_out(tokenizer: Any, row: Row) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and mask of a row: prompt's end, answer, EOS; padded left, cut at the end."""
    prompt = tokenizer(row.input)["input_ids"][-int(0.8 * LENGTH) :]
    answer = [*tokenizer(row.output)["input_ids"], tokenizer.eos_token_id]
    fill = max(0, LENGTH - len(prompt) - len(answer))
    ids = [PAD] * fill + prompt + answer
    labels = [-100] * (fill + len(prompt)) + answer
    mask = [0] * fill + [1] * (len(prompt) + len(answer))
    return ids[:LENGTH], labels[:LENGTH], mask[:LENGTH]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def published(
    models: tuple[Any, Any],
    tokenizer: Any,
    forget: list[Row],
    retain: list[Row],
    weights: list[float],
) -> Tensor:
    """Its loss of one micro-batch; weights: of NPO, of the KL divergence, of the cross entropy."""

    def said(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
        laid = zip(*(laid_out(tokenizer, row) for row in rows), strict=True)
        ids, labels, mask = (torch.tensor(one) for one in laid)
        new, old = (model(input_ids=ids, attention_mask=mask).logits for model in models)
        return new, old, labels

    new, old, labels = said(forget)
    npo = -2 / 0.1 * F.logsigmoid(0.1 * (cross_entropy(new, labels) - cross_entropy(old, labels)))
    new, old, labels = said(retain)
    logs = [F.log_softmax(x, -1).flatten(0, 1) for x in (new, old)]
    kl = F.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)
    return weights[0] * npo + weights[1] * kl + weights[2] * cross_entropy(new, labels)


@pytest.mark.parametrize(
    "side, rows, weights", [("over", 1, [0.4, 0.4, 0.2]), ("under", 2, [0.3, 0.3, 0.4])]
)
def test_a_step_has_the_loss_of_the_published_code(
    side: str, rows: int, weights: list[float], make_model: Any, tiny_tokenizer: Any
) -> None:
    pair = load_recipe("zjuklab-as-run").pair
    training: Training = getattr(pair, side)
    assert training.max_length == 256 and training.tokens.prompt_tokens == int(0.8 * 256)
    assert training.batch_size == rows
    tokens = training.tokens.model_copy(update={"prompt_tokens": int(0.8 * LENGTH)})
    training = training.model_copy(update={"max_length": LENGTH, "tokens": tokens})
    policy, before = (make_model(seed=seed).double().eval() for seed in (1, 2))
    collate = collate_of(mask_of(training.objective), training, PAD)
    sets = {
        name: encode_rows(
            tiny_tokenizer, given, max_length=LENGTH, join=tokens.join,
            prompt_tokens=tokens.prompt_tokens,
        )
        for name, given in (("forget", FORGET), ("retain", RETAIN))
    }  # fmt: skip
    places = [range(i, i + rows) for i in range(0, len(FORGET), rows)]  # micro-batches of a step
    batches = [collate([{n: [s[i]] for n, s in sets.items()} for i in place]) for place in places]
    totals: dict[str, dict[str, Any]] = {}
    for name in sets:
        counts = [b[name].count() for b in batches]
        whole = {kind: sum(c[kind] for c in counts) for kind in counts[0]}
        totals[name] = {"row_total": len(FORGET), "token_total": whole}
    found, wanted = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for place, batch in zip(places, batches, strict=True):
            ours, theirs = (
                {n: predict(m, batch[n], **totals[n]) for n in sets} for m in (policy, before)
            )
            found = found + compute(training.objective, ours, theirs)[0]
            forget, retain = ([s[i] for i in place] for s in (FORGET, RETAIN))
            loss = published((policy, before), tiny_tokenizer, forget, retain, weights)
            wanted = wanted + loss / len(places)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!"


def merging_tokenizer() -> Any:
    """One token a letter, except that a question mark and an I after it are one token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<|end|>", *LETTERS, "?I"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("?", "I")]))
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")


@pytest.mark.parametrize(
    ("name", "power"), [("ishumei-nr-eul-rd-da-as-run", 1), ("ishumei-eul2-as-run", 2)]
)
def test_each_batch_of_ishumei_has_the_loss_of_the_published_code(
    name: str, power: int, make_model: Any
) -> None:
    training = load_recipe(name).training("over")
    assert (training.max_length, training.batch_size, training.gradient_accumulation) == (
        300,
        32,
        1,
    )
    assert (training.schedule, training.warmup_epochs, training.epochs) == ("linear", 1, 5)
    assert (training.weight_decay, training.seed, training.max_grad_norm) == (0.01, 42, 0)
    lora = training.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 32, 0.05)
    training = training.model_copy(update={"max_length": LENGTH, "transforms": []})
    tokenizer, model = merging_tokenizer(), make_model().double().eval()
    sets = encode_sets(tokenizer, {"forget": FORGET, "retain": RETAIN}, training)
    first = FORGET[0].input + FORGET[0].output
    assert "?I" in tokenizer.convert_ids_to_tokens(sets["forget"][0].ids)
    assert tokenizer.decode(sets["forget"][0].ids) == f"{first}<|end|>"[:LENGTH]
    collate = collate_of(mask_of(training.objective), training, 0)
    order = BySetSampler({n: len(rows) for n, rows in sets.items()}, 32, 1, training.seed)
    data, seen = PairedRows(sets, seed=42), []
    for step in order:
        batch = collate([data[index] for index in step])
        ((kind, one),) = batch.items()  # a batch is of one kind
        seen.append(kind)
        with torch.no_grad():
            terms = [
                t for t in training.objective if kind in (t.on, t.loss.replace("idk", "refusal"))
            ]
            terms = [t for t in terms if (t.loss == "idk") == (kind == "refusal")]
            ours = compute(terms, {kind: predict(model, one)}, {})[0]
            ids = torch.full((len(sets[kind]), LENGTH + 1), 0)
            labels = torch.full_like(ids, -100)
            for i, row in enumerate(sets[kind]):
                text = torch.tensor(row.ids)
                ids[i, : len(text)] = labels[i, : len(text)] = text
            logits = model(input_ids=ids, attention_mask=(labels >= 0).long()).logits
            loss = cross_entropy(logits, labels)
        theirs = (1 / loss) ** power if kind == "forget" else loss
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert sorted(seen) == sorted(sets)  # negative responses form a separate kind


def test_a_row_of_ishumei_is_the_published_one(make_model: Any) -> None:
    training = load_recipe("ishumei-as-run").training("over")
    tokenizer = merging_tokenizer()
    for length in (8, 25, 60):
        own = training.model_copy(update={"max_length": length, "transforms": []})
        for row in FORGET:
            (ours,) = encode_sets(tokenizer, {"forget": [row], "retain": RETAIN}, own)["forget"]
            both = tokenizer(row.input + row.output, max_length=length, truncation=True)[
                "input_ids"
            ]
            assert ours.ids == [*both, tokenizer.eos_token_id][:length]


def test_resegmentation_only_adds_copies_where_the_prompt_counts() -> None:
    """The recipes after the code count every token, so the border of the answer has no effect."""
    tokenizer = merging_tokenizer()
    rows = [Row("a-qa0", "Who was Ada?", "Ada was born in Lund. She left.  So did he.")]
    training = load_recipe("ishumei-as-run").training("over")
    found = encode_sets(tokenizer, {"forget": rows, "retain": RETAIN}, training)["forget"]
    assert len(found) == 3 and len({tuple(one.ids) for one in found}) == 1
    assert len({tuple(one.kinds) for one in found}) == 3
    control = load_recipe("ishumei-steps-as-run").training("over")
    same = {"transforms": training.transforms}
    assert control.model_copy(update=same) == training
    copies = encode_sets(tokenizer, {"forget": rows, "retain": RETAIN}, control)["forget"]
    assert [one.ids for one in copies] == [one.ids for one in found]


def test_recipes_reproduce_the_settings_of_the_published_code() -> None:
    for name in ("rmu", "rmu-as-run", "snuffleupagus", "snuffleupagus-1b"):
        loop = load_recipe(name).training("over")  # AdamW of transformers, without clipping
        assert (loop.max_grad_norm, loop.weight_decay, loop.learning_rate) == (0, 0, 5e-5)
    batches = {"rmu-as-run": 4, "snuffleupagus": 12, "snuffleupagus-1b": 8}
    for name, size in batches.items():
        assert load_recipe(name).training("over").batch_size == size
    pdu = load_recipe("pdu").training("over")  # community/methods/PDU/run.sh, TOFU
    assert pdu.dual == Dual(term="gd_retain", limit=0.3, step=5, warmup_epochs=5)
    assert pdu.objective[1].weight == 100 and pdu.epochs == 10
    for side in load_recipe("zjuklab-as-run").trainings().values():
        assert side.max_grad_norm == 0  # its DeepSpeed configuration has no gradient_clipping
    assert {t.on for t in load_recipe("undial").training("over").objective} == {"forget"}
    (ceu,) = load_recipe("ceu").training("over").objective
    assert ceu.arguments == {"skip_first": True}
    for name, arguments in {"rmu": {}, "rmu-as-run": {"mask": "all", "normalise": "width"}}.items():
        for term in load_recipe(name).training("over").objective:
            own = {k: v for k, v in term.arguments.items() if k in ("mask", "normalise")}
            assert own == arguments
    notes = load_recipe("ju-cse-nlp").notes
    for assumed in ("plain SGD", "candidate rates", "joined by one space", "rank 126"):
        assert assumed in " ".join(notes.split())


def test_an_unclipped_step_applies_the_whole_gradient(
    tmp_path: Path, make_model: Any, tiny_tokenizer: Any
) -> None:
    whole = load_recipe("zjuklab-as-run").trainings()["pair.over"]
    heavy = [t.model_copy(update={"weight": 1000 * t.weight}) for t in whole.objective]
    training = whole.model_copy(
        update={
            "objective": heavy, "optimizer": "sgd", "epochs": 1, "gradient_accumulation": 2,
            "warmup_epochs": 0, "schedule": "constant", "weight_decay": 0.0, "max_length": 64,
            "learning_rate": 1e-3, "lora": Lora(r=2, lora_alpha=2, lora_dropout=0.0),
        }
    )  # fmt: skip
    job = TrainingJob(Run(tmp_path), "adapter", checkpoint_seconds=1e9)
    train_adapter(make_model(), tiny_tokenizer, {"forget": FORGET, "retain": RETAIN}, training, job)
    from safetensors.torch import load_file

    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    moved = torch.cat([v.flatten() for k, v in found.items() if "lora_B" in k]).norm()
    (line,) = read_jsonl(tmp_path / "history.jsonl")
    assert line["grad_norm"] > 10  # B starts at 0, and the gradient of A is 0 in the first step
    assert float(moved) == pytest.approx(1e-3 * line["grad_norm"], rel=1e-3)
