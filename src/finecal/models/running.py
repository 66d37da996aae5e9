"""One batch through a model: in which mode the model runs, and what to say where it cannot take the inputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from torch import nn

from .feed import BY_NAME, suggest_batch_function
from .output import described


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Restore the flags one by one, after `train` has undone what else the `eval` of some modules does."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(flags[0][1])
        for module, flag in flags:
            module.training = flag


def call_model(model: nn.Module, inputs: object, batch: object = None) -> object:
    """Call the model; where it cannot take the inputs as they come, say what they are, and what the batch was."""
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
