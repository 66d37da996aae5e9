"""The displays against scores, margins and bins made by hand from the classifier inside."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

import finecal
from finecal.sklearn import GroupReliabilityDisplay, MarginDisplay, SeenAbsentCalibratedClassifier, TradeoffDisplay

matplotlib.use("agg")

ANIMALS = np.array(["cat", "dog", "elk", "fox", "gnu"])
SEEN = ["gnu", "dog", "elk"]
MASK = np.isin(ANIMALS, SEEN)
DISPLAYS = [TradeoffDisplay, MarginDisplay, GroupReliabilityDisplay]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def data(rng):
    index = np.arange(200) % 5
    return 2 * np.eye(5)[index] + 0.9 * rng.normal(size=(200, 5)), ANIMALS[index]


@pytest.fixture
def base(data):
    """A classifier whose seen classes have outgrown the others."""
    base = LogisticRegression().fit(*data)
    base.intercept_[np.isin(base.classes_, SEEN)] += 4
    return base


@pytest.fixture
def calibrated(base, data):
    X, y = data
    rows = np.isin(y, SEEN)
    return SeenAbsentCalibratedClassifier(base, gamma=finecal.estimators.max_logit_gap, temperature=1.7).fit(
        X[rows], y[rows]
    )


@pytest.fixture
def ax():
    return Figure().subplots()


def accuracies(scores, y, gamma):
    """Of seen and of absent samples, by a naive rule."""
    winners = ANIMALS[(scores + gamma * ~MASK).argmax(1)]
    is_seen = np.isin(y, SEEN)
    return np.mean(winners[is_seen] == y[is_seen]), np.mean(winners[~is_seen] == y[~is_seen])


def artist(ax, gid):
    (found,) = ax.findobj(lambda artist: artist.get_gid() == gid)
    return found


def point(ax, gid):
    return tuple(np.asarray(artist(ax, gid).get_offsets())[0])


def lines(ax):
    return [(line.get_gid(), line.get_xydata()) for line in ax.get_lines()]


def assert_same_picture(one, other):
    (ones, others) = lines(one.ax_), lines(other.ax_)
    assert len(ones) > 0
    for (gid, xy), (other_gid, other_xy) in zip(ones, others, strict=True):
        assert gid == other_gid
        np.testing.assert_allclose(xy, other_xy, atol=1e-9)
    assert one.ax_.get_title() == other.ax_.get_title()


def test_tradeoff_of_a_calibrated_classifier_is_of_the_scores_before_gamma(calibrated, base, data, ax):
    X, y = data
    display = TradeoffDisplay.from_estimator(calibrated, X, y, ax=ax)
    scores = base.decision_function(X)
    assert point(ax, "finecal-tradeoff-zero") == pytest.approx(accuracies(scores, y, 0.0))
    assert point(ax, "finecal-tradeoff-chosen-0") == pytest.approx(accuracies(scores, y, calibrated.gamma_))
    predicted = calibrated.predict(X)
    is_seen = np.isin(y, SEEN)
    ends = [np.mean(predicted[rows] == y[rows]) for rows in (is_seen, ~is_seen)]
    assert point(ax, "finecal-tradeoff-chosen-0") == pytest.approx(ends)
    assert ends[1] > point(ax, "finecal-tradeoff-zero")[1] + 0.3
    assert any("calibrated" in text.get_text() for text in ax.get_legend().get_texts())
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert display.curve.ausuc == finecal.tradeoff_curve(scores, np.searchsorted(ANIMALS, y), MASK).ausuc


def test_margins_of_a_calibrated_classifier_are_those_before_gamma(calibrated, base, data, ax):
    X, y = data
    display = MarginDisplay.from_estimator(calibrated, X, y, ax=ax, bins=[-30, 0, 30])
    scores = base.decision_function(X)
    np.testing.assert_allclose(display.margins.margin, scores[:, MASK].max(1) - scores[:, ~MASK].max(1))
    np.testing.assert_array_equal(display.margins.is_seen, np.isin(y, SEEN))
    assert artist(ax, "finecal-margins-gamma").get_xdata()[0] == calibrated.gamma_
    other = MarginDisplay.from_estimator(calibrated, X, y, gamma=0.5, ax=Figure().subplots())
    assert artist(other.ax_, "finecal-margins-gamma").get_xdata()[0] == 0.5


def test_reliability_of_a_calibrated_classifier_is_of_its_own_probabilities(calibrated, data, ax):
    X, y = data
    GroupReliabilityDisplay.from_estimator(calibrated, X, y, n_bins=8, ax=ax)
    probabilities, predicted = calibrated.predict_proba(X), calibrated.predict(X)
    confidence = probabilities.max(1)
    for name, rows in {"seen": np.isin(y, SEEN), "absent": ~np.isin(y, SEEN), "all": y != ""}.items():
        bins = np.ceil(confidence * 8).astype(int)
        members = [rows & (bins == b) for b in range(1, 9) if (rows & (bins == b)).any()]
        expected = [(confidence[m].mean(), np.mean(predicted[m] == y[m])) for m in members]
        np.testing.assert_allclose(artist(ax, f"finecal-reliability-{name}").get_xydata(), expected, atol=1e-6)
    assert f"{calibrated.gamma_:.2f}" in ax.get_title()


@pytest.mark.parametrize("display", DISPLAYS)
def test_other_classifiers_are_drawn_as_their_scores_are(display, base, data):
    X, y = data
    one = display.from_estimator(base, X, y, seen_classes=SEEN, ax=Figure().subplots())
    scores = base.predict_proba(X) if display is GroupReliabilityDisplay else base.decision_function(X)
    for labels in (None, base.classes_):
        assert_same_picture(
            one, display.from_predictions(y, scores, seen_classes=SEEN, labels=labels, ax=Figure().subplots())
        )
    gids = {gid for gid, _ in lines(one.ax_)} | {a.get_gid() for a in one.ax_.collections}
    assert not {gid for gid in gids if gid and ("gamma" in gid or "chosen" in gid)}


@pytest.mark.parametrize("display", DISPLAYS)
def test_columns_may_be_in_any_order(display, base, data, rng):
    X, y = data
    scores, order = base.predict_log_proba(X), rng.permutation(5)
    one, other = (
        display.from_predictions(
            y, scores[:, columns], seen_classes=SEEN, labels=ANIMALS[columns], ax=Figure().subplots()
        )
        for columns in (np.arange(5), order)
    )
    assert_same_picture(one, other)


def search(fitted):
    same = SeenAbsentCalibratedClassifier(
        FrozenEstimator(fitted.estimator_), gamma=fitted.gamma_, temperature=fitted.temperature_, seen_classes=SEEN
    )
    return GridSearchCV(same, {"held_out": [False]}, cv=2)


WRAPPERS = {
    "frozen": FrozenEstimator,
    "pipeline": lambda fitted: make_pipeline(FunctionTransformer(), FrozenEstimator(fitted)),
    "pipeline of one step": lambda fitted: make_pipeline(FrozenEstimator(fitted)),
    "search": search,
    "search in a pipeline": lambda fitted: make_pipeline(FunctionTransformer(), search(fitted)),
}


@pytest.mark.parametrize("display", DISPLAYS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_calibrated_classifier_is_found_where_it_is_wrapped(display, wrapper, calibrated, data):
    wrapped = WRAPPERS[wrapper](calibrated).fit(*data)
    assert_same_picture(
        display.from_estimator(calibrated, *data, ax=Figure().subplots()),
        display.from_estimator(wrapped, *data, ax=Figure().subplots()),
    )


@pytest.mark.parametrize("display", DISPLAYS)
def test_the_steps_before_it_change_the_samples(display, data):
    X, y = data
    scaler = StandardScaler().fit(X)
    inner = LogisticRegression().fit(scaler.transform(X), y)
    inner.intercept_[MASK] += 4
    pipeline = make_pipeline(
        scaler, SeenAbsentCalibratedClassifier(FrozenEstimator(inner), gamma=3.0, seen_classes=SEEN)
    )
    pipeline.fit(X, y)
    assert_same_picture(
        display.from_estimator(pipeline, X, y, ax=Figure().subplots()),
        display.from_estimator(pipeline[-1], scaler.transform(X), y, ax=Figure().subplots()),
    )


@pytest.mark.parametrize("display", DISPLAYS)
def test_without_axes_pyplot_has_a_new_figure_each_time(display, base, data):
    first = display.from_estimator(base, *data, seen_classes=SEEN)
    assert first.figure_ is pyplot.gcf()
    ax = first.ax_
    second = first.plot()
    assert second is first
    assert second.ax_ is not ax
    assert len(pyplot.get_fignums()) == 2


@pytest.mark.parametrize("display", DISPLAYS)
def test_given_axes_are_used_and_pyplot_is_left_alone(display, base, data, ax):
    drawn = display.from_estimator(base, *data, seen_classes=SEEN, ax=ax)
    other = Figure().subplots()
    assert drawn.ax_ is ax
    assert drawn.plot(ax=other).ax_ is other
    assert drawn.figure_ is other.figure
    assert pyplot.get_fignums() == []


def test_style_reaches_the_lines(base, data):
    X, y = data
    curve = TradeoffDisplay.from_estimator(base, X, y, seen_classes=SEEN, ax=Figure().subplots(), linewidth=7)
    assert artist(curve.ax_, "finecal-tradeoff-curve").get_linewidth() == 7
    bars = MarginDisplay.from_estimator(base, X, y, seen_classes=SEEN, ax=Figure().subplots(), density=True)
    assert bars.ax_.get_ylabel() == "density"
    lines = GroupReliabilityDisplay.from_estimator(base, X, y, seen_classes=SEEN, ax=Figure().subplots(), linewidth=7)
    assert artist(lines.ax_, "finecal-reliability-seen").get_linewidth() == 7


def test_further_gammas_are_marked(calibrated, base, data, ax):
    X, y = data
    TradeoffDisplay.from_estimator(calibrated, X, y, gammas={"mine": 1.0}, ax=ax)
    assert point(ax, "finecal-tradeoff-chosen-1") == pytest.approx(accuracies(base.decision_function(X), y, 1.0))
    TradeoffDisplay.from_predictions(
        y, base.decision_function(X), seen_classes=SEEN, gammas={"mine": 1.0}, ax=(other := Figure().subplots())
    )
    assert point(other, "finecal-tradeoff-chosen-0") == point(ax, "finecal-tradeoff-chosen-1")


def test_macro_average_counts_classes_alike(base, data):
    X, y = data
    rows = (y != "cat") | (np.arange(len(y)) % 20 == 0)
    display = TradeoffDisplay.from_estimator(
        base, X[rows], y[rows], seen_classes=SEEN, average="macro", ax=Figure().subplots()
    )
    right = base.predict(X[rows]) == y[rows]
    expected = [np.mean([right[y[rows] == c].mean() for c in group]) for group in (SEEN, ["cat", "fox"])]
    assert point(display.ax_, "finecal-tradeoff-zero") == pytest.approx(expected)


def test_gamma_moves_probabilities_of_predictions(base, data):
    X, y = data
    scores = base.decision_function(X)
    one = GroupReliabilityDisplay.from_predictions(y, scores, seen_classes=SEEN, gamma=2.0, ax=Figure().subplots())
    moved = scores + 2.0 * ~MASK
    other = GroupReliabilityDisplay.from_predictions(y, moved, seen_classes=SEEN, ax=Figure().subplots())
    np.testing.assert_allclose(lines(one.ax_)[1][1], lines(other.ax_)[1][1], atol=1e-6)
    assert "2.00" in one.ax_.get_title()


def test_two_classes_may_come_as_one_column(rng, ax):
    X = rng.normal(size=(60, 2))
    y = np.where(X[:, 0] + rng.normal(size=60) > 0, "yes", "no")
    base = LogisticRegression().fit(X, y)
    one = TradeoffDisplay.from_estimator(base, X, y, seen_classes=["yes"], ax=ax)
    other = TradeoffDisplay.from_predictions(y, base.decision_function(X), seen_classes=["yes"], ax=Figure().subplots())
    assert_same_picture(one, other)
    right = base.predict(X) == y
    expected = [right[y == name].mean() for name in ("yes", "no")]
    assert point(ax, "finecal-tradeoff-zero") == pytest.approx(expected)


def test_probabilities_of_zero_and_re_indexed_looks_do_not_warn(data, ax):
    X, y = data
    base = GaussianNB(var_smoothing=1e-30).fit(X, y)
    rows = np.isin(y, ["cat", "dog"])
    MarginDisplay.from_estimator(base, 100 * X[rows], y[rows], seen_classes=["elk", "fox"], ax=ax)
    assert np.isfinite(lines(ax)[0][1]).all()


@pytest.mark.parametrize("display", DISPLAYS)
def test_only_a_calibrated_classifier_knows_what_it_has_seen(display, base, calibrated, data):
    X, y = data
    with pytest.raises(TypeError, match="seen_classes is None, and LogisticRegression"):
        display.from_estimator(base, X, y)
    with pytest.raises(ValueError, match="leave seen_classes out"):
        display.from_estimator(calibrated, X, y, seen_classes=["cat"])
    assert_same_picture(
        display.from_estimator(calibrated, X, y, seen_classes=SEEN[::-1], ax=Figure().subplots()),
        display.from_estimator(calibrated, X, y, ax=Figure().subplots()),
    )
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("display", DISPLAYS)
def test_of_a_classifier_that_saw_all_the_seen_classes_can_be_named(display, base, data):
    everything = SeenAbsentCalibratedClassifier(base, seen_classes=base.classes_).fit(*data)
    with pytest.raises(TypeError, match="seen_classes is None, and SeenAbsentCalibratedClassifier"):
        display.from_estimator(everything, *data)
    assert_same_picture(
        display.from_estimator(everything, *data, seen_classes=SEEN, ax=Figure().subplots()),
        display.from_estimator(base, *data, seen_classes=SEEN, ax=Figure().subplots()),
    )


@pytest.mark.parametrize("display", DISPLAYS)
def test_says_what_is_wrong(display, base, data):
    X, y = data
    with pytest.raises(ValueError, match="'yak'"):
        display.from_estimator(base, X, np.where(y == "cat", "yak", y), seen_classes=SEEN)
    with pytest.raises(ValueError, match="holds all 5 classes"):
        display.from_estimator(base, X, y, seen_classes=ANIMALS)
    with pytest.raises(ValueError, match="pass labels="):
        display.from_predictions(y, base.predict_proba(X)[:, :4], seen_classes=SEEN)
    with pytest.raises(NotFittedError):
        display.from_estimator(SeenAbsentCalibratedClassifier(base), X, y)
    assert pyplot.get_fignums() == []


def test_curve_needs_both_groups_and_reliability_needs_probabilities(base, data, ax):
    X, y = data
    rows = np.isin(y, SEEN)
    with pytest.raises(ValueError, match="seen classes only"):
        TradeoffDisplay.from_estimator(base, X[rows], y[rows], seen_classes=SEEN, ax=ax)
    with pytest.raises(AttributeError, match="LinearSVC has no predict_proba"):
        GroupReliabilityDisplay.from_estimator(LinearSVC().fit(X, y), X, y, seen_classes=SEEN, ax=ax)


@pytest.mark.parametrize("display", DISPLAYS)
def test_says_what_to_install(display, base, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'finecal\[plots\]'"):
        display.from_estimator(base, *data, seen_classes=SEEN)
