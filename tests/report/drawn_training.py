"""A training whose page is due at once: waits until MLflow has it, then says which libraries that took here."""

import sys
import time

import mlflow
import torch
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.report import redrawing
from mlflow_dynamics.tracking import names

redrawing.FIRST_DRAWING_S = 0.0

if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow.start_run() as run, mlflow_dynamics.track(model) as tracker:
        for epoch in range(3):
            for _ in range(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(0, 2, (8,))).backward()
                optimizer.step()
            tracker.end_epoch()
            tracker.wait(epoch, timeout=60)
        deadline = time.monotonic() + 120
        while not any(
            file.path == names.REPORT
            for file in mlflow.MlflowClient().list_artifacts(run.info.run_id, names.ARTIFACT_ROOT)
        ):
            if time.monotonic() > deadline:
                sys.exit("no page came")
            time.sleep(0.1)
        print("drawn with altair" if "altair" in sys.modules else "drawn without altair")
