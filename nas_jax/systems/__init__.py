"""The systems, one a module: a Config, its presets, and `build`."""
