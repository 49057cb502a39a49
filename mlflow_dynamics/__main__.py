"""`python -m mlflow_dynamics` runs the console script."""

from __future__ import annotations

from mlflow_dynamics.cli import main

if __name__ == "__main__":
    main()
