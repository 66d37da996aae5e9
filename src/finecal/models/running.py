"""Run a model on one batch: in eval mode, and with an error that describes inputs that it cannot take."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from torch import nn

from .feed import BY_NAME, suggest_batch_function
from .output import described


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Run in eval mode, and restore the training flag of each module; `train` undoes what a custom `eval` does."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(flags[0][1])
        for module, flag in flags:
            module.training = flag


def call_model(model: nn.Module, inputs: object, batch: object = None) -> object:
    """Call the model with its inputs by name, by position or as one; an error describes them and the batch."""
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        positional = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
        return model(*inputs) if positional else model(inputs)  # type: ignore[misc]
    except (TypeError, AttributeError) as error:
        if _holds_array(inputs):
            raise TypeError(
                f"the inputs of a batch are {_described(inputs)} in place of tensors, which "
                f"{_name(model)} does not take ({error}); convert them by torch.from_numpy, or let a DataLoader do so"
            ) from error
        if isinstance(inputs, Mapping) and isinstance(error, TypeError):
            labels = "" if batch is None else f"; {BY_NAME}: {suggest_batch_function(batch)}"
            raise TypeError(
                f"the inputs of a batch are {described(inputs)}, which are passed to {_name(model)} by name, and it "
                f"failed ({error}){labels}"
            ) from error
        raise


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _described(inputs: object) -> str:
    return "a NumPy array" if isinstance(inputs, np.ndarray) else f"{described(inputs)} with NumPy arrays"


def _holds_array(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(map(_holds_array, value))
    return isinstance(value, np.ndarray)
