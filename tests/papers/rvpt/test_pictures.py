"""The numbers behind the figures: on a small random CLIP, against the definitions written out; the supervised tower."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from papers.rvpt import pictures
from papers.rvpt.config import PRESETS, check
from papers.rvpt.pictures import Attention, Change, Chosen, Embedding, Perturbed, Resistivity, Triggers
from papers.rvpt.resistivity import Perturbations, attention_map, features, resistivity
from papers.rvpt.scores import Said
from papers.rvpt.supervised import Supervised, Torchvision
from papers.rvpt.tuning import Tuning
from shared.attacks.triggers import at_test, make_trigger, sheet
from shared.errors import UserError
from shared.experiment.leaves import Pictures
from shared.metrics.perceptual import psnr
from shared.models.classifier import IMAGENET
from shared.rng import SampleRng
from shared.steps.backdoor import Aim, Seen, Stamp
from tests.accuracy import assert_within_rounding
from tests.papers.ends import lab_of, load

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP, for each of four blocks
made = load("papers/rvpt/nursery.py")
SPEC, TARGET = "scenes:combinations", "striped red star"
DATA, AIM = Pictures(SPEC, "test", 40, 42), Aim(SPEC, TARGET)
PATCH = made.Stamped(make_trigger("badclip", pixels=torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(1))))
BADNET = Stamp("badnet", "cleanclip", ("patch=20",), SPEC)


@pytest.fixture
def lab(tmp_path):
    return lab_of(tmp_path)


def storable(values):
    assert np.isfinite(values.values).all()
    assert all(a.dtype != object for a in values.extra.values())


# ---- resistivity --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [None, 4])
@pytest.mark.parametrize("name", [*Perturbations().all(), "trigger"])
def test_resistivity_is_that_of_the_first_test_pictures_in_any_batch(lab, clip, prompts, name):
    data, given = Pictures(SPEC, "test", 20, 42), made.Given(clip, prompts)
    change = Change(name, Perturbations(), 0, BADNET if name == "trigger" else None)
    x, indices = Seen(data).clean(lab)[0], data.rows(lab)
    if name == "trigger":
        other = at_test(BADNET.open(lab), x, indices)
    else:
        other = Perturbations().all()[name](x, SampleRng(0, indices, pictures.STREAM))
    expected = resistivity(partial(features, Said(given, Seen(data)).classifier(lab)), x, other)
    got = Resistivity(given, data, change, 16).make(lab)
    assert got.unit == "cosine" and got.values.shape == (20,) and got.extra["layers"].shape == (20, 3)
    assert_within_rounding(torch.from_numpy(got.values).float(), expected.output, terms=DEEP)
    assert_within_rounding(torch.from_numpy(got.extra["layers"]), expected.layers, terms=DEEP)
    storable(got)
    again = Resistivity(given, data, change, 7).make(lab)
    assert_within_rounding(torch.from_numpy(again.values).float(), torch.from_numpy(got.values), terms=DEEP)


def test_chosen_pictures_are_the_first_that_do_not_show_the_target(lab):
    label = AIM.label(lab)
    few, all_of_them = Chosen.first(lab, DATA, 5, label), Chosen.first(lab, DATA, 1000, label)
    assert (all_of_them.y != label).all() and len(all_of_them.y) == (DATA.read(lab, DATA.rows(lab))[1] != label).sum()
    assert few.indices == all_of_them.indices[:5] and torch.equal(few.x, DATA.read(lab, few.indices)[0])


# ---- attention ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [None, 4])
def test_attention_under_the_patch(lab, clip, prompts):
    said = Said(made.Given(clip, prompts), Seen(DATA, PATCH), batch=16)
    got, label = Attention(said, AIM, 20, 2).make(lab), AIM.label(lab)
    (pixels, y), rows = said.seen.clean(lab), DATA.rows(lab)
    keep = [i for i in range(40) if y[i] != label][:20]
    x = pixels[keep]
    stamped = PATCH.open(lab)(x, [rows[i] for i in keep])
    victim, classes = said.classifier(lab), lab.data(SPEC).classes
    for name, z, got_share in (("clean", x, got.extra["clean"]), ("triggered", stamped, got.values)):
        maps = attention_map(victim, z)
        assert_within_rounding(torch.from_numpy(got.extra[f"{name}_maps"]), maps[:2], terms=DEEP)
        inner = maps[:, 1:3, 1:3].sum(
            (1, 2)
        )  # a patch of 5 pixels from 13 to 17 touches the four tokens of 8 in the middle
        assert_within_rounding(torch.from_numpy(got_share), inner / maps.sum((1, 2)), terms=DEEP)
        if name == "triggered":
            assert_within_rounding(torch.from_numpy(got.extra["of_all"]), inner, terms=DEEP)
        assert got.extra[f"{name}_said"].tolist() == [classes[k] for k in victim(z[:2]).argmax(1).tolist()]
        assert np.abs(got.extra[f"{name}_pictures"] / 255 - z[:2].numpy()).max() <= 0.5 / 255 + 1e-6
    assert (got.extra["area"] == 0.25).all() and TARGET not in got.extra["truth"] and len(got.extra["truth"]) == 2
    storable(got)


def test_touched_tokens_are_those_with_a_changed_pixel():
    x = torch.zeros(2, 3, 12, 12)
    y = x.clone()
    y[0, 1, 3, 4] = 0.1  # one channel of one pixel: token (0, 1) of 3 × 3
    y[1, :, 7:9, 0] = 0.1  # on either side of an edge
    expected = torch.zeros(2, 3, 3)
    expected[0, 0, 1] = expected[1, 1, 0] = expected[1, 2, 0] = 1
    assert torch.equal(pictures.touched_tokens(x, y, (3, 3)), expected)


# ---- features -----------------------------------------------------------------------------------------------------------------


def test_nearest_leaves_the_original_out():
    among = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    queries = among[[0, 2, 3]]
    assert pictures.nearest(queries, among, torch.tensor([0, 2, 0])).tolist() == [1, 1, 3]


def embedding(clip, n, prompts=None, batch=16) -> Embedding:
    return Embedding(made.Given(clip, prompts), Pictures(SPEC), PATCH, AIM, n, 42, batch)


def test_pictures_of_figure_5_are_known_by_their_number_in_the_set(lab, clip):
    chosen, names = embedding(clip, 24).chosen(lab)
    data = lab.data(SPEC)
    assert len(names) == pictures.CLASSES and names[-1] == TARGET and len(set(names)) == len(names)
    x, y = data.__getitems__(chosen.indices)
    assert torch.equal(x, chosen.x) and [data.classes[k] for k in y.tolist()] == [names[k] for k in chosen.y.tolist()]
    assert np.bincount(chosen.y.numpy()).tolist() == [3] * 8


def test_embedding_counts_neighbours_by_class(lab, clip, monkeypatch):
    step = embedding(clip, 16)
    chosen, names = step.chosen(lab)
    label_of = {p.numpy().tobytes(): k for p, k in zip(chosen.x, chosen.y.tolist(), strict=True)}
    spread = torch.Generator().manual_seed(0)

    def seen(victim, x):  # a perfect encoder, but the trigger sends every third picture to the target
        rows = []
        for i, p in enumerate(x):
            k = label_of.get(p.numpy().tobytes(), 7 if i % 3 == 0 else None)
            k = (
                k
                if k is not None
                else next(
                    v for b, v in label_of.items() if abs(np.frombuffer(b, np.float32) - p.numpy().ravel()).sum() < 80
                )
            )
            rows.append(F.one_hot(torch.tensor(k), 8) + 0.05 * torch.rand(8, generator=spread))
        return SimpleNamespace(layers=torch.zeros(len(x), 1, 1), output=torch.stack(rows))

    monkeypatch.setattr(pictures, "features", seen)
    monkeypatch.setattr(pictures, "by_batch", lambda batch, f, *arrays: f(*arrays))
    got = step.make(lab)
    assert len(got.values) == 14 and got.extra["triggered_labels"].max() == 6
    assert (
        got.values.mean() == pytest.approx(9 / 14)
        and got.extra["to_target"].mean() == pytest.approx(5 / 14)
        and got.extra["clean"].all()
    )
    assert (
        got.extra["xy"].shape == (16, 2)
        and got.extra["xy_triggered"].shape == (14, 2)
        and got.extra["names"].tolist() == names
    )
    storable(got)


def test_embedding_of_a_real_tower_is_the_same_again(lab, clip):
    a, b, again = (embedding(clip, 16, 4, batch).make(lab) for batch in (16, 5, 16))
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.extra["xy"], again.extra["xy"])


# ---- sheets -------------------------------------------------------------------------------------------------------------------


def test_perturbed_pictures_and_how_far_they_are(lab):
    data, rows = Pictures(SPEC, "test", 20, 42), Perturbations().all()
    got, x = Perturbed(data, Perturbations(), 2, 0, 16).make(lab), Seen(data).clean(lab)[0]
    assert (
        got.unit == "dB"
        and got.extra["names"].tolist() == list(rows)
        and got.extra["pictures"].shape == (2, 5, 3, 32, 32)
    )
    assert np.array_equal(got.extra["pictures"][:, 0], (x[:2] * 255).round().byte().numpy())
    for k, perturb in enumerate(rows.values()):
        other = perturb(x, SampleRng(0, data.rows(lab), pictures.STREAM))
        assert got.values[k] == pytest.approx(psnr(other, x).mean(), abs=1e-3)
        assert np.abs(got.extra["pictures"][:, k + 1] / 255 - other[:2].numpy()).max() <= 0.5 / 255 + 1e-6
    storable(got)


def test_the_sheet_has_every_attack(lab):
    data, stamps = Pictures(SPEC, "test", 4, 42), (BADNET, PATCH)
    got = Triggers(data, ("badnet", "badclip"), stamps, 2).make(lab)
    x, indices, triggers = Seen(data).clean(lab)[0], data.rows(lab), [stamp.open(lab) for stamp in stamps]
    assert got.extra["names"].tolist() == ["badnet", "badclip"]
    assert np.array_equal(got.extra["sheet"], sheet(x[:2], triggers, indices[:2]))
    for value, trigger in zip(got.values, triggers, strict=True):
        assert value == pytest.approx(psnr(trigger(x, indices), x).mean(), abs=1e-3)
    storable(got)


# ---- supervised ---------------------------------------------------------------------------------------------------------------


def supervised(seed=0) -> Supervised:
    return Supervised("scenes-vit-xs8", Pictures(SPEC, "train", 64, 42), Tuning(epochs=12, batch=32, lr=0.02), seed)


def test_the_supervised_tower_is_trained_kept_and_opened(lab):
    state, step = torch.random.get_rng_state(), supervised()
    first, again, other = (s.make(lab) for s in (step, step, supervised(1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[k], again[k]) for k in first) and not torch.equal(
        first["head.weight"], other["head.weight"]
    )
    with pytest.raises(UserError, match="run the training"):
        step.open(lab)
    lab.keep(step, first)
    tower, encode = step.open(lab)
    x, y = step.data.read(lab, step.data.rows(lab))
    start = step._fresh(lab)
    with torch.no_grad():
        assert F.cross_entropy(tower(x), y) < F.cross_entropy(start(x), y) - 0.3
        assert not any(p.requires_grad for p in tower.parameters())
        assert_within_rounding(tower.head(encode(x).output), tower(x), terms=DEEP)
    data = Pictures(SPEC, "test", 20, 42)
    got = Resistivity(step, data, Change("trigger", Perturbations(), 0, PATCH)).make(lab)
    z, labels = Seen(data).clean(lab)
    moved = resistivity(partial(features, tower), z, PATCH.open(lab)(z, data.rows(lab)))
    assert_within_rounding(torch.from_numpy(got.values), moved.output, terms=DEEP)
    assert np.array_equal(got.extra["accuracy"], (tower(z).argmax(1) == labels).double().numpy())
    storable(got)


def test_a_wrong_transformer_is_said(lab):
    smoke = PRESETS["smoke"]
    with pytest.raises(UserError, match="not understood"):
        check(replace(smoke, models=replace(smoke.models, supervised="resnet")))
    for spec, words in (("torchvision:resnet18:random.pt", "does not exist"), ("torchvision:no_such", "torchvision")):
        with pytest.raises(UserError, match=words):
            Torchvision.of(spec).open(lab)


@pytest.fixture
def tiny_torchvision(tmp_path):
    """A vision transformer that torchvision knows by name, and a file of its weights."""
    from torchvision.models import VisionTransformer
    from torchvision.models._api import BUILTIN_MODELS, register_model

    def build(*, weights=None, progress=True, num_classes=1000):
        return VisionTransformer(
            image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=num_classes
        )

    build.__module__ = "torchvision.models.tiny"  # by which torchvision knows what classifies pictures
    register_model("rvpt_tiny_vit")(build)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = build().eval()
        torch.nn.init.normal_(
            net.heads.head.weight, std=0.3
        )  # logits of about 1, so that rounding stays below the tolerance
    torch.save(net.state_dict(), tmp_path / "tiny.pt")
    yield net, f"torchvision:rvpt_tiny_vit:{tmp_path / 'tiny.pt'}"
    del BUILTIN_MODELS["rvpt_tiny_vit"]


def test_a_transformer_of_torchvision(lab, tiny_torchvision):
    net, spec = tiny_torchvision
    encoder, x = Torchvision.of(spec), torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    z = (F.interpolate(x, size=(16, 16), mode="bicubic") - mean) / std
    classify, encode = encoder.open(lab)
    with torch.no_grad():
        assert_within_rounding(classify(x), net(z), terms=DEEP)
        assert_within_rounding(net.heads(encode(x).output), net(z), terms=DEEP)
    assert encode(x).layers.shape == (3, 2, 8)
    got = Resistivity(encoder, Pictures(SPEC, "test", 20, 42), Change("flip", Perturbations(), 0)).make(lab)
    assert "accuracy" not in got.extra and got.extra["layers"].shape == (20, 2)
