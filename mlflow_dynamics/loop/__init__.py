"""What `autolog()` understands of a script that it has never seen: a log of torch's events, and readings of the log."""
