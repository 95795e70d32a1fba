"""Checkpoints on disk: both formats, equal bytes for equal tensors, and one sentence for everything that can be wrong."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from shared.files import sha256_file
from shared.models.clip import create_clip, read_metadata, read_weights, save_clip, save_tensors
from shared.models.sources import locate

NAME = "scenes-vit-s8"


@pytest.fixture(scope="module")
def stored(small_clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "model.safetensors"
    save_clip(small_clip, path)
    return path


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and "Traceback" not in text


def logits(clip):
    x, tokens = torch.linspace(0, 1, 3 * 3 * 32 * 32).view(3, 3, 32, 32), clip.tokenizer(["a red circle", "a star"])
    with torch.no_grad():
        return clip.get_logits(x, tokens)[0]


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_both_formats_give_the_same_logits(small_clip, stored, tmp_path, wrap):
    torch.save(wrap(small_clip.state_dict()), tmp_path / "model.pt")
    expected = logits(small_clip)
    for path in (stored, tmp_path / "model.pt", str(stored)):
        clip = create_clip(NAME, path)
        assert torch.equal(logits(clip), expected) and not clip.training
        assert clip.tokenizer.vocabulary == small_clip.tokenizer.vocabulary


def test_a_local_checkpoint_of_an_open_clip_model(tmp_path, monkeypatch):
    import open_clip

    def build(name, pretrained=None, **_):
        assert pretrained is None  # open_clip must not read the file itself
        return open_clip.CLIP(
            8,
            {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
            {"context_length": 77, "width": 16, "heads": 2, "layers": 1},
        )

    monkeypatch.setattr(open_clip, "create_model", build)
    torch.manual_seed(1)
    model = create_clip("ViT-B-32")
    save_clip(model, tmp_path / "m.safetensors")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    torch.save(model.state_dict(), tmp_path / "m.ckpt")
    assert read_metadata(tmp_path / "m.safetensors") == {}
    torch.manual_seed(2)
    for name in ("m.safetensors", "m.pt", "m.ckpt"):
        assert torch.equal(create_clip("ViT-B-32", tmp_path / name).visual.proj, model.visual.proj)


def test_the_vocabulary_travels_with_the_weights(tmp_path):
    clip = create_clip(NAME, vocabulary=("a", "photo", "of", "cat"))
    save_clip(clip, tmp_path / "cats.safetensors")
    loaded = create_clip(NAME, tmp_path / "cats.safetensors")
    assert loaded.tokenizer.vocabulary == ("a", "photo", "of", "cat")
    assert (
        torch.equal(loaded.token_embedding.weight, clip.token_embedding.weight)
        and loaded.token_embedding.weight.shape[0] == 7
    )


def test_a_round_trip_gives_the_same_bytes(stored, tmp_path):
    save_clip(create_clip(NAME, stored), tmp_path / "again.safetensors")
    assert sha256_file(tmp_path / "again.safetensors") == sha256_file(stored)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors"]


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
        torch.empty(3, device="meta"),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
)
def test_tensors_that_are_not_plain_are_one_sentence(odd, tmp_path):
    torch.save({"good": torch.eye(2), "odd": odd}, tmp_path / "m.pt")
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "m.pt")
    assert one_sentence(error) and "'odd', which is sparse, quantised, nested or without numbers" in str(error.value)


def test_a_folder_in_place_of_weights_is_called_one(tmp_path):
    for ask in (
        read_weights,
        read_metadata,
        lambda path: create_clip(NAME, path),
        lambda path: locate(str(path), "--w"),
    ):
        with pytest.raises(UserError, match=rf"{tmp_path} is a folder: give .*the path of a \.safetensors or"):
            ask(tmp_path)
    with pytest.raises(UserError, match="/dev/null is no file: give --w the path"):
        locate("/dev/null", "--w")


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float16), "ü": torch.zeros(0)}
    metadata = {name: f'value {k} é "quoted"' for k, name in enumerate("zyxwvu")}
    hashes = set()
    for k in range(6):
        save_tensors(dict(reversed(tensors.items())) if k % 2 else tensors, tmp_path / f"{k}.safetensors", metadata)
        hashes.add(sha256_file(tmp_path / f"{k}.safetensors"))
    assert len(hashes) == 1
    assert read_metadata(tmp_path / "0.safetensors") == metadata
    loaded = load_file(tmp_path / "0.safetensors")
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in tensors.items())
    save_tensors(tensors, tmp_path / "other.safetensors", {**metadata, "z": "changed"})
    assert sha256_file(tmp_path / "other.safetensors") not in hashes


def test_saving_takes_views_and_trained_tensors(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    save_tensors({"w": weight.T}, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["w"], weight.detach().T)


# ---- what can be wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_that_are_no_numbers(small_clip, tmp_path, suffix):
    path, state = tmp_path / f"nan.{suffix}", {k: v.clone() for k, v in small_clip.state_dict().items()}
    state["visual.proj"][0, 0] = float("nan")
    save_tensors(state, path) if suffix == "safetensors" else torch.save(state, path)
    with pytest.raises(UserError, match=r"holds a NaN or an infinite number in 'visual\.proj'"):
        create_clip(NAME, path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(stored, small_clip, tmp_path, suffix, part):
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pt":
        torch.save(small_clip.state_dict(), path)
    content = (stored if suffix == "safetensors" else path).read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="cannot be read") as error:
        create_clip(NAME, path)
    assert one_sentence(error) and str(path) in str(error.value)
    with pytest.raises(UserError):
        read_weights(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damaged_files(tmp_path, suffix):
    for k, content in enumerate((b"\x00" * 64, b"not a checkpoint", b"\xff" * 4096, json.dumps({"a": 1}).encode())):
        path = tmp_path / f"{k}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read") as error:
            create_clip(NAME, path)
        assert one_sentence(error)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').close()",)


@pytest.mark.parametrize("suffix", ["pt", "bin", "pth", "safetensors"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(small_clip, tmp_path, suffix, writer):
    marker, path = tmp_path / "ran", tmp_path / f"bomb.{suffix}"
    content = {**small_clip.state_dict(), "bomb": Bomb(marker)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"bomb": Bomb(marker)}, protocol=2))
    for read in (read_weights, lambda p: create_clip(NAME, p), lambda p: create_clip("ViT-B-32", p)):
        with pytest.raises(UserError, match="cannot be read") as error:
            read(path)
        assert one_sentence(error)
    assert not marker.exists()
    if writer == "torch" and suffix == "pt":  # and the file would have
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"a": 1}, {"state_dict": 5}, {}, {3: torch.zeros(2)}])
def test_files_without_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="holds no named tensors") as error:
        create_clip(NAME, tmp_path / "odd.pt")
    assert one_sentence(error)


def change(state, how):
    state = dict(state)
    if how == "shape":
        state["visual.proj"] = state["visual.proj"][:, :-1].contiguous()
    elif how == "missing":
        del state["visual.proj"]
    elif how == "extra":
        state["visual.more"] = torch.zeros(1)
    return state


@pytest.mark.parametrize("how, first", [("shape", "visual.proj"), ("missing", "visual.proj"), ("extra", "visual.more")])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_of_another_model(small_clip, tmp_path, how, first, suffix):
    path, state = tmp_path / f"other.{suffix}", change(small_clip.state_dict(), how)
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    with pytest.raises(UserError, match=f"does not fit this model: 1 tensors differ, the first is '{first}'") as error:
        create_clip(NAME, path)
    assert one_sentence(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite(small_clip, tmp_path, value, suffix, kind):
    path, state = tmp_path / f"bad.{suffix}", {k: v.to(kind) for k, v in small_clip.state_dict().items()}
    state["visual.proj"] = state["visual.proj"].clone()
    state["visual.proj"][1, 2] = value
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    for read in (read_weights, lambda p: create_clip(NAME, p)):
        with pytest.raises(UserError, match="holds a NaN or an infinite number in") as error:
            read(path)
        assert one_sentence(error) and str(path) in str(error.value)


def test_the_largest_finite_numbers_are_finite(tmp_path):
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
    tensors = {str(kind): torch.full((3,), torch.finfo(kind).max, dtype=torch.float64).to(kind) for kind in kinds}
    tensors |= {"count": torch.tensor(2**62), "mask": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == tensors.keys()


def test_integers_are_no_weights(small_clip, tmp_path):
    state = {k: (v * 100).to(torch.int8) if k == "visual.proj" else v for k, v in small_clip.state_dict().items()}
    save_file(state, tmp_path / "q.safetensors")
    with pytest.raises(UserError, match=r"the first is 'visual.proj', which is of another shape or kind"):
        create_clip(NAME, tmp_path / "q.safetensors")


@pytest.mark.parametrize("vocabulary", ["{", '"a cat"', "[1, 2]", '{"a": 1}'])
def test_a_damaged_vocabulary(small_clip, tmp_path, vocabulary):
    save_tensors(small_clip.state_dict(), tmp_path / "v.safetensors", {"vocabulary": vocabulary})
    with pytest.raises(UserError, match="vocabulary that is not a list of words"):
        create_clip(NAME, tmp_path / "v.safetensors")


@pytest.mark.parametrize("name", ["absent.safetensors", "absent.pt", "folder.pt", "folder.safetensors"])
def test_missing_files(tmp_path, name):
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    for model in (NAME, "ViT-B-32"):
        with pytest.raises(UserError, match=r"does not exist|is a folder") as error:
            create_clip(model, tmp_path / name)
        assert one_sentence(error)
