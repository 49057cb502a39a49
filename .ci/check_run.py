"""Check by MLflow's own client that the README's first command left what it promises."""

from __future__ import annotations

import sys

import mlflow
import pyarrow.dataset as ds
from mlflow.entities import Run

EPOCHS = 30
EVERY_EPOCH = (
    "train/loss",
    "train/accuracy",
    "validation/loss",
    "validation/accuracy",
    "train/learning_rate",
)
DYNAMICS = ("integration", "metastability", "synchrony", "stability", "volatility", "details/layers_dropped")


def main() -> None:
    """Exit with status 1 and the list of what is missing."""
    client = mlflow.MlflowClient()
    runs: list[Run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    problems = [f"{len(runs)} runs, expected 1"] if len(runs) != 1 else []
    run = runs[0]
    if run.info.status != "FINISHED":
        problems.append(f"status {run.info.status}")
    for key, least in [(k, EPOCHS) for k in EVERY_EPOCH] + [(f"dynamics/{k}", 20) for k in DYNAMICS]:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, key)]
        print(f"{key}: {len(steps)} epochs")
        if len(steps) < least or len(set(steps)) != len(steps):
            problems.append(
                f"{key} has {len(steps)} values at {len(set(steps))} epochs, expected {least} or more"
            )
    accuracy = run.data.metrics["validation/accuracy"]
    print(f"validation accuracy {accuracy:.3f}")
    if accuracy <= 0.9:
        problems.append(f"validation accuracy {accuracy}")
    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="dynamics")
    table = ds.dataset(f"{folder}/activations", partitioning="hive").to_table()
    epochs = set(table["epoch"].to_pylist())
    print(f"activations: {table.num_rows} rows of {len(epochs)} epochs, columns {table.column_names}")
    if epochs != set(range(EPOCHS)):
        problems.append(f"activations of epochs {sorted(epochs)}")
    layers = ds.dataset(f"{folder}/layers.parquet").to_table()
    print(f"layers: {layers.num_rows}")
    if set(table["layer"].to_pylist()) != set(range(layers.num_rows)):
        problems.append("layers.parquet and the activations disagree")
    if not run.inputs.dataset_inputs:
        problems.append("no data set input")
    if not any(key.startswith("system/") for key in run.data.metrics):
        problems.append("no system metrics")
    models = client.search_logged_models([run.info.experiment_id])
    if not models:
        problems.append("no logged model")
    else:
        mlflow.pytorch.load_model(models[0].model_uri)
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
