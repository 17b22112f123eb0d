"""The zoo: every architecture by timm's name. To add one: a file with its module and `VARIANTS`, and a name here."""

from __future__ import annotations

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
    """Every architecture's name, aliases left out.

    Example:
      >>> "resnet50" in names()
      True
    """
    return tuple(_SPECS)


def get(name: str) -> BackboneSpec:
    """The architecture called `name`, timm's name or an alias.

    Raises:
      ValueError: no such architecture; gives the nearest names.

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
    """The architecture called `name` and the other forms of the same network (Keras', TensorFlow's), itself first.

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
