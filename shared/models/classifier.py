"""Image classifiers with a fixed set of classes: pixels in [0, 1] in, logits out. Mean and std are inside, so that
every ε is in pixels.

    ARCHS     arch -> the network, and the mean and std its weights expect
    weights   zoo:<name> | a .safetensors or .pt file | torchvision:<tag> (e.g. IMAGENET1K_V1, of a torchvision network) | random

"wrn-28-10" is the network of RobustBench's "Standard" entry for CIFAR-10, which takes [0, 1] as it is. Pictures come at
the size the network was trained on: nothing is resized here. All networks are of ReLUs, so that they can be
differentiated twice (the second derivative of the ReLU is 0).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.models import zoo
from shared.models.clip import demand_finite, demand_fit, read_weights, save_tensors
from shared.models.residual import ResNet, WideResNet
from shared.options import Classes, Label, Seed, bounded

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
IDENTITY: Normalisation = ((0.0,) * 3, (1.0,) * 3)
CENTRED: Normalisation = ((0.5,) * 3, (0.25,) * 3)
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ARCHS: dict[str, tuple[Callable[[int], nn.Module], Normalisation]] = {
    "resnet8": (lambda classes: ResNet(1, classes), CENTRED),
    "resnet20": (lambda classes: ResNet(3, classes), CENTRED),
    "wrn-28-10": (lambda classes: WideResNet(28, 10, classes), IDENTITY),
}
SEED = 0  # of the weights "random"
IMAGENET_CLASSES = 1000  # of a network with the weights "random" of which some logits are kept


class Classifier(nn.Module):
    """z = head(features((x − mean)/std)): logits (N, K) of pictures x (N, 3, H, W) in [0, 1].

    net: a network whose last linear layer is its output; that layer is taken off and becomes `head`. normalisation:
    (mean, std) per channel. keep: the logits that are kept, in this order (default: all). classes: K. Raises UserError
    for a network without a linear layer.
    """

    def __init__(self, net: nn.Module, normalisation: Normalisation, keep: Sequence[int] | None = None):
        super().__init__()
        linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(
                f"a {type(net).__name__} has no linear layer that could be its last: choose another architecture."
            )
        self._name = linear[-1]
        head = net.get_submodule(self._name)
        parent, _, last = self._name.rpartition(".")
        setattr(net.get_submodule(parent), last, nn.Identity())
        self.net, self.head = net.to(memory_format=torch.channels_last), head  # a third faster on a CPU
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in normalisation)
        # (x − mean)/std as x·scale + shift
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.register_buffer("kept", None if keep is None else torch.tensor(list(keep)), persistent=False)
        self.classes = head.out_features if keep is None else len(keep)

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer sees, (N, D). x (N, 3, H, W) in [0, 1]."""
        return self.net((x * self.scale + self.shift).contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.features(x))
        return logits if self.kept is None else logits[:, self.kept]

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the network under the names it had before its last layer was taken off."""
        return {**self.net.state_dict(), **{f"{self._name}.{k}": v for k, v in self.head.state_dict().items()}}


@bounded
def random_classifier(
    arch: str, classes: Classes, seed: Seed = SEED, keep: Sequence[Label] | None = None
) -> Classifier:
    """Random weights, a function of (arch, classes, seed), in eval mode; torch's global generator is left as it was.

    arch: a key of ARCHS, or torchvision:<name>. keep: logits of the `classes` ones. Raises UserError for an unknown
    architecture, numbers of classes below 1, and logits that it does not have.
    """
    if keep is not None and max(keep, default=0) >= classes:
        raise UserError(f"logit {max(keep)} is to be kept of {classes} classes: give indices below {classes}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, normalisation = _build(arch, classes)
    return Classifier(net, normalisation, keep).eval()


@bounded
def open_classifier(
    arch: str, weights: str, classes: Classes, keep: Sequence[Label] | None = None, device: torch.device | str = "cpu"
) -> Classifier:
    """A trained classifier of `classes` classes in eval mode (BatchNorm by its running statistics), nothing of which
    asks for a gradient.

    arch: a key of ARCHS, or torchvision:<name> (e.g. torchvision:resnet50). weights: see the module. keep: logits of
    the stored network that are kept, `classes` of them: a 1,000-way classifier restricted to 30 classes. Raises
    UserError for weights that cannot be read, do not fit the architecture or have another number of classes.
    """
    if keep is not None and (len(keep) != classes or len(set(keep)) < classes):
        raise UserError(
            f"{classes} classes are asked for and {len(keep)} logits to keep: give {classes} different indices of "
            "logits."
        )
    tensors = _read(arch, weights)
    if tensors is None:
        width = classes if keep is None else IMAGENET_CLASSES
        classifier = random_classifier(arch, width, keep=keep)
    else:
        classifier = _filled(arch, tensors, weights, classes, keep)
    return classifier.to(device).requires_grad_(False).eval()


def save_classifier(classifier: Classifier, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write all weights of a classifier (those that `keep` leaves out too) as .safetensors, atomically."""
    save_tensors(classifier.weights(), path, metadata)


