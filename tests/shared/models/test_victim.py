"""The zero-shot classifier against its equation, with mean/std and the resize inside."""

import copy
import shutil
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from shared.data.arrays import ArrayImages
from shared.data.base import ClassSubset
from shared.errors import UserError
from shared.models.clip import MEAN_STD, PatchEmbedding
from shared.models.victim import Pixels, ZeroShot, class_matrix, image_size, predicted, set_compiled, text_matrix
from tests.accuracy import assert_as_accurate, assert_within_rounding, in_both

WIDEST = 4 * 96  # terms of the longest sum of a forward pass, in an MLP
PROMPTS = ("a photo of a red circle", "a photo of a blue star", "a photo of two objects")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_are_no_class(wrong):
    assert predicted(torch.tensor([[0.0, 2.0, 1.0]])).tolist() == [1]
    with pytest.raises(UserError, match="not finite for 1 of 2"):
        predicted(torch.tensor([[0.0, 1.0], [wrong, 0.0]]))


class Tower(nn.Module):
    """A vision tower for large pictures that shows what it was given."""

    image_size = 224

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * 224 * 224 * 2).view(2, -1) / 400)

    def forward(self, x):
        self.seen = x
        return x.flatten(1) @ self.weight.T


def literally(clip, x, prompts, scale, mean, std):
    """s·cos(F((x − mean)/std), text(prompt)), one pair at a time."""
    rows = []
    for picture in x:
        normal = torch.stack([(picture[c] - mean[c]) / std[c] for c in range(3)])
        image = clip.encode_image(normal[None])[0]
        texts = [clip.encode_text(clip.tokenizer([p]))[0] for p in prompts]
        rows.append(torch.stack([scale * (image @ t) / (image.norm() * t.norm()) for t in texts]))
    return torch.stack(rows)


@pytest.mark.parametrize("norm", MEAN_STD)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logits_are_the_scaled_cosines(small_clip, norm, scale):
    torch.manual_seed(0)
    x = torch.rand(4, 3, 32, 32)
    victim = ZeroShot(small_clip.visual, text_matrix(small_clip, PROMPTS), scale, norm)
    assert_as_accurate(
        victim(x), *in_both(literally, small_clip, x, PROMPTS, scale, *MEAN_STD[norm]), terms=WIDEST, scale=scale
    )
    assert victim.num_classes == 3 and victim(x).shape == (4, 3)
    assert torch.equal(victim.classify(victim.embed(x)), victim(x))
    assert (victim.embed(x).norm(dim=1) - 1).abs().min() > 0.01  # not normalised


def test_the_gradient_reaches_the_pixels(small_clip):
    torch.manual_seed(1)
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    victim = ZeroShot(small_clip.visual, text_matrix(small_clip, PROMPTS), 10.0)

    def by_hand(clip, x):
        return torch.autograd.grad(literally(clip, x, PROMPTS, 10.0, *MEAN_STD["clip"])[:, 0].sum(), x)[0]

    (ours,) = torch.autograd.grad(victim(x)[:, 0].sum(), x)
    assert ours.abs().max() > 0
    assert_as_accurate(ours, *in_both(by_hand, small_clip, x), terms=WIDEST)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2]], ids=["reversed", "alone"])
def test_a_picture_does_not_depend_on_its_place_in_the_batch(small_clip, order):
    def found(x):
        x = x.clone().requires_grad_()
        logits = ZeroShot(small_clip.visual, text_matrix(small_clip, PROMPTS), 10.0)(x)
        return logits, torch.autograd.grad(
            F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long), reduction="sum"), x
        )[0]

    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    assert_within_rounding(found(x[order]), [values[order] for values in found(x)], terms=WIDEST)


def test_text_matrix_is_open_clips_normalised(small_clip):
    prompts = [f"a photo of {n} {w} objects" for n in ("two", "three") for w in small_clip.tokenizer.vocabulary]
    assert len(prompts) > 256  # encoded in more than one part
    text = text_matrix(small_clip, prompts)
    with torch.no_grad():
        assert_as_accurate(
            text,
            *in_both(lambda clip: F.normalize(clip.encode_text(clip.tokenizer(prompts)), dim=1), small_clip),
            terms=WIDEST,
        )
    assert_within_rounding(text.norm(dim=1), torch.ones(len(prompts)), terms=text.shape[1])
    assert not text.requires_grad and text.dtype == torch.float32


