"""Draw the answer to "which estimator do I need?" from its table: python docs/which_estimator.py docs/images."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from finecal._estimators.table import CHOICES

COLOURS = {
    "light": {
        "text": "#1f2328",
        "box": "#eef2f7",
        "answer": "#e3f4ea",
        "line": "#7b8794",
        "strong": "#12663c",
    },
    "dark": {
        "text": "#e6e8eb",
        "box": "#262b33",
        "answer": "#173325",
        "line": "#8b949e",
        "strong": "#7ddba3",
    },
}
WIDTH, ROW, HEIGHT = 476, 98, 78
QUESTION, ANSWER = (8, 186), (242, 226)
"""Where the boxes begin, and how wide they are: the picture fits a phone."""
LINE = 18


def lines_of(words: str, most: int) -> list[str]:
    """Break a sentence into lines of at most so many characters."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= most else [*lines, word]
    return lines


def box(x: int, y: int, width: int, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="8"/>'


def arrow(path: str) -> str:
    return f'<path d="{path}" marker-end="url(#tip)"/>'


def words(
    x: float, y: float, text: str, kind: str = "", anchor: str = "start"
) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def centred(lines: Sequence[str], centre: float) -> Iterator[tuple[float, str]]:
    """Yield lines with their places, about a centre."""
    first = centre + 5 - LINE / 2 * (len(lines) - 1)
    return ((first + LINE * i, line) for i, line in enumerate(lines))


def picture(version: str) -> str:
    """Return the SVG: questions on the left, one below the other, and beside each what follows from its answer."""
    colours, height = COLOURS[version], ROW * len(CHOICES)
    left, middle, right = (
        QUESTION[0],
        QUESTION[0] + QUESTION[1] / 2,
        sum(QUESTION),
    )
    parts = []
    for row, choice in enumerate(CHOICES):
        top = 8 + row * ROW
        centre = top + HEIGHT / 2
        if choice.question:
            parts.append(box(left, top, QUESTION[1], "box"))
            asked = centred(lines_of(choice.question, 22), centre)
            parts += [
                words(middle, y, line, anchor="middle") for y, line in asked
            ]
            parts.append(arrow(f"M{right} {centre}H{ANSWER[0] - 4}"))
            parts.append(
                words(
                    (right + ANSWER[0]) / 2 - 3,
                    centre - 8,
                    choice.answer,
                    anchor="middle",
                )
            )
        else:  # the last question, answered the other way
            parts.append(
                arrow(
                    f"M{middle} {top - ROW + HEIGHT}V{centre}H{ANSWER[0] - 4}"
                )
            )
            parts.append(words(middle + 8, centre - 8, choice.answer))
        if row + 1 < len(CHOICES) and CHOICES[row + 1].question:
            parts.append(arrow(f"M{middle} {top + HEIGHT}V{top + ROW - 4}"))
            other = "no" if choice.answer == "yes" else "yes"
            parts.append(words(middle + 8, top + HEIGHT + 16, other))
        parts.append(box(ANSWER[0], top, ANSWER[1], "answer"))
        *call, recovers = centred(
            [
                *lines_of(choice.call, 29),
                f"recovers {choice.recovered} % (median)",
            ],
            centre,
        )
        parts += [words(ANSWER[0] + 10, y, line, "code") for y, line in call]
        parts.append(words(ANSWER[0] + 10, recovers[0], recovers[1], "strong"))
    style = (
        f"text{{font:14px system-ui,sans-serif;fill:{colours['text']}}}"
        f".code{{font:11.5px ui-monospace,monospace}}.strong{{font-size:13px;font-weight:600;fill:{colours['strong']}}}"
        f".box{{fill:{colours['box']}}}.answer{{fill:{colours['answer']}}}"
        f"path{{stroke:{colours['line']};stroke-width:1.5;fill:none}}.tip{{fill:{colours['line']};stroke:none}}"
    )
    tip = (
        '<marker id="tip" markerWidth="8" markerHeight="8" refX="5" refY="4" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>Which estimator do I need?</title><style>{style}</style><defs>{tip}</defs>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for version in COLOURS:
        (folder / f"which_estimator_{version}.svg").write_text(
            picture(version), encoding="utf-8"
        )
