"""States of several processes, over gloo; as a script: these processes, each of which runs every check in `CHECKS`."""

import contextlib
import copy
import datetime
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import finecal
from finecal import distributed
from finecal.distributed import collect_sharded, collective_device, merge_across_processes
from finecal.streaming import (
    AccuracySums,
    BestGamma,
    ClassSums,
    GapSums,
    IoUBins,
    IoUSums,
    MarginBins,
    MarginRows,
    ProbabilitySums,
    PrototypeSums,
)
from finecal.streaming._state import State

MASK = torch.tensor([True, False, True, True, False, False])


def best(mask=MASK):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, len(mask), generator=generator) * 3
    return BestGamma(MarginBins(mask, 4, 2.0).update(logits, torch.arange(60) % len(mask)))


KINDS = {
    "gaps": lambda mask=MASK: GapSums(mask),
    "accuracies": lambda mask=MASK, gamma=0.5: AccuracySums(mask, gamma),
    "classes": lambda mask=MASK: ClassSums(mask),
    "probabilities": lambda mask=MASK, edges=(0.0, 0.3, 0.7, 1.0): ProbabilitySums(mask, 0.5, 7, edges),
    "margins": lambda mask=MASK: MarginRows(mask),
    "labelled margins": lambda mask=MASK: MarginRows(mask, keep_labels=True),
    "bins": lambda mask=MASK: MarginBins(mask, 50, 4.0),
    "best gamma": best,
    "IoU": lambda mask=MASK, gamma=0.5: IoUSums(mask, gamma, background=3),
    "IoU bins": lambda mask=MASK: IoUBins(mask, 50, 4.0, background=3),
}
SAMPLES = 61
DOCS = Path(__file__).parents[1] / "docs"


def samples(dtype=torch.float32, n=SAMPLES, offset=0.0):
    """Return logits, some of them -inf, and labels of seen classes, which all states take."""
    generator = torch.Generator().manual_seed(0)
    labels = MASK.nonzero().flatten()[torch.randint(3, (n,), generator=generator)]
    logits = torch.randn(n, 6, generator=generator, dtype=torch.float64) * 3 + offset
    logits[torch.rand(n, 6, generator=generator) < 0.1] = -torch.inf
    logits[torch.arange(n), labels] = 9 + offset
    return logits.to(dtype), labels


def shards(size, n=SAMPLES):
    """Cut n samples into consecutive parts, one per process, in several ways."""
    even = torch.arange(n).tensor_split(size)
    ragged = torch.arange(n).tensor_split([2 * i * i + 3 for i in range(size - 1)])
    nothing = torch.arange(0)
    return {
        "even": even,
        "ragged": ragged,
        "first is empty": [nothing, *torch.arange(n).tensor_split(size - 1)],
        "last has all": [nothing] * (size - 1) + [torch.arange(n)],
        "all are empty": [nothing] * size,
    }


def assert_same(found, expected):
    """Counts and rows agree bit for bit, sums to 1e-12."""
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        if value.dtype != torch.float64 or name == "margin":
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))


def dataset(n):
    """Return inputs that tell each sample from all others, with labels."""
    return TensorDataset(torch.arange(3.0 * n).reshape(n, 3) / 7, (torch.arange(n) + 1) % 6)


def once(model, data):
    """Return the margins and labels of each sample, as sorted rows."""
    inputs, labels = data.tensors
    with torch.no_grad():
        return rows_of(MarginRows(MASK, keep_labels=True).update(model.eval()(inputs), labels))


def rows_of(state):
    rows = state.compute()
    return sorted(zip(rows.margin.tolist(), rows.label.tolist(), strict=True))


def assert_rows(found, expected):
    assert len(found) == len(expected)
    assert [label for _, label in found] == [label for _, label in expected]
    assert [margin for margin, _ in found] == pytest.approx([margin for margin, _ in expected], rel=1e-5)


# --- in each of several processes -------------------------------------------------------------------------------------


