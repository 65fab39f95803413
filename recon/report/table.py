"""Plain tables of numbers, for terminals and text files."""

from collections.abc import Mapping, Sequence


def comparison(rows: Mapping[str, Mapping[str, float]], digits: int = 2) -> str:
    """An aligned table: one line per method, one column per number."""
    columns = list(next(iter(rows.values())))
    wide = max(len(name) for name in rows)
    lines = [" " * wide + "".join(f"  {c:>12}" for c in columns)]
    for name, numbers in rows.items():
        cells = "".join(f"  {numbers[c]:>12.{digits}f}" for c in columns)
        lines.append(f"{name:<{wide}}{cells}")
    return "\n".join(lines)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table, readable as plain text; all but the first column to the right."""
    wide = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(wide[0])]
        aligned += [cell.rjust(w) for cell, w in zip(cells[1:], wide[1:], strict=True)]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * wide[0], *("-" * (w - 1) + ":" for w in wide[1:])]
    return "\n".join([line(columns), f"| {' | '.join(rule)} |", *map(line, rows)])
