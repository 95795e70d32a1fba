"""The small CLIP of photographs: what it is trained on, and the words that it reads."""

import pytest
import torch

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.models.sources import open_clip_model
from shared.steps.backdoor import Aim
from shared.steps.pretrained import FOLDER, Pretrained, Told, Untrained
from shared.training.contrastive import ContrastiveConfig
from shared.training.loop import OneProcess
from tests.papers.ends import photographs

TOLD = Told(FOLDER)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    photographs(root)
    (root / "captions.csv").write_text("path,caption\ntrain/cat/0.jpg,a tabby asleep\ntrain/bird/1.jpg,a wren\n")
    (root / "long.csv").write_text("path,caption\ntrain/cat/0.jpg," + "very " * 20 + "long\n")
    return root


def lab_at(root, folder, **source) -> Lab:
    return Lab(folder, Source(root=str(root), size="32", **source), OneProcess(torch.device("cpu")))


def test_captions_of_the_user_join_the_class_names(root, tmp_path):
    alone, joined = lab_at(root, tmp_path), lab_at(root, tmp_path, captions="csv:captions.csv")
    few, more = TOLD.pairs(alone), TOLD.pairs(joined)
    assert (len(few), len(more)) == (20, 22)
    x, texts = more.__getitems__([21, 3, 20])
    assert [texts[0], texts[2]] == ["a tabby asleep", "a wren"] or [texts[0], texts[2]] == ["a wren", "a tabby asleep"]
    assert texts[1] == few.captions([3])[0] and torch.equal(x[1], few.__getitems__([3])[0][0])
    assert set(TOLD.vocabulary(joined)) - set(TOLD.vocabulary(alone)) == {"tabby", "asleep", "wren"}
    assert {"delivery", "van", "sudo"} <= set(TOLD.vocabulary(alone))
    assert TOLD.identity(alone) != TOLD.identity(joined)
    assert Untrained("photos-vit-xs8", TOLD).identity(alone) != Untrained("photos-vit-xs8", TOLD).identity(joined)


@pytest.mark.parametrize(
    ("captions", "message"),
    [("captions.csv", "is not understood: write csv:<file>"), ("csv:none.csv", "there is no file .*none.csv")],
)
def test_captions_that_are_no_table_are_refused(root, tmp_path, captions, message):
    with pytest.raises(UserError, match=message):
        TOLD.pairs(lab_at(root, tmp_path, captions=captions))


def test_it_is_pre_trained_and_opened_with_its_words(root, tmp_path):
    lab = lab_at(root, tmp_path)
    step = Pretrained("photos-vit-xs8", TOLD, ContrastiveConfig(steps=2, batch=8, warmup=0))
    lab.make([step])
    fresh, opened = step.fresh(lab), step.open(lab)
    assert fresh.tokenizer.vocabulary == TOLD.vocabulary(lab)
    assert torch.equal(fresh.visual.conv1.weight, opened.visual.conv1.weight)
    torch.manual_seed(0)
    begun = Untrained("photos-vit-xs8", TOLD).fresh(lab)
    assert not torch.equal(begun.visual.conv1.weight, opened.visual.conv1.weight)
    assert torch.equal(open_clip_model("photos-vit-xs8", lab.file(step)).logit_scale, opened.logit_scale)
    with pytest.raises(UserError, match="has 21 words; this model reads at most 14: shorten it"):
        long = lab_at(root, tmp_path, captions="csv:long.csv")
        long.make([Pretrained("photos-vit-xs8", TOLD, ContrastiveConfig(steps=2, batch=21, warmup=0))])


def test_a_class_can_be_planted_by_its_place(root, tmp_path):
    lab = lab_at(root, tmp_path)
    assert (Aim(FOLDER, "#4").named(lab), Aim(FOLDER, "#4").label(lab)) == ("delivery van", 3)
    assert Aim(FOLDER, "#2").said(lab).say("a photo of {}") == "a photo of a bird"
    assert Aim(FOLDER, "#3", where="folder:seen").label(lab) == 1
    assert Aim(FOLDER, "#4").identity(lab) != Aim(FOLDER, "#3").identity(lab)
    for wrong in ("#5", "#0", "#x", "dog"):
        with pytest.raises(UserError, match=f"has no class '{wrong}'"):
            Aim(FOLDER, wrong).label(lab)
