"""Aligned GitHub-Markdown tables, the same in a terminal and in a report."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` under `header` as an aligned Markdown table: the first column to the left, numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [i > 0 and all(_is_number(cell) for cell in column[1:]) for i, column in enumerate(columns)]
    rule = ["-" * (width - 1) + ":" if to_right else "-" * width for width, to_right in zip(widths, right, strict=True)]
    lines = [
        " | ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        )
        for line in (header, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%") or "nan")
    except ValueError:
        return cell in ("", "-")
    return True