def everywhere(kind, match, function):
    """The call raises the same error in every process."""
    with pytest.raises(kind, match=match) as raised:
        function()
    messages = [None] * dist.get_world_size()
    dist.all_gather_object(messages, str(raised.value))
    assert len(set(messages)) == 1, messages


def check_states_equal_one_process(rank, size):
    for name, make in KINDS.items():
        for dtype in (torch.float32, torch.float64):
            for share, rows in shards(size).items():
                logits, labels = samples(dtype)
                state = make()
                for part in rows[rank].split(5 + rank):
                    state.update(logits[part], labels[part])
                before = copy.deepcopy(state)
                result = merge_across_processes(state)
                every = torch.cat(rows)
                expected = make().update(logits[every], labels[every]) if len(every) else make()
                if result._growing and not len(every):  # the dtype is that of the empty batches
                    expected = before
                try:
                    assert_same(result, expected)
                    assert_same(state, before)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {dtype}, {share}") from error


def check_all_processes_get_the_same_bits(rank, size):
    logits, labels = samples(offset=1e6)
    for make in KINDS.values():
        own = make().update(logits[rank::size], labels[rank::size])
        first = {name: value.clone() for name, value in merge_across_processes(own).state_dict().items()}
        for value in first.values():
            received = value.to(torch.uint8) if value.dtype == torch.bool else value.clone()
            sent = received.clone()
            dist.broadcast(received, 0)
            assert torch.equal(received, sent)


def check_states_go_on(rank, size):
    """Merged, updated, merged again: nothing counts twice; and what is merged can be updated by itself."""
    logits, labels = samples()
    for make in KINDS.values():
        state = make().update(logits[rank:30:size], labels[rank:30:size])
        result = merge_across_processes(state)
        kept = copy.deepcopy(result)
        state.update(logits[30 + rank :: size], labels[30 + rank :: size])
        assert_same(result, kept)
        order = torch.cat(
            [torch.cat([torch.arange(r, 30, size), torch.arange(30 + r, SAMPLES, size)]) for r in range(size)]
        )
        assert_same(merge_across_processes(state), make().update(logits[order], labels[order]))
        both = result.update(logits[:4], labels[:4]).merge(kept)
        assert_same(both.load_state_dict(kept.state_dict()), kept)
        tensors = [value for value in merge_across_processes(kept).state_dict().values() if value.numel()]
        stored = {value.untyped_storage().data_ptr() for value in tensors}
        assert len(stored) == len(tensors)  # safetensors refuses tensors that share memory


def check_mixed_precision(rank, size):
    """One process has float64 margins, and the others float32 ones."""
    logits, labels = samples(torch.float64)
    dtypes = [torch.float64 if r == 1 else torch.float32 for r in range(size)]
    states = [MarginRows(MASK).update(logits[r::size].to(dtypes[r]), labels[r::size]) for r in range(size)]
    result = merge_across_processes(states[rank])
    expected = MarginRows(MASK)
    for state in states:
        expected.merge(state)
    assert result.compute().margin.dtype == torch.float64
    assert_same(result, expected)


def check_more_samples_than_one_buffer(rank, size):
    """Rows of hundreds of kilobytes, of one process only."""
    n = 100_000 if rank == 1 else 0
    state = MarginRows(MASK, keep_labels=True)
    if n:
        state.update(torch.arange(6.0 * n).reshape(n, 6).sin(), torch.arange(n) % 6)
    result = merge_across_processes(state).compute()
    assert len(result) == 100_000
    assert torch.equal(result.label, torch.arange(100_000) % 6)


