"""Child networks."""
