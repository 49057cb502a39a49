"""Draws the evaluation as a figure: accuracy lost against budget saved."""

from __future__ import annotations

import altair as alt
import pandas as pd

from mlflow_dynamics.evaluation.fitted import fitted_rules
from mlflow_dynamics.evaluation.rules import RULES, outcomes
from mlflow_dynamics.evaluation.traces import curves_of


def figure(frame: pd.DataFrame) -> alt.Chart:
    """Draw accuracy lost against budget saved, with one line for each rule over all its settings."""
    runs = [run for run, _ in curves_of(frame)]
    rows = []
    rules = {**RULES, **fitted_rules(runs)}
    for name, rule in rules.items():
        for saved, lost in outcomes(rule, runs).mean(axis=0):
            rows.append({"rule": name, "saved": saved, "lost": lost})
    points = pd.DataFrame(rows).groupby(["rule", "saved"], as_index=False)["lost"].min()
    return (
        alt.Chart(points)
        .mark_line(point=alt.OverlayMarkDef(size=15))
        .encode(
            x=alt.X(
                "saved:Q",
                title="fraction of the budget saved, mean over runs",
                scale=alt.Scale(domain=[0, 0.8]),
            ),
            y=alt.Y(
                "lost:Q",
                title="best validation accuracy lost, points",
                scale=alt.Scale(domain=[0, 8], clamp=True),
            ),
            color=alt.Color("rule:N", sort=list(rules), legend=alt.Legend(labelLimit=300)),
        )
        .properties(width=460, height=300)
    )
