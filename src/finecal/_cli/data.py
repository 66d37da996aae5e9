"""Data of a classifier, with labels or without: a folder of images, a table of texts or of words; labels as indices."""

import csv
import difflib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._core.arrays import NumpyArray
from .._core.files import check_source, read_npz
from .._core.results import parse_json

Label: TypeAlias = str | int
Row: TypeAlias = Mapping[str, NumpyArray]
Words: TypeAlias = list[str]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*_DELIMITERS, *_JSON_SUFFIXES)
TEXT_COLUMNS, LABEL_COLUMNS = ("text", "sentence"), ("label", "labels")
WORD_COLUMN, TAG_COLUMN = "tokens", "ner_tags"
"""Taken where no column is named; the words of a sentence and their tags are those of ``run_ner.py``."""
_LONGEST_CELL = 2**31 - 1
_NAMED = 5
_NAMED_LABELS = 3
_INDEX = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that the user has named."""

    text: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """What a file or folder holds.

    Attributes
    ----------
    path : Path
        Where they come from.
    items : sequence of str, of Path, of lists of str or of mappings
        Texts, files of images, sentences as lists of words, or rows of arrays by the name of the input.
    labels : sequence of str or int, or None
        Names or indices of classes, as they stand there; for sentences a list of them for each.
    """

    path: Path
    items: Sequence[str] | Sequence[Path] | Sequence[Words] | Sequence[Row]
    labels: Sequence[Label] | Sequence[list[Label]] | None

    @property
    def kind(self) -> str:
        """What the items are: images, texts or words."""
        return "images" if self.path.is_dir() else "words" if isinstance(self.items[0], list) else "texts"

    def chosen(self, most: int, seed: int) -> "Dataset":
        """Return at most so many, drawn at random, in the order in which they stand there."""
        if len(self.items) <= most:
            return self
        order = torch.randperm(len(self.items), generator=torch.Generator().manual_seed(seed))
        rows = order[:most].sort().values.tolist()
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return replace(self, items=[self.items[row] for row in rows], labels=labels)


def read_dataset(path: Path, columns: Columns, *, with_labels: bool = True) -> Dataset:
    """Read the names of a folder's images, or the rows of a table.

    Parameters
    ----------
    path : Path
        - A folder with a sub-folder for each class, which is named as the class; without labels, images anywhere in it.
          Hidden files and folders, and files that are no images, do not count.
        - A ``.csv`` or ``.tsv`` with a header, or a ``.jsonl`` with a JSON object on each line, in UTF-8. In JSON a
          text may be a list of words, and its label a list of as many; sentences without a word are left out.
    columns : Columns
        Of a table; where one is not named, it is the only one of `TEXT_COLUMNS` or `LABEL_COLUMNS`, or, without a text,
        `WORD_COLUMN` or `TAG_COLUMN`.
    with_labels : bool, default True
        Whether labels are read, and have to be there.

    Raises
    ------
    OSError, ValueError
        If `path` cannot be read, has no samples, lacks a column, or has a row without a text or a label.
    """
    if path.is_dir():
        dataset = _images(path) if with_labels else Dataset(path, list(_image_files(path)), None)
    elif path.suffix.lower() in TABLE_SUFFIXES:
        check_source(path)
        dataset = _texts(path, columns, with_labels)
    elif path.exists():
        raise ValueError(
            f"{path} is no data that finecal reads: give a folder of images, or a table that ends with "
            f"{', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]}"
        )
    else:
        raise FileNotFoundError(f"{path} does not exist; check the name")
    if not dataset.items:
        kind = f"images ({', '.join(IMAGE_SUFFIXES)})" if path.is_dir() else "rows"
        raise ValueError(f"{path} has no {kind}; give data with at least one sample")
    return dataset


# --- images -----------------------------------------------------------------------------------------------------------


def _images(folder: Path) -> Dataset:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(
            f"{folder} has no sub-folders; put the images of each class into one that is named as the class"
        )
    files: list[Path] = []
    labels: list[Label] = []
    for name in names:
        found = list(_image_files(folder / name))
        if not found:
            raise ValueError(
                f"{folder / name} has no image, so it does not tell whether the class is seen; remove it, or put the "
                f"images there ({', '.join(IMAGE_SUFFIXES)})"
            )
        files += found
        labels += [name] * len(found)
    return Dataset(folder, files, labels)


def _image_files(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and those below it, in order; a link to a folder that was met leads nowhere."""
    met: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        met.add(os.path.realpath(parent))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent, name)) not in met
        )
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


# --- tables -----------------------------------------------------------------------------------------------------------


