import re

import ablation
import honesty
import numpy as np
import pytest
import regimes
import shares
import uneven_streams

import estimators
import finecal

MASK = np.array([True, True, True, True, False, False, False, False])


def task_file(path, gap, shuffled=False):
    """Write a task of a model whose seen classes have outgrown the others by `gap`."""
    rng = np.random.default_rng(len(path.stem))

    def samples(part, num_classes, n, outgrown=MASK):
        labels = rng.permutation(np.arange(n) % num_classes)
        logits = rng.normal(size=(n, 8)) + 3 * np.eye(8)[labels] + gap * outgrown
        return {f"{part}_logits": logits.astype(np.float16), f"{part}_labels": labels}

    arrays = {"seen_mask": MASK, **samples("train", 4, 200), **samples("val", 4, 100), **samples("test", 8, 600)}
    for fold, half in enumerate(() if "_nogap" in path.stem else finecal.estimators.pseudo_cv_splits(MASK)):
        arrays |= samples(f"pcv{fold}", 4, 100, half)
        arrays |= {f"pcv{fold}_pseudo_seen_mask": half, f"pcv{fold}_pretrained_logits": arrays[f"pcv{fold}_logits"]}
    np.savez(path, **arrays)
    return arrays


@pytest.fixture
def folder(tmp_path):
    task_file(tmp_path / "drawn_gap.npz", 6.0)
    task_file(tmp_path / "drawn_nogap.npz", 0.0)
    return tmp_path


def accuracy(arrays, gamma):
    shifted = arrays["test_logits"].astype(float) + np.where(MASK, 0, gamma)
    return (shifted.argmax(1) == arrays["test_labels"]).mean()


def test_figures_are_the_recovered_share_of_what_a_scan_of_gamma_gains(tmp_path):
    arrays = task_file(tmp_path / "drawn_gap.npz", 6.0)
    run = estimators.score(tmp_path / "drawn_gap.npz", estimators.ALL_NAMES)
    assert run.counts
    assert run.figures.keys() == {name for name in estimators.ALL_NAMES if "heads" not in name}
    before = accuracy(arrays, 0)
    # Logits of half precision below 16: accuracies change at multiples of 1/2**11 of 8 only.
    gain = max(accuracy(arrays, gamma + 2**-11) for gamma in np.arange(0, 16, 2**-8)) - before
    assert run.gain == pytest.approx(100 * gain, abs=0.4)
    gamma = finecal.estimators.max_logit_gap(arrays["val_logits"].astype(np.float32), arrays["val_labels"], MASK).gamma
    expected = 100 * (accuracy(arrays, gamma) - before) / (run.gain / 100)
    assert run.figures["held-out: max_logit_gap"] == pytest.approx(expected)
    assert run.figures["refits: pseudo_cv_gamma"] > 80
    assert 80 < run.figures[estimators.LABELS] <= 100


def test_labels_are_never_those_that_are_scored(monkeypatch):
    """A search that fits its own samples alone finds nothing that the others have."""
    rng = np.random.default_rng(0)
    task = {"test_logits": rng.normal(size=(300, 8)), "test_labels": rng.integers(0, 8, 300), "seen_mask": MASK}
    searched = []

    def search(samples, mask):
        searched.append({row.tobytes() for row in samples.logits})
        return 0.0

    def predict(logits, mask, gamma):
        assert not searched[-1] & {row.tobytes() for row in logits}
        assert len(searched[-1]) + len(logits) == 300
        return logits.argmax(1)

    monkeypatch.setattr(estimators.finecal, "search_gamma", search)
    monkeypatch.setattr(estimators.finecal, "predict", predict)
    expected = (task["test_logits"].argmax(1) == task["test_labels"]).mean()
    assert estimators.accuracy_by_labels(task) == pytest.approx(expected)
    assert len(searched) == 10


