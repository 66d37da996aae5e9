"""Precision, recall and F1 of entities, on seen, absent and all types, without gamma and with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, SupportsFloat

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, as_tensor, check_choice, check_flag
from .._core.calibrate import Layout, predict
from .._core.checks import as_logits, check_mask, check_mask_values, check_scores, gamma_as_float, labels_as_tensor
from .._core.results import Block, Result, Table, data_frame, percent
from .._core.samples import Samples, samples_of, takes_samples
from .._core.seen_mask import ClassNames, check_class_names, types_of_tags

if TYPE_CHECKING:
    from pandas import DataFrame

_GROUPS = ("seen", "absent", "all")
_IOBES = {"L": "E", "U": "S"}
"""Prefixes of BILOU by those of BIOES."""


@dataclass(frozen=True)
class EntityReport(Result):
    """Entities that are found at one gamma and at 0; made by `entity_scores`. Prints as a table, in %.

    An entity is found if its type and both of its ends are right. K types are in order of their names, the seen ones
    first.

    Attributes
    ----------
    gamma : float
    types : (K,) tuple of str
    is_seen : (K,) tuple of bool
    entities : (K,) tuple of int
        Entities of each type in the labels.
    predicted, correct : (K,) tuple of int
        Predicted entities of each type at `gamma`, and those that are found.
    predicted_at_zero, correct_at_zero : (K,) tuple of int
        The same for gamma = 0.

    Examples
    --------
    >>> report = EntityReport(
    ...     2.0, ("PER", "LOC"), (True, False), (4, 4), (4, 4), (3, 3), (8, 0), (4, 0)
    ... )
    >>> report.scores("absent"), report.scores(["PER"], at_zero=True)
    ((0.75, 0.75, 0.75), (0.5, 1.0, 0.6666666666666666))
    """

    gamma: float
    types: tuple[str, ...]
    is_seen: tuple[bool, ...]
    entities: tuple[int, ...]
    predicted: tuple[int, ...]
    correct: tuple[int, ...]
    predicted_at_zero: tuple[int, ...]
    correct_at_zero: tuple[int, ...]

    def scores(self, of: str | Sequence[str] = "all", *, at_zero: bool = False) -> tuple[float, float, float]:
        """Return precision, recall and F1 over all entities of some types (micro averages).

        Parameters
        ----------
        of : {"all", "seen", "absent"} or sequence of str
            The types: a group of them, or a list of their names.
        at_zero : bool, default False
            Whether for gamma = 0.

        Returns
        -------
        (float, float, float)
            0 where nothing is predicted, as in seqeval; NaN without entities in the labels.

        Raises
        ------
        ValueError
            If `of` is another text, or a list with a name that is no type.
        """
        chosen = self._chosen(of)
        predicted, correct = self.predicted, self.correct
        if check_flag(at_zero, "at_zero"):
            predicted, correct = self.predicted_at_zero, self.correct_at_zero
        n, p, c = (sum(counts[k] for k in chosen) for counts in (self.entities, predicted, correct))
        if n == 0:
            return (float("nan"),) * 3
        return c / p if p else 0.0, c / n, 2 * c / (p + n)

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per type."""
        names = ("seen", "entities", "precision", "recall", "f1", "precision_at_zero", "recall_at_zero", "f1_at_zero")
        rows = [
            dict(zip(names, (seen, n, *self.scores([name]), *self.scores([name], at_zero=True)), strict=True))
            for name, seen, n in zip(self.types, self.is_seen, self.entities, strict=True)
        ]
        return data_frame(rows, self.types, "type")

    def _chosen(self, of: str | Sequence[str]) -> list[int]:
        if isinstance(of, str):
            wanted = {"seen": (True,), "absent": (False,), "all": (True, False)}[check_choice(of, _GROUPS, "of")]
            return [k for k, seen in enumerate(self.is_seen) if seen in wanted]
        unknown = [name for name in of if name not in self.types]
        if unknown:
            raise ValueError(f"of contains {unknown[0]!r}; the types are {', '.join(map(repr, self.types))}")
        return [self.types.index(name) for name in of]

    def _blocks(self) -> list[Block]:
        def row(title: str, of: str | Sequence[str]) -> list[str]:
            before, after = self.scores(of, at_zero=True), self.scores(of)
            count = sum(self.entities[k] for k in self._chosen(of))
            return [title, str(count), *map(percent, (before[2], after[2], *after[:2]))]

        header = ["types", "entities", "F1 at 0", "F1", "precision", "recall"]
        groups = [row(f"{group} types", group) for group in _GROUPS]
        each = [
            row(f"{name} ({'seen' if seen else 'absent'})", [name])
            for name, seen in zip(self.types, self.is_seen, strict=True)
        ]
        return [[f"gamma = {self.gamma:.6g}; entities, %", Table(header, groups + each)]]


