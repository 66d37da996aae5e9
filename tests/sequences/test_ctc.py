"""Frames of lines of text as samples, and greedy decoding, against loops over frames."""

from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import finecal
from finecal.sequences import CtcFrames, greedy_decode

CLASSES = 5


def lines(rng, blank=0, count=6, frames=12):
    """Logits `(B, T, C)` of lines that mostly spell their texts, which repeat characters; padded texts, and lengths."""
    lengths = torch.tensor(rng.integers(0, 5, count))
    others = [c for c in range(CLASSES) if c != blank]
    texts = torch.tensor(rng.choice(others, (count, 4)))
    logits = torch.tensor(rng.normal(size=(count, frames, CLASSES)))
    for line, text in enumerate(texts.tolist()):
        for place, character in enumerate(text[: lengths[line]]):
            logits[line, 3 * place + 1 : 3 * place + 3, character] += 4
        logits[line, 0::3, blank] += 4
    return logits, texts.masked_fill(torch.arange(4) >= lengths[:, None], blank), lengths


def collected(logits, labels, **options):
    return CtcFrames(**{"batch_first": True, **options}).update(logits, labels).samples()


def assert_same(samples, others):
    for name in ("logits", "labels", "groups"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(others, name))


def test_a_hand_worked_line():
    """The likeliest path of the text 1 2 is 1 1 blank 2."""
    logits = torch.tensor([[[0.0, 5, 1], [0, 4, 1], [6, 0, 0], [0, 1, 3]]])
    samples = collected(logits, torch.tensor([[1, 2]]))
    assert samples.labels.tolist() == [0, 0, 1]
    assert samples.logits.tolist() == [[5, 1], [4, 1], [1, 3]]
    best = collected(logits, torch.tensor([[1, 2]]), best_only=True)
    assert best.logits.tolist() == [[5, 1], [1, 3]]


@pytest.mark.parametrize("blank", [0, 2, CLASSES - 1])
def test_labels_are_those_of_the_text(rng, blank):
    """The labels of a line, repeated ones merged, are its text; the best frame of each character is one each."""
    logits, texts, lengths = lines(rng, blank)
    samples = collected(logits, texts, blank=blank)
    best = collected(logits, texts, blank=blank, best_only=True)
    columns = [c for c in range(CLASSES) if c != blank]
    for line, (text, length) in enumerate(zip(texts.tolist(), lengths.tolist(), strict=True)):
        own = [columns[c] for c in samples.labels[samples.groups == line].tolist()]
        merged = [c for c, _ in groupby(text[:length])]
        assert [c for c, _ in groupby(own)] == merged
        assert [columns[c] for c in best.labels[best.groups == line].tolist()] == text[:length]
    rows = {tuple(row) for row in logits[:, :, columns].flatten(0, 1).tolist()}
    assert rows.issuperset(map(tuple, samples.logits.tolist()))
    assert {tuple(row) for row in samples.logits.tolist()}.issuperset(map(tuple, best.logits.tolist()))


def test_every_form_of_targets_and_batch_is_the_same(rng):
    logits, texts, lengths = lines(rng)
    expected = collected(logits, texts)
    negative = texts.masked_fill(texts == 0, -100)
    flat = torch.cat([text[:n] for text, n in zip(texts, lengths, strict=True)])
    assert_same(collected(logits, negative), expected)
    assert_same(collected(logits, {"targets": flat, "target_lengths": lengths}), expected)
    assert_same(collected(logits, {"targets": texts, "target_lengths": lengths.int()}), expected)
    assert_same(collected(logits.transpose(0, 1), texts, batch_first=False), expected)
    state = CtcFrames(batch_first=True).update(logits[:2], texts[:2]).update(logits[2:], negative[2:])
    assert_same(state.samples(), expected)
    assert_same(state.samples(), expected)
    as_arrays = collected(logits.numpy(), texts.numpy())
    assert isinstance(as_arrays.logits, np.ndarray)
    assert_same(as_arrays, expected)


