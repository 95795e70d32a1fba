"""What a process works with is opened once; the chosen pictures of a smaller number are the beginning of those of a larger one."""

import contextlib
from dataclasses import dataclass, field

import pytest
import torch

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment import bench as module
from shared.experiment.bench import BaseBench, PairBench, PictureBench
from shared.experiment.scale import Options
from shared.models.clip import save_tensors


@dataclass(frozen=True)
class Data:
    source: Source = field(default_factory=Source)
    n: int = 6
    seed: int = 3
    pairs: str = "scenes"


@dataclass(frozen=True)
class Config(Options):
    data: Data = field(default_factory=Data)


class Downloading(BaseBench):
    def downloads(self):
        return [("scenes:shape", "train"), ("scenes:colour", "test")]


def bench(kind=PictureBench, **options):
    return kind(Config(**options), "smoke", torch.device("cpu"))


@pytest.fixture
def opened(monkeypatch):
    """What is opened, in turn."""
    found, whole = [], module.open_set
    monkeypatch.setattr(module, "open_set", lambda spec, split, source: found.append((spec, split)) or whole(spec, split, source))
    return found


def test_each_thing_is_made_once_under_its_name():
    made = []
    b = bench()
    assert [b.once(name, lambda: made.append(0) or len(made)) for name in ("a", ("a", 1), "a", ("a", 1))] == [1, 2, 1, 2]
    assert bench().once("a", lambda: None) is None  # another bench has things of its own


def test_nothing_that_was_made_is_made_again_because_it_is_empty():
    made = []
    b = bench()
    for _ in range(2):
        b.once("nothing", lambda: made.append(0))
    assert made == [0]


def test_a_set_is_opened_once_for_each_split(opened):
    b = bench()
    assert b.labelled("scenes:shape") is b.labelled("scenes:shape", "test")
    assert b.labelled("scenes:shape", "train") is not b.labelled("scenes:shape")
    assert opened == [("scenes:shape", "test"), ("scenes:shape", "train")]
    with pytest.raises(UserError, match="nowhere"):
        b.labelled("scenes:nowhere")


def test_chosen_pictures(opened):
    b = bench()
    world, small = b.world("scenes:shape"), b.world("scenes:shape", n=2)
    assert len(world.x) == len(world.y) == len(world.indices) == 6 and world.x.min() >= 0 and world.x.max() <= 1
    assert b.world("scenes:shape", n=6) is world and opened == [("scenes:shape", "test")]
    assert small.indices == world.indices[:2] and torch.equal(small.x, world.x[:2])
    x, y = b.labelled("scenes:shape").__getitems__(world.indices)
    assert torch.equal(world.x, x) and torch.equal(world.y, y)
    part = world.part(2, 3)
    assert part.indices == world.indices[3:5] and torch.equal(part.x, x[3:5]) and torch.equal(part.y, y[3:5]) and part.spec == "scenes:shape"


def test_downloads_are_opened_by_the_main_process_first(opened):
    class Accelerator:
        @contextlib.contextmanager
        def main_process_first(self):
            opened.append("wait")
            yield
            opened.append("go")

    bench(Downloading).fetch(Accelerator())
    assert opened == []
    bench(Downloading, download=True).fetch(Accelerator())
    assert opened == ["wait", ("scenes:shape", "train"), ("scenes:colour", "test"), "go"]


@pytest.mark.parametrize("spoilt", ["missing", "other key", "damaged"])
def test_weights_that_are_not_those_of_the_run_are_refused(tmp_path, spoilt):
    path = tmp_path / "victim.safetensors"
    if spoilt != "missing":
        save_tensors({"w": torch.zeros(3)}, path, {"key": "k"})
        assert bench().finished(path, "k") == path
    if spoilt == "damaged":
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"the robust tower .*victim\.safetensors is missing or of another configuration: run the training"):
        bench().finished(path, "other" if spoilt == "other key" else "k", "robust tower")


def test_of_what_is_large_the_last_few_of_a_kind_are_kept():
    b, made = bench(), []

    def lately(*name):
        return b.lately(name, lambda: made.append(name) or name, 2)

    assert lately("clip", 1) == ("clip", 1) and lately("clip", 2) and lately("tower", 1) and lately("clip", 1)
    assert made == [("clip", 1), ("clip", 2), ("tower", 1)]
    lately("clip", 3), lately("clip", 1), lately("tower", 1)  # the second was asked for longest ago
    assert made[3:] == [("clip", 3)]
    lately("clip", 2)
    assert made[4:] == [("clip", 2)]


class Pairing(PairBench):
    main = "scenes:colour"


def test_pairs_are_those_of_their_seed_and_of_the_size_of_the_main_set():
    b = bench(Pairing)
    pairs = b.pairs(4, 7)
    assert b.pairs(4, 7) is pairs and pairs.__getitems__([0])[0].shape == (1, 3, 32, 32) == (1, 3, b.size, b.size)
    assert b.pairs(4, 8).__getitems__(range(4))[1] != pairs.__getitems__(range(4))[1]
    versions = {b.pairs_version(n, seed) for n, seed in ((4, 7), (4, 8), (5, 7))}
    assert len(versions) == 3 and b.pairs_version(4, 7) in versions


def test_a_class_that_a_set_does_not_have_cannot_be_planted():
    b = bench(Pairing)
    assert b.labelled(b.main).classes[b.label_of(b.main, "blue")] == "blue"
    with pytest.raises(UserError, match="the set scenes:colour has no class 'banana', which attackers are to plant: choose one of"):
        b.label_of(b.main, "banana")
