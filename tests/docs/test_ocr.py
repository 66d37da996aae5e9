"""The Python of the guide to OCR runs, and what the guide says of finecal is so."""

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from finecal.sequences import CtcFrames, character_scores, greedy_decode
from pages import blocks

CLASSES, SEEN = 8, [1, 2, 3, 4]
GAP = 7.0


class Reader(nn.Module):
    """Takes lines `(B, T, C)` and returns log-probabilities `(T, B, C)`; the absent classes, 5 to 7, are behind."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(CLASSES))
            self.head.bias.copy_(GAP * (torch.arange(CLASSES) <= max(SEEN)))

    def forward(self, pictures):
        return self.head(pictures).transpose(0, 1).log_softmax(2)


def lines(rng, count, classes):
    """Pictures with two frames a character and one between, and texts of three or four characters."""
    texts = torch.tensor(rng.choice(classes, (count, 4)))
    texts[::2, 3] = 0
    frames = torch.stack([torch.zeros_like(texts), texts, texts], 2).flatten(1)
    noise = torch.tensor(rng.normal(size=(*frames.shape, CLASSES)), dtype=torch.float32)
    return noise + 6 * nn.functional.one_hot(frames, CLASSES), texts


@pytest.fixture
def names(rng):
    test_pictures, test = lines(rng, 60, range(1, CLASSES))
    model = Reader()
    pictures, texts = lines(rng, 40, SEEN)
    lengths = {"text_lengths": (texts != 0).sum(1), "widths": torch.full((40,), 4 * 12)}
    return {
        "model": model,
        "num_classes": CLASSES,
        "train_loader": [lines(rng, 50, SEEN), lines(rng, 50, SEEN)],
        "test_loader": [(test_pictures[:40], test[:40]), (test_pictures[40:], test[40:])],
        "names": ["blank", *"abcdxyz"],
        "pictures": pictures,
        "loader": [{"pictures": pictures, "texts": texts, **lengths}],
    }


def test_python_on_ocr_runs(names, capsys):
    found, measured, put = blocks("docs/how-to/ocr.md", "python")
    exec(found, names)
    estimate, seen_mask = names["calibrated"].calibrator.estimate, names["seen_mask"]
    frames = finecal.collect_logits(
        names["model"], names["train_loader"], into=CtcFrames(batch_first=False), progress=False
    )
    by_hand = finecal.estimate_gamma(seen_mask[1:], train=frames.samples())
    assert estimate.gamma == pytest.approx(by_hand.gamma, abs=1e-4)
    assert seen_mask.tolist() == [c <= max(SEEN) for c in range(CLASSES)]
    assert estimate.interval[0] < estimate.gamma < estimate.interval[1]
    assert abs(estimate.gamma - GAP) < 4

    (in_batches,) = blocks("docs/how-to/ocr.md", "{code-block} python")
    (shown, called) = in_batches.rsplit("\n\n", 1)
    assert called == "finecal.calibrate_model(..., batch=batch)\n"
    exec(shown, names)
    positions = CtcFrames(batch_first=False)
    samples = finecal.collect_logits(
        names["model"], names["loader"], batch=names["batch"], positions=positions, progress=False
    )
    assert len(samples.groups.unique()) == 40

    capsys.readouterr()
    exec(measured, names)
    printed = capsys.readouterr().out
    assert printed.count("lines without an error") == 2
    pictures, texts = map(torch.cat, zip(*names["test_loader"], strict=True))
    logits, texts = Reader()(pictures).detach(), [[c for c in text if c] for text in texts.tolist()]
    before, after = (
        character_scores(greedy_decode(logits, seen_mask, gamma, batch_first=False), texts, seen_mask)
        for gamma in (0.0, estimate)
    )
    assert str(after) in printed
    assert before.acc_absent < 0.5 < 0.9 < after.acc_absent
    assert after.error_all < before.error_all

    exec(put, names)
    folded = names["model"](names["pictures"])
    read = greedy_decode(folded, seen_mask, batch_first=False)
    with pytest.raises(ValueError, match="calibrated twice"):
        names["calibrated"](names["pictures"])
    expected = finecal.calibrate_logits(Reader()(names["pictures"]), seen_mask, estimate)
    torch.testing.assert_close(folded, expected.log_softmax(2))
    assert read == greedy_decode(expected, seen_mask, batch_first=False)


def test_logarithms_of_probabilities_are_taken(names):
    """As PaddleOCR returns them: probabilities `(B, T, C)` as an array."""
    logits = names["model"](names["pictures"]).detach()
    probabilities = logits.transpose(0, 1).softmax(2).numpy()
    state = CtcFrames(batch_first=True)
    with pytest.raises(ValueError, match="look like probabilities"):
        state.update(probabilities)
    assert isinstance(state.update(np.log(probabilities)).samples().logits, np.ndarray)
