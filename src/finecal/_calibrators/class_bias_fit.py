"""One bias per class: from labelled samples of all classes, shrunk towards gamma on the absent ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, check_choice, check_number, check_seed, without_autocast
from .._core.calibrate import absent_indicator
from .._core.checks import check_both_groups, check_not_empty
from .._core.groups import Grouping, groups_of
from .._core.kernels import LabelScalars, map_row_chunks, tile_rows, wide_dtype
from .._core.reductions import make_samples
from .._core.report import Margins
from .._core.samples import Scan, samples_of, takes_samples
from .._core.warning import warn, without_warnings
from .._estimators.search import search_gamma
from .class_bias import ClassBias, ClassBiasReport
from .class_likelihood import Likelihoods, shortfall_and_variance
from .temperature import scale_of, solve_shortfall, temperature_of_shortfall

OBJECTIVES = ("overall", "balanced")
_SHRINKAGES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
_FOLDS = 5
_WORTH_SAYING = 0.01
_COLDEST = 1e-4
"""Against the typical margin. Labels that leave no doubt, or are no better than chance, have no best temperature."""
_LARGE = 1 << 20
"""Elements of logits from which on float32 pays."""
_LARGEST = 256.0
"""Largest score, in log-odds, that float32 holds to 1e-5."""
_HUGE = 1e30
"""Scales within it and its inverse do not overflow in float32, nor do products with them."""
_TILE_PARTS = 4
"""A tile beside its scores would fall out of the cache at full height."""
_FIRST_ROWS = 2048


@takes_samples
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

    u is 1 on absent classes and 0 on seen ones, :math:`\gamma^*` the gamma of `search_gamma` for the same objective,
    and T the temperature of the logits with :math:`\gamma^*` (as by `fit_temperature`, within 1e-4 and 1e4 times their
    typical margin). :math:`\delta_c` is a log-ratio of class frequencies with a normal prior of variance 1 / λ.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax, of samples that the model was *not* trained on. -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``, of seen and of absent classes, in the proportions of the intended use.
    seen_mask : (C,) bool
        True for the seen classes.
    shrinkage : "cv" or float > 0, default "cv"
        :math:`\lambda`; infinity gives `search_gamma`. "cv" takes, of 100, 30, 10, 3, 1 and 0.3, the one with the best
        objective under 5-fold cross-validation, if it beats gamma alone by more than one standard error, else infinity.
    objective : {"overall", "balanced"}, default "overall"
        `Acc_{Y/Y}`, with :math:`w_n = 1`; or the mean of `Acc_{S/Y}` and `Acc_{U/Y}`, with weights that give both
        groups the same sum.
    seed : int, default 0
        Seed of the folds.

    Returns
    -------
    ClassBias
        On the device of the logits, with a `report`: overall and balanced accuracy against :math:`\gamma^*`.

    Raises
    ------
    TypeError, ValueError
        As `search_gamma`; ValueError also if `shrinkage` is neither "cv" nor positive.

    Warns
    -----
    FinecalWarning
        If there are too few samples to cross-validate, classes have no sample, labels are masked by -inf and left out,
        or the biases raise one accuracy and lower the other by more than a point. As `search_gamma` if gamma alone is
        returned.

    Notes
    -----
    Convex; within 1e-5 T of the minimum after 12 to 17 passes, `O(NC)` each: see :doc:`/theory/calibrators`. The
    one-standard-error rule: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> rng, mask = np.random.default_rng(0), np.arange(6) < 3
    >>> labels = rng.integers(6, size=600)
    >>> bias = np.array([4.0, 2.0, 3.0, 0.0, 1.0, -1.0])
    >>> logits = rng.normal(size=(600, 6)) + 3 * np.eye(6)[labels] + bias
    >>> print(finecal.calibrators.fit_class_bias(logits, labels, mask).report)
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
    samples = samples_of(logits, labels)
    scan = samples.scan(seen_mask)
    check_not_empty(scan.labels.shape[0], "fit_class_bias")
    with without_warnings():
        estimate = search_gamma(samples, scan.mask, objective)
    doubts = scan.doubts()
    scan, sentences = _with_finite_labels(scan)
    folds = _folds(scan.scalars.is_seen, seed, scan.groups)
    with without_autocast(scan.logits.device):
        temperature = _temperature(scan, estimate.gamma)
        if folds is None:
            chosen, scores = 0 if cross_validate else 1, [(math.nan, math.nan)] * len(shrinkages)
            start = torch.zeros_like(scan.mask, dtype=torch.float64)
            sentences.append(
                f"too few {'samples' if scan.groups is None else 'groups'} to cross-validate: two of seen and two of "
                "absent classes are the least" + (", so that this is gamma alone" if cross_validate else "")
            )
        else:
            biases = _fold_biases(scan, folds, shrinkages, temperature, objective)
            correct = _correct(scan, folds, biases)
            weight = _weights(scan.scalars.is_seen, objective)
            chosen = _one_standard_error(correct, weight, scan.groups) if cross_validate else 1
            scores = [_accuracies(row, scan.scalars.is_seen) for row in correct]
            start = (biases[:, chosen] - biases[:, 0]).mean(0)
        bias = _bias(scan, estimate.gamma, shrinkages[chosen], temperature, objective, start)
    calibrator = ClassBias(bias)
    calibrator.method = f"fit_class_bias(objective={objective!r})"
    calibrator.report = ClassBiasReport(
        objective,
        shrinkages[chosen],
        estimate.gamma,
        *scores[chosen],
        *scores[0],
        scan.labels.shape[0],
        0 if folds is None else int(folds.max()) + 1,
        (
            *sentences,
            *(
                estimate.warnings
                if math.isinf(shrinkages[chosen])
                else [*doubts, *_warnings(scan, scores[chosen], scores[0])]
            ),
        ),
    )
    for sentence in calibrator.report.warnings:
        warn(f"fit_class_bias: {sentence}")
    return calibrator


def _with_finite_labels(scan: Scan) -> tuple[Scan, list[str]]:
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
    parts = scan.logits[finite], scan.labels[finite], scan.mask, scalars, scan.margin[finite]
    rest = Scan(*parts, groups_of(scan.groups, finite))
    return rest, [f"{left_out} of {len(finite)} samples were left out: the logit of their label is -inf"]


def _temperature(scan: Scan, gamma: float) -> float:
    """Return the temperature of the logits with gamma, as `fit_temperature` does, in the precision of most passes."""
    distance = (scan.margin - gamma).abs()
    distance = distance[(distance > 0) & (distance < math.inf)]
    unit = float(distance.median()) if distance.numel() else 1.0
    low, high = unit * _COLDEST, unit / _COLDEST
    stride = max(1, len(scan.labels) // _FIRST_ROWS)
    calibrated = scan.logits[::stride] + gamma * absent_indicator(scan.mask, wide_dtype(scan.logits.dtype))
    largest, everything = calibrated.amax(1, keepdim=True), torch.ones_like(calibrated[:1])
    samples = make_samples(calibrated, scan.labels[::stride], everything, largest, "fit_class_bias")
    temperature, _, _ = solve_shortfall(samples, scale_of(samples), low, high)
    scalars, offset = scan.scalars, gamma * absent_indicator(scan.mask, torch.float64)
    own = scalars.own.double() + offset[scan.labels]
    top = torch.maximum(scalars.seen_max.double(), scalars.absent_max.double() + gamma)
    target = float((top - own).mean())
    if stride == 1 or target <= 0:
        return temperature

    def moments(t: float) -> tuple[float, float]:
        dtype = _precise_enough(scan, [gamma], 1 / t)
        shortfall, variance = shortfall_and_variance(scan.logits, 1 / t, offset / t, dtype)
        return shortfall * t, variance * t**2

    return temperature_of_shortfall(moments, target, temperature, low, high)[0]


def _precise_enough(scan: Scan, gammas: Sequence[float], scale: float) -> torch.dtype:
    """Return the dtype of most passes: float32 for large input whose scores it holds."""
    if scan.logits.dtype == torch.float64 or scan.logits.numel() < _LARGE:
        return torch.float64
    largest = float(torch.maximum(scan.scalars.seen_max, scan.scalars.absent_max).abs().max())
    fits = scale * max(largest, *map(abs, gammas)) <= _LARGEST and 1 / _HUGE < scale < _HUGE
    return torch.float32 if fits else torch.float64


def _fold_biases(scan: Scan, folds: Tensor, shrinkages: Sequence[float], temperature: float, objective: str) -> Tensor:
    """Return the biases of fits without each fold, at each shrinkage, `(F, L, C)`."""
    kept = ~torch.eye(int(folds.max()) + 1, dtype=torch.bool, device=folds.device)
    gammas = []
    for fold in range(len(kept)):
        chosen = folds != fold
        fields = (scan.margin, scan.scalars.is_seen, scan.scalars.hit, scan.labels)
        gammas.append(Margins(*(field[chosen] for field in fields)).curve().best(objective))
    absent = absent_indicator(scan.mask, torch.float64)
    biases = (absent.new_tensor(gammas).unsqueeze(1) * absent).unsqueeze(1).repeat(1, len(shrinkages), 1)
    finite = [row for row, shrinkage in enumerate(shrinkages) if math.isfinite(shrinkage)]
    if finite:
        penalties, dtype = [shrinkages[row] for row in finite], _precise_enough(scan, gammas, 1 / temperature)
        likelihoods = Likelihoods(scan, folds, kept, gammas, penalties, temperature, objective, dtype)
        biases[:, finite] += temperature * likelihoods.nearly_best(torch.zeros_like(biases[:, :1]))
    return biases


def _bias(scan: Scan, gamma: float, shrinkage: float, temperature: float, objective: str, start: Tensor) -> Tensor:
    """Return the biases of the fit on all samples, `(C,)`, from a start so far from gamma alone."""
    bias = gamma * absent_indicator(scan.mask, torch.float64)
    if math.isinf(shrinkage):
        return bias
    folds, kept = torch.zeros_like(scan.labels), torch.ones_like(scan.mask[:1]).unsqueeze(0)
    dtype = _precise_enough(scan, [gamma], 1 / temperature)
    likelihood = Likelihoods(scan, folds, kept, [gamma], [shrinkage], temperature, objective, dtype)
    return bias + temperature * likelihood.best(start.expand(1, 1, -1) / temperature).flatten()


def _weights(is_seen: Tensor, objective: str) -> Tensor:
    """Return the weight of each sample in the objective, 1 on average."""
    if objective == "overall":
        return torch.ones_like(is_seen, dtype=torch.float64)
    n, n_seen = is_seen.shape[0], int(is_seen.sum())
    return torch.where(is_seen, n / (2 * n_seen), n / (2 * (n - n_seen))).double()


def _folds(is_seen: Tensor, seed: int, grouping: Grouping | None = None) -> Tensor | None:
    """Return the fold of each sample, both sides spread evenly, whole groups in one; None where a side is too small."""
    if grouping is not None:
        return _folds_of_groups(is_seen, seed, grouping)
    groups = [group.nonzero().squeeze(1) for group in (is_seen, ~is_seen)]
    count = min(_FOLDS, *(group.shape[0] for group in groups))
    if count < 2:
        return None
    generator = torch.Generator("cpu").manual_seed(seed)
    folds = torch.empty_like(is_seen, dtype=torch.int64)
    for group in groups:
        folds[group] = (torch.randperm(group.shape[0], generator=generator, device="cpu") % count).to(is_seen.device)
    return folds


def _folds_of_groups(is_seen: Tensor, seed: int, groups: Grouping) -> Tensor | None:
    """Deal whole groups out to the folds.

    Those with seen samples alone come first, those with absent ones alone last, so that no fold gets all of a side.
    """
    seen, absent = groups.sides(is_seen)
    count = min(_FOLDS, int(seen.sum()), int(absent.sum()))
    if count < 2:
        return None
    generator = torch.Generator("cpu").manual_seed(seed)
    shuffled = torch.randperm(groups.number, generator=generator, device="cpu")
    order = shuffled[(absent.long() - seen.long())[shuffled].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(groups.number, device="cpu") % count
    return fold[groups.index].to(is_seen.device)


def _correct(scan: Scan, folds: Tensor, biases: Tensor) -> Tensor:
    """Return whether each sample is predicted correctly with each of the biases of its fold: bool `(L, N)`."""
    biases = biases.to(wide_dtype(scan.logits.dtype))

    def kernel(logits: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        correct = torch.empty((len(logits), biases.shape[1]), dtype=torch.bool, device=logits.device)
        height = max(1, tile_rows(logits) // _TILE_PARTS)
        tile = torch.empty_like(logits[:height])
        labels, folds = columns
        for index, of_fold in enumerate(biases):
            for judged in torch.split((folds == index).nonzero().squeeze(1), height):
                rows = torch.index_select(logits, 0, judged, out=tile[: len(judged)])
                correct[judged] = _first_largest(rows.to(biases.dtype), labels[judged], of_fold)
        return (correct,)

    (correct,) = map_row_chunks(kernel, scan.logits, scan.labels, folds)
    return correct.T


def _first_largest(rows: Tensor, labels: Tensor, biases: Tensor) -> Tensor:
    """Return whether the label is the first largest class of its row with each of the biases, `(N, L)`; rows change."""
    column, scores = labels.unsqueeze(1), torch.empty_like(rows)
    logit = rows.gather(1, column)
    own = logit + biases[:, labels].T
    rows.scatter_(1, column, -math.inf)
    rival = torch.stack([torch.add(rows, bias, out=scores).amax(1) for bias in biases], 1)
    hit = own > rival
    tied, which = (own == rival).nonzero(as_tuple=True)
    if tied.numel():
        rows.scatter_(1, column, logit)
        hit[tied, which] = (rows[tied] + biases[which]).argmax(1) == labels[tied]
    return hit


def _one_standard_error(correct: Tensor, weight: Tensor, groups: Grouping | None) -> int:
    """Return the row that beats the first by most, of those that do by more than one standard error; else the first."""
    gains = weight * (correct.double() - correct[0].double())
    mean, n = gains.mean(1), gains.shape[1]
    if groups is None:
        error = gains.std(1) / math.sqrt(n)
    else:  # Of a mean over groups, whose gains are sums of as many as there are in each.
        of_groups = groups.sums((gains - mean.unsqueeze(1)).T).to(mean.device)
        error = (of_groups.square().sum(0) * groups.number / (groups.number - 1)).sqrt() / n
    return int(mean.where(mean > error, 0).argmax())


def _accuracies(correct: Tensor, is_seen: Tensor) -> tuple[float, float]:
    """Return overall and balanced accuracy."""
    share = correct.double()
    return float(share.mean()), float(share[is_seen].mean() + share[~is_seen].mean()) / 2


def _warnings(scan: Scan, bias: tuple[float, float], gamma: tuple[float, float]) -> Iterator[str]:
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
