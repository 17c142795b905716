"""The controller: a recurrent network that writes an architecture, token by token (Zoph & Le 2017, Sec. 3.1 and 3.3).

All functions are for one architecture; the caller vmaps them. Sampling and scoring read the same table of slots and
share their functions, so they agree. Scoring knows all tokens beforehand, so its loop contains only the LSTM.
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
  """The probabilities that a controller gives to a token sequence and its alternatives."""

  log_prob: Array  # [T] log P(a_t | a_<t), nats
  entropy: Array  # [T] entropy of each token given the tokens before it, nats
  probabilities: Array  # [S, K] probability of each label given the tokens before it


class Controller(NamedTuple):
  """A distribution over the token sequences of a space.

  `depth` (an int, static or traced) is the number of layers that exist. Tokens of deeper layers are 0, and so are their
  log-probabilities, entropies and probabilities. The probabilities of a CHOICE or a POINTER sum to 1; those of a LINK
  are independent, one for each link. Beyond the width of a slot they are 0.
  """

  init: Callable[[Key], PyTree]  # key -> theta
  sample: Callable[..., Array]  # (theta, key, depth=None) -> tokens [T] int32
  score: Callable[..., Score]  # (theta, tokens, depth=None) -> Score; under `jit` unused parts cost nothing
  log_prob: Callable[..., Array]  # (theta, tokens, depth=None) -> [T], `Score.log_prob`
  entropy: Callable[..., Array]  # (theta, tokens, depth=None) -> [T], `Score.entropy`


class _Table(NamedTuple):
  """The table of slots as arrays. A row is one step of the controller."""

  kind: np.ndarray  # [S]
  width: np.ndarray  # [S]
  head: np.ndarray  # [S] index of the head
  start: np.ndarray  # [S] index of the first candidate anchor
  anchor: np.ndarray  # [S] index of the anchor written; if there is none, an index out of range
  selects: np.ndarray  # [S] bool
  allowed: np.ndarray  # [S, K] bool, whether this slot exists if the selecting slot has token k


def _table(space: Space) -> tuple[_Table, int, int, int]:
  """Returns the table, the number of heads, the number of anchors, and K, the greatest slot width."""
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
  """Returns the paper's controller: an LSTM with one step for each slot, whose input is the previous token.

  A CHOICE is a softmax over its labels, computed from the top layer's state. A LINK or a POINTER attends to the states
  h_j at earlier anchors: u_j = v . tanh(W_prev h_j + W_curr h_i), with the same W_prev, W_curr and v for all slots. A
  LINK includes each j with probability sigmoid(u_j); a POINTER selects one j by softmax(u). The next input is the
  embedding of the token after a CHOICE, the state of the anchor after a POINTER, and the mean of the states of the
  chosen anchors after a LINK (zeros if there are none). The paper does not give the next input after a POINTER or LINK.

  Args:
    space: only its table of slots is used.
    units: width of each LSTM layer, 35 in Sec. 4.1.
    layers: LSTM layers, 2 in Sec. 4.1.
    init_scale: all weights start uniform in [-init_scale, init_scale], 0.08 in Sec. 4.1.
    temperature: T; all logits, also those of links, are divided by it; 5 in Pham et al. (2018).
    tanh_constant: c; if not 0, logits are c tanh(u / T), which bounds them; 2.5 in Pham et al. (2018).

  Raises:
    ValueError: `units` or `layers` is less than 1.

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
    """Returns the initial state of the LSTM, its first input, and the states of the anchors."""
    first = theta['first_input']
    return jnp.zeros((layers, 2, units), first.dtype), first, jnp.zeros((anchors, units), first.dtype)

  def write(theta, choose, noise):
    def step(carry, inputs):
      (state, x, states), projected, governor = carry
      slot, noise = inputs
      state, h = _lstm(theta, state, x)
      tokens = jnp.where(slot.allowed[governor], choose(shaped(_logits(theta, slot, h, projected)), slot, noise), 0)
      own, share = _next_input(theta, slot, tokens, anchors)
      x = own + share @ states
      if anchors:  # the projection that attention needs of an anchor is computed once, when the anchor is written
        states = states.at[slot.anchor].set(h, mode='drop')
        projected = projected.at[slot.anchor].set(h @ theta['w_prev'], mode='drop')
      return ((state, x, states), projected, jnp.where(slot.selects, tokens[0], governor)), tokens

    begun = start(theta)
    return jax.lax.scan(step, (begun, jnp.zeros_like(begun[2]), jnp.int32(0)), (table, noise))[1]

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
  """Returns weights uniform in [-scale, scale], drawn at once: each separate draw would take 0.5 s to compile."""
  ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
  parts = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-scale, maxval=scale), ends[:-1])
  return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _lstm(theta: PyTree, state: Array, x: Array) -> tuple[Array, Array]:
  """One step of the stacked LSTM. Returns its state [layers, 2, units], (c, h) of each layer, and the top layer's h."""
  new = []
  for kernel, bias, (c, h) in zip(theta['lstm'], theta['lstm_bias'], state, strict=True):
    i, g, f, o = jnp.split(jnp.concatenate([x, h]) @ kernel + bias, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    x = jax.nn.sigmoid(o) * jnp.tanh(c)
    new.append(jnp.stack([c, x]))
  return jnp.stack(new), x


def _logits(theta: PyTree, slot: _Table, h: Array, projected: Array) -> Array:
  """Returns the logits [K] of a slot from the top layer's state h and the projections W_prev h_j [A, units]."""
  logits = h @ theta['softmax'][slot.head] + theta['softmax_bias'][slot.head]
  if not len(projected):
    return logits
  attention = jnp.tanh(projected + (h @ theta['w_curr'])[None]) @ theta['v']
  looks_back = attention.at[jnp.arange(len(logits)) + slot.start].get(mode='clip')
  return jnp.where(slot.kind == Kind.CHOICE, logits, looks_back)


def _next_input(theta: PyTree, slot: _Table, tokens: Array, anchors: int) -> tuple[Array, Array]:
  """Returns the next input as a vector [units] and weights [A], by which the states of anchors are added to it."""
  own, place = theta['embedding'][slot.head, tokens[0]], jnp.arange(len(tokens))
  if not anchors:
    return own, jnp.zeros(0, own.dtype)
  is_choice = slot.kind == Kind.CHOICE
  chosen = jnp.where(slot.kind == Kind.LINK, tokens, place == tokens[0])
  chosen = jnp.where((place < slot.width) & ~is_choice, chosen, 0).astype(own.dtype)
  share = jnp.zeros(anchors, own.dtype).at[place + slot.start].set(chosen, mode='drop')
  return jnp.where(is_choice, own, 0.0), share / jnp.maximum(chosen.sum(), 1.0)


def uniform_controller(space: Space) -> Controller:
  """Returns a controller without parameters (theta is ()) that samples uniformly; a link has probability 1/2."""
  table, _, _, widest = _table(space)

  def write(theta, choose, noise):
    del theta
    return jax.vmap(choose)(jnp.zeros((len(space.slots), widest)), table, noise)

  def read(theta, tokens):
    del theta
    return jnp.zeros(tokens.shape)

  return _make(space, table, widest, lambda key: (), write, read)


def _make(space: Space, table: _Table, widest: int, init, write, read) -> Controller:
  """Returns a controller made of functions that create its parameters, write tokens and read them.

  Args:
    space: the space of the token sequences.
    table: the slots as arrays.
    widest: K.
    init: (key) -> theta.
    write: (theta, choose, noise [S, ...]) -> tokens [S, K]; calls choose(logits [K], slot, noise) for each slot.
    read: (theta, tokens [S, K]) -> logits [S, K].
  """
  # Token t of the flat sequence is entry `place[t]` of the tokens of slot `owner[t]`.
  owner = space.owner
  place = (np.arange(space.length) - np.searchsorted(owner, owner)).astype(np.int32)

  def distribution(logits, slot, tokens):
    """Returns the score of one slot, [K] each. Only a LINK has log P and entropy in entries other than the first."""
    place = jnp.arange(widest)
    # A LINK of width 0 has no label. It is treated as if it had one, so that no softmax is empty.
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
    noise = jax.vmap(noises)(jax.random.split(key, len(space.slots)))  # outside of the loop, where it is faster
    tokens = write(theta, choose, noise)[owner, place]
    return existing(tokens, tokens, depth)

  def by_slot(tokens):
    return jnp.zeros((len(space.slots), widest), jnp.int32).at[owner, place].set(tokens)

  def score(theta, tokens, depth=None):
    tokens = jnp.asarray(tokens, jnp.int32)
    if tokens.shape != (space.length,):
      raise ValueError(
        f'tokens have shape {tokens.shape}, one sequence of this {space.kind} space has ({space.length},): for several '
        'sequences apply jax.vmap to the function.'
      )
    emitted = by_slot(existing(tokens, tokens, depth))
    found = jax.vmap(distribution)(read(theta, emitted), table, emitted)
    log_prob, entropy = (existing(values[owner, place], tokens, depth) for values in (found.log_prob, found.entropy))
    exist = space.slots_exist(tokens, depth)[:, None]
    return Score(log_prob, entropy, jnp.where(exist, found.probabilities, 0.0))

  # A scan outside of `jit` would be compiled again at each call.
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
  """Returns the penalty [] in nats by which Pham et al. (2018) keep networks sparse: KL(p || target) of the links.

  Args:
    space: the space of the token sequence.
    probabilities: [S, K] of `Score`.
    target: the probability that links are drawn towards.
    penalty: 'sum' adds up all links; 'mean' adds up the links of each layer, and averages over the layers that have
      links. The paper does not say which; its released code takes the mean.
  """
  width = np.array([slot.width if slot.kind == Kind.LINK else 0 for slot in space.slots])
  is_link = np.arange(probabilities.shape[1])[None] < width[:, None]
  # A sigmoid can round to 0 or 1, where the logarithm has no gradient.
  p = jnp.clip(jnp.where(is_link, probabilities, target), 1e-6, 1.0 - 1e-6)
  total = jnp.sum(p * jnp.log(p / target) + (1.0 - p) * jnp.log((1.0 - p) / (1.0 - target)), where=is_link)
  return total / max(1, (width > 0).sum()) if penalty == 'mean' else total


def policy_summary(controller: Controller, theta: PyTree, keys: Key) -> tuple[Array, Array]:
  """Estimates what a controller prefers, from one token sequence sampled with each of `keys` [n].

  Returns:
    The entropy of a token sequence in nats, [], and the probability of each label of each slot, [S, K]. Both are means
    over the samples, so they are unbiased.
  """

  def one(key):
    score = controller.score(theta, controller.sample(theta, key))
    return score.entropy.sum(), score.probabilities

  return jax.tree.map(lambda x: x.mean(0), jax.vmap(one)(keys))