def test_controls_are_in_points_and_do_not_count(tmp_path):
    arrays = task_file(tmp_path / "drawn_nogap.npz", 0.0)
    run = estimators.score(tmp_path / "drawn_nogap.npz", estimators.ALL_NAMES)
    assert run.is_control
    assert not run.counts
    assert "refits: pseudo_cv_gamma" not in run.figures
    with pytest.warns(finecal.FinecalWarning, match="already balanced"):
        gamma = finecal.estimators.max_logit_gap(
            arrays["train_logits"].astype(np.float32), arrays["train_labels"], MASK
        ).gamma
    expected = 100 * (accuracy(arrays, gamma) - accuracy(arrays, 0))
    assert run.figures["train: max_logit_gap"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gap", "num_test", "num_seen", "counts"),
    [(6.0, 500, 4, True), (6.0, 499, 4, False), (0.0, 500, 4, False), (6.0, 500, 1, False), (6.0, 500, 7, False)],
)
def test_what_counts(tmp_path, gap, num_test, num_seen, counts):
    path = tmp_path / "drawn.npz"
    arrays = task_file(path, gap)
    arrays |= {f"test_{name}": arrays[f"test_{name}"][:num_test] for name in ("logits", "labels")}
    arrays["test_logits"] += gap * (np.arange(8) < num_seen) - gap * MASK
    np.savez(path, **{**arrays, "seen_mask": np.arange(8) < num_seen})
    assert estimators.score(path, []).counts is counts


def run_of(name, figure, counts=True, gain=20.0):
    return estimators.Scored(name, gain, counts, "_nogap" in name, {"x": figure})


def test_tables_by_hand():
    runs = [
        run_of("a_1", 90.0),
        run_of("a_2", -10.0),
        run_of("b_1", estimators.ERROR),
        run_of("b_2", -50.0, counts=False),
        run_of("c_1", 97.0),
        run_of("c_nogap", -0.31, counts=False),
        run_of("c_2", -1.26, counts=False, gain=2.9),
    ]
    assert [row[2] for row in estimators.task_table(runs, ["x"])] == [
        *("90", "-10", "error", "-50", "97", "-0.3", "-1.3"),  # the runs
        *("40", "error", "2", "-0.3", "-1.3"),  # median and worst of four, two of them failures, control and little
    ]
    assert list(estimators.family_table(runs, ["x"])) == [
        ["a", "2", "40 / -10"],
        ["b", "1", "error / error"],
        ["c", "1", "97 / 97"],
    ]


def test_an_estimator_that_refuses_the_data_is_an_error(folder, monkeypatch):
    def refuse(task):
        raise ValueError("no")

    monkeypatch.setitem(estimators.ESTIMATORS, "train: max_logit_gap", refuse)
    run = estimators.score(folder / "drawn_gap.npz", ["train: max_logit_gap"])
    assert run.figures == {"train: max_logit_gap": estimators.ERROR}


@pytest.mark.parametrize("markdown", [False, True])
def test_command(folder, capsys, markdown):
    estimators.main([str(folder), "--estimators", "*: max_logit_gap", *["--markdown"] * markdown])
    printed = capsys.readouterr().out
    run = estimators.score(folder / "drawn_gap.npz", estimators.ALL_NAMES)
    columns = ["train: max_logit_gap", "held-out: max_logit_gap"]
    cells = r" +\| +".join(f"{run.figures[name]:.0f}" for name in columns)
    assert re.search(rf"drawn_gap \* +\| +{run.gain:.1f} \| +{cells} \|", printed)
    heads = r" +\| +".join(columns if markdown else "12")
    assert re.search(rf"gain \| +{heads} \|", printed)
    assert ("1 = train: max_logit_gap" in printed) is not markdown
    assert "mixture_gamma" not in printed


def test_nothing_to_do_is_an_error(folder, tmp_path_factory, capsys):
    for arguments in ([str(tmp_path_factory.mktemp("empty"))], [str(folder), "--estimators", "nobody"]):
        with pytest.raises(SystemExit):
            estimators.main(arguments)
    printed = capsys.readouterr().err
    assert "no .npz files" in printed
    assert "no estimator matches 'nobody'" in printed