def test_classes_that_are_the_same_tokens_are_refused_for_folders_and_said_for_published_sets(small_clip, capsys):
    def named(*classes):
        pixels = torch.zeros(len(classes), 3, 2, 2, dtype=torch.uint8)
        return ArrayImages("zoo", pixels, range(len(classes)), classes, [f"a photo of a {c}" for c in classes])

    apart, alike = (
        named("red star", "blue star", "star"),
        named("red star", "red-star!", "star", "Red_star", "star?", "blue ring"),
    )
    alike.prompts = tuple(p.replace("red-star", "red star") for p in alike.prompts)
    assert torch.equal(class_matrix(small_clip, apart), text_matrix(small_clip, apart.prompts))
    assert capsys.readouterr().err == ""
    assert torch.equal(class_matrix(small_clip, alike), text_matrix(small_clip, alike.prompts))
    said = "zoo: 2 prompts have several classes, which the model cannot tell apart: red star = red-star! = Red_star, star = star?"
    assert capsys.readouterr().err.strip() == said
    alike.renameable = True
    for data in (alike, ClassSubset(alike, [0, 1, 5])):
        with pytest.raises(
            UserError, match=r"the class names red star = red-star!.* are the same words.*rename the folders"
        ):
            class_matrix(small_clip, data)
    assert len(class_matrix(small_clip, ClassSubset(alike, [0, 2, 5]))) == 3


def test_small_pictures_are_resized_inside_as_torch_does():
    torch.manual_seed(2)
    tower = Tower()
    victim = ZeroShot(tower, torch.eye(2), 1.0)
    x = torch.rand(3, 3, 32, 32)
    victim(x)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in MEAN_STD["clip"])

    def by_hand(x):
        return (F.interpolate(x, size=(224, 224), mode="bicubic") - mean) / std

    assert_as_accurate(tower.seen, *in_both(by_hand, x), terms=16)
    x = torch.rand(1, 3, 40, 180)
    assert_as_accurate(
        Pixels((224, 224), "none")(x),
        *in_both(lambda x: F.interpolate(x, size=(224, 224), mode="bicubic"), x),
        terms=16,
    )


LARGER = [(300, 300), (427, 640), (640, 427), (225, 224), (40, 500), (1000, 231)]
WAYS = [("bicubic", "shortest"), ("bicubic", "squash"), ("bilinear", "shortest"), ("bilinear", "squash")]


def photograph(height: int, width: int) -> torch.Tensor:
    """Sharp edges, and values from 85 to 170 of 255, from which no step of a resize leaves the range of 8 bits."""
    blocks = torch.randint(85, 171, (1, 3, height, width), generator=torch.Generator().manual_seed(height))
    blocks[..., : height // 2, : width // 3] = 85
    return blocks.float() / 255


def preprocessing(size: int, interpolation: str, resize_mode: str) -> dict:
    return asdict(
        PreprocessCfg(
            size=size, interpolation=interpolation, resize_mode=resize_mode, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1)
        )
    )


def tower_with(config: dict) -> Tower:
    tower = Tower()
    tower.image_size, tower.preprocess_cfg = config["size"], config
    return tower


@pytest.mark.parametrize("shape", LARGER, ids=str)
@pytest.mark.parametrize("interpolation, resize_mode", WAYS)
@pytest.mark.parametrize("size", [224, 33])
def test_larger_pictures_go_through_the_models_own_preprocessing(shape, interpolation, resize_mode, size):
    """open_clip's transform of the same tensor, and of the picture in 8 bits, where Pillow rounds after each of its two passes."""
    config, x = preprocessing(size, interpolation, resize_mode), photograph(*shape)
    ours, transform = Pixels.of(tower_with(config))(x), image_transform_v2(PreprocessCfg(**config), is_train=False)
    taps = 4 * max(shape) // size + 4
    assert_within_rounding(ours, transform(x), terms=2 * taps)
    eightbit = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    theirs = transform(Image.fromarray(eightbit))[None]
    # half a level from the first pass, times the sum of the second's |weights|, half a level from the second; both in fixed point of 22 bits
    passes = [
        F.interpolate(torch.eye(n)[None, None], (m, n), mode=interpolation, antialias=True)[0, 0]
        .abs()
        .sum(1)
        .max()
        .item()
        for n, m in zip(shape, resized(shape, size, resize_mode), strict=True)
    ]
    levels = 0.5 * max(passes) + 0.5 + 2 * taps * 255 * 2**-22
    error = ((ours - theirs).abs() * torch.tensor(config["std"]).view(1, 3, 1, 1) * 255).max().item()
    assert error <= levels * (1 + 1e3 * torch.finfo(torch.float32).eps)


