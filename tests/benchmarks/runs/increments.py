"""Train models on classes that come in tasks, one after the other, and write their logits. See ../README.md."""

import argparse
import copy
import fnmatch
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fine_tuning import BATCH_SIZE, Domains, Samples
from torch import Tensor
from torch.nn import functional as F

from finecal._core.files import npz_bytes, write_atomically
from models import Classifier

WAYS = "plain", "rehearsed", "distilled", "masked"
"""How later tasks are trained: on their own samples alone, or on a memory of earlier ones as well; with distillation
(Learning without Forgetting); or with a loss that leaves out the earlier classes.
"""
MOST_SAMPLES = 120
"""Of a class."""
HELD_OUT, REHEARSED = 5, 3
"""Samples of a class that are kept aside, at most a fifth of them; and those in the memory that is trained on."""
FIRST, LATER = (15, 300, 0.002), (8, 100, 0.001)
"""Epochs, the least number of steps, and the learning rate of Adam."""
TEMPERATURE, DISTILLATION = 2.0, 4.0


@dataclass(frozen=True)
class Course:
    """Data, and the number of tasks in which their classes come."""

    family: str
    load: Callable[[Path], Domains]
    num_tasks: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.family}_{self.num_tasks}"


class Parts(NamedTuple):
    train: Samples
    held_out: Samples
    test: Samples


def courses() -> list[Course]:
    """Return the courses; what they load needs the packages of the runs."""
    import catalogue
    import small

    return [
        Course("names", catalogue.NAMES, 4),
        Course("digits", small.digits, 5),
        Course("languages", catalogue.LANGUAGES, 4),
        Course("kanji", catalogue.KANJI, 5),
        Course("sections", catalogue.SECTIONS_DE, 3),
        Course("cities", catalogue.CITIES, 4, 1),
        Course("cities", catalogue.CITIES, 10, 2),
        Course("tongues", catalogue.TONGUES, 4, 1),
        Course("letters", catalogue.LETTERS, 5, 1),
        Course("hangul", catalogue.HANGUL, 4, 1),
        Course("signals", small.signals, 5, 1),
        Course("sections", catalogue.SECTIONS_IT, 5, 1),
    ]


def split(domains: Domains, seed: int) -> Parts:
    """Take samples of both domains: hold some of each class out, and test on two fifths of the others."""
    rng = np.random.default_rng(seed)
    pool = Samples(*map(torch.cat, zip(domains.source, domains.target, strict=True)))
    train, held_out, test = [], [], []
    for label in range(domains.num_classes):
        rows = rng.permutation(np.flatnonzero(pool.labels.numpy() == label))[:MOST_SAMPLES]
        first, rest = np.split(rows, [min(HELD_OUT, max(1, len(rows) // 5))])
        tested, trained = np.split(rest, [len(rest) * 2 // 5])
        for part, chosen in zip((train, held_out, test), (trained, first, tested), strict=True):
            part.append(chosen)
    return Parts(*(pool[torch.from_numpy(np.concatenate(part))] for part in (train, held_out, test)))


def learn(start: Classifier, task: int, tasks: Tensor, samples: Samples, way: str, seed: int) -> Classifier:
    """Return a copy of `start`, trained on the samples of one more task, and those of a memory.

    `tasks` is the task of each class, ``(C,)``. Classes of later tasks are left out of the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    alone = way in ("distilled", "masked")
    left_out = tasks != task if alone else tasks > task
    earlier = tasks < task
    teacher, model = start.eval(), copy.deepcopy(start).train()
    epochs, steps, rate = FIRST if task == 0 else LATER
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(max(epochs, math.ceil(steps * BATCH_SIZE / len(samples.labels)))):
        for batch in torch.randperm(len(samples.labels), generator=generator).split(BATCH_SIZE):
            if len(batch) == 1:
                continue
            inputs, labels = samples[batch]
            logits = model(inputs)
            loss = F.cross_entropy(logits.masked_fill(left_out, -math.inf), labels)
            if way == "distilled" and task > 0:
                with torch.no_grad():
                    target = (teacher(inputs)[:, earlier] / TEMPERATURE).softmax(1)
                loss = loss + DISTILLATION * F.cross_entropy(logits[:, earlier] / TEMPERATURE, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def first_of_each_class(samples: Samples, count: int) -> Samples:
    rows = [(samples.labels == label).nonzero().squeeze(1)[:count] for label in samples.labels.unique()]
    return samples[torch.cat(rows)]


def learned(
    domains: Domains, num_tasks: int, seed: int, ways: Sequence[str] = WAYS
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield a name and the arrays of each model, after the third task and after the last one."""
    torch.manual_seed(seed)
    parts = split(domains, seed)
    tasks = torch.empty(domains.num_classes, dtype=torch.int64)
    for task, classes in enumerate(torch.randperm(domains.num_classes).tensor_split(num_tasks)):
        tasks[classes] = task
    own = [parts.train[tasks[parts.train.labels] == task] for task in range(num_tasks)]
    first = learn(Classifier(domains.encoder(), domains.num_classes), 0, tasks, own[0], "plain", seed)
    for way in ways:
        model = first
        for task in range(1, num_tasks):
            samples = own[task]
            if way == "rehearsed":
                memory = first_of_each_class(parts.train[tasks[parts.train.labels] < task], REHEARSED)
                samples = Samples(*map(torch.cat, zip(samples, memory, strict=True)))
            model = learn(model, task, tasks, samples, way, seed + task)
            if task in (2, num_tasks - 1):
                yield f"{way}_after{task + 1}", arrays(model, task, tasks, parts)


@torch.no_grad()
def arrays(model: Classifier, task: int, tasks: Tensor, parts: Parts) -> dict[str, np.ndarray]:
    """Return what the file of a model holds, of the classes so far; training samples are those of the newest task."""
    known = (tasks <= task).nonzero().squeeze(1)
    weight, bias = model.linear_head()
    found = {"task_of_class": tasks[known], "weight_norm": weight[known].norm(dim=1), "bias": bias[known]}
    for name, samples in parts._asdict().items():
        of = tasks[samples.labels]
        chosen = samples[of == task if name == "train" else of <= task]
        logits = torch.cat([model(inputs)[:, known] for inputs in chosen.inputs.split(256)])
        found |= {f"{name}_logits": logits, f"{name}_labels": torch.searchsorted(known, chosen.labels)}
    return {name: tensor.numpy() for name, tensor in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "patterns", nargs="*", default=["*"], help="names of courses, such as 'cities_*' (default: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the files, one a model")
    parser.add_argument("--cache", type=Path, help="folder of the Debian packages used (default: OUT/packages)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.cache or options.out / "packages"
    load = functools.lru_cache(maxsize=1)(lambda loader: loader(cache))
    for course in courses():
        if not any(fnmatch.fnmatch(course.name, pattern) for pattern in options.patterns):
            continue
        for name, found in learned(load(course.load), course.num_tasks, course.seed):
            write_atomically(options.out / f"{course.name}_{name}.npz", npz_bytes(found))
            accuracy = 100 * (found["test_logits"].argmax(1) == found["test_labels"]).mean()
            print(f"{course.name}_{name}: {len(found['task_of_class'])} classes, accuracy {accuracy:.1f} %", flush=True)


if __name__ == "__main__":
    main()
