"""The benchmark: a section a module, each a function from a `timing.Setup` to rows."""
