"""A head of all classes from one of the fine-tuned classes alone, by ridge regression of old logits on new features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.groups import Bootstrap
from .._core.kernels import wide_dtype
from .._core.samples import Samples
from .._estimators.estimate import scan_seen
from .._estimators.mixed_pairs import GapEstimate, NoPairs, equal_share, estimate_pair_gap

_PENALTIES = tuple(10 ** (exponent / 4) for exponent in range(-16, 13))
"""From which the penalty is chosen, in units of the mean variance of the features: 1e-4 to 1e3."""
_AS_GOOD = 1.2
"""Times the least error: the largest penalty that is within it is taken where the map is pulled towards the old head.
Errors on samples like those of the fit are not all that counts: absent classes lie elsewhere."""
_FOLLOWED = 0.5
"""How much of the change in level of the seen logits the absent ones follow."""
_PRIOR = 1.0
"""Samples' worth of doubt about what the labels say of either head, which bounds the fit where they say all."""
_EXPECTED_GAIN = {True: 0.03, False: 0.1}
"""In the accuracy, by whether samples are held out, below which the restored model is doubtful: expectations are a
little too high, and those from training samples far too high."""
_ROWS = 1 << 12
_LEAST_KEPT = 1 << 14
_TINY = torch.finfo(torch.float64).tiny


