"""What the attacks that look for the NEAREST adversarial picture share; they are in `minimal` and `fab`.

A search gets a `Problem` and hands back the `Nearest` that it found. `make_find` makes of it a function that returns the
distance, whatever it is, and `make_attack` an `Attack`: what was found, if it lies within eps, else the clean picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tl import pixels
from tl.attacks import norms
from tl.attacks.frame import Attack, AttackResult, Logits, check_counts, rows
from tl.attacks.goals import Goal, wanted
from tl.attacks.norms import Norm
from tl.paths import nearest
from tl.types import Array, Variables

HALVINGS = 8  # of the way between the clean picture and the found one; chosen, not tuned: to 1/256 of it
BEYOND = (0.0, 1 / 32, 1 / 8, 1 / 2, 1.0)  # how far past a found picture rounding may look, of what eps leaves; chosen
PIECES = 50  # at most so many Newton steps; each passes a kink for good, and few are ever passed: chosen, not tuned
tiny = 1e-20


class Minimal(NamedTuple):
    """The nearest adversarial pictures that were found.

    Attributes:
      images: f32[b h w c] in [0, 1], anywhere in it (not on the 8-bit grid); the clean picture where nothing was found.
      distance: f32[b] in the attack's norm and [0, 1] pixel units; 0 where the clean picture meets the goal already,
        infinity where nothing was found. Medians over all pictures so count the failures.
      success: bool[b], by the network, on `images`.
    """

    images: jax.Array
    distance: jax.Array
    success: jax.Array


class Find(Protocol):
    """A jitted search."""

    def __call__(
        self, variables: Variables, key: jax.Array, images01: Array, members: Array, *, enough: float = 0.0
    ) -> Minimal:
        """Nearest adversarial pictures; arguments as in `Attack`.

        Args:
          key: of the random starts after the first; one key, or one for each image.
          enough: traced; an image whose distance is no larger is not looked at again.
        """
        ...


class Problem(NamedTuple):
    """What a search is told, inside `jit`.

    Attributes:
      logits: images01 -> f32[b k].
      center: the clean pictures.
      wanted: bool[b k], the classes that meet the goal where they are on top.
      met: logits -> bool[b].
      enough: f32, see `Find`.
    """

    logits: Callable[[jax.Array], jax.Array]
    center: jax.Array
    wanted: jax.Array
    met: Callable[[jax.Array], jax.Array]
    enough: jax.Array


class Nearest(NamedTuple):
    """The nearest so far: images, and their distance f32[b], infinity where there is none."""

    images: jax.Array
    distance: jax.Array


Search = Callable[[Problem, jax.Array, Nearest], Nearest]
"""`(problem, start, best) -> best`; `start` is the clean picture, or a random one near it."""


# ------------------------------------------------------------------------------------------------------------ geometry


class Dual(NamedTuple):
    """Shortest way to a hyperplane in one norm: along `unit(w)`, of length `gap / size(w)`; batched on axis 0."""

    size: Callable[[jax.Array], jax.Array]
    unit: Callable[[jax.Array], jax.Array]


def total(x: jax.Array) -> jax.Array:
    """f32[b ...] -> f32[b]."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _l2(w: jax.Array) -> jax.Array:
    most = jnp.max(jnp.abs(w), axis=tuple(range(1, w.ndim))) + tiny
    return most * jnp.sqrt(total(jnp.square(w / rows(most, w)))) + tiny  # the squares of small gradients do not vanish


DUALS = {
    "linf": Dual(lambda w: total(jnp.abs(w)) + tiny, jnp.sign),
    "l2": Dual(_l2, norms.l2_direction),
}


def name_of(norm: Norm, known: Sequence[str]) -> str:
    """Under which of the names `known` the norm stands in `norms.NORMS`; ValueError where under none of them."""
    for name, row in norms.NORMS.items():
        if row == norm:
            if name in known:
                return name
            raise ValueError(f"this attack works in the norms {', '.join(known)}; got {name!r}: {nearest(name, known)}")
    raise ValueError(f"this attack works in the norms {', '.join(known)} of tl.attacks.norms; got another")


