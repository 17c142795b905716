"""Trained models that take raw images or text: a Flax module, its variables and its preprocessing."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.datasets import image_batches, text
from nas_jax.datasets.splits import Scale
from nas_jax.types import Array, Key, PyTree
from nas_jax.words import counted

AT_ONCE = 256  # images in one program call
WINDOW = 256  # tokens that a text is read in at a time


class ImageInputs(NamedTuple):
  """The images that a network was trained on."""

  shape: tuple[int, int, int]  # height, width, channels
  classes: tuple[str, ...]  # their names; () if there are none
  whitening: image_batches.Whitening
  resized: bool = False  # whether the images were scaled to this height and width
  scale: Scale | None = None  # of the numbers that the network predicts; None for a classifier
  numbered: bool = False  # whether labels in training were numbers of classes with names beside them, as class_names

  @property
  def example(self) -> jax.ShapeDtypeStruct:
    """The shape of one whitened image."""
    return jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)


class TextInputs(NamedTuple):
  """The text that a network was trained on."""

  level: str  # what a token is: 'char' or 'word', as in `load_text`
  vocabulary: tuple[str, ...]  # the tokens by number

  @property
  def example(self) -> jax.ShapeDtypeStruct:
    """The shape of one token."""
    return jax.ShapeDtypeStruct((1, 1), jnp.int32)


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A trained image classifier: maps raw images to the probabilities of the classes.

  Attributes:
    module: the network, as `export.module` makes it.
    variables: its parameters and running statistics, for `module.apply`.
    inputs: the images that it takes, and the names of its classes.
    about: other facts about its training: data, settings, scores.
  """

  module: Any
  variables: PyTree
  inputs: ImageInputs
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def arch(self) -> Any:
    """The architecture."""
    return self.module.arch

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes."""
    return self.inputs.classes

  def check(self, images: Any) -> np.ndarray:
    """Returns raw images [n, H, W, C] as an array.

    Raises:
      ValueError: their shape is not that of training, or their pixels are no numbers that range from 0 to 255.
    """
    images, shape = np.asarray(images), self.inputs.shape
    if images.ndim != 4 or images.shape[1:] != shape:
      raise ValueError(f'the images are {images.shape}: want [n, {", ".join(map(str, shape))}], as in training.')
    if images.dtype.kind not in 'biuf':
      raise ValueError(f'the images have pixels of type {images.dtype}: want numbers from 0 to 255, as in training.')
    if images.dtype != np.uint8:
      least, most = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
      if not (least >= 0.0 and most <= 255.0) or 0.0 < most <= 1.0:
        raise ValueError(f'the images have pixels from {least:g} to {most:g}: want 0 to 255, as in training.')
    return images

  def whiten(self, images: Any) -> Array:
    """Returns raw images [n, H, W, C] as the network reads them. Raises ValueError as `check`."""
    return self._whitened(self.check(images))

  def _whitened(self, images: np.ndarray) -> Array:
    whitened = jnp.asarray(self.inputs.whitening(images))
    return image_batches.standardized(whitened) if self.inputs.whitening.kind == 'image' else whitened

  def __call__(self, images: Any) -> Array:
    """Returns probabilities [n, classes] of raw images [n, H, W, C], uint8 or floats from 0 to 255.

    Raises ValueError as `check`.
    """
    return self._in_parts(_probabilities, images)

  def _in_parts(self, outputs: Callable[[Any, PyTree, Array], Array], images: Any) -> Array:
    """Returns `outputs` of raw images [n, H, W, C], `AT_ONCE` of them in each program call."""
    given = self.check(images)  # whole: a part may be so dark that its pixels seem to range from 0 to 1
    parts = np.split(given, range(AT_ONCE, len(given), AT_ONCE))
    return jnp.concatenate([outputs(self.module, self.variables, self._whitened(part)) for part in parts])


@dataclasses.dataclass(frozen=True)
class Regressor(Classifier):
  """A trained image regressor: like `Classifier`, but predicts one number for each image; it has no classes."""

  def __call__(self, images: Any) -> Array:
    """Returns numbers [n], as the labels in training, of raw images [n, H, W, C], uint8 or floats from 0 to 255.

    Raises ValueError as `check`.
    """
    assert self.inputs.scale is not None
    mean, deviation = self.inputs.scale
    return jnp.asarray(mean + deviation * self._in_parts(_outputs, images))


@functools.partial(jax.jit, static_argnums=0)
def _outputs(module: Any, variables: PyTree, images: Array) -> Array:
  return module.apply(variables, images)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(module: Any, variables: PyTree, images: Array) -> Array:
  return jax.nn.softmax(module.apply(variables, images))


class Scored(NamedTuple):
  """A text as a language model sees it."""

  tokens: tuple[str, ...]  # [n]
  log_prob: np.ndarray  # [n - 1] log-probability of each token but the first, given all tokens before it, in nats

  @property
  def perplexity(self) -> float:
    """Exp of the mean of -log_prob, as in `retrain` where the test split is not cut into streams."""
    return float(np.exp(-np.mean(self.log_prob, dtype=np.float64)))


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A trained language model: maps a text to the log-probabilities of its tokens, and continues it.

  Attributes:
    module: the network, as `export.module` makes it.
    variables: its parameters, for `module.apply`.
    inputs: the level and the vocabulary of its tokens.
    about: other facts about its training: data, settings, scores.
  """

  module: Any
  variables: PyTree
  inputs: TextInputs
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def arch(self) -> Any:
    """The architecture."""
    return self.module.arch

  @property
  def vocabulary(self) -> tuple[str, ...]:
    """The tokens by number."""
    return self.inputs.vocabulary

  def numbers(self, words: str) -> np.ndarray:
    """Returns the tokens of a text as numbers [n] int32. Tokens that are not in the vocabulary become <unk>.

    Raises:
      ValueError: a token is not in the vocabulary, and neither is <unk>.
    """
    number = {token: i for i, token in enumerate(self.vocabulary)}
    unknown = number.get(text.UNKNOWN)
    found = [number.get(token, unknown) for token in text.split(words, self.inputs.level)]
    if None in found:
      token = text.split(words, self.inputs.level)[found.index(None)]
      raise ValueError(
        f'token {found.index(None)} of the text is {token!r}, which the training text did not have: leave it out.'
      )
    return np.array(found, np.int32)

  def check(self, words: str) -> np.ndarray:
    """Returns the tokens of a text as numbers [n] int32.

    Raises ValueError as `numbers`, or if the text has fewer than two tokens.
    """
    numbers = self.numbers(words)
    if len(numbers) < 2:
      there = counted(len(numbers), 'token')
      raise ValueError(f'the text has {there}: want at least 2, since each but the first is predicted.')
    return numbers

  def __call__(self, words: str) -> Scored:
    """Returns the tokens of a text and their log-probabilities. Raises ValueError as `check`."""
    numbers = self.check(words)
    carry, found = self._start(), list[np.ndarray]()
    for first in range(0, len(numbers) - 1, WINDOW):
      window = numbers[first : first + WINDOW + 1]
      filled = jnp.asarray(np.pad(window, (0, WINDOW + 1 - len(window))))
      carry, log_prob = _log_prob(self.module, self.variables, carry, filled)
      found.append(np.asarray(log_prob)[: len(window) - 1])
    return Scored(tuple(self.vocabulary[number] for number in numbers), np.concatenate(found))

  def sample(self, prompt: str, length: int, key: Key | None = None, temperature: float = 1.0) -> str:
    """Returns `length` tokens that continue a text, drawn one after another.

    Args:
      prompt: the text, of at least one token.
      length: how many tokens to draw.
      key: the random key; by default that of seed 0.
      temperature: logits are divided by it.

    Raises:
      ValueError: as `numbers`; or the prompt or the length is empty, or the temperature not above 0.
    """
    numbers = self.numbers(prompt)
    if not len(numbers) or length < 1 or not temperature > 0.0:
      raise ValueError(
        f'a prompt of {counted(len(numbers), "token")}, length={length}, temperature={temperature}: want at least one '
        'token of each, and a temperature above 0.'
      )
    key = jax.random.key(0) if key is None else key
    begun = jnp.asarray(numbers), key, jnp.asarray(temperature)
    drawn = _sampled(self.module, len(self.vocabulary), length, self.variables, *begun)
    return text.joined((self.vocabulary[number] for number in np.asarray(drawn)), self.inputs.level)

  def _start(self) -> PyTree:
    """Returns the carry before a text: zeros."""
    carry, _ = jax.eval_shape(self.module.apply, self.variables, self.inputs.example)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), carry)


@functools.partial(jax.jit, static_argnums=0)
def _log_prob(module: Any, variables: PyTree, carry: PyTree, tokens: Array) -> tuple[PyTree, Array]:
  """Returns the carry and the log-probabilities [T] of all tokens [T + 1] but the first."""
  carry, logits = module.apply(variables, tokens[None, :-1], carry)
  return carry, jnp.take_along_axis(jax.nn.log_softmax(logits[0]), tokens[1:, None], 1)[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sampled(
  module: Any, vocabulary: int, length: int, variables: PyTree, prompt: Array, key: Key, temperature: Array
) -> Array:
  """Returns `length` tokens that follow a prompt [n]. An embedding may have more rows than there are tokens."""

  def step(state, key):
    carry, logits = state
    token = jax.random.categorical(key, logits[:vocabulary] / temperature)
    carry, logits = module.apply(variables, token[None, None], carry)
    return (carry, logits[0, 0]), token

  carry, logits = module.apply(variables, prompt[None])
  return jax.lax.scan(step, (carry, logits[0, -1]), jax.random.split(key, length))[1]
