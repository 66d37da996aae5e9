"""What a diagnosis says: verdict, sentences and tables."""

import numpy as np
import pytest
import torch
from scipy import stats

import finecal
from before_and_after import MASK, diagnosed, linear_problem, reference_samples


@pytest.mark.parametrize(
    ("shift", "shuffle", "verdict", "helps"),
    [
        (0.0, False, "no gap", False),
        (30.0, False, "calibration helps", True),
        (-30.0, False, "calibration helps", True),
        (30.0, True, "damaged", True),
        (-30.0, True, "calibration helps", True),
    ],
)
def test_known_damage(rng, shift, shuffle, verdict, helps):
    diagnosis = diagnosed(linear_problem(rng, noise=0.3, shift=shift, shuffle=shuffle))
    assert (diagnosis.verdict, diagnosis.calibration_helps, diagnosis.damaged) == (verdict, helps, shuffle)
    if not shuffle:
        assert diagnosis.oracle.acc_all == pytest.approx(diagnosis.pretrained.acc_all, abs=0.01)
        assert diagnosis.absent_change == (0, 0, (~MASK[linear_problem(np.random.default_rng(0))[1]]).sum())
    if shift:
        assert diagnosis.oracle.gamma == pytest.approx(shift, abs=5)
    start = {
        "no gap": "No gap: ",
        "calibration helps": "Calibration will help: ",
        "damaged": "Absent classes' features or head rows were damaged (told apart ",
    }
    assert diagnosis.sentences[0].startswith(start[verdict])


def test_damage_that_calibration_cannot_ease():
    # every absent sample is taken for the other absent class; the groups are told apart without fault
    labels = np.arange(200) % 4
    old = 9 * np.eye(4)[labels]
    new = old[:, [0, 1, 3, 2]]
    diagnosis = finecal.diagnose(finecal.Samples(new, labels, pretrained_logits=old), [True, True, False, False])
    assert (diagnosis.verdict, diagnosis.calibration_helps) == ("damaged", False)
    assert diagnosis.sentences[:2] == (
        "Absent classes' features or head rows were damaged (told apart among themselves, Acc_U/U: 100.0 -> 0.0 %, "
        "-100.0 ± 10.0 points), and calibration will not help: even the oracle gamma = 8 changes Acc_Y/Y by +0.0 ± 0.0 "
        "points, which is within noise or too little to matter.",
        "Part of what told the absent classes apart was lost, and no gamma brings it back; Acc_U/Y cannot exceed "
        "Acc_U/U = 0.0 %.",
    )


@pytest.mark.parametrize(("spoiled", "verdict"), [(7, "calibration helps"), (29, "calibration helps"), (30, "damaged")])
def test_the_larger_of_gain_and_damage_is_the_verdict(spoiled, verdict):
    # worked by hand: of 60 absent samples gamma brings back 30, which a seen class wins; of the other 30, `spoiled` are
    # taken for the other absent class, where no gamma helps
    labels = np.repeat([0, 2, 2], [40, 30, 30])
    old = 9 * np.eye(4)[labels]
    new = old.copy()
    new[40:70, 0] = 12.0
    new[70 : 70 + spoiled, 3] = 11.0
    diagnosis = finecal.diagnose(finecal.Samples(new, labels, pretrained_logits=old), [True, True, False, False])
    assert diagnosis.gain == (30, 0, 100)
    assert diagnosis.absent_change == (0, spoiled, 60)
    assert diagnosis.calibration_helps
    assert diagnosis.damaged
    assert diagnosis.verdict == verdict
    text = " ".join(str(diagnosis).split())
    assert ("Absent classes' features or head rows were damaged" in text) is (verdict == "damaged")
    lost = "Part of what told the absent classes apart was lost, and no gamma brings it back"
    if verdict == "calibration helps":  # the first sentence is about the gain, but the damage is not kept back
        assert text.startswith("verdict: calibration helps Calibration will help: the oracle gamma = ")
        assert f"{lost}: Acc_U/U 100.0 -> {100 - spoiled / 0.6:.1f} % (-{spoiled / 0.6:.1f} ± " in text
        assert diagnosis.next_step == "gamma"
        assert "in the median. For part of the damage, try search_interpolation, for weights between" in text
    else:
        assert f"{lost}; Acc_U/Y cannot exceed" in text
        assert diagnosis.next_step == "interpolation"


