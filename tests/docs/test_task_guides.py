"""The Python that the guides by task show runs, and what these say of finecal is so."""

import copy
import sys
import warnings
from types import ModuleType, SimpleNamespace

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


def run_imagenet(names):
    """Run the blocks on the 1000-way head up to the model; return the rest, and add the mask of all columns."""
    _, _, _, _, _, columns, estimating, wrapping, *rest = blocks("docs/how-to/list-of-classes.md", "python")
    for block in (columns, estimating, wrapping):
        exec(block, names)
    names["seen_mask_of_1000"] = finecal.seen_mask_from_names(names["seen_wnids"], names["wnids"])
    return rest


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
    rest = run_imagenet(imagenet)
    names, columns = imagenet, imagenet["columns"]
    assert [names["wnids"][column] for column in columns] == names["variant"]
    estimate, seen_mask = names["estimate"], names["seen_mask"]
    report = finecal.evaluate(names["test_logits"][:, columns], names["test_labels"], seen_mask, estimate)
    assert report.acc_all > finecal.evaluate(names["test_logits"][:, columns], names["test_labels"], seen_mask).acc_all
    sliced = names["calibrated"](names["test_logits"]).argmax(1)
    assert float((sliced == names["test_labels"]).float().mean()) == pytest.approx(report.acc_all)

    exec(rest[0], names)  # fine-tuned on all 200
    assert int(names["seen_mask"].sum()) == VARIANT
    assert names["seen_mask"][columns].all()
    assert 2 < names["estimate"].gamma < 6

    exec(rest[1], names)
    assert torch.equal(names["labels"], columns[names["held_out_labels"]])
    assert np.array_equal(names["seen_mask"].numpy(), names["seen_mask_of_1000"])
    in_slice = torch.tensor([names["variant"].index(wnid) for wnid in names["dataset"].classes])
    assert torch.equal(in_slice[names["reindexed_labels"]], names["held_out_labels"])
    assert len(rest) == 2