def _build(arch: str, classes: int) -> tuple[nn.Module, Normalisation]:
    kind, _, name = arch.partition(":")
    if kind == "torchvision" and name:
        import torchvision.models

        if name not in torchvision.models.list_models(module=torchvision.models):
            raise UserError(
                f"torchvision has no model named {name!r} that classifies pictures: give one of "
                "torchvision.models.list_models(module=torchvision.models)."
            )
        return torchvision.models.get_model(name, weights=None, num_classes=classes), IMAGENET
    if arch not in ARCHS:
        raise UserError(
            f"there is no classifier named {arch!r}: choose one of {', '.join(ARCHS)}, or torchvision:<name>."
        )
    build, normalisation = ARCHS[arch]
    return build(classes), normalisation


def _read(arch: str, weights: str) -> dict[str, Tensor] | None:
    """The stored tensors by name; None for random weights."""
    kind, _, rest = weights.partition(":")
    if weights == "random":
        return None
    if kind == "torchvision":
        return _torchvision(arch, rest)
    tensors = read_weights(zoo.weights(rest) if kind == "zoo" else weights)
    # wrappers around the network, and a branch that RobustBench's wide networks carry and never use
    return {
        k.removeprefix("model.").removeprefix("module."): v
        for k, v in tensors.items()
        if not k.startswith("sub_block1.")
    }


def _torchvision(arch: str, tag: str) -> dict[str, Tensor]:
    import torchvision.models

    name = arch.partition(":")[2]
    try:
        known = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise UserError(
            f"the weights torchvision:{tag} are of a torchvision network, not of {arch}: give its architecture, e.g. "
            "torchvision:resnet50."
        ) from error
    if tag not in known.__members__:
        raise UserError(f"torchvision has no weights {tag!r} of {name}: choose one of {', '.join(known.__members__)}.")
    try:
        tensors = known[tag].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # whatever the download raises
        raise UserError(
            f"the weights {tag} of {name} cannot be had ({type(error).__name__}): give the path of a local checkpoint, "
            "or run once on a machine with a network."
        ) from error
    demand_finite(tensors, f"the weights {tag} of {name}")
    return tensors


def _filled(arch: str, tensors: dict[str, Tensor], source: str, classes: int, keep: Sequence[int] | None) -> Classifier:
    with torch.device("meta"):  # no time for random weights, no use of the global generator
        probe = Classifier(_build(arch, 2)[0], IDENTITY)
    head = f"{probe._name}.weight"
    width = len(tensors[head]) if head in tensors and tensors[head].ndim == 2 else classes
    if width != classes if keep is None else width <= max(keep):
        raise UserError(
            f"the checkpoint {source} has {width} classes and "
            + (f"{classes} are expected" if keep is None else f"logit {max(keep)} is to be kept")
            + ": give the weights of another one."
        )
    classifier = random_classifier(arch, width, keep=keep)
    own = classifier.weights()
    # files of old versions of torch do not count batches; nothing here uses the count
    tensors = {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked")}, **tensors}
    demand_fit(own, tensors, f"the checkpoint {source}", f"give the architecture it was made with instead of {arch}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return classifier
