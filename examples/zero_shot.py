"""
Generalized zero-shot learning
==============================

Classes without a single training sample, known by a description only: calibrated stacking is gamma.

A class is a country, currency or script. Its description is its English name, and its samples are what it is called in
40 other languages. Three quarters of the classes have training samples: these are seen. Of the absent ones the model
gets the description and nothing else. Needs the extra demo, no network, and half a
minute: ``python examples/zero_shot.py``
"""

# %%
# Samples and descriptions
# ------------------------
# Both are texts, taken as the n-grams of their characters; that many names resemble the English one is what makes
# absent classes recognisable.

import warnings
import zlib
from collections.abc import Sequence

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

import finecal
from finecal._demo.names import load_names
from finecal.plots import plot_accuracy, plot_tradeoff

torch.set_num_threads(1)  # The same figures on every machine.
CODES, WIDTH = 4096, 64


def encode(texts: Sequence[str]) -> Tensor:
    """Return the codes of the n-grams of each text; 0 pads."""
    rows = []
    for text in texts:
        marked = f"<{text.casefold()}>"
        grams = [
            marked[start : start + n]
            for n in (1, 2, 3, 4)
            for start in range(len(marked) - n + 1)
        ]
        rows.append(
            torch.tensor(
                [zlib.crc32(gram.encode()) % (CODES - 1) + 1 for gram in grams]
            )
        )
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


task = load_names(seed=0, seen_fraction=0.75)
seen_mask, descriptions = task.seen_mask, encode(task.class_names)
train_inputs, held_out_inputs, test_inputs = (
    encode(split.names) for split in (task.train, task.held_out, task.test)
)
print(f"{len(seen_mask)} classes, {int(seen_mask.sum())} of them seen")
print(
    f"{len(task.train)} names for training, {len(task.held_out)} held out, {len(task.test)} for testing"
)


# %%
# A bilinear compatibility
# ------------------------
# The logit of a class is the cosine of the sample's embedding and that of the class's description, after a matrix in
# between, times 20. Training chooses among the seen classes: the absent ones take no part.


class Compatibility(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sample, self.description = (
            nn.EmbeddingBag(CODES, WIDTH, mode="mean", padding_idx=0)
            for _ in range(2)
        )
        self.between = nn.Linear(WIDTH, WIDTH, bias=False)
        self.description.load_state_dict(
            self.sample.state_dict()
        )  # Before training, equal texts are alike.
        nn.init.eye_(self.between.weight)

    def forward(self, samples: Tensor, classes: Tensor) -> Tensor:
        samples = F.normalize(self.between(self.sample(samples)), dim=1)
        return 20 * samples @ F.normalize(self.description(classes), dim=1).T


def fit(classes: Tensor) -> Compatibility:
    """Return a model trained on the samples of the classes that are True."""
    torch.manual_seed(0)
    model = Compatibility()
    columns, position = classes.nonzero().squeeze(1), classes.cumsum(0) - 1
    rows = classes[task.train.labels].nonzero().squeeze(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(12):
        for batch in rows[torch.randperm(len(rows))].split(128):
            logits = model(train_inputs[batch], descriptions[columns])
            optimiser.zero_grad()
            F.cross_entropy(
                logits, position[task.train.labels[batch]]
            ).backward()
            optimiser.step()
    return model


@torch.no_grad()
def score(model: Compatibility, inputs: Tensor) -> Tensor:
    """Return logits over all classes, seen and absent."""
    return model(inputs, descriptions)


model = fit(seen_mask)
test = finecal.Samples(score(model, test_inputs), task.test.labels)

# %%
# What the field reports
# ----------------------
# Accuracies per class, averaged (*macro*), their harmonic mean, and AUSUC, the area under the curve over all gamma.

print(finecal.evaluate(test, seen_mask, average="macro"))

# %%
# Gamma from classes that only play absent
# ----------------------------------------
# Some seen classes are left out of a training of its own, and gamma is what serves best on held-out names of all seen
# classes. By default half of the seen classes are left out; a quarter is nearer to the task, in which a quarter is
# absent.


def fold(pseudo_seen_mask: Tensor) -> finecal.estimators.PseudoFold:
    logits = score(fit(pseudo_seen_mask), held_out_inputs)
    return finecal.estimators.PseudoFold(
        (logits, task.held_out.labels), pseudo_seen_mask
    )


halves = [
    fold(mask)
    for mask in finecal.estimators.pseudo_cv_splits(seen_mask, n_splits=3)
]
quarters = []
for part in torch.randperm(int(seen_mask.sum())).chunk(4)[:3]:
    mask = seen_mask.clone()
    mask[seen_mask.nonzero().squeeze(1)[part]] = False
    quarters.append(fold(mask))

# %%
# Gaps of seen samples see little here: no absent logit was ever pushed down, as training left the absent classes out.

curve = finecal.tradeoff_curve(test, seen_mask, average="macro")
held_out = finecal.Samples(score(model, held_out_inputs), task.held_out.labels)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    gammas = {
        "gamma = 0": 0.0,
        "max_logit_gap": finecal.estimators.max_logit_gap(held_out, seen_mask),
        "estimate_gamma": finecal.estimate_gamma(seen_mask, held_out=held_out),
        "pseudo_cv, halves": finecal.estimators.pseudo_cv_gamma(
            halves, seen_mask, objective="harmonic"
        ),
        "pseudo_cv, quarters": finecal.estimators.pseudo_cv_gamma(
            quarters, seen_mask, objective="harmonic"
        ),
        "oracle": curve.best("harmonic"),
    }
print(f"{'macro, %':20} gamma   seen  absent     H")
for name, gamma in gammas.items():
    report = curve.at(gamma)
    accuracies = (
        100 * report.acc_seen,
        100 * report.acc_absent,
        100 * report.harmonic_mean,
    )
    print(
        "{:20} {:5.2f} {:6.1f} {:7.1f} {:5.1f}".format(
            name, float(gamma), *accuracies
        )
    )
print(f"AUSUC {curve.ausuc:.3f} at any gamma")

# %%
# The whole curve
# ---------------
# Thin lines join points of equal harmonic mean. The star is best for the accuracy over all classes, of which three
# quarters are seen, and thus not for the harmonic mean.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4.8), layout="constrained"
)
shown = {
    name: gamma
    for name, gamma in gammas.items()
    if name.startswith("pseudo_cv")
}
plot_tradeoff(curve, left, gammas=shown)
plot_accuracy(curve, right, gamma=gammas["pseudo_cv, quarters"])
