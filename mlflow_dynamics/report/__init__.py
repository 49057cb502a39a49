"""Draws the report of a run: figures of the run's dynamics on one page that needs no network."""
