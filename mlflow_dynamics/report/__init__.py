"""A run's report: figures of its dynamics on one page that needs no network."""
