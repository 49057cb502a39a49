"""A convergence detector of somebody else's, as an installed distribution that tests put on the path."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
"""Converges in the third epoch whose stability it sees."""
from mlflow_dynamics.convergence import Reading


class Third:
    def __init__(self, *, planned_epochs):
        self.parameters = {"planned": planned_epochs, "schedule": "its own"}
        self.seen = 0

    def update(self, epoch, stability):
        self.seen += 1
        return Reading(score=self.seen / 3, rising=0.0)
'''


def install(folder: Path) -> Path:
    """Lay the distribution out in `folder` as pip does; returns the folder, to be put on the path."""
    information = folder / "third_detector-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "third_detector.py").write_text(SOURCE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: third-detector\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[mlflow_dynamics.detectors]\nthird = third_detector:Third\n"
    )
    return folder
