"""Characters and lines that are read right, on seen and on absent characters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import eq
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core.arrays import Mask, check_count, to_numpy
from .._core.checks import (
    as_bool_mask,
    check_background,
    check_index_dtype,
    check_index_range,
    check_mask_values,
    labels_as_tensor,
)
from .._core.results import Block, Result, Table, data_frame, percent
from .._core.seen_mask import ClassNames, check_class_names

if TYPE_CHECKING:
    from pandas import DataFrame

_MOST_SHOWN = 12


@dataclass(frozen=True, eq=False)
class CharacterScores(Result):
    """Characters and lines that are read right; made by `character_scores`. Prints as tables.

    All but counts are fractions, NaN where no character defines them; they are printed in %.

    Attributes
    ----------
    acc_all, acc_seen, acc_absent : float
        Share of the characters of these groups that are found.
    error_all, error_seen, error_absent : float
        Characters of these groups that are not found or inserted, by the characters that there are: the character
        error rate. More than 1 if many are inserted.
    acc_lines : float
        Share of the lines without an error.
    n_all, n_seen, n_absent, n_lines : int
        Characters of these groups, and lines.
    labelled, correct, inserted : (C,) int64 array
        How often each class is in the texts, is found there, and is read where there is nothing.
    class_names : tuple of str, or None

    Examples
    --------
    >>> import finecal
    >>> scores = finecal.sequences.character_scores(
    ...     [[1, 2], [2, 2]], [[1, 2], [2, 3]], [True, True, True, False]
    ... )
    >>> scores.acc_seen, scores.acc_absent, scores.error_all, scores.acc_lines
    (1.0, 0.0, 0.25, 0.5)
    """

    acc_all: float
    acc_seen: float
    acc_absent: float
    error_all: float
    error_seen: float
    error_absent: float
    acc_lines: float
    n_all: int
    n_seen: int
    n_absent: int
    n_lines: int
    labelled: NDArray[np.int64]
    correct: NDArray[np.int64]
    inserted: NDArray[np.int64]
    seen_mask: NDArray[np.bool_]
    class_names: tuple[str, ...] | None = None

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per class, which has its name if there are `class_names`."""
        columns = ("seen_mask", "labelled", "correct", "inserted")
        return data_frame({name: getattr(self, name) for name in columns}, self.class_names)

    def _blocks(self) -> list[Block]:
        rows = [
            ["characters found, %", *map(percent, (self.acc_seen, self.acc_absent, self.acc_all))],
            ["character error rate, %", *map(percent, (self.error_seen, self.error_absent, self.error_all))],
            ["characters", *map(str, (self.n_seen, self.n_absent, self.n_all))],
        ]
        lines = f"lines without an error: {percent(self.acc_lines)} % of {self.n_lines}"
        blocks: list[Block] = [[Table(["", "seen", "absent", "all"], rows), lines]]
        return blocks if self.class_names is None else [*blocks, self._by_character(self.class_names)]

    def _by_character(self, names: Sequence[str]) -> Block:
        """Show the absent characters, the most frequent ones first."""
        labelled, correct = self.labelled.tolist(), self.correct.tolist()
        absent = (~self.seen_mask & (self.labelled > 0)).nonzero()[0].tolist()
        absent.sort(key=lambda index: -labelled[index])
        rows = [
            [names[index], str(labelled[index]), percent(correct[index] / labelled[index])]
            for index in absent[:_MOST_SHOWN]
        ]
        found = (
            f"{sum(correct[index] > 0 for index in absent)} of {len(absent)} absent characters are found at least once"
        )
        return [found, Table(["absent", "in the texts", "found, %"], rows)] if rows else [found]


