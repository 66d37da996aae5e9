"""Samples of a classifier, with labels or without: a folder of images, or a table of texts."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import torch

from ..results.files import check_source
from ..results.records import parse_json

Label: TypeAlias = str | int
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*_DELIMITERS, *_JSON_SUFFIXES)
TEXT_COLUMNS, LABEL_COLUMNS = ("text", "sentence"), ("label", "labels")
"""Taken where no column is named."""
_LONGEST_CELL = 2**31 - 1
_NAMED = 5


@dataclass(frozen=True)
class Columns:
    """The columns of a table that the user has named."""

    text: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Samples:
    """What a file or folder holds.

    Attributes
    ----------
    path : Path
        Where they come from.
    items : sequence of str or of Path
        Texts, or files of images.
    labels : sequence of str or int, or None
        Names or indices of classes, as they stand there.
    """

    path: Path
    items: Sequence[str] | Sequence[Path]
    labels: Sequence[Label] | None

    @property
    def are_images(self) -> bool:
        return self.path.is_dir()

    def chosen(self, most: int, seed: int) -> "Samples":
        """Return at most so many, drawn at random, in the order in which they stand there."""
        if len(self.items) <= most:
            return self
        order = torch.randperm(len(self.items), generator=torch.Generator().manual_seed(seed))
        rows = order[:most].sort().values.tolist()
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return replace(self, items=[self.items[row] for row in rows], labels=labels)


def read_samples(path: Path, columns: Columns, *, with_labels: bool = True) -> Samples:
    """Read the names of a folder's images, or the rows of a table.

    Parameters
    ----------
    path : Path
        - A folder with a sub-folder for each class, which is named as the class; without labels, images anywhere in it.
          Hidden files and folders, and files that are no images, do not count.
        - A ``.csv`` or ``.tsv`` with a header, or a ``.jsonl`` with a JSON object on each line, in UTF-8.
    columns : Columns
        Of a table; where one is not named, it is the only one of `TEXT_COLUMNS` or `LABEL_COLUMNS`.
    with_labels : bool, default True
        Whether labels are read, and have to be there.

    Raises
    ------
    OSError, ValueError
        If `path` cannot be read, has no samples, lacks a column, or has a row without a text or a label.
    """
    if path.is_dir():
        samples = _images(path) if with_labels else Samples(path, list(_image_files(path)), None)
    elif path.suffix.lower() in TABLE_SUFFIXES:
        check_source(path)
        samples = _texts(path, columns, with_labels)
    elif path.exists():
        raise ValueError(
            f"{path} is no data that finecal reads: give a folder of images, or a table that ends with "
            f"{', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]}"
        )
    else:
        raise FileNotFoundError(f"{path} does not exist; check the name")
    if not samples.items:
        kind = f"images ({', '.join(IMAGE_SUFFIXES)})" if samples.are_images else "rows"
        raise ValueError(f"{path} has no {kind}; give data with at least one sample")
    return samples


# --- images -----------------------------------------------------------------------------------------------------------


def _images(folder: Path) -> Samples:
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
    return Samples(folder, files, labels)


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


def _texts(path: Path, columns: Columns, with_labels: bool) -> Samples:
    texts: list[str] = []
    labels: list[Label] = []
    text_column = label_column = None
    for line, row in _rows(path):
        if text_column is None:
            text_column = _column(path, row, columns.text, TEXT_COLUMNS, "text")
            if with_labels:
                label_column = _column(path, row, columns.label, LABEL_COLUMNS, "label")
        text = row.get(text_column)
        if not isinstance(text, str):
            raise ValueError(f"{path}, line {line}: {_cell(row, text_column)}, where a text has to be")
        texts.append(text)
        if label_column is not None:
            label = row.get(label_column)
            if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
                raise ValueError(
                    f"{path}, line {line}: {_cell(row, label_column)}, where the name or the index of a class has to be"
                )
            labels.append(label)
    return Samples(path, texts, labels if with_labels else None)


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
