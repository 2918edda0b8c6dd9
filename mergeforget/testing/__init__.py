"""Conformance checks for losses, merge methods and metrics, built in or third-party.

Each function raises AssertionError with a message that explains the problem, so it works in any
test runner::

    from mergeforget.testing import check_merge_method
    from my_package.median import median

    def test_median_conforms():
        check_merge_method(median)

The functions take a name (built in, from a plugin, or announced by a package) or the function.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergeforget.registry import Entry, Registry

if TYPE_CHECKING:
    import torch

    from mergeforget.data.schema import Measured
    from mergeforget.outputs import TokenOutputs

SIZES = (2, 6, 3, 5)  # tokens of each row of a batch, of which the first is the prompt
LENGTH, VOCABULARY, WIDTH, LAYER = 6, 9, 5, 7
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}


def check_merge_method(
    method: str | Callable[..., Any], *, adapters: int = 2, **arguments: Any
) -> None:
    """Check that a merge method meets the requirements of the merge engine.

    The method must keep shape and dtype; not modify its inputs; return the same result for the same
    seed; return finite values; agree between torch and numpy; and give the same result in blocks of
    rows as on the whole tensor (unless registered with ``whole=True``).

    Args:
        method: Name, or function ``(stack, weights, *, ...)``.
        adapters: Number of deltas to merge.
        arguments: Values of keyword-only arguments that have no default.

    Raises:
        AssertionError: The method does not conform.

    >>> check_merge_method("ties")
    """
    import numpy as np
    import torch

    from mergeforget.merge.kernels.rng import NamedGenerator
    from mergeforget.merge.methods import MERGE_METHODS, SUPPLIED, traits

    entry = _entry(MERGE_METHODS, method)
    _check_signature(entry, required=set(SUPPLIED) | set(arguments))
    takes = entry.parameters
    weights = np.array([1.0, -0.5, 0.75, 0.25])[:adapters]
    stack = np.random.default_rng(0).standard_normal((len(weights), 6, 7)).astype(np.float32)
    inputs = np.random.default_rng(2).standard_normal((len(weights), 30, 7)).astype(np.float32)

    def merge(x: Any, w: Any, grams: Any) -> Any:
        given: dict[str, Any] = {"density": 0.6} if "density" in takes else {}
        if "generator" in takes:
            given["generator"] = NamedGenerator(0, "module")
        if "grams" in takes:
            given["grams"] = grams
        for name in ("importance", "contrast"):  # magnitudes of gradients, one per entry
            if name in takes:
                given[name] = abs(x) + (name == "contrast")
        if "shares" in takes:
            given["shares"] = [0.5] * len(x)
        if "base_weights" in takes:
            given["base_weights"] = x.sum(0)
        return entry.fn(x, w, **given | arguments)

    grams = np.einsum("nti,ntj->nij", inputs, inputs)
    before = stack.copy()
    merged = merge(stack, weights, grams)
    name = entry.name
    _expect(merged.shape == stack.shape[1:], f"{name} returns the shape {merged.shape} for deltas "
            f"of {stack.shape[1:]}.")  # fmt: skip
    _expect(merged.dtype == stack.dtype, f"{name} returns {merged.dtype} for deltas of float32.")
    _expect(bool(np.isfinite(merged).all()), f"{name} returns NaN or Inf for finite deltas.")
    _expect(np.array_equal(stack, before), f"{name} modifies its input.")
    again = merge(stack, weights, grams)
    _expect(np.array_equal(merged, again), f"{name} returns different results for the same seed.")
    tensors = [torch.from_numpy(x) for x in (stack, weights, grams)]
    other = merge(*tensors)
    _expect(isinstance(other, torch.Tensor), f"{name} returns {type(other)} for torch tensors.")
    np.testing.assert_allclose(
        other.numpy(), merged, rtol=1e-5, atol=1e-5, err_msg=f"{name}: torch and numpy differ."
    )
    known = traits(name) if name in MERGE_METHODS.names() else None
    by_row = not (known and known.whole) and not {"generator", "cuts", "l1_factors"} & takes.keys()
    if by_row and not (known and (known.coefficients or known.maps or known.factors)):
        parts = [merge(stack[:, rows], weights, grams) for rows in (slice(0, 2), slice(2, None))]
        np.testing.assert_allclose(
            np.concatenate(parts), merged, rtol=1e-6, atol=1e-6,
            err_msg=f"{name} gives a different result on blocks of rows. "
            "Register it with whole=True.",
        )  # fmt: skip


def check_loss(
    loss: str | Callable[..., Any], *, additive: bool | None = None, **arguments: Any
) -> None:
    """Check that an unlearning loss meets the requirements of the trainer.

    The loss must return a finite scalar with a finite gradient; be independent of the padding side
    and of the order of the rows; have no gradient at positions outside its mask; count a row of
    weight 2 twice; and add up over micro-batches (unless registered with ``additive=False``).

    Args:
        loss: Name, or function ``(policy, reference, *, ...)``.
        additive: Whether the loss must add up over micro-batches; by default as registered.
        arguments: Values of keyword-only arguments.

    Raises:
        AssertionError: The loss does not conform.

    >>> check_loss("npo", beta=0.5)
    """
    import torch

    from mergeforget.losses import UNLEARNING_LOSSES

    entry = _entry(UNLEARNING_LOSSES, loss)
    name = entry.name
    _check_signature(entry)

    def value(rows: list[int], side: str = "left", total: bool = False,
              weights: list[float] | None = None) -> torch.Tensor:  # fmt: skip
        return _loss(entry, arguments, rows, side, total, weights)[0]

    def same(a: Any, b: Any, what: str) -> None:
        torch.testing.assert_close(a, b, **CLOSE, msg=lambda text: f"{name}: {what} {text}")

    whole = value([0, 1, 2, 3])
    _expect(whole.shape == (), f"{name} returns the shape {tuple(whole.shape)}, not a scalar.")
    _expect(bool(torch.isfinite(whole)), f"{name} returns {float(whole)} for ordinary outputs.")
    same(value([0, 1, 2, 3], "right"), whole, "the side of the padding changes the loss.")
    same(value([2, 0, 3, 1]), whole, "the order of the rows changes the loss.")
    same(
        value([0, 1, 2], weights=[1.0, 2.0, 0.0]), value([0, 1, 1]),
        "a row of weight 2 does not count twice: take means with row_mean or token_mean.",
    )  # fmt: skip
    if entry.traits.get("additive", True) if additive is None else additive:
        for parts in ([[0], [1], [2], [3]], [[3, 1, 0], [2]]):
            added = sum((value(rows, total=True) for rows in parts), torch.zeros(()).double())
            same(
                added, whole,
                "the losses of micro-batches do not add up to the loss of the batch: take means "
                "with row_mean or token_mean, or register it with additive=False.",
            )  # fmt: skip
    _check_gradient(entry, arguments)


def check_metric(metric: str | Callable[..., Any]) -> None:
    """Check that a metric meets the requirements of benchmarks and reports.

    The metric must return a Score with a finite value, the number of rows, a versioned definition
    and an interval that contains the value; return None without data; and be independent of the
    order of the rows.

    Args:
        metric: Name, or function ``(measured, split, task="")``.

    Raises:
        AssertionError: The metric does not conform.

    >>> check_metric("exact_match")
    """
    import re

    from mergeforget.data.schema import Measured
    from mergeforget.metrics import METRICS
    from mergeforget.score import Score

    entry = _entry(METRICS, metric)
    _check_signature(entry)
    split = inspect.signature(entry.fn).parameters.get("split")
    _expect(split is not None, f"{entry.name} has no argument 'split'.")
    assert split is not None
    chosen = "forget" if split.default is split.empty else split.default

    def score(measured: Measured) -> Any:
        return entry.fn(measured, chosen)

    measured = measured_for_checks()
    found, name = score(measured), entry.name
    _expect(isinstance(found, Score), f"{name} returns {found!r} for rows with every kind of data.")
    _expect(math.isfinite(found.value), f"{name} has the value {found.value}.")
    _expect(found.split == chosen, f"{name} reports the split {found.split!r}.")
    _expect(found.better in ("higher", "lower", "nearer"), f"{name} has better={found.better!r}.")
    _expect(
        found.better != "nearer" or found.target is not None,
        f"{name} has better='nearer' but no target.",
    )
    _expect(found.n >= 1, f"{name} reports n={found.n} rows.")
    _expect(
        re.search(r".@\d+$", found.definition) is not None,
        f"{name} has the definition {found.definition!r}; give it a version: 'my-metric@1'.",
    )
    if found.interval is not None:
        low, high = found.interval
        slack = 1e-9 + 0.05 * abs(high - low)
        inside = low - slack <= found.value <= high + slack
        _expect(inside, f"{name}: its interval {found.interval} does not contain {found.value}.")
    turned = replace(
        measured, answers=measured.answers[::-1], losses=measured.losses[::-1],
        likelihoods=measured.likelihoods[::-1],
    )  # fmt: skip
    _expect(math.isclose(score(turned).value, found.value, rel_tol=1e-9, abs_tol=1e-12),
            f"{name} depends on the order of the rows.")  # fmt: skip
    _expect(score(Measured([], [])) is None, f"{name} returns a score without any data.")


def _entry(registry: Registry[Any], member: str | Callable[..., Any]) -> Entry[Any]:
    """Return the registry entry of a name or function; a function may be unregistered."""
    if isinstance(member, str):
        return registry.get(member)
    for name in registry.names():
        if member.__name__ == name and registry.get(name).fn is member:
            return registry.get(name)
    return Entry(member.__name__, member, "not registered")


def _check_signature(entry: Entry[Any], required: set[str] | None = None) -> None:
    _expect(bool(entry.summary), f"{entry.name} has no docstring.")
    _expect(bool(entry.source), f"{entry.name} has no source.")
    for name, parameter in entry.parameters.items():
        missing = parameter.default is parameter.empty and name not in (required or ())
        _expect(not missing, f"{entry.name}: the argument {name!r} has no default.")
        _expect(parameter.annotation is not parameter.empty, f"{entry.name}: the argument {name!r} "
                "has no type.")  # fmt: skip


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def outputs_for_checks(
    seed: int, rows: list[int], side: str = "left", total: bool = False
) -> TokenOutputs:
    """Return random outputs of up to four rows, packed from a table padded on one side.

    Args:
        rows: Indices of the rows, in order.
        side: Side of the padding, ``left`` or ``right``; the content is the same.
        total: Whether the rows are a micro-batch of a step that has all four.
    """
    import torch

    from mergeforget.outputs import ANSWER, PADDING, PROMPT, TokenOutputs

    generator = torch.Generator().manual_seed(seed)
    shape = len(SIZES), LENGTH
    logits = torch.randn(*shape, VOCABULARY, generator=generator, dtype=torch.float64)
    hidden = torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.arange(math.prod(shape)).view(shape) % VOCABULARY
    at, row, kind = [], [], []
    for place, r in enumerate(rows):
        start = LENGTH - SIZES[r] if side == "left" else 0
        for i in range(LENGTH):
            inside = start <= i < start + SIZES[r]
            at.append((r, (i - start) % LENGTH))  # the same content on either side
            row.append(place)
            kind.append((PROMPT if i == start else ANSWER) if inside else PADDING)
    rs, js = (torch.tensor(x) for x in zip(*at, strict=True))
    n = len(SIZES)
    totals = {PADDING: math.prod(shape) - sum(SIZES), PROMPT: n, ANSWER: sum(SIZES) - n}
    return TokenOutputs(
        logits[rs, js], labels[rs, js], torch.tensor(row), len(rows), torch.tensor(kind),
        hidden={LAYER: hidden[rs, js]},
        row_total=n if total else None,
        token_total=totals if total else None,
    )  # fmt: skip


def _loss(
    entry: Entry[Any],
    arguments: dict[str, Any],
    rows: list[int],
    side: str = "left",
    total: bool = False,
    weights: list[float] | None = None,
    leaves: bool = False,
) -> tuple[torch.Tensor, TokenOutputs]:
    """Return the loss of some rows, and the policy's outputs; ``leaves`` enables gradients."""
    import torch

    every = [outputs_for_checks(seed, rows, side, total) for seed in range(5)]
    for one in every:
        one.weights = None if weights is None else torch.tensor(weights)
        if leaves:
            assert isinstance(one.source, torch.Tensor) and one.hidden is not None
            one.source.requires_grad_()
            one.hidden[LAYER].requires_grad_()
    policy, reference, policy.refusal, reference.refusal, reference.reinforced = every
    value: torch.Tensor = entry.fn(policy, reference, **arguments)
    return value, policy


