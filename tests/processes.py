"""Tests in two processes, over gloo: a file of tests runs itself as a script, which starts them once for all checks."""

import datetime
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

SIZE = 2


def run_as_script(file, root, timeout=300):
    """Return what each check of `work` has returned, or failed with, in each process."""
    if sys.platform != "linux":
        pytest.skip("processes are forked beside threads of torch, which Linux allows")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, file, root], env=environment, timeout=timeout, capture_output=True, text=True, check=False
    )
    files = [Path(root, f"{rank}.json") for rank in range(SIZE)]
    assert all(path.exists() for path in files), done.stderr[-5000:]
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def work(rank, checks, root):
    """Run the checks, functions of the rank whose results JSON can hold, up to the first that fails."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": Path(root, "port").read_text(encoding="utf-8")}
    os.environ |= address | {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {name: str(SIZE) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")} | {"TORCHELASTIC_RUN_ID": "tests"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=SIZE, timeout=datetime.timedelta(seconds=60))
    results = {}
    for name, check in checks.items():
        try:
            results[name] = check(rank)
        except BaseException:
            results[name] = {"failed": traceback.format_exc()}
            break  # the other process waits for this one in vain
        dist.barrier()
    Path(root, f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    os._exit(0)  # without a farewell to the other


def main(checks):
    """Start the processes; forked, so that all is imported once."""
    import socket

    root = sys.argv[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        Path(root, "port").write_text(str(free.getsockname()[1]), encoding="utf-8")
    children = []
    for rank in range(SIZE):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                work(rank, checks, root)
            finally:
                traceback.print_exc()
                os._exit(1)
    for child in children:
        os.waitpid(child, 0)
