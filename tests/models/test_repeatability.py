"""Samples that are augmented, and models with dropout left on, are noticed; what is repeatable, never."""

import os
import random
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import finecal
from finecal import collect_logits
from finecal._models.repeatability import are_augmented, doubts_about_samples, logits_and_doubts

AUGMENTED = "the samples are augmented at random. Two draws of the same ones differ"
RANDOM = "the model is random in eval mode"
MASK = torch.tensor([True, True, True, False])


class Samples(Dataset):
    """Of three of four classes, with a transform."""

    def __init__(self, transform=lambda x: x, n=60):
        self.transform, self.n = transform, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        noise = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return self.transform(2 * torch.eye(8)[index % 3] + noise), index % 3


AUGMENTATIONS = {
    "torch": lambda x: x + torch.rand(()),
    "python": lambda x: x.flip(0) if random.random() < 0.5 else x,
    "numpy": lambda x: x * np.random.default_rng().uniform(0.5, 1.5),
}


def test_augmented_samples_are_noticed_by_whatever_draws_the_random_numbers():
    for transform in AUGMENTATIONS.values():
        for context in (None, "fork") if hasattr(os, "fork") else (None,):  # others would pickle the functions
            workers = {"num_workers": 1, "multiprocessing_context": context} if context else {}
            loader = DataLoader(Samples(transform), batch_size=20, shuffle=True, **workers)
            (found,) = doubts_about_samples(loader, "pass others")
            assert found.startswith(AUGMENTED)
            assert found.endswith("pass others")


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 20, "sampler": [4, 8, 12]},
        {"batch_sampler": [[4, 8], [12]]},
        {"batch_sampler": BatchSampler([4, 8, 12], 2, False)},
    ],
    ids=["list", "batches", "list in batches"],
)
def test_samples_of_lists_of_indices_are_drawn_again(settings):
    drawn = []

    def transform(x):
        drawn.append(x)
        return x + torch.rand(())

    (found,) = doubts_about_samples(DataLoader(Samples(transform), **settings), "")
    assert found.startswith(AUGMENTED)
    assert len(drawn) == 6
    assert doubts_about_samples(DataLoader(Samples(), **settings), "") == []


def mixed_up(samples):
    """Mixup in a collate function: the images change, the labels stay."""
    images = torch.stack([image for image, _ in samples])
    return {"images": [images.lerp(images.flip(0), float(torch.rand(())))], "labels": [label for _, label in samples]}


class Opened(Samples):
    """Can be read only where it was opened, as by a `worker_init_fn`."""

    def __getitem__(self, index):
        raise RuntimeError("not opened")


class Several(Samples):
    """Takes indices of several samples."""

    def __getitem__(self, indices):
        return torch.stack([super(Several, self).__getitem__(index)[0] for index in indices])


class OfManySizes(Samples):
    def __getitem__(self, index):
        return super().__getitem__(index)[0][: 1 + index % 5], index % 3


REPEATABLE = {
    "of many sizes": lambda: DataLoader(OfManySizes(), 1),
    "cannot be read here": lambda: DataLoader(Opened(), 20),
    "several at once": lambda: DataLoader(Several(), batch_size=None, sampler=BatchSampler(range(60), 4, False)),
    "a part": lambda: DataLoader(Samples(), 20, sampler=SubsetRandomSampler(range(50, 60))),
    "nested": lambda: DataLoader(
        Samples(), 20, collate_fn=lambda rows: torch.nested.nested_tensor([r[0] for r in rows])
    ),
    "no samples": lambda: DataLoader(Samples(n=0), 20),
    "plain": lambda: DataLoader(Samples(), 20),
    "shuffled": lambda: DataLoader(Samples(), 20, shuffle=True, drop_last=True),
    "weighted": lambda: DataLoader(Samples(), 20, sampler=WeightedRandomSampler(torch.ones(60), 60)),
    "not a number": lambda: DataLoader(Samples(lambda x: x * torch.nan), 20),
    "one sample": lambda: DataLoader(Samples(n=1), 20),
    "without batches": lambda: DataLoader(Samples(), batch_size=None),
    "names beside": lambda: DataLoader(Samples(), 20, collate_fn=lambda rows: (torch.stack([r[0] for r in rows]), "a")),
}


@pytest.mark.parametrize("name", REPEATABLE)
def test_what_is_repeatable_is_not_doubted(name):
    assert doubts_about_samples(REPEATABLE[name](), "") == []


