"""Truncate a delta to a rank: exactly from its factors, or from the dense delta.

Factors are ``b @ a`` with b (out, rank) and a (rank, in), numpy arrays or torch tensors. The
result follows PEFT: the rows of ``a`` are orthonormal and ``b`` contains the singular values.
Inner products are summed in float64, which tolerates a squared condition number.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from mergeforget.merge.kernels.arrays import Tensor, library, like, to_dtype

Svd = Literal["fast", "exact"]
MAX_STEPS = 16  # maximum number of subspace iterations
NEAR = 5e-5  # stop if further steps would reduce the squared residual by less than this share
TINY = 1e-6  # stop if the last step reduced the squared residual by less than this share
SLANTED = 1e-4  # smallest ratio of lengths for which a Cholesky factor keeps rows orthonormal
UPRIGHT = 0.1  # the same for unit vectors whose products are taken in float32
ROUNDING = 1e-6  # share of the energy below the resolution of float32
SPARE = 16  # directions of the basis beyond the rank; without them the last singular values err
NOISE_SEED = 0x5EED  # seed of the random directions, for a deterministic result
NEGLIGIBLE = 1e-14  # relative to the largest eigenvalue of a Gram matrix in float64


class TruncatedDelta(NamedTuple):
    """A delta truncated to a smaller rank.

    Attributes:
        a: (rank, in)
        b: (out, rank)
        energy: Squared Frobenius norm before the truncation.
        kept: Squared Frobenius norm after the truncation.
    """

    a: Tensor
    b: Tensor
    energy: float
    kept: float


def cut_factors(a: Tensor, b: Tensor, rank: int) -> TruncatedDelta:
    """Return the best approximation of ``b @ a`` with a given rank, without the dense product.

    Args:
        a: (k, in), for example the stacked factors of several adapters.
        b: (out, k), with weights and scalings multiplied in.
        rank: Rank of the result; lower if ``b @ a`` has a lower rank, at least 1.

    O((out + in) k^2 + k^3): both factors are whitened by their Gram matrices, which leaves
    the SVD of a (k, k) core. Well-conditioned factors are whitened by Cholesky factors,
    and the products with a and b are computed in their own dtype.
    """
    wide_a, wide_b = to_dtype(a, "float64"), to_dtype(b, "float64")
    gram_a, gram_b = wide_a @ wide_a.T, wide_b.T @ wide_b
    lower_a, lower_b = _upright(gram_a), _upright(gram_b)
    if lower_a is not None and lower_b is not None:
        u, s, vt = library(a).linalg.svd(lower_b.T @ lower_a, full_matrices=False)
        rank = max(1, min(rank, int((s > s[0] * 1e-9).sum())))
        rows = library(a).linalg.inv(lower_a).T @ vt[:rank].T  # (k, rank)
        columns = lower_a @ vt[:rank].T  # b a new_a^T = b lower_a vt^T
        squares = s * s
        return TruncatedDelta(
            like(rows.T, a) @ a,
            b @ like(columns, b),
            float(squares.sum()),
            float(squares[:rank].sum()),
        )
    whiten_a, root_a = _whitening(gram_a)
    whiten_b, root_b = _whitening(gram_b)
    u, s, vt = library(a).linalg.svd(root_b.T @ root_a, full_matrices=False)
    rank = max(1, min(rank, int((s > s[0] * 1e-9).sum())))
    new_a = (vt[:rank] @ whiten_a.T) @ wide_a
    new_b = wide_b @ (whiten_b @ (u[:, :rank] * s[:rank]))
    squares = s * s
    kept = float(squares[:rank].sum())
    return TruncatedDelta(like(new_a, a), like(new_b, b), float(squares.sum()), kept)


def cut_dense(
    delta: Tensor, rank: int, start: Tensor | None = None, svd: Svd = "fast"
) -> TruncatedDelta:
    """Approximate a dense delta by one of a given rank.

    Args:
        delta: (out, in)
        rank: Rank of the result, at most min(out, in).
        start: (k, in), rows close to the row space of ``delta``: the factors that were merged.
        svd: ``exact`` is the best approximation; ``fast`` runs subspace iteration from ``start``
            until further steps would reduce the squared residual by less than 5e-5 of it,
            estimated from the last reduction and its rate.

    ``TruncatedDelta.energy`` minus ``TruncatedDelta.kept`` is the squared residual in both modes.
    """
    rank = min(rank, *delta.shape)
    energy = float(_squares(delta))
    if energy == 0:
        return TruncatedDelta(delta[:rank] * 0, delta[:, :rank] * 0, 0.0, 0.0)
    if svd == "exact":
        basis = _top_rows(delta, rank)
        cut = cut_factors(basis, delta @ basis.T, rank)
    else:
        cut = _iterated(delta, rank, _start(delta, rank, start), energy)
    return TruncatedDelta(cut.a, cut.b, energy, min(cut.kept, energy))


def _iterated(delta: Tensor, rank: int, basis: Tensor, energy: float) -> TruncatedDelta:
    """Run subspace iteration from a basis, (k, in), until further steps are negligible."""
    image = delta @ basis.T  # (out, k)
    kept, whiten, gain = *_caught(image, rank)[:2], 0.0
    for step in range(MAX_STEPS):
        basis = _orthonormal((image @ whiten).T @ delta)
        image = delta @ basis.T
        before, last = kept, gain
        kept, whiten, rate = _caught(image, rank)
        gain = kept - before
        rate = max(rate, gain / last if step else 0.0)
        left = max(energy - kept, ROUNDING * energy)
        if gain * min(rate, 1.0) <= NEAR * left * max(1 - rate, 0.0) or gain <= TINY * left:
            break
    return cut_factors(basis, image, rank)


def _caught(image: Tensor, rank: int) -> tuple[float, Tensor, float]:
    """Return statistics of the part of a delta within a basis, from its image (out, k).

    Returns:
        The squared norm of the best truncation within the basis; (k, p) to orthonormalise the
        image; and the factor by which a step reduces the distance from the optimum, estimated by
        the ratio of the singular values at the end of the basis and at the rank.
    """
    wide = to_dtype(image, "float64")
    values, vectors = library(image).linalg.eigh(wide.T @ wide)  # ascending
    sound = values > max(float(values[-1]), 0.0) * NEGLIGIBLE
    if not sound.any():
        return 0.0, like(vectors[:, -1:], image), 0.0
    kept, top = float(values[-rank:].sum()), float(values[-rank:][0])
    rate = (max(float(values[0]), 0.0) / top) ** 2 if top > 0 else 0.0
    return kept, like(vectors[:, sound] / values[sound] ** 0.5, image), rate


def _start(delta: Tensor, rank: int, start: Tensor | None) -> Tensor:
    """Return (k, in) orthonormal rows: the given ones, and random ones up to rank + SPARE."""
    rows = None if start is None else _orthonormal(start)
    present, wanted = 0 if rows is None else len(rows), min(rank + SPARE, *delta.shape)
    if rows is not None and present >= wanted:
        return rows
    missing = wanted - present
    noise = np.random.default_rng(NOISE_SEED).standard_normal((missing, delta.shape[1]))
    more = like(noise.astype(np.float32), delta)
    return _orthonormal(more if rows is None else library(delta).concatenate([rows, more]))


def _top_rows(delta: Tensor, rank: int) -> Tensor:
    """Return (rank, in) right singular vectors, from the smaller Gram matrix in float64."""
    wide = to_dtype(delta, "float64")
    if delta.shape[0] >= delta.shape[1]:
        return like(_top_eigenvectors(wide.T @ wide, rank).T, delta)
    return _orthonormal(like(_top_eigenvectors(wide @ wide.T, rank).T @ wide, delta))


def _top_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    """Return (n, rank) eigenvectors of the largest eigenvalues of a symmetric (n, n) matrix."""
    if isinstance(gram, np.ndarray):
        from scipy.linalg import eigh

        n = len(gram)
        found: Tensor = eigh(gram, subset_by_index=[n - rank, n - 1], overwrite_a=True)[1][:, ::-1]
    else:
        found = library(gram).linalg.eigh(gram)[1][:, -rank:].flip(1)
    return found


def _orthonormal(rows: Tensor) -> Tensor:
    """Return orthonormal rows that span the same space; dependent rows are dropped."""
    wide, lib = to_dtype(rows, "float64"), library(rows)
    gram = wide @ wide.T
    try:
        root = lib.linalg.cholesky(gram)
    except lib.linalg.LinAlgError:
        root = gram * 0
    lengths = root.diagonal()
    if float(lengths.min()) > SLANTED * float(lengths.max()):
        return like(lib.linalg.inv(root) @ wide, rows)
    whiten, _ = _whitening(gram)  # slower, but correct for dependent rows
    return like(whiten.T @ wide, rows)


def _upright(gram: Tensor) -> Tensor | None:
    """Return the lower Cholesky factor of (k, k); None if some vectors are nearly dependent.

    The vectors are scaled to unit length first, so that only their angles count: the columns of a
    lora_B often differ in length by more than a factor of ten.
    """
    lib, squared = library(gram), gram.T.diagonal()
    if not float(squared.min()) > 0:
        return None
    lengths = squared**0.5
    try:
        root: Tensor = lib.linalg.cholesky(gram / lengths / lengths[:, None])
    except lib.linalg.LinAlgError:
        return None
    upright = float(root.T.diagonal().min()) > UPRIGHT
    return root * lengths[:, None] if upright else None


def _whitening(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``w`` and ``r`` from ``x @ x.T``, with orthonormal ``w.T @ x`` and ``r w.T x = x``.

    Both are (k, p), where p >= 1 is the numerical rank of x.
    """
    values, vectors = library(gram).linalg.eigh(gram)  # ascending
    sound = values > max(float(values[-1]), 0.0) * NEGLIGIBLE
    if not sound.any():
        return vectors[:, -1:] * 0, vectors[:, -1:] * 0
    values, vectors = values[sound], vectors[:, sound]
    roots = values**0.5
    return vectors / roots, vectors * roots


def _squares(x: Tensor) -> float:
    """Return the sum of squares: each row in the dtype of ``x``, the sum over rows in float64."""
    rows = library(x).einsum("ij,ij->i", x, x)
    return float(to_dtype(rows, "float64").sum())
