"""A forward pass returns the logits and hidden states of the model, alone or with other sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mergeforget.chunked_logprobs import Projection
from mergeforget.data.batches import pack, pad
from mergeforget.data.schema import Row
from mergeforget.data.tokens import encode_rows
from mergeforget.errors import RecipeError
from mergeforget.outputs import ANSWER, PROMPT
from mergeforget.train import forward
from mergeforget.train.forward import LAST, output_matrix, predict, predict_sets

SETS = {
    name: [Row(f"{name}{i}-qa0", f"Who is {i}?", f"Ada {i} {name}.", "", name) for i in range(5)]
    for name in ("forget", "retain")
}


def test_an_output_layer_with_bias_or_scale_computes_its_logits(tiny_model: Any) -> None:
    assert output_matrix(tiny_model) is tiny_model.get_output_embeddings().weight
    plain = tiny_model.forward

    def capped(*args: Any, **more: Any) -> Any:
        done = plain(*args, **more)
        done.logits = 30 * torch.tanh(done.logits / 30)
        return done

    tiny_model.forward = capped
    assert output_matrix(tiny_model) is None


def test_hidden_states_are_those_after_the_layer(tiny_model: Any, tiny_tokenizer: Any) -> None:
    batch = pack(encode_rows(tiny_tokenizer, SETS["forget"], max_length=64), (PROMPT, ANSWER))
    head = output_matrix(tiny_model)
    said = predict(tiny_model, batch, head=head, layers=[0, 1])
    places = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    full = tiny_model(**places, output_hidden_states=True, use_cache=False)
    assert said.hidden is not None and isinstance(said.source, Projection)
    torch.testing.assert_close(said.hidden[0], full.hidden_states[1][0][batch.keep])
    torch.testing.assert_close(said.logits, full.logits[0][batch.keep])
    with pytest.raises(RecipeError, match="There is no layer 7"):
        predict(tiny_model, batch, layers=[7])


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("headless", [True, False])
def test_the_final_hidden_states_are_those_after_the_norm(
    kind: str, headless: bool, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    model = tiny_model
    if kind == "gpt_neox":  # its norm subtracts the mean
        shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
        config = AutoConfig.for_model(kind, **shape, num_hidden_layers=2, num_attention_heads=4)
        model = AutoModelForCausalLM.from_config(config).eval()
    norm = model.get_decoder().norm if kind == "llama" else model.gpt_neox.final_layer_norm
    with torch.no_grad():
        norm.weight += torch.linspace(0, 3, len(norm.weight))  # learned gains
    rows = encode_rows(tiny_tokenizer, SETS["forget"], max_length=64)
    head = output_matrix(model) if headless else None
    for batch in (pack(rows, (PROMPT, ANSWER)), pad(rows, (PROMPT, ANSWER), 0, side="left")):
        found = predict(model, batch, head=head, layers=[LAST]).hidden
        assert found is not None
        wanted = [
            model(input_ids=torch.tensor([one.ids]), output_hidden_states=True).hidden_states[-1][0]
            for one in rows
        ]
        every = torch.cat([states[:-1] for states in wanted])
        torch.testing.assert_close(found[LAST], every, rtol=1e-4, atol=1e-4)


def test_a_joint_pass_equals_separate_passes(tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = {n: encode_rows(tiny_tokenizer, SETS[n], max_length=64) for n in SETS}
    batches = {"forget": pack(rows["forget"][:2]), "retain": pack(rows["retain"], (PROMPT, ANSWER))}
    totals: dict[str, dict[str, Any]] = {"forget": {"row_total": 5.0}, "retain": {}}
    for head in (None, output_matrix(tiny_model)):
        found = predict_sets(tiny_model, batches, totals, head=head, layers=[1])
        for name, batch in batches.items():
            alone = predict(tiny_model, batch, head=head, layers=[1])
            torch.testing.assert_close(found[name].token_logps, alone.token_logps)
            ours, theirs = found[name].hidden, alone.hidden
            assert ours is not None and theirs is not None
            torch.testing.assert_close(ours[1], theirs[1])
            torch.testing.assert_close(found[name].nll(), alone.nll())
    assert found["forget"].row_total == 5 and found["retain"].row_total is None


def test_the_output_layer_is_restored_after_an_error(tiny_model: Any) -> None:
    with pytest.raises(ZeroDivisionError), forward._without_head(tiny_model):
        raise ZeroDivisionError
    ids = torch.tensor([[3, 4]])
    assert tiny_model(input_ids=ids).logits.shape[-1] == tiny_model.config.vocab_size
