"""Time the passes over logits on a CUDA device, in plain torch and compiled, against copying the logits.

The copy reads and writes what a pass only reads, so half of its time would be a perfect kernel. Medians of interleaved
rounds, by CUDA events, as ratios; then how often a call waits for the GPU.

    python tests/benchmarks/gpu.py [--rounds 30]
"""

import argparse
import statistics
import warnings

import torch

import finecal
from finecal._core import kernels as torch_kernels
from finecal._core import reductions as kernels

SHAPES = [(20_000, 21_841), (8192, 128_256), (50_000, 1000)]
DTYPES = [torch.float32, torch.bfloat16]


def problem(rows, columns, dtype):
    """Return logits, labels and a mask on the GPU, nothing of which is on the CPU first."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.empty(rows, columns, dtype=dtype, device="cuda").normal_(generator=generator)
    labels = torch.randint(0, columns, (rows,), device="cuda", generator=generator)
    return logits, labels, torch.arange(columns, device="cuda") % 2 == 0


def compiled(function):
    """Call `function` with the compiled kernels, where it has any."""

    def call():
        with finecal.logits.compile_kernels():
            return function()

    return call


def seconds(function):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def medians(functions, rounds):
    """Return the median time of each, after a first round that compiles and allocates."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def synchronisations(function):
    """Count the operations of one call that wait for the GPU."""
    function()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def agree(first, second):
    """Whether the kernels give the same to the bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def measure(rows, columns, dtype, rounds):
    logits, labels, mask = problem(rows, columns, dtype)
    into = torch.empty_like(logits)
    to_compile = {
        "label scalars": lambda: kernels.label_scalars(logits, labels, mask),
        "group maxima": lambda: kernels.group_maxima(logits, mask),
    }
    calls = to_compile | {
        "log-sum-exps": lambda: torch_kernels.group_log_sum_exps(logits, mask),
        "predict": lambda: kernels.winning_classes(logits, mask, 0.5),
    }
    functions = {"copy": lambda: into.copy_(logits)} | calls
    functions |= {f"{name}, compiled": compiled(call) for name, call in to_compile.items()}
    same = agree(calls["label scalars"](), compiled(calls["label scalars"])())
    times = medians(functions, rounds)
    copy = times["copy"]
    gigabytes = 2 * logits.numel() * logits.itemsize / 1e9
    print(
        f"\n{rows} x {columns} {str(dtype).removeprefix('torch.')}: copy {gigabytes / copy:.0f} GB/s, compiled ", end=""
    )
    print(f"label scalars {'equal' if same else 'DIFFER FROM'} those of torch")
    for name in calls:
        eager = times[name]
        line = f"  {name:14} {eager / copy:6.2f} x copy"
        if name in to_compile:
            fused = times[f"{name}, compiled"]
            line += f", compiled {fused / copy:6.2f} x copy: {eager / fused:5.1f} x faster"
        print(line)


def count_synchronisations():
    logits, labels, mask = problem(256, 1000, torch.float32)
    logits = logits.round()  # full of ties
    larger = problem(4096, 1000, torch.float32)
    bias = finecal.AdditiveBias(mask, 0.5).cuda()
    temperature = finecal.calibrators.GroupTemperature(mask, 1.5, 2.0).cuda()
    calls = {
        "AdditiveBias.forward": lambda: bias(logits),
        "GroupTemperature.forward": lambda: temperature(logits),
        "calibrate_logits": lambda: finecal.calibrate_logits(logits, mask, 0.5),
        "predict": lambda: finecal.predict(logits, mask, 0.5),
        "label scalars": lambda: kernels.label_scalars(logits, labels, mask),
        "label scalars, compiled": compiled(lambda: kernels.label_scalars(*larger)),
    }
    print("\nsynchronisations in a call")
    for name, call in calls.items():
        print(f"  {name:28} {synchronisations(call)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for shape in SHAPES:
        for dtype in DTYPES:
            measure(*shape, dtype, rounds)
            torch.cuda.empty_cache()
    count_synchronisations()


if __name__ == "__main__":
    main()
