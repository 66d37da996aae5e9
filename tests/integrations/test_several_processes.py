"""Accelerate, Hugging Face's Trainer and Lightning in two processes; as a script: these processes."""

import os
import tempfile
import warnings

import lightning
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import BatchSamplerShard
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler
from transformers import Trainer, TrainingArguments

import finecal
import processes
from finecal._models.shares import order_of
from finecal.distributed import collect_sharded, merge_across_processes
from finecal.integrations.lightning import CalibrationCallback
from finecal.integrations.transformers import CalibrationCallback as TrainerCallback
from finecal.streaming import MarginRows
from pages import blocks

MASK = torch.tensor([True, True, True, False, False, False])
N = 121


class Points(Dataset):
    """Points around the centre of their class, as pairs or as mappings."""

    def __init__(self, n=N, classes=3, are_named=False):
        generator = torch.Generator().manual_seed(1)
        self.y = torch.arange(n) % classes
        self.x = 2 * torch.randn(6, 8, generator=generator)[self.y] + torch.randn(n, 8, generator=generator)
        self.are_named = are_named

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i]} if self.are_named else (self.x[i], self.y[i])


class Classifier(lightning.LightningModule):
    """With batch norms, whose buffers differ between processes after a step of training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 6)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trained():
    model, data = Classifier(), Points()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(data.x), data.y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def by_itself(model):
    """Return gamma, and the accuracy with it, of this process, without `calibrate_model`."""
    data, test = Points(), Points(95, classes=6)
    model.eval()
    with torch.no_grad():
        train, logits = finecal.Samples(model(data.x), data.y), model(test.x)
    gamma = finecal.estimate_gamma(MASK, train=train).gamma
    return [gamma, finecal.evaluate(logits, test.y, MASK, gamma).acc_all]


def result(calibrated):
    test = Points(95, classes=6)
    calibrated.eval()
    with torch.no_grad():
        acc_all = finecal.evaluate(calibrated(test.x), test.y, MASK).acc_all
    estimate = calibrated.calibrator.estimate
    return [estimate.gamma, acc_all, estimate.n]


def blocks_of_page():
    return blocks("docs/how-to/distributed.md", "python")[2:5]


# --- in each of two processes -----------------------------------------------------------------------------------------


def check_accelerate(rank):
    script, _, _ = blocks_of_page()
    names = {
        "make_model": trained,
        "train_set": Points(),
        "test_set": Points(95, classes=6),
        "seen_mask": MASK,
        "DataLoader": DataLoader,
        "finecal": finecal,
        "MarginRows": MarginRows,
        "collect_sharded": collect_sharded,
        "merge_across_processes": merge_across_processes,
    }
    exec(script, names)
    assert names["accelerator"].num_processes == 2
    report = names["report"]
    whole = trained()
    whole.load_state_dict(names["weights"])
    results = {"page": result(names["calibrated"]), "by itself": by_itself(whole)}
    for name, settings in {
        "split": {"split_batches": True},
        "dispatched": {"dispatch_batches": True},
        "dispatched and split": {"dispatch_batches": True, "split_batches": True},
        "uneven": {"even_batches": False},
    }.items():
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**settings))
        loader = accelerator.prepare(DataLoader(Points(), 16))
        assert order_of(loader).by_batch
        rows = collect_sharded(whole, loader, into=MarginRows(MASK), progress=False)
        assert len(merge_across_processes(rows).compute()) == N
        results[name] = result(finecal.calibrate_model(whole, loader, is_held_out=False, seen_mask=MASK))
    shuffled = Accelerator().prepare(DataLoader(Points(), 16, shuffle=True))
    results["shuffled"] = result(finecal.calibrate_model(whole, shuffled, is_held_out=False, seen_mask=MASK))
    uneven = Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False)).prepare(
        DataLoader(Points(), 11)
    )
    for collect in (
        lambda: collect_sharded(names["model"], uneven, into=MarginRows(MASK)),
        lambda: finecal.calibrate_model(names["model"], uneven, is_held_out=False),
    ):
        with pytest.raises(ValueError, match="has 6, 5 batches in processes 0 to 1, but all must run"):
            collect()
    return {**results, "report": [report.acc_all, report.n_seen + report.n_absent]}


def check_trainer(rank):
    _, script, _ = blocks_of_page()
    train_set = Points(are_named=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=40, learning_rate=0.01, save_strategy="no", report_to="none", disable_tqdm=True,
            per_device_train_batch_size=16, per_device_eval_batch_size=16, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(trained(), arguments, train_dataset=train_set)
        callback = TrainerCallback(trainer, MASK)
        trainer.add_callback(callback)
        trainer.train()
    names = {"trainer": trainer, "train_set": train_set, "finecal": finecal}
    exec(script, names)
    return {
        "page": result(names["calibrated"]),
        "callback": callback.estimate.gamma,
        "by itself": by_itself(trainer.model),
    }


def check_lightning(rank):
    _, _, script = blocks_of_page()
    train_set = Points()
    module, callback = trained(), CalibrationCallback(MASK)
    trainer = lightning.Trainer(
        max_epochs=4, callbacks=[callback], accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(train_set, 16, shuffle=True))
    names = {
        "module": module,
        "train_set": train_set,
        "finecal": finecal,
        "loader": lambda data: DataLoader(data, 16, sampler=DistributedSampler(data, shuffle=False)),
    }
    exec(script, names)
    return {"page": result(names["calibrated"]), "callback": callback.estimate.gamma, "by itself": by_itself(module)}


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


# --- in one -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return processes.run_as_script(__file__, tmp_path_factory.mktemp("processes"))


def found(results, check):
    for each in results:
        assert "failed" not in each.get(check, {}), each[check]["failed"]
    return [each[check] for each in results]


def test_accelerate(results):
    """Each sample counts once, whichever way a loader is shared; gamma is that of one process."""
    first, second = found(results, "accelerate")
    assert first == second
    gamma, acc_all = first.pop("by itself")
    assert first.pop("report") == [pytest.approx(acc_all, abs=1e-6), 95]
    assert first.pop("shuffled") == [pytest.approx(gamma, rel=0.05), pytest.approx(acc_all, abs=0.05), N]
    for name, found_one in first.items():
        assert found_one == [pytest.approx(gamma, rel=1e-4), pytest.approx(acc_all), N], name


@pytest.mark.parametrize("library", ["trainer", "lightning"])
def test_trainers(library, results):
    """In Lightning, batch norms differ between processes, and gamma is that of both models together."""
    first, second = found(results, library)
    tolerance = 1e-4 if library == "trainer" else 0.02
    (gamma, _, n), (other, _, _) = first["page"], second["page"]
    assert (gamma, n) == (other, N)
    for one in (first, second):
        assert one["by itself"][0] == pytest.approx(gamma, rel=tolerance)
        assert one["callback"] == pytest.approx(one["by itself"][0], rel=1e-4)
        assert one["page"][1] == pytest.approx(one["by itself"][1], abs=0.02)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("sampler", [SequentialSampler, RandomSampler])
def test_places_in_the_order_of_accelerate(split, sampler):
    """The places of the samples that count are all, once, and hold the samples in the order of the sampler."""
    for replicas in (1, 2, 3):
        for n in range(1, 20):
            for even in (False, True):
                drawn, came = [], {}
                for rank in range(replicas):
                    torch.manual_seed(n)
                    batches = BatchSampler(sampler(range(n)), 2 * replicas if split else 2, drop_last=False)
                    torch.manual_seed(n)
                    drawn = list(batches.sampler)
                    torch.manual_seed(n)
                    shard = BatchSamplerShard(batches, replicas, rank, split_batches=split, even_batches=even)
                    loader = DataLoader(range(n), batch_sampler=shard)
                    order = order_of(loader)
                    for indices in shard:
                        places = order.take(len(indices))
                        came |= dict(zip(places, indices[: len(places)], strict=True))
                assert [came[place] for place in range(n)] == drawn
                assert len(came) == n


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    processes.main(CHECKS)