def character_scores(
    predicted: Iterable[Sequence[int]],
    texts: Iterable[Sequence[int]],
    seen_mask: Mask,
    *,
    blank: int = 0,
    class_names: ClassNames | None = None,
) -> CharacterScores:
    r"""Count the characters that are read right, by an alignment with as few edits as can be.

    .. math::
        \text{error}_G = \frac{1}{n_G} \sum_{c \in G} (n_c - \text{correct}_c + \text{inserted}_c)

    for a group G of characters that stand :math:`n_G` times in the texts. Over all characters this is the edit distance
    by the length of the texts.

    Parameters
    ----------
    predicted : list of sequences of int
        Class indices that were read, by line: those of `greedy_decode`, or of any other decoder.
    texts : list of sequences of int
        The true class indices of the same lines, without padding.
    seen_mask : (C,) bool
        True for the seen classes, and for the blank.
    blank : int, default 0
        Class of the blank, which is in no text.
    class_names : sequence of str or dict, optional
        By index, as in `seen_mask_from_names`, the blank's too: absent characters are then printed one by one.

    Returns
    -------
    CharacterScores

    Raises
    ------
    TypeError
        If indices are not integer, or `seen_mask` is not boolean.
    ValueError
        If there are not as many lines in both, indices are out of range or blank, or `seen_mask` has no seen or no
        absent class, or is False for the blank.

    Notes
    -----
    Of the alignments with the fewest edits (Levenshtein), one that finds the most characters is taken. A character that
    is read as another one counts against the group of the true one; what is read where there is nothing, against its
    own group. `O(S^2)` time for a line of S characters.

    Examples
    --------
    >>> import finecal
    >>> seen_mask = [
    ...     True,
    ...     True,
    ...     True,
    ...     False,
    ... ]  # the blank, two seen characters, an absent one
    >>> print(
    ...     finecal.sequences.character_scores(
    ...         [[1, 2], [2, 2]], [[1, 2], [2, 3]], seen_mask
    ...     )
    ... )
    |                         |  seen | absent |  all |
    | ----------------------- | ----: | -----: | ---: |
    | characters found, %     | 100.0 |    0.0 | 75.0 |
    | character error rate, % |   0.0 |  100.0 | 25.0 |
    | characters              |     3 |      1 |    4 |
    lines without an error: 50.0 % of 2
    """
    mask = check_mask_values(as_bool_mask(seen_mask))
    check_background(check_count(blank, "blank"), mask, "blank")
    names = check_class_names(class_names, len(mask))
    read = _indices(predicted, "predicted", len(mask), blank)
    true = _indices(texts, "texts", len(mask), blank)
    if len(read) != len(true):
        raise ValueError(f"predicted has {len(read)} lines, and texts {len(true)}; pass those of the same lines")
    found, extra = Counter[int](), Counter[int]()
    for text, line in zip(true, read, strict=True):
        hits, insertions = edits(text, line)
        found.update(hits)
        extra.update(insertions)

    def per_class(counts: Counter[int]) -> NDArray[np.int64]:
        return np.array([counts[index] for index in range(len(mask))], dtype=np.int64)

    labelled, correct, inserted = map(per_class, (Counter(chain.from_iterable(true)), found, extra))
    seen = to_numpy(mask)
    groups = (seen | ~seen, seen, ~seen)
    n_all, n_seen, n_absent = (int(labelled[group].sum()) for group in groups)
    acc_all, acc_seen, acc_absent = (_share(correct, labelled, group) for group in groups)
    error_all, error_seen, error_absent = (_share(labelled - correct + inserted, labelled, group) for group in groups)
    return CharacterScores(
        acc_all=acc_all,
        acc_seen=acc_seen,
        acc_absent=acc_absent,
        error_all=error_all,
        error_seen=error_seen,
        error_absent=error_absent,
        acc_lines=sum(map(eq, true, read)) / len(true) if true else math.nan,
        n_all=n_all,
        n_seen=n_seen,
        n_absent=n_absent,
        n_lines=len(true),
        labelled=labelled,
        correct=correct,
        inserted=inserted,
        seen_mask=seen,
        class_names=names,
    )


def _share(counts: NDArray[np.int64], labelled: NDArray[np.int64], group: NDArray[np.bool_]) -> float:
    number = int(labelled[group].sum())
    return int(counts[group].sum()) / number if number else math.nan


def _indices(lines: Any, name: str, num_classes: int, blank: int) -> list[list[int]]:
    """Return the class indices of each line, checked."""
    if isinstance(lines, (str, bytes, dict)) or not isinstance(lines, Iterable):
        raise TypeError(f"{name} is a {type(lines).__name__}; pass a list with a sequence of class indices per line")
    checked = []
    for line in lines:
        own = labels_as_tensor(line, name)
        if own.ndim != 1:
            raise ValueError(f"{name} must hold a sequence of class indices per line, not {own.ndim} dimensions")
        if own.numel():
            check_index_range(check_index_dtype(own, name), num_classes, name, "number of classes of seen_mask")
        checked.append(own.tolist())
        if blank in checked[-1]:
            raise ValueError(f"{name} hold the blank, {blank}; leave it out, and padding too")
    return checked


def edits(text: list[int], read: list[int]) -> tuple[list[int], list[int]]:
    """Return the characters of a text that are found, and those that are inserted, with the fewest edits.

    An edit costs more than all matches together gain, so that these decide only between equally few edits.
    """
    edit = len(text) + 1
    costs = [[edit * column for column in range(len(read) + 1)]]
    for row, character in enumerate(text, start=1):
        above, own = costs[-1], [edit * row]
        for column, other in enumerate(read, start=1):
            diagonal = above[column - 1] + (-1 if character == other else edit)
            own.append(min(diagonal, above[column] + edit, own[-1] + edit))
        costs.append(own)
    found, inserted = [], []
    row, column = len(text), len(read)
    while row or column:
        cost = costs[row][column]
        if row and column and cost == costs[row - 1][column - 1] + (-1 if text[row - 1] == read[column - 1] else edit):
            row, column = row - 1, column - 1
            found += [text[row]] if text[row] == read[column] else []
        elif row and cost == costs[row - 1][column] + edit:
            row -= 1
        else:
            column -= 1
            inserted.append(read[column])
    return found, inserted
