"""Positions of dense outputs: which are kept, in whatever batches the pictures come."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

import finecal
from finecal.streaming import AccuracySums, MarginRows

CLASSES = 5
MASK = torch.tensor([True, True, True, False, False])


def pictures(n=6, size=(4, 7), seed=0, ignored=0.2):
    """Pictures whose channels are their logits, with labels of which some are 255."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, CLASSES, *size, generator=generator)
    labels = torch.randint(CLASSES, (n, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return images, labels


def batches(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


def collected(images, labels, size=2, model=None, **options):
    options = {"dim": 1, "ignore_index": 255, "progress": False, **options}
    return finecal.collect_logits(model or nn.Identity(), batches(images, labels, size), **options)


def test_all_positions_that_count_are_kept_in_order():
    images, labels = pictures()
    logits, own, groups = collected(images, labels)
    counted = labels.flatten() != 255
    assert torch.equal(logits, images.movedim(1, -1).reshape(-1, CLASSES)[counted])
    assert torch.equal(own, labels.flatten()[counted])
    assert torch.equal(groups, torch.arange(6).repeat_interleave(28)[counted])


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("background", [None, 0, [0, 2]])
def test_a_sample_is_of_each_picture_and_the_same_in_batches_of_any_size(balanced, background):
    images, labels = pictures()
    options = {"per_item": 7, "balanced": balanced, "background": background}
    logits, own, groups = collected(images, labels, **options)
    for size in (1, 4, 6):
        again = collected(images, labels, size, **options)
        assert all(map(torch.equal, again, (logits, own, groups)))
    assert torch.equal(torch.bincount(groups), torch.full((6,), 7))
    assert not torch.equal(collected(images, labels, seed=1, **options)[0], logits)
    kept = [c for c in range(CLASSES) if c not in torch.as_tensor([] if background is None else background)]
    for picture in range(6):
        here = groups == picture
        places = [
            (images[picture][:, y, x][kept].tolist(), int(labels[picture, y, x])) for y in range(4) for x in range(7)
        ]
        for row, label in zip(logits[here], own[here], strict=True):
            assert (row.tolist(), kept[int(label)]) in places
        assert len(set(map(tuple, logits[here].tolist()))) == 7  # without replacement


def test_a_balanced_sample_has_as_many_of_each_class_as_there_are():
    labels = torch.zeros(40, 10, 10, dtype=torch.long)
    labels[:, 0, :3], labels[:, 1], labels[:, 2, :2] = 1, 2, 255
    images = torch.randn(40, CLASSES, 10, 10, generator=torch.Generator().manual_seed(0))
    _, own, groups = collected(images, labels, per_item=14, balanced=True)
    for picture in range(40):
        counts = Counter(own[groups == picture].tolist())
        assert counts[1] == 3
        assert {counts[0], counts[2]} in ({5, 6}, {6, 5})
    more = [Counter(own[groups == picture].tolist())[0] for picture in range(40)]
    assert {5, 6} == set(more)  # the odd one is of either class
    _, own, _ = collected(images, labels, per_item=14)
    assert float((own == 0).double().mean()) > 0.7


def test_positions_are_drawn_alike():
    images, labels = torch.arange(10.0).repeat(2, 1).reshape(1, 2, 1, 10), torch.zeros(1, 1, 10, dtype=torch.long)
    drawn = [collected(images, labels, per_item=3, seed=seed)[0][:, 0].tolist() for seed in range(400)]
    counts = Counter(value for three in drawn for value in three)
    assert all(85 < counts[float(value)] < 155 for value in range(10))  # 120 expected, 9 is a standard deviation


def test_without_labels():
    images, _ = pictures()
    options = {"dim": 1, "per_item": 5, "background": 0, "progress": False}
    logits, labels, groups = finecal.collect_logits(nn.Identity(), [images[:2], images[2:]], **options)
    assert labels is None
    assert logits.shape == (30, 4)
    assert torch.equal(groups, torch.arange(6).repeat_interleave(5))


def test_tokens_and_pictures_without_a_batch():
    logits, labels = torch.randn(3, 8, CLASSES), torch.randint(CLASSES, (3, 8))
    labels[:, 5:] = -100
    rows, own, groups = collected(logits, labels, dim=-1, ignore_index=-100)
    assert torch.equal(rows, logits[:, :5].reshape(-1, CLASSES))
    assert torch.equal(own, labels[:, :5].flatten())
    assert groups.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    images, labels = pictures(1)
    one = finecal.collect_logits(nn.Identity(), [(images[0], labels[0])], dim=0, ignore_index=255, progress=False)
    assert torch.equal(one[0], collected(images, labels)[0])


class Coarse(nn.Module):
    """A model with logits at half of the resolution."""

    def forward(self, images):
        return {"out": images[..., ::2, ::2].to(torch.bfloat16)}


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 2)])
def test_logits_are_interpolated_to_the_size_of_the_labels(size):
    images, labels = pictures(3, size)
    coarse = Coarse()(images)["out"]
    full = interpolate(coarse.float(), size, mode="bilinear", align_corners=False).to(torch.bfloat16)
    assert all(map(torch.equal, collected(images, labels, model=Coarse()), collected(full, labels)))
    state = AccuracySums(MASK, 0.5, dim=1, ignore_index=255)
    found = finecal.collect_logits(Coarse(), batches(images, labels, 2), into=state, progress=False)
    whole = AccuracySums(MASK, 0.5, dim=1, ignore_index=255).update(full, labels)
    assert str(found.compute()) == str(whole.compute())
    assert found is state