def test_absent_classes_told_apart_better_are_said_to(rng):
    features, labels, (old, zero), _ = linear_problem(rng, noise=0.3)
    worse = old + 3 * rng.normal(size=old.shape)
    given = {"pretrained_features": features, "features": rng.normal(size=features.shape)}
    given |= {"reference": reference_samples(labels, features=features, pretrained_features=features)}
    diagnosis = diagnosed((features, labels, (worse, zero), (old, zero)), **given)
    assert diagnosis.absent_change.direction == 1
    assert diagnosis.sentences[1].startswith("The absent classes are told apart better than before fine-tuning: ")
    # and by the head alone
    assert diagnosis.sentences[-1].endswith("the absent classes' features were damaged.")


def test_a_change_below_a_point_is_not_called_noise():
    labels = np.arange(100_000) % 4
    old = 9 * np.eye(4)[labels]
    new = old.copy()
    new[labels == 2, 3] += 99 * (np.arange(25_000) < 400)
    diagnosis = finecal.diagnose(finecal.Samples(new, labels, pretrained_logits=old), [True, True, False, False])
    assert not diagnosis.damaged
    assert diagnosis.sentences[1].startswith(
        "How well the absent classes are told apart changed by no more than noise or a point: Acc_U/U 100.0 -> 99.2 %"
    )


def test_luck_is_no_gap():
    # without a gap, the best gamma gains something on most samples: rarely enough to be called one
    rng = np.random.default_rng(1)
    called, gains, trials = 0, [], 300
    for _ in range(trials):
        labels = rng.integers(0, 4, 150)
        logits = rng.normal(size=(150, 4)) + 0.8 * np.eye(4)[labels]
        diagnosis = finecal.diagnose(finecal.Samples(logits, labels, pretrained_logits=logits), [True, False] * 2)
        called += diagnosis.calibration_helps
        gains.append(diagnosis.gain.change)
    assert np.median(gains) > 0.01
    assert called <= stats.binom.ppf(0.99, trials, 0.05)
    assert stats.rayleigh.sf(2.72) == pytest.approx(0.025, abs=5e-4)


def test_a_gain_that_may_be_luck_asks_for_more_samples():
    labels = np.array([0, 0, 1])
    logits = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    with pytest.warns(finecal.FinecalWarning, match="there is only one absent class.*does not show damage"):
        diagnosis = finecal.diagnose(finecal.Samples(logits, labels, pretrained_logits=logits), [True, False])
    assert (diagnosis.verdict, diagnosis.gain) == ("no gap", (1, 0, 3))
    assert "A gain of this size may be luck in so few samples: more labelled samples would tell." in diagnosis.sentences


def test_ncm_tells_a_damaged_head_from_damaged_features(rng):
    problem = linear_problem(rng, noise=0.3, shift=30.0, shuffle=True)
    features, labels = problem[:2]
    reference = reference_samples(labels, features=features, pretrained_features=features)
    given = {"pretrained_features": features, "reference": reference}
    head_only = diagnosed(problem, features=features, **given)
    assert head_only.sentences[0].startswith("Absent classes were damaged (told apart ")
    assert head_only.sentences[-1].endswith("the absent classes' features changed by no more than noise or a point.")
    noisy = np.where(MASK[labels][:, None], features, rng.normal(size=features.shape))
    both = diagnosed(problem, features=noisy, **given)
    assert both.sentences[0].startswith("Absent classes' features were damaged (told apart ")
    assert both.sentences[-1].endswith("the absent classes' features were damaged.")


