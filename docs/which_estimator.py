"""Draw the answer to "which estimator do I need?" from its table: python docs/which_estimator.py docs/images."""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

from finecal.gamma.choice import CHOICES

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
WIDTH, ROW, HEIGHT = 800, 84, 60
QUESTION, ANSWER = (8, 290), (366, 426)
"""Where the boxes begin, and how wide they are."""


def lines_of(words: str, most: int = 34) -> list[str]:
    """Break a sentence into lines of at most so many characters."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= most else [*lines, word]
    return lines


def box(x: int, y: int, width: int, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="8"/>'


def words(
    x: float, y: float, text: str, kind: str = "", anchor: str = "start"
) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def picture(version: str) -> str:
    """Return the SVG: questions on the left, one below the other, and beside each what follows from its answer."""
    colours, height = COLOURS[version], ROW * len(CHOICES)
    left, middle = QUESTION[0], QUESTION[0] + QUESTION[1] / 2
    parts = []
    for row, choice in enumerate(CHOICES):
        top = 8 + row * ROW
        centre = top + HEIGHT / 2
        if choice.question:
            parts.append(box(left, top, QUESTION[1], "box"))
            asked = lines_of(choice.question)
            first = centre + 5 - 9 * (len(asked) - 1)
            parts += [
                words(middle, first + 18 * i, line, anchor="middle")
                for i, line in enumerate(asked)
            ]
            parts.append(
                f'<path d="M{left + QUESTION[1]} {centre}H{ANSWER[0] - 4}" marker-end="url(#tip)"/>'
            )
            parts.append(
                words(
                    (left + QUESTION[1] + ANSWER[0]) / 2 - 4,
                    centre - 8,
                    choice.answer,
                    anchor="middle",
                )
            )
        else:  # the last question, answered the other way
            parts.append(
                f'<path d="M{middle} {top - ROW + HEIGHT}V{centre}H{ANSWER[0] - 4}" marker-end="url(#tip)"/>'
            )
            parts.append(words(middle + 8, centre - 8, choice.answer))
        if row + 1 < len(CHOICES) and CHOICES[row + 1].question:
            parts.append(
                f'<path d="M{middle} {top + HEIGHT}V{top + ROW - 4}" marker-end="url(#tip)"/>'
            )
            other = "no" if choice.answer == "yes" else "yes"
            parts.append(words(middle + 8, top + HEIGHT + 17, other))
        parts.append(box(ANSWER[0], top, ANSWER[1], "answer"))
        function, _, arguments = choice.call.partition("(")
        parts.append(
            words(ANSWER[0] + 12, centre - 6, f"{function}({arguments}", "code")
        )
        recovers = f"recovers {choice.recovered} % of what the best gamma gains (median)"
        parts.append(words(ANSWER[0] + 12, centre + 18, recovers, "strong"))
    style = (
        f"text{{font:14px system-ui,sans-serif;fill:{colours['text']}}}"
        f".code{{font:12px ui-monospace,monospace}}.strong{{font-size:13px;font-weight:600;fill:{colours['strong']}}}"
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
