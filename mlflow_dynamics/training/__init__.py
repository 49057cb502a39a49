"""The MLproject's models, data sets and training loop."""
