"""The demo's model: a small character CNN, pre-trained and then fine-tuned on half of the classes."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .datasets import NamesSplit, NamesTask

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


class SplitLogits(NamedTuple):
    """Logits of the fine-tuned model on its splits, and of the pre-trained one on the test names."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    pretrained_test: Tensor


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
def train_names(task: NamesTask, seed: int, progress: bool, epochs: tuple[int, int]) -> SplitLogits:
    """Pre-train on the source names, fine-tune on the seen classes, and score; `epochs` of the one and the other."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = NameClassifier(task.source.names + task.train.names, len(task.class_names))
    generator = torch.Generator().manual_seed(seed)

    def fit(title: str, split: NamesSplit, epochs: int, learning_rate: float) -> None:
        """Plain SGD on the cross-entropy over all classes, at a cosine learning rate."""
        from tqdm import tqdm

        codes = model.encode(split.names)
        order = torch.cat([torch.randperm(len(codes), generator=generator) for _ in range(epochs)])
        batches = torch.split(order, _BATCH_SIZE)
        optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
        for batch in tqdm(batches, desc=title, unit=" batches", disable=not progress):
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(codes[batch]), split.labels[batch]))
            optimiser.step()
            schedule.step()

    def score(split: NamesSplit) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(model.encode(split.names))
        return logits

    fit("pre-training", task.source, epochs[0], learning_rate=0.5)
    pretrained_test = score(task.test)
    fit("fine-tuning", task.train, epochs[1], learning_rate=0.2)
    return SplitLogits(score(task.train), score(task.held_out), score(task.test), pretrained_test)
