"""The Python that the guides by task show runs, and what these say of finecal is so."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import finecal
from pages import blocks

NUM_CLASSES, VARIANT = 1000, 200


@pytest.fixture
def imagenet(rng, tmp_path, monkeypatch):
    """Folders of 1000 wnids, 200 of which are the variant's and 100 seen, and logits whose seen columns have grown."""
    monkeypatch.chdir(tmp_path)
    wnids = sorted(f"n{number:08}" for number in rng.choice(10**7, NUM_CLASSES, replace=False))
    columns = np.sort(rng.choice(NUM_CLASSES, VARIANT, replace=False))
    seen = np.sort(rng.choice(VARIANT, VARIANT // 2, replace=False))
    for folder, chosen in {"imagenet/train": range(NUM_CLASSES), "imagenet-r": columns}.items():
        for column in chosen:
            (tmp_path / folder / wnids[column]).mkdir(parents=True)
    (tmp_path / "imagenet-r" / "README.txt").touch()
    seen_wnids = [wnids[column] for column in columns[seen]]
    (tmp_path / "seen.txt").write_text("\n".join(seen_wnids))

    def samples(classes, grown):
        labels = rng.choice(classes, 2000)
        logits = rng.normal(scale=1.5, size=(2000, NUM_CLASSES))
        logits[np.arange(2000), columns[labels]] += 6
        logits[:, columns[grown]] += 4
        return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)

    names = {"model": torch.nn.Identity(), "dataset": SimpleNamespace(classes=sorted(seen_wnids))}
    everything = np.arange(VARIANT)
    splits = {"held_out": (seen, seen), "test": (everything, seen), "train": (everything, everything)}
    for split, classes_and_grown in splits.items():
        names[f"{split}_logits"], names[f"{split}_labels"] = samples(*classes_and_grown)
    names["reindexed_labels"] = torch.searchsorted(torch.tensor(seen), names["held_out_labels"])
    return names


def masked(names, split):
    logits = torch.full_like(names[f"{split}_logits"], -torch.inf)
    logits[:, names["columns"]] = names[f"{split}_logits"][:, names["columns"]]
    return logits, names["columns"][names[f"{split}_labels"]]


def run(page, names, count=None):
    """Run the first blocks of a page, by default all; return the rest."""
    shown = blocks(f"docs/how-to/{page}.md", "python")
    for block in shown[:count]:
        exec(block, names)
    return shown[len(shown) if count is None else count :]


def test_python_on_imagenet_variants_runs(imagenet):
    rest = run("imagenet-variants", imagenet, 3)
    names, columns = imagenet, imagenet["columns"]
    assert [names["wnids"][column] for column in columns] == names["variant"]
    estimate, seen_mask = names["estimate"], names["seen_mask"]
    report = finecal.evaluate(names["test_logits"][:, columns], names["test_labels"], seen_mask, estimate)
    assert report.acc_all > finecal.evaluate(names["test_logits"][:, columns], names["test_labels"], seen_mask).acc_all
    sliced = names["calibrated"](names["test_logits"]).argmax(1)
    assert float((sliced == names["test_labels"]).float().mean()) == pytest.approx(report.acc_all)

    exec(rest[0], names)
    assert torch.equal(names["classes"], columns[sliced])
    exec(rest[1], names)
    assert names["same"].gamma == pytest.approx(estimate.gamma)

    exec(rest[2], names)  # fine-tuned on all 200
    assert int(names["seen_mask"].sum()) == VARIANT
    assert names["seen_mask"][columns].all()
    assert 2 < names["estimate"].gamma < 6

    exec(rest[3], names)
    assert torch.equal(names["labels"], columns[names["held_out_labels"]])
    assert np.array_equal(names["seen_mask"].numpy(), names["seen_mask_of_1000"])
    in_slice = torch.tensor([names["variant"].index(wnid) for wnid in names["dataset"].classes])
    assert torch.equal(in_slice[names["reindexed_labels"]], names["held_out_labels"])

    exec(rest[4], names)
    assert names["to_column"][:4].tolist() == [0, 1, 10, 100]
    exec(rest[5], names)
    assert torch.equal(names["merged"][:, 0], names["test_logits"][:, [409, 530]].max(1).values)
    assert len(rest) == 6


def test_minus_infinity_is_as_good_as_a_slice(imagenet):
    run("imagenet-variants", imagenet, 4)
    names, columns = imagenet, imagenet["columns"]

    def both(split):
        sliced = names[f"{split}_logits"][:, columns], names[f"{split}_labels"], names["seen_mask"]
        return sliced, (*masked(names, split), names["seen_mask_of_1000"])

    def gammas(estimator, split, **options):
        return [estimator(*given, **options).gamma for given in both(split)]

    gap_estimators = (finecal.average_logit_gap, finecal.max_logit_gap, finecal.residual_gap, finecal.mixed_pair_gap)
    for estimator in (*gap_estimators, finecal.seen_budget_gamma):
        sliced, of_1000 = gammas(estimator, "held_out")
        assert of_1000 == pytest.approx(sliced, rel=1e-5)
    sliced, of_1000 = gammas(finecal.search_gamma, "test")
    assert of_1000 == sliced
    given = zip(both("held_out"), both("test"), strict=True)
    unlabelled = [
        (
            finecal.mixture_gamma(held_out[0], test[0], test[2]).gamma,
            finecal.known_share_gamma(test[0], test[2], 0.5).gamma,
            finecal.tradeoff_curve(*test).ausuc,
        )
        for held_out, test in given
    ]
    assert unlabelled[0] == unlabelled[1]

    _, (logits, labels, mask) = both("test")
    calibrated = finecal.AdditiveBias(mask, 4.0)(logits)
    assert torch.equal(calibrated == -torch.inf, logits == -torch.inf)
    left_in = finecal.tradeoff_curve(names["test_logits"], labels, mask)
    alone = finecal.tradeoff_curve(logits, labels, mask)
    assert left_in.best() < alone.best()
    assert left_in.at(left_in.best()).acc_all < alone.at(alone.best()).acc_all


def test_warnings_of_reindexed_labels(imagenet):
    run("imagenet-variants", imagenet, 4)
    logits, labels, mask = (imagenet[name] for name in ("held_out_logits", "reindexed_labels", "seen_mask_of_1000"))
    with pytest.warns(finecal.FinecalWarning, match="look re-indexed"):
        finecal.evaluate(logits, labels, mask)
    with (
        pytest.warns(finecal.FinecalWarning, match="look re-indexed"),
        pytest.raises(ValueError, match="labels contain absent class"),
    ):
        finecal.estimate_gamma(mask, held_out=(logits, labels))
    own = finecal.seen_mask_from_labels(labels, NUM_CLASSES)
    with pytest.warns(finecal.FinecalWarning) as caught:
        finecal.estimate_gamma(own, held_out=(logits, labels))
    assert any("told apart, hardly more than by guessing" in str(warning.message) for warning in caught)
    many = imagenet["test_logits"].repeat(20, 1), imagenet["test_labels"].repeat(20)
    with pytest.warns(finecal.FinecalWarning, match="are told apart within their own group, where guessing gives"):
        report = finecal.evaluate(*many, mask)
    assert report.acc_all < 0.02
    assert max(report.acc_seen_within, report.acc_absent_within) < 0.05


def test_python_on_class_incremental_runs(rng, capsys):
    """Three tasks of four classes, pushed down by 6, 2 and 0, and a class that no task has brought yet."""
    task_of = torch.tensor([0, 1, 2] * 4 + [3])

    def samples(tasks, count=600):
        labels = rng.choice(np.flatnonzero(np.isin(task_of, tasks)), count)
        logits = rng.normal(size=(count, 13)) + 4 * np.eye(13)[labels] + np.array([-6, -2, 0, 9])[task_of]
        return torch.tensor(logits), torch.tensor(labels)

    names = {"task_of": task_of, "task": 2}
    for split, tasks in {"held_out": [2], "test": [0, 1, 2], "exemplar": [0, 1, 2]}.items():
        names[f"{split}_logits"], names[f"{split}_labels"] = samples(tasks)
    rest = run("class-incremental", names, 1)
    assert names["known"].tolist() == list(range(12))
    assert names["seen_mask"].tolist() == [False, False, True] * 4
    test = names["in_use"](names["test_logits"], names["test_labels"])
    one = finecal.evaluate(*test, names["seen_mask"], names["estimate"])

    exec(rest[0], names)
    first, second, last = names["calibrator"].bias[:3].tolist()
    assert last == 0
    assert first == pytest.approx(6, abs=1)
    assert second == pytest.approx(2, abs=1)
    per_task = finecal.evaluate(names["calibrator"](test[0]), test[1], names["seen_mask"])
    best = finecal.tradeoff_curve(*test, names["seen_mask"])
    assert per_task.acc_all > best.at(best.best()).acc_all >= one.acc_all
    shown = capsys.readouterr().out
    assert f"{100 * per_task.acc_absent:.1f}" in shown

    exec(rest[1], names)
    by_class = finecal.evaluate(names["calibrator"](test[0]), test[1], names["seen_mask"])
    assert by_class.acc_all > best.at(best.best()).acc_all
    assert float(names["gamma"]) == pytest.approx(best.best(), abs=1.5)
    exec(rest[2], names)
    curve = finecal.tradeoff_curve(*test, names["seen_mask"])
    for gamma in (names["by_mixture"], names["by_share"]):
        assert curve.at(gamma).acc_all > curve.at(0.0).acc_all
    assert len(rest) == 3


def test_python_on_zero_shot_runs(rng, capsys):
    """Twenty classes with a description each, of which a training raises the scores of those that it saw."""
    seen_mask = torch.arange(20) < 16

    def samples(classes):
        labels = torch.tensor(rng.choice(classes, 800))
        return torch.tensor(rng.normal(size=(800, 20))) + 3 * torch.eye(20)[labels], labels

    def fit(mask):
        return lambda inputs: inputs + 3 * mask

    inputs, labels = samples(20)
    names = {"seen_mask": seen_mask, "fit": fit, "factor": 2.5, "gamma": 2.5, "proportion": 0.25}
    names |= {"model": fit(seen_mask), "test_logits": fit(seen_mask)(inputs), "test_labels": labels}
    names["held_out_inputs"], names["held_out_labels"] = samples(16)
    rest = run("zero-shot", names, 2)
    assert torch.equal(names["stacked"].argmax(1), names["classes"])
    report = finecal.evaluate(names["test_logits"], labels, seen_mask, 2.5, average="macro")
    assert f"harmonic mean {100 * report.harmonic_mean:.1f} %" in capsys.readouterr().out

    curve = finecal.tradeoff_curve(names["test_logits"], labels, seen_mask, average="macro")
    oracle = curve.at(curve.best("harmonic")).harmonic_mean
    exec(rest[0], names)
    assert "harmonic" in names["gamma"].method
    assert curve.at(names["gamma"]).harmonic_mean > oracle - 0.03 > curve.at(0.0).harmonic_mean
    exec(rest[1], names)
    assert [int((seen_mask & ~fold.pseudo_seen_mask).sum()) for fold in names["folds"]] == [4, 4, 4]
    assert curve.at(names["gamma"]).harmonic_mean > oracle - 0.03
    names["model"] = torch.nn.Identity()
    exec(rest[2], names)
    predicted = names["calibrated"](names["test_logits"]).argmax(1)
    assert torch.equal(predicted, finecal.predict(names["test_logits"], seen_mask, names["gamma"]))
    assert len(rest) == 3


def test_no_gap_is_seen_without_a_push(rng):
    """Of absent classes that took no part in the training."""
    seen_mask, labels = torch.arange(20) < 16, torch.tensor(rng.integers(16, size=800))
    logits = torch.tensor(rng.normal(size=(800, 20))) + 3 * torch.eye(20)[labels]
    with pytest.warns(finecal.FinecalWarning, match="no gap is seen"):
        assert finecal.estimate_gamma(seen_mask, held_out=(logits, labels)).gamma == 0


def test_folds_count_samples_alike(rng):
    """Samples of one class, given twice, count twice."""
    mask, pseudo = torch.arange(16) < 12, torch.arange(16) < 6
    labels = torch.arange(12).repeat(40)
    logits = torch.tensor(rng.normal(size=(480, 16))) + 2 * torch.eye(16)[labels] + 3 * pseudo
    logits[labels == 0, 0] += 8
    often = torch.cat([torch.arange(480), (labels == 0).nonzero().squeeze(1).repeat(20)])
    gammas = [
        finecal.pseudo_cv_gamma([finecal.PseudoFold(logits[rows], labels[rows], pseudo)], mask, "harmonic").gamma
        for rows in (torch.arange(480), often)
    ]
    assert gammas[1] > gammas[0]


def test_python_on_production_runs(rng, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen_mask = torch.arange(12) < 6

    def samples(share, count=2000):
        seen, absent = (
            rng.integers(6, size=round(share * count)),
            rng.integers(6, 12, size=count - round(share * count)),
        )
        labels = torch.tensor(rng.permutation(np.concatenate([seen, absent])))
        return torch.tensor(rng.normal(size=(count, 12))) + 3 * torch.eye(12)[labels] + 4 * seen_mask, labels

    held_out = samples(1.0)
    deployed = finecal.estimate_gamma(seen_mask, held_out=held_out)
    names = {"seen_mask": seen_mask, "held_out": held_out, "deployed": deployed, "known_share": 0.2}
    names["monday_logits"], _ = samples(0.5)
    names["tuesday_logits"], _ = samples(0.2)
    names["labelled_batches"] = [samples(1.0, 40) for _ in range(3)]
    finecal.save(finecal.AdditiveBias(seen_mask, deployed), "gamma-1.safetensors")
    names["calibrated"] = finecal.CalibratedModel(torch.nn.Identity(), finecal.load("gamma-1.safetensors"))

    rest = run("production", names, 1)
    lines = capsys.readouterr().out.splitlines()
    gammas = [float(line.split()[-1]) for line in lines]
    assert len(gammas) == 7
    assert gammas == sorted(gammas, reverse=True)
    shares = np.array([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9])
    slope, _ = np.polyfit(np.log((1 - shares) / shares), gammas, 1)
    assert np.allclose(np.diff(gammas) / np.diff(np.log((1 - shares) / shares)), slope, atol=0.05)

    exec(rest[0], names)
    exec(rest[1], names)
    window = torch.cat([names["monday_logits"], names["tuesday_logits"]])
    predicted = finecal.predict(window, seen_mask, deployed)
    assert float(names["sent_to_seen"]) == pytest.approx(float(seen_mask[predicted].double().mean()), abs=2e-3)
    names["curve"] = names["tuesday"].compute()
    exec(rest[2], names)
    exact = finecal.known_share_gamma(names["tuesday_logits"], seen_mask, 0.2)
    assert float(names["gamma"]) == pytest.approx(float(exact), abs=0.02)
    exec(rest[3], names)
    assert names["estimate"].gamma == finecal.mixture_gamma(held_out[0], names["monday_logits"], seen_mask).gamma

    exec(rest[4], names)
    assert names["moved"]
    margins = [(pair[:, 0] - pair[:, 1]).sort().values for pair in map(names["largest"], window.split(2000))]
    shares_above = [1 - torch.searchsorted(m, torch.cat(margins)) / 2000 for m in margins]
    assert names["distance"] == pytest.approx(float((shares_above[0] - shares_above[1]).abs().max()), abs=2e-3)
    same = copy.copy(names) | {"tuesday": names["add"](names["monday"].emptied(), samples(0.5)[0])}
    exec(rest[4], same)
    assert not same["moved"]

    exec(rest[5], names)
    assert not names["worse"]
    assert names["report"].n_seen == 120
    worn = [
        (logits + torch.tensor(rng.normal(scale=3, size=(40, 12))), labels)
        for logits, labels in names["labelled_batches"]
    ]
    names["labelled_batches"] = worn
    exec(rest[5], names)
    assert names["worse"]

    exec(rest[6], names)
    assert not names["estimate"].warnings
    exec(rest[7], names)
    serving = names["calibrated"].calibrator
    assert float(serving.gamma) == pytest.approx(names["estimate"].gamma)
    logits, _ = samples(0.2)
    assert torch.equal(names["calibrated"](logits).argmax(1), finecal.predict(logits, seen_mask, names["estimate"]))
    serving.load_state_dict(finecal.load("gamma-1.safetensors").state_dict())
    assert float(serving.gamma) == pytest.approx(deployed.gamma)
    names["calibrated"].calibrator = finecal.load("gamma-2.safetensors")
    assert names["calibrated"].calibrator.estimate == names["estimate"]

    exec(rest[8], names)
    assert "labels are of seen classes only" in capsys.readouterr().out
    assert len(rest) == 9