def _texts(path: Path, columns: Columns, with_labels: bool) -> Dataset:
    texts: list[Any] = []
    labels: list[Any] = []
    text_column = label_column = None
    are_words = False
    for line, row in _rows(path):
        if text_column is None:
            is_default = columns.text is None and not any(name in row for name in TEXT_COLUMNS) and WORD_COLUMN in row
            text_column = WORD_COLUMN if is_default else _column(path, row, columns.text, TEXT_COLUMNS, "text")
            are_words = isinstance(row[text_column], list)
            if with_labels:
                usual = (*LABEL_COLUMNS, TAG_COLUMN) if are_words else LABEL_COLUMNS
                label_column = _column(path, row, columns.label, usual, "label")
        text: Any = row.get(text_column)
        if are_words and not (isinstance(text, list) and all(isinstance(word, str) for word in text)):
            raise ValueError(f"{path}, line {line}: {_cell(row, text_column)}, where a list of words has to be")
        if not are_words and not isinstance(text, str):
            raise ValueError(f"{path}, line {line}: {_cell(row, text_column)}, where a text has to be")
        if text == []:
            continue
        texts.append(text)
        if label_column is not None:
            label: Any = row.get(label_column)
            if are_words and not (isinstance(label, list) and len(label) == len(text)):
                raise ValueError(
                    f"{path}, line {line}: {_cell(row, label_column)}, where a list of {len(text)} tags has to be, one "
                    "for each word"
                )
            if not all(map(_is_label, label if are_words else [label])):
                raise ValueError(
                    f"{path}, line {line}: {_cell(row, label_column)}, where the name or the index of a class has to be"
                )
            labels.append(label)
    return Dataset(path, texts, labels if with_labels else None)


def _is_label(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _cell(row: Mapping[str, Any], column: str) -> str:
    return f"{column!r} is {json.dumps(row[column])[:60]}" if column in row else f"{column!r} is missing"


def _column(path: Path, row: Mapping[str, Any], named: str | None, usual: Sequence[str], what: str) -> str:
    """Return the column that is named, or the only one with a usual name: nothing is guessed."""
    found = [name for name in (usual if named is None else [named]) if name in row]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(repr, list(row)[:_NAMED])) + (f" and {len(row) - _NAMED} more" if len(row) > _NAMED else "")
    option = f"--{what}-column"
    if found:
        raise ValueError(f"{path} has columns {' and '.join(map(repr, found))}; say by {option} which is the {what}")
    wanted = repr(named) if named is not None else f"called {' or '.join(map(repr, usual))}"
    raise ValueError(f"{path} has no column {wanted} (it has {shown}); name the one with the {what} by {option}")


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows by column, with the line on which each ends."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield from _json_rows(path, file) if path.suffix.lower() in _JSON_SUFFIXES else _csv_rows(path, file)
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no text file in UTF-8; convert it") from None


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    most = csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
    try:
        header = next(reader, [])
        repeated = next((name for name in header if header.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"{path} has two columns {repeated!r}; rename one of them")
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: a row of {len(cells)} cells under a header of {len(header)}; "
                    "quote texts that have the delimiter or a line end in them"
                )
            if cells:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; quote texts as CSV has it") from error
    finally:
        csv.field_size_limit(most)


def _json_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; write one JSON object on each line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a {type(row).__name__}; write one JSON object on each line")
        yield number, row


# --- arrays -----------------------------------------------------------------------------------------------------------


def read_arrays(path: Path, columns: Columns, *, with_labels: bool = True) -> Dataset:
    """Read the inputs of a model as arrays, and labels.

    Parameters
    ----------
    path : Path
        - An ``.npz`` with an array for each input, under its name, and ``labels``.
        - A table, as `read_dataset` reads it: all columns but that of the labels are numbers, the only input.
    columns, with_labels
        As in `read_dataset`.

    Raises
    ------
    OSError, ValueError
        As `read_dataset`; also if arrays have different lengths, or a cell is no number.
    """
    if path.suffix.lower() in TABLE_SUFFIXES:
        check_source(path)
        dataset = _numbers(path, columns, with_labels)
    elif path.suffix.lower() == ".npz":
        dataset = _arrays(path, columns, with_labels)
    elif path.exists():
        raise ValueError(
            f"{path} cannot be given to an ONNX model, which does not say how pictures or texts become its input: give "
            f"an .npz with 'labels' and an array for each input, or a table of numbers, {', '.join(TABLE_SUFFIXES)}"
        )
    else:
        raise FileNotFoundError(f"{path} does not exist; check the name")
    if not dataset.items:
        raise ValueError(f"{path} has no rows; give data with at least one sample")
    return dataset


def _arrays(path: Path, columns: Columns, with_labels: bool) -> Dataset:
    arrays = read_npz(path, "write it again by numpy.savez")
    column = columns.label or next((name for name in LABEL_COLUMNS if name in arrays), "labels")
    labels = arrays.pop(column, None)
    if with_labels and labels is None:
        raise ValueError(f"{path} has no array {column!r} (it has {', '.join(map(repr, arrays))}); add the labels")
    lengths = {name: array.shape[:1] for name, array in arrays.items()} | (
        {} if labels is None else {column: labels.shape}
    )
    if not arrays or len(set(lengths.values())) > 1 or () in lengths.values():
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{path} has arrays for different numbers of samples ({shown}); give one row for each label")
    if labels is not None and labels.dtype.kind not in "iuU":
        raise ValueError(f"{path}: {column!r} has dtype {labels.dtype}; give the names or the indices of the classes")
    (count,) = next(iter(lengths.values()))
    items = [{name: array[row] for name, array in arrays.items()} for row in range(count)]
    return Dataset(path, items, labels.tolist() if with_labels and labels is not None else None)


