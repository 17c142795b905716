"""Child networks: what the architectures of a search are trained as."""
