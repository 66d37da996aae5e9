"""Tags of entities: a type is seen or absent as a whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finecal

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
REFUSED = {
    "some tags of a type": (["B-PER"], TAGS, "some tags of the type 'PER' but not 'I-PER'; .*: pass 'PER'$"),
    "unknown": (["PRE"], TAGS, r"'PRE' \(1 unknown of 2 names\)"),
    "all types": (["PER", "LOC"], TAGS, "seen_mask has no absent class"),
    "a tag that is a type": (["B-X"], ["O", "B-X", "B-B-X", "B-Y"], "'B-X', which is both a tag and a type"),
    "no O": (["PER"], TAGS[1:], "unknown"),
    "another class": (["PER"], [*TAGS, "X"], "unknown"),
}


@pytest.mark.parametrize(
    "names", [["PER"], ["PER", "O"], ["B-PER", "I-PER"], ["O", "B-PER", "I-PER"], ["PER", "B-PER"]]
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 1, 3, 0, 2]])
def test_a_type_stands_for_its_tags_and_o_is_seen(names, order):
    tags = [TAGS[i] for i in order]
    expected = [tag in ("O", "B-PER", "I-PER") for tag in tags]
    assert finecal.seen_mask_from_names(names, tags).tolist() == expected
    assert finecal.seen_mask_from_names(names, dict(enumerate(tags))).tolist() == expected


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unclear_is_refused(case):
    names, tags, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        finecal.seen_mask_from_names(names, tags)


@given(st.permutations([f"{p}-{kind}" for kind in ("PER", "work-of-art", "O") for p in "BIESLU"] + ["O"]))
def test_all_schemes_and_types_with_hyphens(tags):
    mask = finecal.seen_mask_from_names(["work-of-art"], tags)
    np.testing.assert_array_equal(mask, [tag == "O" or tag.endswith("-work-of-art") for tag in tags])


def test_classes_that_only_look_like_tags_are_classes():
    names = ["S-Bahn", "U-Bahn", "Bahn"]
    assert finecal.seen_mask_from_names(["Bahn"], names).tolist() == [False, False, True]
    assert finecal.seen_mask_from_names(["O"], ["O", "A", "B"]).tolist() == [True, False, False]
