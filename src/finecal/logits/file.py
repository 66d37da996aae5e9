"""Files of logits: `.npz`, `.npy`, `.pt` and `.safetensors`, and predictions as `.csv`."""

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inputs.arrays import to_numpy
from ..inputs.checks import as_logits, check_labels, check_scores, gamma_as_float
from ..inputs.warning import naming
from ..results.files import (
    PathLike,
    check_destination,
    check_source,
    explaining,
    import_safetensors,
    npy_bytes,
    npz_bytes,
    read_lines,
    write_atomically,
)

_KEYS = ("logits", "labels", "class_names", "gamma")


@dataclass(frozen=True, eq=False)
class LogitsFile:
    """Logits `(N, C)`, with labels `(N,)` int64 and the names of the C classes where they are known.

    `gamma` is what has been added to the absent classes already.
    """

    logits: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    gamma: float = 0.0


def write_logits(path: PathLike, content: LogitsFile) -> None:
    """Write logits, with what is known of them, as `.npz`, `.safetensors` or `.npy` (the logits alone)."""
    path = Path(path)
    check_destination(path, LOGITS_SUFFIXES)
    write_atomically(path, _ENCODERS[path.suffix.lower()](content))


def write_predictions(path: PathLike, classes: Tensor, class_names: Sequence[str] | None = None) -> None:
    """Write class indices `(N,)`: a `.npy`, or a `.csv` with a row per sample and the names where they are known."""
    path = Path(path)
    check_destination(path, PREDICTION_SUFFIXES)
    if path.suffix.lower() == ".npy":
        write_atomically(path, npy_bytes(classes.numpy()))
        return
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["sample", "class"] if class_names is None else ["sample", "class", "name"])
    for sample, index in enumerate(classes.tolist()):
        rows.writerow([sample, index] if class_names is None else [sample, index, class_names[index]])
    write_atomically(path, text.getvalue().encode())


def read_logits(
    path: PathLike, *, labels: PathLike | None = None, class_names: PathLike | None = None, with_labels: bool = True
) -> LogitsFile:
    """Read and check logits, by suffix `.npz`, `.npy`, `.pt` or `.safetensors`, on the CPU.

    Parameters
    ----------
    path : path
        Holds ``logits``, and perhaps ``labels``, ``class_names`` and ``gamma``, under these keys; or the logits alone.
    labels : path, optional
        File of the same kinds with the labels, under the key ``labels`` or alone; they win over those in `path`.
    class_names : path, optional
        Text file with one class name per line.
    with_labels : bool, default True
        Whether to look at labels in `path`.

    Raises
    ------
    OSError, ValueError, ImportError
        In one sentence that names the file, says what is wrong with it, and what to do.
    """
    path = Path(path)
    content = _read_arrays(path, "logits")
    with naming(path, ValueError):
        logits = as_logits(_entry(content, "logits")).detach()
        check_scores(logits, logits.amax(1))
        num_samples, num_classes = logits.shape
        names = _names(content["class_names"], num_classes) if "class_names" in content else None
        gamma = gamma_as_float(content.get("gamma", 0.0))
    if class_names is not None:
        names = read_class_names(class_names, num_classes)

    if labels is not None:
        path = Path(labels)
        given = read_array(path, "labels")
    elif with_labels and "labels" in content:
        given = content["labels"]
    else:
        return LogitsFile(logits, None, names, gamma)
    with naming(path, ValueError):
        return LogitsFile(logits, check_labels(given, num_samples, num_classes, logits.device), names, gamma)


