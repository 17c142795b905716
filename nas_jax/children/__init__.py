"""Child networks: the networks that a search trains for its architectures."""
