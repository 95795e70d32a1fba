"""Classifiers: the networks against layers written out, where weights come from, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.errors import UserError
from shared.models import zoo
from shared.models.classifier import ARCHS, IMAGENET, Classifier, open_classifier, random_classifier, save_classifier
from shared.models.residual import WideResNet
from shared.rng import SampleRng
from tests.accuracy import assert_as_accurate, assert_within_rounding, in_both

WIDEST = 9 * 128  # terms of the longest sum, a convolution
X = SampleRng(0, range(3)).uniform((3, 32, 32))


def noisy(classifier):
    """BatchNorm with statistics and weights as training leaves them, so that nothing in it is the identity."""
    for k, module in enumerate(m for m in classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for j, tensor in enumerate((module.running_mean, module.running_var, module.weight.data, module.bias.data)):
            tensor.copy_(
                SampleRng(1, [k])
                .child(j)
                .uniform(tensor.shape, 0.5 if j in (1, 2) else -0.3, 1.5 if j in (1, 2) else 0.3)[0]
            )
    return classifier


def bn(w, name, x):
    return F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])


def plain_resnet(w, x, blocks):
    """He et al. 2016, section 4.2, with projections."""
    x = F.relu(bn(w, "bn1", F.conv2d((x - 0.5) / 0.25, w["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for k in range(blocks):
            name, stride = f"layer{stage}.{k}", 2 if stage > 1 and k == 0 else 1
            out = F.relu(bn(w, f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)))
            out = bn(w, f"{name}.bn2", F.conv2d(out, w[f"{name}.conv2.weight"], padding=1))
            if f"{name}.shortcut.0.weight" in w:
                x = bn(w, f"{name}.shortcut.1", F.conv2d(x, w[f"{name}.shortcut.0.weight"], stride=stride))
            x = F.relu(out + x)
    x = F.avg_pool2d(x, 8).flatten(1)
    return x, x @ w["fc.weight"].T + w["fc.bias"]


def plain_wide(w, x, blocks):
    """Zagoruyko & Komodakis 2016, pre-activation; the pictures are not normalised."""
    x = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for k in range(blocks):
            name, stride = f"block{stage}.layer.{k}", 2 if stage > 1 and k == 0 else 1
            active = F.relu(bn(w, f"{name}.bn1", x))
            out = F.relu(bn(w, f"{name}.bn2", F.conv2d(active, w[f"{name}.conv1.weight"], stride=stride, padding=1)))
            out = F.conv2d(out, w[f"{name}.conv2.weight"], padding=1)
            x = out + (F.conv2d(active, w[f"{name}.convShortcut.weight"], stride=stride) if k == 0 else x)
    x = F.avg_pool2d(F.relu(bn(w, "bn1", x)), 8).flatten(1)
    return x, x @ w["fc.weight"].T + w["fc.bias"]


@pytest.fixture
def small_wide(monkeypatch):
    """WRN-16-2 in the place of WRN-28-10."""
    monkeypatch.setitem(ARCHS, "wrn-28-10", (lambda classes: WideResNet(16, 2, classes), ARCHS["wrn-28-10"][1]))


@pytest.mark.parametrize(
    "arch, blocks, plain", [("resnet8", 1, plain_resnet), ("resnet20", 3, plain_resnet), ("wrn-28-10", 2, plain_wide)]
)
def test_the_networks_are_the_layers_written_out(arch, blocks, plain, small_wide):
    classifier = noisy(random_classifier(arch, 7)).double()
    features, logits = plain(classifier.weights(), X.double(), blocks)
    assert classifier.classes == 7 and features.std() > 0
    assert_within_rounding(classifier.features(X.double()), features, terms=WIDEST)
    assert_within_rounding(classifier(X.double()), logits, terms=WIDEST)


def test_sizes_and_names_of_the_published_ones():
    """Parameters: He et al. 2016, table 6 (0.27 M); WRN-28-10 has 36.5 M, and the names of the released checkpoints."""
    count = {arch: sum(p.numel() for p in random_classifier(arch, 10).parameters()) for arch in ("resnet8", "resnet20")}
    assert count["resnet20"] == pytest.approx(0.27e6, rel=0.02) and count["resnet8"] < count["resnet20"]
    with torch.device("meta"):
        wide = WideResNet(28, 10, 10)
    names = wide.state_dict()
    assert sum(p.numel() for p in wide.parameters()) == 36_479_194
    assert {
        "conv1.weight",
        "block1.layer.0.bn1.running_var",
        "block1.layer.0.convShortcut.weight",
        "block3.layer.3.conv2.weight",
        "bn1.bias",
        "fc.bias",
    } <= set(names) and "block2.layer.1.convShortcut.weight" not in names
    assert names["block3.layer.0.conv1.weight"].shape == (640, 320, 3, 3)


def test_random_weights_are_a_function_of_the_seed():
    before = torch.get_rng_state()
    first, second, other = (random_classifier("resnet8", 5, seed).weights() for seed in (3, 3, 4))
    assert all(torch.equal(first[k], second[k]) for k in first) and not torch.equal(
        first["fc.weight"], other["fc.weight"]
    )
    assert torch.equal(open_classifier("resnet8", "random", 5)(X), random_classifier("resnet8", 5)(X))
    assert torch.equal(before, torch.get_rng_state())


def test_second_derivatives_are_those_of_finite_differences():
    classifier = noisy(random_classifier("resnet8", 4)).double()
    x, direction = X[:1, :, :8, :8].double().requires_grad_(), SampleRng(5, [0]).normal((3, 8, 8)).double()

    def guidance(z):
        return torch.autograd.grad(classifier(z).log_softmax(1)[:, 1].sum(), z, create_graph=True)[0]

    (exact,) = torch.autograd.grad((guidance(x) * direction).sum(), x)
    h = 1e-6
    ahead, behind = (
        (guidance((x + s * h * direction).detach().requires_grad_()) * direction).sum().item() for s in (1, -1)
    )
    assert (exact * direction).sum().item() == pytest.approx((ahead - behind) / (2 * h), rel=1e-3)


# ---- files -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    classifier = noisy(random_classifier("resnet8", 6, 9)).requires_grad_(False)
    save_classifier(classifier, tmp_path / "c.safetensors", {"key": "k"})
    return classifier, tmp_path


def test_what_is_saved_is_what_is_opened(stored):
    classifier, folder = stored
    opened = open_classifier("resnet8", str(folder / "c.safetensors"), 6)
    assert torch.equal(opened(X), classifier(X)) and not opened.training
    assert not any(p.requires_grad for p in opened.parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {f"model.{k}": v for k, v in w.items()},
        lambda w: {**w, "sub_block1.layer.0.conv1.weight": torch.zeros(1)},
        lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_wrapped_state_dicts_are_unwrapped(stored, wrap):
    classifier, folder = stored
    torch.save(wrap(classifier.weights()), folder / "c.pt")
    assert torch.equal(open_classifier("resnet8", str(folder / "c.pt"), 6)(X), classifier(X))


def test_kept_logits(stored):
    classifier, folder = stored
    some = open_classifier("resnet8", str(folder / "c.safetensors"), 3, keep=(5, 0, 2))
    assert (
        some.classes == 3
        and torch.equal(some(X), classifier(X)[:, [5, 0, 2]])
        and torch.equal(some.features(X), classifier.features(X))
    )
    assert torch.equal(some.weights()["fc.weight"], classifier.weights()["fc.weight"])
    assert open_classifier("torchvision:resnet18", "random", 2, keep=(999, 3)).classes == 2


def test_a_random_network_has_no_logit_beyond_its_classes():
    with pytest.raises(UserError, match="logit 99999 is to be kept of 1000 classes: give indices below 1000"):
        open_classifier("resnet8", "random", 2, keep=(0, 99_999))
    with pytest.raises(UserError, match="classes is 0: use a whole number from 1"):
        random_classifier("resnet8", 0)


def test_a_torchvision_network_is_that_network_behind_its_normalisation():
    import torchvision

    ours = noisy(random_classifier("torchvision:resnet18", 5))
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    theirs.load_state_dict(ours.weights())
    x = SampleRng(0, range(2)).uniform((3, 64, 64))

    def by_hand(network, x):
        return network(torchvision.transforms.functional.normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    assert_as_accurate(ours(x), *in_both(by_hand, theirs, x), terms=9 * 512)
    assert ours.features(x).shape == (2, 512)


def test_the_zoo_is_a_source(stored, monkeypatch):
    classifier, folder = stored
    zoo.write_card(folder / "c.safetensors", kind="classifier")
    monkeypatch.setattr(zoo, "FOLDER", folder)
    assert torch.equal(open_classifier("resnet8", "zoo:c", 6)(X), classifier(X))


@pytest.mark.parametrize(
    "change, arch, classes, keep, message",
    [
        ({}, "resnet8", 7, None, "has 6 classes and 7 are expected"),
        ({}, "resnet8", 2, (0, 6), "has 6 classes and logit 6 is to be kept"),
        ({}, "resnet8", 3, (0, 1), "3 classes are asked for and 2 logits"),
        ({}, "resnet8", 2, (1, 1), "2 different indices"),
        ({}, "resnet8", 2, (0, -1), "keep is -1: use a whole number from 0"),
        ({}, "resnet8", 0, None, "classes is 0: use a whole number from 1"),
        ({}, "resnet20", 6, None, "does not fit this model: .* instead of resnet20"),
        ({"extra": torch.zeros(1)}, "resnet8", 6, None, "1 tensors differ, the first is 'extra'"),
        ({"conv1.weight": None}, "resnet8", 6, None, "1 tensors differ, the first is 'conv1.weight'"),
        ({"fc.weight": None}, "resnet8", 6, None, "the first is 'fc.weight'"),
        ({}, "resnet9", 6, None, "there is no classifier named 'resnet9'"),
        ({}, "torchvision:resnet9000", 6, None, "torchvision has no model named"),
        (
            {},
            "torchvision:fasterrcnn_resnet50_fpn",
            6,
            None,
            "torchvision has no model named 'fasterrcnn_resnet50_fpn' that classifies",
        ),
        ({}, "torchvision:squeezenet1_1", 6, None, "a SqueezeNet has no linear layer"),
        (
            {"fc.bias": torch.full((6,), float("nan"))},
            "resnet8",
            6,
            None,
            "holds a NaN or an infinite number in 'fc.bias'",
        ),
        (
            {"fc.bias": torch.zeros(6, dtype=torch.int64)},
            "resnet8",
            6,
            None,
            "the first is 'fc.bias', which is of another shape or kind",
        ),
    ],
)
def test_what_does_not_fit_is_refused(stored, change, arch, classes, keep, message):
    classifier, folder = stored
    torch.save({k: v for k, v in {**classifier.weights(), **change}.items() if v is not None}, folder / "c.pt")
    with pytest.raises(UserError, match=message):
        open_classifier(arch, str(folder / "c.pt"), classes, keep)


@pytest.mark.parametrize("arch", ["torchvision:squeezenet1_0", "torchvision:squeezenet1_1"])
def test_a_network_without_a_linear_layer_is_one_sentence(arch):
    for make in (
        lambda: random_classifier(arch, 5),
        lambda: open_classifier(arch, "random", 5),
        lambda: Classifier(nn.Conv2d(3, 2, 1), IMAGENET),
    ):
        with pytest.raises(
            UserError, match="has no linear layer that could be its last: choose another architecture"
        ) as error:
            make()
        assert "\n" not in str(error.value)


def test_broken_files_and_tags_are_refused(stored):
    _, folder = stored
    path = folder / "c.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated, damaged"):
        open_classifier("resnet8", str(path), 6)
    with pytest.raises(UserError, match="does not exist"):
        open_classifier("resnet8", str(folder / "none.pt"), 6)
    with pytest.raises(UserError, match="torchvision has no weights 'V9' of resnet18: choose one of IMAGENET1K_V1"):
        open_classifier("torchvision:resnet18", "torchvision:V9", 1000)
    with pytest.raises(UserError, match="are of a torchvision network, not of resnet8"):
        open_classifier("resnet8", "torchvision:IMAGENET1K_V1", 1000)
