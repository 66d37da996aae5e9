"""All accuracies at one gamma."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any

from ..inputs.class_names import ClassNames
from ..results import lazy
from ..results.display import Block, Table
from ..results.format import decimal, percent
from ..results.records import data_frame
from ..results.result import Result
from .margins import Margins

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class SeenAbsentReport(Result):
    """Accuracies of a classifier at one gamma; made by `evaluate`. Prints as a table.

    Accuracies are fractions in [0, 1], NaN where no sample defines them; they are printed in %.

    Attributes
    ----------
    acc_all, acc_seen, acc_absent : float
        `Acc_{Y/Y}`, `Acc_{S/Y}`, `Acc_{U/Y}`: every class allowed.
    acc_seen_within, acc_absent_within : float
        `Acc_{S/S}`, `Acc_{U/U}`: only the classes of the sample's own group allowed; gamma does not change them.
    harmonic_mean, balanced : float
        Harmonic and arithmetic mean of `Acc_{S/Y}` and `Acc_{U/Y}`. (Not scikit-learn's balanced accuracy.)
    ausuc : float
        Area under the seen-absent curve; gamma does not change it.
    gamma : float
        Where the accuracies with every class allowed were taken.
    n_seen, n_absent : int
        Samples with a seen and with an absent label.
    average : str
        "micro" or "macro", as given to `evaluate`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> report = finecal.evaluate(
    ...     logits, labels=[0, 2], seen_mask=[True, True, False], gamma=0.5
    ... )
    >>> report.acc_seen, report.acc_absent, report.acc_absent_within
    (1.0, 0.0, 1.0)
    """

    acc_all: float
    acc_seen: float
    acc_absent: float
    acc_seen_within: float
    acc_absent_within: float
    harmonic_mean: float
    balanced: float
    ausuc: float
    gamma: float
    n_seen: int
    n_absent: int
    average: str = "micro"
    _samples: InitVar[Margins[Any] | None] = None

    def __post_init__(self, _samples: Margins[Any] | None) -> None:
        object.__setattr__(self, "_samples", _samples)

    @property
    def samples(self) -> Margins[Any] | None:
        """What the accuracies were counted from, 14 bytes per sample. Neither ``==`` nor `to_dict` look at it."""
        samples: Margins[Any] | None = self.__dict__["_samples"]
        return samples

    def to_pandas(self) -> DataFrame:
        """Return a table of one row and a column per field; ``pandas.concat`` puts those of several gammas together."""
        return data_frame([self.to_dict()])

    def to_html(self, *, class_names: ClassNames | None = None, title: str | None = None) -> str:
        """Return a self-contained HTML page on what `gamma` does, with a slider that moves it; see `html_report`.

        It has all that can be told from the margins in `samples`. The most confused pairs of classes and the
        predictions need the logits: `html_report` shows them.

        Parameters
        ----------
        class_names : sequence of str or dict, optional
            One for each class that occurs, by index, as for `seen_mask_from_names`; by default classes are called by
            their indices.
        title : str, optional
            Heading of the page, as for `html_report`.

        Returns
        -------
        str
            HTML that loads nothing from elsewhere: write it to a file in UTF-8.

        Raises
        ------
        ImportError
            If jinja2 is not installed.
        ValueError
            If this report was not made by `evaluate` or from a curve, so that it has no samples, or not one.
        """
        page: str = lazy.page().html_of_report(self, class_names, title)
        return page

    def _blocks(self) -> list[Block]:
        table = Table(
            ["accuracy, %", "seen", "absent", "all"],
            [
                ["every class allowed", percent(self.acc_seen), percent(self.acc_absent), percent(self.acc_all)],
                ["own group allowed", percent(self.acc_seen_within), percent(self.acc_absent_within), ""],
                ["samples", str(self.n_seen), str(self.n_absent), str(self.n_seen + self.n_absent)],
            ],
        )
        means = (
            f"harmonic mean {percent(self.harmonic_mean)} %, balanced {percent(self.balanced)} %, AUSUC "
            f"{decimal(self.ausuc, 4)}"
        )
        average = "" if self.average == "micro" else f" ({self.average})"
        return [[f"gamma = {self.gamma:.6g}{average}", table, means]]