@takes_samples
def entity_scores(
    logits: Logits,
    labels: Labels | None,
    seen_mask: Mask,
    gamma: SupportsFloat = 0.0,
    *,
    class_names: ClassNames,
    ignore_index: int | None = -100,
) -> EntityReport:
    r"""Return precision, recall and F1 of the entities of seen, absent and all types, at `gamma` and at 0.

    .. math:: F_1 = \frac{2 \, \text{correct}}{\text{predicted} + \text{entities}}

    seqeval finds the entities in the tags, in its default mode, as Hugging Face's ``evaluate`` does: an I- without a B-
    begins an entity.

    Parameters
    ----------
    logits : (B, L, C) tensor or array, or Samples
        Scores of the tags of L tokens in each of B sentences, *not* yet calibrated. Or all tokens of the sentences in
        order, as samples whose groups are the sentences: ``collect_logits(model, loader, positions=Positions(-1,
        ignore_index=-100))``, without `background` and `per_item`.
    labels : (B, L) int
        Class indices of the tags.
    seen_mask : (C,) bool
        True for "O" and the tags of the seen types: `seen_mask_from_names`.
    gamma : float, 0-d tensor or GammaEstimate, default 0
    class_names : sequence of C str, or dict
        The tags, as in `seen_mask_from_names`: ``model.config.id2label``.
    ignore_index : int or None, default -100
        Label of tokens that do not count. None: all count.

    Returns
    -------
    EntityReport

    Raises
    ------
    ImportError
        If seqeval is not installed: ``pip install 'finecal[sequences]'``.
    TypeError, ValueError
        As `predict`; ValueError if the classes are not tags with "O" among them, `seen_mask` is False for "O" or parts
        the tags of a type, or the samples have no groups, or these are out of order.

    Examples
    --------
    >>> import torch
    >>> from finecal.sequences import entity_scores
    >>> tags = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    >>> labels = torch.tensor([[3, 4, 0, 1]])
    >>> logits = 8 * torch.nn.functional.one_hot(labels, 5).float()
    >>> logits[0, :, 1:3] -= 9
    >>> mask = [True, False, False, True, True]
    >>> report = entity_scores(logits, labels, mask, 2.0, class_names=tags)
    >>> report.scores("seen"), report.scores("absent"), report.correct_at_zero
    ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1, 0))
    """
    samples = _samples_of_tokens(logits, labels, ignore_index)
    x, y = samples.logits_tensor, samples.labels_tensor
    mask = check_mask_values(check_mask(seen_mask, x.shape[1], x.device))
    tags = check_class_names(class_names, x.shape[1])
    assert tags is not None
    seen = _seen_types(tags, mask.tolist())
    value = gamma_as_float(gamma)
    check_scores(x, x.amax(1) if len(x) else x[:, 0])
    starts = _starts(samples)
    truth = _entities(y, tags, starts)
    count = [_entities(predict(x, mask, shift), tags, starts) for shift in (value, 0.0)]
    order = sorted(seen, key=lambda kind: (not seen[kind], kind))

    def by_type(found: set[tuple[str, int, int]]) -> tuple[int, ...]:
        counts = Counter(kind for kind, *_ in found)
        return tuple(counts[kind] for kind in order)

    after, before = count
    return EntityReport(
        gamma=value,
        types=tuple(order),
        is_seen=tuple(seen[kind] for kind in order),
        entities=by_type(truth),
        predicted=by_type(after),
        correct=by_type(after & truth),
        predicted_at_zero=by_type(before),
        correct_at_zero=by_type(before & truth),
    )


def _samples_of_tokens(logits: Logits | Samples, labels: Labels | None, ignore_index: int | None) -> Samples:
    """Return the tokens that count, in groups that are the sentences."""
    if isinstance(logits, Samples):
        return samples_of(logits, labels)
    x = as_logits(logits, any_batch=True)
    if x.ndim != 3:
        raise ValueError(
            f"logits have shape {tuple(x.shape)}; expected (B, L, C), or Samples with a group per sentence"
        )
    y = labels_as_tensor(labels, "labels")
    layout = Layout.from_arguments(-1, ignore_index)
    layout.check_shapes(x, y)
    flat = y.flatten()
    counted = layout.counted_indices(flat)
    rows = x.flatten(0, 1)[counted]
    return Samples(rows, layout.check_range(flat[counted], x.shape[2]), groups=counted // max(1, x.shape[1]))


def _seen_types(tags: Sequence[str], mask: Sequence[bool]) -> dict[str, bool]:
    """Return whether each type is seen; refuse a mask that is not one of types."""
    types = types_of_tags(tags)
    if types is None:
        raise ValueError(
            f"class_names are not the tags of entities ({', '.join(map(repr, tags[:3]))}, ...); expected 'O' and tags "
            "such as 'B-PER' and 'I-PER'"
        )
    seen: dict[str, bool] = {}
    for tag, kind, is_seen in zip(tags, types, mask, strict=True):
        if seen.setdefault(kind, is_seen) != is_seen:
            raise ValueError(
                f"seen_mask is {is_seen} for {tag!r} and {not is_seen} for another tag of its type; {_MASK}"
            )
    if not seen.pop(""):
        raise ValueError(f"seen_mask is False for 'O', to which gamma would be added; {_MASK}")
    return seen


_MASK = "make it of types: seen_mask_from_names([...], class_names)"


def _starts(samples: Samples) -> list[int]:
    """Return the indices of the first tokens of sentences, and the number of tokens."""
    if samples.groups is None:
        raise ValueError(
            "samples have no groups, so it is not known where sentences end; collect them with "
            "positions=Positions(-1, ignore_index=-100), or pass groups=, the sentence of each token"
        )
    groups = as_tensor(samples.groups, "groups")
    first = torch.ones_like(groups, dtype=torch.bool)
    first[1:] = groups[1:] != groups[:-1]
    starts: list[int] = first.nonzero().flatten().tolist()
    if len(starts) != len(set(groups[first].tolist())):
        raise ValueError(
            "groups are out of order: the tokens of a sentence must follow each other; do not shuffle them"
        )
    return [*starts, len(groups)]


def _entities(labels: Tensor, tags: Sequence[str], starts: Sequence[int]) -> set[tuple[str, int, int]]:
    """Return type, first and last token of each entity."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError as error:
        raise ImportError(f"entities need seqeval ({error}): pip install 'finecal[sequences]'") from error
    names = [_IOBES.get(tag[0], tag[0]) + tag[1:] for tag in tags]
    row = [names[label] for label in labels.tolist()]
    return set(get_entities([row[start:end] for start, end in pairwise(starts)]))