# --- shares.py --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "number", "drawn"), [(0.25, None, (50, 150)), (0.75, 100, (75, 25))])
def test_shares_are_those_of_the_unlabelled_samples_and_of_the_score(tmp_path, monkeypatch, share, number, drawn):
    task_file(tmp_path / "drawn_gap.npz", 6.0)
    task, seen = estimators.load(tmp_path / "drawn_gap.npz"), {}

    def estimate(given, unlabelled, known):
        labels = {row.tobytes(): label for row, label in zip(given["test_logits"], given["test_labels"], strict=True)}
        is_seen = np.array([labels[row.tobytes()] < 4 for row in unlabelled])
        seen.update(counts=(is_seen.sum(), (~is_seen).sum()), known=known, rows={row.tobytes() for row in unlabelled})
        return finecal.GammaEstimate(5.0, "x", "x", 1, warnings=("doubtful",))

    monkeypatch.setattr(shares, "ESTIMATORS", {"x": estimate})
    found = shares.scores(task, share, number)["x"]
    assert seen["counts"] == pytest.approx(drawn, rel=0.2)
    assert seen["counts"][0] / sum(seen["counts"]) == pytest.approx(share, abs=0.01)
    assert seen["known"] == share
    assert len(seen["rows"]) == sum(seen["counts"])

    other = np.array_split(np.random.default_rng(0).permutation(len(task["test_labels"])), 2)[1]
    assert not seen["rows"] & {row.tobytes() for row in task["test_logits"][other]}
    logits, labels = task["test_logits"][other].astype(float), task["test_labels"][other]

    def accuracy_at(gamma):
        right = (logits + np.where(MASK, 0, gamma)).argmax(1) == labels
        return 100 * (share * right[labels < 4].mean() + (1 - share) * right[labels >= 4].mean())

    best = max(accuracy_at(gamma + 2**-11) for gamma in np.arange(-4, 16, 2**-8))
    assert found.regret == pytest.approx(best - accuracy_at(5.0), abs=0.2)
    assert found.gained == pytest.approx(accuracy_at(5.0) - accuracy_at(0))
    assert found.warned


def test_command_for_shares(folder, capsys):
    shares.main([str(folder)])
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| (all|100) ", line)]
    assert len(rows) == len(shares.SHARES) * len(shares.NUMBERS)
    assert re.match(r"\| all +\| +0.1 +\| +\d+\.\d; \d \(\d\), [-+]\d", rows[0])
    with pytest.raises(SystemExit):
        shares.main([str(folder), "--without", "drawn"])
    assert "no .npz files of runs with training" in capsys.readouterr().err


def test_command_for_streams(folder, monkeypatch, capsys):
    monkeypatch.setattr(uneven_streams, "LENGTH", 800)
    uneven_streams.main([str(folder), "--every", "2"])
    zipf, drifts = capsys.readouterr().out.split("| share of seen samples ")
    assert zipf.startswith("1 models, mean accuracy in %")
    assert len(re.findall(r"^\| (?:0.5|1|1.5) +\| (?:any|frequent ones) ", zipf, re.MULTILINE)) == 6
    assert len(re.findall(r"^\| (?:wave|jump|steady)", drifts, re.MULTILINE)) == 3
    with pytest.raises(SystemExit):
        uneven_streams.main([str(folder), "--without", "drawn"])


def test_a_stream_of_zipf_by_hand(tmp_path):
    """Where labels have the frequencies of the stream, the largest gain is that of the class shares."""
    task = task_file(tmp_path / "drawn_gap.npz", 6.0)
    task = {name: array.astype(np.float32) if "logits" in name else array for name, array in task.items()}
    flat, steep = (uneven_streams.zipf_scores(task, exponent, 0.0, 0) for exponent in (0.0, 2.0))
    assert flat["class shares"] == flat["known share"]
    assert flat["known share"] == pytest.approx(flat["|S|/C"])
    assert steep["class shares"] > steep["known share"] > steep["gamma = 0"]
    rows = uneven_streams._drawn(np.random.default_rng(0), np.array([0] * 900 + [1] * 100), np.array([1.0, 3.0]))
    assert (rows >= 900).mean() == pytest.approx(0.75, abs=0.05)


# --- honesty.py, ablation.py ------------------------------------------------------------------------------------------


def outcome(run="drawn_gap", gain=10.0, points=9.0, warnings=(), holds=None):
    return regimes.Outcome(run, "_nogap" in run, gain, points, warnings, holds)


