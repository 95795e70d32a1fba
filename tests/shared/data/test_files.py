"""Decoding, sizes, broken files, and pictures kept in memory."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shared.data.files
from shared.data import resize
from shared.data.base import loader, subset
from shared.data.files import CLIP_INPUT, NATIVE, FileImages, ImageSize, Squashed, UnreadableImage, read_picture
from shared.data.files import decode as decode_content
from shared.errors import UserError
from tests.photo import jpeg


def files(tmp_path, picture, n=6, size=(12, 9), **options):
    paths = [picture(tmp_path / f"{i}.png", i, size) for i in range(n)]
    return FileImages("pictures", tmp_path, paths, [i % 2 for i in range(n)], ("a", "b"), ("an a", "a b"), **options)


def decode(path, size=NATIVE):
    return decode_content(read_picture(path), path, size)


def break_file(path, how):
    path = Path(path)
    if how == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(
            {"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"this is not a picture"}[how]
        )


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 64), (257, 511), (256, 256), (400, 256)])
@pytest.mark.parametrize("size", [CLIP_INPUT, ImageSize(224, 224, "bicubic"), ImageSize(33, 32)])
def test_sizes_are_those_of_torchvision(tmp_path, picture, shape, size):
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    path = picture(tmp_path / "a.png", 1, shape)
    mode = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}[size.interpolation]
    chain = transforms.Compose(
        [transforms.Resize(size.short, mode), transforms.CenterCrop(size.crop), transforms.ToTensor()]
    )
    expected = chain(Image.open(path))
    assert torch.equal(decode(path, size).float().div_(255), expected)


JPEGS = [(500, 375), (300, 400), (224, 224), (257, 256), (90, 70)]


@pytest.mark.parametrize("shape", JPEGS)
@pytest.mark.parametrize("size", [CLIP_INPUT, ImageSize(224, 224, "bicubic"), Squashed(96, 96, "bicubic"), NATIVE])
def test_the_fast_way_is_pillows_but_for_single_roundings(shape, size):
    slow, fast = (decode_content(jpeg(*shape), "a", s).int() for s in (size, size.fast()))
    apart = (slow - fast).abs()
    # a weight is off by 2^-16 at most; of eight (the cubic's), and in two passes, that turns a rounding this often at most
    assert slow.shape == fast.shape and apart.float().mean() < 2 * 8 * 255 / 2**16
    # weights of the cubic have a size of up to 1.25 together, so that a level in the first pass may be two in the second
    assert apart.max() <= (1 if size.filter == "bilinear" else 2)


def weights(size: int, new: int, interpolation: str) -> torch.Tensor:
    """(new, size) float64, multiples of 2^-p: p is the largest for which the largest weight has 15 bits."""
    scale, reach = size / new, {"bilinear": 1, "bicubic": 2}[interpolation]
    f, centre = max(scale, 1), (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * scale
    at = torch.arange(size)
    begin, end = ((centre + side * reach * f + 0.5).long().clamp(0, size) for side in (-1, 1))
    d = ((at + 0.5 - centre) / f).abs()
    outer = (2 - d) ** 2 * (1 - d) / 2
    k = (1 - d).clamp(min=0) if interpolation == "bilinear" else torch.where(d < 1, (1.5 * d - 2.5) * d * d + 1, outer)
    k = k.where((begin <= at) & (at < end), 0)
    k = k / k.sum(dim=1, keepdim=True)
    p = next(p for p in range(23) if p == 22 or int(0.5 + k.max().item() * 2 ** (p + 1)) >= 2**15)
    return (k * 2**p).abs().add(0.5).floor() * k.sign() / 2**p


def in_whole_numbers(x: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """The module's formula in float64, where every sum is exact."""
    x = x.double()
    for axis, new in ((2, size[1]), (1, size[0])):
        if x.shape[axis] != new:
            sums = torch.tensordot(x, weights(x.shape[axis], new, interpolation), ([axis], [1])).movedim(-1, axis)
            x = sums.add(0.5).floor().clamp(0, 255)
    return x.byte()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torch_resizes_bytes_in_whole_numbers(interpolation, monkeypatch):
    """So they are the same on every CPU; where they are not, that is refused."""
    for size in ((37, 100), (70, 31), (61, 40), (24, 83), (200, 300)):
        found = resize._resized(resize.sample(), size, interpolation)
        assert torch.equal(found, in_whole_numbers(resize.sample(), size, interpolation)), size
    resize._demand_whole_numbers.cache_clear()
    content, size = jpeg(90, 70), ImageSize(32, 32, interpolation).fast()
    assert decode_content(content, "a", size).shape == (3, 32, 32)
    resize._demand_whole_numbers.cache_clear()
    monkeypatch.setattr(resize, "_resized", lambda x, size, _: torch.zeros(3, *size, dtype=torch.uint8))
    with pytest.raises(UserError, match="resizes pictures to other bytes"):
        decode_content(content, "a", size)


