"""COCO captions, Flickr30k, VQAv2 and TextVQA from their own files. Below DATA_ROOT:

    coco/dataset_coco.json                                 Karpathy's split: {"images": [{"filepath", "filename", "split", "sentences": [{"raw"}]}]}
    coco/annotations/captions_{train,val}2014.json         without it: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    coco/{train,val}2014/COCO_{train,val}2014_<12 digits>.jpg
    flickr30k/dataset_flickr30k.json                       Karpathy's split, as above (no "filepath")
    flickr30k/flickr30k-images/*.jpg
    vqav2/v2_OpenEnded_mscoco_{train,val}2014_questions.json    {"questions": [{"question_id", "image_id", "question"}]}
    vqav2/v2_mscoco_{train,val}2014_annotations.json            {"annotations": [{"question_id", "answers": [{"answer"}, …]}]}; pictures of COCO
    textvqa/TextVQA_0.5.1_{train,val}.json                 {"data": [{"image_id", "question", "answers": [ten strings]}]}
    textvqa/train_images/<image_id>.jpg                    (of both splits)

Splits: Karpathy's where his file is (train includes his "restval"), which is what FARE's numbers need. Otherwise test
is what is called val there, the part that everybody reports, and train is divided: a tenth of its pictures, by a hash
of the file name, is validation. Examples keep the order of the file. Pictures are read when they are asked for; an
unreadable one is named, or with skip_corrupt left out by `usable` and counted.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from shared.data.base import stack
from shared.data.files import FileImages, ImageSize
from shared.data.skipped import say
from shared.data.vision_language import CaptionSet, QuestionSet, VisionLanguageSet
from shared.errors import UserError
from shared.files import digest

_KARPATHY = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}
_YEARS = {"train": "train2014", "validation": "train2014", "test": "val2014"}


class _Annotated(VisionLanguageSet):
    """Examples whose pictures are files: files[i] is the picture of example i, relative to `folder`; several examples
    may share one."""

    def __init__(
        self, name: str, folder: Path, files: Sequence[str], texts: object, size: ImageSize, skip_corrupt: bool
    ):
        unique = {file: k for k, file in enumerate(dict.fromkeys(files))}
        paths = [os.path.join(folder, file) for file in unique]
        self.name, self._picture = name, [unique[file] for file in files]
        self.images = FileImages(
            name, folder, paths, [0] * len(paths), ("picture",), ("a picture",), size=size, skip_corrupt=skip_corrupt
        )
        self._texts = texts

    @property
    def version(self) -> str:
        """Digest of the texts, the picture files and the image size."""
        return digest([self.images.version, self._picture, self._texts])[:16]

    def __len__(self) -> int:
        return len(self._picture)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        return stack([self.images.pixels(self._picture[int(i)]) for i in indices], self.name).float().div_(255)

    def usable(self, indices: Iterable[int]) -> list[int]:
        indices = [int(i) for i in indices]
        good = set(self.images.usable(dict.fromkeys(self._picture[i] for i in indices)))
        return [i for i in indices if self._picture[i] in good]

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.images.skipped


class FileCaptions(_Annotated, CaptionSet):
    """texts: per picture its captions."""

    def references(self, indices: Sequence[int]) -> list[list[str]]:
        return [list(self._texts[int(i)]) for i in indices]


class FileQuestions(_Annotated, QuestionSet):
    """texts: per example (question, answers)."""

    def questions(self, indices: Sequence[int]) -> list[str]:
        return [self._texts[int(i)][0] for i in indices]

    def answers(self, indices: Sequence[int]) -> list[list[str]]:
        return [list(self._texts[int(i)][1]) for i in indices]


def coco(root: str | os.PathLike, split: str, size: ImageSize, skip_corrupt: bool = False) -> FileCaptions:
    """COCO captions. Errors of all functions here: UserError for missing or damaged annotation files and for splits
    without pictures."""
    folder = Path(root).expanduser() / "coco"
    if (folder / "dataset_coco.json").exists():
        return _karpathy(
            "coco",
            folder,
            folder / "dataset_coco.json",
            split,
            lambda im: f"{im['filepath']}/{im['filename']}",
            size,
            skip_corrupt,
        )
    year = _YEARS[split]
    path = folder / "annotations" / f"captions_{year}.json"

    def parse(content) -> list[tuple[str, list[str]]]:
        captions: dict[int, list[str]] = {}
        for entry in content["annotations"]:
            captions.setdefault(entry["image_id"], []).append(entry["caption"].strip())
        bare = [image["file_name"] for image in content["images"] if image["id"] not in captions]
        if bare:
            say("coco", f"{len(bare)} pictures of {path.name} have no caption and are left out", bare)
        return [
            (f"{year}/{image['file_name']}", captions[image["id"]])
            for image in content["images"]
            if image["id"] in captions
        ]

    return FileCaptions("coco", folder, *_columns(path, _divided(_read(path, parse), split)), size, skip_corrupt)


def flickr30k(root: str | os.PathLike, split: str, size: ImageSize, skip_corrupt: bool = False) -> FileCaptions:
    """Flickr30k in Karpathy's split."""
    folder = Path(root).expanduser() / "flickr30k"
    path = folder / "dataset_flickr30k.json"
    return _karpathy(
        "flickr30k", folder, path, split, lambda im: f"flickr30k-images/{im['filename']}", size, skip_corrupt
    )


