"""Newton's method on several convex functions at once, from their gradients and the diagonals of their Hessians."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

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
