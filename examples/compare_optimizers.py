"""Two optimizers, two seeds each: one table, and the comparison page with what it cannot conclude."""

from __future__ import annotations

from pathlib import Path

import mlflow
import torch
from sklearn.datasets import load_digits
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.report.comparison import comparison_page, gather, load

EPOCHS = 5
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.002),
}

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
targets = torch.tensor(digits.target)


def train(name: str, seed: int) -> str:
    """One training in one run; its id."""
    torch.manual_seed(seed)
    hidden = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    optimizer = OPTIMIZERS[name](model.parameters())
    with mlflow.start_run(run_name=f"{name}, seed {seed}") as run, mlflow_dynamics.track(model) as tracker:
        # The comparison reads these four parameters; runs that agree in all of them are repetitions.
        mlflow.log_params(
            {"dataset": "digits", "model": "mlp", "optimizer": name, "schedule": "constant", "seed": seed}
        )
        for _ in range(EPOCHS):
            for batch in torch.randperm(1500).split(16):
                loss = nn.functional.cross_entropy(model(images[batch]), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                accuracy = (model(images[1500:]).argmax(1) == targets[1500:]).float().mean().item()
            tracker.end_epoch({"train/loss": loss, "validation/accuracy": accuracy})
    return str(run.info.run_id)


runs = [train(name, seed) for name in OPTIMIZERS for seed in (0, 1)]
metrics = mlflow_dynamics.load_metrics(runs, params=["optimizer"])
columns = ["dynamics/integration", "dynamics/metastability", "dynamics/stability", "validation/accuracy"]
print(
    metrics[metrics["epoch"] == EPOCHS - 1].groupby("params.optimizer")[columns].mean().round(3).to_string()
)
Path("optimizers.html").write_text(comparison_page(gather(load(runs)), title="SGD and AdamW"))
print("Written: optimizers.html")