def test_failures_are_of_gains_that_are_missed_and_of_harm():
    assert not outcome(points=7.0).failed
    assert outcome(points=6.9).failed
    assert not outcome(gain=2.9, points=-0.7).failed
    assert outcome(gain=2.9, points=-0.8).failed
    assert outcome("drawn_nogap", gain=9.0, points=-0.8).failed
    assert not outcome("drawn_nogap", gain=9.0, points=0.0).failed


def test_quality_and_what_is_told_by_hand():
    found = [
        outcome(points=9.0, warnings=("look",), holds=True),
        outcome(gain=4.0, points=1.0, holds=False),
        outcome(gain=1.0, points=-2.0, warnings=("look",), holds=True),
        outcome("drawn_nogap", gain=0.5, points=0.0, warnings=("look",)),
    ]
    assert honesty.quality(found) == ["90 / 90 (1)", "58 / 25 (2)", "-2.0 (2)", "1.88"]
    assert honesty.told(found) == ["1", "1", "100 % of 1", "67 % of 3"]
    assert honesty.held_by_family(found) == [["drawn", "2 of 3"]]


def test_what_warnings_are_worth_by_hand():
    huge, few = "the gap is 13.5, more than 12 units", "only 3 labelled samples (of 1 group): rough"
    found = [
        outcome(warnings=(huge, few)),
        outcome(warnings=(huge.replace("13.5", "-1e-16"),)),
        outcome(points=1.0, warnings=(huge, huge)),
        outcome("drawn_nogap", points=0.0, warnings=(few,)),
        outcome(),
    ]
    assert honesty.worth(found) == [
        ["only # labelled samples", "0 (0)", "1 (0)", "1 (1)"],
        ["the gap is #", "1 (1)", "2 (1)", "0 (0)"],
    ]


def test_outcomes_are_those_of_the_estimate(tmp_path):
    arrays = task_file(tmp_path / "drawn_gap.npz", 6.0)
    found = regimes.outcomes(tmp_path / "drawn_gap.npz", list(regimes.REGIMES), n_bootstrap=5)
    assert found.keys() == regimes.REGIMES.keys() - {"unlabelled, before"}
    held_out = arrays["val_logits"].astype(np.float32), arrays["val_labels"]
    gamma = finecal.estimate_gamma(MASK, held_out=held_out).gamma
    gained = 100 * (accuracy(arrays, gamma) - accuracy(arrays, 0))
    assert found["held-out"].points == pytest.approx(gained)
    assert found["held-out"].interval_holds is True
    assert found["held-out"].gain >= gained


def test_command_for_honesty(folder, capsys):
    honesty.main([str(folder), "--bootstrap", "3"])
    printed = capsys.readouterr().out
    for regime in regimes.REGIMES.keys() - {"unlabelled, before"}:
        assert re.search(rf"^\| {regime} +\| \d+ / \d+ \(1\)", printed, re.MULTILINE)
    assert re.search(r"^\| no gap is seen +\| 0 \(0\)", printed, re.MULTILINE)
    with pytest.raises(SystemExit):
        honesty.main([str(folder), "--without", "drawn"])


def test_steps_are_taken_out_and_put_back(folder, monkeypatch, capsys):
    steps = ("all of it", "the gap and the log odds of the share", "no test for a gap")
    monkeypatch.setattr(ablation, "STEPS", {name: ablation.STEPS[name] for name in steps})
    held_out = {"held_out": estimators.labelled(estimators.load(folder / "drawn_nogap.npz"), "val")}
    with pytest.warns(finecal.FinecalWarning, match="no gap is seen"):
        before = finecal.estimate_gamma(MASK, **held_out).gamma
    ablation.main([str(folder)])
    with pytest.warns(finecal.FinecalWarning, match="no gap is seen"):
        assert finecal.estimate_gamma(MASK, **held_out).gamma == before == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^\| no test for a gap +\| (?:training|held-out|both) ", printed, re.MULTILINE)) == 3
    assert "by family" in printed


@pytest.mark.parametrize("step", ablation.STEPS)
def test_what_a_step_replaces_is_there(step):
    names, change = ablation.STEPS[step]
    assert set(names) <= regimes.REGIMES.keys()
    for context in change():  # an AttributeError, if it has been renamed
        with context:
            pass
