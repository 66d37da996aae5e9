"""CalibratedModel in DistributedDataParallel, over gloo; as a script: the processes that the test starts."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import finecal
from finecal import CalibratedModel

MASK = torch.tensor([True, False, True, False, False])
INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def calibrated(rank):
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    return CalibratedModel(model, finecal.AdditiveBias(MASK, 1.7 + rank))


@pytest.mark.parametrize("processes", [1, 2])
def test_distributed_data_parallel(processes, tmp_path):
    """Gradients are those of one process on all samples; buffers, gamma among them, are those of the first process."""
    subprocess.run([sys.executable, __file__, tmp_path, str(processes)], check=True, timeout=300)
    first = calibrated(0)
    first(INPUTS).square().mean().backward()
    for rank in range(processes):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["gamma"], first.calibrator.gamma)
        torch.testing.assert_close(found["gradient"], first.model[0].weight.grad)


def train(rank, root, processes):
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/init", rank=rank, world_size=processes)
    own = calibrated(rank)
    parallel = nn.parallel.DistributedDataParallel(own)
    parallel(INPUTS[rank::processes]).square().mean().backward()
    torch.save({"gamma": own.calibrator.gamma, "gradient": own.model[0].weight.grad}, f"{root}/{rank}.pt")
    torch.distributed.barrier()  # neither leaves while the other still talks to it
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    root, processes = sys.argv[1], int(sys.argv[2])
    # Forked, so that torch is imported once.
    torch.multiprocessing.start_processes(train, (root, processes), nprocs=processes, start_method="fork")