def test_prints_for_a_terminal():
    # worked by hand: each sample is 3 times its class's unit vector, and fine-tuning shifts all its seen logits by 1.5
    # and all its absent ones by -1.5
    labels = np.arange(60) % 4
    features, old = 3 * np.eye(4)[labels], np.eye(4)
    new = old + np.array([0.5, 0.5, -0.5, -0.5])[:, None]
    both = {"features": features, "pretrained_features": features}
    diagnosis = finecal.diagnose(
        finecal.Samples(features @ new.T, labels, pretrained_logits=features @ old.T, **both),
        [True, True, False, False],
        reference=reference_samples(labels, 4, **both),
        head=(new, None),
        pretrained_head=(old, None),
    )
    text = str(diagnosis)
    assert " ".join(text.partition("\n\n")[0].split()) == (
        "verdict: calibration helps Calibration will help: the oracle gamma = 3 gives accuracy on all classes "
        "(Acc_Y/Y) 50.0 -> 100.0 % (+50.0 ± 9.1 points), on absent ones (Acc_U/Y) 0.0 -> 100.0 %, on seen ones "
        "(Acc_S/Y) 100.0 -> 100.0 %. How well the absent classes are told apart changed by no more than noise or a "
        "point: Acc_U/U 100.0 -> 100.0 % (+0.0 ± 0.0 points); Acc_U/Y cannot exceed Acc_U/U = 100.0 %. Against the "
        "model before fine-tuning, the oracle gamma leaves Acc_Y/Y +0.0 points, Acc_U/Y +0.0 points and Acc_S/Y +0.0 "
        "points. On samples of absent classes the gap between the largest seen and absent logits (the label's own left "
        "out) went from 0 to 3 in fine-tuning. By nearest class means (NCM), which do without the head, Acc_U/U 100.0 "
        "-> 100.0 % (+0.0 ± 0.0 points): the absent classes' features changed by no more than noise or a point. Next "
        "step: estimate_gamma. On these samples gamma gains up to +50.0 points. Then fit_prototypes, if there are "
        "unlabelled samples: on models of the benchmark it gained 1.8 points more in the median."
    )
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| accuracy, %                      | gamma | Acc_Y/Y | Acc_S/Y | Acc_U/Y | Acc_S/S | Acc_U/U |  AUSUC |",
        "| -------------------------------- | ----: | ------: | ------: | ------: | ------: | ------: | -----: |",
        "| before fine-tuning               |     0 |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| fine-tuned                       |     0 |    50.0 |   100.0 |     0.0 |   100.0 |   100.0 | 1.0000 |",
        "| fine-tuned, oracle gamma         |     3 |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| NCM, features before fine-tuning |       |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| NCM, features fine-tuned         |       |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| mean logits of samples         | largest seen | largest absent |  gap | gap of means |",
        "| ------------------------------ | -----------: | -------------: | ---: | -----------: |",
        "| with seen labels, before       |         0.00 |           0.00 | 0.00 |         0.00 |",
        "| with seen labels, fine-tuned   |         1.50 |          -1.50 | 3.00 |         3.00 |",
        "| with absent labels, before     |         0.00 |           0.00 | 0.00 |         0.00 |",
        "| with absent labels, fine-tuned |         1.50 |          -1.50 | 3.00 |         3.00 |",
        "| head rows | norm before | norm fine-tuned | cosine of updates |",
        "| --------- | ----------: | --------------: | ----------------: |",
        "| seen      |        1.00 |            1.73 |              1.00 |",
        "| absent    |        1.00 |            1.00 |              1.00 |",
    ]
    assert text.splitlines()[14] == "60 labelled samples: 30 of seen classes, 30 of absent ones"


@pytest.mark.parametrize(
    ("shift", "shuffle", "step", "sentence"),
    [
        (0.0, False, "none", "Next step: none. "),
        (30.0, False, "gamma", "Next step: estimate_gamma. On these samples gamma gains up to "),
        (-30.0, True, "gamma", "Next step: estimate_gamma. On these samples gamma gains up to "),
        (30.0, True, "interpolation", "Next step: search_interpolation, "),
    ],
)
def test_next_step(rng, shift, shuffle, step, sentence):
    diagnosis = diagnosed(linear_problem(rng, noise=0.3, shift=shift, shuffle=shuffle))
    assert diagnosis.next_step == step
    assert diagnosis.advice.startswith(sentence)
    assert diagnosis.advice in " ".join(str(diagnosis).split())
    assert diagnosis.with_prototypes is diagnosis.prototypes_change is None


