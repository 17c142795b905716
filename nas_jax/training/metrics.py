"""How image classifiers are scored: accuracy, balanced accuracy and macro F1, all from counts of each class.

Networks that predict numbers (regression) are scored by R2, the share of the variance of the labels that they explain.
"""

from collections.abc import Mapping
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.types import Array

# Maps the name of a score in the journal to its name in reports, and to the name of 1 - score.
NAMES: Mapping[str, tuple[str, str]] = types.MappingProxyType(
  {
    'accuracy': ('accuracy', 'error'),
    'balanced_accuracy': ('balanced accuracy', 'balanced error'),
    'f1': ('macro F1', '1 - macro F1'),
    'r2': ('R2', '1 - R2'),
  }
)
CLASS_WEIGHTS = ('none', 'balanced')


class Counts(NamedTuple):
  """Numbers of images for each class, [K] int32."""

  right: Array  # images of the class that are predicted to be of it
  said: Array  # images that are predicted to be of the class
  there: Array  # images of the class


def count(said: Array, labels: Array, classes: int) -> Counts:
  """Counts for each class the right predictions, all predictions and the images.

  Args:
    said: [n] the predicted classes.
    labels: [n] the true classes; -1 for images that do not count.
    classes: K.
  """
  real = labels >= 0

  def of_each(numbers: Array, which: Array) -> Array:
    return (jax.nn.one_hot(numbers, classes, dtype=jnp.int32) * which[:, None]).sum(0)

  return Counts(of_each(labels, real & (said == labels)), of_each(said, real), of_each(labels, real))


def scores(counts: Counts) -> dict[str, Array]:
  """Returns the scores of classifiers, each from 0 to 1, [].

  Balanced accuracy is the mean recall of the classes that have images. Macro F1 is the mean of the F1 of each class,
  2 right / (said + there), over the classes that have images or are predicted.
  """
  right, said, there = counts

  def mean(of_class: Array, exists: Array) -> Array:
    return jnp.where(exists, of_class, 0.0).sum() / exists.sum()

  return {
    'accuracy': right.sum() / there.sum(),
    'balanced_accuracy': mean(right / jnp.maximum(there, 1), there > 0),
    'f1': mean(2 * right / jnp.maximum(said + there, 1), said + there > 0),
  }


def r2(squares: Array, labels: Array) -> Array:
  """Returns 1 - (mean squared error) / (variance of the labels), [].

  Args:
    squares: [] the sum of squared errors.
    labels: [n] or [n, k] the numbers to predict; NaN for images that do not count.
  """
  return 1.0 - squares / jnp.nansum((labels - jnp.nanmean(labels, 0, keepdims=True)) ** 2)


def balanced(labels: np.ndarray, classes: int) -> tuple[float, ...]:
  """Returns the class weights [K] of the loss that make all classes contribute equally.

  A class with a share p of the images, by their `labels` [n], has weight 1 / (K p), where K is the number of classes
  that have images. The mean weight over the images is 1. A class without images has weight 0.
  """
  found = np.bincount(labels, minlength=classes)
  weights = len(labels) / ((found > 0).sum() * np.maximum(found, 1))
  return tuple(map(float, np.where(found > 0, weights, 0.0)))
