"""Checks of what is drawn."""

from collections.abc import Mapping
from typing import SupportsFloat

from ..inputs.checks import gamma_as_float
from ..inputs.warning import naming


def check_drawn(value: object, kind: type, name: str, source: str) -> None:
    """A result of the kind that the picture is of."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a {kind.__name__}, which {source} returns")


def check_gammas(gammas: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Finite numbers by name; None gives none."""
    if gammas is None:
        return {}
    if not isinstance(gammas, Mapping):
        raise TypeError(f'gammas is a {type(gammas).__name__}; pass a dict of gamma by name: {{"mine": 1.5}}')
    checked = {}
    for name, gamma in gammas.items():
        with naming(f"gammas[{name!r}]"):
            checked[str(name)] = gamma_as_float(gamma)
    return checked
