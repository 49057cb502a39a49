"""Writes the evaluation of the kept traces into docs/early-warning.md, and draws its figure.

    python benchmarks/warning_page.py

A test compares the page with what `mlflow-dynamics evaluate` prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mlflow_dynamics.evaluation import read_traces, report
from mlflow_dynamics.evaluation.figure import figure

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "early-warning.md"
TRACES: Final = ROOT / "tests" / "data" / "warning_grid.csv"
BEGIN, END = "<!-- evaluation -->", "<!-- end of evaluation -->"


def main() -> None:
    frame = read_traces(TRACES)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{report(frame)}\n{END}{after}", encoding="utf-8")
    figure(frame).save(ROOT / "docs" / "images" / "evaluation.png", format="png")


if __name__ == "__main__":
    main()
