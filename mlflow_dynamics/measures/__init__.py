"""The dynamical measures: arrays in, numbers out."""
