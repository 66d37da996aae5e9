"""Samples of animals, some of which a classifier has seen in fine-tuning."""

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

ANIMALS = np.array(["cat", "dog", "elk", "fox", "gnu"])
SEEN = np.array(["dog", "elk", "gnu"])
SEEN_MASK = np.isin(ANIMALS, SEEN)
BASES = [
    LogisticRegression(),
    SGDClassifier(random_state=0),
    SGDClassifier(loss="log_loss", random_state=0),
    RidgeClassifier(),
    Perceptron(random_state=0),
    LinearSVC(),
    SVC(),
    GaussianNB(),
    KNeighborsClassifier(),
    DecisionTreeClassifier(random_state=0),
    RandomForestClassifier(n_estimators=5, random_state=0),
    HistGradientBoostingClassifier(max_iter=5, random_state=0),
    MLPClassifier(hidden_layer_sizes=(5,), max_iter=2000, tol=1e-2, random_state=0),
    CalibratedClassifierCV(LinearSVC(), cv=2),
    make_pipeline(StandardScaler(), LogisticRegression()),
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
]


def draw(rng, n=200, names=ANIMALS, spread=0.7):
    """Samples around one corner per class, of every class alike."""
    index = np.arange(n) % len(names)
    return 2 * np.eye(len(names))[index] + spread * rng.normal(size=(n, len(names))), names[index]


def outgrown(X, y, seen=SEEN, by=5.0):
    """A classifier whose seen classes have outgrown the others."""
    base = LogisticRegression().fit(X, y)
    base.intercept_[np.isin(base.classes_, seen)] += by
    return base


def index_of(y, classes=ANIMALS):
    return np.array([list(classes).index(label) for label in y])


def naive_scores(base, X):
    """By one method, chosen by hand: decisions where there are any, logarithms of probabilities elsewhere."""
    if hasattr(base, "decision_function"):
        scores = base.decision_function(X)
        return scores if scores.ndim == 2 else np.column_stack([0 * scores, scores])
    if isinstance(base, GaussianNB):
        return base.predict_log_proba(X)
    probabilities = base.predict_proba(X)
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    for row in logs:
        floor = min(np.log(np.finfo(float).eps), row[np.isfinite(row)].min())
        row[row == -np.inf] = floor
    return logs
