"""Time and memory of restored heads, from samples that are in memory and from a loader. See README.md."""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from prototype_cost import extra_memory
from torch import Tensor, nn

import finecal
from finecal._core.results import format_table
from finecal._core.warning import without_warnings
from finecal.weights import fit_restored_head

BATCH = 250


class Loader:
    """Batches of features and labels of the first half of the classes, made as they are asked for."""

    def __init__(self, samples: int, width: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.centers = torch.randn(classes, width, generator=generator)
        self.samples, self.new = samples, classes // 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.samples, BATCH):
            generator = torch.Generator().manual_seed(1 + start)
            labels = torch.randint(self.new, (min(BATCH, self.samples - start),), generator=generator)
            noise = torch.randn(len(labels), self.centers.shape[1], generator=generator)
            yield self.centers[labels] + 4 * noise, labels


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
    return layer


def measure(way: str, samples: int, width: int, classes: int, file: str) -> None:
    """Restore a head in one way, print seconds and MB, and keep the head."""
    loader = Loader(samples, width, classes)
    scale = 1 / width
    pretrained, model = linear(scale * loader.centers), linear(2 * scale * loader.centers[: loader.new])
    new_to_old, found = range(loader.new), []

    def stream() -> None:
        restored = finecal.restore_head(
            nn.Sequential(model), pretrained, loader, new_to_old=new_to_old, is_held_out=True, verbose=False
        )
        found.extend(restored[0].parameters())

    if way == "samples":
        features, labels = torch.empty(samples, width), torch.empty(samples, dtype=torch.long)
        for start, (x, y) in zip(range(0, samples, BATCH), loader, strict=True):
            features[start : start + len(x)], labels[start : start + len(x)] = x, y
        with torch.no_grad():
            given = finecal.Samples(model(features), labels, features=features, pretrained_logits=pretrained(features))

    def whole() -> None:
        with torch.no_grad():
            head = fit_restored_head(
                given,
                model.weight,
                model.bias,
                new_to_old=new_to_old,
                old_weight=pretrained.weight,
                is_held_out=True,
            )
        found.extend([head.weight.float(), head.bias.float()])

    start = time.perf_counter()
    with without_warnings():
        extra = extra_memory(stream if way == "loader" else whole)
    torch.save(found, file)
    print(f"{time.perf_counter() - start:.0f} {extra:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--way", choices=("samples", "loader"), help=argparse.SUPPRESS)
    parser.add_argument("--file", default="/tmp/restored-{}.pt", help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = args.samples, args.width, args.classes
    torch.set_num_threads(1)
    if args.way is not None:
        measure(args.way, *size, args.file)
        return
    rows, heads = [], []
    for way in ("samples", "loader"):  # each in a process of its own, whose memory nothing else has used
        file = args.file.format(way)
        options = [f"--{name}={value}" for name, value in zip(("samples", "width", "classes"), size, strict=True)]
        command = [sys.executable, __file__, "--way", way, "--file", file, *options]
        taken = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append([way, *taken.stdout.split()])
        heads.append(torch.load(file, weights_only=True))
    held = 4 * args.samples * args.width / 1e6
    print(format_table([f"{size[0]} x {size[1]} features ({held:.0f} MB), {size[2]} classes", "s", "MB more"], rows))
    apart = max(float((a - b).detach().abs().max()) for a, b in zip(*heads, strict=True))
    print(f"\nlargest difference of the two heads: {apart:.2g}, of {float(heads[0][0].detach().abs().max()):.2g}")


if __name__ == "__main__":
    main()
