"""Files of logits, read without unpickling anything and written whole or not at all."""

import csv
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ._arrays import NumpyArray, as_tensor
from ._checks import check_labels, check_logits, check_scores, gamma_as_float

PathLike: TypeAlias = str | os.PathLike[str]

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


# --- writing ----------------------------------------------------------------------------------------------------------


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that the file is there whole or not at all; an old file stays until then.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written to, the disk is full, or `path` is no regular file.
    """
    check_destination(path)
    # A link stays one: what it points to is written.
    target = Path(path).resolve()
    temporary = target.with_name(f".finecal-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_destination(path: PathLike, suffixes: Sequence[str] = ()) -> None:
    """Refuse what cannot be written to before any work is done: a wrong suffix, a missing folder, a directory."""
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} cannot be written: choose a name that ends with {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise FileExistsError(f"{path} cannot be written: it is {kind}; choose another name")


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
        write_atomically(path, _npy_bytes(classes.numpy()))
        return
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["sample", "class"] if class_names is None else ["sample", "class", "name"])
    for sample, index in enumerate(classes.tolist()):
        rows.writerow([sample, index] if class_names is None else [sample, index, class_names[index]])
    write_atomically(path, text.getvalue().encode())


# --- logits -----------------------------------------------------------------------------------------------------------


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
    with naming(path):
        logits = check_logits(as_tensor(_entry(content, "logits"), "logits")).detach()
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
    with naming(path):
        return LogitsFile(logits, check_labels(given, num_samples, num_classes, logits.device), names, gamma)


def read_class_names(path: PathLike, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes from a text file with one per line."""
    with naming(path):
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


# --- reading ----------------------------------------------------------------------------------------------------------


def check_source(path: Path) -> None:
    """Refuse what cannot be read."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give a file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the name")


@contextmanager
def naming(source: PathLike) -> Iterator[None]:
    """Put the file in front of what the checks say about its content."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without blank ones and those that start with ``#``."""
    check_source(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text file (UTF-8); write one class per line") from None
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def read_array(path: Path, key: str) -> Any:
    """Return the array under `key`, or the only one of a file without keys."""
    content = _read_arrays(path, key)
    with naming(path):
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


def read_npz(path: Path, hint: str) -> dict[str, NumpyArray]:
    """Return all arrays of a `.npz` by name; `hint` says what to do about a damaged one."""
    check_source(path)
    with explaining(path, ".npz", hint), open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
        return dict(content)


@contextmanager
def explaining(path: Path, suffix: str, hint: str) -> Iterator[None]:
    """Parsers of damaged files raise whatever they stumble over: say what it means, and what to do."""
    try:
        yield
    except (ImportError, MemoryError, PermissionError):
        raise
    except Exception as error:
        if "pickl" in repr(error).lower():
            raise ValueError(
                f"{path} holds Python objects or is no {suffix} file at all, and finecal never unpickles; {hint}"
            ) from error
        raise ValueError(f"{path} is truncated or no {suffix} file; {hint}") from error


def _entry(content: Mapping[str, Any], key: str) -> Any:
    if key not in content:
        found = ", ".join(map(repr, list(content)[:5])) or "there are none"
        raise ValueError(f"no {key!r} among its arrays ({found}); save the {key} under this name")
    return content[key]


# --- formats ----------------------------------------------------------------------------------------------------------


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


def _npy_bytes(array: NumpyArray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _encode_npy(content: LogitsFile) -> bytes:
    return _npy_bytes(to_numpy(content.logits))


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


def to_numpy(tensor: Tensor) -> NumpyArray:
    # NumPy has no bfloat16; float32 holds all of its values.
    array: NumpyArray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def import_safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'finecal[io]'") from error
    return safetensors


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
