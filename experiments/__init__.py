"""Launchers: the only place with flags, paths and processes."""