def test_log_probabilities_give_the_same_frames(rng):
    logits, texts, _ = lines(rng)
    samples, others = collected(logits, texts), collected(logits.log_softmax(2), texts)
    assert torch.equal(samples.labels, others.labels)
    torch.testing.assert_close(samples.logits.diff(dim=1), others.logits.diff(dim=1))  # all that gamma depends on


def test_dtypes(rng, dtype, device):
    logits, texts, _ = lines(rng)
    samples = collected(logits.to(device, dtype), texts.to(device))
    assert (samples.logits.dtype, samples.logits.device.type) == (dtype, device.type)
    assert torch.equal(samples.labels.cpu(), collected(logits.to(dtype), texts).labels)


def test_frames_beyond_a_line_do_not_count(rng):
    logits, texts, _ = lines(rng)
    expected = collected(logits, texts)
    padded = torch.cat([logits, 50 * torch.randn(len(logits), 7, CLASSES)], 1)
    frames = torch.full((len(logits),), logits.shape[1])
    assert_same(collected(padded, {"targets": texts, "input_lengths": frames}), expected)
    without = collected(logits, None)
    beyond = collected(padded, {"input_lengths": frames})
    np.testing.assert_array_equal(beyond.logits, without.logits)
    mask = [True, True, True, False, False]
    read = greedy_decode(logits, mask, 1.0, batch_first=True)
    assert greedy_decode(padded, mask, 1.0, batch_first=True, input_lengths=frames) == read


def test_lines_without_text_are_read_greedily(rng):
    logits, _, _ = lines(rng)
    samples = collected(logits, None)
    path = logits.argmax(2)
    assert samples.labels is None
    torch.testing.assert_close(samples.logits, logits[path != 0][:, 1:], rtol=0, atol=0)
    assert samples.groups.tolist() == (path != 0).nonzero()[:, 0].tolist()
    read = greedy_decode(logits, [True, True, True, False, False], batch_first=True)
    assert len(collected(logits, None, best_only=True)) == sum(map(len, read))


def test_confidence_is_the_geometric_mean_per_frame():
    probabilities = torch.tensor([[[0.1, 0.9, 0.0], [0.6, 0.3, 0.1]], [[0.2, 0.5, 0.3], [0.8, 0.1, 0.1]]])
    texts = torch.tensor([[1], [1]])  # 0.9 * 0.6 = 0.54, 0.5 * 0.8 = 0.4
    for least, kept in ((0.0, [0, 1]), (0.4**0.5 - 1e-6, [0, 1]), (0.4**0.5 + 1e-6, [0]), (0.74, [])):
        samples = collected(probabilities.log(), texts, min_confidence=least)
        assert samples.groups.tolist() == kept
        assert collected(probabilities.log(), None, min_confidence=least).groups.tolist() == kept


def test_texts_that_no_path_spells_are_left_out_with_a_word(rng):
    logits = torch.tensor(rng.normal(size=(3, 2, CLASSES)))
    texts = torch.tensor([[1, 2, 0], [1, 1, 0], [1, 2, 3]])
    state = CtcFrames(batch_first=True).update(logits, texts)
    with pytest.warns(finecal.FinecalWarning, match="2 of 3 lines were left out, since their frames are too few"):
        samples = state.samples()
    assert samples.groups.tolist() == [0, 0]


def test_nothing_to_align():
    empty = collected(torch.zeros(2, 4, CLASSES), torch.zeros(2, 3, dtype=torch.int64))
    assert (len(empty), empty.num_classes) == (0, CLASSES - 1)
    assert len(collected(torch.zeros(0, 4, CLASSES), torch.zeros(0, 3, dtype=torch.int64))) == 0
    assert len(collected(torch.zeros(2, 0, CLASSES), torch.zeros(2, 0, dtype=torch.int64))) == 0
    assert greedy_decode(torch.zeros(2, 0, CLASSES), [True] * 4 + [False], batch_first=True) == [[], []]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 3]), st.booleans())