def _check_gradient(entry: Entry[Any], arguments: dict[str, Any]) -> None:
    import torch

    from mergeforget.outputs import ANSWER, PADDING

    name, needs = entry.name, entry.needs
    value, policy = _loss(entry, arguments, [0, 1, 2, 3], leaves=True)
    read = policy.refusal if "refusal" in needs and "answer" not in needs else policy
    assert read is not None and read.hidden is not None and isinstance(read.source, torch.Tensor)
    leaf = read.hidden[LAYER] if "hidden" in needs else read.source
    (slope,) = torch.autograd.grad(value, leaf, allow_unused=True)
    _expect(slope is not None, f"{name} has no gradient with respect to the outputs named "
            f"in needs={needs}.")  # fmt: skip
    _expect(bool(torch.isfinite(slope).all()), f"{name} has a gradient that is NaN or Inf.")
    mask = entry.parameters.get("mask")
    masked = arguments.get("mask", mask.default if mask else "answers")
    reads = read.kind != PADDING if masked == "tokens" else read.kind == ANSWER
    if masked != "all":
        untouched = bool((slope[~reads] == 0).all())
        _expect(untouched, f"{name} has a gradient outside its mask, at padding or prompts.")
    _expect(bool((slope[reads] != 0).any()), f"{name} has no gradient at the answers.")


