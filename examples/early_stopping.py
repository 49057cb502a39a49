"""A loop that stops on the convergence signal, and goes back to the weights that validated best."""

from __future__ import annotations

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import mlflow_dynamics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=100)
epochs = parser.parse_args().epochs

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
targets = torch.tensor(digits.target)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
best_accuracy, best_weights = 0.0, copy.deepcopy(model.state_dict())

# The detector holds its false alarms to 5 % over the planned length, so tell it.
warning = mlflow_dynamics.WarningConfig(mode="stop", schedule=mlflow_dynamics.Schedule(planned_epochs=epochs))
with mlflow_dynamics.track(model, warning=warning) as tracker:
    for epoch in range(epochs):
        order = torch.randperm(1500)
        for batch in order.split(16):
            loss = nn.functional.cross_entropy(model(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(images[1500:]).argmax(1) == targets[1500:]).float().mean().item()
        if accuracy > best_accuracy:
            best_accuracy, best_weights = accuracy, copy.deepcopy(model.state_dict())
        tracker.end_epoch({"train/loss": loss, "validation/accuracy": accuracy})
        if tracker.should_stop():
            print(f"stopped after epoch {epoch}")
            break
    else:
        print(f"no convergence signal in {epochs} epochs")

model.load_state_dict(best_weights)
print(f"best validation accuracy {best_accuracy:.3f}")
