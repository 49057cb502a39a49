"""Detectors by name: a foreign distribution installed for real, and ours without any installation."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

FOREIGN = '''
"""A detector of somebody else's: converges in the fifth epoch it sees."""
from mlflow_dynamics.convergence import Reading


class Fifth:
    def __init__(self, *, planned_epochs):
        self.parameters = {"planned": planned_epochs}
        self.seen = 0

    def update(self, epoch, stability):
        self.seen += 1
        return Reading(score=self.seen / 5, rising=0.0)
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "foreign-detector"
version = "1.0"

[project.entry-points."mlflow_dynamics.detectors"]
fifth = "foreign_detector:Fifth"
broken = "foreign_detector:Missing"

[tool.setuptools]
py-modules = ["foreign_detector"]
"""


def python(code, *paths):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "foreign_detector.py").write_text(FOREIGN)
    (source / "pyproject.toml").write_text(PROJECT)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


def test_a_foreign_detector_is_found_and_used_by_name(tmp_path):
    target = install(tmp_path)
    told = python(
        """
        from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, WarningConfig, detector_names
        from mlflow_dynamics.errors import ConfigError

        print(detector_names())
        monitor = ConvergenceMonitor(WarningConfig(detector="fifth", mode="stop", schedule=Schedule(planned_epochs=9)))
        print([monitor.update(e, 0.5).should_stop for e in range(6)], monitor.converged_epoch)
        print(monitor.parameters["planned"])
        for name in ("broken", "sixth"):
            try:
                WarningConfig(detector=name)
            except ConfigError as error:
                print(error)
        """,
        ROOT,
        target,
    ).splitlines()
    assert told[0] == "['broken', 'fifth', 'volatility']"
    assert told[1] == "[False, False, False, False, True, True] 4"
    assert told[2] == "9"
    assert told[3].startswith("detector='broken' cannot be loaded from 'foreign_detector:Missing'")
    assert told[4].startswith("detector='sixth' is not known; accepted: broken, fifth, volatility.")


def test_ours_is_found_in_a_source_folder_that_is_not_installed():
    told = python(
        """
        import importlib.metadata

        # The libraries stay importable, but no distribution is found to be installed.
        importlib.metadata.MetadataPathFinder.find_distributions = classmethod(lambda cls, context=None: iter(()))
        assert not importlib.metadata.entry_points(group="mlflow_dynamics.detectors")
        from mlflow_dynamics.convergence import ConvergenceMonitor, WarningConfig, detector_names
        print(detector_names(), ConvergenceMonitor(WarningConfig(detector="volatility")).update(0, 0.5).state)
        """,
        ROOT,
    )
    assert told.strip() == "['volatility'] waiting"


def test_the_wheel_ships_the_calibration_table_and_names_our_detector(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "mlflow_dynamics").symlink_to(ROOT / "mlflow_dynamics")
    target = tmp_path / "target"
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True)
    told = python(
        """
        import importlib.metadata, sys
        import mlflow_dynamics
        from mlflow_dynamics.convergence.volatility import thresholds
        print(mlflow_dynamics.__file__)
        print(len(thresholds()["lengths"]) > 5)
        dist = next(d for d in importlib.metadata.distributions(path=sys.path[1:2]))
        entry = next(e for e in dist.entry_points if e.group == "mlflow_dynamics.detectors")
        print(entry.name, entry.load().__name__)
        """,
        target,
    ).splitlines()
    assert told == [str(target / "mlflow_dynamics" / "__init__.py"), "True", "volatility VolatilityDetector"]