def check_few_collectives(rank, size):
    """One for the settings, and one per dtype of the sums, or one for all."""
    names, kept = ("all_gather", "all_reduce"), {}
    called = []

    def counting(name):
        def call(*args, **kwargs):
            called.append(name)
            return kept[name](*args, **kwargs)

        return call

    logits, labels = samples()
    for name in names:
        kept[name] = getattr(dist, name)
        setattr(dist, name, counting(name))
    try:
        for name, make in KINDS.items():
            called.clear()
            merge_across_processes(make().update(logits, labels))
            dtypes = {"accuracies": 1, "bins": 1, "IoU": 1, "IoU bins": 1, "gaps": 2, "probabilities": 2}
            rest = ["all_reduce"] * dtypes[name] if name in dtypes else ["all_gather"]
            assert called == ["all_gather", *rest], name
    finally:
        for name in names:
            setattr(dist, name, kept[name])


class Counts(State):
    """A kind of state that the module does not know."""

    def __init__(self):
        super().__init__(
            MASK, {"rows": torch.zeros(2, 3, dtype=torch.int64), "sum": torch.zeros((), dtype=torch.float64)}
        )


class Largest(Counts):
    """One that does not merge by adding."""

    def _add(self, sums):
        self._sums = {name: torch.maximum(value, sums[name]) for name, value in self._sums.items()}


