"""All accuracies at one gamma."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

from torch import Tensor

from ._arrays import ArrayLike, as_tensor
from ._checks import as_bool_mask, warn
from ._display import Block, Table, as_html, as_markdown, as_text
from ._records import data_frame, plain_fields
from .curve import TradeoffCurve, point_at, tradeoff_curve
from .margin import Margins

if TYPE_CHECKING:
    from pandas import DataFrame

_ENOUGH_CLASSES, _ENOUGH_GUESSES = 10, 5
"""In each group, and right ones, to tell guessing from knowing."""


@dataclass(frozen=True)
class SeenAbsentReport:
    """Accuracies of a classifier at one gamma; made by `evaluate`. Prints as a table.

    Accuracies are fractions in [0, 1], NaN where no sample defines them.

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
    >>> report = finecal.evaluate(logits, labels=[0, 2], seen_mask=[True, True, False], gamma=0.5)
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as Python numbers and texts, NaN among them: for a logger, or for JSON."""
        return plain_fields(self)

    def to_pandas(self) -> "DataFrame":
        """Return a table of one row and a column per field; ``pandas.concat`` puts those of several gammas together."""
        return data_frame([self.to_dict()])

    def to_markdown(self) -> str:
        """Return what prints, as GitHub Markdown."""
        return as_markdown(self._blocks())

    def to_html(self, *, class_names: Sequence[str] | None = None, title: str | None = None) -> str:
        """Return a self-contained HTML page on what `gamma` does, with a slider that moves it; see `html_report`.

        It has all that can be told from the margins in `samples`. The most confused pairs of classes and the
        predictions need the logits: `html_report` shows them.

        Parameters
        ----------
        class_names : sequence of str, optional
            One for each class that occurs, by index; by default classes are called by their indices.
        title : str, optional
            Heading of the page.

        Returns
        -------
        str
            HTML that loads nothing from elsewhere: write it to a file in UTF-8.

        Raises
        ------
        ImportError
            If jinja2 or matplotlib is not installed.
        ValueError
            If this report was not made by `evaluate` or from a curve, so that it has no samples, or not one.
        """
        from .page import html_of_report

        return html_of_report(self, class_names, title)

    def _repr_html_(self) -> str:
        return as_html(self._blocks())

    def __str__(self) -> str:
        return as_text(self._blocks())

    def _blocks(self) -> list[Block]:
        table = Table(
            ["accuracy, %", "seen", "absent", "all"],
            [
                ["every class allowed", _percent(self.acc_seen), _percent(self.acc_absent), _percent(self.acc_all)],
                ["own group allowed", _percent(self.acc_seen_within), _percent(self.acc_absent_within), ""],
                ["samples", str(self.n_seen), str(self.n_absent), str(self.n_seen + self.n_absent)],
            ],
        )
        means = (
            f"harmonic mean {_percent(self.harmonic_mean)} %, balanced {_percent(self.balanced)} %, AUSUC "
            f"{self.ausuc:.4f}"
        )
        average = "" if self.average == "micro" else f" ({self.average})"
        return [[f"gamma = {self.gamma:.6g}{average}", table, means]]


def evaluate(
    logits: ArrayLike, labels: ArrayLike, seen_mask: ArrayLike, gamma: SupportsFloat = 0.0, average: str = "micro"
) -> SeenAbsentReport:
    r"""Return the accuracies on seen, absent and all classes at `gamma`.

    .. math:: \text{Acc}_{S/Y} = \langle\, \hat y(\gamma) = y \,\rangle_{y \in S}, \qquad
              \text{Acc}_{S/S} = \big\langle\, \arg\max_{c \in S} z_c = y \,\big\rangle_{y \in S}

    and likewise on U; :math:`\hat y` is `predict`.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, *not* yet calibrated.
    labels : (N,) int
        Class indices in ``[0, C)``.
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        A sample is predicted absent iff its margin is below it.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.

    Returns
    -------
    SeenAbsentReport

    Raises
    ------
    TypeError, ValueError
        As `tradeoff_curve`; ValueError if `gamma` is not finite.

    Warns
    -----
    FinecalWarning
        If many samples are told apart within their own group hardly better than by guessing: the labels seem to be of
        other columns than these.

    Notes
    -----
    `O(NC + N log N)`. Mai et al., NeurIPS 2024, section 3, for the five accuracies; Chao et al., ECCV 2016, for AUSUC.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> print(finecal.evaluate(logits, labels=[0, 2], seen_mask=[True, True, False], gamma=0.5))
    gamma = 0.5
    | accuracy, %         |  seen | absent |  all |
    | ------------------- | ----: | -----: | ---: |
    | every class allowed | 100.0 |    0.0 | 50.0 |
    | own group allowed   | 100.0 |  100.0 |      |
    | samples             |     1 |      1 |    2 |
    harmonic mean 0.0 %, balanced 50.0 %, AUSUC 0.0000
    """
    curve = tradeoff_curve(logits, labels, seen_mask, average)
    warn_if_guessed(curve, as_bool_mask(seen_mask))
    return curve.at(gamma)


def warn_if_guessed(curve: TradeoffCurve[Any], mask: Tensor) -> None:
    if guessing := doubt_about_guessing(curve, mask):
        warn(
            f"evaluate: {guessing}: check that labels index all columns of these logits, in this order (labels that a "
            "loader has re-indexed look like this)"
        )


def doubt_about_guessing(curve: TradeoffCurve[Any], mask: Tensor) -> str:
    """Say so if the hits are hardly more than guesses within the groups would give; else return nothing."""
    num_seen, n = int(mask.count_nonzero()), curve.n_seen + curve.n_absent
    num_absent = len(mask) - num_seen
    guesses = curve.n_seen / num_seen + curve.n_absent / num_absent
    if min(num_seen, num_absent) < _ENOUGH_CLASSES or guesses < _ENOUGH_GUESSES:
        return ""
    hits = int(as_tensor(curve.samples.hit, "hit").count_nonzero())
    if hits > 2 * guesses:
        return ""
    told, guessed = hits / n, guesses / n
    return f"only {told:.1%} of {n} samples are told apart within their own group, where guessing gives {guessed:.1%}"


def report_at(curve: TradeoffCurve[Any], gamma: float) -> SeenAbsentReport:
    """Read all accuracies off `curve` at `gamma`."""
    point = point_at(curve, gamma)
    seen, absent = float(curve.acc_seen[point]), float(curve.acc_absent[point])
    return SeenAbsentReport(
        acc_all=float(curve.acc_all[point]),
        acc_seen=seen,
        acc_absent=absent,
        acc_seen_within=curve.acc_seen_within,
        acc_absent_within=curve.acc_absent_within,
        harmonic_mean=harmonic_mean(seen, absent),
        balanced=(seen + absent) / 2,
        ausuc=curve.ausuc,
        gamma=gamma,
        n_seen=curve.n_seen,
        n_absent=curve.n_absent,
        average=curve.average,
        _samples=curve.samples,
    )


def harmonic_mean(seen: float, absent: float) -> float:
    """Return the harmonic mean of two accuracies, NaN if one is."""
    return 2 * seen * absent / (seen + absent) if seen + absent != 0 else 0.0


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
