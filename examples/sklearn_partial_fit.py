"""
scikit-learn: update by partial_fit
===================================

Update an SGDClassifier by partial_fit with samples of half of its classes, and bring the other half back.

Needs the extras sklearn and demo, no network, and some seconds a seed:
``python examples/sklearn_partial_fit.py [SEED ...]``
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score

import finecal
from finecal._demo.names import load_names
from finecal.sklearn import (
    SeenAbsentCalibratedClassifier,
    TradeoffDisplay,
    absent_accuracy_score,
    seen_accuracy_score,
)

# %%
# Data that change
# ----------------
# Scikit-learn's digits. For the first fit they are as they are; then the scanner shifts every image by one pixel. The
# samples of the update are shifted ones, of five of the ten digits; the test has shifted ones of all.


class Split(NamedTuple):
    X: Any
    y: NDArray[Any]

    def rows(self, rows: Any) -> "Split":
        return Split(self.X[rows], self.y[rows])


class Task(NamedTuple):
    """The first data, of all classes; the later ones, of seen classes, some held out; and the test, of all classes."""

    seen_classes: NDArray[Any]
    source: Split
    train: Split
    held_out: Split
    test: Split


def digits(seed: int) -> Task:
    """Images as they are for the first fit; moved to the right by one pixel for the update and the test."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    moved = np.roll(images.reshape(-1, 8, 8), 1, axis=2)
    moved[:, :, 0] = 0
    before, after = (
        Split(images / 16, labels),
        Split(moved.reshape(-1, 64) / 16, labels),
    )
    seen_classes = rng.permutation(10)[:5]
    source, update, test = np.split(rng.permutation(len(labels)), [600, 1300])
    train, held_out = np.split(
        update[np.isin(labels[update], seen_classes)], [-100]
    )
    return Task(
        seen_classes,
        before.rows(source),
        *(after.rows(rows) for rows in (train, held_out, test)),
    )


torch.set_num_threads(1)
seeds = [int(seed) for seed in sys.argv[1:] or [0]]
task = digits(seeds[0])
classes = np.unique(task.source.y)
print(
    f"seen classes: {np.sort(task.seen_classes)}; {len(task.train.y)} samples for the update"
)

# %%
# Fit, and update
# ---------------
# ``partial_fit`` goes on where the first fit has stopped. Afterwards the absent digits are hardly ever predicted.

EPOCHS = 5


def learn(
    sgd: SGDClassifier, split: Split, classes: NDArray[Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        sgd.partial_fit(
            *split.rows(rng.permutation(len(split.y))), classes=classes
        )


sgd = SGDClassifier(loss="log_loss", random_state=seeds[0])
learn(sgd, task.source, classes, seeds[0])
learn(sgd, task.train, classes, seeds[0])


def test(task: Task, classifier: Any) -> list[float]:
    """Return gamma and the test accuracies in % on seen, absent and all classes."""
    predicted = classifier.predict(task.test.X)
    accuracies = [
        seen_accuracy_score(
            task.test.y, predicted, seen_classes=task.seen_classes
        ),
        absent_accuracy_score(
            task.test.y, predicted, seen_classes=task.seen_classes
        ),
        accuracy_score(task.test.y, predicted),
    ]
    return [
        getattr(classifier, "gamma_", 0.0),
        *(100 * accuracy for accuracy in accuracies),
    ]


print(
    "gamma {:.2f}: seen {:.1f} %, absent {:.1f} %, all {:.1f} %".format(
        *test(task, sgd)
    )
)

# %%
# Calibrate
# ---------
# The samples of the update are enough, and the classifier stays as it is. What comes out is a classifier again. Scores
# of one class against the rest are further apart than those of a softmax, so that finecal warns of a large gap.

warnings.filterwarnings(
    "ignore", ".*more than 12 units of log-odds", finecal.FinecalWarning
)
calibrated = SeenAbsentCalibratedClassifier(sgd).fit(*task.train)
print(
    "gamma {:.2f}: seen {:.1f} %, absent {:.1f} %, all {:.1f} %".format(
        *test(task, calibrated)
    )
)
TradeoffDisplay.from_estimator(calibrated, *task.test)
plt.show()

# %%
# A larger task
# -------------
# What does a name stand for? About 290 countries, currencies and scripts, by ``TfidfVectorizer`` over the letters. The
# first fit knows names in English and the Romance languages, the update and the test have 40 others.


def names(seed: int) -> Task:
    """Names in English and the Romance languages for the first fit; in 40 others for the update and the test."""
    task = load_names(seed)
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True
    )
    vectorizer.fit(task.source.names + task.train.names)
    class_names = np.array(task.class_names)
    parts = (task.source, task.train, task.held_out, task.test)
    splits = [
        Split(
            vectorizer.transform(part.names), class_names[part.labels.numpy()]
        )
        for part in parts
    ]
    return Task(class_names[task.seen_mask.numpy()], *splits)


# %%
# Both tasks, and other data for gamma
# ------------------------------------
# Held-out samples instead of those of the update, and unlabelled ones; and the best gamma that the test labels could
# find. :doc:`../how-to/scikit-learn` has the means over five seeds.


def results(task: Task, seed: int) -> dict[str, list[float]]:
    """Return gamma and the test accuracies in % on seen, absent and all classes, step by step."""
    rows = {}
    classes = np.unique(task.source.y)
    sgd = SGDClassifier(loss="log_loss", random_state=seed)
    learn(sgd, task.source, classes, seed)
    rows["trained on all classes"] = test(task, sgd)
    learn(sgd, task.train, classes, seed)
    rows["updated on the seen half"] = test(task, sgd)

    calibrated = SeenAbsentCalibratedClassifier(sgd).fit(*task.train)
    rows["calibrated, from the samples of the update"] = test(task, calibrated)
    # The held-out samples lack some seen classes, so that these have to be named.
    held_out = SeenAbsentCalibratedClassifier(
        sgd, seen_classes=task.seen_classes, held_out=True
    )
    held_out.set_params(gamma=finecal.estimators.max_logit_gap).fit(
        *task.held_out
    )
    rows["max_logit_gap, from held-out samples"] = test(task, held_out)
    share = float(np.isin(task.test.y, task.seen_classes).mean())
    known_share = SeenAbsentCalibratedClassifier(sgd, seen_share=share).fit(
        *task.train, X_unlabelled=task.test.X
    )
    rows["auto, unlabelled samples and the share of seen ones"] = test(
        task, known_share
    )
    held_out.set_params(gamma="auto").fit(*task.test)
    rows["oracle: the best on the test labels"] = test(task, held_out)
    return rows


def show(title: str, rows: dict[str, Any]) -> None:
    print(
        f"{f'{title}: test accuracy, %':<51} {'gamma':>6} {'seen':>7} {'absent':>7} {'all':>7}"
    )
    for name, (gamma, seen, absent, overall) in rows.items():
        print(
            f"{name:<51} {gamma:6.2f} {seen:7.1f} {absent:7.1f} {overall:7.1f}"
        )
    print()


tasks: dict[str, Callable[[int], Task]] = {"digits": digits, "names": names}
for title, make in tasks.items():
    by_seed = [results(make(seed), seed) for seed in seeds]
    for seed, rows in zip(seeds, by_seed, strict=True):
        show(f"{title}, seed {seed}", rows)
    if len(seeds) > 1:
        show(
            f"{title}, mean",
            {
                name: np.mean([rows[name] for rows in by_seed], axis=0)
                for name in by_seed[0]
            },
        )
