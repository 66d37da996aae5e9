"""Samples that processes share, over gloo; as a script: two processes, each of which runs every check in `CHECKS`."""

import copy
import io
import tempfile
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from itertools import chain

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, TensorDataset

import finecal
import processes
from finecal._models.shares import order_of
from pages import blocks

MASK = torch.tensor([True, True, True, False, False, False])
N = 121


class Numbered(Dataset):
    """Features that tell each sample from all others, with labels of seen classes, or of all six."""

    def __init__(self, n=N, classes=3):
        generator = torch.Generator().manual_seed(1)
        self.y = torch.arange(n) % classes
        self.x = 2 * torch.randn(6, 8, generator=generator)[self.y] + torch.randn(n, 8, generator=generator)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def trained():
    """Return a model with buffers that are not those that it started with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))
    optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Numbered()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x), data.y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def plain(model):
    return model


def fsdp1(model):
    return fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def fsdp1_original(model):
    return fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def fsdp2(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fsdp.fully_shard(model[0], mesh=mesh)
    return fsdp.fully_shard(model, mesh=mesh)


SHARDED = {"FSDP1": fsdp1, "FSDP1 with original parameters": fsdp1_original, "FSDP2": fsdp2}
if not hasattr(fsdp, "fully_shard"):  # older torch, whose gloo lacks the collectives of FSDP
    SHARDED = {}
WRAPPERS = {"plain": plain, "DDP": DistributedDataParallel, **SHARDED}


def gamma(model, loader, **kwargs):
    """Return gamma and the number of samples that it is from."""
    arguments = {"is_held_out": False, "seen_mask": MASK, "verbose": False, **kwargs}
    estimate = finecal.calibrate_model(model, loader, **arguments).calibrator.estimate
    return [estimate.gamma, estimate.n]


def sharded(data, size=16, **kwargs):
    return DataLoader(data, size, sampler=DistributedSampler(data, **{"shuffle": False, **kwargs}))


def expected(model=None):
    """Return the gamma of a process that scores everything by itself, without `calibrate_model`."""
    data = Numbered()
    samples = finecal.Samples((model or trained()).eval()(data.x).detach(), data.y)
    estimate = finecal.estimate_gamma(MASK, train=samples)
    return [estimate.gamma, estimate.n]


def refusal(function, kind=ValueError):
    with pytest.raises(kind) as raised:
        function()
    return str(raised.value)


# --- in each of two processes -----------------------------------------------------------------------------------------


def check_wrapped_models(rank):
    results = {}
    for name, wrap in WRAPPERS.items():
        whole = trained()
        model = wrap(copy.deepcopy(whole))
        calibrated = finecal.calibrate_model(
            model, sharded(Numbered()), is_held_out=False, seen_mask=MASK, verbose=False
        )
        own = Numbered().x[rank::2]
        expected_logits = finecal.AdditiveBias(MASK, calibrated.calibrator.gamma)(whole.eval()(own))
        calibrated.eval()
        with torch.no_grad():
            torch.testing.assert_close(calibrated(own), expected_logits.detach(), rtol=1e-4, atol=1e-4)
        calibrated(own).sum().backward()  # gradients are still to be had
        results[name] = [calibrated.calibrator.estimate.gamma, calibrated.calibrator.estimate.n]
    return results


def check_folds(rank):
    """Sharded heads are refused, and nothing is changed; the whole model is folded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    results = {}
    calibrator = finecal.AdditiveBias(MASK, 1.5)
    for name, wrap in SHARDED.items():
        model = wrap(trained())
        own = Numbered().x
        for _ in range(2):  # once before the model has run, and once afterwards
            results.setdefault(name, []).append(refusal(lambda model=model: finecal.fold_into_head(model, calibrator)))
            with torch.no_grad():
                model.eval()(own)
        wrapper = finecal.CalibratedModel(model, calibrator)
        results[name].append(refusal(lambda wrapper=wrapper, own=own: wrapper.fold(own)))
        with torch.no_grad():
            calibrated = wrapper(own)
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            whole = trained().eval()
            whole.load_state_dict(weights)
            folded = finecal.fold_into_head(whole, calibrator, inputs=own)
            torch.testing.assert_close(folded(own), calibrated, rtol=1e-4, atol=1e-4)
        if name.startswith("FSDP1"):
            with fsdp.FullyShardedDataParallel.summon_full_params(model):
                finecal.fold_into_head(model, calibrator)
            with torch.no_grad():
                torch.testing.assert_close(model(own), calibrated, rtol=1e-4, atol=1e-4)
    return results


