"""The controller: a recurrent network that writes an architecture, token by token (Zoph & Le 2017, Sec. 3.1 and 3.3).

All functions are for one architecture; the caller vmaps. Sampling and scoring walk the same slot table by the same
functions of a slot, so they cannot drift apart. Where tokens are given, only the LSTM is in the loop.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.space import Kind, Space
from nas_jax.types import Array, Key, PyTree


class Score(NamedTuple):
  """What a controller says of a string."""

  log_prob: Array  # [T] log P(a_t | a_<t), nats
  entropy: Array  # [T] of each token given those before, nats
  probabilities: Array  # [S, K] of each label given the tokens before


class Controller(NamedTuple):
  """A distribution over the strings of a space.

  `depth` (an int, or a traced one) is the number of layers that exist; the tokens of deeper ones are 0, with
  log-probability, entropy and probabilities 0. The probabilities of a CHOICE or POINTER add up to 1, those of a LINK
  are each link's own; beyond a slot's width they are 0.
  """

  init: Callable[[Key], PyTree]  # key -> theta
  sample: Callable[..., Array]  # (theta, key, depth=None) -> tokens [T] int32
  score: Callable[..., Score]  # (theta, tokens, depth=None); in a program what is not looked at costs nothing
  log_prob: Callable[..., Array]  # (theta, tokens, depth=None) -> [T], as the next, part of the score
  entropy: Callable[..., Array]


class _Table(NamedTuple):
  """The slot table as arrays [S], one row a step of the controller."""

  kind: np.ndarray  # [S]
  width: np.ndarray  # [S]
  head: np.ndarray  # [S] number of the head
  start: np.ndarray  # [S] first candidate anchor
  anchor: np.ndarray  # [S] the anchor it writes, or `anchors`, which is out of range and dropped
  selects: np.ndarray  # [S] bool
  allowed: np.ndarray  # [S, K] bool, tokens of the selecting slot for which it exists


def _table(space: Space) -> tuple[_Table, int, int, int]:
  """The table, the number of heads, of anchors, and the widest choice K."""
  heads = sorted({slot.head for slot in space.slots})
  anchors = sum(slot.anchor for slot in space.slots)
  written = np.cumsum([slot.anchor for slot in space.slots]) - 1
  table = _Table(
    kind=np.array([slot.kind for slot in space.slots]),
    width=np.array([slot.width for slot in space.slots]),
    head=np.array([heads.index(slot.head) for slot in space.slots]),
    start=np.array([slot.start for slot in space.slots]),
    anchor=np.array([n if slot.anchor else anchors for slot, n in zip(space.slots, written, strict=True)]),
    selects=np.array([slot.selects for slot in space.slots]),
    allowed=space.allowed,
  )
  return table, len(heads), anchors, max(slot.width for slot in space.slots)


def lstm_controller(
  space: Space,
  units: int = 35,
  layers: int = 2,
  init_scale: float = 0.08,
  temperature: float = 1.0,
  tanh_constant: float = 0.0,
) -> Controller:
  """The paper's controller: an LSTM over slots, each token fed back as the next step's input.

  A CHOICE is a softmax over its labels from the top state. LINK and POINTER attend to the states h_j kept at earlier
  anchors, with one set of W_prev, W_curr, v: u_j = v . tanh(W_prev h_j + W_curr h_i); a LINK takes each j with
  probability sigmoid(u_j), a POINTER one of them by softmax(u). After a CHOICE the next input is its token's embedding,
  after a POINTER the anchor's state, after a LINK the mean of the chosen anchors' states (zeros if none); the paper
  leaves the last two open.

  Args:
    space: its slot table is all that is used.
    units: width of each LSTM layer, 35 in Sec. 4.1.
    layers: LSTM layers, 2 in Sec. 4.1.
    init_scale: all weights start uniform in [-init_scale, init_scale], 0.08 in Sec. 4.1.
    temperature: T; all logits, those of links too, are divided by it: 5 in Pham et al. (2018).
    tanh_constant: c; if not 0, logits become c tanh(u / T), so that none runs away: 2.5 in Pham et al.

  Raises:
    ValueError: units or layers below 1.

  >>> import jax
  >>> from nas_jax import controller, space
  >>> sp = space.choice_space({'width': ('16', '32'), 'norm': ('none', 'layer', 'batch')})
  >>> ctl = controller.lstm_controller(sp, units=4, layers=1)
  >>> theta = ctl.init(jax.random.key(0))
  >>> tokens = ctl.sample(theta, jax.random.key(1))
  >>> tokens.shape, ctl.log_prob(theta, tokens).shape, ctl.entropy(theta, tokens).shape
  ((2,), (2,), (2,))
  """
  if units < 1 or layers < 1:
    raise ValueError(f'units (={units}) and layers (={layers}) of the controller must be at least 1.')
  table, heads, anchors, widest = _table(space)

  def init(key: Key) -> PyTree:
    shapes = {
      'first_input': (units,),
      'embedding': (heads, widest, units),
      'softmax': (heads, units, widest),
      'softmax_bias': (heads, widest),
      'lstm': (layers, 2 * units, 4 * units),
      'lstm_bias': (layers, 4 * units),
    }
    if anchors:
      shapes |= {'w_prev': (units, units), 'w_curr': (units, units), 'v': (units,)}
    return _uniform(key, shapes, init_scale)

  def shaped(logits):
    logits /= temperature
    return tanh_constant * jnp.tanh(logits) if tanh_constant else logits

  def start(theta):
    """The LSTM's state, its input, and the states of anchors."""
    return jnp.zeros((layers, 2, units)), theta['first_input'], jnp.zeros((anchors, units))

  def write(theta, choose, noise):
    def step(carry, inputs):
      (state, x, states), projected, governor = carry
      slot, noise = inputs
      state, h = _lstm(theta, state, x)
      tokens = jnp.where(slot.allowed[governor], choose(shaped(_logits(theta, slot, h, projected)), slot, noise), 0)
      own, share = _next_input(theta, slot, tokens, anchors)
      x = own + share @ states
      if anchors:  # what attention needs of each, worked out once for all who look back
        states = states.at[slot.anchor].set(h, mode='drop')
        projected = projected.at[slot.anchor].set(h @ theta['w_prev'], mode='drop')
      return ((state, x, states), projected, jnp.where(slot.selects, tokens[0], governor)), tokens

    return jax.lax.scan(step, (start(theta), jnp.zeros((anchors, units)), jnp.int32(0)), (table, noise))[1]

  def read(theta, tokens):
    inputs = jax.vmap(lambda slot, tokens: _next_input(theta, slot, tokens, anchors))(table, tokens)

    def step(carry, inputs):
      (state, x, states), (anchor, own, share) = carry, inputs
      state, h = _lstm(theta, state, x)
      x = own + share @ states
      return (state, x, states.at[anchor].set(h, mode='drop') if anchors else states), h

    (_, _, states), h = jax.lax.scan(step, start(theta), (table.anchor, *inputs))
    projected = states @ theta['w_prev'] if anchors else states
    return shaped(jax.vmap(_logits, (None, 0, 0, None))(theta, table, h, projected))

  return _make(space, table, widest, init, write, read)


