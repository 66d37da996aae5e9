"""Positions of dense outputs: which are kept, in whatever batches the pictures come."""

from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

import finecal
from finecal import Positions
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


def collect(model, loader, **options):
    return finecal.collect_logits(model, loader, **options, progress=False)


def collected(images, labels, size=2, model=None, dim=1, **options):
    positions = Positions(dim, **{"ignore_index": 255, **options})
    return collect(model or nn.Identity(), batches(images, labels, size), positions=positions)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("logits", "labels", "groups"))


def test_all_positions_that_count_are_kept_in_order():
    images, labels = pictures()
    samples = collected(images, labels)
    counted = labels.flatten() != 255
    assert torch.equal(samples.logits, images.movedim(1, -1).reshape(-1, CLASSES)[counted])
    assert torch.equal(samples.labels, labels.flatten()[counted])
    assert samples.features is None
    assert torch.equal(samples.groups, torch.arange(6).repeat_interleave(28)[counted])


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("background", [None, 0, [0, 2]])
def test_a_sample_is_of_each_picture_and_the_same_in_batches_of_any_size(balanced, background):
    images, labels = pictures()
    options = {"per_item": 7, "class_balanced": balanced, "background": background}
    samples = collected(images, labels, **options)
    logits, own, groups = samples.logits, samples.labels, samples.groups
    for size in (1, 4, 6):
        assert same(collected(images, labels, size, **options), samples)
    assert torch.equal(torch.bincount(groups), torch.full((6,), 7))
    assert not torch.equal(collected(images, labels, seed=1, **options).logits, logits)
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
    samples = collected(images, labels, per_item=14, class_balanced=True)
    own, groups = samples.labels, samples.groups
    for picture in range(40):
        counts = Counter(own[groups == picture].tolist())
        assert counts[1] == 3
        assert {counts[0], counts[2]} in ({5, 6}, {6, 5})
    more = [Counter(own[groups == picture].tolist())[0] for picture in range(40)]
    assert {5, 6} == set(more)  # the odd one is of either class
    own = collected(images, labels, per_item=14).labels
    assert float((own == 0).double().mean()) > 0.7


def test_positions_are_drawn_alike():
    images, labels = torch.arange(10.0).repeat(2, 1).reshape(1, 2, 1, 10), torch.zeros(1, 1, 10, dtype=torch.long)
    drawn = [collected(images, labels, per_item=3, seed=seed).logits[:, 0].tolist() for seed in range(400)]
    counts = Counter(value for three in drawn for value in three)
    assert all(85 < counts[float(value)] < 155 for value in range(10))  # 120 expected, 9 is a standard deviation


def test_without_labels():
    images, _ = pictures()
    samples = collect(nn.Identity(), [images[:2], images[2:]], positions=Positions(per_item=5, background=0))
    assert samples.labels is None
    assert samples.logits.shape == (30, 4)
    assert torch.equal(samples.groups, torch.arange(6).repeat_interleave(5))


def test_tokens_and_pictures_without_a_batch():
    logits, labels = torch.randn(3, 8, CLASSES), torch.randint(CLASSES, (3, 8))
    labels[:, 5:] = -100
    samples = collected(logits, labels, dim=-1, ignore_index=-100)
    assert torch.equal(samples.logits, logits[:, :5].reshape(-1, CLASSES))
    assert torch.equal(samples.labels, labels[:, :5].flatten())
    assert samples.groups.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    images, labels = pictures(1)
    one = collect(nn.Identity(), [(images[0], labels[0])], positions=Positions(0, ignore_index=255))
    assert torch.equal(one.logits, collected(images, labels).logits)


class Coarse(nn.Module):
    """A model with logits at half of the resolution."""

    def forward(self, images):
        return {"out": images[..., ::2, ::2].to(torch.bfloat16)}


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 2)])
def test_logits_are_interpolated_to_the_size_of_the_labels(size):
    images, labels = pictures(3, size)
    coarse = Coarse()(images)["out"]
    full = interpolate(coarse.float(), size, mode="bilinear", align_corners=False).to(torch.bfloat16)
    assert same(collected(images, labels, model=Coarse()), collected(full, labels))
    state = AccuracySums(MASK, 0.5, dim=1, ignore_index=255)
    found = collect(Coarse(), batches(images, labels, 2), into=state)
    whole = AccuracySums(MASK, 0.5, dim=1, ignore_index=255).update(full, labels)
    assert str(found.compute()) == str(whole.compute())
    assert found is state


