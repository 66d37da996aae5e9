"""Penalised likelihoods of biases of classes, for several folds and shrinkages at once, and where they are greatest."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._core.calibrate import absent_indicator
from .._core.kernels import map_row_chunks, tile_rows
from .._core.samples import Scan

_MAX_STEPS = 100
_LONGEST, _SHORTEST = 4.0, 0.1
"""Largest component of a step, and smallest factor that shortens a step that was too long."""
_OVERSHOT = 0.5
"""A step is too long where the slope at its end rises by more than this part of what it fell by at its start."""

Point = tuple[Tensor, Tensor]
"""A gradient and the diagonal of the Hessian, about: `(..., C)` each."""


class Curvature:
    """L-BFGS updates of the diagonals of the Hessians, from the last steps."""

    def __init__(self, remembered: int) -> None:
        self._pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=remembered)

    def update(self, moved: Tensor, change: Tensor) -> None:
        """Remember a step and the change of the gradients along it."""
        product = _dot(moved, change)
        self._pairs.append((moved, change, torch.where(product > 0, 1 / product, 0)))

    def step(self, gradient: Tensor, diagonal: Tensor) -> Tensor:
        """Return the step towards the minima of the quadratic functions that fit."""
        direction, factors = -gradient, []
        for moved, change, inverse in reversed(self._pairs):
            factor = inverse * _dot(moved, direction)
            direction = direction - factor * change
            factors.append(factor)
        direction = _centered_quotient(direction, diagonal)
        for (moved, change, inverse), factor in zip(self._pairs, reversed(factors), strict=True):
            direction = direction + moved * (factor - inverse * _dot(change, direction))
        return direction


def minimise(
    evaluate: Callable[[Tensor], Point],
    start: Tensor,
    is_near: Callable[[Tensor, Tensor], Tensor],
    curvature: Curvature,
    first_step: Callable[[Tensor, Tensor], Tensor] | None = None,
    most: int = _MAX_STEPS,
) -> Tensor:
    """Return where convex functions of the last dimension are least, one for each index of the others.

    `evaluate` returns gradients and diagonals at given arguments, `is_near`, of both, which functions are done.
    `curvature` is what earlier calls have learnt; `first_step`, if any, takes the start and the gradients there.
    Gradients, steps and arguments add up to 0, as of functions that do not change when all arguments move alike.
    A step that goes too far is shortened by the secant, from the same point, while the other functions move on.
    """
    x = start
    gradient, diagonal = evaluate(x)
    step = _clamp(first_step(x, gradient)) if first_step else _descent(curvature, gradient, diagonal)
    for _ in range(most):
        done = is_near(gradient, diagonal).unsqueeze(-1)
        if done.all():
            break
        step = torch.where(done, 0, step)
        new_gradient, new_diagonal = evaluate(x + step)
        before, after = -_dot(gradient, step), _dot(new_gradient, step)
        too_far = after > _OVERSHOT * before
        curvature.update(torch.where(too_far, 0, step), new_gradient - gradient)
        x = torch.where(too_far, x, x + step)
        gradient = torch.where(too_far, gradient, new_gradient)
        diagonal = torch.where(too_far, diagonal, new_diagonal)
        shorter = step * (before / (before + after)).clamp(min=_SHORTEST)
        step = torch.where(too_far, shorter, _descent(curvature, gradient, diagonal))
    return x


def _descent(curvature: Curvature, gradient: Tensor, diagonal: Tensor) -> Tensor:
    step = _clamp(curvature.step(gradient, diagonal))
    return torch.where(_dot(gradient, step) < 0, step, _clamp(_centered_quotient(-gradient, diagonal)))


def _clamp(step: Tensor) -> Tensor:
    """Clamp the step to the trust region and re-centre it to sum to 0."""
    step = step.clamp(-_LONGEST, _LONGEST)
    return step - step.mean(-1, keepdim=True)


def _centered_quotient(direction: Tensor, diagonal: Tensor) -> Tensor:
    """Divide by the diagonals, such that the components add up to 0."""
    common = (direction / diagonal).sum(-1, keepdim=True) / (1 / diagonal).sum(-1, keepdim=True)
    return (direction - common) / diagonal


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


_SPREAD = {torch.float32: 40.0, torch.float64: 300.0}
"""How far factors of columns may lie apart, as logarithms, until sums or their squares lose terms that matter."""
_NEGLIGIBLE = -500.0
"""The logarithm of a probability that is 0; stands in for -inf, whose product with 0 would be NaN."""


def expected_counts(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype
) -> Tensor:
    r"""Return :math:`\sum_n w_{f g_n} \, p_{nc}` with p the softmax of ``scale * z + bias``, `(F, L, C)`.

    Biases are `(F, L, C)`, of L softmaxes with each of F weightings; `groups` `(N,)` says which column of the
    `(F, G)` weights is that of a sample. Exponentials and products are in `dtype`, biases and results in float64.
    """
    counts, _ = _sums(logits, scale, biases, groups, weights, dtype, 1)
    return counts


def counts_and_squares(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    r"""Return `expected_counts`, and the same of the squares :math:`p_{nc}^2`."""
    return _sums(logits, scale, biases, groups, weights, dtype, 2)


def _sums(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype, order: int
) -> tuple[Tensor, Tensor]:
    rows = biases.flatten(0, 1)
    center = (rows.amax(0) + rows.amin(0)) / 2
    below = rows - center
    below = below - below.amax(1, keepdim=True)
    spread = -float(below.min())
    if spread > _SPREAD[dtype]:
        if spread <= _SPREAD[torch.float64]:
            return _sums(logits, scale, biases, groups, weights, torch.float64, order)
        return _one_by_one(logits, scale, biases, groups, weights, dtype, order)
    factors = below.exp().to(dtype)
    center, table = center.to(dtype), weights.to(dtype)
    height = max(1, tile_rows(logits) * logits.shape[1] // max(factors.shape))

    def kernel(some: Tensor, their_groups: Tensor) -> tuple[Tensor, ...]:
        totals = [torch.zeros_like(rows) for _ in range(order)]
        scratch = some.new_empty((min(height, len(some)), some.shape[1]), dtype=dtype)
        for block, group in zip(torch.split(some, height), torch.split(their_groups, height), strict=True):
            weight = _below_top(block, scale, center, scratch[: len(block)]).exp_()
            sums = (factors @ weight.T).view(*biases.shape[:2], -1)
            share = table[:, group].unsqueeze(1) / sums
            totals[0] += share.flatten(0, 1) @ weight
            if order == 2:
                totals[1] += (share / sums).flatten(0, 1) @ weight.square_()
        return tuple(total.unsqueeze(0) for total in totals)

    totals = map_row_chunks(kernel, logits, groups)
    factors = below.exp()
    first, last = (
        (total.sum(0) * factors**power).view(*biases.shape[:2], -1)
        for power, total in zip((1, order), (totals[0], totals[-1]), strict=True)
    )
    return first, last


def _one_by_one(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype, order: int
) -> tuple[Tensor, Tensor]:
    """Take the exponentials anew for each softmax, whose own biases are then in the middle."""
    count, some, _ = biases.shape
    found = [
        _sums(logits, scale, biases[f : f + 1, i : i + 1], groups, weights[f : f + 1], dtype, order)
        for f in range(count)
        for i in range(some)
    ]
    first, last = (torch.cat(parts).reshape(biases.shape) for parts in zip(*found, strict=True))
    return first, last


def shortfall_and_variance(logits: Tensor, scale: float, bias: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return by how much scores fall short of the largest of their row, and their variance within it.

    The scores are ``scale * z + bias``, both means are over the classes, under the softmax, and over the rows.
    """
    bias, height = bias.to(dtype), tile_rows(logits)

    def kernel(some: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros(2, dtype=torch.float64, device=some.device)
        scratch, products = some.new_empty((2, min(height, len(some)), some.shape[1]), dtype=dtype)
        for block in torch.split(some, height):
            scores = _below_top(block, scale, bias, scratch[: len(block)]).clamp_(min=_NEGLIGIBLE)
            product = torch.exp(scores, out=products[: len(block)])
            sums = product.sum(1)
            mean = product.mul_(scores).sum(1) / sums
            square = product.mul_(scores).sum(1) / sums
            total[0] -= mean.double().sum()
            total[1] += (square - mean.square()).double().sum()
        return (total.unsqueeze(0),)

    (totals,) = map_row_chunks(kernel, logits)
    shortfall, variance = (totals.sum(0) / logits.shape[0]).tolist()
    return shortfall, variance


def _below_top(block: Tensor, scale: float, bias: Tensor, out: Tensor) -> Tensor:
    """Write ``scale * z + bias``, less the largest of each row."""
    given = block if block.dtype == out.dtype else out.copy_(block)
    torch.add(bias, given, alpha=scale, out=out)
    return out.sub_(out.amax(1, keepdim=True))


_NEARLY = 3e-5
"""Squared distance from the minimum against the sampling variance of a bias, its mean over the classes."""
_CLOSE = 1e-4
"""In log-odds: from here on passes are in float64."""
_TINY_STEP = 1e-5
"""In log-odds: how far biases may be from what they should be."""
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative rounding error of the expected numbers of a class."""
_MOST_ROUNDED = 20
"""Steps in float32, which may stop short of `_CLOSE`."""
_REMEMBERED, _REMEMBERED_OF_ONE = 10, 40
"""Steps, whose arguments and gradients take memory: for many fits at once, and for one."""
_SCALAR_STEPS = 10
_TINY = 1e-300


class Likelihoods:
    r"""Penalised NLLs of :math:`\delta`, `(F, L, C)`: each of the samples of some folds, at L shrinkages."""

    def __init__(
        self,
        scan: Scan,
        folds: Tensor,
        kept: Tensor,
        gammas: Sequence[float],
        shrinkages: Sequence[float],
        temperature: float,
        objective: str,
        dtype: torch.dtype,
    ) -> None:
        """Take the fold of each sample, `(N,)`, which of the folds count, `(F, folds)`, and a dtype for most passes."""
        self._logits, self._scale, self._dtype = scan.logits, 1 / temperature, dtype
        absent = absent_indicator(scan.mask, torch.float64)
        self._offset = (absent.new_tensor(gammas).unsqueeze(1) * absent / temperature).unsqueeze(1)
        self._shrinkage = absent.new_tensor(shrinkages).unsqueeze(1)
        self._groups = 2 * folds + scan.scalars.is_seen
        n_groups, n_classes = 2 * kept.shape[1], len(absent)
        table = torch.bincount(self._groups * n_classes + scan.labels, minlength=n_groups * n_classes)
        table = table.view(n_groups, n_classes).double()
        self._weights = _group_weights(table.sum(1).view(-1, 2), kept, objective)
        self._wanted = (self._weights @ table).unsqueeze(1)
        self._first: tuple[Tensor, Tensor] | None = None

    def nearly_best(self, start: Tensor) -> Tensor:
        """Return minima whose distance from the true ones is small against their sampling error."""
        return minimise(self._evaluate, start, self._is_nearly_best, Curvature(_REMEMBERED), self._first_step)

    def best(self, start: Tensor) -> Tensor:
        """Return minima, within 1e-5 in log-odds."""
        start, curvature = start - start.mean(-1, keepdim=True), Curvature(_REMEMBERED_OF_ONE)
        if self._dtype == torch.float64:
            return minimise(self._evaluate, start, self._is_best, curvature, self._first_step)
        close = minimise(self._evaluate, start, self._is_close, curvature, self._first_step, most=_MOST_ROUNDED)
        self._dtype = torch.float64
        return minimise(self._evaluate, close, self._is_best, curvature)

    def _evaluate(self, delta: Tensor) -> Point:
        """Return the gradient and the approximate diagonal of the Hessian."""
        given = (self._logits, self._scale, self._offset + delta, self._groups, self._weights, self._dtype)
        if self._first is None:
            counts, squares = counts_and_squares(*given)
            self._first = counts, squares / counts.clamp(min=_TINY)
        else:
            counts = expected_counts(*given)
        return counts - self._wanted + self._shrinkage * delta, counts * (1 - self._share(counts)) + self._shrinkage

    def _share(self, counts: Tensor) -> Tensor:
        """Approximate p-weighted mean probability of each class.

        With delta, the number grows by the sum of p (1 - p). As the class loses samples, all their p go to 0; as it
        gains some, they are such as it has.
        """
        assert self._first is not None
        first_counts, first_share = self._first
        return first_share * (counts / first_counts.clamp(min=_TINY)).clamp(max=1)

    def _first_step(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """Return the step that would be right if no class took samples from another: far from a minimum too."""
        counts, step = gradient + self._wanted - self._shrinkage * delta, torch.zeros_like(gradient)
        share = self._share(counts)
        for _ in range(_SCALAR_STEPS):
            loses = step.clamp(max=0).exp()
            expected = counts * torch.exp((1 - share) * step.clamp(min=0)) * loses / (1 + share * (loses - 1))
            excess = expected - self._wanted + self._shrinkage * (delta + step)
            step = step - (excess / (expected * (1 - self._share(expected)) + self._shrinkage)).clamp(-1, 1)
        return step

    def _is_nearly_best(self, gradient: Tensor, diagonal: Tensor) -> Tensor:
        return (gradient.square() / diagonal).mean(-1) <= _NEARLY

    def _is_close(self, gradient: Tensor, diagonal: Tensor) -> Tensor:
        return self._are_below(_CLOSE * diagonal, gradient, diagonal)

    def _is_best(self, gradient: Tensor, diagonal: Tensor) -> Tensor:
        # The curvature is the shrinkage at least.
        return self._are_below(_TINY_STEP * self._shrinkage, gradient, diagonal)

    def _are_below(self, allowed: Tensor, gradient: Tensor, diagonal: Tensor) -> Tensor:
        rounding = _ROUNDING[self._dtype] * (diagonal + self._wanted)
        return (gradient.abs() <= allowed + rounding).all(-1)


def _group_weights(sizes: Tensor, kept: Tensor, objective: str) -> Tensor:
    """Return the weights of absent and seen samples of each fold, `(F, 2 folds)`, from their numbers, `(folds, 2)`."""
    if objective == "overall":
        weights = sizes.new_ones((len(kept), 2))
    else:
        counted = kept.double() @ sizes
        weights = counted.sum(1, keepdim=True) / (2 * counted)
    return (kept.unsqueeze(2) * weights.unsqueeze(1)).flatten(1)
