"""The search systems, one module each, loaded on first use. Each has a Config, its presets, and `build`."""

from nas_jax import lazy

__all__ = ['cell', 'chain', 'conv', 'enas_images', 'enas_rnn', 'sequence', 'table']
__getattr__, __dir__ = lazy.modules(__name__, __all__)