@pytest.mark.parametrize("how", [("L",), ("CMYK",), ("RGB", "PNG"), ("L", "PNG")])
def test_what_is_no_colour_jpeg_is_read_as_before(how):
    content = jpeg(90, 70, *how)
    assert torch.equal(*(decode_content(content, "a", s) for s in (ImageSize(32, 32), ImageSize(32, 32).fast())))


def test_the_fast_way_refuses_what_the_other_does():
    content = jpeg(300, 200)
    for broken in (content[: len(content) // 2], content[:300]):
        with pytest.raises(UnreadableImage, match="corrupt or truncated"):
            decode_content(broken, "a", ImageSize(32, 32).fast())
    with pytest.raises(UserError, match="more than"):
        decode_content(jpeg(4000, 1), "a", ImageSize(400, 32).fast())


def test_the_fast_way_has_another_version(tmp_path, picture):
    data = files(tmp_path, picture, size=(40, 30))
    data.size, other = ImageSize(8, 8), files(tmp_path, picture, size=(40, 30))
    other.size = data.size.fast()
    assert "fast" not in repr(data.size) and data.version != other.version


def test_sizes_in_words():
    assert ImageSize.parse("native") == NATIVE
    assert ImageSize.parse("32") == ImageSize(32, 32)
    assert ImageSize.parse("256:224") == CLIP_INPUT
    assert ImageSize.parse("256:224:bicubic") == ImageSize(256, 224, "bicubic")
    for bad in ("", "big", "256:224:bicubic:x", "-3", "224:256", "0", "32:32:lanczos"):
        with pytest.raises(UserError):
            ImageSize.parse(bad)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_kinds_of_picture_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 4), (200, 100, 0)).convert(mode).save(path)
    assert decode(path).shape == (3, 4, 5) and decode(path).dtype == torch.uint8


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "ppm"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "garbage"])
def test_a_broken_picture_is_named(tmp_path, picture, suffix, how):
    path = picture(tmp_path / f"a.{suffix}", 0, (40, 40))
    break_file(path, how)
    with pytest.raises(UnreadableImage, match="skip-corrupt") as error:
        decode(path)
    assert str(path) in str(error.value) and ("missing" in str(error.value)) == (how == "missing")


def test_what_the_system_refuses_is_not_called_corrupt(tmp_path, picture, monkeypatch):
    data = files(tmp_path, picture, skip_corrupt=True)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shared.data.files, "open", refuse, raising=False)
    with pytest.raises(UserError, match="cannot be opened: Permission denied") as error:
        data.usable([0])
    assert not isinstance(error.value, UnreadableImage) and data.skipped == ()


@pytest.mark.parametrize("in_memory", [False, True])
def test_pixels_labels_and_batches(tmp_path, picture, in_memory):
    data = files(tmp_path, picture, in_memory=in_memory)
    x, y = data.__getitems__([3, 0])
    expected = (
        np.stack([np.asarray(Image.open(tmp_path / f"{i}.png")) for i in (3, 0)])
        .transpose(0, 3, 1, 2)
        .astype(np.float32)
        / 255
    )
    assert np.array_equal(x.numpy(), expected) and y.tolist() == [1, 0]
    x0, y0 = data[3]
    assert torch.equal(x0, x[0]) and y0 == 1 and isinstance(y0, int)
    x0.zero_()
    assert torch.equal(data[3][0], x[0])  # what is kept in memory is not what is handed out


