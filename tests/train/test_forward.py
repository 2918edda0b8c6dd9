"""A forward pass returns the logits and hidden states of the model, alone or with other sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergeforget.chunked_logprobs import Projection
from mergeforget.data.batches import pack
from mergeforget.data.schema import Row
from mergeforget.data.tokens import encode_rows
from mergeforget.errors import RecipeError
from mergeforget.outputs import ANSWER, PROMPT
from mergeforget.train import forward
from mergeforget.train.forward import output_matrix, predict, predict_sets

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