def read_class_names(path: PathLike, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes from a text file with one per line."""
    with naming(path, ValueError):
        return _names(np.array(read_lines(Path(path)), dtype=str), num_classes)


def _names(value: object, num_classes: int) -> tuple[str, ...]:
    array = np.asarray(value)
    if array.dtype.kind != "U" or array.ndim != 1:
        raise ValueError(f"class_names have dtype {array.dtype} and shape {array.shape}; save a list of texts")
    if len(array) != num_classes:
        raise ValueError(
            f"there are {len(array)} class names for logits of {num_classes} classes; give one per column, in order"
        )
    return tuple(array.tolist())


def read_array(path: Path, key: str) -> Any:
    """Return the array under `key`, or the only one of a file without keys."""
    content = _read_arrays(path, key)
    with naming(path, ValueError):
        return _entry(content, key)


def _read_arrays(path: Path, only: str) -> Mapping[str, Any]:
    """Return what a file holds by key, None for keys unknown to finecal; `only` is the key of an array without one."""
    check_source(path)
    suffix = path.suffix.lower()
    if suffix not in _READABLE:
        ending = f"the unknown suffix {path.suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{path} has {ending}; save it as {' or '.join(_READABLE)}")
    with explaining(path, suffix, f"save it again: {_READABLE[suffix].hint}"), warnings.catch_warnings():
        # Torch warns of pickle protocols before it refuses the pickle.
        warnings.simplefilter("ignore")
        content = _READABLE[suffix].decode(path, only)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; save it again: {_READABLE[suffix].hint}")
    return content


def _entry(content: Mapping[str, Any], key: str) -> Any:
    if key not in content:
        found = ", ".join(map(repr, list(content)[:5])) or "there are none"
        raise ValueError(f"no {key!r} among its arrays ({found}); save the {key} under this name")
    return content[key]


def _decode_numpy(path: Path, only: str) -> Any:
    with open(path, "rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {only: loaded}
        return {key: loaded[key] if key in _KEYS else None for key in loaded.files}


def _decode_torch(path: Path, only: str) -> Any:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return {only: loaded} if isinstance(loaded, Tensor) else loaded


def _decode_safetensors(path: Path, only: str) -> Any:
    with import_safetensors().safe_open(path, framework="pt") as file:
        keys = file.keys()
        content = {key: file.get_tensor(key) if key in _KEYS else None for key in keys}
        metadata = file.metadata() or {}
    return content | {key: json.loads(metadata[key]) for key in ("class_names", "gamma") if key in metadata}


def _encode_npy(content: LogitsFile) -> bytes:
    return npy_bytes(to_numpy(content.logits))


def _encode_npz(content: LogitsFile) -> bytes:
    arrays: dict[str, Any] = {key: to_numpy(tensor) for key, tensor in _tensors(content).items()}
    if content.class_names is not None:
        arrays["class_names"] = np.array(content.class_names)
    if content.gamma != 0:
        arrays["gamma"] = np.float64(content.gamma)
    return npz_bytes(arrays)


def _encode_safetensors(content: LogitsFile) -> bytes:
    metadata = {} if content.class_names is None else {"class_names": json.dumps(content.class_names)}
    if content.gamma != 0:
        metadata["gamma"] = json.dumps(content.gamma)
    data: bytes = import_safetensors().torch.save(_tensors(content), metadata or None)
    return data


def _tensors(content: LogitsFile) -> dict[str, Tensor]:
    tensors = {"logits": content.logits.contiguous()}
    return tensors if content.labels is None else {**tensors, "labels": content.labels.contiguous()}


@dataclass(frozen=True)
class _Readable:
    decode: Callable[[Path, str], Any]
    hint: str


_READABLE = {
    ".npz": _Readable(_decode_numpy, "numpy.savez(file, logits=logits, labels=labels)"),
    ".npy": _Readable(_decode_numpy, "numpy.save(file, array)"),
    ".pt": _Readable(_decode_torch, "torch.save({'logits': tensor, 'labels': tensor}, file)"),
    ".safetensors": _Readable(_decode_safetensors, "safetensors.torch.save_file({'logits': tensor}, file)"),
}


# Without .pt, which is a pickle.
_ENCODERS = {".npz": _encode_npz, ".npy": _encode_npy, ".safetensors": _encode_safetensors}
LOGITS_SUFFIXES = tuple(_ENCODERS)
PREDICTION_SUFFIXES = (".csv", ".npy")
PAGE_SUFFIXES = (".html",)
