"""Data sets and how they are laid out for training."""