@dataclass
class Batch:
    images: torch.Tensor


def test_augmentation_is_noticed_in_batches_of_any_kind():
    noisy = AUGMENTATIONS["torch"]
    for loader in (
        DataLoader(OfManySizes(noisy), 1),
        DataLoader(Several(noisy), batch_size=None, sampler=BatchSampler(range(60), 4, False)),
        DataLoader(Samples(noisy), 20, sampler=SubsetRandomSampler(range(50, 60))),
        DataLoader(Samples(noisy), 20, collate_fn=lambda rows: Batch(torch.stack([row[0] for row in rows]))),
    ):
        assert doubts_about_samples(loader, "")


def test_a_random_collate_function_is_noticed():
    assert doubts_about_samples(DataLoader(Samples(), 20, collate_fn=mixed_up), "")


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("a stream gives its samples once")


class ByName(Sampler):
    def __iter__(self):
        return iter(["a", "b"])


@pytest.mark.parametrize(
    "loader",
    [[(torch.ones(2, 8), torch.tensor([0, 1]))], DataLoader(Stream()), DataLoader({"a": 1, "b": 2}, sampler=ByName())],
    ids=["list", "stream", "by name"],
)
def test_what_gives_its_samples_once_or_in_its_own_way_is_left_alone(loader):
    assert doubts_about_samples(loader, "") == []


class OfItsOwn:
    """A loader that is no DataLoader, as scripts have them: shuffled in each epoch, or not."""

    def __init__(self, transform, shuffle, draw=torch.randperm, n=60):
        self.data, self.shuffle, self.draw = Samples(transform, n), shuffle, draw

    def __iter__(self):
        order = self.draw(self.data.n).tolist() if self.shuffle else list(range(self.data.n))
        for start in range(0, self.data.n, 20):
            images, labels = zip(*(self.data[k] for k in order[start : start + 20]), strict=True)
            yield torch.stack(images), torch.tensor(labels)


class Streamed(IterableDataset):
    def __init__(self, transform, shuffle):
        self.data, self.shuffle = Samples(transform), shuffle

    def __iter__(self):
        order = torch.randperm(60).tolist() if self.shuffle else range(60)
        return (self.data[k] for k in order)


class Backwards(Sampler):
    """Of the user's; to go through it once more would change it."""

    def __iter__(self):
        raise AssertionError

    def __len__(self):
        return 60


LOADERS = {
    "own": lambda transform: OfItsOwn(transform, False),
    "own, shuffled": lambda transform: OfItsOwn(transform, True),
    "own, one batch": lambda transform: OfItsOwn(transform, False, n=20),
    "stream": lambda transform: DataLoader(Streamed(transform, False), 20),
    "stream, workers": lambda transform: DataLoader(Streamed(transform, False), 20, num_workers=1),
    "stream, shuffled": lambda transform: DataLoader(Streamed(transform, True), 20),
    "sampler": lambda transform: DataLoader(Samples(transform), 20, sampler=Backwards()),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_without_indices_are_gone_through_again(name):
    state = torch.get_rng_state(), random.getstate()
    assert are_augmented(LOADERS[name](lambda x: x), again=True) is False
    for transform in AUGMENTATIONS.values():
        assert are_augmented(LOADERS[name](transform), again=True) is True
        if name != "sampler":
            assert are_augmented(LOADERS[name](transform)) is None
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


OWN_GENERATOR = torch.Generator().manual_seed(0)


def with_generator(n):
    return torch.randperm(n, generator=OWN_GENERATOR)


def test_what_cannot_be_told_is_no_reason_to_warn():
    noisy = AUGMENTATIONS["torch"]
    batches = iter(OfItsOwn(noisy, False))
    loaders = [batches, OfItsOwn(lambda x: x, True, with_generator), OfItsOwn(noisy, True, with_generator), 3]
    assert [are_augmented(loader, again=True) for loader in loaders] == [None] * 4
    assert len(list(batches)) == 3


def test_batches_that_are_stored_are_no_draws():
    assert are_augmented([(torch.ones(2, 8), torch.tensor([0, 1]))], again=True) is False


def test_random_numbers_are_left_as_they_were():
    generator = torch.Generator().manual_seed(3)
    transform = lambda x: x + torch.rand(()) + random.random() + np.random.rand()  # noqa: E731, NPY002
    dataset = Samples(transform)
    loader = DataLoader(dataset, 20, sampler=RandomSampler(dataset, generator=generator), generator=generator)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), generator.get_state()  # noqa: NPY002
    assert doubts_about_samples(loader, "")
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(generator.get_state(), states[3])


