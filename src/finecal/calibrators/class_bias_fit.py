"""One bias per class: from labelled samples of all classes, shrunk towards gamma on the absent ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.margins import Margins
from ..evaluation.scan import LabelledScan, scan_labelled
from ..gamma.search import search_gamma
from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.checks import check_both_groups, check_not_empty
from ..inputs.numbers import check_choice, check_number, check_seed
from ..inputs.warning import warn, without_warnings
from ..logits.predict import absent_indicator
from ..logits.softmax_moments import make_samples
from ..logits.tiles import tile_rows, tiles
from ..logits.torch_kernels import LabelScalars
from ..logits.workers import by_rows
from .class_bias import ClassBias, ClassBiasReport
from .temperature import scale_of, solve_shortfall

OBJECTIVES = ("overall", "balanced")
_SHRINKAGES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
_FOLDS = 5
_WORTH_SAYING = 0.01
_COLDEST = 1e-4
"""Against the typical margin. Labels that leave no doubt, or are no better than chance, have no best temperature."""
_MAX_STEPS = 100
_CONVERGED = 1e-5
"""In log-odds, and in samples: how far biases, and expected numbers of a class, may be from what they should be."""


def fit_class_bias(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    shrinkage: float | str = "cv",
    objective: str = "overall",
    *,
    seed: int = 0,
) -> ClassBias:
    r"""Fit one bias per class on labelled samples of all classes, shrunk towards gamma on the absent classes.

    .. math::
        b = \gamma^* u + T \delta, \qquad
        \delta = \arg\min_\delta \sum_n w_n \Big( \log \sum_c e^{a_{nc} + \delta_c} - a_{n y_n} - \delta_{y_n} \Big)
                 + \frac{\lambda}{2} \lVert \delta \rVert^2, \qquad a = \frac{z + \gamma^* u}{T}

    where u is 1 on absent classes and 0 on seen ones, :math:`\gamma^*` the gamma of `search_gamma` for the same
    objective, and T the temperature at which the logits with :math:`\gamma^*` are probabilities (that of
    `fit_temperature`, within 1e-4 and 1e4 times their typical margin), so that the shrinkage :math:`\lambda` has the
    same meaning whatever the scale of the logits: :math:`\delta_c` is a log-ratio of class frequencies with a normal
    prior of variance :math:`1 / \lambda`. :math:`\lambda = \infty` *is* `search_gamma`.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax, of samples that the model was *not* trained on. -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``, of seen and of absent classes, in the proportions of the intended use.
    seen_mask : (C,) bool
        True for the seen classes.
    shrinkage : "cv" or float > 0, default "cv"
        :math:`\lambda`. "cv" takes, of 100, 30, 10, 3, 1 and 0.3, the one with the best objective under 5-fold
        cross-validation, if it beats gamma alone by more than one standard error, and infinity otherwise.
    objective : {"overall", "balanced"}, default "overall"
        `Acc_{Y/Y}`, with :math:`w_n = 1`; or the mean of `Acc_{S/Y}` and `Acc_{U/Y}`, with weights that give both
        groups the same sum.
    seed : int, default 0
        Of the folds.

    Returns
    -------
    ClassBias
        On the device of the logits, with a `report`: overall and balanced accuracy against :math:`\gamma^*`.

    Raises
    ------
    TypeError, ValueError
        As `search_gamma`; ValueError if `shrinkage` is neither "cv" nor positive.

    Warns
    -----
    FinecalWarning
        If there are too few samples to cross-validate; classes have no sample, so that their bias rests on how often
        they are predicted by mistake; or the biases buy the one accuracy with more than a point of the other. If labels
        are masked by -inf: they are left out. As `search_gamma`, where gamma alone is returned.

    Notes
    -----
    The biases also move classes against others of their own group, which no gamma can. They adapt to the class
    frequencies of the given samples. Convex in :math:`\delta`; L-BFGS on passes over float64 tiles, `O(NC)` each and
    some 250 in all; memory beyond one copy of the logits, in float32 or wider, does not grow with N. The
    one-standard-error rule: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(6, size=600)
    >>> bias = np.array([4.0, 2.0, 3.0, 0.0, 1.0, -1.0])
    >>> logits = rng.normal(size=(600, 6)) + 3 * np.eye(6)[labels] + bias
    >>> calibrator = finecal.fit_class_bias(logits, labels, [True] * 3 + [False] * 3)
    >>> print(calibrator.report)
    shrinkage 3 towards gamma, for overall accuracy; 600 labelled samples, 5 folds
    | cross-validated, % | gamma = 3.428 | class bias |
    | ------------------ | ------------: | ---------: |
    | overall            |          84.0 |       94.8 |
    | balanced           |          83.9 |       94.8 |
    """
    cross_validate = isinstance(shrinkage, str) and check_choice(shrinkage, ("cv",), "shrinkage") == "cv"
    shrinkages = (math.inf, *(_SHRINKAGES if cross_validate else (check_shrinkage(shrinkage),)))
    check_choice(objective, OBJECTIVES, "objective")
    check_seed(seed)
    scan = scan_labelled(logits, labels, seen_mask)
    check_not_empty(scan.labels.shape[0], "fit_class_bias")
    with without_warnings():
        estimate = search_gamma(scan.logits, scan.labels, scan.mask, objective)
    gamma = estimate.gamma
    doubts = scan.doubts()
    scan, sentences = _with_finite_labels(scan)
    temperature = _temperature(scan, gamma)

    folds = _folds(scan.scalars.is_seen, seed)
    if folds is None:
        chosen, scores = 0 if cross_validate else 1, [(math.nan, math.nan)] * len(shrinkages)
        sentences.append(
            "too few samples to cross-validate: two of seen and two of absent classes are the least"
            + (", so that this is gamma alone" if cross_validate else "")
        )
    else:
        correct = _cross_validated(scan, folds, shrinkages, temperature, objective)
        chosen = _one_standard_error(correct, _weights(scan.scalars.is_seen, objective)) if cross_validate else 1
        scores = [_accuracies(row, scan.scalars.is_seen) for row in correct]

    everything = torch.ones_like(scan.labels, dtype=torch.bool)
    *_, bias = _biases(scan, everything, gamma, shrinkages[: chosen + 1], temperature, objective)
    calibrator = ClassBias(bias)
    calibrator.method = f"fit_class_bias(objective={objective!r})"
    calibrator.report = ClassBiasReport(
        objective,
        shrinkages[chosen],
        gamma,
        *scores[chosen],
        *scores[0],
        scan.labels.shape[0],
        0 if folds is None else int(folds.max()) + 1,
        (
            *sentences,
            *(
                estimate.warnings
                if math.isinf(shrinkages[chosen])
                else [*doubts, *_doubts(scan, scores[chosen], scores[0])]
            ),
        ),
    )
    for sentence in calibrator.report.warnings:
        warn(f"fit_class_bias: {sentence}")
    return calibrator


def _with_finite_labels(scan: LabelledScan) -> tuple[LabelledScan, list[str]]:
    """Leave out samples whose label is masked: their likelihood is 0 whatever the bias."""
    finite = scan.scalars.own > -math.inf
    left_out = int((~finite).sum())
    if left_out == 0:
        return scan, []
    scalars = LabelScalars(*(field[finite] for field in scan.scalars))
    n_seen = int(scalars.is_seen.sum())
    check_both_groups(
        n_seen, int(finite.sum()) - n_seen, "a bias per class", "the labels of the others are masked by -inf"
    )
    rest = LabelledScan(scan.logits[finite], scan.labels[finite], scan.mask, scalars, scan.margin[finite])
    return rest, [f"{left_out} of {len(finite)} samples were left out: the logit of their label is -inf"]


def _temperature(scan: LabelledScan, gamma: float) -> float:
    calibrated = scan.logits + gamma * absent_indicator(scan.mask, scan.logits.dtype)
    top, everything = calibrated.amax(1, keepdim=True), torch.ones_like(calibrated[:1])
    samples = make_samples(calibrated, scan.labels, everything, top, "fit_class_bias")
    distance = (scan.margin - gamma).abs()
    distance = distance[(distance > 0) & (distance < math.inf)]
    unit = float(distance.median()) if distance.numel() else 1.0
    temperature, _, _ = solve_shortfall(samples, scale_of(samples), unit * _COLDEST, unit / _COLDEST)
    return temperature


def _biases(
    scan: LabelledScan, chosen: Tensor, gamma: float, shrinkages: Sequence[float], temperature: float, objective: str
) -> Iterator[Tensor]:
    """Yield the biases on the `chosen` samples at each shrinkage, each from a start at those of the one before."""
    offset = gamma * absent_indicator(scan.mask, torch.float64)
    weight = torch.zeros_like(scan.margin, dtype=torch.float64)
    weight[chosen] = _weights(scan.scalars.is_seen[chosen], objective)
    delta = torch.zeros_like(offset)
    for shrinkage in shrinkages:
        if math.isfinite(shrinkage):
            delta = _minimise(scan, weight, offset / temperature, 1 / temperature, shrinkage, delta)
        yield offset + temperature * delta


def _weights(is_seen: Tensor, objective: str) -> Tensor:
    """Return the weight of each sample in the objective, 1 on average."""
    if objective == "overall":
        return torch.ones_like(is_seen, dtype=torch.float64)
    n, n_seen = is_seen.shape[0], int(is_seen.sum())
    return torch.where(is_seen, n / (2 * n_seen), n / (2 * (n - n_seen))).double()


def _minimise(
    scan: LabelledScan, weight: Tensor, offset: Tensor, scale: float, shrinkage: float, start: Tensor
) -> Tensor:
    """Minimise the penalised NLL of the softmax of ``scale * logits + offset + delta`` over delta, by L-BFGS."""
    delta = start.clone()
    wanted = torch.zeros_like(delta).index_add_(0, scan.labels, weight)

    def kernel(logits: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        total, expected = delta.new_zeros(1), torch.zeros_like(delta)
        blocks = zip(*(torch.split(column, tile_rows(logits)) for column in columns), strict=True)
        for (tile, _), (labels, w) in zip(tiles(logits, torch.float64, writable=True), blocks, strict=True):
            scores = tile.mul_(scale).add_(offset + delta)
            own = scores.gather(1, labels.unsqueeze(1))
            top = scores.amax(1, keepdim=True)
            sums = scores.sub_(top).exp_().sum(1)
            expected += (w / sums) @ scores
            total += w.dot(top.squeeze(1) + sums.log() - own.squeeze(1))
        return total, expected.unsqueeze(0)

    def closure() -> Tensor:
        total, expected = by_rows(kernel, scan.logits, scan.labels, weight)
        delta.grad = expected.sum(0) - wanted + shrinkage * delta
        return total.sum() + shrinkage / 2 * delta.dot(delta)

    optimiser = torch.optim.LBFGS(
        [delta],
        max_iter=_MAX_STEPS,
        # The curvature is the shrinkage at least.
        tolerance_grad=_CONVERGED * min(1, shrinkage),
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return delta.detach()


def _folds(is_seen: Tensor, seed: int) -> Tensor | None:
    """Return the fold of each sample, both groups spread evenly; None where a group is too small."""
    groups = [group.nonzero().squeeze(1) for group in (is_seen, ~is_seen)]
    count = min(_FOLDS, *(group.shape[0] for group in groups))
    if count < 2:
        return None
    generator = torch.Generator("cpu").manual_seed(seed)
    folds = torch.empty_like(is_seen, dtype=torch.int64)
    for group in groups:
        folds[group] = (torch.randperm(group.shape[0], generator=generator, device="cpu") % count).to(is_seen.device)
    return folds


def _cross_validated(
    scan: LabelledScan, folds: Tensor, shrinkages: Sequence[float], temperature: float, objective: str
) -> Tensor:
    """Return whether each sample is predicted correctly at each shrinkage by a fit without its fold: bool `(L, N)`."""
    correct = torch.empty((len(shrinkages), folds.shape[0]), dtype=torch.bool, device=folds.device)
    for fold in range(int(folds.max()) + 1):
        chosen, judged = folds != fold, folds == fold
        samples = Margins(
            *(field[chosen] for field in (scan.margin, scan.scalars.is_seen, scan.scalars.hit, scan.labels))
        )
        gamma = samples.curve().best(objective)
        rows, labels = scan.logits[judged], scan.labels[judged]
        for row, bias in enumerate(_biases(scan, chosen, gamma, shrinkages, temperature, objective)):
            correct[row, judged] = _classes(rows, bias) == labels
    return correct


def _classes(logits: Tensor, bias: Tensor) -> Tensor:
    def kernel(rows: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat([(tile + bias).argmax(1) for tile, _ in tiles(rows)]),)

    (classes,) = by_rows(kernel, logits)
    return classes


def _one_standard_error(correct: Tensor, weight: Tensor) -> int:
    """Return the row that beats the first by most, of those that do by more than one standard error; else the first."""
    gains = weight * (correct.double() - correct[0].double())
    mean, error = gains.mean(1), gains.std(1) / math.sqrt(gains.shape[1])
    return int(mean.where(mean > error, 0).argmax())


def _accuracies(correct: Tensor, is_seen: Tensor) -> tuple[float, float]:
    """Return overall and balanced accuracy."""
    share = correct.double()
    return float(share.mean()), float(share[is_seen].mean() + share[~is_seen].mean()) / 2


def _doubts(scan: LabelledScan, bias: tuple[float, float], gamma: tuple[float, float]) -> Iterator[str]:
    unseen = (torch.bincount(scan.labels, minlength=scan.mask.shape[0]) == 0).nonzero().squeeze(1)
    if unseen.numel():
        yield (
            f"{unseen.numel()} of {scan.mask.shape[0]} classes have no sample (first: {int(unseen[0])}); their bias "
            "rests on how often they are predicted by mistake"
        )
    for name, with_bias, with_gamma in zip(("overall", "balanced"), bias, gamma, strict=True):
        if with_gamma - with_bias > _WORTH_SAYING:
            yield f"{name} accuracy is {100 * (with_gamma - with_bias):.1f} points below that of gamma alone"


def check_shrinkage(value: Any) -> float:
    number = check_number(value, "shrinkage")
    if number <= 0:
        raise ValueError(f'shrinkage is {number}; it must be positive, infinite for gamma alone, or "cv"')
    return number