def check_page(rank):
    """The guide's script, for each way to wrap a model; accuracies are those of its report and of the saved weights."""
    script, restoring, _, _, _, checking, *_ = blocks("docs/how-to/distributed.md", "python")
    results = {}
    for name, wrap in WRAPPERS.items():
        names = {
            "model": wrap(trained()),
            "train_set": Numbered(),
            "test_set": Numbered(95, classes=6),
            "seen_mask": MASK,
            "make_model": trained,
        }
        with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(io.StringIO()):
            exec(script, names)
            report = names["report"]
            if rank == 0:
                exec(restoring, names)
                exec(checking, names)
        results[name] = [names["calibrator"].gamma.item(), report.acc_all, report.n_seen + report.n_absent]
    return results


def check_loaders(rank):
    """Gamma of loaders that share samples in other ways, or do not."""
    data, model = Numbered(), trained()
    ragged = [range(30), range(30, N)][rank]
    own = Numbered()
    own.x, own.y = data.x[ragged], data.y[ragged]
    torch.manual_seed(rank)
    return {
        "shuffled": gamma(model, sharded(data, shuffle=True)),
        "batch sampler": gamma(
            model, DataLoader(data, batch_sampler=BatchSampler(DistributedSampler(data, shuffle=False), 5, False))
        ),
        "dropped": gamma(model, sharded(data, drop_last=True)),
        "not sharded": gamma(model, DataLoader(data, 16)),
        "not sharded, shuffled": gamma(model, DataLoader(data, 16, shuffle=True)),
        "a list": gamma(model, [(data.x, data.y)]),
        "the same share": gamma(model, sharded(data, num_replicas=1, rank=0)),
        "by hand": gamma(model, DataLoader(own, 16)),
        "by hand, bfloat16": gamma(copy.deepcopy(model).bfloat16(), [(own.x, own.y)]),
    }


def check_more_data(rank):
    """Held-out and unlabelled samples, with the features of prototypes; and positions of pictures."""
    others = Numbered(95, classes=6)
    with redirect_stderr(io.StringIO()) as printed:
        calibrated = with_unlabelled(sharded(Numbered()), sharded(others, 7))
    dense = dense_estimate(sharded(pictures()))
    search = interpolation_search(sharded(Numbered()))
    frames = frames_estimate(sharded(lines_of_text()))
    return {
        "frames": [frames.gamma, frames.n, *frames.interval],
        "search": [search.alpha, search.gamma.gamma, search.n],
        "printed": bool(printed.getvalue()),
        "prototypes": [calibrated.calibrator.estimate.gamma, calibrated.calibrator.weight.norm().item()],
        "positions": [dense.gamma, dense.n, *dense.interval],
    }


def interpolation_search(loader):
    torch.manual_seed(1)
    before = nn.Linear(8, 6)
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.bias[MASK] += 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # models as inaccurate as they are
        return finecal.weights.search_interpolation(before, after, loader, seen_mask=MASK, progress=False)


