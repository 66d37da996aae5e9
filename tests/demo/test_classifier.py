import copy

import pytest
import torch
from torch.nn import functional as F

import finecal
from finecal.demo.classifier import NameClassifier, fine_tune, pretrain, score, train_fold, train_names
from finecal.demo.names import load_names


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
    mask = finecal.pseudo_cv_splits(task.seen_mask)[0]
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
