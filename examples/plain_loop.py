"""A plain PyTorch loop, recorded by one line; without that line: mlflow-dynamics run examples/plain_loop.py."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mlflow_dynamics

mlflow_dynamics.autolog()

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
targets = torch.tensor(digits.target)
train = DataLoader(TensorDataset(images[:1500], targets[:1500]), batch_size=16, shuffle=True)
test = DataLoader(TensorDataset(images[1500:], targets[1500:]), batch_size=64)

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
criterion = nn.CrossEntropyLoss()

for epoch in range(5):
    model.train()
    for batch, labels in train:
        optimizer.zero_grad()
        criterion(model(batch), labels).backward()
        optimizer.step()
    model.eval()
    correct = 0
    with torch.no_grad():
        for batch, labels in test:
            output = model(batch)
            criterion(output, labels)
            correct += int((output.argmax(1) == labels).sum())
    print(f"epoch {epoch}: validation accuracy {correct / len(targets[1500:]):.3f}")