def with_unlabelled(seen, unlabelled):
    arguments = {"is_held_out": True, "seen_mask": MASK, "unlabelled_loader": unlabelled, "with_prototypes": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # the absent classes are noise
        return finecal.calibrate_model(trained(), seen, **arguments)


def pictures():
    data = Numbered(31)
    return TensorDataset(
        data.x[:, :6, None, None].expand(-1, -1, 2, 2) + torch.arange(4.0).reshape(2, 2),
        data.y[:, None, None].expand(-1, 2, 2),
    )


def dense_estimate(loader):
    model = nn.Conv2d(6, 6, 1)
    with torch.no_grad():
        model.weight.copy_(torch.eye(6)[:, :, None, None])
        model.bias.copy_(4 * MASK.float())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # as inaccurate a model as it is
        calibrated = finecal.calibrate_model(
            model, loader, is_held_out=False, seen_mask=MASK, positions=finecal.Positions(1), n_bootstrap=20,
            verbose=False,
        )  # fmt: skip
    return calibrated.calibrator.estimate


def lines_of_text():
    """Lines of 7 frames with a character of three in the middle; class 0 is the blank."""
    generator = torch.Generator().manual_seed(2)
    texts = 1 + torch.arange(31) % 3
    frames = torch.randn(31, 7, 6, generator=generator)
    frames[:, [0, 1, 5, 6], 0] += 5
    frames[torch.arange(31), 2:5, texts] += 5
    return TensorDataset(frames, texts[:, None])


class TimeFirst(nn.Module):
    def forward(self, frames):
        return frames.transpose(0, 1)


def frames_estimate(loader):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # few samples of classes that are noise
        calibrated = finecal.calibrate_model(
            TimeFirst(), loader, is_held_out=False, seen_mask=[True, *MASK[:3].tolist(), False, False],
            positions=finecal.sequences.CtcFrames(batch_first=False), n_bootstrap=20, verbose=False,
        )  # fmt: skip
    return calibrated.calibrator.estimate


def check_refusals(rank):
    data, model = Numbered(), DistributedDataParallel(trained())
    own = DataLoader(Numbered(), 16, sampler=range(33 * (rank + 1)))
    other = DistributedSampler(data)
    other.set_epoch(rank)

    def twice(batch):
        inputs, labels = torch.utils.data.default_collate(batch)
        return inputs.repeat(2, 1), labels.repeat(2)

    return {
        "unequal": refusal(lambda: gamma(model, own)),
        "unequal is well": gamma(trained(), own)[1],
        "epoch": refusal(lambda: gamma(model, DataLoader(data, 16, sampler=other))),
        "one is sharded": refusal(lambda: gamma(model, sharded(data) if rank else DataLoader(data, 16))),
        "length": refusal(lambda: gamma(model, sharded(Numbered(2 + rank)))),
        "rows": refusal(lambda: gamma(model, DataLoader(data, 16, sampler=DistributedSampler(data), collate_fn=twice))),
    }


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


# --- in one -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return processes.run_as_script(__file__, tmp_path_factory.mktemp("processes"))


@pytest.fixture
def found(results):
    """Return a function that returns what a check has returned in both processes, which is the same."""

    def of(check):
        first, second = (result.get(check, {"failed": f"stopped at {list(result)[-1:]}"}) for result in results)
        for each in (first, second):
            assert "failed" not in each, each["failed"]
        return first, second

    return of


def test_wrapped_models_have_the_gamma_of_one_process(found):
    first, second = found("wrapped_models")
    assert first == second
    assert list(first) == list(WRAPPERS)
    for value, n in first.values():
        assert (value, n) == (pytest.approx(expected()[0], rel=1e-4), N)


def test_page_gives_the_accuracies_of_one_process(found):
    first, second = found("page")
    assert first == second
    assert list(first) == list(WRAPPERS)
    test = Numbered(95, classes=6)
    for gamma, acc_all, n in first.values():
        report = finecal.evaluate(trained().eval()(test.x).detach(), test.y, MASK, gamma)
        assert (acc_all, n) == (pytest.approx(report.acc_all, abs=1e-6), 95)
        assert gamma == pytest.approx(expected()[0], rel=1e-4)


def test_sharded_heads_are_not_folded(found):
    for result in found("folds"):
        assert list(result) == list(SHARDED)
        for message in chain.from_iterable(result.values()):
            assert "3 is shared out among processes (FSDP, or a DTensor); fold before the model is sharded" in message


def test_each_sample_counts_once(found):
    first, second = found("loaders")
    assert first == second
    whole = expected()
    half = expected(model=trained().bfloat16().float())
    for name, (value, n) in first.items():
        assert n == (N - 1 if name == "dropped" else N), name
        exact = name in ("batch sampler", "not sharded", "a list", "the same share", "by hand")
        # In another order, other pairs of samples are mixed.
        assert value == pytest.approx((half if "bfloat16" in name else whole)[0], rel=1e-4 if exact else 0.05), name


def test_features_and_pictures_are_gathered(found):
    first, second = found("more_data")
    assert (first.pop("printed"), second.pop("printed")) == (True, False)
    assert first == second
    one = with_unlabelled(DataLoader(Numbered(), 16), DataLoader(Numbered(95, classes=6), 7)).calibrator
    assert first["prototypes"] == pytest.approx([one.estimate.gamma, one.weight.norm().item()], rel=1e-3)
    search = interpolation_search(DataLoader(Numbered(), 16))
    assert first["search"] == [search.alpha, pytest.approx(search.gamma.gamma, rel=1e-4), N]
    frames = frames_estimate(DataLoader(lines_of_text(), 16))
    assert first["frames"] == pytest.approx([frames.gamma, frames.n, *frames.interval], rel=1e-4)
    dense = dense_estimate(DataLoader(pictures(), 16))
    assert first["positions"] == pytest.approx([dense.gamma, dense.n, *dense.interval], rel=1e-4)


def test_what_cannot_be_shared_is_refused_everywhere(found):
    first, second = found("refusals")
    assert first == second
    assert first["unequal"].startswith("seen_loader has 3, 5 batches in processes 0 to 1, but all must run this model")
    assert first["unequal is well"] == 33 + 66
    assert "seen_loader: epoch differs between processes 0 and 1 (0; 1)" in first["epoch"]
    assert "seen_loader: order of samples differs between processes 0 and 1" in first["one is sharded"]
    assert "seen_loader: length differs between processes 0 and 1 (2; 3)" in first["length"]
    assert "more rows of logits than the sampler of the loader draws samples" in first["rows"]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_places_in_the_order_of_the_sampler(replicas):
    """Samplers of few and many samples: the places of those that count are all, once, and each has its sample."""
    for n in range(1, 14):
        for size in (1, 2, 4):
            came = {}
            for rank in range(replicas):
                loader = DataLoader(range(n), size, sampler=DistributedSampler(range(n), replicas, rank, shuffle=False))
                order = order_of(loader)
                for batch in loader:
                    places = order.take(len(batch))
                    came |= dict(zip(places, batch[: len(places)].tolist(), strict=True))
            assert came == {i: i for i in range(n)}


def test_processes_that_do_not_come(monkeypatch):
    def never(*args):
        raise RuntimeError("timed out")

    monkeypatch.setattr("finecal._models.shares.world", lambda group: (2, 0))
    monkeypatch.setattr("finecal._models.shares.all_gather_ints", never)
    with pytest.raises(RuntimeError, match=r"did not come \(timed out\); call this in all processes"):
        gamma(trained(), sharded(Numbered(), num_replicas=2, rank=0))


def test_orders_that_are_not_known():
    class Mine(DistributedSampler):
        pass

    data = range(8)
    for loader in (
        [1, 2],
        DataLoader(data, 2),
        DataLoader(data, 2, sampler=Mine(data, 2, 0)),
        DataLoader(data, batch_size=None, sampler=DistributedSampler(data, 2, 0)),
        DataLoader(data, batch_sampler=[[0, 1]]),
    ):
        assert order_of(loader) is None


if __name__ == "__main__":
    warnings.simplefilter("error", finecal.FinecalWarning)
    processes.main(CHECKS)