def test_greedy_decoding_merges_then_drops_blanks(seed, blank, batch_first):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 9, CLASSES)).round()
    mask = np.array([True, True, False, True, False])
    raised = finecal.predict(logits, mask, 1.5)
    expected = [[c for c, _ in groupby(path) if c != blank] for path in raised.tolist()]
    given = logits if batch_first else logits.swapaxes(0, 1)
    assert greedy_decode(given, mask, 1.5, batch_first=batch_first, blank=blank) == expected


class Reader(nn.Module):
    """A recurrent network that ends in a log-softmax, with classes last: `(T, B, C)`."""

    def __init__(self, as_convolution=False):
        super().__init__()
        self.recurrent = nn.GRU(8, 6, bidirectional=True)
        self.head = nn.Conv1d(12, CLASSES, 1) if as_convolution else nn.Linear(12, CLASSES)

    def forward(self, columns):
        features = self.recurrent(columns)[0]
        if isinstance(self.head, nn.Conv1d):
            return self.head(features.permute(1, 2, 0)).permute(2, 0, 1).log_softmax(2)
        return self.head(features).log_softmax(2)


def batches(rng):
    pictures = torch.tensor(rng.normal(size=(12, 6, 8)), dtype=torch.float32)
    _, texts, _ = lines(rng)
    return [(pictures[:, :4], texts[:4]), (pictures[:, 4:], texts[4:])]


def test_a_loader_fills_it(rng):
    loader = batches(rng)
    model = Reader().train()
    state = finecal.collect_logits(model, loader, into=CtcFrames(batch_first=False), progress=False)
    with torch.no_grad():
        logits = torch.cat([model.eval()(pictures) for pictures, _ in loader], 1)
    assert_same(state.samples(), collected(logits, torch.cat([t for _, t in loader]), batch_first=False))
    mappings = [{"columns": pictures, "labels": {"targets": texts}} for pictures, texts in loader]
    by_name = finecal.collect_logits(model, mappings, into=CtcFrames(batch_first=False), progress=False)
    assert_same(by_name.samples(), state.samples())
    pictures = [pictures for pictures, _ in loader]
    unlabelled = finecal.collect_logits(model, pictures, into=CtcFrames(batch_first=False), progress=False)
    assert_same(unlabelled.samples(), collected(logits, None, batch_first=False))


@pytest.mark.parametrize("as_convolution", [False, True])
def test_gamma_goes_into_a_model_that_ends_in_a_log_softmax(rng, as_convolution):
    pictures = batches(rng)[0][0]
    model = Reader(as_convolution).eval()
    mask = torch.tensor([True, True, False, True, False])
    with torch.no_grad():
        before = model(pictures)
        read = greedy_decode(before, mask, 1.5, batch_first=False)
        calibrator = finecal.AdditiveBias(mask, 1.5)
        wrapped = finecal.CalibratedModel(model, calibrator)(pictures)
        folded = finecal.fold_into_head(model, calibrator, inputs=pictures)(pictures)
    torch.testing.assert_close(wrapped, finecal.calibrate_logits(before, mask, 1.5))
    torch.testing.assert_close(folded, wrapped.log_softmax(2))
    for logits in (wrapped, folded):
        assert greedy_decode(logits, mask, batch_first=False) == read