def onto_plane(norm: str, x: jax.Array, w: jax.Array, gap: jax.Array) -> jax.Array:
    """The shortest d, in the norm, with <w, d> = gap and x + d in the box [0, 1]: the exact projection.

    Along the way outwards every pixel moves at its own speed, |w| in L2 and 1 in Linf, until it meets its side of the box. What
    <w, d> has reached is concave in time and made of straight pieces, so Newton's method from zero never overshoots, and is
    exact as soon as it stands on the right piece: what the paper does by sorting, without the sort.

    Args:
      norm: "linf" or "l2".
      x: f32[b h w c] in [0, 1].
      w: f32[b h w c], the plane's normal; any length.
      gap: f32[b], what <w, d> has to be, of either sign.

    Returns:
      d: f32[b h w c]. Where the box does not reach the plane: to the corner nearest to it.

    Reference: Croce & Hein 2020, arXiv:1907.02044, the box-constrained projections; there by sorting.
    """
    w = w * rows(jnp.where(gap < 0, -1.0, 1.0), w)
    gap, size = jnp.abs(gap), jnp.abs(w)
    room = jnp.where(w > 0, 1.0 - x, jnp.where(w < 0, x, 0.0))
    scale = jnp.max(size, axis=tuple(range(1, w.ndim))) + tiny
    size, gap = size / rows(scale, w), gap / scale
    speed = size if norm == "l2" else jnp.sign(size)

    def reached(time: jax.Array) -> tuple[jax.Array, jax.Array]:
        far = rows(time, w) * speed
        return total(size * jnp.minimum(far, room)), total(jnp.where(far < room, size * speed, 0.0))

    def open_(carry: tuple[jax.Array, ...]) -> jax.Array:
        return (carry[0] < PIECES) & jnp.any(carry[3])

    def newton(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, time, before, going = carry
        value, slope = reached(time)
        going = going & (slope > 0) & (slope < before)  # on the same piece as before, the last step was exact
        return i + 1, jnp.where(going, time + (gap - value) / jnp.where(slope > 0, slope, 1.0), time), slope, going

    begun = (0, jnp.zeros_like(gap), jnp.full_like(gap, jnp.inf), gap > 0)
    _, time, _, _ = jax.lax.while_loop(open_, newton, begun)
    corner = total(size * room) <= gap
    return jnp.sign(w) * jnp.where(rows(corner, w), room, jnp.minimum(rows(time, w) * speed, room))


def keep_nearer(best: Nearest, images: jax.Array, distance: jax.Array, met: jax.Array) -> Nearest:
    """`best`, replaced where `images` meet the goal from less far."""
    nearer = met & (distance < best.distance)
    return Nearest(jnp.where(rows(nearer, images), images, best.images), jnp.where(nearer, distance, best.distance))


def rival(problem: Problem, logits: jax.Array) -> jax.Array:
    """The class i32[b] that stands in the way: the largest of those that do not meet the goal."""
    return jnp.argmax(jnp.where(problem.wanted, -jnp.inf, logits), axis=1)


def likely(problem: Problem, logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` likeliest of the wanted classes: i32[b count], and bool[b count] for those that there are."""
    _, classes = jax.lax.top_k(jnp.where(problem.wanted, logits, -jnp.inf), min(count, logits.shape[1]))
    return classes, jnp.take_along_axis(problem.wanted, classes, axis=1)


def gap_to(problem: Problem, logits: jax.Array, pull: Callable, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The boundary to `classes` i32[b], linearised where `logits` and their `pull` (vjp) are: w f32[b h w c] and g f32[b],
    such that a step d ends on it where <w, d> = g."""
    mine, other = (jax.nn.one_hot(c, logits.shape[1], dtype=logits.dtype) for c in (classes, rival(problem, logits)))
    pick = lambda c: jnp.take_along_axis(logits, c[:, None], axis=1)[:, 0]  # noqa: E731
    return pull(mine - other)[0], pick(rival(problem, logits)) - pick(classes)


# -------------------------------------------------------------------------------------------------- searches to attacks


def _shorten(problem: Problem, norm: Norm, best: Nearest) -> Nearest:
    """Bisects the way from the clean picture to the found one; keeps only what it has tested."""
    way = best.images - problem.center

    def halve(_: int, carry: tuple[jax.Array, jax.Array, Nearest]) -> tuple[jax.Array, jax.Array, Nearest]:
        low, high, best = carry
        share = (low + high) / 2
        x = problem.center + rows(share, way) * way
        met = problem.met(problem.logits(x))
        nearer = keep_nearer(best, x, norm.distance(x, problem.center), met)
        return jnp.where(met, low, share), jnp.where(met, share, high), nearer

    ends = jnp.zeros_like(best.distance), jnp.ones_like(best.distance)
    return jax.lax.fori_loop(0, HALVINGS, halve, (*ends, best))[2]


def _searched(
    search: Search, logits: Logits, norm: Norm, goal: Goal, restarts: int
) -> Callable[..., tuple[Problem, Nearest]]:
    """The whole search, to be called inside `jit`."""
    check_counts(restarts=restarts)

    def run(variables: Any, key: jax.Array, center: jax.Array, members: jax.Array, enough: jax.Array):
        def met(found: jax.Array) -> jax.Array:
            return goal.success(found, members)

        problem = Problem(lambda x: logits(variables, x), center, wanted(goal, members), met, enough)
        best = Nearest(center, jnp.where(met(problem.logits(center)), 0.0, jnp.inf))
        keys = norms.own_keys(key, len(center))
        far = 0.1 * norm.distance(jnp.ones_like(center), jnp.zeros_like(center))  # chosen, not tuned

        def again(i: jax.Array, best: Nearest) -> Nearest:
            radius = jnp.where(jnp.isfinite(best.distance), best.distance, far) / 2  # FAB's, of the best so far
            draws = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            near = norm.start(draws, center, radius)
            return search(problem, jnp.where(i == 0, center, near), best)

        alone = restarts == 1
        best = search(problem, center, best) if alone else jax.lax.fori_loop(0, restarts, again, best)
        return problem, _shorten(problem, norm, best)

    return run


def make_find(search: Search, logits: Logits, *, norm: Norm, goal: Goal, restarts: int) -> Find:
    """A search as a `Find`: jitted, with its input looked at."""
    searched = _searched(search, logits, norm, goal, restarts)

    @jax.jit
    def run(variables, key, center, members, enough):
        problem, best = searched(variables, key, center, members, enough)
        return Minimal(best.images, best.distance, problem.met(problem.logits(best.images)))

    def find(variables, key, images01, members, *, enough=0.0):
        pixels.check(images01, ndim=4)
        return run(variables, key, images01, members, jnp.float32(enough))

    return find


def make_attack(search: Search, logits: Logits, *, norm: Norm, goal: Goal, restarts: int, on_grid: bool) -> Attack:
    """A search as an `Attack`: the found picture, tested again where it was brought back to; else the clean one.

    On the grid, where rounding may undo what was found, up to five points are rounded, from the found one outwards to the
    edge of the ball, and the first that holds is taken.
    """
    searched = _searched(search, logits, norm, goal, restarts)

    @jax.jit
    def run(variables, key, center, members, eps):
        problem, best = searched(variables, key, center, members, eps)
        length = jnp.where(jnp.isfinite(best.distance), best.distance, 0.0)
        reach = jnp.minimum(length, eps)

        def outwards(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            images, done = carry
            share = (reach + jnp.asarray(BEYOND)[i] * (eps - reach)) / jnp.maximum(length, tiny)
            x = center + rows(jnp.where(i == 0, jnp.minimum(share, 1.0), share), center) * (best.images - center)
            x = (norm.lattice if on_grid else norm.project)(x, center, eps)
            holds = problem.met(problem.logits(x)) & ~done
            return jnp.where(rows(holds, x), x, images), done | holds

        done = ~(length > 0)  # the clean picture is the answer, for better or worse
        images, _ = jax.lax.fori_loop(0, len(BEYOND) if on_grid else 1, outwards, (center, done))
        found = problem.logits(images)
        return AttackResult(images, problem.met(found), goal.score(found, members))

    def attack(variables, key, images01, members, *, eps, step_size=None):
        del step_size  # the boundary says how far to go
        check_call(norm, images01, eps)
        return run(variables, key, images01, members, jnp.float32(eps))

    return attack


def check_call(norm: Norm, images01: Array, eps: Any) -> None:
    """ValueError where `images01` are not float32 in [0, 1], or a known `eps` is not between 0 and white's from black."""
    pixels.check(images01, ndim=4)
    with jax.ensure_compile_time_eval():
        largest = float(norm.distance(np.ones((1, *images01.shape[1:]), np.float32), np.float32(0))[0])
    if not isinstance(eps, Tracer) and not 0 <= float(eps) <= largest:
        units = "share of the pixel range [0, 1]" if largest == 1 else f"distance in [0, {largest:.4g}], black to white"
        raise ValueError(f"eps is a {units}, such as 4/255; got {float(eps):.4g}")