def vqav2(root: str | os.PathLike, split: str, size: ImageSize, skip_corrupt: bool = False) -> FileQuestions:
    """VQA v2 on the pictures of COCO."""
    root, year = Path(root).expanduser(), _YEARS[split]
    path, of_people = (
        root / "vqav2" / f"{name}.json"
        for name in (f"v2_OpenEnded_mscoco_{year}_questions", f"v2_mscoco_{year}_annotations")
    )
    answers = _read(
        of_people,
        lambda c: {entry["question_id"]: [a["answer"] for a in entry["answers"]] for entry in c["annotations"]},
    )
    asked = _read(
        path,
        lambda c: [
            (f"{year}/COCO_{year}_{q['image_id']:012d}.jpg", q["question"], q["question_id"]) for q in c["questions"]
        ],
    )
    unanswered = sum(number not in answers for *_, number in asked)
    if unanswered:
        raise UserError(
            f"{of_people} lacks the answers to {unanswered} of the {len(asked)} questions in {path}: take both files "
            "from one release."
        )
    rows = [(file, (question, answers[number])) for file, question, number in asked]
    return FileQuestions("vqav2", root / "coco", *_columns(path, _divided(rows, split)), size, skip_corrupt)


def textvqa(root: str | os.PathLike, split: str, size: ImageSize, skip_corrupt: bool = False) -> FileQuestions:
    """TextVQA 0.5.1."""
    folder = Path(root).expanduser() / "textvqa"
    path = folder / f"TextVQA_0.5.1_{'val' if split == 'test' else 'train'}.json"
    rows = _read(
        path, lambda c: [(f"train_images/{e['image_id']}.jpg", (e["question"], list(e["answers"]))) for e in c["data"]]
    )
    return FileQuestions("textvqa", folder, *_columns(path, _divided(rows, split)), size, skip_corrupt)


FILES: dict[str, Callable] = {"coco": coco, "flickr30k": flickr30k, "vqav2": vqav2, "textvqa": textvqa}


def _karpathy(
    name: str, folder: Path, path: Path, split: str, file: Callable[[dict], str], size: ImageSize, skip_corrupt: bool
) -> FileCaptions:
    def parse(content) -> list[tuple[str, list[str]]]:
        chosen = (image for image in content["images"] if image["split"] in _KARPATHY[split])
        return [(file(image), [sentence["raw"].strip() for sentence in image["sentences"]]) for image in chosen]

    return FileCaptions(name, folder, *_columns(path, _read(path, parse)), size, skip_corrupt)


def _read(path: Path, parse: Callable):
    """parse(content of the JSON file). Raises UserError if the file is missing, no JSON, or not of the layout that
    `parse` expects."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}: put it there (layout: shared/data/annotated.py), or set DATA_ROOT to the right "
            "folder."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is damaged or of another layout ({what}): copy it again from its release.") from None


def _divided(rows: list[tuple[str, object]], split: str) -> list[tuple[str, object]]:
    """A tenth of the pictures of the training part is the validation split; test stays whole."""
    if split == "test":
        return rows
    return [
        row
        for row in rows
        if (hashlib.blake2b(os.path.basename(row[0]).encode()).digest()[0] % 10 == 0) == (split == "validation")
    ]


def _columns(path: Path, rows: list[tuple[str, object]]) -> tuple[list[str], list]:
    if not rows:
        raise UserError(f"{path} has no example of this split: take the complete file.")
    return [file for file, _ in rows], [text for _, text in rows]
