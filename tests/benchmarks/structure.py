"""Measure the structure of the code: its size, its face, how many files a call runs, how often data are scanned.

Everything is of the `finecal` that is imported: ``PYTHONPATH=OTHER/src python structure.py`` measures another checkout.
Where names or arguments have moved from one to another, `public` and `calibrated_model` know both.

*Lines* are those of the ``*.py`` files. *Docstrings* are all texts that stand by themselves, those below a field too;
*code* is what is left without them, comments and blank lines, and includes imports. Of functions, overloads and `self`
do not count.

*Files* and *functions* of a call are those of finecal in which Python code runs when it is called for the second time,
so that what is cached or loaded late is there already. *Lines* are those of these files.

A *scan* of a data set reads its logits once from start to end. Each torch operation reads as many elements as the view
of the logits has that it is given, or the views, which are added up and divided by the number of logits. Code that goes
from block to block and looks at each several times scans them once, though: what lies in the block that was read last,
if this is at most a quarter of the set, is in the cache and does not count. A copy of half of the set or more is data
like the set itself. What picks rows or entries, such as `gather`, is no scan: *picked* is what it returns, in multiples
of the set. What NumPy reads is not seen, but finecal computes in torch. *Passes* are the scans that reduce the rows of
any of the sets to margins and rivals: one of each set would do.
"""

import argparse
import ast
import inspect
import io
import json
import sys
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

import finecal

FACE = [name for name in dir(finecal) if not name.startswith("_")]
HOOKS = len(torch_modules._global_module_registration_hooks)
"""Both at once: what is used later may load more."""
ROOT = Path(finecal.__file__).parent
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
SAMPLES, CLASSES = 4000, 1000
"""Of each set that is scanned: several of finecal's blocks."""
CACHED, COPY = 0.25, 0.5
"""Shares of a set: the largest block that is in the cache, and the smallest copy that is data."""
PASSES = {"group_maxima", "label_hits", "label_scalars"}
"""The functions of `reductions.py` that reduce all rows to margins and rivals."""
PICKS = {"gather", "index", "index_select", "take", "embedding"}


def public(name: str) -> Any:
    """Return a public function, of the top or of `finecal.estimators`."""
    return getattr(finecal if hasattr(finecal, name) else import_module("finecal.estimators"), name)


def calibrated_model(model: nn.Module, loader: Iterable[Any]) -> nn.Module:
    """Call `calibrate_model` on training samples: it was told so by ``held_out=``, and is by ``is_held_out=``."""
    taken = inspect.signature(finecal.calibrate_model).parameters
    which = "is_held_out" if "is_held_out" in taken else "held_out"
    quiet = {name: False for name in ("progress", "verbose") if name in taken}
    return finecal.calibrate_model(model, loader, **{which: False}, **quiet)


def lines_of(nodes: Iterable[ast.AST]) -> set[int]:
    return {line for node in nodes for line in range(node.lineno, node.end_lineno + 1)}


def functions_of(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """Yield the number of parameters, without `self`, and the name of each function."""
    methods = {id(part): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for part in node.body}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if "overload" in decorators:
            continue
        given = node.args
        names = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        owner = methods.get(id(node))
        is_bound = owner is not None and "staticmethod" not in decorators
        yield len(names) - is_bound, f"{path}: {node.name if owner is None else f'{owner}.{node.name}'}"


def size() -> dict[str, Any]:
    """Return what the text of the files says."""
    total = dict.fromkeys(("files", "lines", "code", "docstrings", "imports"), 0)
    functions: list[tuple[int, str]] = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        nodes = list(ast.walk(tree))
        texts = lines_of(
            n for n in nodes if isinstance(n, ast.Expr) and isinstance(getattr(n.value, "value", None), str)
        )
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        written = {line for t in tokens if t.type not in NO_CODE for line in range(t.start[0], t.end[0] + 1)}
        total["files"] += 1
        total["lines"] += len(text.splitlines())
        total["code"] += len(written - texts)
        total["docstrings"] += len(texts)
        total["imports"] += len(lines_of(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)))
        functions += functions_of(tree, path.relative_to(ROOT).as_posix())
    stubs = [len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.pyi")]
    total |= {"stub files": len(stubs), "lines of stubs": sum(stubs)}
    total |= {"names in __all__": len(finecal.__all__), "names in dir(finecal)": len(FACE)}
    total |= {"global hooks of modules": HOOKS}
    most = sorted(functions, key=lambda function: (-function[0], function[1]))[:5]
    return {"size": total, "most parameters": [{"parameters": count, "function": name} for count, name in most]}


def calls() -> dict[str, Callable[[], object]]:
    """Return six calls by name, on the data of the README."""
    torch.manual_seed(0)
    labels = torch.randint(10, (4000,))
    logits = torch.randn(4000, 10) + 4 * torch.eye(10)[labels]
    logits[:, :5] += 4
    is_train = (torch.arange(4000) < 2000) & (labels < 5)
    train, test = (logits[is_train], labels[is_train]), (logits[2000:], labels[2000:])
    seen_mask = finecal.seen_mask_from_labels(train[1], num_classes=10)
    gamma = finecal.estimate_gamma(seen_mask, train=train)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 10))
    loader = DataLoader(TensorDataset(*train), batch_size=100)
    return {
        "seen_mask_from_labels": lambda: finecal.seen_mask_from_labels(train[1], num_classes=10),
        "calibrate_logits": lambda: finecal.calibrate_logits(test[0], seen_mask, gamma),
        "average_logit_gap": lambda: public("average_logit_gap")(*train, seen_mask),
        "evaluate": lambda: finecal.evaluate(*test, seen_mask, gamma),
        "estimate_gamma(train=)": lambda: finecal.estimate_gamma(seen_mask, train=train),
        "calibrate_model": lambda: calibrated_model(model, loader),
    }