def test_gamma_may_be_added_before_or_after_interpolation():
    images, _ = pictures(2)
    bias = finecal.AdditiveBias(MASK, 1.5, dim=1)
    options = {"size": (16, 28), "mode": "bilinear", "align_corners": False}
    assert torch.allclose(interpolate(bias(images), **options), bias(interpolate(images, **options)), atol=1e-5)


class Shapes:
    """A state without a `dim`, as a metric of torchmetrics is."""

    def __init__(self):
        self.seen = []

    def update(self, logits, labels):
        self.seen.append((tuple(logits.shape), tuple(labels.shape)))


def test_a_state_takes_batches_whole():
    images, labels = pictures()
    loader = batches(images, labels % CLASSES, 3)
    expected = MarginRows(MASK, dim=1).update(images, labels % CLASSES).compute()
    for positions in (None, Positions(1)):
        state = collect(nn.Identity(), loader, into=MarginRows(MASK, dim=1), positions=positions)
        assert torch.equal(state.compute().margin, expected.margin)
    state = collect(nn.Identity(), loader, into=Shapes(), positions=Positions(1))
    assert state.seen == [((3, CLASSES, 4, 7), (3, 4, 7))] * 2
    state = collect(Coarse(), batches(images[:, :, :, :6], labels[:, :, :6], 1), into=Shapes(), positions=Positions(1))
    assert state.seen == [((1, CLASSES, 4, 6), (1, 4, 6))] * 6  # at the size of the labels
    with pytest.raises(ValueError, match=r"expected \(N, C\).*positions=Positions\(1\)"):
        collect(nn.Identity(), loader, into=Shapes())


@pytest.mark.parametrize(
    ("positions", "given", "match"),
    [
        ({}, {"with_features": True}, "with_features=True is for one row of features per sample"),
        ({"background": 7}, {}, r"background contain 7, outside \[0, 5\)"),
        ({}, {"into": MarginRows(MASK, dim=1)}, "positions select what is kept.*pass Positions\\(dim\\) alone"),
        (
            {"ignore_index": None, "per_item": 3},
            {"into": MarginRows(MASK, dim=1)},
            "into= takes batches whole.*construct a state that ignores labels with ignore_index=",
        ),
        (
            {"ignore_index": None},
            {"into": MarginRows(MASK)},
            "positions have dim=1, but into has dim=-1; construct it with dim=1",
        ),
        ({"dim": 2}, {}, r"labels have shape \(2, 4, 7\).*pass dim=1"),
        ({"ignore_index": None}, {}, "labels contain 255.*pass as ignore_index"),
    ],
)
def test_what_does_not_go_together_is_refused(positions, given, match):
    positions = Positions(**{"dim": 1, "ignore_index": 255, **positions})
    with pytest.raises(ValueError, match=match):
        collect(nn.Identity(), batches(*pictures(), 2), positions=positions, **given)


def test_a_mask_with_the_background_does_not_fit_positions_without_it():
    samples = collected(*pictures(), background=0)
    with pytest.raises(ValueError, match="5 entries for logits of 4 classes.*leave these out of seen_mask, too"):
        finecal.search_gamma(samples, MASK)


def test_labels_of_other_pictures_are_refused():
    images, labels = pictures()
    with pytest.raises(ValueError, match="of other proportions"):
        collected(images, labels.repeat(1, 4, 1))
    with pytest.raises(ValueError, match="some batches have labels and some have none"):
        collect(nn.Identity(), [(images, labels % CLASSES), images], positions=Positions())
    with pytest.raises(ValueError, match="class_balanced=True needs labels"):
        collect(nn.Identity(), [images], positions=Positions(per_item=2, class_balanced=True))
    with pytest.raises(ValueError, match=r"expected \(N, C\).*so do collect_logits .*: positions=Positions\(1\)"):
        collect(nn.Identity(), batches(images, labels, 2))


# --- the record -------------------------------------------------------------------------------------------------------


def untouchable():
    raise AssertionError("the model was run for nothing")
    yield


