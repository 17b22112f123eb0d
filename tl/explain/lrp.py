"""Layer-wise relevance propagation: the score is distributed backward over the contributions.

To add a rule: a function `(**options) -> Method` that chooses the parts of a `gradients.Rule`, and
a row in `methods.METHODS`.

The relevance of an output of a layer is divided between its inputs in proportion to their
contributions, input times weight. The rules of this file differ in the weights of positive and
negative contributions. They hold for convolutions, with the BatchNorm after them folded into the
kernel. Dense layers have the epsilon rule, as Kohlbrenner et al. 2020 (arXiv:1910.09840, section
III) recommend. Max-pooling gives the relevance to the largest input, and mean pooling divides it in
proportion to the inputs. The input of the first layer is the normalized image, so a pixel of the
mean color has no relevance, and negative inputs count by the sign of their contributions. A bias
receives its share of the relevance, which is missing in the sum of the map.

Captum weights the kernel by the sign of the weight alone, which differs in the first layer, and
does not weight the bias. Its rules stay at the epsilon rule unless a layer has another one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tl.backbones.gradients import Part, Rule, gradient_rule
from tl.backbones.squeezenet import SqueezeNet
from tl.backbones.vgg import VGG
from tl.explain.base import Method, Problem, Rows
from tl.explain.gradients import image_gradient

# Stabilizes sums of contributions near 0; far below every other rounding of a score. As in zennit.
EPSILON = 1e-6


def _propagation(conv: tuple[Part, ...], epsilon: float) -> Method:
    if not epsilon > 0:
        raise ValueError(f"`epsilon` must be above 0: got {epsilon}")
    rule = Rule(conv=conv, dense=(Part(1.0, 1.0, 1.0),), epsilon=epsilon)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        with gradient_rule(rule):
            ratio = image_gradient(problem, rows.images01, rows.targets)
        return jnp.sum(ratio * (rows.images01 - problem.mean_color), axis=-1)

    return Method(maps, signed=True, families=(VGG, SqueezeNet))


def lrp_epsilon(*, epsilon: float = EPSILON) -> Method:
    """Relevance in proportion to the contributions; epsilon absorbs that of weak outputs.

    The smaller `epsilon`, the closer is the map to the gradient times the normalized image.

    Args:
      epsilon: added to the absolute value of each sum of contributions, above 0.

    Raises:
      ValueError: `epsilon` is not above 0.

    Reference: Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
      Layer-Wise Relevance Propagation", PLOS ONE 10(7), equation 58.
    """
    return _propagation((Part(1.0, 1.0, 1.0),), epsilon)


def lrp_gamma(*, gamma: float = 0.25, epsilon: float = EPSILON) -> Method:
    """Positive contributions count 1 + gamma times in convolutions.

    Args:
      gamma: at least 0; 0 is `lrp_epsilon`. Default: that of the reference.
      epsilon: as for `lrp_epsilon`.

    Raises:
      ValueError: `gamma` is negative or `epsilon` is not above 0.

    Reference: Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", in Explainable
      AI, LNCS 11700, section 10.2.1.
    """
    if not gamma >= 0:
        raise ValueError(f"`gamma` must be at least 0: got {gamma}")
    return _propagation((Part(1.0, 1.0 + gamma, 1.0),), epsilon)


def lrp_alpha_beta(*, alpha: float = 1.0, epsilon: float = EPSILON) -> Method:
    """Positive contributions share alpha times the relevance, negative ones -beta times.

    The sum of the map is larger than the score if outputs without negative contributions exist.

    Args:
      alpha: at least 1; beta is alpha - 1. The default shows positive contributions only, and 2
        both signs.
      epsilon: as for `lrp_epsilon`.

    Raises:
      ValueError: `alpha` is less than 1 or `epsilon` is not above 0.

    Reference: Bach et al. 2015 (see `lrp_epsilon`), equation 60.
    """
    if not alpha >= 1:
        raise ValueError(f"`alpha` must be at least 1: got {alpha}")
    parts = (Part(alpha, 1.0, 0.0), Part(1.0 - alpha, 0.0, 1.0))
    return _propagation(parts if alpha > 1 else parts[:1], epsilon)
