"""
scikit-learn: update by partial_fit
===================================

Update an SGDClassifier by partial_fit with samples of half of its classes, and bring the other half back.

Two tasks: handwritten digits whose images move by a pixel, and what a name in many languages stands for (about 290
countries, currencies and scripts). Needs the extras sklearn and demo, no network, and some seconds a seed:

    python examples/sklearn_partial_fit.py [SEED ...]
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score

import finecal
from finecal.datasets import load_names
from finecal.sklearn import SeenAbsentCalibratedClassifier, absent_accuracy_score, seen_accuracy_score

EPOCHS = 5


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
    before, after = Split(images / 16, labels), Split(moved.reshape(-1, 64) / 16, labels)
    seen_classes = rng.permutation(10)[:5]
    source, update, test = np.split(rng.permutation(len(labels)), [600, 1300])
    train, held_out = np.split(update[np.isin(labels[update], seen_classes)], [-100])
    return Task(seen_classes, before.rows(source), *(after.rows(rows) for rows in (train, held_out, test)))


def names(seed: int) -> Task:
    """Names in English and the Romance languages for the first fit; in 40 others for the update and the test."""
    task = load_names(seed)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    vectorizer.fit(task.source.names + task.train.names)
    class_names = np.array(task.class_names)
    parts = (task.source, task.train, task.held_out, task.test)
    splits = [Split(vectorizer.transform(part.names), class_names[part.labels.numpy()]) for part in parts]
    return Task(class_names[task.seen_mask.numpy()], *splits)


def learn(sgd: SGDClassifier, split: Split, classes: NDArray[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        sgd.partial_fit(*split.rows(rng.permutation(len(split.y))), classes=classes)


def results(task: Task, seed: int) -> dict[str, list[float]]:
    """Return gamma and the test accuracies in % on seen, absent and all classes, step by step."""
    rows = {}

    def test(name: str, classifier: Any) -> None:
        predicted = classifier.predict(task.test.X)
        accuracies = [
            seen_accuracy_score(task.test.y, predicted, seen_classes=task.seen_classes),
            absent_accuracy_score(task.test.y, predicted, seen_classes=task.seen_classes),
            accuracy_score(task.test.y, predicted),
        ]
        rows[name] = [getattr(classifier, "gamma_", 0.0), *(100 * accuracy for accuracy in accuracies)]

    classes = np.unique(task.source.y)
    sgd = SGDClassifier(loss="log_loss", random_state=seed)
    learn(sgd, task.source, classes, seed)
    test("trained on all classes", sgd)
    learn(sgd, task.train, classes, seed)
    test("updated on the seen half", sgd)

    # From here on it is finecal. The samples of the update are enough, and sgd stays as it is.
    calibrated = SeenAbsentCalibratedClassifier(sgd).fit(*task.train)
    test("calibrated, from the samples of the update", calibrated)
    # For comparison, other data. The held-out samples lack some seen classes, so that these have to be named.
    held_out = SeenAbsentCalibratedClassifier(sgd, seen_classes=task.seen_classes, held_out=True)
    held_out.set_params(gamma=finecal.max_logit_gap).fit(*task.held_out)
    test("max_logit_gap, from held-out samples", held_out)
    share = float(np.isin(task.test.y, task.seen_classes).mean())
    known_share = SeenAbsentCalibratedClassifier(sgd, seen_share=share).fit(*task.train, X_unlabelled=task.test.X)
    test("auto, unlabelled samples and the share of seen ones", known_share)
    held_out.set_params(gamma="auto").fit(*task.test)
    test("oracle: the best on the test labels", held_out)
    return rows


def show(title: str, rows: dict[str, Any]) -> None:
    print(f"{f'{title}: test accuracy, %':<51} {'gamma':>6} {'seen':>7} {'absent':>7} {'all':>7}")
    for name, (gamma, seen, absent, overall) in rows.items():
        print(f"{name:<51} {gamma:6.2f} {seen:7.1f} {absent:7.1f} {overall:7.1f}")
    print()


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:] or [0]]
    tasks: dict[str, Callable[[int], Task]] = {"digits": digits, "names": names}
    for title, make in tasks.items():
        by_seed = [results(make(seed), seed) for seed in seeds]
        for seed, rows in zip(seeds, by_seed, strict=True):
            show(f"{title}, seed {seed}", rows)
        if len(seeds) > 1:
            show(f"{title}, mean", {name: np.mean([rows[name] for rows in by_seed], axis=0) for name in by_seed[0]})