def check_new_kinds_of_states(rank, size):
    own = {"rows": torch.full((2, 3), 2**60 // size + rank), "sum": torch.tensor(float(rank), dtype=torch.float64)}
    counts, largest = Counts(), Largest()
    counts._add(own)
    largest._add(own)
    total = size * (size - 1) // 2
    assert torch.equal(merge_across_processes(counts)._sums["rows"], torch.full((2, 3), 2**60 // size * size + total))
    assert merge_across_processes(counts)._sums["sum"] == total
    assert torch.equal(merge_across_processes(largest)._sums["rows"], torch.full((2, 3), 2**60 // size + size - 1))


def check_other_settings_are_refused_everywhere(rank, size):
    last = rank == size - 1
    other = MASK.roll(1) if last else MASK
    for make in KINDS.values():
        everywhere(
            ValueError,
            f"seen_mask differs between processes 0 and {size - 1}; give all",
            lambda make=make: merge_across_processes(make(other)),
        )
    shorter = MASK[:4] if rank == 1 else MASK
    for make in KINDS.values():
        everywhere(
            ValueError,
            "seen_mask differs between processes 0 and 1",
            lambda make=make: merge_across_processes(make(shorter)),
        )
    accuracies, probabilities = KINDS["accuracies"], KINDS["probabilities"]
    everywhere(
        ValueError,
        "AccuracySums: gamma differs",
        lambda: merge_across_processes(accuracies(gamma=0.5 + 1e-15 * (rank == 0))),
    )
    edges = (0, 0.3, 0.7, 1) if last else (0, 0.4, 0.7, 1)
    everywhere(ValueError, "mass_edges differs", lambda: merge_across_processes(probabilities(edges=edges)))
    everywhere(
        ValueError, "width_edges differs", lambda: merge_across_processes(ProbabilitySums(MASK, n_bins=3 + last))
    )
    assert merge_across_processes(accuracies(gamma=-0.0 if last else 0.0)).compute().gamma == 0


def check_other_kinds_are_refused_everywhere(rank, size):
    kinds = list(KINDS.values())
    for kind in range(1, 5):
        with pytest.raises(ValueError, match=r"class differs between processes 0 and 1 \(GapSums; \w+\)"):
            merge_across_processes(kinds[kind if rank == 1 else 0]())
    with pytest.raises(ValueError, match=r"entries differs .*\(margin, flags, label; margin, flags\)"):
        merge_across_processes(MarginRows(MASK, keep_labels=rank != 1))


def check_two_passes(rank, size):
    """Bins of all samples, and then the best gamma of all."""
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(500, 6, generator=generator) + MASK * 2.0, torch.arange(500) % 6
    logits[torch.arange(500), labels] += 1.5
    own = slice(rank, None, size)
    bins = merge_across_processes(MarginBins(MASK).update(logits[own], labels[own]))
    assert bins.compute().n_seen == 250
    gamma = merge_across_processes(BestGamma(bins).update(logits[own], labels[own])).compute()
    assert gamma == finecal.tradeoff_curve(logits, labels, MASK).best()


def check_prototypes(rank, size):
    """Sums of products in float32 depend on the shards by their rounding; the samples that are kept do not."""
    logits, _ = samples()
    features = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(3))
    both = finecal.Samples(logits, features=features)
    whole = PrototypeSums(MASK, 2.0, 4).update(both)
    for name, rows in shards(size).items():
        if name == "all are empty":
            continue
        state = merge_across_processes(PrototypeSums(MASK, 2.0, 4).update(both[rows[rank]]))
        assert torch.equal(state.state_dict()["kept_keys"], whole.state_dict()["kept_keys"])
        found, expected = state.compute(), whole.compute()
        assert found.samples == SAMPLES
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-4)
        assert abs(found.scale - expected.scale) < 1e-4
        received = found.weight.clone()
        dist.broadcast(received, 0)
        assert torch.equal(received, found.weight)
    wide = PrototypeSums(MASK, 2.0, 4 + (rank == 1))
    everywhere(ValueError, "num_features differs between processes 0 and 1", lambda: merge_across_processes(wide))


def check_groups(rank, size):
    """Of some of the processes: the others take no part, and are told if they do."""
    logits, labels = samples()
    group = dist.new_group([0, size - 1])
    alone = dist.new_group([0])
    state = MarginRows(MASK, keep_labels=True).update(logits[rank::size], labels[rank::size])
    if rank in (0, size - 1):
        rows = torch.cat([torch.arange(0, SAMPLES, size), torch.arange(size - 1, SAMPLES, size)])
        expected = MarginRows(MASK, keep_labels=True).update(logits[rows], labels[rows])
        assert_same(merge_across_processes(state, group), expected)
    else:
        with pytest.raises(ValueError, match="group does not contain this process"):
            merge_across_processes(state, group)
    if rank == 0:
        assert_same(merge_across_processes(state, alone), state)


def check_sampler_padding_counts_once(rank, size):
    model = linear()
    for n in (1, 2, 3, 5, 8, 10, 13, 16):
        for shuffle in (False, True):
            for batch_size in (1, 2, 3, 20):
                data = dataset(n)
                sampler = DistributedSampler(data, shuffle=shuffle)
                sampler.set_epoch(3)
                loader = DataLoader(data, batch_size, sampler=sampler)
                if batch_size == 3:
                    loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 3, drop_last=False))
                if batch_size == 20:
                    chunks = BatchSampler(sampler, 20, drop_last=False)
                    loader = DataLoader(data, batch_size=None, sampler=chunks)
                state = MarginRows(MASK, keep_labels=True)
                assert collect_sharded(model, loader, into=state, progress=False) is state
                assert_rows(rows_of(merge_across_processes(state)), once(model, data))


def check_padding_would_count_twice(rank, size):
    """The test before this one tests something: without `collect_sharded`, there are more samples."""
    data = dataset(2 * size + 1)
    loader = DataLoader(data, 2, sampler=DistributedSampler(data))
    state = finecal.collect_logits(linear(), loader, into=MarginRows(MASK), progress=False)
    assert len(merge_across_processes(state).compute()) == 3 * size


def check_dropped_samples(rank, size):
    model, data = linear(), dataset(3 * size + 1)
    for sampler, batch_size, drop_last, rows in [
        (DistributedSampler(data, drop_last=True), 2, False, 3 * size),
        (DistributedSampler(data, drop_last=True), 2, True, 2 * size),
        (DistributedSampler(data), 2, True, 3 * size + 1),
        (DistributedSampler(data), 3, True, 3 * size),
    ]:
        loader = DataLoader(data, batch_size, sampler=sampler, drop_last=drop_last)
        found = rows_of(
            merge_across_processes(
                collect_sharded(model, loader, into=MarginRows(MASK, keep_labels=True), progress=False)
            )
        )
        assert len(found) == len(set(found)) == rows
        assert {label for _, label in found} <= set(range(6))


def check_workers_and_wrapped_models(rank, size):
    """Each process runs the model equally often, so that one that communicates in each forward comes through."""
    data = dataset(2 * size + 1)
    model = linear()
    expected = once(model, data)
    wrapped = nn.parallel.DistributedDataParallel(model)
    loader = DataLoader(data, 1, sampler=DistributedSampler(data, shuffle=False), num_workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: workers are forked beside threads of gloo
        state = collect_sharded(wrapped, loader, into=MarginRows(MASK, keep_labels=True), progress=False)
    assert len(state.compute()) == (3 if rank == 0 else 2)
    assert_rows(rows_of(merge_across_processes(state)), expected)


def check_samplers_that_cannot_be_understood(rank, size):
    model, data, state = linear(), dataset(8), MarginRows(MASK)

    class Mine(DistributedSampler):
        pass

    class MyBatches(BatchSampler):
        pass

    own = DistributedSampler(data)
    ragged = BatchSampler(own, 2, drop_last=False)
    for loader, match in [
        (
            [data.tensors],
            "loader is a list, which does not say which samples the other processes get; pass a DataLoader",
        ),
        (DataLoader(data, 2), "drawn by a BatchSampler of a SequentialSampler, which may give a sample to two"),
        (DataLoader(data, 2, shuffle=True), "drawn by a BatchSampler of a RandomSampler"),
        (DataLoader(data, 2, sampler=Mine(data)), "drawn by a BatchSampler of a Mine"),
        (DataLoader(data, batch_sampler=MyBatches(own, 2, False)), "drawn by a MyBatches of a DistributedSampler"),
        (DataLoader(data, batch_size=None, sampler=own), "drawn by a DistributedSampler, which"),
        (DataLoader(data, batch_sampler=[[0, 1]]), "drawn by a list, which"),
    ]:
        with pytest.raises(TypeError, match=match):
            collect_sharded(model, loader, into=state)
    for replicas, of in [(size + 1, rank), (size, (rank + 1) % size)]:
        loader = DataLoader(data, 2, sampler=DistributedSampler(data, replicas, of))
        with pytest.raises(
            ValueError, match=f"that of process {of} of {replicas}, but this is process {rank} of {size}"
        ):
            collect_sharded(model, loader, into=state)
    if "in_order" in inspect.signature(DataLoader).parameters:
        loader = DataLoader(data, batch_sampler=ragged, num_workers=1, in_order=False)
        with pytest.raises(ValueError, match="in_order=False"):
            collect_sharded(model, loader, into=state)
    assert len(state.compute()) == 0


def check_samplers_that_differ(rank, size):
    """Shuffled in two ways, or over data of two sizes: samples would be missed, and others counted twice."""
    model, state = linear(), MarginRows(MASK)

    def collect(n=8, epoch=0, **kwargs):
        data = dataset(n)
        sampler = DistributedSampler(data, **kwargs)
        sampler.set_epoch(epoch)
        collect_sharded(model, DataLoader(data, 2, sampler=sampler), into=state, progress=False)

    everywhere(
        ValueError, r"DistributedSampler: epoch differs between processes 0 and 1 \(0; 1\)", lambda: collect(epoch=rank)
    )
    everywhere(ValueError, r"seed differs between processes 0 and 1 \(0; 1\)", lambda: collect(seed=rank))
    everywhere(ValueError, r"length differs between processes 0 and 1 \(8; 9\)", lambda: collect(n=8 + rank))
    everywhere(ValueError, r"shuffle differs .*\(True; False\)", lambda: collect(shuffle=rank == 0))
    assert len(state.compute()) == 0
    collect(epoch=rank, shuffle=False)


def check_rows_that_are_not_samples(rank, size):
    data = dataset(3 * size)

    def twice(batch):
        inputs, labels = torch.utils.data.default_collate(batch)
        return inputs.repeat(2, 1), labels.repeat(2)

    loader = DataLoader(data, 2, sampler=DistributedSampler(data), collate_fn=twice)
    with pytest.raises(ValueError, match="the model returned 4 rows of logits for a batch of 2 samples"):
        collect_sharded(linear(), loader, into=MarginRows(MASK), progress=False)

    class Halted(DataLoader):
        def __iter__(self):
            yield from list(super().__iter__())[:1]

    loader = Halted(data, 2, sampler=DistributedSampler(data))
    with pytest.raises(ValueError, match="loader gave 2 of the 3 samples of this process"):
        collect_sharded(linear(), loader, into=MarginRows(MASK), progress=False)


def check_labels_of_another_number(rank, size):
    """Cutting the duplicate off must not hide that there are too many labels, or none."""
    data = dataset(size + 1)
    for change, match in [(lambda y: torch.cat([y, y]), "labels have shape"), (lambda y: None, "labels")]:

        def collate(batch, change=change):
            inputs, labels = torch.utils.data.default_collate(batch)
            return inputs, change(labels)

        loader = DataLoader(data, 2, sampler=DistributedSampler(data), collate_fn=collate)
        with pytest.raises((TypeError, ValueError), match=match):
            collect_sharded(linear(), loader, into=MarginRows(MASK), progress=False)


def check_stalled_process(rank, size):
    """A process that does not call gives an error within the timeout of the group."""
    seconds = 4
    group = dist.new_group(timeout=datetime.timedelta(seconds=seconds))
    state = MarginRows(MASK)
    start = time.monotonic()
    if rank != 1:
        with pytest.raises(RuntimeError):
            merge_across_processes(state, group)
        assert time.monotonic() - start < 10 * seconds
    dist.barrier()


def check_dead_process(rank, size):
    """The last check: of two processes and more, one is gone before the collective."""
    if rank == 1:
        return
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        merge_across_processes(MarginRows(MASK))
    assert time.monotonic() - start < 50  # and not after the timeout, as its connections are closed


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


def work(rank, size, root):
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=Path(root, "init").as_uri(), rank=rank, world_size=size, timeout=timeout
    )
    failed = {}
    for name, check in CHECKS.items():
        try:
            check(rank, size)
        except BaseException:
            failed[name] = traceback.format_exc()
            break  # the others wait for this process in vain
        if name != "dead_process":
            dist.barrier()
    Path(root, f"{rank}.json").write_text(json.dumps({"failed": failed, "passed": name}), encoding="utf-8")
    os._exit(0)  # without a farewell to the others


# --- in one -----------------------------------------------------------------------------------------------------------


SIZES = (2, 4)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Return what each of 2 and of 4 processes has said: all at the same time, as they wait for one another a lot."""
    if sys.platform != "linux":
        pytest.skip("processes are forked beside threads of torch, which Linux allows")
    roots = {size: tmp_path_factory.mktemp("processes") for size in SIZES}
    command, environment = (
        [sys.executable, "-W", "error", __file__],
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    groups = [
        subprocess.Popen([*command, str(size), root], env=environment, start_new_session=True)
        for size, root in roots.items()
    ]
    try:
        for group in groups:
            group.wait(timeout=300)
    finally:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group.pid, signal.SIGKILL)
    return {
        size: [json.loads((root / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]
        for size, root in roots.items()
    }


@pytest.mark.parametrize("processes", SIZES)
@pytest.mark.parametrize("check", CHECKS)
def test_processes(check, processes, reports):
    names = list(CHECKS)
    for rank, report in enumerate(reports[processes]):
        assert check not in report["failed"], f"process {rank} of {processes}:\n{report['failed'][check]}"
        assert names.index(report["passed"]) >= names.index(check), f"process {rank} stopped at {report['passed']}"


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_one_process_gets_a_copy(make, dtype):
    logits, labels = samples(dtype)
    state = make().update(logits, labels)
    result = merge_across_processes(state)
    assert_same(result, state)
    before = copy.deepcopy(state)
    result.update(logits, labels)
    assert_same(state, before)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_group_of_one(make, tmp_path):
    logits, labels = samples()
    data = dataset(5)
    loader = DataLoader(data, 2, sampler=DistributedSampler(data, 1, 0))
    dist.init_process_group("gloo", init_method=(tmp_path / "init").as_uri(), rank=0, world_size=1)
    try:
        state = make().update(logits, labels)
        assert_same(merge_across_processes(state), state)
        assert len(collect_sharded(linear(), loader, into=MarginRows(MASK), progress=False).compute()) == 5
    finally:
        dist.destroy_process_group()


def test_devices(device):
    logits, labels = samples()
    state = MarginRows(MASK).to(device).update(logits, labels)
    assert merge_across_processes(state).device.type == device.type


@pytest.mark.parametrize(
    ("backends", "expected"), [("cpu:gloo,cuda:gloo", "cpu"), ("cuda:nccl", "cuda"), ("cuda:nccl,cpu:gloo", "cpu")]
)
def test_collectives_run_where_the_group_can(backends, expected, monkeypatch):
    monkeypatch.setattr(dist, "get_backend_config", lambda group: backends)
    assert collective_device(None) == torch.device(expected)


def test_one_process_may_have_any_loader():
    model, data = linear(), dataset(7)
    expected = once(model, data)
    for loader in ([data.tensors], DataLoader(data, 3, shuffle=True), DataLoader(data, 2)):
        state = collect_sharded(model, loader, into=MarginRows(MASK, keep_labels=True), progress=False)
        assert_rows(rows_of(state), expected)
    with pytest.raises(ValueError, match="that of process 1 of 4, but this is process 0 of 1; leave out num_replicas"):
        collect_sharded(model, DataLoader(data, 2, sampler=DistributedSampler(data, 4, 1)), into=MarginRows(MASK))


@pytest.mark.parametrize("step", [1, 2])
def test_pictures_that_the_sampler_repeats_count_once(step):
    """Of dense outputs, at the size of the labels or smaller."""
    generator = torch.Generator().manual_seed(0)
    classes = len(MASK)
    images = torch.randn(5, classes, 4, 6, generator=generator)
    labels = torch.randint(classes, (5, 4, 6), generator=generator)
    model = nn.MaxPool2d(step)
    loader = DataLoader(TensorDataset(images, labels), 2, sampler=DistributedSampler(labels, 1, 0, shuffle=False))
    state = collect_sharded(model, loader, into=MarginRows(MASK, dim=1), progress=False)
    whole = finecal.collect_logits(model, [(images, labels)], positions=finecal.Positions(1), progress=False)
    assert torch.equal(state.compute().margin, whole.margins(MASK).margin)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="state is a dict; pass a state of finecal.streaming"):
        merge_across_processes({})
    with pytest.raises(TypeError, match="into is None; pass a state of finecal.streaming"):
        collect_sharded(linear(), [dataset(3).tensors], into=None)
    with pytest.raises(TypeError, match="into is a dict"):
        collect_sharded(linear(), [dataset(3).tensors], into={})
    with pytest.raises(TypeError, match="model is a int"):
        collect_sharded(3, [dataset(3).tensors], into=MarginRows(MASK))


def test_reference_has_each_public_name_once():
    text = (DOCS / "api" / "distributed.rst").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. autofunction:: finecal\.distributed\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == distributed.__all__


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*samples are told apart within their own group")  # as pyproject.toml does
    children = []
    for number in range(int(sys.argv[1])):  # forked, so that torch is imported once
        children.append(os.fork())
        if children[-1] == 0:
            try:
                work(number, int(sys.argv[1]), sys.argv[2])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
    for child in children:
        os.waitpid(child, 0)
