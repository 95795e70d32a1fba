"""The kinds behind the figures: on a small random CLIP, against the definitions written out; the supervised tower."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from papers.rvpt import pictures, runs, supervised
from papers.rvpt.cells import PERTURBATIONS, Cell
from papers.rvpt.config import Backbone, Config, Data, Models, Place, Sweeps
from papers.rvpt.method import DeepPrompts
from papers.rvpt.models import Bench, Model
from papers.rvpt.resistivity import Perturbations, attention_map, features, resistivity
from papers.rvpt.tuning import Tuning
from shared.attacks.triggers import at_test, make_trigger, sheet
from shared.data.base import subset
from shared.errors import UserError
from shared.metrics.perceptual import psnr
from shared.models.classifier import IMAGENET
from shared.models.clip import read_metadata
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP, for each of four blocks

TARGET = "striped red star"
PATCH = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(1))


class Rehearsal(Bench):
    """A bench whose models are one random CLIP, with random prompts where the method has prompts."""

    random_clip = None
    file = None

    def model(self, poison, defence=None):
        clip = self.random_clip
        prompts = defence is not None and defence.method in ("vpt", "rvpt")
        return Model(clip, DeepPrompts(clip.visual, 1, 3, std=1.0, seed=len(defence.method)) if prompts else clip.visual)

    def trigger(self, attack, backbone="first"):
        if attack in runs.OPTIMISED:
            return make_trigger(attack, pixels=PATCH)
        return super().trigger(attack, backbone)

    def made(self, run):
        return self.file


@pytest.fixture
def room(clip):
    """Measurers with any changes of the configuration."""
    def make(batch=16, models=None, **sweeps):
        small = {"resistivity_n": 20, "maps": 2, "points": 24, "supervised": Tuning(epochs=1, batch=16, lr=0.05), "supervised_n": 64, **sweeps}
        data = Data(main=Place("scenes:combinations", TARGET), n=40)
        first = Backbone("scenes-vit-xs8", "random")
        config = replace(Config(), data=data, models=models or Models(first=first), sweeps=replace(Sweeps(), **small), batch=batch)
        bench = Rehearsal(config, "smoke", torch.device("cpu"))
        bench.random_clip = clip
        return SimpleNamespace(bench=bench, config=config, held={})
    return make


def cell(kind, method="none", attack="badclip", **point):
    return Cell(kind, method, attack, "x", point=tuple(point.items()))


def storable(values):
    assert np.isfinite(values.values).all()
    assert all(a.dtype != object for a in values.extra.values())


# ---- resistivity --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "rvpt"])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_resistivity_is_that_of_the_first_test_pictures_in_any_batch(method, name, room):
    m, c = room(), cell("resistivity", method, "badnet", perturbation=name)
    world = m.bench.world("scenes:combinations", n=20)
    if name == "trigger":
        other = at_test(m.bench.trigger("badnet"), world.x, world.indices)
    else:
        other = Perturbations().all()[name](world.x, SampleRng(c.seed, world.indices, pictures.STREAM))
    victim = m.bench.classifier(c)
    expected = resistivity(partial(features, victim), world.x, other)
    got = pictures.resistivity(m, c)
    assert got.unit == "cosine" and got.values.shape == (20,) and got.extra["layers"].shape == (20, 3)
    assert_within_rounding(torch.from_numpy(got.values).float(), expected.output, terms=DEEP)
    assert_within_rounding(torch.from_numpy(got.extra["layers"]), expected.layers, terms=DEEP)
    storable(got)
    assert_within_rounding(torch.from_numpy(pictures.resistivity(room(batch=7), c).values).float(), torch.from_numpy(got.values), terms=DEEP)


def test_fewer_test_pictures_than_wanted_are_all_of_them(room):
    m = room(resistivity_n=1000)
    assert len(pictures.resistivity(m, cell("resistivity", perturbation="flip")).values) == 40
    assert (pictures.shown(m, cell("attention"), 1000, without_target=True).y != m.bench.label("main")).all()


# ---- attention ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "rvpt"])
def test_attention_under_the_patch(method, room):
    m, c = room(), cell("attention", method)
    got, label = pictures.attention(m, c), m.bench.label("main")
    world = m.bench.world("scenes:combinations", n=40)
    keep = [i for i in range(40) if world.y[i] != label][:20]
    x = world.x[keep]
    stamped = m.bench.trigger("badclip")(x, [world.indices[i] for i in keep])
    victim = m.bench.classifier(c)
    for name, z, got_share in (("clean", x, got.extra["clean"]), ("triggered", stamped, got.values)):
        maps = attention_map(victim, z)
        assert_within_rounding(torch.from_numpy(got.extra[f"{name}_maps"]), maps[:2], terms=DEEP)
        inner = maps[:, 1:3, 1:3].sum((1, 2))  # a patch of 5 pixels from 13 to 17 touches the four tokens of 8 in the middle
        assert_within_rounding(torch.from_numpy(got_share), inner / maps.sum((1, 2)), terms=DEEP)
        if name == "triggered":
            assert_within_rounding(torch.from_numpy(got.extra["of_all"]), inner, terms=DEEP)
        said = victim(z[:2]).argmax(1).tolist()
        assert got.extra[f"{name}_said"].tolist() == [m.bench.labelled("scenes:combinations").classes[k] for k in said]
        assert np.abs(got.extra[f"{name}_pictures"] / 255 - z[:2].numpy()).max() <= 0.5 / 255 + 1e-6
    assert (got.extra["area"] == 0.25).all() and TARGET not in got.extra["truth"] and len(got.extra["truth"]) == 2
    storable(got)
    assert_within_rounding(torch.from_numpy(pictures.attention(room(batch=3), c).values).float(), torch.from_numpy(got.values), terms=DEEP)


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


def test_pictures_of_figure_5_are_known_by_their_number_in_the_set(room):
    m = room(points=24)
    world, names = pictures._of_few_classes(m, cell("embedding"))
    data = m.bench.labelled("scenes:combinations")
    assert len(names) == pictures.CLASSES and names[-1] == TARGET and len(set(names)) == len(names)
    x, y = data.__getitems__(world.indices)
    assert torch.equal(x, world.x) and [data.classes[k] for k in y.tolist()] == [names[k] for k in world.y.tolist()]
    assert np.bincount(world.y.numpy()).tolist() == [3] * 8


def test_embedding_counts_neighbours_by_class(room, monkeypatch):
    m, c = room(points=16), cell("embedding")
    world, names = pictures._of_few_classes(m, c)
    label_of = {p.numpy().tobytes(): k for p, k in zip(world.x, world.y.tolist(), strict=True)}
    spread = torch.Generator().manual_seed(0)

    def seen(victim, x):  # a perfect encoder, but the trigger sends every third picture to the target
        rows = []
        for i, p in enumerate(x):
            k = label_of.get(p.numpy().tobytes(), 7 if i % 3 == 0 else None)
            k = k if k is not None else next(v for b, v in label_of.items() if abs(np.frombuffer(b, np.float32) - p.numpy().ravel()).sum() < 80)
            rows.append(F.one_hot(torch.tensor(k), 8) + 0.05 * torch.rand(8, generator=spread))
        return SimpleNamespace(layers=torch.zeros(len(x), 1, 1), output=torch.stack(rows))

    monkeypatch.setattr(pictures, "features", seen)
    monkeypatch.setattr(pictures, "by_batch", lambda m, f, *arrays: f(*arrays))
    got = pictures.embedding(m, c)
    assert len(got.values) == 14 and got.extra["triggered_labels"].max() == 6
    assert got.values.mean() == pytest.approx(9 / 14) and got.extra["to_target"].mean() == pytest.approx(5 / 14) and got.extra["clean"].all()
    assert got.extra["xy"].shape == (16, 2) and got.extra["xy_triggered"].shape == (14, 2) and got.extra["names"].tolist() == names
    storable(got)


def test_embedding_of_a_real_tower_is_the_same_again(room):
    c = cell("embedding", "rvpt")
    a, b = pictures.embedding(room(points=16), c), pictures.embedding(room(points=16, batch=5), c)
    np.testing.assert_array_equal(a.values, b.values)
    again = pictures.embedding(room(points=16), c)
    np.testing.assert_array_equal(a.extra["xy"], again.extra["xy"])


# ---- sheets -------------------------------------------------------------------------------------------------------------------


def test_perturbed_pictures_and_how_far_they_are(room):
    m = room()
    got = pictures.perturbed(m, cell("perturbed", "clean", "clean"))
    world = m.bench.world("scenes:combinations", n=20)
    rows = m.config.sweeps.perturbations.all()
    assert got.unit == "dB" and got.extra["names"].tolist() == list(rows) and got.extra["pictures"].shape == (2, 5, 3, 32, 32)
    assert np.array_equal(got.extra["pictures"][:, 0], (world.x[:2] * 255).round().byte().numpy())
    for k, perturb in enumerate(rows.values()):
        other = perturb(world.x, SampleRng(0, world.indices, pictures.STREAM))
        assert got.values[k] == pytest.approx(psnr(other, world.x).mean(), abs=1e-3)
        assert np.abs(got.extra["pictures"][:, k + 1] / 255 - other[:2].numpy()).max() <= 0.5 / 255 + 1e-6
    storable(got)


def test_the_sheet_has_every_attack(room):
    m = room(resistivity_n=4)
    got = pictures.triggers(m, cell("triggers", "clean", "clean"))
    attacks = m.config.attacked
    assert got.extra["names"].tolist() == list(attacks) and len(got.values) == len(attacks) == 9
    world = m.bench.world("scenes:combinations", n=4)
    made = [m.bench.trigger(a) for a in attacks]
    assert np.array_equal(got.extra["sheet"], sheet(world.x[:2], made, world.indices[:2]))
    for value, trigger in zip(got.values, made, strict=True):
        assert value == pytest.approx(psnr(trigger(world.x, world.indices), world.x).mean(), abs=1e-3)
    storable(got)


def test_every_kind_says_what_it_reads():
    fields = {f for names in pictures.READS.values() for f in names}
    assert fields <= set(Sweeps.__dataclass_fields__) and set(pictures.READS) == {"resistivity", "attention", "embedding", "perturbed", "triggers"}


# ---- supervised ---------------------------------------------------------------------------------------------------------------


def test_supervised_tower_is_trained_saved_and_opened(room, tmp_path):
    m = room(supervised=Tuning(epochs=12, batch=32, lr=0.02))
    state = torch.random.get_rng_state()
    losses = [supervised.train_supervised(m.bench, runs.Supervised(seed), tmp_path / name, "k") for seed, name in ((0, "a"), (0, "b"), (1, "c"))]
    assert torch.equal(torch.random.get_rng_state(), state)
    files = [(tmp_path / name).read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    m.bench.file = tmp_path / "a.safetensors"
    assert read_metadata(m.bench.file)["key"] == "k"
    tower = supervised.load_supervised(m.bench, m.bench.file)
    data = m.bench.labelled("scenes:combinations", "train")
    x, y = data.__getitems__(subset(data, 64, m.config.data.seed))
    start = supervised.fresh_tower(m.bench, 0)
    with torch.no_grad():
        assert F.cross_entropy(tower(x), y) < F.cross_entropy(start(x), y) - 0.3 and losses[0] < 4.2
        assert not any(p.requires_grad for p in tower.parameters())
        expected = features(tower, x)
        assert_within_rounding(tower.head(expected.output), tower(x), terms=DEEP)
    got = supervised.supervised_features(m.bench)(x)
    assert_within_rounding(got.output, expected.output, terms=DEEP)
    assert_within_rounding(got.layers, expected.layers, terms=DEEP)


def test_resistivity_of_the_supervised_tower(room, tmp_path):
    m, c = room(), cell("resistivity", "supervised", perturbation="trigger")
    m.bench.file = tmp_path / "s.safetensors"
    supervised.train_supervised(m.bench, runs.Supervised(0), m.bench.file, "k")
    got = pictures.resistivity(m, c)
    world, tower = m.bench.world("scenes:combinations", n=20), supervised.load_supervised(m.bench, m.bench.file)
    other = m.bench.trigger("badclip")(world.x, world.indices)
    assert_within_rounding(torch.from_numpy(got.values), resistivity(partial(features, tower), world.x, other).output, terms=DEEP)
    assert np.array_equal(got.extra["accuracy"], (tower(world.x).argmax(1) == world.y).double().numpy())
    storable(got)


def test_a_missing_or_wrong_tower_is_said(room, tmp_path):
    from shared.models.clip import save_tensors

    m = room()
    m.bench.file = tmp_path / "none.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        supervised.supervised_features(m.bench)
    save_tensors({"x": torch.zeros(2)}, m.bench.file)
    with pytest.raises(UserError, match="supervised tower of scenes-vit-xs8"):
        supervised.supervised_features(m.bench)
    for spec, words in (("none", "not understood"), ("torchvision:resnet18:random.pt", "does not exist"), ("torchvision:no_such", "torchvision")):
        with pytest.raises(UserError, match=words):
            supervised.supervised_features(room(models=Models(supervised=spec)).bench)


@pytest.fixture
def tiny_torchvision(tmp_path):
    """A vision transformer that torchvision knows by name, and a file of its weights."""
    from torchvision.models import VisionTransformer
    from torchvision.models._api import BUILTIN_MODELS, register_model

    @register_model("rvpt_tiny_vit")
    def build(*, weights=None, progress=True, num_classes=1000):
        return VisionTransformer(image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=num_classes)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = build().eval()
        torch.nn.init.normal_(net.heads.head.weight, std=0.3)  # logits of about 1, so that rounding stays below the tolerance
    torch.save(net.state_dict(), tmp_path / "tiny.pt")
    yield net, f"torchvision:rvpt_tiny_vit:{tmp_path / 'tiny.pt'}"
    del BUILTIN_MODELS["rvpt_tiny_vit"]


def test_a_transformer_of_torchvision(room, tiny_torchvision):
    net, spec = tiny_torchvision
    m, x = room(models=Models(supervised=spec)), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    z = (F.interpolate(x, size=(16, 16), mode="bicubic") - mean) / std
    classify, encode = supervised.supervised_model(m.bench)
    with torch.no_grad():
        assert_within_rounding(classify(x), net(z), terms=DEEP)
        assert_within_rounding(net.heads(encode(x).output), net(z), terms=DEEP)
    assert encode(x).layers.shape == (3, 2, 8)
    got = pictures.resistivity(m, cell("resistivity", "supervised", perturbation="flip"))
    assert "accuracy" not in got.extra and got.extra["layers"].shape == (20, 2)
