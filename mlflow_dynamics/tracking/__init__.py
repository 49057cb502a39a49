"""Tracking (MLflow and pyarrow): metric and artifact names, writing, sending later, reading back."""
