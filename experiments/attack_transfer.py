"""Transferability of adversarial examples, and accuracy of an ensemble of networks under attack.

  ./launch.sh attack_transfer --images=DIR --labels=folder --eps=8/255 --limit=100
  ./launch.sh attack_transfer --images=DIR --networks=squeezenet1_1,MODELDIR --attack=di_fgsm

All networks receive one square image of --size pixels, on which eps is measured, and resize it by
their own rules. The default is the smallest network's input size, so that no network averages the
perturbation away. Images are evaluated after an 8-bit PNG, and only images that all networks
classify correctly are used.

Images are made on each network alone, and on all networks but the one that is evaluated (Liu et al.
2017, arXiv:1611.02770, section 5); random noise of the same norm is the control. The ensemble of
all networks is tested on images made on one member, and on images made on the ensemble itself.

Expected: with 100 ImageNet images and the default networks, the ensemble has an error rate of 100 %
when it is attacked itself, and of at least 96 % on images made on one member (`ensemble_attacked`
in RESULTS.md). Cost: with m networks, `steps` times m (m + 1) gradients of a network per image.
"""

from __future__ import annotations

from absl import flags

from tl import cli, pages, reporting
from tl.attacks import norms
from tl.evaluation import attack_transfer, shared_images
from tl.evaluation.attack_transfer import ATTACKS, TransferSettings
from tl.pages import common
from tl.pages.attack_transfer import lines

FLAGS = flags.FLAGS
# Networks with 1000 classes whose weights install with pip.
PACKAGED = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "squeezenet1_1"]


def define_flags() -> None:
    cli.define_image_flags(labels="what all networks predict")
    flags.DEFINE_list(
        "networks", PACKAGED, "Names, or folders saved by transfer, with the same classes."
    )
    flags.DEFINE_integer(
        "limit", 100, "Largest number of images, drawn at random; 0 is all.", lower_bound=0
    )
    flags.DEFINE_enum(
        "attack",
        "mi_fgsm",
        list(ATTACKS),
        "Attack; it continues after the source network is fooled.",
    )
    flags.DEFINE_enum("norm", "linf", list(norms.NORMS), "Norm that bounds the change.")
    flags.DEFINE_string("eps", "8/255", "Radius in [0, 1] pixel units.")
    flags.DEFINE_integer(
        "steps",
        10,
        "Number of steps per attack. Default: MI-FGSM's (arXiv:1710.06081, section 4.1).",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "size",
        0,
        "Side in pixels of the image that all networks see. Default: the smallest network's.",
        lower_bound=0,
    )


def main(run: reporting.Run) -> None:
    eps = cli.fraction(FLAGS.eps, "eps")
    networks, spec = shared_images.load_networks([name for name in FLAGS.networks if name])
    size = FLAGS.size or min(network.clf.pixels.size for network in networks)
    shared_images.check_eps(eps, FLAGS.norm, size)
    labeled = FLAGS.labels == "folder"
    images = shared_images.select_images(
        networks,
        spec.replace(size=size),
        FLAGS.images,
        labeled=labeled,
        limit=FLAGS.limit,
        seed=FLAGS.seed,
        remark=run.remark,
        white=cli.white(run),
    )
    settings = TransferSettings(FLAGS.attack, FLAGS.norm, eps, FLAGS.steps, FLAGS.seed)
    result = attack_transfer.evaluate_transfer(
        run, networks, images, settings, labeled=labeled
    ).json()
    weights = {
        f"weights of {name}": common.weights_facts(clf)["weights"] for name, clf, _ in networks
    }
    page = pages.finish(run, result | {"facts": weights})
    print(*lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("attack_transfer", main, define_flags)