def test_in_memory_reads_each_file_once_and_is_not_sent_to_workers(tmp_path, picture):
    data = files(tmp_path, picture, in_memory=True)
    first = data.__getitems__([0, 1])[0]
    os.remove(data.paths[0])
    assert torch.equal(data.__getitems__([0, 1])[0], first)
    with pytest.raises(UnreadableImage):
        pickle.loads(pickle.dumps(data))[0]
    picture(tmp_path / "5.png", 0, (13, 9))
    with pytest.raises(UserError, match="13"):
        data[5]


def test_in_memory_refuses_more_than_the_machine_has(tmp_path, picture, monkeypatch):
    data = files(tmp_path, picture, in_memory=True)
    monkeypatch.setattr(os, "sysconf", lambda name: 30)
    with pytest.raises(UserError, match="GiB"):
        data[0]


def test_by_default_a_broken_picture_stops_everything(tmp_path, picture):
    data = files(tmp_path, picture)
    break_file(data.paths[2], "truncated")
    assert subset(data, None, 0) == list(range(6)) and data.skipped == ()
    for workers in (0, 1):
        with pytest.raises(UserError) as error:
            list(loader(data, [[0, 1], [2, 3]], workers))
        assert str(error.value).startswith(f"the picture {data.paths[2]} is corrupt") and "\n" not in str(error.value)


@pytest.mark.parametrize("in_memory", [False, True])
def test_skip_corrupt_counts_and_says_so(tmp_path, picture, capsys, in_memory):
    data = files(tmp_path, picture, skip_corrupt=True, in_memory=in_memory)
    break_file(data.paths[2], "truncated")
    break_file(data.paths[5], "missing")
    chosen = subset(data, None, 0)
    assert chosen == [0, 1, 3, 4] and data.skipped == (data.paths[2], data.paths[5])
    said = capsys.readouterr().err
    assert said == "pictures: 2 of 6 chosen pictures cannot be read and are left out: 2.png, 5.png\n"
    assert data.usable(range(6)) == chosen and capsys.readouterr().err == ""  # said once
    assert len(next(iter(loader(data, [chosen])))[1]) == 4
    assert torch.equal(data[2][0], data[4][0]) and data[2][1] == 0  # where nobody asked: the next one of the class
    assert torch.equal(data[5][0], data[1][0]) and data.labels[5] == data.labels[1]
    with pytest.raises(UnreadableImage):
        data.pixels(2)  # the index still names the same file


def test_skip_corrupt_looks_only_at_what_was_chosen(tmp_path, picture, capsys):
    data = files(tmp_path, picture, skip_corrupt=True)
    break_file(data.paths[2], "garbage")
    assert data.usable([0, 1]) == [0, 1] and data.skipped == () and capsys.readouterr().err == ""


def test_nothing_readable_is_an_error(tmp_path, picture):
    data = files(tmp_path, picture, n=2, skip_corrupt=True)
    for path in data.paths:
        break_file(path, "empty")
    with pytest.raises(UserError, match="none of the 2"):
        subset(data, None, 0)


def test_version_follows_names_sizes_labels_prompts_and_image_size(tmp_path, picture):
    def make(**changes):
        data = files(tmp_path, picture, **{k: v for k, v in changes.items() if k == "size_"})
        for key, value in changes.items():
            setattr(data, key, value)
        return data.version

    base = make()
    assert make() == base
    others = [make(labels=np.array([1, 1, 0, 1, 0, 1])), make(prompts=("an a", "the b")), make(size=CLIP_INPUT)]
    data = files(tmp_path, picture)
    break_file(data.paths[0], "truncated")
    others.append(data.version)
    break_file(data.paths[0], "missing")
    data = FileImages("pictures", tmp_path, data.paths, data.labels, data.classes, data.prompts)
    others.append(data.version)
    assert len({base, *others}) == 6


