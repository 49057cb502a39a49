"""See how a network's layers move together while it trains: dynamical measures as MLflow metrics."""

__version__ = "0.1.0"
