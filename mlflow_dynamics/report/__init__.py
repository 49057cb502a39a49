"""Figures and pages about one run or many."""
