"""One bias a task as a plugin of Avalanche: accuracy on scikit-learn's digits without and with it. See ../README.md."""

import statistics
import warnings

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import LwF, Naive, Replay
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import finecal
from finecal._core.results import format_table

DISTIL, REMEMBER = {"alpha": 1.0, "temperature": 2.0}, {"mem_size": 50}
STRATEGIES = {"Naive": (Naive, {}), "LwF": (LwF, DISTIL), "Replay": (Replay, REMEMBER)}
TASKS, TRAINING, SEEDS = 5, 1200, range(5)


class TaskBiases(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.classes, self.bias = [], torch.zeros(0)

    def after_training_exp(self, strategy, **kwargs):
        experience = strategy.experience
        self.classes.append(list(experience.classes_in_this_experience))
        newest = experience.dataset.eval()  # without a replay memory
        samples = finecal.collect_logits(
            strategy.model,
            DataLoader(newest, batch_size=128),
            batch=lambda b: b[:2],
            progress=False,
        )
        tasks = torch.full((samples.num_classes,), -1)
        for task, classes in enumerate(self.classes):
            tasks[classes] = task
        bias = finecal.estimators.task_biases(samples, tasks, is_held_out=False)
        self.bias = bias.to(strategy.device)

    def after_eval_forward(self, strategy, **kwargs):
        strategy.mb_output[:, : len(self.bias)] += self.bias


def accuracies(name: str, grows: bool, seed: int) -> tuple[float, float, bool]:
    """Return accuracy on all classes after the last task, in %: without and with biases; and whether finecal warned."""
    torch.manual_seed(seed)
    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(inputs / 16, dtype=torch.float32), torch.tensor(labels)
    parts = []
    for rows in torch.randperm(len(labels)).tensor_split([TRAINING]):
        part = TensorDataset(inputs[rows], labels[rows])
        part.targets = labels[rows].tolist()
        parts.append(as_classification_dataset(part))
    tasks = nc_benchmark(*parts, n_experiences=TASKS, task_labels=False, seed=seed)
    head = IncrementalClassifier(128, 10 // TASKS) if grows else nn.Linear(128, 10)
    model, plugin = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), head), TaskBiases()
    strategy, options = STRATEGIES[name]
    trained = {"optimizer": torch.optim.Adam(model.parameters(), lr=0.001), "criterion": nn.CrossEntropyLoss()}
    scored = {"evaluator": EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]), "plugins": [plugin]}
    trainer = strategy(model=model, train_mb_size=32, train_epochs=8, **trained, **scored, **options)
    for experience in tasks.train_stream:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", finecal.FinecalWarning)
            trainer.train(experience)
    found = []
    for bias in (torch.zeros(0), plugin.bias):
        plugin.bias = bias
        found += [100 * value for key, value in trainer.eval(tasks.test_stream).items() if "Acc_Stream" in key]
    return *found, any(issubclass(warning.category, finecal.FinecalWarning) for warning in caught)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for name in STRATEGIES:
        for head, grows in {"growing": True, "fixed": False}.items():
            without, with_biases, warned = zip(*(accuracies(name, grows, seed) for seed in SEEDS), strict=True)
            lost = [w for before, after, w in zip(without, with_biases, warned, strict=True) if before - after > 1]
            means = (f"{statistics.fmean(found):.1f}" for found in (without, with_biases))
            rows.append([f"{name}, {head} head", *means, str(len(lost)), str(lost.count(False))])
    print(format_table(["", "without", "with biases", "lost", "without a warning"], rows))