def resized(shape, size, resize_mode):
    """(H, W) before the crop."""
    return (size, size) if resize_mode == "squash" else tuple(int(size * n / min(shape)) for n in shape)


def test_without_antialias_the_same_picture_would_be_another():
    x = photograph(1000, 1000)
    assert (Pixels((32, 32), "none")(x) - F.interpolate(x, (32, 32), mode="bicubic")).abs().max() > 10 / 255


@pytest.mark.parametrize("resize_mode, shape", [("shortest", (9, 14)), ("squash", (9, 14)), ("shortest", (4, 9))])
def test_larger_pictures_have_exact_gradients(resize_mode, shape):
    pixels = Pixels((6, 6), "imagenet", resize_mode=resize_mode).double()
    x = (
        0.3 + 0.4 * torch.rand(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    assert torch.autograd.gradcheck(pixels, x)
    (grad,) = torch.autograd.grad(pixels(x).sum(), x)
    seen = grad.abs().sum((0, 1, 2)) > 0
    assert seen.all() == (resize_mode == "squash") and seen.any()  # what is cut off has no effect


def test_a_batch_is_resized_picture_by_picture():
    x = torch.rand(3, 3, 50, 70)
    pixels = Pixels((32, 32))
    torch.testing.assert_close(torch.cat([pixels(p[None]) for p in x]), pixels(x), rtol=0, atol=0)


def test_values_stay_in_the_range_of_pixels():
    x = torch.zeros(1, 3, 60, 60)
    x[..., 30:] = 1
    out = Pixels((40, 40), "none")(x)
    assert out.min() == 0 and out.max() == 1


@pytest.mark.parametrize("norm, mean", [("clip", 0.5), ("imagenet", 0.485), ("none", 0.0)])
def test_the_towers_own_mean_is_used_unless_another_is_asked_for(norm, mean):
    victim = ZeroShot(tower_with(preprocessing(224, "bicubic", "squash")), torch.eye(2), 1.0, norm)
    shift, scale = victim.pixels.shift, victim.pixels.scale
    assert_within_rounding(-(shift / scale)[0, 0], torch.full((1, 1), mean), terms=1)


def test_pictures_of_the_right_size_are_not_resampled():
    x = torch.rand(2, 3, 224, 224)
    assert torch.equal(Pixels((224, 224), "none")(x), x)
    assert not torch.equal(Pixels((200, 224), "none")(x)[:, :, :200], x[:, :, :200])


def test_image_size_of_square_and_other_towers():
    tower = Tower()
    assert image_size(tower) == (224, 224)
    tower.image_size = [64, 32]
    assert image_size(tower) == (64, 32)


def test_the_state_of_a_victim_is_its_tower(small_clip):
    victim = ZeroShot(copy.deepcopy(small_clip.visual), text_matrix(small_clip, PROMPTS), 1.0)
    assert {k.removeprefix("visual.") for k in victim.state_dict()} == set(small_clip.visual.state_dict())
    assert victim.to(torch.float64).pixels.scale.dtype == torch.float64
    assert isinstance(victim.visual.conv1, PatchEmbedding)


def test_unknown_normalisations_are_refused(small_clip):
    with pytest.raises(UserError, match="no normalisation named 'cifar': choose one of clip, imagenet, none"):
        ZeroShot(small_clip.visual, torch.eye(2), 1.0, "cifar")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler for C++ on a CPU")
def test_a_compiled_tower_gives_the_same_logits_and_gradients(small_clip):
    """torch.compile takes minutes here."""

    def both(x: torch.Tensor, victim: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.requires_grad_()
        logits = victim(x)
        return logits, torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)[0]

    text, x = text_matrix(small_clip, PROMPTS), torch.rand(3, 3, 32, 32)
    theirs, exact = in_both(both, x, ZeroShot(small_clip.visual, text, 10.0))
    try:
        set_compiled(True)
        victim = ZeroShot(copy.deepcopy(small_clip.visual), text, 10.0)
    finally:
        set_compiled(False)
    assert victim.visual._compiled_call_impl is not None and small_clip.visual._compiled_call_impl is None
    for part in zip(both(x, victim), theirs, exact, strict=True):
        assert_as_accurate(*part, terms=WIDEST)
