"""Measure one recorded run under three signals and two protocols, without training again.

    python examples/compare_signals.py RUN_ID

prints, for the last epoch, what each reading makes of the same activations.
"""

from __future__ import annotations

import sys

from mlflow_dynamics import MeasureConfig, recompute

READINGS = {
    "root mean square over steps": MeasureConfig(),
    "mean over steps": MeasureConfig(signal="mean"),
    "standard deviation over steps": MeasureConfig(signal="std"),
    "root mean square over steps, hk": MeasureConfig(estimator="hk"),
    "root mean square over depth": MeasureConfig(protocol="depth"),
}


def main(run_id: str) -> None:
    """Print a table of integration and metastability in the run's last epoch."""
    print(f"{'reading':35s}{'integration':>14s}{'metastability':>16s}")
    for name, config in READINGS.items():
        *_, last = recompute(run_id, config)
        print(f"{name:35s}{last.measures.integration:14.3f}{last.measures.metastability:16.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
