"""Multinomial logistic regression with an L2 penalty by L-BFGS, in NumPy.

Several weightings of the same examples, such as the folds of a cross-validation, are fitted
together. `tl.training.probe` chooses the strength.
"""

from __future__ import annotations

import numpy as np

# Largest number of steps at one strength. It is reached for separable classes and a weak penalty,
# where it is harmless.
MAX_STEPS = 300

# Pairs that L-BFGS keeps; chosen, not tuned.
MEMORY = 10


class Problem:
    """Logistic fits for f weightings of the same n examples, in float32, solved together.

    Parameters are f32[r + 1, f, k] with the bias last, so that all products are two matrix
    products.

    Args:
      z: f64[n r + 1], uncorrelated features and a last column of ones.
      values: f64[r], the mean squares of the features, which precondition the solver.
      labels: i[n] in [0, classes).
      weights: f64[n f]; an example of weight 0 has no effect.
      classes: k.
    """

    def __init__(
        self,
        z: np.ndarray,
        values: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        classes: int,
    ):
        self.z = z.astype(np.float32)
        self.values = np.append(values, 1.0)[:, None, None]
        self.labels, self.classes = labels, classes
        self.total = weights.sum(axis=0)
        self.weights = (weights / self.total[None]).astype(np.float32)

    def start(self) -> np.ndarray:
        return np.zeros((self.z.shape[1], len(self.total), self.classes), np.float32)

    def scores(self, params: np.ndarray) -> np.ndarray:
        """Logits f32[n f k]."""
        return (self.z @ params.reshape(len(params), -1)).reshape(-1, *params.shape[1:])

    def loss(
        self, params: np.ndarray, penalty: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean losses f64[f], gradient f32[r + 1, f, k], weighted means f32[f k] of p (1 - p)."""
        p = self.scores(params)
        p -= p.max(axis=2, keepdims=True)
        true_logit = np.take_along_axis(p, self.labels[:, None, None], axis=2)[..., 0]
        np.exp(p, out=p)
        total = p.sum(axis=2)
        losses = np.einsum("nf,nf->f", self.weights, np.log(total) - true_logit, dtype=np.float64)
        losses += 0.5 * np.einsum("rfk,rfk->f", penalty, np.square(params), dtype=np.float64)
        p /= total[..., None]
        spread = np.einsum("nf,nfk->fk", self.weights, p * (1 - p))
        p *= self.weights[..., None]
        p[np.arange(len(p)), :, self.labels] -= self.weights
        return (
            losses,
            (self.z.T @ p.reshape(len(p), -1)).reshape(params.shape) + penalty * params,
            spread,
        )

    def minimize(self, strength: float, params: np.ndarray, tolerance: float) -> np.ndarray:
        """The minimum by L-BFGS; every weighting has its own step length.

        The initial Hessian is diagonal: the mean of p (1 - p) times the mean square along the axis,
        which would be exact if p (1 - p) were independent of the position of an example.

        Reference: Nocedal & Wright 2006, "Numerical optimization", algorithms 7.4 and 3.1 (c =
        1e-4, halving).
        """
        penalty = (1.0 / (strength * self.total))[None, :, None].astype(np.float32) * np.ones_like(
            params
        )
        penalty[-1] = 0.0
        loss, gradient, spread = self.loss(params, penalty)
        # 1e-3 (chosen, not tuned): the bias of a saturated class has no curvature and no penalty.
        inverse = (1.0 / (self.values * np.maximum(spread, 1e-3)[None] + penalty)).astype(
            np.float32
        )
        pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for _ in range(MAX_STEPS):
            remaining = np.abs(inverse * gradient).max(axis=2)
            size = np.abs(params[:-1]).max(axis=(0, 2), initial=0.0)
            far = remaining[:-1].max(axis=0, initial=0.0) > tolerance * size
            far |= remaining[-1] > tolerance
            if not far.any():
                break
            move, shares = -gradient, []
            for s, t, rho in reversed(pairs):
                shares.append(rho * _dot(s, move))
                move -= shares[-1][:, None] * t
            move *= inverse
            if pairs:
                _, t, rho = pairs[-1]
                move /= np.maximum(rho * _dot(t, inverse * t), 1e-30)[:, None]
            for (s, t, rho), share in zip(pairs, reversed(shares), strict=True):
                move += (share - rho * _dot(t, move))[:, None] * s
            slope = _dot(gradient, move)
            # Converged weightings stay. The step is limited, because the bias of a class that has
            # every example, or none, would diverge.
            step = far * (5.0 / np.maximum(np.abs(move[-1]).max(axis=1), 5.0)).astype(np.float32)
            while True:
                new = params + step[:, None] * move
                new_loss, new_gradient, _ = self.loss(new, penalty)
                # float32 cannot resolve relative differences of the loss below 1e-6.
                long = (new_loss > loss + 1e-4 * step * slope + 1e-6 * np.abs(loss)) & (step > 1e-4)
                if not long.any():
                    break
                step = np.where(long, 0.5 * step, step)
            s, t = new - params, new_gradient - gradient
            curvature = _dot(s, t)
            # 0 ignores the pair.
            rho = np.where(curvature > 1e-12, 1.0 / np.maximum(curvature, 1e-12), 0.0)
            rho = rho.astype(np.float32)
            pairs = [*pairs, (s, t, rho)][-MEMORY:]
            params, loss, gradient = new, new_loss, new_gradient
        return params


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f32[r f k] twice -> f32[f]."""
    return np.einsum("rfk,rfk->f", a, b)