def by_rows(function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Apply a function to blocks of rows; float32, or float64 if the first column is."""
    blocks = zip(*(torch.split(column, _ROWS) for column in columns), strict=True)
    return torch.cat([function(*block).to(wide_dtype(columns[0].dtype)) for block in blocks])


class MapSums(NamedTuple):
    """Sums over samples, from which the map is fitted; sums of batches add up by `merge`.

    All are float64. `features` and `logits` are sums of `(D,)` and `(C,)`, `products` is X'X, `cross` X'Y, and
    `squares` the sums of the squared logits.
    """

    samples: int
    features: Tensor
    logits: Tensor
    products: Tensor
    cross: Tensor
    squares: Tensor

    @classmethod
    def of(cls, features: Tensor, old_logits: Tensor) -> MapSums:
        """Add up `(N, D)` features and `(N, C)` logits."""
        sums = None
        for rows, scores in zip(torch.split(features, _ROWS), torch.split(old_logits, _ROWS), strict=True):
            x, y = rows.double(), scores.double()
            part = cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))
            sums = part if sums is None else sums.merge(part)
        assert sums is not None  # split returns one part even of no rows
        return sums

    def merge(self, other: MapSums) -> MapSums:
        return MapSums(*map(add, self, other))


class DrawnRows:
    """Sums of all samples, which come in parts, and some of the samples, drawn at random, in their order.

    `most` samples are kept, by default 16,384, or four for each feature if that is more: the memory that they take does
    not depend on how many come. The draw does not depend on the parts either.
    """

    def __init__(self, seed: int, most: int | None = None) -> None:
        self.sums: MapSums | None = None
        self.columns: tuple[Tensor, ...] = ()
        self._most, self._generator = most, torch.Generator("cpu").manual_seed(seed)
        self._marks = torch.empty(0, dtype=torch.float64)

    def add(self, features: Tensor, old_logits: Tensor, *others: Tensor) -> None:
        """Add up features and old logits, and keep some of their rows, and of the other columns."""
        part = MapSums.of(features, old_logits)
        self.sums = part if self.sums is None else self.sums.merge(part)
        new, before = (features, old_logits, *others), len(self._marks)
        drawn = torch.rand(len(features), generator=self._generator, dtype=torch.float64)
        self._marks = torch.cat([self._marks, drawn])
        most = max(_LEAST_KEPT, 4 * features.shape[1]) if self._most is None else self._most
        if len(self._marks) <= most:
            self.columns = tuple(map(torch.cat, zip(self.columns, new, strict=True))) if before else new
            return
        kept = self._marks.argsort()[:most].sort().values
        self._marks = self._marks[kept]
        rows = (kept[kept >= before] - before).to(features.device)
        chosen = tuple(column[rows] for column in new)
        if before:
            earlier = kept[kept < before].to(features.device)
            chosen = tuple(torch.cat([old[earlier], own]) for old, own in zip(self.columns, chosen, strict=True))
        self.columns = chosen


@dataclass(frozen=True)
class HeadMap:
    """A linear map from the features of the fine-tuned model to the logits of the pre-trained one.

    Attributes
    ----------
    weight, bias : (C, D) and (C,) float64 tensors
        The old logits are about ``features @ weight.T + bias``.
    penalty : float
        Of the ridge regression, in units of the mean variance of the features; chosen by cross-validation.
    explained : (C,) float64 tensor
        Share of the variance of each class's logit that the map explains on samples it was not fitted to; may be
        negative.
    samples : int
        N, the samples it was fitted to.
    center : (D,) float64 tensor
        Mean of the features.
    root : (D, D) float64 tensor
        R such that a sample's leverage is 1 / N + |(x - center) R|².
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    explained: Tensor
    samples: int
    center: Tensor
    root: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the mapped logits, `(N, C)`."""
        return by_rows(lambda x: x.double() @ self.weight.T + self.bias, features)

    def leave_one_out(self, features: Tensor, old_logits: Tensor) -> Tensor:
        """Return the mapped logits of samples it was fitted to, each as mapped by a fit to all the other ones."""

        def left_out(x: Tensor, y: Tensor) -> Tensor:
            left = (1 - self._rooted(x).square().sum(1)).clamp(min=_LEAST_LEFT)
            return y - (y.double() - x.double() @ self.weight.T - self.bias) / left[:, None]

        return by_rows(left_out, features, old_logits)

    def leave_class_out(self, features: Tensor, old_logits: Tensor, classes: Tensor) -> Tensor:
        """Return each sample's mapped logit of its own class, `(N,)`, as mapped by a fit without samples of that class.

        `classes`, `(N,)`, are columns of the old logits.
        """
        found = old_logits.gather(1, classes[:, None])[:, 0].double()
        residual = found - by_rows(lambda x, c: self(x).gather(1, c[:, None])[:, 0], features, classes)
        for c in sorted(set(classes.tolist())):
            of_class = (classes == c).nonzero()[:, 0]
            z, r = self._rooted(features[of_class]), residual[of_class]
            if z.shape[0] <= z.shape[1]:
                left_out = torch.linalg.solve(_identity_less(z @ z.T), r)
            else:  # (1 - ZZ')^-1 = 1 + Z (1 - Z'Z)^-1 Z'
                left_out = r + z @ torch.linalg.solve(_identity_less(z.T @ z), z.T @ r)
            found[of_class] -= left_out
        return found

    def _rooted(self, features: Tensor) -> Tensor:
        """Return Z, `(N, D + 1)`, such that ZZ' is the hat matrix of the samples."""
        rooted = (features.double() - self.center) @ self.root
        return torch.cat([torch.full_like(rooted[:, :1], self.samples**-0.5), rooted], 1)


_LEAST_LEFT = 1e-12
"""Of 1 - leverage: smaller ones are but rounding."""


def _identity_less(products: Tensor) -> Tensor:
    return (1 + _LEAST_LEFT) * torch.eye(len(products), dtype=products.dtype, device=products.device) - products


def fit_head_map(features: Tensor, old_logits: Tensor, old_weight: Tensor | None = None) -> HeadMap:
    """Fit the map to `(N, D)` features of the new model and `(N, C)` logits of the old one on the same samples.

    `old_weight`, `(C, D)`, is the weight of the old head. Where it is given, the map is pulled towards it and not
    towards zero. It only fits if both models have the same architecture.
    """
    return fit_head_map_from_sums(MapSums.of(features, old_logits), old_weight)


def fit_head_map_from_sums(sums: MapSums, old_weight: Tensor | None = None) -> HeadMap:
    """Fit the map to sums of all samples; the penalty is chosen by generalised cross-validation."""
    n = sums.samples
    center, level = sums.features / n, sums.logits / n
    products = sums.products - n * torch.outer(center, center)
    cross = sums.cross - n * torch.outer(center, level)
    total = (sums.squares - n * level.square()).clamp(min=0)
    start = torch.zeros_like(cross.T) if old_weight is None else old_weight.to(cross)
    # Of the residuals that the start leaves: their products with the features, and their squares.
    pulled = cross - products @ start.T
    squares = (total - ((cross + pulled) * start.T).sum(0)).clamp(min=0)
    values, vectors = torch.linalg.eigh(products)
    values = values.clamp(min=0)
    unit = float(values.mean()) or 1.0
    rotated = vectors.T @ pulled

    def errors_at(penalty: float) -> Tensor:
        inverse = 1 / (values + penalty * unit)
        left = max(1 - (1 + float((values * inverse).sum())) / n, _LEAST_LEFT)
        fitted: Tensor = (2 * inverse - values * inverse.square()) @ rotated.square()
        errors: Tensor = (squares - fitted).clamp(min=0) / left**2
        return errors

    every = [errors_at(penalty) for penalty in _PENALTIES]
    sizes = [float(errors.sum()) for errors in every]
    worst = min(sizes) * (1 if old_weight is None else _AS_GOOD)
    chosen = max(i for i, size in enumerate(sizes) if size <= worst)
    inverse = 1 / (values + _PENALTIES[chosen] * unit)
    weight = start + ((vectors * inverse) @ rotated).T
    return HeadMap(
        weight,
        level - weight @ center,
        _PENALTIES[chosen],
        1 - every[chosen] / total.clamp(min=_TINY),
        n,
        center,
        vectors * inverse.sqrt(),
    )


class HeadRows(NamedTuple):
    """A head of all classes: the old ones in their order, and behind them those that the old head does not have.

    Attributes
    ----------
    weight, bias : (C', D) and (C',) float64 tensors
        The new rows of fine-tuned classes, mixed with those of the map, and for all others the scaled rows of the map,
        which follow half of the change in level of the classes that both heads have. Gamma is not in them.
    seen_mask : (C',) bool tensor
        Classes of the new head.
    classes : (K,) int64 tensor
        The class in this head of each class of the new head.
    scale : float
        By which the mapped logits of absent classes are multiplied.
    old_share, shared_scale : float
        The share of the mapped logits in those of classes of both heads, and by what they are multiplied there.
    shared : (M,) int64 tensor
        Classes of both heads.
    head_map : HeadMap
    """

    weight: Tensor
    bias: Tensor
    seen_mask: Tensor
    classes: Tensor
    scale: float
    old_share: float
    shared_scale: float
    shared: Tensor
    head_map: HeadMap

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits `(N, C')`."""
        return by_rows(lambda x: x.double() @ self.weight.T + self.bias, features)

    def leave_one_out(self, features: Tensor, old_logits: Tensor) -> Tensor:
        """Return the logits of samples that the map was fitted to, mapped ones by fits to all the other samples."""
        change = self.head_map.leave_one_out(features, old_logits).sub_(self.head_map(features))
        level = change[:, self.shared].mean(1, keepdim=True)
        logits = self(features)
        absent = (~self.seen_mask).nonzero()[:, 0]
        logits[:, absent] += self.scale * (change[:, absent] - _FOLLOWED * level)
        logits[:, self.shared] += self.old_share * self.shared_scale * (change[:, self.shared] - level)
        return logits

    def as_if_absent(
        self, logits: Tensor, features: Tensor, old_logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logits and labels of samples of shared classes, each as if its class were absent.

        `logits` are leave-one-out ones. The logit of a sample's class is then a mapped one, too, by a fit without any
        sample of the class.
        """
        known = torch.isin(labels, self.shared)
        x, y, own = features[known], old_logits[known], labels[known]
        mapped = self.scale * self.head_map.leave_one_out(x, y)[:, self.shared]
        logits = logits[known]
        level = _FOLLOWED * (logits[:, self.shared] - mapped).mean(1)
        found = self.scale * self.head_map.leave_class_out(x, y, own) + level
        return logits.scatter(1, own[:, None], found[:, None].to(logits)), own


def restored_head(
    head_map: HeadMap,
    new_weight: Tensor,
    new_bias: Tensor | None,
    new_to_old: Tensor,
    features: Tensor,
    old_logits: Tensor,
    labels: Tensor | None = None,
) -> HeadRows:
    """Put the rows of the new head and mapped rows of the absent classes together.

    `new_to_old`, `(K,)`, has the old class of each new one, -1 for a class of its own. The scale is that of `features`
    and `old_logits` of samples that the map was fitted to, of fine-tuned classes if there are labels to tell. `labels`,
    in the numbering of the new head, say how much of the mapped logits helps the new ones. Both are told from 4096
    evenly spaced samples.
    """
    step = -(-len(features) // _ROWS)
    features, old_logits = features[::step], old_logits[::step]
    labels = None if labels is None else labels[::step]
    own = new_to_old < 0
    old = len(head_map.weight)
    classes = torch.where(own, old - 1 + own.cumsum(0), new_to_old).long()
    mask = torch.zeros(old + int(own.sum()), dtype=torch.bool, device=classes.device)
    mask[classes] = True
    shared = classes[~own]
    rows = new_weight.double()
    level = torch.zeros_like(rows[:, 0]) if new_bias is None else new_bias.double()
    mapped = head_map.leave_one_out(features, old_logits).double()
    logits = features.double() @ rows.T + level
    shared_scale = scale_of_map(mapped, logits, new_to_old)

    def as_mapped(of_new: Tensor, of_map: Tensor) -> Tensor:
        """Return what the map says of the new classes, at the level of the new head; their own classes stay."""
        out, of_shared = of_new.clone(), shared_scale * of_map[shared]
        out[~own] = of_shared + (of_new[~own] - of_shared).mean(0)
        return out

    as_old = as_mapped(logits.T, mapped.T).T
    share = 0.0 if labels is None else old_share(logits, as_old, labels)
    scale = scale_of_map(mapped, logits.lerp(as_old, share), new_to_old)

    def whole(of_map: Tensor, of_new: Tensor) -> Tensor:
        """Return the rows of all classes."""
        mixed = of_new.lerp(as_mapped(of_new, of_map), share)
        out = of_map.new_zeros((len(mask), *of_map.shape[1:]))
        out[:old] = scale * of_map + _FOLLOWED * (mixed[~own] - scale * of_map[shared]).mean(0)
        out[classes] = mixed
        return out

    weight, bias = whole(head_map.weight, rows), whole(head_map.bias, level)
    return HeadRows(weight, bias, mask, classes, scale, share, shared_scale, shared, head_map)


def old_share(new_logits: Tensor, as_old: Tensor, labels: Tensor) -> float:
    """Return b / (a + b) of the likeliest softmax(a new + b old), a > 0 and b >= 0: how much the old logits help.

    0 if either are constant.
    """
    from scipy.optimize import minimize

    parts = torch.stack([new_logits, as_old])
    centred = parts - parts.mean(2, keepdim=True)
    sizes = centred.square().mean((1, 2)).sqrt()
    if not bool(sizes.all()):
        return 0.0
    parts = centred / sizes[:, None, None]
    own = parts.gather(2, labels.expand(2, -1)[:, :, None])[:, :, 0].mean(1)

    def loss(factors: Any) -> tuple[float, Any]:
        weights = torch.as_tensor(factors).to(parts)
        mixed = torch.tensordot(weights, parts, 1)
        doubt = _PRIOR / len(labels) * weights
        value = mixed.logsumexp(1).mean() - own @ weights + doubt @ weights
        slope = (mixed.softmax(1) * parts).sum(2).mean(1) - own + 2 * doubt
        return float(value), slope.cpu().numpy()

    found = minimize(loss, [1.0, 0.1], jac=True, bounds=[(1e-6, None), (0, None)], method="L-BFGS-B").x
    new, old = (found / sizes.cpu().numpy()).tolist()
    return float(old / (new + old))


def scale_of_map(mapped: Tensor, new_logits: Tensor, new_to_old: Tensor) -> float:
    """Return how much further the largest new logit rises over the mean than the largest mapped logit does.

    Both are of the classes that both heads have, in the mean of the samples. 1 if there are no two such classes.
    """
    both = new_to_old >= 0
    rises = [
        float((logits.amax(1) - logits.mean(1)).mean()) if logits.shape[1] else 0.0
        for logits in (new_logits.double()[:, both], mapped.double()[:, new_to_old[both]])
    ]
    return rises[0] / rises[1] if min(rises) > 0 else 1.0


def restored_gap(
    logits: Tensor, labels: Tensor, seen_mask: Tensor, old_logits: Tensor, shared: Tensor, seed: int = 0
) -> GapEstimate:
    """Estimate the gap from leave-one-out logits `(N, C')` of labelled samples of fine-tuned classes.

    It is that of mixed pairs, but at most so large that, where every class is equally frequent, as large a share of
    the samples is taken for absent ones as the pre-trained model takes: it has no gap, and knows the samples less well.
    """
    scan = scan_seen(Samples(logits, labels), seen_mask, "restore_head")
    share = equal_share(scan)
    try:
        found = estimate_pair_gap(scan, Bootstrap.from_arguments(0, seed))
    except NoPairs:
        found = GapEstimate(float("inf"), 1.0, [], len(labels), "mixed_pair_gap")
    known = torch.isin(labels, shared)
    if not bool(known.any()):
        if found.gap == float("inf"):
            raise ValueError(
                "no two labelled samples tell gamma: none is of a class that both heads have, and the new head is "
                "right about too few of them; pass more samples, with labels in the numbering of the new head"
            )
        return found
    old_mask = torch.zeros(old_logits.shape[1], dtype=torch.bool, device=old_logits.device)
    old_mask[shared] = True
    taken = float((_margins(old_logits[known], old_mask) < 0).double().mean())
    most = float(_margins(logits[known], seen_mask).double().quantile(taken)) - found.share_term(share)
    return found._replace(gap=min(found.gap, most))


def _margins(logits: Tensor, mask: Tensor) -> Tensor:
    return logits[:, mask].amax(1) - logits[:, ~mask].amax(1)


class Expected(NamedTuple):
    """Accuracies over all classes that held-out samples of fine-tuned classes let expect, in [0, 1].

    Attributes
    ----------
    restored : float
        Of the restored model: that of the samples themselves, and of the same ones as if their classes were absent.
    pretrained : float
        Of the pre-trained model: that of the samples.
    fine_tuned : float
        Of the fine-tuned model, which is wrong about absent classes.
    """

    restored: float
    pretrained: float
    fine_tuned: float

    def is_doubtful(self, is_held_out: bool) -> bool:
        """Whether the restored model may be worse than the better of the two."""
        best = max(self.pretrained, self.fine_tuned)
        return self.restored < best + min(_EXPECTED_GAIN[is_held_out], (1 - best) / 2)


def expected_accuracy(
    rows: HeadRows,
    logits: Tensor,
    features: Tensor,
    old_logits: Tensor,
    labels: Tensor,
    gamma: float,
    seen_share: float | None = None,
) -> Expected:
    """Expect accuracies from samples that the map was fitted to, and their leave-one-out logits.

    Labels are in the numbering of the restored head.
    """
    mask = rows.seen_mask
    share = int(mask.sum()) / len(mask) if seen_share is None else seen_share
    added = gamma * (~mask).to(logits)

    def accuracy(scores: Tensor, classes: Tensor, added: Tensor) -> float:
        return float(by_rows(lambda z, c: (z + added).argmax(1) == c, scores, classes).double().mean())

    on_seen = accuracy(logits, labels, added)
    fine_tuned = accuracy(logits, labels, torch.zeros_like(added).masked_fill(~mask, -torch.inf))
    pretrained = accuracy(old_logits, labels, old_logits.new_zeros(()))
    pseudo, own = rows.as_if_absent(logits, features, old_logits, labels)
    on_absent = 0.0
    if len(own):
        pseudo.scatter_add_(1, own[:, None], torch.full_like(pseudo[:, :1], gamma))
        on_absent = accuracy(pseudo, own, added)
    return Expected(share * on_seen + (1 - share) * on_absent, pretrained, share * fine_tuned)