# --- models -----------------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """As with functional dropout without ``training=self.training``."""

    def __init__(self, rate):
        super().__init__()
        self.head, self.rate, self.calls = nn.Linear(8, 4), rate, 0

    def forward(self, x):
        self.calls += 1
        return self.head(F.dropout(x, self.rate))


def test_dropout_that_is_left_on_is_noticed_once():
    model = Noisy(0.5)
    batches = [(torch.ones(5, 8), torch.zeros(5, dtype=torch.long))] * 3
    with pytest.warns(finecal.FinecalWarning, match=f"^collect_logits: {RANDOM}") as caught:
        logits = collect_logits(model, batches, progress=False).logits
    assert len(caught) == 1
    assert logits.shape == (15, 4)
    assert model.calls == 4  # the first batch twice
    with pytest.warns(finecal.FinecalWarning, match=f"^collect_logits: {RANDOM}"):
        features = collect_logits(model, batches, with_features=True, progress=False).features
    assert features.shape == (15, 8)


class DrawsInVain(Noisy):
    """As models with LayerDrop, which draw in eval mode as well."""

    def forward(self, x):
        torch.rand([])
        return self.head(x)


def test_random_numbers_without_effect_are_no_reason_to_warn():
    for model in (DrawsInVain(0.5), nn.Sequential(nn.Dropout(), nn.Linear(8, 4))):
        samples = collect_logits(model, [torch.ones(5, 8)], progress=False)
        assert samples.logits.shape == (5, 4)
        assert samples.labels is None


@pytest.mark.parametrize("mask", [-1e4, torch.finfo(torch.float32).min])
def test_dropout_is_noticed_beside_a_mask_by_a_large_number(mask):
    class Masked(Noisy):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.arange(4) == 2, mask)

    with pytest.warns(finecal.FinecalWarning, match=RANDOM):
        collect_logits(Masked(0.5), [torch.ones(5, 8)], progress=False)


def test_masked_classes_and_constant_logits_are_compared_as_far_as_they_go():
    masked = torch.tensor([[1.0, -torch.inf, 2.0]])
    for logits in (masked, torch.zeros(1, 3)):
        values = iter([logits, logits])

        def run(values=values):
            torch.rand([])
            return next(values)

        assert logits_and_doubts(run) == (logits, [])
    values = iter([masked, masked + torch.tensor([0.0, 0.0, 1.0])])

    def differing():
        torch.rand([])
        return next(values)

    assert logits_and_doubts(differing)[1]


# --- calibrate_model --------------------------------------------------------------------------------------------------


def test_calibrate_model_warns_of_augmented_samples():
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    with torch.no_grad():
        model.weight.copy_(2 * torch.eye(8)[:4])
        model.bias.copy_(2.0 * MASK)
    quiet = {"is_held_out": True, "seen_mask": MASK, "verbose": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", finecal.FinecalWarning)
        finecal.calibrate_model(model, DataLoader(Samples(), 20, shuffle=True), **quiet)
        assert not [warning for warning in caught if AUGMENTED in str(warning.message)]
        finecal.calibrate_model(model, DataLoader(Samples(AUGMENTATIONS["torch"]), 20, shuffle=True), **quiet)
        for loader in (OfItsOwn(lambda x: x, True), iter(OfItsOwn(AUGMENTATIONS["torch"], False))):
            finecal.calibrate_model(model, loader, **quiet)
    (found,) = [str(warning.message) for warning in caught if AUGMENTED in str(warning.message)]
    assert found.startswith("calibrate_model: ")
    assert found.endswith("pass a loader with the transform of the test")


def test_calibrate_model_says_what_cannot_be_told(capsys):
    told = "It cannot be told whether seen_loader augments"
    for loader, expected in ((OfItsOwn(lambda x: x, False), False), (iter(OfItsOwn(lambda x: x, False)), True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", finecal.FinecalWarning)
            finecal.calibrate_model(nn.Linear(8, 4), loader, is_held_out=True, seen_mask=MASK)
        assert (told in capsys.readouterr().err) is expected