def run_by(call: Callable[[], object]) -> dict[str, int]:
    """Return how many files and functions of finecal the second call runs, and the lines of these files."""
    call()
    found = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/"):
            found.add(frame.f_code)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    files = {code.co_filename for code in found}
    lines = sum(len(Path(file).read_text(encoding="utf-8").splitlines()) for file in files)
    return {"files": len(files), "functions": len(found), "lines": lines}


class Reads(TorchDispatchMode):
    """Add up what operations read of the logits of each set, by name."""

    def __init__(self, sets: dict[str, Tensor]) -> None:
        super().__init__()
        self.sizes = {name: logits.numel() for name, logits in sets.items()}
        self.scanned, self.picked = dict.fromkeys(sets, 0), dict.fromkeys(sets, 0)
        self._names = {_address(logits): name for name, logits in sets.items()}
        self._last: dict[str, tuple[int, int, int]] = {}
        self._copies: list[Tensor] = []  # kept, so that nothing else gets the address of one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it reads: not what it writes to, nor what it returns a view of."""
        found = func(*args, **(kwargs or {}))
        outputs = [part for part in tree_leaves(found) if isinstance(part, Tensor)]
        returned = {_address(part) for part in outputs}
        for given in (part for part in tree_leaves(args) if isinstance(part, Tensor)):
            name = self._names.get(_address(given))
            if name is None or not given.numel() or _address(given) in returned:
                continue
            if func.overloadpacket.__name__ in PICKS:
                self.picked[name] += sum(part.numel() for part in outputs)
            elif not self._is_cached(name, given):
                self.scanned[name] += given.numel()
            for part in outputs:
                if part.numel() >= COPY * self.sizes[name]:
                    self._names[_address(part)] = name
                    self._copies.append(part)
        return found

    def _is_cached(self, name: str, block: Tensor) -> bool:
        """Return whether the block lies in the one that was read last, else remember it."""
        address, start = _address(block), block.storage_offset()
        stop = start + sum((n - 1) * stride for n, stride in zip(block.shape, block.stride(), strict=True)) + 1
        last, low, high = self._last.get(name, (0, 0, 0))
        if last == address and low <= start and stop <= high and high - low <= CACHED * self.sizes[name]:
            return True
        self._last[name] = address, start, stop
        return False


def passes_of(call: Callable[[], object]) -> int:
    """Return how often `call` reduces all rows of a set."""
    passes = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal passes
        code = frame.f_code
        passes += event == "call" and code.co_name in PASSES and code.co_filename.endswith("reductions.py")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return passes


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def scans() -> dict[str, dict[str, float]]:
    """Return by data set, and for all of them, what `compare_estimators` reads as a multiple of the set."""
    generator = torch.Generator().manual_seed(0)
    seen_mask = torch.arange(CLASSES) < CLASSES // 2

    def drawn(num_classes: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(num_classes, (SAMPLES,), generator=generator)
        logits = torch.randn(SAMPLES, CLASSES, generator=generator) + 4 * seen_mask
        logits[torch.arange(SAMPLES), labels] += 6
        return logits, labels

    sets = {"train": drawn(CLASSES // 2), "held_out": drawn(CLASSES // 2), "test": drawn(CLASSES)}
    unlabelled, _ = drawn(CLASSES)
    with Reads({name: logits for name, (logits, _) in sets.items()} | {"unlabelled": unlabelled}) as reads:
        passes = passes_of(lambda: finecal.compare_estimators(seen_mask, unlabelled=unlabelled, **sets))
    rows = {
        name: {"scans": reads.scanned[name] / count, "picked": reads.picked[name] / count}
        for name, count in reads.sizes.items()
    }
    total = {what: sum(row[what] for row in rows.values()) for what in ("scans", "picked")}
    return rows | {"all": total, "passes": {"scans": passes, "picked": 0.0}}


def printed(title: str, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        cells = (f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values())
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    figures = {**size(), "calls": {name: run_by(call) for name, call in calls().items()}, "scans": scans()}
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    printed("Size", ({"what": what, "count": count} for what, count in figures["size"].items()))
    printed("Most parameters", figures["most parameters"])
    printed("What a call runs", ({"call": name, **row} for name, row in figures["calls"].items()))
    printed("compare_estimators, by data set", ({"data": name, **row} for name, row in figures["scans"].items()))


if __name__ == "__main__":
    main()
