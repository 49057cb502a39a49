"""One thin module for each framework. A module is imported only by users of its framework."""