def measured_for_checks() -> Measured:
    """Return twelve documents with all data that a metric may read."""
    from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured, Row

    def of(split: str, shift: float) -> tuple[list[Any], list[Any]]:
        answers, likelihoods = [], []
        for i in range(12):
            kind = "sc" if i % 2 else "qa"
            row = Row(
                f"{split}{i}{kind}0", f"Where does person {i} live?", f"In town number {i + 20}",
                "Task1", split, paraphrased=f"Town {i + 20}", perturbed=("Nowhere", "At sea"),
            )  # fmt: skip
            said = row.output if (i + len(split)) % 3 else "In a house near the sea"
            nll = 0.5 + shift + 0.13 * ((7 * i) % 12)
            answers.append(Answer(row, said))
            likelihoods.append(
                AnswerLikelihood(row, nll, 5, 0.6, 0.2, nll + 0.3, (nll + 0.2, nll + 0.7))
            )
        return answers, likelihoods

    def once(shift: float) -> Measured:
        splits = ("forget", "retain", "real_authors", "world_facts")
        parts = [of(split, shift * i) for i, split in enumerate(splits)]
        losses = [
            DocumentLoss(f"{member}{i}", member, nll := 1 + 0.1 * ((5 * i) % 12) + shift * member,
                         "Task1", {f"min_k_{k}": -nll - k / 100 for k in (10, 20, 40)}
                         | {"zlib": -nll, "reference": -nll, "min_k++_20": -nll,
                            "gradient_norm": -nll})
            for member in (True, False)
            for i in range(12)
        ]  # fmt: skip
        return Measured(
            [a for answers, _ in parts for a in answers],
            losses,
            {"law": (3, 5), "physics": (2, 4)},
            [one for _, likelihoods in parts for one in likelihoods],
        )

    return replace(once(0.21), retrained=once(0.13))