def _uniform(key: Key, shapes: dict[str, tuple[int, ...]], scale: float) -> PyTree:
  """Weights in [-scale, scale], by one draw for all: each array of its own would cost half a second of compiling."""
  ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
  parts = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-scale, maxval=scale), ends[:-1])
  return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _lstm(theta: PyTree, state: Array, x: Array) -> tuple[Array, Array]:
  """One step of the stacked LSTM: its state [layers, 2, units], a (c, h) for each layer, and the top layer's h."""
  new = []
  for kernel, bias, (c, h) in zip(theta['lstm'], theta['lstm_bias'], state, strict=True):
    i, g, f, o = jnp.split(jnp.concatenate([x, h]) @ kernel + bias, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    x = jax.nn.sigmoid(o) * jnp.tanh(c)
    new.append(jnp.stack([c, x]))
  return jnp.stack(new), x


def _logits(theta: PyTree, slot: _Table, h: Array, projected: Array) -> Array:
  """[K] of a slot, from the top state there and the anchors' h w_prev [A, units]."""
  logits = h @ theta['softmax'][slot.head] + theta['softmax_bias'][slot.head]
  if not len(projected):
    return logits
  attention = jnp.tanh(projected + (h @ theta['w_curr'])[None]) @ theta['v']
  looks_back = attention.at[jnp.arange(len(logits)) + slot.start].get(mode='clip')
  return jnp.where(slot.kind == Kind.CHOICE, logits, looks_back)


def _next_input(theta: PyTree, slot: _Table, tokens: Array, anchors: int) -> tuple[Array, Array]:
  """What the step after a slot is given: a vector [units], to which come the anchors' states by shares [A]."""
  own, place = theta['embedding'][slot.head, tokens[0]], jnp.arange(len(tokens))
  if not anchors:
    return own, jnp.zeros(0, own.dtype)
  is_choice = slot.kind == Kind.CHOICE
  chosen = jnp.where(slot.kind == Kind.LINK, tokens, place == tokens[0])
  chosen = jnp.where((place < slot.width) & ~is_choice, chosen, 0).astype(own.dtype)
  share = jnp.zeros(anchors, own.dtype).at[place + slot.start].set(chosen, mode='drop')
  return jnp.where(is_choice, own, 0.0), share / jnp.maximum(chosen.sum(), 1.0)


def uniform_controller(space: Space) -> Controller:
  """Random search: every token uniform, every link present with probability 1/2, nothing to learn (theta is ())."""
  table, _, _, widest = _table(space)

  def write(theta, choose, noise):
    del theta
    return jax.vmap(choose)(jnp.zeros((len(space.slots), widest)), table, noise)

  def read(theta, tokens):
    del theta
    return jnp.zeros(tokens.shape)

  return _make(space, table, widest, lambda key: (), write, read)


def _make(space: Space, table: _Table, widest: int, init, write, read) -> Controller:
  """A controller of `init` and two functions.

  write(theta, choose, noise [S, ...]) -> tokens [S, K], which choose(logits [K], slot, noise) takes, slot by slot; and
  read(theta, tokens [S, K]) -> logits [S, K].
  """
  # Token t of the flat string is entry `place[t]` of what slot `owner[t]` emits.
  owner = space.owner
  place = (np.arange(space.length) - np.searchsorted(owner, owner)).astype(np.int32)

  def distribution(logits, slot, tokens):
    """Of a slot, each [K]: log P and entropy in every entry for a LINK, in the first for others."""
    place = jnp.arange(widest)
    # A LINK of width 0 has no label; one stands in for it, so that no softmax is over nothing.
    exists = place < jnp.maximum(slot.width, 1)
    log_p = jax.nn.log_softmax(jnp.where(exists, logits, -jnp.inf))
    softmax_entropy = -jnp.sum(jnp.exp(log_p) * jnp.where(exists, log_p, 0.0))
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    links = Score(jnp.where(tokens > 0, yes, no), -jnp.exp(yes) * yes - jnp.exp(no) * no, jnp.exp(yes))
    first = place == 0
    choice = Score(jnp.where(first, log_p[tokens[0]], 0.0), jnp.where(first, softmax_entropy, 0.0), jnp.exp(log_p))
    found = Score(*(jnp.where(slot.kind == Kind.LINK, a, b) for a, b in zip(links, choice, strict=True)))
    return found._replace(probabilities=jnp.where(place < slot.width, found.probabilities, 0.0))

  def noises(key):
    link_key, choice_key = jax.random.split(key)
    return jax.random.uniform(link_key, (widest,)), jax.random.gumbel(choice_key, (widest,))

  def choose(logits, slot, noise):
    uniform, gumbel = noise
    links = (uniform < jax.nn.sigmoid(logits)).astype(jnp.int32)
    place = jnp.arange(widest)
    choice = jnp.argmax(jnp.where(place < slot.width, logits, -jnp.inf) + gumbel).astype(jnp.int32)
    return jnp.where(slot.kind == Kind.LINK, links, jnp.where(place == 0, choice, 0))

  def existing(values, tokens, depth):
    return jnp.where(space.exists(tokens, depth), values, jnp.zeros_like(values))

  def sample(theta, key, depth=None):
    noise = jax.vmap(noises)(jax.random.split(key, len(space.slots)))  # in the loop it would take a good part of it
    tokens = write(theta, choose, noise)[owner, place]
    return existing(tokens, tokens, depth)

  def by_slot(tokens):
    return jnp.zeros((len(space.slots), widest), jnp.int32).at[owner, place].set(tokens)

  def score(theta, tokens, depth=None):
    emitted = by_slot(existing(tokens, tokens, depth))
    found = jax.vmap(distribution)(read(theta, emitted), table, emitted)
    log_prob, entropy = (existing(values[owner, place], tokens, depth) for values in (found.log_prob, found.entropy))
    exist = space.slots_exist(tokens, depth)[:, None]
    return Score(log_prob, entropy, jnp.where(exist, found.probabilities, 0.0))

  # Compiled: a scan that is called by itself would be compiled again each time.
  score = jax.jit(score)
  return Controller(
    init=init,
    sample=jax.jit(sample),
    score=score,
    log_prob=lambda theta, tokens, depth=None: score(theta, tokens, depth).log_prob,
    entropy=lambda theta, tokens, depth=None: score(theta, tokens, depth).entropy,
  )


PENALTIES = ('sum', 'mean')


def divergence(space: Space, probabilities: Array, target: float, penalty: str = 'sum') -> Array:
  """Returns the penalty [] in nats that keeps networks sparse in Pham et al. (2018): KL(p || target) of the links.

  Args:
    space: of the token sequence.
    probabilities: [S, K] of `Score`.
    target: the probability that links are drawn towards.
    penalty: 'sum' over all links, or 'mean', the mean over the layers that have links of the sum over a layer's links.
      The paper does not say which; its released code takes the mean.
  """
  width = np.array([slot.width if slot.kind == Kind.LINK else 0 for slot in space.slots])
  is_link = np.arange(probabilities.shape[1])[None] < width[:, None]
  # A sigmoid can round to 0 or 1, where the logarithm has no gradient.
  p = jnp.clip(jnp.where(is_link, probabilities, target), 1e-6, 1.0 - 1e-6)
  total = jnp.sum(p * jnp.log(p / target) + (1.0 - p) * jnp.log((1.0 - p) / (1.0 - target)), where=is_link)
  return total / max(1, (width > 0).sum()) if penalty == 'mean' else total


def policy_summary(controller: Controller, theta: PyTree, keys: Key) -> tuple[Array, Array]:
  """What `theta` would write, from one string sampled with each of `keys` [n].

  Returns:
    [] the entropy of a string in nats, and [S, K] the probability of each label of each slot; means over the strings,
    so unbiased.
  """

  def one(key):
    score = controller.score(theta, controller.sample(theta, key))
    return score.entropy.sum(), score.probabilities

  return jax.tree.map(lambda x: x.mean(0), jax.vmap(one)(keys))
