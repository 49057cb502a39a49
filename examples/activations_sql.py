"""Query the recorded activations of several runs at once with DuckDB and with Polars.

    python examples/activations_sql.py

takes the newest runs of MLflow's active experiment that hold dynamics; where there are none it first trains two
small ones on the embedded digits. Needs `duckdb` and `polars`.
"""

from __future__ import annotations

import duckdb
import polars

import mlflow_dynamics
from mlflow_dynamics.training.parameters import TrainingConfig
from mlflow_dynamics.training.run import train_in_run

HELD = "metrics.`dynamics/integration` > 0"
RUNS = 5


def run_ids() -> list[str]:
    """Up to five runs with dynamics, trained here where there are none."""
    runs = mlflow_dynamics.search_runs(filter_string=HELD, max_results=RUNS)
    if runs.empty:
        for seed in (0, 1):
            train_in_run(TrainingConfig(seed=seed, epochs=4, limit_train=640))
        runs = mlflow_dynamics.search_runs(filter_string=HELD, max_results=RUNS)
    return list(runs["run_id"])


def main() -> None:
    """Print how the layers' mean output changes, asked once of each engine."""
    activations = mlflow_dynamics.load_activations(run_ids(), columns=["run_id", "layer", "mean"])

    query = """
        SELECT layer, count(DISTINCT run_id) AS runs, avg(mean) AS mean, stddev_pop(mean) AS spread
        FROM activations GROUP BY layer ORDER BY layer LIMIT 5
    """
    print("DuckDB: the first layers over all runs")
    print(duckdb.sql(query))

    by_layer = polars.from_arrow(activations).lazy().group_by("layer")
    answer = by_layer.agg(
        runs=polars.col("run_id").n_unique(),
        mean=polars.col("mean").mean(),
        spread=polars.col("mean").std(ddof=0),
    )
    print("Polars: the same")
    print(answer.sort("layer").head(5).collect())


if __name__ == "__main__":
    main()
