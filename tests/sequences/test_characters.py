"""Counts of characters against a recursion over all edits."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal.sequences import character_scores
from finecal.sequences._characters import edits

MASK = [True, True, True, False, False]
LINES = st.lists(st.integers(1, 4), max_size=5)


def best_by_recursion(text, read):
    """The fewest edits, and the most matches with so few."""

    @cache
    def best(i, j):
        if i == len(text) or j == len(read):
            return len(text) - i + len(read) - j, 0
        cost, matches = best(i + 1, j + 1)
        same = text[i] == read[j]
        options = [(cost + (not same), matches - same)]
        options += [(other + 1, found) for other, found in (best(i + 1, j), best(i, j + 1))]
        return min(options)

    distance, matches = best(0, 0)
    return distance, -matches


@given(LINES, LINES)
def test_edits_are_the_fewest_with_the_most_matches(text, read):
    found, inserted = edits(text, read)
    distance, matches = best_by_recursion(tuple(text), tuple(read))
    assert len(found) == matches
    assert len(text) - len(found) + len(inserted) == distance
    for part, whole in ((found, text), (inserted, read)):
        assert all(part.count(c) <= whole.count(c) for c in set(part))


@given(st.lists(st.tuples(LINES, LINES), max_size=4))
def test_scores_are_sums_over_lines(pairs):
    texts, read = [text for text, _ in pairs], [line for _, line in pairs]
    scores = character_scores(read, texts, MASK)
    length = sum(map(len, texts))
    distance = sum(best_by_recursion(tuple(text), tuple(line))[0] for text, line in pairs)
    assert scores.error_all == pytest.approx(distance / length if length else np.nan, nan_ok=True)
    assert scores.acc_lines == pytest.approx(np.mean([a == b for a, b in pairs]) if pairs else np.nan, nan_ok=True)
    assert (scores.n_all, scores.n_lines) == (length, len(pairs))
    assert scores.n_seen == sum(c < 3 for text in texts for c in text)
    assert scores.labelled.tolist() == [sum(text.count(c) for text in texts) for c in range(5)]
    for group, acc, error in (
        ([1, 2], scores.acc_seen, scores.error_seen),
        ([3, 4], scores.acc_absent, scores.error_absent),
    ):
        n, right, extra = (int(counts[group].sum()) for counts in (scores.labelled, scores.correct, scores.inserted))
        assert acc == pytest.approx(right / n if n else np.nan, nan_ok=True)
        assert error == pytest.approx((n - right + extra) / n if n else np.nan, nan_ok=True)


def test_a_hand_worked_line():
    """Text 1 3 2 4, read 1 2 2 2: 3 is read as 2, and 4 as 2; read 1 3 2 4 3: a 3 is inserted."""
    scores = character_scores([[1, 2, 2, 2], [1, 3, 2, 4, 3]], [[1, 3, 2, 4]] * 2, MASK)
    assert (scores.acc_seen, scores.acc_absent, scores.acc_all) == (1.0, 0.5, 0.75)
    assert (scores.error_seen, scores.error_absent, scores.error_all) == (0.0, 0.75, 0.375)
    assert (scores.acc_lines, scores.inserted.tolist()) == (0.0, [0, 0, 0, 1, 0])


def test_it_prints_absent_characters_by_name():
    names = ["blank", "a", "b", "ä", "ö"]
    scores = character_scores([[1, 2], [3, 4]], [[1, 3], [3, 4]], MASK, class_names=names)
    text = str(scores)
    assert "lines without an error: 50.0 % of 2" in text
    assert "2 of 2 absent characters are found at least once" in text
    assert text.index("| ä") < text.index("| ö")
    frame = scores.to_pandas()
    assert list(frame.index) == names
    assert frame.loc["ä", ["labelled", "correct", "inserted"]].tolist() == [2, 1, 0]
    assert scores.to_dict()["labelled"] == [0, 1, 0, 2, 1]


def test_no_absent_character_in_the_texts():
    scores = character_scores([[1]], [[1]], MASK, class_names=list("-abcd"))
    assert np.isnan(scores.acc_absent)
    assert "0 of 0 absent" in str(scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": [[1]]}, "predicted has 1 lines, and texts 2"),
        ({"texts": [[0], [1]]}, "texts hold the blank, 0"),
        ({"texts": [[5], [1]]}, r"texts contain 5, outside \[0, 5\)"),
        ({"predicted": [[[1]], [[2]]]}, "predicted must hold a sequence of class indices per line"),
        ({"seen_mask": [False, True, True, True, True]}, "blank contains class 0, which seen_mask says is absent"),
        ({"class_names": ["a"]}, "1 class names for 5 classes"),
    ],
)
def test_what_is_refused(change, message):
    right = {"predicted": [[1], [2]], "texts": [[1], [3]], "seen_mask": MASK}
    with pytest.raises(ValueError, match=message):
        character_scores(**{**right, **change})


def test_texts_are_refused_with_what_to_do():
    with pytest.raises(TypeError, match="predicted"):
        character_scores(["ab"], [[1, 2]], MASK)
    with pytest.raises(TypeError, match="texts is a str"):
        character_scores([[1]], "a", MASK)
    assert isinstance(character_scores([], [], MASK), finecal.sequences.CharacterScores)
