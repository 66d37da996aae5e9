import warnings

import numpy as np
import pytest
import torch

import finecal

TASKS = np.array([0, 1, 2] * 4)
DOWN = np.array([6, 2, 0])


def samples(rng, tasks, n=300, down=DOWN, task_of_class=TASKS):
    """Samples of classes of the given tasks; each earlier task is pushed down."""
    labels = rng.choice(np.flatnonzero(np.isin(task_of_class, tasks)), n)
    logits = rng.normal(size=(n, len(task_of_class))) + 3 * np.eye(len(task_of_class))[labels]
    return logits - np.asarray(down)[task_of_class], labels


def by_task(bias, tasks=TASKS):
    """Return the bias of each task; all classes of a task have the same."""
    values = [set(np.asarray(bias)[tasks == task].tolist()) for task in range(tasks.max() + 1)]
    assert all(len(value) == 1 for value in values)
    return [value.pop() for value in values]


def warned(*args, **options):
    """Return the biases and finecal's warnings."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        bias = finecal.estimators.task_biases(*args, **options)
    return bias, [warning.message.args[0] for warning in record]


@pytest.fixture
def newest(rng):
    return samples(rng, [2])


@pytest.fixture
def exemplars(rng):
    return samples(rng, [0, 1, 2])


# --- from samples of the newest task ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_held_out", [True, False])
def test_each_earlier_task_has_the_gamma_of_its_pair(newest, is_held_out):
    logits, labels = newest
    first, second, last = by_task(finecal.estimators.task_biases(*newest, TASKS, is_held_out=is_held_out))
    assert last == 0
    for task, bias in enumerate([first, second]):
        pair = np.flatnonzero((task == TASKS) | (TASKS == 2))
        given = logits[:, pair], np.searchsorted(pair, labels)
        gamma = finecal.estimate_gamma(TASKS[pair] == 2, **{"held_out" if is_held_out else "train": given})
        assert bias == np.float32(gamma)
    assert first == pytest.approx(6, abs=1)
    assert second == pytest.approx(2, abs=1)


def test_two_tasks_are_estimate_gamma(rng):
    tasks = np.array([1, 0, 0, 1, 1, 0])
    newest = samples(rng, [1], down=[4, 0], task_of_class=tasks)
    bias = finecal.estimators.task_biases(*newest, tasks, is_held_out=True)
    gamma = np.float32(finecal.estimate_gamma(tasks == 1, held_out=newest))
    assert bias.tolist() == np.where(tasks == 0, gamma, 0).tolist()


def test_a_bias_a_task_beats_the_best_gamma(rng, newest):
    logits, labels = samples(rng, [0, 1, 2], 2000)
    calibrator = finecal.calibrators.ClassBias(finecal.estimators.task_biases(*newest, TASKS, is_held_out=True))
    curve = finecal.tradeoff_curve(logits, labels, TASKS == 2)
    predicted = calibrator(torch.tensor(logits)).argmax(1).numpy()
    assert (predicted == labels).mean() > curve.at(curve.best()).acc_all + 0.05


def test_constants_are_taken_back(newest, exemplars):
    """But that `estimate_gamma` spends less of the seen samples where the gap is larger."""
    constants = np.array([2, -1, 0])[TASKS]
    (logits, labels), (kept, of_kept) = newest, exemplars
    before = finecal.estimators.task_biases(logits, labels, TASKS, is_held_out=True)
    after = finecal.estimators.task_biases(logits + constants, labels, TASKS, is_held_out=True)
    assert after + constants == pytest.approx(before, abs=0.5)
    before = finecal.estimators.task_biases(*newest, TASKS, is_held_out=True, exemplars=exemplars)
    after = finecal.estimators.task_biases(*newest, TASKS, is_held_out=True, exemplars=(kept + constants, of_kept))
    assert after + constants == pytest.approx(before, abs=1e-5)


def test_numbers_of_tasks_are_names(newest):
    """Only the largest number means something."""
    before = finecal.estimators.task_biases(*newest, TASKS, is_held_out=True)
    renamed = np.array([7, 0, 90], dtype=np.int8)[TASKS]
    assert finecal.estimators.task_biases(*newest, renamed, is_held_out=True).tolist() == before.tolist()


def test_order_of_classes_makes_no_difference(rng, newest):
    logits, labels = newest
    order = rng.permutation(len(TASKS))
    before = finecal.estimators.task_biases(logits, labels, TASKS, is_held_out=True)
    after = finecal.estimators.task_biases(logits[:, order], np.argsort(order)[labels], TASKS[order], is_held_out=True)
    assert after == pytest.approx(before[order], abs=1e-5)


@pytest.mark.parametrize("column", [100.0, -100.0, -np.inf, np.nan])
def test_classes_that_are_not_in_use_are_ignored(newest, exemplars, column):
    tasks = np.append(TASKS, [-1, -1])

    def wide(logits):
        return np.append(logits, np.full((len(logits), 2), column), axis=1)

    for kept in (None, exemplars):
        before = finecal.estimators.task_biases(*newest, TASKS, is_held_out=True, exemplars=kept)
        given = None if kept is None else (wide(kept[0]), kept[1])
        after = finecal.estimators.task_biases(wide(newest[0]), newest[1], tasks, is_held_out=True, exemplars=given)
        assert after.tolist() == [*before.tolist(), 0, 0]


def test_masked_classes(newest):
    """-inf in a class of each task in all samples leaves what is estimated from the others."""
    logits, labels = newest
    rows = labels != 2
    masked, kept = logits[rows].copy(), np.arange(12) > 2
    masked[:, ~kept] = -np.inf
    bias = finecal.estimators.task_biases(masked, labels[rows], TASKS, is_held_out=True)
    alone = finecal.estimators.task_biases(logits[rows][:, kept], labels[rows] - 3, TASKS[kept], is_held_out=True)
    assert by_task(bias) == pytest.approx(by_task(alone, TASKS[kept]), abs=1e-5)


def test_a_task_that_is_masked_as_a_whole(newest):
    logits, labels = newest
    logits[:, TASKS == 1] = -np.inf
    with pytest.raises(ValueError, match="task 1: held_out: logits are -inf"):
        finecal.estimators.task_biases(logits, labels, TASKS, is_held_out=True)


def test_a_masked_loss(rng):
    """The newest classes lose against those of the first task, and not against those of the second."""
    newest = samples(rng, [2], down=[-6, 3, 0])
    bias, sentences = warned(*newest, TASKS, is_held_out=True)
    first, second, _ = by_task(bias)
    assert first == pytest.approx(-6, abs=1)
    assert second == pytest.approx(3, abs=1)
    (sentence,) = sentences
    assert sentence.startswith("task_biases: task 0 (absent) against task 2 (seen): the seen classes lose")


def test_the_first_task_has_nothing_to_make_good(newest, exemplars):
    logits, labels = newest
    tasks = np.where(TASKS == 2, 0, -1)
    assert finecal.estimators.task_biases(logits, labels, tasks, is_held_out=True).tolist() == [0] * 12
    kept = exemplars[0][exemplars[1] % 3 == 2], exemplars[1][exemplars[1] % 3 == 2]
    assert finecal.estimators.task_biases(logits, labels, tasks, is_held_out=True, exemplars=kept).tolist() == [0] * 12


def test_what_holds_for_several_tasks_is_said_once(newest):
    logits, labels = newest
    _, sentences = warned(logits[:10], labels[:10], TASKS, is_held_out=True)
    few = [sentence for sentence in sentences if "only 10 labelled samples" in sentence]
    assert [sentence.partition(": only 10")[0] for sentence in few] == [
        "task_biases: tasks 0 and 1 (absent) against task 2 (seen)"
    ]


# --- from exemplars of all tasks --------------------------------------------------------------------------------------


def test_exemplars_decide(newest, exemplars):
    logits, labels = newest
    first, second, last = by_task(finecal.estimators.task_biases(*newest, TASKS, is_held_out=True, exemplars=exemplars))
    assert last == 0
    assert first == pytest.approx(6, abs=1)
    assert second == pytest.approx(2, abs=1)
    higher = logits + 5 * (TASKS == 2), labels
    assert by_task(finecal.estimators.task_biases(*higher, TASKS, is_held_out=False, exemplars=exemplars)) == [
        first,
        second,
        last,
    ]


def test_two_tasks_with_exemplars_are_search_gamma(rng):
    tasks = np.array([5, 3, 3, 5, 5, 3])
    newest, kept = (samples(rng, which, down=[0, 0, 0, 4, 0, 0], task_of_class=tasks) for which in ([5], [3, 5]))
    bias = finecal.estimators.task_biases(*newest, tasks, is_held_out=True, exemplars=kept)
    assert bias[1] == pytest.approx(float(finecal.search_gamma(*kept, tasks == 5)), abs=1e-5)


def test_tasks_of_one_class(rng):
    tasks = np.arange(4)
    newest, kept = (samples(rng, which, 200, [5, 3, 1, 0], tasks) for which in ([3], [0, 1, 2, 3]))
    bias = finecal.estimators.task_biases(*newest, tasks, is_held_out=True, exemplars=kept)
    assert bias.tolist() == pytest.approx([5, 3, 1, 0], abs=1.2)
    with pytest.raises(ValueError, match="one class in the newest task, 3; without exemplars"):
        finecal.estimators.task_biases(*newest, tasks, is_held_out=True)


def test_few_exemplars(rng, newest):
    kept = samples(rng, [0, 1, 2], 200)
    rows = np.r_[np.flatnonzero(kept[1] % 3 == 0)[:3], np.flatnonzero(kept[1] % 3)]
    _, sentences = warned(*newest, TASKS, is_held_out=True, exemplars=(kept[0][rows], kept[1][rows]))
    assert sentences == [
        "task_biases: exemplars: task 0 of 3 has fewer than 20 samples (task 0: 3), so biases are rough"
    ]


# --- types ------------------------------------------------------------------------------------------------------------


def test_types(newest, exemplars, device, dtype):
    logits, labels = (torch.tensor(value, device=device) for value in newest)
    kept = torch.tensor(exemplars[0], device=device).to(dtype), torch.tensor(exemplars[1], device=device)
    for given in (None, kept):
        bias = finecal.estimators.task_biases(logits.to(dtype), labels, TASKS, is_held_out=True, exemplars=given)
        assert bias.dtype == torch.float32
        assert bias.device.type == device.type
        of_numpy = finecal.estimators.task_biases(
            *newest, TASKS, is_held_out=True, exemplars=exemplars if given else None
        )
        assert of_numpy.dtype == np.float32
        assert bias.cpu().numpy() == pytest.approx(of_numpy, abs=0.5 if dtype == torch.bfloat16 else 0.2)
        assert finecal.calibrators.ClassBias(bias)(logits).shape == logits.shape
    assert isinstance(
        finecal.estimators.task_biases(logits.tolist(), labels.tolist(), TASKS.tolist(), is_held_out=True), np.ndarray
    )


def test_inputs_stay_as_they_are(newest, exemplars):
    given = [*newest, TASKS, *exemplars]
    copies = [value.copy() for value in given]
    for value in given:
        value.flags.writeable = False
    finecal.estimators.task_biases(*newest, TASKS, is_held_out=True, exemplars=exemplars)
    finecal.estimators.task_biases(*newest, TASKS, is_held_out=True)
    assert all(np.array_equal(*pair) for pair in zip(given, copies, strict=True))
    TASKS.flags.writeable = True


@pytest.mark.parametrize("is_held_out", [True, False])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["array", "tensor"])
def test_samples_in_place_of_logits_and_labels(newest, exemplars, kind, is_held_out):
    newest, exemplars = ([kind(array) for array in given] for given in (newest, exemplars))
    samples = finecal.Samples(*newest)
    for kept, whole in ((None, None), (exemplars, finecal.Samples(*exemplars))):
        expected = finecal.estimators.task_biases(*newest, TASKS, is_held_out=is_held_out, exemplars=kept)
        found = finecal.estimators.task_biases(samples, TASKS, is_held_out=is_held_out, exemplars=whole)
        assert type(found) is type(expected)
        assert found.tolist() == expected.tolist()


def test_groups_and_logits_from_before_count_as_in_estimate_gamma(rng, newest):
    """One class of either earlier task wins more often than it did before."""
    logits, labels = (np.repeat(array, 3, axis=0) for array in newest)
    before = logits + rng.normal(size=logits.shape) + DOWN[TASKS]
    logits[:, :2] += 2
    given = {"groups": np.arange(900) // 3, "pretrained_logits": before}
    found, _ = warned(finecal.Samples(logits, labels, **given), TASKS, is_held_out=True)
    for task in (0, 1):
        pair = np.flatnonzero((task == TASKS) | (TASKS == 2))
        of_pair = given | {"pretrained_logits": before[:, pair]}
        samples = finecal.Samples(logits[:, pair], np.searchsorted(pair, labels), **of_pair)
        assert found[task] == np.float32(finecal.estimate_gamma(TASKS[pair] == 2, held_out=samples))
    for name in given:
        rest = {other: value for other, value in given.items() if other != name}
        without, _ = warned(finecal.Samples(logits, labels, **rest), TASKS, is_held_out=True)
        assert without.tolist() != found.tolist()


def test_what_comes_beside_samples(newest):
    logits, labels = newest
    with pytest.raises(TypeError, match="logits has no labels"):
        finecal.estimators.task_biases(finecal.Samples(logits), TASKS, is_held_out=True)
    with pytest.raises(TypeError, match="exemplars has no labels"):
        finecal.estimators.task_biases(*newest, TASKS, is_held_out=True, exemplars=finecal.Samples(logits))
    with pytest.raises(TypeError, match="logits is a Samples, which has its labels"):
        finecal.estimators.task_biases(
            finecal.Samples(logits, labels), labels=labels, task_of_class=TASKS, is_held_out=True
        )


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        (TASKS == 2, TypeError, "task_of_class has dtype bool; pass the number of each class's task"),
        (TASKS.astype(float), TypeError, "task_of_class has dtype float64"),
        (TASKS[:11], ValueError, "task_of_class has 11 entries for logits of 12 classes"),
        (TASKS[None], ValueError, r"task_of_class has shape \(1, 12\)"),
        (TASKS - 2, ValueError, "task_of_class contains -2; tasks are numbered from 0"),
        (TASKS * 0 - 1, ValueError, "task_of_class is -1 for all classes"),
        (2 - TASKS, ValueError, r"labels contain class \d+ of task 0 \(300 of 300 samples\).* newest task is 2"),
        (np.where(TASKS == 2, -1, TASKS), ValueError, "that no task has brought yet .* newest task is 1"),
    ],
)
def test_wrong_tasks(newest, tasks, error, message):
    with pytest.raises(error, match=message):
        finecal.estimators.task_biases(*newest, tasks, is_held_out=True)


def test_samples_of_a_memory_among_those_of_the_newest_task(newest, exemplars):
    mixed = [np.concatenate(pair) for pair in zip(newest, exemplars, strict=True)]
    with pytest.raises(ValueError, match=r"those of a memory as exemplars"):
        finecal.estimators.task_biases(*mixed, TASKS, is_held_out=True)


def test_wrong_samples(newest):
    logits, labels = newest
    with pytest.raises(ValueError, match="logits are empty"):
        finecal.estimators.task_biases(logits[:0], labels[:0], TASKS, is_held_out=True)
    with pytest.raises(ValueError, match="logits contain NaN"):
        finecal.estimators.task_biases(
            np.where(np.eye(*logits.shape) > 0, np.nan, logits), labels, TASKS, is_held_out=True
        )
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    with pytest.raises(ValueError, match="look like probabilities"):
        finecal.estimators.task_biases(probabilities, labels, TASKS, is_held_out=True)
    with pytest.raises(TypeError, match="is_held_out is a str"):
        finecal.estimators.task_biases(logits, labels, TASKS, is_held_out="yes")
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'is_held_out'"):
        finecal.estimators.task_biases(logits, labels, TASKS)


def test_wrong_exemplars(newest, exemplars):
    logits, labels = exemplars
    tasks = np.append(TASKS, -1)
    wide = np.append(newest[0], np.zeros((300, 1)), axis=1), newest[1]

    def call(*kept, given=newest, tasks=TASKS):
        finecal.estimators.task_biases(*given, tasks, is_held_out=True, exemplars=kept)

    with pytest.raises(TypeError, match=r"exemplars is a tuple of 3 items; pass a pair, exemplars=\(logits, labels\)"):
        call(logits, labels, labels)
    with pytest.raises(ValueError, match="exemplars: there is no sample of task 1"):
        call(logits[labels % 3 != 1], labels[labels % 3 != 1])
    with pytest.raises(ValueError, match="exemplars: task_of_class has 13 entries for logits of 12 classes"):
        call(logits, labels, given=wide, tasks=tasks)
    with pytest.raises(ValueError, match=r"exemplars: labels contain class 12, .* not in use \(1 of 300 samples\)"):
        call(np.append(logits, logits[:, :1], axis=1), np.append(labels[:-1], 12), given=wide, tasks=tasks)
    with pytest.raises(ValueError, match="exemplars: logits contain NaN"):
        call(np.where(np.eye(*logits.shape) > 0, np.nan, logits), labels)


def test_a_task_that_is_given_up_is_named(rng):
    """3000 of 3060 exemplars are of the newest task, and the logits tell little."""
    classes = [np.flatnonzero(task == TASKS) for task in range(3)]
    labels = np.concatenate([rng.choice(classes[task], n) for task, n in enumerate((30, 30, 3000))])
    logits = rng.normal(size=(3060, 12)) + 0.5 * np.eye(12)[labels]
    newest = logits[60:], labels[60:]
    with pytest.warns(finecal.FinecalWarning, match="exemplars: the best biases give up tasks 0 and 1: no sample of"):
        bias = finecal.estimators.task_biases(*newest, TASKS, is_held_out=True, exemplars=(logits, labels))
    predicted = TASKS[(logits + bias).argmax(1)]
    right = (logits + bias).argmax(1) == labels
    assert not right[:60].any()
    assert (predicted == 2).mean() > 0.99
