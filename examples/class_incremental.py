"""
Class-incremental learning
==========================

Teach a network 291 classes in three tasks, one after the other, and bring the classes of the earlier tasks back.

The classes of the last task are seen, those of the earlier tasks absent. Four ways to train are compared: plain
fine-tuning; with a small memory of samples of the earlier tasks; with distillation (Learning without Forgetting); and
with a loss that masks the logits of the earlier tasks. ``task_biases`` is compared with one gamma, with BiC and with
weight aligning (WA). The data are names of countries, currencies and scripts, a class each, in many languages. Needs
the extra demo, no network, and half a minute: ``python examples/class_incremental.py``
"""

# %%
# The data: three tasks of 97 classes
# -----------------------------------
# Two names of each class are never trained on: what a rehearsal memory may keep aside for gamma. A quarter of the other
# names is for testing. A name becomes the codes of its character n-grams.

import copy
import warnings
import zlib

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

import finecal
from finecal._demo.names import load_names
from finecal.plots import plot_tradeoff

torch.set_num_threads(1)  # The same figures on every machine.
torch.manual_seed(0)
TASKS, CODES, KEPT, REHEARSED = 3, 8192, 2, 3


def encode(names: tuple[str, ...]) -> Tensor:
    """Return the codes of the n-grams of each name; 0 pads."""
    rows = []
    for name in names:
        text = f"<{name.casefold()}>"
        grams = [
            text[start : start + n]
            for n in (1, 2, 3, 4)
            for start in range(len(text) - n + 1)
        ]
        rows.append(
            torch.tensor(
                [zlib.crc32(gram.encode()) % (CODES - 1) + 1 for gram in grams]
            )
        )
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


names = load_names(seed=0)
inputs = encode(names.source.names + names.test.names)
labels = torch.cat([names.source.labels, names.test.labels])
num_classes = len(names.class_names)
task_of = torch.empty(num_classes, dtype=torch.int64)
for number, classes in enumerate(
    torch.randperm(num_classes).tensor_split(TASKS)
):
    task_of[classes] = number


def first_of_each_class(rows: Tensor, count: int) -> Tensor:
    """Return `count` rows of each class that occurs."""
    return torch.cat(
        [rows[labels[rows] == c][:count] for c in labels[rows].unique()]
    )


