"""A classifier in an ONNX file, and a copy of it with gamma in its graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .onnx import OnnxModel, fold_into_onnx, record_of


class SavedOnnx:
    """As `SavedModel`, from arrays to logits; `output` names the output with the logits.

    Raises
    ------
    ValueError, OSError
        As `OnnxModel`, and if the file has gamma already.
    """

    def __init__(self, path: Path, output: str | None) -> None:
        self.path, self._output = path, output
        self.class_names: tuple[str, ...] | None = None
        model = OnnxModel(path, output=output)
        if model.record is not None:
            raise ValueError(
                f"{path} has gamma in its graph already, as its metadata record; use it as it is, or start from the "
                "file that it was made from"
            )
        self.model: OnnxModel = model

    def inputs(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """Return rows of arrays, by the name of the input, as batches; a row without a name is for the only input."""
        names = self.model.input_names
        if set(items[0]) == {""} and len(names) == 1:
            return {names[0]: torch.from_numpy(np.stack([item[""] for item in items]))}
        if set(items[0]) != set(names):
            given = "one table of numbers" if set(items[0]) == {""} else f"arrays {', '.join(map(repr, items[0]))}"
            raise ValueError(
                f"{self.path} has the inputs {', '.join(map(repr, names))}, and the data {given}; give an .npz with "
                "'labels' and an array for each input, under its name"
            )
        return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in names}

    def num_classes(self, items: Sequence[Any]) -> int:
        """Run the model on a few samples, and return the number of its classes."""
        shape: tuple[int, ...] = tuple(self.model(**self.inputs(items)).shape)
        if len(shape) != 2:
            raise ValueError(
                f"{self.path} gives {self.model.logits_name!r} of shape {shape}, and finecal fold takes logits (N, C); "
                "name another output by --output-name, or fold from Python: finecal.integrations.onnx.fold_into_onnx"
            )
        return shape[1]

    def write(self, target: Path, calibrator: nn.Module, items: Sequence[Any]) -> str:
        """Write a copy with the calibrator in its graph, compared on `items`; return where it went, in words."""
        new = fold_into_onnx(self.path, calibrator, self.inputs(items), output=self._output, out=target)
        record = record_of(new)
        assert record is not None
        return f"{record['place']}; outputs that follow: {', '.join(record['outputs'])}"

    def usage(self, target: Path) -> str:
        """Return a line of Python that loads the copy."""
        return f'onnxruntime.InferenceSession("{target}")'
