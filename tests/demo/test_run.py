import copy
import re
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import finecal
from finecal._demo import run as demo
from finecal._demo.names import load_names
from finecal._demo.run import NameClassifier, fine_tune, pretrain, run_demo, score, train_fold, train_names

SHORT = (3, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "new" / "folder"


@pytest.fixture(scope="module")
def text(folder):
    return run_demo(folder, seed=0, progress=False, epochs=SHORT)


@pytest.fixture
def saved(text, folder):
    def load(name):
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return arrays["logits"], arrays["labels"]

    return load


@pytest.fixture
def seen_mask(text, folder):
    classes = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    return finecal.seen_mask_from_names((folder / "seen.txt").read_text(encoding="utf-8").splitlines(), classes)


@pytest.fixture
def table(text):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = lines
    return [dict(zip(["name", *header[1:]], row, strict=True)) for row in rows]


def test_writes_exactly_what_it_promises(text, folder):
    assert {path.name for path in folder.iterdir()} == {
        "report.md", "tradeoff.png", "margins.png", "estimators.png", "train.npz", "held_out.npz", "test.npz",
        "classes.txt", "seen.txt",
    }  # fmt: skip
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert text in report
    pictures = ["tradeoff.png", "margins.png", "estimators.png"]
    assert re.findall(r"\((\w+\.png)\)", report) == pictures
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


@pytest.mark.parametrize("name", ["train", "held_out", "test"])
def test_saved_logits_belong_to_the_task(text, folder, seen_mask, name):
    task = load_names(0)
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        assert arrays["logits"].shape == (len(getattr(task, name)), len(task.class_names))
        np.testing.assert_array_equal(arrays["labels"], getattr(task, name).labels)
        assert tuple(arrays["class_names"]) == task.class_names
        others = {"train": set(), "held_out": {"features"}, "test": {"features", "pretrained_logits"}}[name]
        assert set(arrays) == {"logits", "labels", "class_names"} | others
    np.testing.assert_array_equal(seen_mask, task.seen_mask)


def test_fine_tuning_loses_the_absent_classes_and_gamma_brings_them_back(table):
    pretrained, fine_tuned, *calibrated, _, oracle = table
    assert float(fine_tuned["U/Y"]) < float(pretrained["U/Y"]) / 3
    assert all(float(row["Y/Y"]) > float(fine_tuned["Y/Y"]) for row in calibrated)
    assert all(float(row["Y/Y"]) <= float(oracle["Y/Y"]) for row in calibrated)
    assert (oracle["name"], oracle["recovered"], oracle["needs"]) == ("oracle", "100", "test labels")


def test_the_saved_logits_reproduce_the_table(saved, seen_mask, table, text):
    comparison = finecal.compare_estimators(
        seen_mask,
        train=saved("train"),
        held_out=saved("held_out"),
        unlabelled=saved("test")[0],
        seen_share=seen_mask.mean(),
        test=saved("test"),
    )
    rows = {(row["name"], row["needs"]): row for row in table}
    for row in comparison.rows:
        shown = rows.pop((row.method, row.needs))
        assert shown["gamma"] == f"{row.estimate.gamma:.2f}"
        assert shown["Y/Y"] == f"{100 * row.report.acc_all:.1f}"
        assert shown["recovered"] == f"{100 * row.recovered:.0f}"
    refits = [("pseudo_cv_gamma", "3 refits"), ("estimate_gamma", "both, 3 refits")]
    prototypes = ("estimate_gamma + prototypes", "known share, both, features")
    assert list(rows) == [("pre-trained", ""), ("fine-tuned", ""), *refits, prototypes]
    at = comparison.uncalibrated
    assert f"fine-tuned {100 * at.acc_seen_within:.1f}, {100 * at.acc_absent_within:.1f} and {at.ausuc:.3f};" in text


def test_prototypes_are_those_of_the_test_names(table, seen_mask):
    """Trained anew, with what the model gives put together by hand."""
    task = load_names(0)
    trained = train_names(task, 0, progress=False, epochs=SHORT)
    *_, alone, shown, _oracle = table
    assert (alone["name"], shown["name"]) == ("estimate_gamma", "estimate_gamma + prototypes")
    assert shown["gamma"] == alone["gamma"]
    held_out = finecal.Samples(trained.held_out, task.held_out.labels, features=trained.held_out_features)
    estimate = finecal.estimate_gamma(
        seen_mask,
        train=(trained.train, task.train.labels),
        held_out=held_out,
        unlabelled=trained.test,
        seen_share=float(seen_mask.mean()),
    )
    samples = finecal.Samples(trained.test, features=trained.test_features)
    prototypes = finecal.calibrators.fit_prototypes(samples, seen_mask, estimate, held_out=held_out)
    right = prototypes(trained.test, trained.test_features).argmax(1) == task.test.labels
    assert shown["Y/Y"] == f"{100 * float(right.double().mean()):.1f}"


def test_says_what_was_damaged(text):
    assert "Diagnosis from the test names: Calibration will help" in text


def test_names_the_first_ten_changed_predictions(text, saved, seen_mask):
    task, (logits, labels) = load_names(0), saved("test")
    gamma = finecal.estimate_gamma(seen_mask, train=saved("train"))
    before, after = finecal.predict(logits, seen_mask), finecal.predict(logits, seen_mask, gamma)
    expected = []
    for name, label, was, now in zip(task.test.names, labels, before, after, strict=True):
        if was != now:
            outcome = "✓" if now == label else "✗ (spoiled)" if was == label else f"✗ ({task.class_names[label]})"
            expected.append(f"- {name}: {task.class_names[was]} → {task.class_names[now]} {outcome}")
    assert [line for line in text.splitlines() if line.startswith("- ")] == expected[:10]
    mended, spoiled = sum("✓" in line for line in expected), sum("(spoiled)" in line for line in expected)
    assert f"{len(expected)} of {len(labels)} test names: {mended} mended, {spoiled} spoiled" in text


def test_is_deterministic_and_leaves_the_global_state_alone(capsys):
    """The same report once more, with another number of threads, which neither matters nor changes."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run_demo(seed=1, epochs=(1, 1))
        assert torch.get_num_threads() == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.search(r"pre-training: 100%(.*fine-tuning: 100%){4}", printed.err, re.DOTALL)
        torch.set_num_threads(2)
        assert run_demo(seed=1, progress=False, epochs=(1, 1)) == one
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr() == ("", "")
    torch.testing.assert_close(torch.get_rng_state(), state)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"needs tqdm: pip install 'finecal\[demo\]'"):
        run_demo(progress=False)


@pytest.mark.parametrize("name", ["taken", "taken/folder"])
def test_refuses_a_file_for_a_folder_before_it_trains(monkeypatch, tmp_path, name):
    def load(seed):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(demo, "load_names", load)
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(NotADirectoryError, match=f"^{re.escape(str(tmp_path / 'taken'))} is a file; give a folder$"):
        run_demo(tmp_path / name, progress=False)
    assert (tmp_path / "taken").read_text() == "mine"
    with pytest.raises(AssertionError, match="the work has begun"):
        run_demo(tmp_path, progress=False)


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    return load_names(seed=0, seen_fraction=0.1)


@pytest.fixture(scope="module")
def whole(task):
    return train_names(task, 0, progress=False, epochs=(1, 2))


@pytest.fixture(scope="module")
def pretrained(whole):
    return whole.pretrained


def generator(seed):
    return torch.Generator().manual_seed(seed)


def assert_equal_weights(one, other):
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def loss(model, split):
    return float(F.cross_entropy(score(model, split).logits, split.labels))


def test_the_parts_make_up_the_whole(task, whole):
    batches = generator(0)
    pretrained = pretrain(task, 0, batches, epochs=1)
    fine_tuned = fine_tune(pretrained, task.train, batches, epochs=2)
    assert_equal_weights(whole.pretrained, pretrained)
    assert_equal_weights(whole.fine_tuned, fine_tuned)
    expected = {name: score(fine_tuned, getattr(task, name)).logits for name in ("train", "held_out", "test")}
    expected["pretrained_test"] = score(pretrained, task.test).logits
    expected |= {f"{name}_features": score(fine_tuned, getattr(task, name)).features for name in ("held_out", "test")}
    for name, values in expected.items():
        assert torch.equal(getattr(whole, name), values)


def test_scores_are_those_of_the_model_without_a_graph(task, pretrained):
    scores = score(pretrained, task.held_out)
    assert (scores.logits.shape, scores.features.shape) == (
        (len(task.held_out), len(task.class_names)),
        (len(task.held_out), 256),
    )
    assert not scores.logits.requires_grad
    torch.testing.assert_close(scores.logits, pretrained(pretrained.encode(task.held_out.names)))
    torch.testing.assert_close(scores.logits, pretrained.head(scores.features))


@pytest.mark.parametrize(("optimiser", "learning_rate"), [("SGD", 0.2), ("Adam", 1e-3), ("AdamW", 1e-3)])
def test_fine_tunes_a_copy_with_any_optimiser(task, pretrained, optimiser, learning_rate):
    before, how = copy.deepcopy(pretrained), {"epochs": 1, "learning_rate": learning_rate}
    models = [
        fine_tune(pretrained, task.train, generator(seed), optimiser=getattr(torch.optim, optimiser), **how)
        for seed in (0, 0, 1)
    ]
    assert_equal_weights(pretrained, before)
    assert loss(models[0], task.train) < loss(pretrained, task.train)
    assert_equal_weights(models[0], models[1])
    with pytest.raises(AssertionError):
        assert_equal_weights(models[0], models[2])


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("frozen", ["head.", "embedding.", "filters.2."])
def test_weights_that_require_no_gradient_stay(task, pretrained, optimiser, frozen):
    start = copy.deepcopy(pretrained)
    for name, weight in start.named_parameters():
        weight.requires_grad_(not name.startswith(frozen))
    end = fine_tune(start, task.train, generator(0), epochs=1, learning_rate=0.01, optimiser=optimiser).state_dict()
    changed = {name for name, weight in start.named_parameters() if not torch.equal(weight, end[name])}
    assert changed == {name for name in end if not name.startswith(frozen)}


def test_a_fold_knows_its_pseudo_seen_classes_only(task, pretrained):
    mask = finecal.estimators.pseudo_cv_splits(task.seen_mask)[0]
    folds = [train_fold(task, pretrained, mask, seed=5, epochs=5) for _ in range(2)]
    samples, again = (fold.samples for fold in folds)
    assert torch.equal(samples.logits, again.logits)
    assert torch.equal(samples.labels, task.held_out.labels)
    assert torch.equal(folds[0].pseudo_seen_mask, mask)
    assert torch.equal(samples.pretrained_logits, score(pretrained, task.held_out).logits)
    change = F.cross_entropy(samples.logits, samples.labels, reduction="none")
    change -= F.cross_entropy(samples.pretrained_logits, samples.labels, reduction="none")
    assert change[mask[samples.labels]].mean() < 0 < change[~mask[samples.labels]].mean()
    expected = fine_tune(pretrained, task.train.of_classes(mask), generator(5), epochs=5)
    assert torch.equal(samples.logits, score(expected, task.held_out).logits)


def test_classifier_sees_accents_apart_and_unknown_characters_alike():
    model = NameClassifier(["Ča", "c"], num_classes=3)
    codes = model.encode(["č", "c", "x", "y", "C" * 100])
    assert codes.shape == (5, model.max_length)
    assert codes[0, 1] == codes[1, 1]
    assert (codes[0] > 0).sum() == (codes[1] > 0).sum() + 1
    assert torch.equal(codes[2], codes[3])
    assert model.features(codes).shape == (5, 256)
    torch.testing.assert_close(model(codes), model.head(model.features(codes)))
