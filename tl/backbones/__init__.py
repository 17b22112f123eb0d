"""The zoo: architectures by name, with the names of timm where timm has the architecture.

To add a family, write a file with a Linen module and `VARIANTS`, and add the file to `_SPECS`.
Weights are in `tl.weights`, heads for new classes in `tl.models.heads`.
"""

from __future__ import annotations

import ast
from typing import Any

from tl.backbones import efficientnet, mobilenet, resnet, squeezenet, vgg
from tl.backbones.spec import BackboneSpec
from tl.paths import nearest

_SPECS: dict[str, BackboneSpec] = {
    spec.name: spec
    for family in (vgg, resnet, mobilenet, efficientnet, squeezenet)
    for spec in family.VARIANTS
}
_ALIASES = {alias: spec.name for spec in _SPECS.values() for alias in spec.aliases}


def names() -> tuple[str, ...]:
    """The names of all architectures, without aliases.

    Example:
      >>> "resnet50" in names()
      True
    """
    return tuple(_SPECS)


def get(name: str) -> BackboneSpec:
    """The architecture with a given name or alias.

    Args:
      name: such as `"resnet50"`, without the tag of its weights.

    Raises:
      ValueError: unknown architecture; the message lists the nearest names.

    Example:
      >>> get("mobilenet_v2").name
      'mobilenetv2_100'
    """
    spec = _SPECS.get(_ALIASES.get(name, name))
    if spec is None:
        raise ValueError(
            f"unknown architecture {name!r}; nearest: {nearest(name, [*_SPECS, *_ALIASES])}"
        )
    return spec


def forms(name: str) -> tuple[BackboneSpec, ...]:
    """The forms of one network: the architecture `name` first, then the other forms.

    Forms are those of torch, TensorFlow and Keras (`BackboneSpec.base`).

    Args:
      name: as for `get`.

    Raises:
      ValueError: as `get`.

    Example:
      >>> [spec.name for spec in forms("efficientnet_lite0")]
      ['efficientnet_lite0', 'tf_efficientnet_lite0']
    """
    spec = get(name)
    base = spec.base or spec.name
    return (
        spec,
        *(
            other
            for other in _SPECS.values()
            if other is not spec and (other.base or other.name) == base
        ),
    )


def constructor(name: str, *libraries: str) -> tuple[str, str]:
    """The library and the call that make a network in its own form, or else in another form.

    Args:
      name: as for `get`.
      libraries: keys of `BackboneSpec.sources`, the preferred one first.

    Returns:
      `(library, call)`, both "" if none of the libraries has the network.

    Raises:
      ValueError: as `get`.

    Example:
      >>> constructor("mobilenetv2_100", "keras", "timm")
      ('timm', 'mobilenetv2_100')
    """
    for spec in forms(name):
        for library in libraries:
            if spec.sources.get(library):
                return library, spec.sources[library]
    return "", ""


def parse_call(call: str) -> tuple[str, dict[str, Any]]:
    """The name and the keywords of a call in `BackboneSpec.sources`.

    Raises:
      ValueError: it is neither a name nor a call with keywords.

    Example:
      >>> parse_call("MobileNetV2(alpha=0.35)"), parse_call("resnet50")
      (('MobileNetV2', {'alpha': 0.35}), ('resnet50', {}))
    """
    tree = ast.parse(call, mode="eval").body
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
        return tree.func.id, {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
    if not isinstance(tree, ast.Name):
        raise ValueError(
            f"a network is made by a name or a call: got {call!r}, expected such as "
            "MobileNetV2(alpha=0.35)"
        )
    return tree.id, {}
