"""From `search_runs` to a figure: a script in cells (`# %%`) that an editor or Jupyter runs one by one.

    python examples/query_runs.py

writes dynamics.png. Where MLflow's active experiment holds no dynamics it first trains two small runs on digits.
"""

# %% The runs, and what convergence came to in each
from __future__ import annotations

import altair as alt

import mlflow_dynamics
from mlflow_dynamics.training.parameters import TrainingConfig
from mlflow_dynamics.training.run import train_in_run

HELD = "metrics.`dynamics/integration` > 0"

runs = mlflow_dynamics.search_runs(filter_string=HELD, max_results=20)
if runs.empty:
    for optimizer, rate in (("sgd", 0.1), ("adamw", 0.001)):
        train_in_run(TrainingConfig(optimizer=optimizer, learning_rate=rate, epochs=4, limit_train=640))
    runs = mlflow_dynamics.search_runs(filter_string=HELD, max_results=20)
print(runs[["run_name", "plateau_epoch", "warning_epoch", "dynamics/stability", "validation/accuracy"]])

# %% Their metrics, a row for each run and epoch
metrics = mlflow_dynamics.load_metrics(
    list(runs["run_id"]), metrics=["dynamics/stability", "validation/accuracy"], params=["optimizer"]
)
print(metrics.groupby("params.optimizer").last(numeric_only=True))

# %% A figure
renamed = metrics.rename(columns={"dynamics/stability": "stability", "params.optimizer": "optimizer"})
chart = (
    alt.Chart(renamed.dropna(subset=["stability"]))
    .mark_line(point=True)
    .encode(x="epoch:Q", y=alt.Y("stability:Q").scale(zero=False), color="optimizer:N", detail="run_id:N")
)
chart.save("dynamics.png")
