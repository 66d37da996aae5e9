import numpy as np
import pytest
import torch

from finecal._core.groups import check_groups, check_several, group_warnings, in_groups

NAMES = [7, -3, 7, 100, -3, 7]


@pytest.mark.parametrize(
    "as_given", [list, np.array, torch.tensor, np.int16, lambda g: np.array(g)[::-1][::-1], lambda g: tuple(g)]
)
def test_groups_are_numbered_as_they_first_occur(as_given):
    groups = check_groups(as_given(NAMES), 6)
    assert (groups.index.tolist(), groups.number, len(groups)) == ([0, 1, 0, 2, 1, 0], 3, 6)
    assert groups.index.dtype == torch.int64
    assert groups.sizes.tolist() == [3, 2, 1]
    assert (groups.given.tolist(), groups.given.dtype) == (NAMES, torch.int64)


def test_names_of_groups_do_not_matter(rng):
    names = rng.integers(30, size=200)
    other = rng.permutation(1000)[:30] - 500
    assert torch.equal(check_groups(names, 200).index, check_groups(other[names], 200).index)


def test_groups_may_be_on_any_device(device):
    groups = check_groups(torch.tensor(NAMES, device=device), 6)
    with device:  # the default of torch
        assert torch.equal(check_groups(torch.tensor(NAMES), 6).index, groups.index)
        assert groups.only(torch.tensor([0, 3], device=device)).index.tolist() == [0, 1]
        assert groups.members(torch.tensor([1], device="cpu")).tolist() == [1, 4]
    assert groups.index.device.type == "cpu"


def test_members_come_as_often_as_their_group_is_drawn():
    groups = check_groups(NAMES, 6)
    assert groups.members(torch.tensor([2, 0, 2])).tolist() == [3, 0, 2, 5, 3]
    assert groups.members(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_sums_are_those_of_each_group(device):
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0], [11.0, 12.0]], device=device)
    assert check_groups(NAMES, 6).sums(values).tolist() == [[17.0, 20.0], [12.0, 14.0], [7.0, 8.0]]


def test_some_of_the_samples_are_numbered_anew():
    groups = check_groups(NAMES, 6, "train: groups")
    some = groups.only(torch.tensor([False, True, False, True, True, False]))
    assert (some.index.tolist(), some.number, some.name) == ([0, 1, 0], 2, "train: groups")
    assert some.given.tolist() == [-3, 100, -3]
    assert groups.only(torch.tensor([5, 3])).index.tolist() == [0, 1]


def test_none_and_nothing():
    assert check_groups(None, 6) is None
    groups = check_groups([], 0)
    assert (groups.number, len(groups), groups.sizes.tolist()) == (0, 0, [])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (
            ["img_1", "img_2"],
            TypeError,
            r"names, such as 'img_1'; pass a number for each: numpy.unique\(groups, return",
        ),
        (np.array(["a", "b"], dtype=object), TypeError, "groups hold names, such as 'a'"),
        ([0.5, 1.5], TypeError, "groups have dtype float64; expected an integer per sample, the number of the picture"),
        ([True, False], TypeError, "groups have dtype bool"),
        ([0, 1, 2], ValueError, r"groups have shape \(3,\) for 2 rows of logits; expected \(2,\)"),
        ([[0], [1]], ValueError, r"groups have shape \(2, 1\) for 2 rows"),
        (3, TypeError, "groups is one int"),
    ],
)
def test_what_is_no_groups_is_refused(groups, error, message):
    with pytest.raises(error, match=message):
        check_groups(groups, 2)


def test_one_group_cannot_be_resampled():
    with pytest.raises(ValueError, match="held_out: groups are all the same: .*at least two are needed"):
        check_several(check_groups([4, 4, 4], 3, "held_out: groups"))
    check_several(check_groups([4, 4, 5], 3))


def test_words():
    assert in_groups(None) == ""
    assert in_groups(check_groups([4, 4, 5], 3)) == " in 2 groups"
    assert in_groups(check_groups([4, 4], 2)) == " in 1 group"
    few, enough = check_groups(np.arange(20) % 9, 20, "train: groups"), check_groups(np.arange(20) % 10, 20)
    (sentence,) = group_warnings(few, None, enough)
    assert sentence == ("train: groups are only 9 groups: the interval rests on these few, and is probably too narrow")
