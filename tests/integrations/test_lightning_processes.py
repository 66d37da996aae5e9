"""Lightning's callback in two processes, over gloo; as a script: the trainings that the tests look at."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

SOME = list(range(0, 480, 4))
SAMPLES = {
    "sequential": 480,
    "shuffled": 480,
    "list": 120,
    "shares": 120,
    "weighted": 120,
    "batches": 120,
    "batch norm": 480,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    subprocess.run([sys.executable, __file__, folder], check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", SAMPLES)
def test_all_processes_score_the_samples_of_all(folder, name):
    first, second = (json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["samples"] == SAMPLES[name]
    if name != "weighted":  # which draws some twice
        assert sorted(first["rows"]) == (SOME if SAMPLES[name] == 120 else list(range(480)))


def train_all(folder):
    import lightning.pytorch as L
    import torch
    from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

    from finecal.integrations.lightning import CalibrationCallback
    from test_lightning import MASK, Noted, make_module, samples

    class Shares(Sampler):
        """Gives each process a share of the rows, by itself."""

        def __iter__(self):
            return iter(SOME[torch.distributed.get_rank() :: 2])

        def __len__(self):
            return len(SOME) // 2

    settings = {
        "sequential": {"batch_size": 16},
        "shuffled": {"batch_size": 16, "shuffle": True},
        "list": {"batch_size": 16, "sampler": SOME},
        "shares": {"batch_size": 16, "sampler": Shares()},
        "weighted": {"batch_size": 16, "sampler": WeightedRandomSampler(torch.arange(480) % 4 == 0, 120)},
        "batches": {"batch_sampler": [SOME[i : i + 12] for i in range(0, 120, 12)]},
        "batch norm": {"batch_size": 16, "shuffle": True},
    }

    class Write(L.Callback):
        def on_train_end(self, trainer, module):
            count = callback.estimate.n
            found = {"samples": count, "gamma": callback.estimate.gamma, "rows": data.asked[-count:]}
            (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(found))

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    for name, each in settings.items():
        data, callback = Noted(*samples(480, 3).tensors), CalibrationCallback(MASK)
        trainer = L.Trainer(
            callbacks=[callback, Write()],
            max_epochs=1,
            accelerator="cpu",
            devices=2,
            strategy="ddp_fork",
            use_distributed_sampler=name not in ("shares", "weighted", "batches"),
            default_root_dir=folder,
            **quiet,
        )
        module = make_module()
        if name == "batch norm":  # of whose statistics each process has its own
            module.body = torch.nn.Sequential(module.body, torch.nn.BatchNorm1d(12))
        trainer.fit(module, DataLoader(data, **each))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    train_all(Path(sys.argv[1]))