def test_gamma_may_be_added_before_or_after_interpolation():
    images, _ = pictures(2)
    bias = finecal.AdditiveBias(MASK, 1.5, dim=1)
    options = {"size": (16, 28), "mode": "bilinear", "align_corners": False}
    assert torch.allclose(interpolate(bias(images), **options), bias(interpolate(images, **options)), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": None, "ignore_index": None, "per_item": 3}, "per_item is for dense logits; pass dim"),
        ({"dim": None}, "ignore_index is for dense logits"),
        ({"dim": None, "ignore_index": None, "background": 0}, "background is for dense logits"),
        ({"with_features": True}, "with_features=True is for one row of features per sample"),
        ({"balanced": True}, "needs per_item"),
        ({"per_item": 0}, "per_item is 0"),
        ({"background": 7}, r"background contain 7, outside \[0, 5\)"),
        ({"into": MarginRows(MASK, dim=1)}, "ignore_index is for positions that are kept"),
        ({"into": MarginRows(MASK), "ignore_index": None}, "dim is 1, but into has dim=-1"),
        ({"dim": 2}, r"labels have shape \(2, 4, 7\).*pass dim=1"),
        ({"ignore_index": None}, "labels contain 255.*pass as ignore_index"),
    ],
)
def test_what_does_not_go_together_is_refused(options, match):
    images, labels = pictures()
    with pytest.raises(ValueError, match=match):
        collected(images, labels, **options)


def test_a_mask_with_the_background_does_not_fit_positions_without_it():
    logits, labels, _ = collected(*pictures(), background=0)
    with pytest.raises(ValueError, match="5 entries for logits of 4 classes.*leave these out of seen_mask, too"):
        finecal.search_gamma(logits, labels, MASK)


def test_labels_of_other_pictures_are_refused():
    images, labels = pictures()
    with pytest.raises(ValueError, match="of other proportions"):
        collected(images, labels.repeat(1, 4, 1))
    with pytest.raises(ValueError, match="some batches have labels and some have none"):
        finecal.collect_logits(nn.Identity(), [(images, labels % CLASSES), images], dim=1, progress=False)
    with pytest.raises(ValueError, match="balanced=True needs labels"):
        finecal.collect_logits(nn.Identity(), [images], dim=1, per_item=2, balanced=True, progress=False)
    with pytest.raises(ValueError, match=r"expected \(N, C\).*take dense logits: dim=1 for \(B, C, H, W\)"):
        finecal.collect_logits(nn.Identity(), batches(images, labels, 2), progress=False)
