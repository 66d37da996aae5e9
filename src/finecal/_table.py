"""Aligned GitHub-Markdown tables, the same in a terminal and in a report."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` under `header` as an aligned Markdown table: the first column to the left, numbers to the right."""
    right = numeric_columns(header, rows)
    lines = [[_cell(text) for text in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + ":" if to_right else "-" * width for width, to_right in zip(widths, right, strict=True)]
    aligned = [
        " | ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        )
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {line} |" for line in aligned)


def numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Return which columns hold numbers only, the first one left out."""
    columns = zip(header, *rows, strict=True)
    return [i > 0 and all(_is_number(cell) for cell in column[1:]) for i, column in enumerate(columns)]


def _cell(text: str) -> str:
    """Keep a text within its cell."""
    return " ".join(text.replace("|", "\\|").splitlines())


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%") or "nan")
    except ValueError:
        return cell in ("", "-")
    return True