def _numbers(path: Path, columns: Columns, with_labels: bool) -> Dataset:
    items: list[Row] = []
    labels: list[Label] = []
    label_column = columns.label
    for line, row in _rows(path):
        if not items and (with_labels or columns.label is not None):
            label_column = _column(path, row, columns.label, LABEL_COLUMNS, "label")
        cells = {name: cell for name, cell in row.items() if name != label_column}
        try:
            items.append({"": np.array([float(cell) for cell in cells.values()], dtype=np.float32)})
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}, line {line}: every column but that of the label has to be a number; give texts and "
                "pictures as the arrays that the model takes, in an .npz"
            ) from None
        if with_labels and label_column is not None:
            labels.append(row[label_column])
    return Dataset(path, items, labels if with_labels else None)


# --- labels -----------------------------------------------------------------------------------------------------------


def class_indices(labels: Sequence[Any], class_names: Sequence[str] | None, num_classes: int, path: Path) -> Tensor:
    """Return the class index of each label, `(N,)` int64.

    The labels are names if the model has all of them, and indices if all are integers. Where they could be both and
    mean different classes, and where some are neither, they are refused.

    Parameters
    ----------
    labels : sequence of str or int
        As they stand in the data.
    class_names : sequence of str, or None
        Of the model's C classes, in the order of its outputs, where they are known.
    num_classes : int
        C.
    path : Path
        Of the data, for messages.

    Raises
    ------
    ValueError
        With the labels that the model does not have, and what it has.
    """
    texts = [unicodedata.normalize("NFC", str(label)) for label in labels]  # names of folders come decomposed on macOS
    class_names = class_names and [unicodedata.normalize("NFC", name) for name in class_names]
    distinct = sorted(set(texts))
    by_name, by_index = _by_name(class_names, path, distinct), _by_index(distinct, num_classes)
    unnamed = [label for label in distinct if label not in by_name]
    label = next((label for label in by_name if by_index and by_index[label] != by_name[label]), None)
    if label is not None:
        raise ValueError(
            f"{path}: label {label!r} is the name of class {by_name[label]} of the model, and may mean class "
            f"{by_index[label]}; give names that are no numbers by --class-names, and label by these names or by index"
        )
    index_of = by_index if unnamed else by_name
    if not index_of:
        raise ValueError(f"{path}: {_unknown(unnamed, len(distinct), class_names, num_classes)}")
    return torch.tensor([index_of[text] for text in texts])


def _by_name(class_names: Sequence[str] | None, path: Path, labels: Sequence[str]) -> dict[str, int]:
    """Return the index of each label that is a name, unless two classes have that name."""
    counts = Counter(class_names or ())
    repeated = next((label for label in labels if counts[label] > 1), None)
    if repeated is not None:
        raise ValueError(
            f"{path}: label {repeated!r} is the name of {counts[repeated]} classes of the model; label by index"
        )
    positions = {name: index for index, name in enumerate(class_names or ())}
    return {label: positions[label] for label in labels if label in positions}


def _by_index(labels: Sequence[str], num_classes: int) -> dict[str, int]:
    """Return the labels as indices; nothing if one of them is none."""
    if all(_INDEX.fullmatch(label) and int(label) < num_classes for label in labels):
        return {label: int(label) for label in labels}
    return {}


def _unknown(unnamed: Sequence[str], count: int, class_names: Sequence[str] | None, num_classes: int) -> str:
    """Say which labels the model does not have, and what it has."""
    shown = ", ".join(map(repr, unnamed[:_NAMED_LABELS])) + (", ..." if len(unnamed) > _NAMED_LABELS else "")
    indices = f"indices from 0 to {num_classes - 1}"
    if class_names is None:
        return (
            f"labels {shown} are no {indices}, and the names of the {num_classes} classes are not known; give these by "
            "--class-names, one per line in the order of the model's outputs"
        )
    start = f"labels {shown} ({len(unnamed)} of {count}) are not among the {num_classes} classes of the model"
    names = ", ".join(map(repr, class_names[:_NAMED_LABELS])) + (", ..." if num_classes > _NAMED_LABELS else "")
    if all(name == f"LABEL_{index}" for index, name in enumerate(class_names)):
        return (
            f"{start}, which have no names but {names}; label by {indices}, or give the names by --class-names, one "
            "per line in the order of the model's outputs"
        )
    near = difflib.get_close_matches(unnamed[0], class_names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; label by name or by {indices}"
    return f"{start}, {names}{hint}"