def test_a_record_has_defaults_and_a_repr():
    assert Positions() == Positions(1) == Positions(dim=1)
    assert repr(Positions(-1, ignore_index=-100)) == (
        "Positions(dim=-1, ignore_index=-100, per_item=None, class_balanced=False, background=None, shift=None, seed=0)"
    )
    with pytest.raises(TypeError, match="positional"):
        Positions(1, 255)


def test_records_of_the_same_numbers_are_equal():
    one = Positions(1, ignore_index=255, per_item=7, class_balanced=True, background=[0, 2], seed=3)
    given = {
        "ignore_index": np.int64(255),
        "per_item": np.int32(7),
        "class_balanced": np.True_,
        "seed": torch.tensor(3),
    }
    for background in ((2, 0), {0, 2}, np.array([0, 2]), torch.tensor([2, 0, 2])):
        other = Positions(np.int64(1), **given, background=background)
        assert (other, hash(other), repr(other)) == (one, hash(one), repr(one))
    assert Positions(background=0) == Positions(background=[0])
    for field, value in {
        "dim": -1,
        "ignore_index": None,
        "per_item": 8,
        "class_balanced": False,
        "background": 0,
        "seed": 4,
    }.items():
        assert replace(one, **{field: value}) != one


def test_a_record_does_not_change():
    positions, background = Positions(), [0]
    with pytest.raises(FrozenInstanceError):
        positions.dim = 2
    positions = Positions(background=background)
    background.append(1)
    assert positions.background == (0,)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"dim": None}, TypeError, "^dim is a NoneType; pass the dimension of the classes"),
        ({"dim": 1.0}, TypeError, "^dim is a float; pass the dimension of the classes"),
        ({"dim": True}, TypeError, "^dim is a bool"),
        ({"dim": 1000}, ValueError, "^dim is 1000, but no tensor has so many dimensions"),
        ({"ignore_index": "void"}, TypeError, "^ignore_index is a str; pass the label of positions that do not count"),
        ({"ignore_index": 1 << 70}, ValueError, "^ignore_index is an integer of 71 bits, which no label can be"),
        ({"per_item": 0}, ValueError, "^per_item is 0; pass how many positions of each picture to draw, or None"),
        ({"per_item": -1}, ValueError, "^per_item is -1; it cannot be negative"),
        ({"per_item": 2.5}, TypeError, "^per_item is a float; pass an integer"),
        ({"class_balanced": True}, ValueError, "^class_balanced=True needs per_item"),
        ({"class_balanced": 1, "per_item": 3}, TypeError, "^class_balanced is a int; pass True or False"),
        ({"background": []}, ValueError, r"^background has shape \(0,\); pass a class index, or a list"),
        ({"background": [[0]]}, ValueError, r"^background has shape \(1, 1\); pass a class index, or a list"),
        ({"background": 0.5}, TypeError, "^background"),
        ({"background": "sky"}, TypeError, "^background"),
        ({"seed": -1}, ValueError, "^seed is -1; it cannot be negative"),
        ({"seed": None}, TypeError, "^seed is a NoneType; pass an integer"),
        ({"seed": 1 << 63}, ValueError, r"^seed is .*; it must be below 2\*\*63"),
    ],
)
def test_wrong_records_are_refused(given, error, match):
    with pytest.raises(error, match=match):
        Positions(**given)


@pytest.mark.parametrize("wrong", [1, {"dim": 1}, (1, 255), Positions, "dense"])
def test_what_is_no_record_says_what_to_pass(wrong):
    match = rf"^positions is a {type(wrong).__name__}; pass finecal.Positions\(dim\), such as Positions\(1\) for logits"
    with pytest.raises(TypeError, match=match):
        collect(nn.Identity(), untouchable(), positions=wrong)
    with pytest.raises(TypeError, match=match):
        finecal.calibrate_model(nn.Identity(), untouchable(), is_held_out=True, positions=wrong)


def test_the_seed_is_that_of_the_draw_alone():
    images, labels = pictures()
    drawn = {seed: collected(images, labels, per_item=3, seed=seed) for seed in (0, 1)}
    assert not torch.equal(drawn[0].logits, drawn[1].logits)
    assert same(collected(images, labels, per_item=3), drawn[0])
    assert same(collected(images, labels, seed=0), collected(images, labels, seed=1))  # nothing is drawn
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert same(collected(images, labels, per_item=3, seed=1), drawn[1])
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(5).get_state())
    torch.set_rng_state(state)