class Frames(nn.Module):
    """Gives logits of frames as they come, `(T, B, C)` if `first` is 1, in the form that `output` is for."""

    def __init__(self, first):
        super().__init__()
        self.head, self.first = nn.Linear(CLASSES, CLASSES), first
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(CLASSES))
            self.head.bias.zero_()

    def forward(self, frames):
        return {"frames": self.head(frames).transpose(0, self.first), "other": None}


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
@pytest.mark.parametrize("blank", [0, CLASSES - 1])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_model_is_calibrated_in_one_call(rng, blank, batch_first):
    """As by hand: frames of a state, an estimate without the column of the blank, a calibrator with it."""
    mask = torch.tensor([c == blank or c % 2 == 1 for c in range(CLASSES)])
    logits, texts, _ = lines(rng, blank, count=60)
    texts = texts.where(mask[texts], blank).sort(1, descending=blank == 0).values  # seen ones, then padding
    logits += 3 * (torch.nn.functional.one_hot(texts, CLASSES).sum(1, keepdim=True) > 0)
    logits, lengths = logits.float(), torch.full((60,), 11)
    labels = {"targets": texts, "input_lengths": lengths}
    model = Frames(int(not batch_first))
    options = {"blank": blank, "min_confidence": 0.2}
    data = [(logits[:25], texts[:25], lengths[:25]), (logits[25:], texts[25:], lengths[25:])]
    given = {
        "positions": CtcFrames(batch_first=batch_first, **options),
        "batch": lambda item: (item[0], {"targets": item[1], "input_lengths": item[2]}),
        "output": "frames",
    }
    columns = [c for c in range(CLASSES) if c != blank]
    seen = collected(logits, labels, **options)
    others = collected(logits, {"input_lengths": lengths}, **options)
    settings = {"seen_mask": mask, "verbose": False, **given}
    calibrated = finecal.calibrate_model(model, data, is_held_out=False, **settings)
    expected = finecal.estimate_gamma(mask[columns], train=seen)
    assert calibrated.calibrator.estimate.gamma == pytest.approx(expected.gamma, abs=1e-5)
    assert calibrated.calibrator.estimate.n == expected.n
    assert (calibrated.calibrator.dim, calibrated.calibrator.seen_mask.tolist()) == (-1, mask.tolist())
    added = calibrated(logits)["frames"] - model(logits)["frames"]
    assert torch.allclose(added, expected.gamma * (~mask).float().expand_as(added), atol=1e-4)
    with_others = finecal.calibrate_model(model, data, is_held_out=True, unlabelled_loader=data, **settings)
    expected = finecal.estimate_gamma(mask[columns], held_out=seen, unlabelled=others)
    assert with_others.calibrator.estimate.gamma == pytest.approx(expected.gamma, abs=1e-4)
    assert_same(finecal.collect_logits(model, data, progress=False, **given), seen)
    assert repr(given["positions"]) == "CtcFrames(0 lines)"


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_a_mask_is_that_of_the_texts_if_there_is_none(rng):
    logits, texts, _ = lines(rng, count=40)
    texts = texts.where(texts < 4, 0).sort(1, descending=True).values
    calibrated = finecal.calibrate_model(
        Frames(0), [(logits.float(), texts)], is_held_out=False, positions=CtcFrames(batch_first=True),
        output="frames", verbose=False,
    )  # fmt: skip
    assert calibrated.calibrator.seen_mask.tolist() == [True, True, True, True, False]


def test_what_one_call_refuses(rng):
    logits, texts, _ = lines(rng)
    logits, positions = logits.float(), CtcFrames(batch_first=True)
    arguments = {"is_held_out": False, "seen_mask": [True] * 4 + [False], "output": "frames", "verbose": False}

    def call(labels, model=None, **changes):
        return finecal.calibrate_model(
            model or Frames(0), [(logits, labels)], **{**arguments, "positions": positions, **changes}
        )

    with pytest.raises(ValueError, match="seen_loader has no labels"):
        call({"input_lengths": torch.full((6,), 12)})
    with pytest.raises(ValueError, match="blank contains class 0, which seen_mask says is absent"):
        call(texts, seen_mask=[False] + [True] * 4)
    with pytest.raises(ValueError, match="seen_mask has shape|logits have 5 classes|5 classes"):
        call(texts, seen_mask=[True, True, False])
    with pytest.raises(ValueError, match="with_prototypes=True is for one row of features per sample"):
        call(texts, with_prototypes=True, is_held_out=True, unlabelled_loader=[logits])
    with pytest.raises(ValueError, match="into and positions are both given"):
        finecal.collect_logits(
            Frames(0), [(logits, texts)], positions=positions, into=CtcFrames(batch_first=True), output="frames"
        )
    with pytest.raises(TypeError, match="positions is a str"):
        call(texts, positions="ctc")
    with pytest.raises(TypeError, match="positions is a type"):
        call(texts, positions=CtcFrames)


