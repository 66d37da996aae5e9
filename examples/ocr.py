"""
OCR and CTC
===========

A small network that reads lines of text is fine-tuned on lines with half of the letters, in another font, and reads
only these. Gamma is found on frames of the fine-tuning lines, and folded into the network's last layer.

Needs pycountry (the extra ``demo``) and Pillow, no network and a minute: ``python examples/ocr.py``
"""

import copy

import torch
from _lines import BLANK, Lines, Reader, Writer, train
from matplotlib import pyplot as plt
from torch import Tensor, nn

import finecal
from finecal.sequences import (
    CharacterScores,
    CtcFrames,
    character_scores,
    greedy_decode,
)

torch.set_num_threads(1)  # The same figures on every machine.

# %%
# The lines
# ---------
# Words from names of countries, regions and languages, in Latin and in Cyrillic letters. To pre-train there are clear
# lines. To fine-tune there are noisy lines in another font, with words that lack every second letter of each alphabet:
# these letters are absent. Class 0 is the blank of CTC, which is neither seen nor absent: gamma is not added to it, so
# the mask is True there.

writer = Writer("Latin", "Cyrillic")
seen_mask = writer.seen_mask
assert seen_mask[BLANK]
print("absent:", *sorted(writer.absent))

clear = writer.draw(2400, ["DejaVuSans", "DejaVuSans-Bold"], seed=0)
fine_tuning = writer.draw(
    600, ["DejaVuSerif"], seed=1, noise=0.1, only_seen=True
)
test = writer.draw(400, ["DejaVuSerif"], seed=2, noise=0.1)

# %%
# The network
# -----------
# Three convolutions, a recurrent layer and a linear one, which ends in a log-softmax: log-probabilities `(T, B, C)`, as
# `torch.nn.CTCLoss` takes them. Log-probabilities are fine as logits.

torch.manual_seed(0)
pretrained = Reader(len(writer.class_names))
train(pretrained, clear, epochs=4, learning_rate=0.006)
model = copy.deepcopy(pretrained)
train(model, fine_tuning, epochs=4, learning_rate=0.003)

# %%
# What fine-tuning did
# --------------------


@torch.no_grad()
def score(model: nn.Module, lines: Lines) -> Tensor:
    model.eval()
    return torch.cat([model(pictures) for pictures, _ in lines.batches()], 1)


def scores(logits: Tensor, gamma: object = 0.0) -> CharacterScores:
    read = greedy_decode(logits, seen_mask, gamma, batch_first=False)
    return character_scores(
        read, test.texts, seen_mask, class_names=writer.class_names
    )


logits = score(model, test)
print("pre-trained", scores(score(pretrained, test)), sep="\n", end="\n\n")
before = scores(logits)
print("fine-tuned", before, sep="\n")

# %%
# Find gamma
# ----------
# `CtcFrames` aligns each line with its text. Frames that the alignment gives a character are samples, those of the
# blank are not. It leaves the column of the blank out, and notes which line each frame is of.

frames = finecal.collect_logits(
    model,
    fine_tuning.batches(),
    into=CtcFrames(batch_first=False),
    progress=False,
)
train_samples = frames.samples()
print(train_samples)
estimate = finecal.estimate_gamma(
    seen_mask[1:],  # without the blank, as the samples are
    train=train_samples,
    n_bootstrap=100,
)
print(estimate)

# %%
# What it buys
# ------------

after = scores(logits, estimate)
print("with gamma", after, sep="\n")

# %%
# The best gamma for these test lines, which nobody has beforehand, for comparison:

grid = [gamma / 2 for gamma in range(21)]
errors = [scores(logits, gamma) for gamma in grid]
oracle = min(range(len(grid)), key=lambda i: errors[i].error_all)
print(f"oracle: gamma = {grid[oracle]}", errors[oracle], sep="\n")

figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in ("seen", "absent", "all"):
    rates = [100 * getattr(each, f"error_{name}") for each in errors]
    ax.plot(grid, rates, label=f"{name} characters")
ax.axvline(estimate.gamma, color="gray", linestyle=":", label="estimate")
ax.set(xlabel="gamma", ylabel="character error rate, %", ylim=(0, 110))
ax.legend(frameon=False)
plt.show()

# %%
# Put it into the network
# -----------------------
# The bias of the last layer takes gamma. What reads the lines then needs no finecal, and a beam decoder takes the
# log-probabilities as they come.

calibrator = finecal.AdditiveBias(seen_mask, estimate)
finecal.fold_into_head(model, calibrator, inputs=test.pictures[:2])
folded = score(model, test)
assert scores(folded).error_all == after.error_all
for line in range(3):
    for name, output in {"fine-tuned": logits, "folded": folded}.items():
        (read,) = greedy_decode(
            output[:, line : line + 1], seen_mask, batch_first=False
        )
        print(f"{name:>10}:", "".join(writer.class_names[i] for i in read))
    print(
        "     truth:", "".join(writer.class_names[i] for i in test.texts[line])
    )

# %%
# The guide :doc:`../how-to/ocr` has more on this, and what mixing old lines in does.
