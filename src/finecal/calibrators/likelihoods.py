"""Penalised likelihoods of biases of classes, for several folds and shrinkages at once, and where they are greatest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..evaluation.samples import Scan
from ..logits.predict import absent_indicator
from .quasi_newton import Curvature, Point, minimise
from .softmax_counts import counts_and_squares, expected_counts

_NEARLY = 3e-5
"""Squared distance from the minimum against the sampling variance of a bias, its mean over the classes."""
_CLOSE = 1e-4
"""In log-odds: from here on passes are in float64."""
_CONVERGED = 1e-5
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
        return self._are_below(_CONVERGED * self._shrinkage, gradient, diagonal)

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