RIGHT = {"logits": torch.zeros(2, 4, CLASSES), "labels": torch.tensor([[1, 2], [3, 0]])}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 2]), r"labels have shape \(2,\) for logits of 2 lines; pass \(2, S\)"),
        (torch.ones(3, 2, dtype=torch.int64), r"labels have shape \(3, 2\) for logits of 2 lines"),
        (torch.tensor([[1, 5], [1, 2]]), r"labels contain 5, outside \[0, 5\)"),
        (torch.tensor([[1, 0, 2], [1, 2, 0]]), "labels have a class after the blank 0 or a negative number"),
        ({"targets": torch.tensor([[1, 0], [1, 2]]), "target_lengths": [2, 2]}, "targets hold the blank, 0, within"),
        ({"targets": torch.tensor([1, 2, 3]), "target_lengths": [1, 1]}, "target_lengths add up to 2, but targets"),
        ({"targets": torch.tensor([[1], [2]]), "target_lengths": [1]}, r"target_lengths have shape \(1,\)"),
        ({"targets": torch.tensor([[1], [2]]), "target_lengths": [1, 2]}, "target_lengths contain 2"),
        ({"targets": torch.tensor([[1], [2]]), "input_lengths": [4, 5]}, "input_lengths contain 5"),
        ({"target": torch.tensor([[1], [2]])}, "labels have the entry 'target'"),
    ],
)
def test_labels_that_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        CtcFrames(batch_first=True).update(RIGHT["logits"], labels)


def test_what_else_is_refused():
    with pytest.raises(
        ValueError, match=r"logits have shape \(2, 5\); with batch_first=False they must be \(T, B, C\)"
    ):
        CtcFrames(batch_first=False).update(torch.zeros(2, 5), None)
    with pytest.raises(ValueError, match="blank is 7, but logits have only 5 classes"):
        CtcFrames(batch_first=True, blank=7).update(**RIGHT)
    with pytest.raises(ValueError, match="logits contain NaN"):
        CtcFrames(batch_first=True).update(torch.full((2, 4, CLASSES), torch.nan), RIGHT["labels"])
    probabilities = torch.rand(2, 4, CLASSES).softmax(2)
    with pytest.raises(ValueError, match="logits look like probabilities"):
        CtcFrames(batch_first=True).update(probabilities, RIGHT["labels"])
    with pytest.raises(ValueError, match="logits look like probabilities"):
        greedy_decode(probabilities, [True] * 4 + [False], 1.0, batch_first=True)
    assert greedy_decode(probabilities, [True] * 4 + [False], batch_first=True)
    with pytest.raises(ValueError, match="there is no line"):
        CtcFrames(batch_first=True).samples()
    with pytest.raises(ValueError, match="min_confidence is 1.5"):
        CtcFrames(batch_first=True, min_confidence=1.5)
    with pytest.raises(ValueError, match="some batches have labels and some have none"):
        CtcFrames(batch_first=True).update(**RIGHT).update(RIGHT["logits"])
    with pytest.raises(ValueError, match="blank contains class 0, which seen_mask says is absent"):
        greedy_decode(RIGHT["logits"], [False, True, True, True, False], 1.0, batch_first=True)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=f"logits contain {'NaN' if bad != bad else '.inf'}"):
            greedy_decode(torch.full((2, 4, CLASSES), bad), [True] * 4 + [False], batch_first=True)
    with pytest.raises(ValueError, match="logits have 7 classes, and had 5 before"):
        CtcFrames(batch_first=True).update(**RIGHT).update(torch.zeros(2, 4, 7), RIGHT["labels"])
    with pytest.raises(TypeError, match="labels have dtype float32"):
        CtcFrames(batch_first=True).update(RIGHT["logits"], torch.ones(2, 2))
    assert repr(CtcFrames(batch_first=True).update(**RIGHT)) == "CtcFrames(2 lines)"