def test_version_does_not_depend_on_where_the_folder_is(tmp_path, picture):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert files(tmp_path / "a", picture).version == files(tmp_path / "b", picture).version


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_goes_on_with_stand_ins_of_the_class(tmp_path, picture, workers):
    """Whatever was read before, in whichever order and process, an example is the same."""
    data = files(tmp_path, picture, skip_corrupt=True)
    break_file(data.paths[2], "truncated")
    break_file(data.paths[4], "garbage")
    for batches in ([[0, 2], [4, 5]], [[4, 2], [0, 0]]):
        for indices, (x, y) in zip(batches, loader(data, batches, workers), strict=True):
            assert y.tolist() == [i % 2 for i in indices]
            assert torch.equal(x, torch.stack([data.pixels(0 if i in (2, 4) else i).float() / 255 for i in indices]))
    break_file(data.paths[0], "empty")
    fresh = FileImages("pictures", tmp_path, data.paths, data.labels, data.classes, data.prompts, skip_corrupt=True)
    with pytest.raises(UserError, match="no picture of the class 'a' below"):
        fresh[2]
    assert fresh.skipped == tuple(data.paths[i] for i in (0, 2, 4))
    assert len(subset(View3(fresh), None, 0)) == 3


class View3(torch.utils.data.Dataset):
    """Nothing but what `subset` needs."""

    def __init__(self, data):
        self.name, self.labels, self.num_classes, self.usable = data.name, data.labels, data.num_classes, data.usable


def ramp(dtype, top):
    return np.linspace(0, top, 256).reshape(16, 16).astype(dtype)


def test_sixteen_bit_grey_is_scaled_and_what_has_no_range_is_refused(tmp_path):
    grey = torch.arange(256).view(1, 16, 16).expand(3, 16, 16).byte()
    Image.fromarray(ramp(np.uint16, 65535)).save(tmp_path / "a.png")
    Image.fromarray(ramp(np.uint16, 65535)).save(tmp_path / "a.tif")
    (tmp_path / "a.ppm").write_bytes(b"P5 16 16 65535\n" + ramp(">u2", 65535).tobytes())
    (tmp_path / "b.ppm").write_bytes(b"P5 16 16 1023\n" + ramp(">u2", 1023).tobytes())
    for name in ("a.png", "a.tif", "a.ppm"):
        assert torch.equal(decode(tmp_path / name), grey), name
    assert (decode(tmp_path / "b.ppm").int() - grey.int()).abs().max() <= 1
    for dtype, name in ((np.int32, "i.tif"), (np.float32, "f.tif")):
        Image.fromarray(ramp(dtype, 1000)).save(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} holds 32-bit numbers") as error:
            decode(tmp_path / name)
        assert not isinstance(error.value, UnreadableImage)


def test_pillows_size_limit_is_said_and_not_passed_over(tmp_path, picture, monkeypatch):
    data = files(tmp_path, picture, size=(40, 30), skip_corrupt=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for act in (lambda: data[0], lambda: data.usable([0])):
        with pytest.raises(UserError, match=r"0\.png is not broken but has more than the 1,000 pixels") as error:
            act()
        assert "corrupt" not in str(error.value)
    assert data.skipped == ()
    picture(tmp_path / "thin.png", 0, (1, 400))
    with pytest.raises(UserError, match=r"thin\.png is not broken .*at the image size"):
        decode(tmp_path / "thin.png", ImageSize(32, 32))
    assert decode(tmp_path / "thin.png").shape == (3, 400, 1)


def test_transparency_animation_and_orientation(tmp_path):
    red, blue = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    clear = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    clear.convert("P").save(tmp_path / "palette.png", transparency=bytes(256))
    red.save(tmp_path / "moving.webp", save_all=True, append_images=[blue], lossless=True)
    red.save(tmp_path / "moving.png", save_all=True, append_images=[blue])
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(tmp_path / "turned.png", exif=exif)
    for name in ("clear.png", "palette.png", "moving.webp", "moving.png", "turned.png"):
        x = decode(tmp_path / name).int()
        assert x.shape == (3, 4, 6) and (x - torch.tensor([255, 0, 0]).view(3, 1, 1)).abs().max() <= 2, name
