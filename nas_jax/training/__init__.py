"""Training children."""