def test_prototypes_are_measured():
    # worked by hand: gamma = 8 parts the groups; every fourth sample of class 2 is taken for class 3 until prototypes
    # add what its feature says
    labels = np.arange(80) % 4
    old = 9 * np.eye(4)[labels]
    wrong = (labels == 2) & (np.arange(80) % 16 == 2)
    new = old + [8.0, 8, 0, 0] * np.ones((80, 1))
    new[wrong, 3] = 10.0
    features = wrong[:, None].astype(float)
    prototypes = finecal.calibrators.Prototypes([True, True, False, False], 8.0, [[0.0], [0.0], [0.0], [-9.0]], [0.0])
    samples = finecal.Samples(new, labels, pretrained_logits=old, features=features)
    helped = finecal.diagnose(samples, [True, True, False, False], prototypes=prototypes)
    assert (helped.oracle.acc_all, helped.with_prototypes.acc_all) == (75 / 80, 1.0)
    assert helped.prototypes_change == (5, 0, 80)
    assert helped.with_prototypes.gamma != helped.oracle.gamma
    assert "fine-tuned, prototypes" in str(helped)


def test_prototypes_that_change_nothing(rng):
    features, labels, old, new = linear_problem(rng, noise=0.3, shift=30.0)
    nothing = finecal.calibrators.Prototypes(MASK, 30.0, np.zeros((7, 12)), np.zeros(12))
    diagnosis = diagnosed((features, labels, old, new), features=features, prototypes=nothing)
    assert diagnosis.next_step == "gamma"
    assert diagnosis.prototypes_change[:2] == (0, 0)
    assert diagnosis.advice.startswith("Next step: gamma alone. It gains up to ")
    assert diagnosis.advice.endswith("prototypes change that by +0.0 ± 0.0 points.")


def test_prototypes_are_the_next_step():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    old = 9 * np.eye(4)[labels]
    wrong = (labels >= 2) & (rng.random(400) < 0.3)
    new = old + [12.0, 12, 0, 0] * np.ones((400, 1))
    new[wrong] = new[wrong][:, [0, 1, 3, 2]]
    features = np.where(wrong, np.where(labels == 2, 1.0, -1.0), 0.0)[:, None]
    prototypes = finecal.calibrators.Prototypes([True, True, False, False], 12.0, [[0.0], [0.0], [9.0], [-9.0]], [0.0])
    before = np.where(wrong[:, None], old[:, [0, 1, 3, 2]], old)  # as bad before, so that nothing was damaged
    samples = finecal.Samples(new, labels, pretrained_logits=before, features=features)
    diagnosis = finecal.diagnose(samples, [True, True, False, False], prototypes=prototypes)
    assert (diagnosis.verdict, diagnosis.next_step) == ("calibration helps", "prototypes")
    gain = f"{100 * diagnosis.gain.change:+.1f} points"
    more = f"and they gain {diagnosis.prototypes_change} more."
    assert diagnosis.advice == f"Next step: prototypes. On these samples gamma gains up to {gain}, {more}"
    assert diagnosis.to_dict()["with_prototypes"]["acc_all"] == 1.0


def test_wrong_prototypes(rng):
    problem = linear_problem(rng)
    with pytest.raises(ValueError, match="prototypes need features"):
        diagnosed(problem, prototypes=torch.nn.Identity())
    with pytest.raises(TypeError, match="prototypes is a int; pass what fit_prototypes returned"):
        diagnosed(problem, features=problem[0], prototypes=1)


def test_a_group_without_samples_prints_a_dash():
    # the absent reference class is another than that of the only absent sample
    logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    both = {"features": logits, "pretrained_features": logits}
    samples = finecal.Samples(logits, [0, 1], pretrained_logits=logits, **both)
    with pytest.warns(finecal.FinecalWarning, match=r"reference lacks 1 of 3 classes \(class 1\)"):
        diagnosis = finecal.diagnose(samples, [True, False, False], reference=reference_samples([0, 2], 3, **both))
    assert diagnosis.ncm_absent_change == (0, 0, 0)
    assert "| NCM, features fine-tuned         |       |   100.0 |   100.0 |       - |" in str(diagnosis)