order = torch.randperm(len(labels))
held_out = first_of_each_class(order, KEPT)
rest = order[~torch.isin(order, held_out)]
test, train = rest.tensor_split([len(rest) // 4])
print(
    f"{num_classes} classes; {len(train)} names for training, {len(held_out)} held out, {len(test)} for testing"
)


# %%
# The model, and four ways to train it
# ------------------------------------
# The head has all classes from the start. A class that no task has brought yet has no say: its column is left out of
# the loss, of gamma and of the accuracies.


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(CODES, 128, mode="mean", padding_idx=0)
        self.head = nn.Linear(128, num_classes)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(F.relu(self.grams(codes)))


def learn(
    start: nn.Module,
    task: int,
    memory: Tensor | None = None,
    *,
    masked: bool = False,
    distil: bool = False,
) -> nn.Module:
    """Return a copy of `start`, trained on one more task."""
    earlier, columns = (
        (task_of < task).nonzero().squeeze(1),
        (task_of <= task).nonzero().squeeze(1),
    )
    rows = train[task_of[labels[train]] == task]
    if memory is not None:
        rows = torch.cat([rows, memory])
    if (
        masked or distil
    ):  # The new classes are told apart among themselves; distilled outputs of earlier ones stay.
        columns = (task_of == task).nonzero().squeeze(1)
    position = torch.zeros(num_classes, dtype=torch.int64)
    position[columns] = torch.arange(len(columns))
    model, epochs, rate = (
        copy.deepcopy(start),
        (20 if task == 0 else 8),
        (0.02 if task == 0 else 0.005),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(64):
            logits = model(inputs[batch])
            loss = F.cross_entropy(logits[:, columns], position[labels[batch]])
            if distil:
                with torch.no_grad():
                    target = (start(inputs[batch])[:, earlier] / 2).softmax(1)
                loss = loss + 4 * F.cross_entropy(
                    logits[:, earlier] / 2, target
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


# %%
# Gamma after each task
# ---------------------
# What each row needs: *max_logit_gap* training names of the last task; *estimate_gamma* its held-out names, and so does
# *task_biases*, which compares the last task with each of the others in turn; *mixture_gamma* those and unlabelled
# names of all classes so far. A rehearsal memory, here two held-out names of every class so far, with labels, is what
# *search_gamma*, *BiC*, *task_biases, memory* and *fit_class_bias* need, the latter alone or after the biases of the
# tasks; *on trained names*, the search takes two names of every class that the model was trained on, in this task or an
# earlier one. Weight aligning takes nothing but the head: it scales the rows of the last task to the mean norm of the
# others. BiC fits a factor and a bias for the logits of the last task.


@torch.no_grad()
def score(model: nn.Module, rows: Tensor, columns: Tensor) -> finecal.Samples:
    """Return logits and labels among the classes of `columns`."""
    logits = model(inputs[rows])[:, columns]
    return finecal.Samples(logits, torch.searchsorted(columns, labels[rows]))


def aligned(model: nn.Module, task: int) -> nn.Module:
    """Return a copy whose rows of the last task are, in the mean, as long as those of the earlier ones."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        norms = model.head.weight.norm(dim=1)
        model.head.weight[task_of == task] *= (
            norms[task_of < task].mean() / norms[task_of == task].mean()
        )
    return model


def bias_corrected(
    logits: Tensor, memory: finecal.Samples, seen_mask: Tensor
) -> Tensor:
    """Return logits of which those of the last task are scaled and shifted: the second stage of BiC."""
    factor, shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.LBFGS(
        [factor, shift], max_iter=100, line_search_fn="strong_wolfe"
    )

    def corrected(logits: Tensor) -> Tensor:
        return torch.where(seen_mask, factor * logits + shift, logits)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(corrected(memory.logits), memory.labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    return corrected(logits).detach()


Row = tuple[
    str, float | None, float, float, float
]  # name, gamma, accuracies: last task, earlier, all


def row(
    name: str,
    logits: Tensor,
    true: Tensor,
    seen_mask: Tensor,
    gamma: float | None = 0.0,
) -> Row:
    report = finecal.evaluate(logits, true, seen_mask, gamma or 0.0)
    return name, gamma, report.acc_seen, report.acc_absent, report.acc_all


def compare(
    model: nn.Module, task: int
) -> tuple[list[Row], finecal.TradeoffCurve]:
    known = (task_of <= task).nonzero().squeeze(1)
    seen_mask = task_of[known] == task

    def of(rows: Tensor, *, last: bool = False) -> Tensor:
        return rows[
            task_of[labels[rows]] == task
            if last
            else task_of[labels[rows]] <= task
        ]

    scored = score(model, of(test), known)
    logits, true = scored.logits, scored.labels
    exemplars = score(model, of(held_out), known)
    trained = score(model, first_of_each_class(of(train), KEPT), known)
    held_out_seen = score(model, of(held_out, last=True), known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        gammas = {
            "gamma = 0": 0.0,
            "max_logit_gap": finecal.estimators.max_logit_gap(
                score(model, of(train, last=True), known), seen_mask
            ),
            "estimate_gamma": finecal.estimate_gamma(
                seen_mask, held_out=held_out_seen
            ),
            "mixture_gamma": finecal.estimators.mixture_gamma(
                held_out_seen, scored, seen_mask
            ),
            "search_gamma": finecal.search_gamma(exemplars, seen_mask),
            "  on trained names": finecal.search_gamma(trained, seen_mask),
        }
        per_task = finecal.estimators.task_biases(
            held_out_seen, task_of[known], is_held_out=True
        )
        by_memory = finecal.estimators.task_biases(
            held_out_seen,
            task_of[known],
            is_held_out=True,
            exemplars=exemplars,
        )
        per_class = finecal.calibrators.fit_class_bias(exemplars, seen_mask)
        after_tasks = finecal.calibrators.fit_class_bias(
            exemplars.logits + by_memory, exemplars.labels, seen_mask
        )
    curve = finecal.tradeoff_curve(scored, seen_mask)
    rows = [
        row(name, logits, true, seen_mask, float(gamma))
        for name, gamma in gammas.items()
    ]
    changed = {
        "weight aligning": score(aligned(model, task), of(test), known).logits,
        "BiC": bias_corrected(logits, exemplars, seen_mask),
        "task_biases": logits + per_task,
        "task_biases, memory": logits + by_memory,
        "fit_class_bias": per_class(logits),
        "  after task_biases": after_tasks(logits + by_memory),
    }
    rows += [
        row(name, other, true, seen_mask, None)
        for name, other in changed.items()
    ]
    rows.append(row("oracle", logits, true, seen_mask, curve.best()))
    return rows, curve


WAYS = {
    "plain": {},
    "memory": {},
    "distilled": {"distil": True},
    "masked": {"masked": True},
}
first = learn(Classifier(), task=0)
results = {}
for way, options in WAYS.items():
    model = first
    for task in range(1, TASKS):
        earlier = train[task_of[labels[train]] < task]
        memory = (
            first_of_each_class(earlier, REHEARSED) if way == "memory" else None
        )
        model = learn(model, task, memory, **options)
        results[way, task] = compare(model, task)

# %%
# After the second task there are 194 classes, after the third 291:

for (way, task), (rows, _) in results.items():
    print(f"\n{way}, after task {task + 1}    gamma   last  earlier    all")
    for name, gamma, last, earlier, overall in rows:
        number = "" if gamma is None else f"{gamma:.2f}"
        print(
            f"  {name:20} {number:>8} {100 * last:6.1f} {100 * earlier:8.1f} {100 * overall:6.1f}"
        )

# %%
# The curve after the last task
# -----------------------------
# One gamma moves a model along its curve, and the oracle is the best point of it. The two earlier tasks were pushed
# down by different amounts, which no single gamma can make good: a bias for each of them leaves the curve (cross), and
# so may a bias for each class (plus), which needs labels of all of them.

figure, axes = plt.subplots(1, 4, figsize=(15, 4.8), layout="constrained")
for ax, way in zip(axes, WAYS, strict=True):
    rows, curve = results[way, TASKS - 1]
    points = {
        name: (gamma, last, earlier) for name, gamma, last, earlier, _ in rows
    }
    plot_tradeoff(
        curve, ax, gammas={"estimate_gamma": points["estimate_gamma"][0]}
    )
    for name, marker in {"task_biases": "X", "fit_class_bias": "P"}.items():
        ax.scatter(
            *points[name][1:],
            marker=marker,
            s=70,
            color="C4",
            edgecolors="black",
            linewidths=0.8,
            zorder=3.5,
        )
    ax.set_title(f"{way}: AUSUC {curve.ausuc:.3f}")
