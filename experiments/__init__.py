"""Launchers: the only place with flags, paths and processes. They are run from a checkout of the repository."""

from nas_jax import lazy

# What every search needs beside the library, looked for now and not after hours of training.
for _package in ('absl', 'filelock', 'matplotlib', 'tensorboardX', 'tqdm'):
  lazy.require(_package, 'a launcher')
