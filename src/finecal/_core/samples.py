"""Samples: logits with what belongs to each row, checked once and scanned once, whichever functions ask."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor

from .arrays import (
    ArrayLike,
    Features,
    Groups,
    Labels,
    Logits,
    Mask,
    as_tensor,
    as_type_of,
    check_device,
    dtype_name,
    shape_of,
)
from .checks import (
    as_logits,
    check_features,
    check_labels,
    check_mask,
    check_mask_values,
    check_not_empty,
    check_same_device,
    check_scores,
    warn_if_reindexed,
)
from .files import PathLike
from .groups import Grouping, check_groups, groups_of
from .kernels import LabelHits, LabelScalars
from .logits_file import LogitsFile, check_uncalibrated, read_logits, write_logits
from .plausibility import input_warnings
from .reductions import group_maxima, label_hits, label_scalars, margin_of
from .report import Margins
from .seen_mask import ClassNames, check_class_names
from .warning import error_context, warn

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Samples:
    """Logits of N samples, and what belongs to each: labels, features, groups, logits from before fine-tuning.

    Shapes, dtypes, devices and labels are checked here, the values of the logits when a function first reads them.
    Statistics are kept for the next function that needs them. Nothing is copied: the arrays must not change afterwards.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, of the fine-tuned model in eval mode. -inf masks a class.
    labels : (N,) int, optional
        Class indices in ``[0, C)``, on the device of the logits.
    features : (N, D) tensor or array, optional
        Inputs of the final linear layer. Floating point, finite.
    groups : (N,) int, optional
        Picture (patient, document) that each sample comes from, any integers. Samples of a group are not independent:
        whole groups are resampled, and n samples count as n over their design effect. Have at least ten groups.
    pretrained_logits, pretrained_features : (N, C) and (N, D') tensor or array, optional
        Logits and features of the same samples, from the model before fine-tuning. Only `restore_head` takes logits of
        another number of classes.

    Raises
    ------
    TypeError
        If `logits` or features are not floating point, or `labels` or `groups` not integer.
    ValueError
        If shapes or devices do not match, labels are out of range, or features are not finite.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> samples = finecal.Samples(logits, labels=[0, 2])
    >>> samples, samples[:1]
    (Samples(2 x 3 logits, labels), Samples(1 x 3 logits, labels))
    >>> finecal.evaluate(samples, [True, True, False]).acc_seen
    1.0
    """

    def __init__(
        self,
        logits: Logits,
        labels: Labels | None = None,
        *,
        features: Features | None = None,
        groups: Groups | None = None,
        pretrained_logits: Logits | None = None,
        pretrained_features: Features | None = None,
    ) -> None:
        x = as_logits(logits).detach()
        n, device = len(x), x.device
        tensors = {"logits": x}
        if labels is not None:
            tensors["labels"] = check_labels(labels, n, x.shape[1], device)
        if features is not None:
            tensors["features"] = check_features(features, n, device)
        if pretrained_logits is not None:
            tensors["pretrained_logits"] = _check_same_samples(pretrained_logits, x)
        if pretrained_features is not None:
            tensors["pretrained_features"] = check_features(pretrained_features, n, device, "pretrained_features")
        self._tensors: dict[str, Tensor] = tensors
        self.grouping: Grouping | None = check_groups(groups, n)
        self.name = self.source = ""
        self._as_given = as_type_of(logits)
        self._found: dict[str, Any] = {}

    # --- what is in it --------------------------------------------------------------------------------------------

    @property
    def logits(self) -> Any:
        """`(N, C)`, as given: a tensor or an array."""
        return self._array("logits")

    @property
    def labels(self) -> Any:
        """`(N,)` int64, or None."""
        return self._array("labels")

    @property
    def features(self) -> Any:
        """`(N, D)`, or None."""
        return self._array("features")

    @property
    def groups(self) -> Any:
        """`(N,)` int64, or None."""
        return None if self.grouping is None else self._as_given(self.grouping.given)

    @property
    def pretrained_logits(self) -> Any:
        """`(N, C)`, or None."""
        return self._array("pretrained_logits")

    @property
    def pretrained_features(self) -> Any:
        """`(N, D')`, or None."""
        return self._array("pretrained_features")

    @property
    def num_classes(self) -> int:
        """C."""
        return self._tensors["logits"].shape[1]

    def __len__(self) -> int:
        return len(self._tensors["logits"])

    __iter__ = None
    """Neither a sequence of rows nor a pair: a pair that is unpacked by mistake is refused."""

    def __repr__(self) -> str:
        rest = [name for name in self._tensors if name != "logits"] + (["groups"] if self.grouping else [])
        return f"Samples({', '.join([f'{len(self)} x {self.num_classes} logits', *rest])})"

    def __getitem__(self, rows: slice | ArrayLike) -> Samples:
        """Return some of the samples: a slice, a boolean for each sample, or indices."""
        if isinstance(rows, slice):
            index = torch.arange(len(self), device="cpu")[rows]
            return self._map(lambda tensor: tensor[rows], groups_of(self.grouping, index))
        chosen = _check_rows(rows, len(self))
        return self._map(lambda tensor: tensor[chosen.to(tensor.device)], groups_of(self.grouping, chosen))

    def to(self, device: torch.device | str) -> Samples:
        """Return the samples on another device; those of arrays become tensors."""
        target = check_device(device)
        moved = self._map(lambda tensor: tensor.to(target), self.grouping)
        moved._as_given = as_type_of(self._tensors["logits"])
        return moved

    # --- files ----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: PathLike) -> Samples:
        """Read samples from `.npz`, `.npy`, `.pt` or `.safetensors`, on the CPU.

        The file has the arrays under the names of the parameters, ``logits`` and perhaps others, or the logits alone.
        Errors and warnings about the samples name the file.

        Raises
        ------
        OSError, ValueError, ImportError
            In one sentence with the problem and its remedy: also if gamma has been added to the logits already.
        """
        return cls.of_file(read_logits(path), path)

    @classmethod
    def of_file(cls, content: LogitsFile, path: PathLike) -> Samples:
        """Private: the samples of a file that is read."""
        check_uncalibrated(content, path)
        with error_context(path, ValueError):
            samples = cls(
                content.logits,
                content.labels,
                features=content.features,
                groups=content.groups,
                pretrained_logits=content.pretrained_logits,
                pretrained_features=content.pretrained_features,
            )
        return samples.of_path(path)

    def save(self, path: PathLike, *, class_names: ClassNames | None = None) -> None:
        """Write all of it to an `.npz` or `.safetensors`, or the logits alone to an `.npy`; whole or not at all."""
        names = check_class_names(class_names, self.num_classes)
        arrays: dict[str, Any] = dict(self._tensors)
        if self.grouping is not None:
            arrays["groups"] = self.grouping.given
        write_logits(path, LogitsFile(**arrays, class_names=names))

    # --- what is found in it --------------------------------------------------------------------------------------

    def margins(self, seen_mask: Mask) -> Margins[Any]:
        r"""Reduce the logits to one margin, two flags and the label per sample, in one pass, `O(NC)`.

        .. math:: \text{margin} = \max_{c \in S} z_c - \max_{c \in U} z_c

        Parameters
        ----------
        seen_mask : (C,) bool
            True for the seen classes.

        Returns
        -------
        Margins
            Of the type and device of the logits. No samples give empty fields.

        Raises
        ------
        TypeError
            If there are no labels, or `seen_mask` is not boolean.
        ValueError
            If logits hold NaN, +inf or probabilities, or `seen_mask` has no seen or no absent class.

        Warns
        -----
        FinecalWarning
            If labels look re-indexed to 0..|S|-1, or seem to be of other samples or columns (accuracy within the groups
            hardly above guessing, or higher once each label is replaced by its neighbour); if classes seem to be
            masked by a large negative number in place of -inf.

        Examples
        --------
        >>> import numpy as np, finecal
        >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
        >>> m = finecal.Samples(logits, labels=[0, 2]).margins([True, True, False])
        >>> m.margin, m.is_seen, m.hit
        (array([1. , 2.5]), array([ True, False]), array([ True,  True]))
        """
        found = self.margin_tensors(seen_mask)
        return Margins(*map(self._as_given, (found.margin, found.is_seen, found.hit, self.labels_tensor)))

    def margin_tensors(self, seen_mask: Mask) -> Margins[Tensor]:
        """Private: the margins as tensors, with their warnings."""
        mask = self.check_mask(seen_mask)
        x, y = self.logits_tensor, self.labels_tensor
        scan: Scan | None = self._under(mask).get("scan")
        with self.naming_errors():
            if scan is None:
                found, hits = self._once(mask, "margins", lambda: margins_of(x, y, mask))
            warn_if_reindexed(y, mask)
        if scan is not None:
            scan.warn()
            return scan.margins
        for sentence in self._once(mask, "doubts", lambda: input_warnings(x, y, mask, hits)):
            warn(sentence)
        return cast(Margins[Tensor], found)

    def margin(self, seen_mask: Mask) -> Tensor:
        """Private: the margins `(N,)`, whether there are labels or not."""
        mask = self.check_mask(seen_mask)
        x = self.logits_tensor

        def find() -> Tensor:
            seen_max, absent_max = group_maxima(x, mask)
            check_scores(x, torch.maximum(seen_max, absent_max), self.called("logits"))
            return margin_of(seen_max, absent_max)

        found = self._under(mask)
        if "scan" in found:
            return cast(Tensor, found["scan"].margin)
        if "margins" in found:
            return cast(Tensor, found["margins"][0].margin)
        return cast(Tensor, self._once(mask, "margin", find))

    def scan(self, seen_mask: Mask) -> Scan:
        """Private: what estimators from labelled samples start from; one pass over the logits."""
        mask = self.check_mask(seen_mask)
        x, y = self.logits_tensor, self.labels_tensor
        with self.naming_errors():
            scan: Scan = self._once(mask, "scan", lambda: Scan.of(x, y, mask, self.grouping, self.name))
            warn_if_reindexed(y, mask)
        return scan if scan.name == self.name else replace(scan, groups=self.grouping, name=self.name)

    @property
    def logits_tensor(self) -> Tensor:
        """Private: the logits as a tensor, whatever was given."""
        return self._tensors["logits"]

    @property
    def labels_tensor(self) -> Tensor:
        """Private: the labels; an error if there are none."""
        if "labels" not in self._tensors:
            remedy = "save them under the key 'labels'" if self.source else "pass Samples(logits, labels)"
            raise TypeError(f"{self.origin or 'logits'} has no labels; {remedy}")
        return self._tensors["labels"]

    @property
    def features_tensor(self) -> Tensor | None:
        """Private: the features, if there are any."""
        return self._tensors.get("features")

    @property
    def pretrained_features_tensor(self) -> Tensor | None:
        """Private: the features of the model before fine-tuning, if there are any."""
        return self._tensors.get("pretrained_features")

    @property
    def pretrained_tensor(self) -> Tensor | None:
        """Private: the logits from before fine-tuning, once their values are checked, if there are any."""
        self.check_pretrained()
        return self._tensors.get("pretrained_logits")

    def named(self, name: str) -> Samples:
        """Private: the same samples as an argument of this name, by which errors call them if they are of no file."""
        return self._known_as(name, self.source)

    def of_path(self, path: PathLike) -> Samples:
        """Private: the same samples, which errors call by what they come from."""
        return self._known_as(self.name, str(path))

    def _known_as(self, name: str, source: str) -> Samples:
        other = copy.copy(self)
        other.name, other.source = name, source
        if self.grouping is not None:
            other.grouping = replace(self.grouping, name=other.called("groups"))
        return other

    @property
    def origin(self) -> str:
        """Private: what errors and warnings call the samples: their file, else the argument that they are."""
        return self.source or self.name

    def check_pretrained(self) -> None:
        """Private: the logits from before fine-tuning, if there are any, are scores of the same classes."""
        before = self._tensors.get("pretrained_logits")
        if before is not None and "pretrained" not in self._found:
            if before.shape[1] != self.num_classes:
                raise ValueError(
                    f"{self.called('pretrained_logits')} are of {before.shape[1]} classes, {self.called('logits')} of "
                    f"{self.num_classes}; pass both for all classes (where fine-tuning has replaced the head: "
                    "finecal.restore_head)"
                )
            check_scores(before, before.amax(1), self.called("pretrained_logits"))
            self._found["pretrained"] = True

    def check_not_empty(self, caller: str) -> None:
        """Private: there is at least one sample."""
        check_not_empty(len(self), caller, self.called("logits"))

    def _array(self, name: str) -> Any:
        tensor = self._tensors.get(name)
        return None if tensor is None else self._as_given(tensor)

    def called(self, field: str) -> str:
        """Private: what errors call a field."""
        return f"{self.origin}: {field}" if self.origin else field

    def naming_errors(self) -> AbstractContextManager[None]:
        """Private: errors are of these samples, by their file or name."""
        return error_context(self.origin) if self.origin else nullcontext()

    def check_mask(self, seen_mask: Mask) -> Tensor:
        """Private: the mask, checked, on the device of the logits."""
        with self.naming_errors():
            return check_mask_values(check_mask(seen_mask, self.num_classes, self.logits_tensor.device))

    def _under(self, mask: Tensor) -> dict[str, Any]:
        """Return what has been found under a mask; that of another one is let go of."""
        key = mask.cpu().numpy().tobytes()
        if self._found.get("mask") != key:
            kept = {name: value for name, value in self._found.items() if name == "pretrained"}
            self._found.clear()
            self._found.update(kept, mask=key)
        return self._found

    def _once(self, mask: Tensor, name: str, find: Callable[[], Any]) -> Any:
        found = self._under(mask)
        if name not in found:
            found[name] = find()
        return found[name]

    def _map(self, change: Callable[[Tensor], Tensor], grouping: Grouping | None) -> Samples:
        other = copy.copy(self)
        other._tensors = {name: change(tensor) for name, tensor in self._tensors.items()}
        other.grouping, other._found = grouping, {}
        return other


@dataclass(frozen=True, eq=False)
class Scan:
    """Labelled samples under a seen mask, and what one pass over their logits finds."""

    logits: Tensor
    labels: Tensor
    mask: Tensor
    scalars: LabelScalars
    margin: Tensor
    groups: Grouping | None = None
    """Which samples belong together; None where each is independent of all others."""
    name: str = ""
    """The argument that they are, "train" or "held_out", if the function was told."""
    memo: dict[str, list[str]] = field(default_factory=dict)
    """Doubts, once they are looked for."""

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, mask: Tensor, groups: Grouping | None = None, name: str = "") -> Self:
        """Scan checked logits, of which the values are checked here."""
        scalars = label_scalars(logits, labels, mask)
        check_scores(logits, torch.maximum(scalars.seen_max, scalars.absent_max))
        return cls(logits, labels, mask, scalars, margin_of(scalars.seen_max, scalars.absent_max), groups, name)

    @property
    def margins(self) -> Margins[Tensor]:
        """The samples as questions about gamma see them."""
        return Margins(self.margin, self.scalars.is_seen, self.scalars.hit, self.labels)

    def acc_seen(self, gamma: float) -> float:
        """`Acc_{S/Y}` at gamma, NaN without seen samples."""
        correct = self.scalars.hit & (self.margin.double() >= gamma)
        return float(correct[self.scalars.is_seen].double().mean())

    def doubts(self) -> list[str]:
        """Return warnings about labels that seem to be of other samples or columns, and masks by large numbers."""
        if "doubts" not in self.memo:
            self.memo["doubts"] = input_warnings(self.logits, self.labels, self.mask, self.scalars.hits)
        return self.memo["doubts"]

    def warn(self) -> None:
        """Warn of what `doubts` says."""
        for sentence in self.doubts():
            warn(sentence)

    def rounding_step(self) -> float:
        """Distance of neighbouring numbers, in the dtype of the logits, at the largest of the groups' maxima."""
        maxima = torch.stack([self.scalars.seen_max, self.scalars.absent_max])
        largest = float(maxima.abs().masked_fill(~maxima.isfinite(), 0).max())
        return torch.finfo(self.logits.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 0.0


# --- samples as arguments ---------------------------------------------------------------------------------------------


class TakesSamples(Protocol[P, R_co]):
    """A function of logits and labels, or of a `Samples` in their place."""

    @overload
    def __call__(self, logits: Logits, labels: Labels, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, logits: Samples, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def takes_samples(function: Callable[Concatenate[Any, Any, P], R_co]) -> TakesSamples[P, R_co]:
    """Let a function of logits and labels take a `Samples` in their place: ``function(samples, seen_mask)``."""

    @functools.wraps(function)
    def call(logits: Any, *args: Any, **kwargs: Any) -> R_co:
        if isinstance(logits, Samples) and "labels" not in kwargs:
            return function(logits, None, *args, **kwargs)
        return function(logits, *args, **kwargs)

    return cast(TakesSamples[P, R_co], call)


def samples_of(logits: Logits | Samples, labels: Labels | None) -> Samples:
    """Return the two first arguments of a function that `takes_samples` as one."""
    if not isinstance(logits, Samples):
        return Samples(logits, labels)
    if labels is not None:
        raise TypeError("logits is a Samples, which has its labels; pass no others beside it")
    return logits


SamplesLike: TypeAlias = "Samples | tuple[Logits, Labels]"
"""Labelled samples, or logits and labels in a pair."""
UnlabelledLike: TypeAlias = "Samples | Logits"
"""Samples whose labels do not matter, or their logits."""


def labelled_samples(value: SamplesLike, name: str) -> Samples:
    """Return the labelled samples of the argument `name`: a `Samples`, or a pair of logits and labels."""
    if isinstance(value, Samples):
        samples = value.named(name)
        samples.labels_tensor  # noqa: B018 - which refuses samples without labels
        return samples
    pair: Any = value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        what = f"a {type(pair).__name__}" + (f" of {len(pair)} items" if isinstance(pair, (tuple, list)) else "")
        raise TypeError(
            f"{name} is {what}; pass a pair, {name}=(logits, labels), or with features or groups "
            f"{name}=Samples(logits, labels, features=..., groups=...)"
        )
    with error_context(name):
        return Samples(*pair).named(name)


def unlabelled_samples(value: UnlabelledLike, name: str) -> Samples:
    """Return the samples of the argument `name`, of which labels are not looked at: a `Samples`, or logits."""
    if isinstance(value, Samples):
        return value.named(name)
    if isinstance(value, tuple):
        raise TypeError(f"{name} is a tuple of {len(value)} items; pass logits, or Samples(logits, features=...)")
    with error_context(name):
        return Samples(value).named(name)


def samples_with(value: object, name: str, *needed: str) -> Samples:
    """Return the `Samples` of the argument `name`, which is refused without any of the fields `needed`."""
    fields = ", ".join(["logits", *(field if field == "labels" else f"{field}=..." for field in needed)])
    if not isinstance(value, Samples):
        raise TypeError(f"{name} is a {type(value).__name__}; pass {name}=Samples({fields})")
    lacking = [field for field in needed if field not in value._tensors]
    if lacking:
        raise TypeError(f"{name} has no {lacking[0]}; pass {name}=Samples({fields})")
    return value


def margins_of(x: Tensor, labels: Tensor, mask: Tensor) -> tuple[Margins[Tensor], LabelHits]:
    """Return margins and hits of checked logits and labels; the values of the logits are checked here."""
    hits = label_hits(x, labels, mask)
    check_scores(x, torch.maximum(hits.seen_max, hits.absent_max))
    return Margins(margin_of(hits.seen_max, hits.absent_max), mask[labels], hits.hit, labels), hits


def batch_margins(samples: Samples, seen_mask: Mask) -> Margins[Tensor]:
    """Return the margins of labelled samples of which more may follow: too few to look for doubts."""
    return margins_of(samples.logits_tensor, samples.labels_tensor, samples.check_mask(seen_mask))[0]


@takes_samples
def scan_batch(logits: Logits, labels: Labels, seen_mask: Mask) -> Scan:
    """Scan what may be one batch of many: too few labels to tell whether they are re-indexed."""
    samples = samples_of(logits, labels)
    return Scan.of(samples.logits_tensor, samples.labels_tensor, samples.check_mask(seen_mask))


def validate_logits(logits: Logits, seen_mask: Mask, name: str = "logits") -> tuple[Tensor, Tensor]:
    """Return logits and a mask as checked tensors."""
    x = as_logits(logits, name).detach()
    return x, check_mask_values(check_mask(seen_mask, x.shape[1], x.device))


def _check_rows(rows: ArrayLike, num_samples: int) -> Tensor:
    """A boolean for each sample, or indices, negative ones from the end; no single one, as there is no single row."""
    if getattr(rows, "ndim", 0 if hasattr(rows, "__index__") else None) == 0:
        raise TypeError(f"rows is one {type(rows).__name__}; pass a slice, a mask or indices: samples[i : i + 1]")
    chosen = as_tensor(rows, "rows")
    if chosen.ndim != 1:
        raise ValueError(f"rows has shape {shape_of(chosen)}; pass a boolean for each sample, or indices")
    if chosen.dtype == torch.bool:
        if len(chosen) != num_samples:
            raise ValueError(f"rows has {len(chosen)} booleans for {num_samples} samples; pass one for each")
        return chosen
    if len(chosen) > 0 and (chosen.is_floating_point() or chosen.is_complex()):
        raise TypeError(f"rows has dtype {dtype_name(chosen)}; pass a boolean for each sample, or indices")
    chosen = chosen.to(torch.int64)
    wrong = (chosen < -num_samples) | (chosen >= num_samples)
    if bool(wrong.any()):
        raise ValueError(f"rows contain {int(chosen[wrong][0])}, but there are {num_samples} samples")
    return chosen


def _check_same_samples(logits: Logits, after: Tensor) -> Tensor:
    """Check the logits of the model before fine-tuning, row by row those of `after`; it may have other classes."""
    name = "pretrained_logits"
    before = as_logits(logits, name).detach()
    if len(before) != len(after):
        raise ValueError(
            f"{name} have shape {shape_of(before)}, logits {shape_of(after)}; pass those of the same samples, in the "
            "same order"
        )
    check_same_device(before, after.device, name)
    return before
