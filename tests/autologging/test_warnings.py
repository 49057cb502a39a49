"""A warning names the line it would name without us, whichever function that we hear of it comes through."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from warm_python import COLD

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "warned.py"


def warned(*command: str) -> list[str]:
    done = subprocess.run(
        [COLD, *command, str(SCRIPT)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_warnings_are_attributed_as_without_us() -> None:
    plain = warned()
    assert len(plain) > 90
    for told in ("lr_scheduler.step()", "target size", "duplicate parameters", "reduce args", "level 9"):
        assert any(told in line for line in plain), told
    assert warned("-m", "mlflow_dynamics.cli", "run") == plain
