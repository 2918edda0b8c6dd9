"""Logit lens: likelihood of the answer computed from inner layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mergeforget.attack.comparing import by_subject, compare
from mergeforget.attack.guessing import NOT_FINITE
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Facts, NotApplicableError, Target, TargetModel
from mergeforget.data.tokens import cut_to_positions
from mergeforget.errors import NumericError
from mergeforget.evaluate.batching import in_batches, token_budget

NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "embedding_norm")


@attack(
    "logit_lens",
    source="nostalgebraist, interpreting GPT: the logit lens (2020); as an attack: Patil et al., "
    "arXiv:2309.17410",
    strength={"layers": "more"},
)
def logit_lens(target: Target, *, layers: int = 8) -> Result:
    """Compute each answer's likelihood by applying the output layer to inner layers.

    Args:
        layers: Number of evenly spaced layers; the last one is the model's output.

    Raises:
        NotApplicableError: The final norm of the model is not found.
    """
    target.need("forget")
    by_model = {m.role: _by_layer(target, m, layers) for m in target.measured_models()}
    labels = [str(n) for n in by_model[target.attacked.role][0]]
    points = {role: one[1] for role, one in by_model.items()}
    return compare(target, "logit_lens", points, labels, {"layers": layers}, key="layer",
                   unit="nats per token", single=True,
                   what="the likelihood of the answers in its inner layers")  # fmt: skip


def _by_layer(
    target: Target, target_model: TargetModel, layers: int
) -> tuple[list[int], list[Facts]]:
    rows = [r for r in (*target.forget, *target.compared()) if r.output.strip()]

    def work(model: Any, tokenizer: Any) -> Facts:
        template = target.template(tokenizer)
        cut = [template.tokens(tokenizer, row) for row in rows]
        texts, cuts = cut_to_positions(model, [[*one.prompt, *one.answer] for one in cut])
        starts = [len(one.prompt) - less for one, less in zip(cut, cuts, strict=True)]
        numbers = spaced(int(model.config.get_text_config().num_hidden_layers), layers)
        logps = in_batches(
            model, [len(t) for t in texts],
            lambda places: lens_logps(model, [texts[i] for i in places],
                                      [starts[i] for i in places], numbers),
            budget=target.batch_tokens or token_budget(model, logits=True),
            label=f"{target_model.role}: logit lens",
        )  # fmt: skip
        if any(value != value for one in logps for value in one):
            raise NumericError(NOT_FINITE)
        return {"layers": numbers, "logps": logps}

    facts = target.measured(target_model, "logit_lens", {"layers": layers}, rows, work)
    n = len([r for r in target.forget if r.output.strip()])
    points = []
    for place in range(len(facts["layers"])):
        values = [one[place] for one in facts["logps"]]
        points.append({"forget": by_subject(rows[:n], values[:n]),
                       "holdout": by_subject(rows[n:], values[n:])})  # fmt: skip
    return list(facts["layers"]), points


def spaced(depth: int, layers: int) -> list[int]:
    """Return evenly spaced layer numbers from 1 to ``depth``, including the last one.

    Example:
        >>> spaced(12, 4)
        [3, 6, 9, 12]
    """
    n = min(depth, layers)
    return [round(depth * (i + 1) / n) for i in range(n)]


@torch.inference_mode()
def lens_logps(
    model: Any, texts: list[list[int]], starts: list[int], layers: list[int]
) -> list[list[float]]:
    """Return each text's mean log-probability from its start on, by layer; (texts, layers).

    A text that is too long for the model's positions is truncated at its beginning. The first
    token of a text has no context, so it is not scored.
    """
    texts, cuts = cut_to_positions(model, texts)
    starts = [max(1, start - cut) for start, cut in zip(starts, cuts, strict=True)]
    longest = max(len(t) for t in texts)
    ids = torch.tensor([t + [0] * (longest - len(t)) for t in texts]).to(model.device)
    lengths = torch.tensor([len(t) for t in texts], device=model.device)
    mask = torch.arange(longest, device=model.device) < lengths[:, None]
    states = model(
        input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
    ).hidden_states
    norm, head, depth = final_norm(model), model.get_output_embeddings(), len(states) - 1
    logps_of_rows = []
    for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
        labels = ids[row, start : len(text)]
        values = []
        for layer in layers:
            state: Tensor = states[layer][row, start - 1 : len(text) - 1]
            state = state if layer == depth else norm(state)  # the last state is already normalised
            logps = head(state).float().log_softmax(-1)
            values.append(float(logps.gather(1, labels[:, None]).mean()))
        logps_of_rows.append(values)
    return logps_of_rows


def final_norm(model: Any) -> nn.Module:
    """Return the norm before the output layer.

    Raises:
        NotApplicableError: It is not found under a known name.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(inner, inner.base_model_prefix, inner)
    for part in (body, getattr(body, "decoder", None), getattr(body, "language_model", None)):
        for name in NORMS:
            if isinstance(norm := getattr(part, name, None), nn.Module):
                return norm
    raise NotApplicableError(
        f"The logit lens does not find the final norm of {type(inner).__name__} (tried "
        f"{', '.join(NORMS)}). Omit this attack for this model."
    )
