"""The demo's model: a small character CNN, pre-trained on all classes and then fine-tuned on some of them."""

import copy
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluation.samples import Samples
from ..gamma.folds import PseudoFold
from .names import NamesSplit, NamesTask

_BATCH_SIZE = 64


class NameClassifier(nn.Module):
    """Character CNN: 64 filters of each width from 2 to 5, the maximum of each over the name, and a linear head.

    Letters are taken apart from their accents; characters that do not occur in `names` are all alike.
    """

    max_length = 40

    def __init__(self, names: Iterable[str], num_classes: int) -> None:
        super().__init__()
        alphabet = sorted({character for name in names for character in _characters(name)})
        self.codes = {character: code for code, character in enumerate(alphabet, start=2)}
        self.embedding = nn.Embedding(len(alphabet) + 2, 48, padding_idx=0)
        self.filters = nn.ModuleList(nn.Conv1d(48, 64, width, padding=width // 2) for width in (2, 3, 4, 5))
        self.head = nn.Linear(256, num_classes)

    def encode(self, names: Sequence[str]) -> Tensor:
        """Return the codes of the characters, ``(N, max_length)``: 0 pads, 1 stands for an unknown one."""
        codes = torch.zeros(len(names), self.max_length, dtype=torch.int64)
        for row, name in zip(codes, names, strict=True):
            characters = _characters(name)[: self.max_length]
            row[: len(characters)] = torch.tensor([self.codes.get(character, 1) for character in characters])
        return codes

    def features(self, codes: Tensor) -> Tensor:
        """Return what the head sees, ``(N, 256)``."""
        embedded = self.embedding(codes).transpose(1, 2)
        return torch.cat([F.relu(convolve(embedded)).amax(dim=2) for convolve in self.filters], dim=1)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits ``(N, C)``."""
        logits: Tensor = self.head(self.features(codes))
        return logits


def _characters(name: str) -> str:
    # The marks let a filter see where a name begins and where it ends.
    return f"^{unicodedata.normalize('NFD', name.casefold())}$"


class Scores(NamedTuple):
    """What a model gives for N names: logits ``(N, C)``, and the features ``(N, 256)`` that its head sees."""

    logits: Tensor
    features: Tensor


class SplitLogits(NamedTuple):
    """Logits and features of the fine-tuned model, logits of the pre-trained one on the test names; and both models."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    pretrained_test: Tensor
    held_out_features: Tensor
    test_features: Tensor
    pretrained: NameClassifier
    fine_tuned: NameClassifier


def train_names(task: NamesTask, seed: int, progress: bool, epochs: tuple[int, int]) -> SplitLogits:
    """Pre-train on the source names, fine-tune on the seen classes, and score; `epochs` of the one and the other."""
    generator = torch.Generator().manual_seed(seed)
    pretrained = pretrain(task, seed, generator, epochs=epochs[0], progress=progress)
    fine_tuned = fine_tune(pretrained, task.train, generator, epochs=epochs[1], progress=progress)
    held_out, test = score(fine_tuned, task.held_out), score(fine_tuned, task.test)
    return SplitLogits(
        train=score(fine_tuned, task.train).logits,
        held_out=held_out.logits,
        test=test.logits,
        pretrained_test=score(pretrained, task.test).logits,
        held_out_features=held_out.features,
        test_features=test.features,
        pretrained=pretrained,
        fine_tuned=fine_tuned,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: the order of its sums, and so the digits of the result, depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def pretrain(
    task: NamesTask, seed: int, generator: torch.Generator, *, epochs: int = 10, progress: bool = False
) -> NameClassifier:
    """Return a model trained on the source names: `seed` chooses its initial weights, `generator` the batches."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = NameClassifier(task.source.names + task.train.names, len(task.class_names))
    _fit(model, task.source, generator, epochs, 0.5, torch.optim.SGD, "pre-training", progress)
    return model


@_one_thread()
def fine_tune(
    pretrained: NameClassifier,
    split: NamesSplit,
    generator: torch.Generator,
    *,
    epochs: int = 25,
    learning_rate: float = 0.2,
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    progress: bool = False,
) -> NameClassifier:
    """Return a copy of `pretrained`, trained on `split`; parameters that require no gradient stay as they are.

    `optimiser` is called with the parameters, ``lr`` and ``weight_decay``; `generator` chooses the batches.
    """
    model = copy.deepcopy(pretrained)
    _fit(model, split, generator, epochs, learning_rate, optimiser, "fine-tuning", progress)
    return model


def _fit(
    model: NameClassifier,
    split: NamesSplit,
    generator: torch.Generator,
    epochs: int,
    learning_rate: float,
    optimiser: Callable[..., torch.optim.Optimizer],
    title: str,
    progress: bool,
) -> None:
    """Minimise the cross-entropy over all classes, at a cosine learning rate."""
    from tqdm import tqdm

    codes = model.encode(split.names)
    order = torch.cat([torch.randperm(len(codes), generator=generator) for _ in range(epochs)])
    batches = torch.split(order, _BATCH_SIZE)
    stepper = optimiser(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, len(batches))
    for batch in tqdm(batches, desc=title, unit=" batches", disable=not progress):
        stepper.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(codes[batch]), split.labels[batch]))
        stepper.step()
        schedule.step()


@_one_thread()
@torch.no_grad()
def score(model: NameClassifier, split: NamesSplit) -> Scores:
    """Score the names of `split`."""
    features = model.features(model.encode(split.names))
    return Scores(model.head(features), features)


def train_fold(
    task: NamesTask,
    pretrained: NameClassifier,
    pseudo_seen_mask: Tensor,
    seed: int,
    *,
    epochs: int = 25,
    progress: bool = False,
) -> PseudoFold:
    """Fine-tune `pretrained` on the names of some seen classes, and score the held-out names of all seen ones.

    The batches depend on `seed` and not on the folds before: a fold that is made again is the same.
    """
    generator = torch.Generator().manual_seed(seed)
    names = task.train.of_classes(pseudo_seen_mask)
    fine_tuned = fine_tune(pretrained, names, generator, epochs=epochs, progress=progress)
    logits, pretrained_logits = (score(model, task.held_out).logits for model in (fine_tuned, pretrained))
    samples = Samples(logits, task.held_out.labels, pretrained_logits=pretrained_logits)
    return PseudoFold(samples, pseudo_seen_mask)
