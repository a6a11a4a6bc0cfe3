"""Medians with their spread, tables, and the claims to which they are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Figure:
    """Repetitions of one measurement, in milliseconds unless its column has another unit."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Adds one repetition."""
        self.values.append(value)

    @property
    def median(self) -> float:
        """The median, or NaN without any repetition."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile."""
        if len(self.values) < 2:
            return (self.median, self.median)
        tenths = statistics.quantiles(self.values, n=10, method="inclusive")
        return (tenths[0], tenths[-1])

    def __str__(self) -> str:
        """The median and, in parentheses, the 10th and 90th percentiles."""
        low, high = self.spread
        return f"{_short(self.median)} ({_short(low)}..{_short(high)})"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


@dataclass(frozen=True)
class Claim:
    """One promised figure and the measured one."""

    text: str
    figure: float
    limit: float
    unit: str
    is_minimum: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.figure >= self.limit if self.is_minimum else self.figure <= self.limit

    def __str__(self) -> str:
        """One line: PASS or MISS, the figure, the limit."""
        sign = ">=" if self.is_minimum else "<="
        verdict = "PASS" if self.holds else "MISS"
        return f"{verdict}  {self.text}: {self.figure:.2f} {self.unit} (claimed {sign} {self.limit:g})"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table with right-aligned columns, under its title."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)), flush=True)