def test_minus_infinity_is_as_good_as_a_slice(imagenet):
    run_imagenet(imagenet)
    names, columns = imagenet, imagenet["columns"]

    def both(split):
        sliced = names[f"{split}_logits"][:, columns], names[f"{split}_labels"], names["seen_mask"]
        return sliced, (*masked(names, split), names["seen_mask_of_1000"])

    def gammas(estimator, split, **options):
        return [estimator(*given, **options).gamma for given in both(split)]

    gap_estimators = (
        finecal.estimators.average_logit_gap,
        finecal.estimators.max_logit_gap,
        finecal.estimators.residual_gap,
        finecal.estimators.mixed_pair_gap,
    )
    for estimator in (*gap_estimators, finecal.estimators.seen_budget_gamma):
        sliced, of_1000 = gammas(estimator, "held_out")
        assert of_1000 == pytest.approx(sliced, rel=1e-5)
    sliced, of_1000 = gammas(finecal.search_gamma, "test")
    assert of_1000 == sliced
    given = zip(both("held_out"), both("test"), strict=True)
    unlabelled = [
        (
            finecal.estimators.mixture_gamma(held_out[0], test[0], test[2]).gamma,
            finecal.estimators.known_share_gamma(test[0], test[2], 0.5).gamma,
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
    run_imagenet(imagenet)
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
    assert any("are told apart within their own group" in str(warning.message) for warning in caught)
    many = imagenet["test_logits"].repeat(20, 1), imagenet["test_labels"].repeat(20)
    with pytest.warns(finecal.FinecalWarning, match="are told apart within their own group, where guessing gives"):
        report = finecal.evaluate(*many, mask)
    assert report.acc_all < 0.02
    assert max(report.acc_seen_within, report.acc_absent_within) < 0.05


@pytest.fixture
def tasks(rng):
    """Three tasks of four classes, pushed down by 6, 2 and 0, and a class that no task has brought yet."""
    task_of_class = torch.tensor([0, 1, 2] * 4 + [-1])

    def samples(tasks, count=600):
        labels = rng.choice(np.flatnonzero(np.isin(task_of_class, tasks)), count)
        logits = rng.normal(size=(count, 13)) + 3 * np.eye(13)[labels] + np.array([-6, -2, 0, 9])[task_of_class]
        return torch.tensor(logits), torch.tensor(labels)

    names = {"task_of_class": task_of_class, "model": torch.nn.Identity()}
    for split, tasks in {"held_out": [2], "test": [0, 1, 2], "exemplar": [0, 1, 2]}.items():
        names[f"{split}_logits"], names[f"{split}_labels"] = samples(tasks)
    return names | {"inputs": names["test_logits"]}


def test_python_on_class_incremental_runs(tasks, capsys):
    names, known = tasks, torch.arange(12)
    rest = run("class-incremental", names, 1)
    first, second, last = names["bias"][:3].tolist()
    assert last == names["bias"][12] == 0
    assert first == pytest.approx(6, abs=1)
    assert second == pytest.approx(2, abs=1)
    test = names["test_logits"][:, known], names["test_labels"], names["task_of_class"][known] == 2

    exec(rest[0], names)
    assert torch.equal(names["known"], known)
    assert torch.equal(names["predicted"], (test[0] + names["bias"][known]).argmax(1))
    assert float((names["calibrated"](names["inputs"]).argmax(1) == 12).float().mean()) > 0.5  # left in, it wins
    exec(rest[1], names)
    accuracy = float((names["predicted"] == names["test_labels"]).float().mean())
    _, after = capsys.readouterr().out.split("gamma = 0\n")[1:]
    assert f"{100 * accuracy:.1f}" in after
    best = finecal.tradeoff_curve(*test)
    assert accuracy > best.at(best.best()).acc_all
    within = finecal.evaluate(test[0] + names["bias"][known], *test[1:]).acc_absent_within
    assert within > finecal.evaluate(*test).acc_absent_within
    assert f"{100 * within:.1f}" in after

    exec(rest[2], names)
    assert float(names["bias"][0]) == pytest.approx(6, abs=1)
    exec(rest[3], names)
    assert "labelled samples" in capsys.readouterr().out
    fitted = (test[0] + names["bias"][known]).argmax(1) == test[1]
    assert float(fitted.float().mean()) > best.at(best.best()).acc_all
    assert names["bias"][12] == 0

    curve = finecal.tradeoff_curve(*test)
    by_mixture = finecal.estimators.mixture_gamma(names["held_out_logits"][:, known], test[0], test[2])
    assert curve.at(by_mixture).acc_all > curve.at(0.0).acc_all
    exec(rest[6], names)
    served = names["served"](names["inputs"])
    assert torch.equal(served.argmax(1), names["predicted"])
    assert torch.isneginf(served[:, 12]).all()
    assert torch.equal(served[:, :12], names["calibrated"](names["inputs"])[:, :12])
    assert len(rest) == 7


def test_class_incremental_after_a_masked_loss(tasks, capsys):
    names = tasks
    run("class-incremental", names, 3)
    for split in ("held_out", "exemplar"):
        names[f"{split}_logits"] = names[f"{split}_logits"] - 9 * (names["task_of_class"] == 2)
    names["held_out"], names["exemplars"] = (
        finecal.Samples(names[f"{split}_logits"], names[f"{split}_labels"]) for split in ("held_out", "exemplar")
    )
    with pytest.warns(finecal.FinecalWarning, match=r"against task 2 \(seen\): the seen classes lose"):
        biases = [
            finecal.estimators.task_biases(
                names["held_out"], names["task_of_class"], is_held_out=True, exemplars=exemplars
            )
            for exemplars in (None, names["exemplars"])
        ]
    for bias in biases:
        assert bias[0] == pytest.approx(-3, abs=1)
        assert bias[1] == pytest.approx(-7, abs=1)


class Learner:
    """What a learner of PyCIL has: a network whose head grows, and which is trained on the newest classes alone."""

    def __init__(self):
        self._cur_task, self._known_classes, self._total_classes = -1, 0, 0
        self._device, self._network = torch.device("cpu"), Network()

    def incremental_train(self, data_manager):
        self._cur_task += 1
        self._total_classes = self._known_classes + data_manager.get_task_size(self._cur_task)
        self._network.grow(self._total_classes)
        newest = np.arange(self._known_classes, self._total_classes)
        self.test_loader = batches(data_manager.get_dataset(np.arange(self._total_classes), "test", "test"), 64)
        optimiser = torch.optim.Adam(self._network.parameters(), lr=0.01)
        for _ in range(10):
            for _, inputs, targets in batches(data_manager.get_dataset(newest, "train", "train"), 16):
                loss = torch.nn.functional.cross_entropy(self._network(inputs)["logits"], targets)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    def eval_task(self):
        self._network.eval()
        right = [
            self._network(inputs.to(self._device))["logits"].argmax(1) == targets
            for _, inputs, targets in self.test_loader
        ]
        return float(torch.cat(right).float().mean())

    def after_task(self):
        self._known_classes = self._total_classes


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = torch.nn.Linear(8, 64), torch.nn.Linear(64, 2)

    def grow(self, num_classes):
        larger = torch.nn.Linear(64, num_classes)
        with torch.no_grad():
            larger.weight[: self.fc.out_features] = self.fc.weight
            larger.bias[: self.fc.out_features] = self.fc.bias
        self.fc = larger

    def forward(self, inputs):
        features = self.body(inputs).relu()
        return {"logits": self.fc(features), "features": features}


class DataManager:
    """Eight classes in four tasks; samples are index, inputs and label."""

    def __init__(self, rng):
        self.of = {}
        for source in ("train", "test"):
            labels = torch.tensor(rng.permutation(np.arange(400) % 8))
            inputs = torch.tensor(rng.normal(size=(400, 8)), dtype=torch.float32) + 4 * torch.eye(8)[labels]
            self.of[source] = inputs, labels

    def get_task_size(self, task):
        return 2

    def get_dataset(self, indices, source, mode):
        inputs, labels = self.of[source]
        rows = torch.isin(labels, torch.tensor(indices))
        return torch.utils.data.TensorDataset(torch.arange(int(rows.sum())), inputs[rows], labels[rows])


def batches(dataset, size):
    return torch.utils.data.DataLoader(dataset, batch_size=size)


@pytest.fixture
def of_libraries(tasks, monkeypatch):
    """The classes that the page shows, around a learner like PyCIL's and a plugin like Avalanche's."""
    plugins = ModuleType("avalanche.training.plugins")
    plugins.SupervisedPlugin = type("SupervisedPlugin", (), {})
    for name in ("avalanche", "avalanche.training"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, plugins.__name__, plugins)
    names = tasks | {"Finetune": Learner}
    rest = run("class-incremental", names, 5)
    for block in rest[:2]:
        exec(block, names)
    return names


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_class_incremental_in_a_learner_like_those_of_pycil(of_libraries, rng):
    manager, learner = DataManager(rng), of_libraries["Calibrated"]()
    for task in range(4):
        network = learner._network
        learner.incremental_train(manager)
        accuracy = learner.eval_task()
        assert learner._network is network
        assert learner.task_of_class == tuple(np.repeat(np.arange(task + 1), 2))
        assert learner.bias.shape == (2 * task + 2,)
        assert (learner.bias[-2:] == 0).all()
        learner.after_task()
    plain = Learner.eval_task(learner)
    assert accuracy > plain + 0.1


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_class_incremental_in_a_plugin(of_libraries, rng):
    """What Avalanche calls, in its order; the output may have more columns than the newest task needs."""
    manager, learner, plugin = DataManager(rng), Learner(), of_libraries["TaskBiases"]()
    for task in range(4):
        learner.incremental_train(manager)
        newest = [2 * task, 2 * task + 1]
        inputs, labels = manager.get_dataset(newest, "train", "test").tensors[1:]
        dataset = torch.utils.data.TensorDataset(inputs, labels, torch.zeros_like(labels))
        dataset.eval = lambda dataset=dataset: dataset
        experience = SimpleNamespace(dataset=dataset, classes_in_this_experience=newest)
        strategy = SimpleNamespace(model=learner._network, experience=experience, device="cpu")
        plugin.after_training_exp(strategy)
        learner.after_task()
    inputs, labels = manager.of["test"]
    with torch.no_grad():
        logits = learner._network(inputs)["logits"]
    strategy.mb_output = torch.cat([logits, torch.full((400, 2), -1000.0)], 1)
    plugin.after_eval_forward(strategy)
    assert torch.equal(strategy.mb_output[:, 8:], torch.full((400, 2), -1000.0))
    after, before = ((output.argmax(1) == labels).float().mean() for output in (strategy.mb_output, logits))
    assert after > before + 0.1


def test_python_on_zero_shot_runs(rng, capsys):
    """Twenty classes with a description each, of which a training raises the scores of those that it saw."""
    seen_mask = torch.arange(20) < 16

    def samples(classes):
        labels = torch.tensor(rng.choice(classes, 800))
        return torch.tensor(rng.normal(size=(800, 20))) + 3 * torch.eye(20)[labels], labels

    def fit(mask):
        return lambda inputs: inputs + 3 * mask

    inputs, labels = samples(20)
    names = {"seen_mask": seen_mask, "fit": fit, "factor": 2.5, "gamma": 2.5}
    names |= {"model": fit(seen_mask), "test_logits": fit(seen_mask)(inputs), "test_labels": labels}
    names["held_out_inputs"], names["held_out_labels"] = samples(16)
    *first, folding = blocks("docs/how-to/clip.md", "python")[5:8]  # tests/integrations runs those before
    for block in first:
        exec(block, names)
    assert torch.equal(names["stacked"].argmax(1), names["classes"])
    report = finecal.evaluate(names["test_logits"], labels, seen_mask, 2.5, average="macro")
    assert f"harmonic mean {100 * report.harmonic_mean:.1f} %" in capsys.readouterr().out

    curve = finecal.tradeoff_curve(names["test_logits"], labels, seen_mask, average="macro")
    oracle = curve.at(curve.best("harmonic")).harmonic_mean
    exec(folding, names)
    assert "harmonic" in names["gamma"].method
    assert curve.at(names["gamma"]).harmonic_mean > oracle - 0.03 > curve.at(0.0).harmonic_mean


def test_no_gap_is_seen_without_a_push(rng):
    """Of absent classes that took no part in the training; where a fifth of the classes are absent, next to none."""
    for num_seen, least, most in ((10, 0.0, 0.0), (16, 0.0, 0.3)):
        seen_mask, labels = torch.arange(20) < num_seen, torch.tensor(rng.integers(num_seen, size=800))
        logits = torch.tensor(rng.normal(size=(800, 20))) + 3 * torch.eye(20)[labels]
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            estimate = finecal.estimate_gamma(seen_mask, held_out=(logits, labels))
        assert least <= estimate.gamma <= most
        assert any("no gap is seen" in str(warning.message) for warning in record) == (estimate.gamma == 0)


def test_folds_count_samples_alike(rng):
    """Samples of one class, given twice, count twice."""
    mask, pseudo = torch.arange(16) < 12, torch.arange(16) < 6
    labels = torch.arange(12).repeat(40)
    logits = torch.tensor(rng.normal(size=(480, 16))) + 2 * torch.eye(16)[labels] + 3 * pseudo
    logits[labels == 0, 0] += 8
    often = torch.cat([torch.arange(480), (labels == 0).nonzero().squeeze(1).repeat(20)])
    gammas = [
        finecal.estimators.pseudo_cv_gamma(
            [finecal.estimators.PseudoFold((logits[rows], labels[rows]), pseudo)], mask, "harmonic"
        ).gamma
        for rows in (torch.arange(480), often)
    ]
    assert gammas[1] > gammas[0]


@pytest.fixture
def traffic(rng):
    """Draw a share of samples of the first six classes of twelve, whose logits have grown by four."""

    def samples(share, count=2000, noise=1.0):
        n_seen = round(share * count)
        labels = np.concatenate([rng.integers(6, size=n_seen), rng.integers(6, 12, size=count - n_seen)])
        labels = torch.tensor(rng.permutation(labels))
        logits = torch.tensor(noise * rng.normal(size=(count, 12))) + 3 * torch.eye(12)[labels]
        return logits + 4 * (torch.arange(12) < 6), labels

    return samples


@pytest.fixture
def production(traffic, tmp_path, monkeypatch):
    """What the page on production takes for granted, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    held_out = finecal.Samples(*traffic(1.0))
    names = {"seen_mask": torch.arange(12) < 6, "held_out": held_out, "model": torch.nn.Identity()}
    names |= {"class_names": list("abcdefghijkl"), "known_share": 0.2}
    names |= {"monday_logits": traffic(0.5)[0], "tuesday_logits": traffic(0.2)[0]}
    names["window"] = torch.cat([names["monday_logits"], names["tuesday_logits"]])
    names["labelled_batches"] = [traffic(1.0, 40) for _ in range(3)]
    return names


def share_sent(names, logits, gamma):
    return float(names["seen_mask"][finecal.predict(logits, names["seen_mask"], gamma)].double().mean())


def test_python_on_production_runs(production, traffic, tmp_path, rng, capsys):
    names, seen_mask, held_out, window = (
        production,
        *(production[name] for name in ("seen_mask", "held_out", "window")),
    )
    rest = run("production", names, 1)
    first = names["deployed"]
    assert names["calibrated"].calibrator.estimate == first
    exec(rest[0], names)
    gammas = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(gammas) == 7
    assert gammas == sorted(gammas, reverse=True)
    shares = np.array([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9])
    assert gammas[0] == gammas[1]  # Half of the seen samples are the most that gamma costs.
    rarest = finecal.estimate_gamma(seen_mask, held_out=held_out, seen_share=0.1)
    assert rarest.acc_seen_at_gamma == pytest.approx(rarest.acc_seen_at_zero / 2, abs=0.01)
    steps = np.diff(gammas[1:]) / np.diff(np.log((1 - shares[1:]) / shares[1:]))
    assert (steps > 0.4).all()
    assert (steps < 1.3).all()

    exec(rest[1], names)
    assert (tmp_path / "monday.pt").stat().st_size == pytest.approx(1.6e6, rel=0.02)
    assert torch.equal(names["largest"](window.numpy()), names["largest"](window))
    twice = names["MarginBins"](names["PAIR"]).merge(names["monday"]).merge(names["monday"])
    assert twice.compute().n_seen == 4000
    exec(rest[2], names)
    assert names["curve"].n_seen == 4000
    assert "0 absent samples, AUSUC nan" in repr(names["curve"])
    assert float(names["sent_to_seen"]) == pytest.approx(share_sent(names, window, first), abs=2e-3)
    names["curve"] = names["tuesday"].compute()
    exec(rest[3], names)
    tuesday = finecal.Samples(names["tuesday_logits"], torch.zeros(2000, dtype=torch.int64))
    margin = tuesday.margins(seen_mask).margin.sort().values
    gap = np.diff(margin[1590:1611]).max()
    exact = finecal.estimators.known_share_gamma(names["tuesday_logits"], seen_mask, 0.2)
    assert float(names["gamma"]) == pytest.approx(float(exact), abs=gap)
    exec(rest[4], names)
    assert (
        names["estimate"].gamma == finecal.estimators.mixture_gamma(held_out, names["monday_logits"], seen_mask).gamma
    )

    names["usual_week"], names["this_week"] = names["monday"], names["tuesday"]
    exec(rest[5], names)
    assert names["moved"]
    margins = [(pair[:, 0] - pair[:, 1]).sort().values for pair in map(names["largest"], window.split(2000))]
    shares_above = [1 - torch.searchsorted(m, torch.cat(margins)) / 2000 for m in margins]
    assert names["distance"] == pytest.approx(float((shares_above[0] - shares_above[1]).abs().max()), abs=2e-3)
    for logits in (traffic(0.5)[0], window[:0]):
        same = copy.copy(names) | {"this_week": names["add"](names["monday"].emptied(), logits)}
        exec(rest[5], same)
        assert not same["moved"]

    exec(rest[6], names)
    assert not names["worse"]
    assert names["report"].n_seen == 120
    healthy = copy.copy(names)
    names["labelled_batches"] = [
        (logits + torch.tensor(rng.normal(scale=3, size=(40, 12))), labels)
        for logits, labels in names["labelled_batches"]
    ]
    exec(rest[6], names)
    assert names["worse"]
    exec(rest[7], names)
    assert not (tmp_path / "gamma-2.safetensors").exists()

    names = healthy
    exec(rest[7], names)
    assert not names["estimate"].warnings
    exec(rest[8], names)
    assert names["deployed"] == names["estimate"] == names["calibrated"].calibrator.estimate != first
    assert names["trickle"].compute().gamma == pytest.approx(names["estimate"].gamma)
    logits, _ = traffic(0.2)
    assert torch.equal(names["calibrated"](logits).argmax(1), finecal.predict(logits, seen_mask, names["estimate"]))
    own = names["class_names"]
    for mask, class_names in ((~seen_mask, own), (seen_mask[1:], own[1:]), (seen_mask, own[::-1])):
        finecal.save(finecal.AdditiveBias(mask, 3.0), "gamma-2.safetensors", class_names=class_names)
        with pytest.raises(AssertionError):
            exec(rest[8], names)
    calibrated = torch.nn.Sequential(names["model"], finecal.load("gamma-1.safetensors"))
    calibrated[-1] = names["new"]
    assert calibrated[-1] is names["new"]

    names["new"] = finecal.load("gamma-1.safetensors")
    exec(rest[9], names)
    assert float(names["calibrated"].calibrator.gamma) == pytest.approx(first.gamma)
    assert torch.equal(names["calibrated"](logits).argmax(1), finecal.predict(logits, seen_mask, first))

    for share in (0.2, 0.8):
        names["logits"] = traffic(share)[0]
        exec(rest[10], names)
        assert torch.equal(names["window"], names["logits"][-200:])
        assert names["estimate"].seen_share == pytest.approx(share, abs=0.15)

    assert len(rest) == 11
    with pytest.raises(ValueError, match="labels are of seen classes only"):
        finecal.search_gamma(held_out, seen_mask)


def test_alarms_of_production_with_few_labels(production):
    """Without a label, with a promise of 100 %, and how large a drop a number of labels shows."""
    alarm = run("production", production, 2)[5]

    def chance(promised, n_held_out, correct, n_labels):
        logits = torch.zeros(n_labels, 12)
        logits[:, 0] = 9
        logits[correct:, 1] = 99
        names = copy.copy(production) | {"held_out": range(n_held_out)}
        names["deployed"] = finecal.GammaEstimate(0.0, "", "", n_held_out, acc_seen_at_gamma=promised)
        names["labelled_batches"] = [(logits, torch.zeros(n_labels, dtype=torch.int64))] if n_labels else []
        exec(alarm, names)
        return names["worse"], names["chance"]

    assert chance(0.9, 600, 0, 0)[0] is False
    assert chance(1.0, 600, 499, 500)[0] is False
    assert chance(1.0, 600, 480, 500)[0] is True
    for n_labels, drop in ((84, 0.105), (840, 0.05)):
        assert 3 * chance(0.9, 600, n_labels, n_labels)[1] == pytest.approx(drop, abs=0.002)


def test_damaged_or_calibrated_traffic_looks_like_a_lower_share(production, traffic):
    """What the page on production says of both, and of pairs given to `estimate_gamma`."""
    run("production", production, 3)
    seen_mask, held_out, deployed = (production[name] for name in ("seen_mask", "held_out", "deployed"))

    def found(logits):
        estimate = finecal.estimate_gamma(seen_mask, held_out=held_out, unlabelled=logits)
        return estimate, float(estimate.data.split(" %")[0].split()[-1]) / 100

    bare, labels = traffic(0.6)
    usual, share = found(bare)
    assert share == pytest.approx(0.6, abs=0.07)
    assert share_sent(production, bare, usual) == pytest.approx(share, abs=0.07)
    damaged, share_of_damaged = found(bare - torch.eye(12)[labels])  # told apart less well
    assert not damaged.warnings
    assert share_of_damaged < share - 0.05
    assert float(damaged) > float(usual) + 0.1
    added, share_of_added = found(finecal.calibrate_logits(bare, seen_mask, deployed))
    assert not added.warnings
    assert share_of_added < share - 0.3
    assert share_sent(production, bare, added) > share_of_added + 0.2

    largest, pair = production["largest"], production["PAIR"]
    labels = torch.zeros(len(held_out), dtype=torch.int64)
    with pytest.warns(finecal.FinecalWarning, match="with one seen class .* gamma is that of mixture_gamma"):
        of_pairs = finecal.estimate_gamma(pair, held_out=(largest(held_out.logits), labels), unlabelled=largest(bare))
    assert of_pairs.method == "mixture_gamma"
    true = finecal.evaluate(held_out, seen_mask, of_pairs).acc_seen
    assert of_pairs.acc_seen_at_gamma > true + 0.02


@pytest.fixture
def segmentation(rng):
    """A 1 x 1 convolution whose seen classes, 1 and 2 of background and four, have outgrown the others; pictures."""

    def pictures(classes):
        labels = torch.tensor(rng.choice(classes, size=(12, 4, 5))).repeat_interleave(2, 1).repeat_interleave(2, 2)
        noise = torch.tensor(rng.normal(size=(12, 5, 8, 10)), dtype=torch.float32)
        images = noise + 3 * torch.nn.functional.one_hot(labels, 5).movedim(-1, 1)
        labels[:, :, -1] = 255
        return images, labels

    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(5, 5, kernel_size=1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(5)[:, :, None, None])
        model[1].bias.copy_(torch.tensor([0.0, 3.0, 3.0, 0.0, 0.0]))
    names = {"model": model, "num_classes": 5, "seen_classes": [1, 2]}
    names["valid_images"], names["valid_labels"] = pictures(5)
    names["valid_logits"] = model(names["valid_images"]).detach()
    names["train_loader"] = [pictures([0, 1, 2]), pictures([0, 1, 2])]
    names["valid_loader"] = [(names["valid_images"], names["valid_labels"])]
    return names


@pytest.mark.filterwarnings("ignore:.*positions of the background are taken for absent classes")  # it is as faint
def test_python_on_segmentation_runs(segmentation, capsys):
    names = segmentation
    at_once, loss = blocks("docs/how-to/segmentation.md", "{code-block} python")
    names["finecal"], names["seen_mask"] = finecal, torch.arange(5) < 3
    exec(at_once, names)
    at_once = names["calibrated"]
    rest = run("segmentation", names, 4)

    train = names["train"]
    assert train.logits.shape == (len(train.labels), 4)
    assert sorted(train.labels.unique().tolist()) == [0, 1]
    assert len(train.groups.unique()) == 24
    estimate, seen_mask, dense = (names[name] for name in ("estimate", "seen_mask", "dense"))
    assert float(at_once.calibrator.gamma) == pytest.approx(estimate.gamma, abs=1e-6)
    assert estimate.interval[0] < estimate.gamma < estimate.interval[1]

    valid = names["valid_logits"], names["valid_labels"], seen_mask
    before, after = finecal.dense.evaluate_iou(*valid, **dense), finecal.dense.evaluate_iou(*valid, estimate, **dense)
    assert after.iou_absent > before.iou_absent + 0.3
    assert after.iou_seen > before.iou_seen
    oracle = finecal.dense.iou_curve(*valid, **dense).at(names["oracle"])
    assert oracle.iou_harmonic - 0.1 < after.iou_harmonic <= oracle.iou_harmonic
    assert str(after) == str(names["report"])
    binned = names["curve"].best("harmonic")
    assert finecal.dense.evaluate_iou(*valid, binned, **dense).iou_harmonic > oracle.iou_harmonic - 0.01

    images, expected = (
        names["valid_images"],
        finecal.calibrate_logits(names["valid_logits"], seen_mask, estimate, dim=1),
    )
    exec(rest[0], names)
    torch.testing.assert_close(names["model"](images), expected)
    with pytest.raises(ValueError, match="calibrated twice"):
        names["calibrated"](images)
    assert len(rest) == 1
    assert "ignore_index=255" in loss


def test_gamma_commutes_with_interpolation(segmentation):
    """It does not matter whether gamma is added before or after interpolating, as the page on segmentation says."""
    logits, mask = segmentation["valid_logits"], torch.arange(5) < 3

    def enlarged(logits):
        return torch.nn.functional.interpolate(logits, (29, 17), mode="bilinear")

    before, after = enlarged(finecal.calibrate_logits(logits, mask, 2.5, dim=1)), enlarged(logits)
    torch.testing.assert_close(before, finecal.calibrate_logits(after, mask, 2.5, dim=1))
