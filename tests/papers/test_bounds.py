"""Every number that can be set has bounds, the presets keep them, and a number out of them is named before anything is loaded."""

import dataclasses
import importlib
import inspect
import math
import re
from operator import attrgetter
from typing import Annotated, get_args, get_origin

import pytest

from shared import options
from shared.errors import UserError
from shared.experiment.scale import parse
from shared.judge.options import Config as JudgeOptions
from shared.models.victim import Pixels
from shared.options import Bounded, Range, alternatives, check_bounds, hints, range_of
from shared.steps.purification import Quality, Transform
from shared.training.adversarial import Tuning
from shared.training.classify import ClassifierTraining

PAPERS = ("diffcap", "distshift", "pmg_aft", "roclip", "rvpt")
TRAININGS = ("classify", "cleanclip", "denoising", "pretrain", "steganography", "vlm")
WRONG = (
    "diffcap --method.eta nan", "diffcap --choosing.jpeg 500", "diffcap --attack.steps 0", "diffcap --method.tau 2",
    "diffcap --choosing.diffcap 50 5000 0", "diffcap --choosing.blur 1e9",
    "diffcap --attack.threshold nan", "diffcap --sweeps.taus inf",
    "diffcap --fare.weight-decay -1", "diffcap --data.n -1", "diffcap --adaptive.eot 0", "diffcap --choosing.diffcap 0 400 0",
    "distshift --attack.l2 1e9", "distshift --baselines.tv nan", "distshift --method.eta nan", "distshift --attack.linf 0",
    "distshift --guidance.scale -1", "distshift --guidance.scale nan", "distshift --models.first.t -1", "distshift --choosing.times 0",
    "distshift --denoising.average 1", "distshift --training.eps 8", "distshift --training.attack-ratio 0", "distshift --sweeps.block 1",
    "distshift --baselines.gdmp.eps 2", "distshift --baselines.bits 32", "distshift --sweeps.rounds 1 0",
    "pmg_aft --attack.train-steps 0", "pmg_aft --attack.ratio 0", "pmg_aft --attack.ratio nan", "pmg_aft --attack.strong-steps -1",
    "pmg_aft --tuning.momentum 7", "pmg_aft --tuning.warmup -5", "pmg_aft --gates.clean 2", "pmg_aft --tuning.lr -1",
    "pmg_aft --attack.sanity-n 0", "pmg_aft --tuning.batch 1000000000", "pmg_aft --seeds -1", "pmg_aft --seeds 0 18446744073709551616",
    "pmg_aft --attack.eps 8", "pmg_aft --attack.multiples 1 nan", "pmg_aft --model.pretraining.clip-norm 0", "pmg_aft --tuning.last -7",
    "pmg_aft --attack.auto-n -1", "pmg_aft --attack.batch 0", "pmg_aft --sweeps.test-batches 64 100000000",
    "roclip --pretraining.betas 0.9 1.5", "roclip --pretraining.batch 1", "roclip --pretraining.clip-norm nan", "roclip --watch-n 0",
    "roclip --methods.images.hue 0.9", "roclip --methods.safeclip.images.blur 1 nan", "roclip --methods.roclip.share 2",
    "roclip --methods.safeclip.confidence 0.2", "roclip --attacks.badnet.rate 1", "roclip --probing.lr 0", "roclip --data.n -1",
    "rvpt --adversary.train-steps 0", "rvpt --attacks.badnet.rate nan", "rvpt --attacks.badnet.lrs 1e-3 -1", "rvpt --method.length 0",
    "rvpt --attacks.badclip-patch.batch 0", "rvpt --method.tuning.crop 0", "rvpt --sweeps.perturbations.hue 3", "rvpt --more-seeds -1",
    "rvpt --sweeps.margin -1 5", "rvpt --gates.further-drop -0.1", "rvpt --baselines.cleanclip.image-weight nan",
)  # fmt: skip


def config_of(paper: str):
    return importlib.import_module(f"papers.{paper}.config")


def inside(kind: type):
    """A class of options and all those in it."""
    yield kind
    for hint in hints(kind).values():
        for part in (hint, *alternatives(hint), *get_args(hint)):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                yield from inside(part)


def bounded_classes(of: type = Bounded) -> set[type]:
    found = {of, *(deeper for kind in of.__subclasses__() for deeper in bounded_classes(kind))} - {Bounded}
    return {kind for kind in found if kind.__module__.partition(".")[0] in ("shared", "papers")}


def numbers(hint):
    """The types of numbers in a type."""
    for part in alternatives(hint):
        if range_of(part) is not None:
            yield part
        elif get_origin(part) is tuple:
            for item in get_args(part):
                yield from numbers(item)


def test_every_number_that_can_be_set_has_bounds_of_its_own():
    kinds = {kind for paper in PAPERS for kind in inside(config_of(paper).Config)}
    kinds |= {importlib.import_module(f"shared.training.{name}").__dict__.get("Args", Bounded) for name in TRAININGS}
    kinds |= bounded_classes()
    found = {
        f"{kind.__module__}.{kind.__name__}.{name}": number
        for kind in kinds
        if dataclasses.is_dataclass(kind)
        for name, hint in hints(kind).items()
        for number in numbers(hint)
    }
    assert len(found) > 300
    bare = [
        name
        for name, number in found.items()
        if get_origin(number) is not Annotated or not any(isinstance(extra, Range) for extra in get_args(number))
    ]
    assert not bare


def test_options_that_hold_themselves_do_so_in_every_field():
    for kind in bounded_classes():
        if inspect.isabstract(kind) or any(
            f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(kind)
        ):
            continue
        for name, hint in hints(kind).items():
            if any(range_of(part) is not None for part in alternatives(hint)):
                with pytest.raises(UserError, match=rf"^{kind.__name__}\.{name} is nan: use a"):
                    kind(**{name: math.nan})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Tuning(optimizer="adam"), "Tuning.optimizer is 'adam': use 'sgd' or 'adamw'."),
        (lambda: ClassifierTraining(augment="flip"), "ClassifierTraining.augment is 'flip'"),
        (lambda: Transform("webp"), "Transform.kind is 'webp'"),
        (lambda: Quality(None, None, 0, "lpips"), "Quality.measure is 'lpips': use 'psnr' or 'ssim'."),
        (lambda: JudgeOptions(norm="l1"), "Config.norm is 'l1'"),
        (lambda: Pixels((32, 32), resize_mode="longest"), "resize_mode is 'longest': use 'shortest' or 'squash'."),
    ],
)
def test_options_steps_and_functions_know_their_words(made, said):
    with pytest.raises(UserError, match=re.escape(said)):
        made()


@pytest.mark.parametrize("paper", PAPERS)
def test_the_presets_are_in_bounds(paper):
    for preset in config_of(paper).PRESETS.values():
        check_bounds(preset)
        config_of(paper).check(preset)


@pytest.mark.parametrize(("line", "said"), [
    ("rvpt --attacks.badnet.fields patch=0", "--attacks.badnet.fields patch is 0: use a whole number"),
    ("rvpt --attacks.badnet.fields patch='a'", "--attacks.badnet.fields patch is a: use a whole number"),
    ("rvpt --attacks.blended-textbook.fields ratio=1e999", "--attacks.blended-textbook.fields ratio is inf: use a number from 0 to 1"),
    ("rvpt --attacks.issba.fields strength=2", "--attacks.issba.fields strength is 2: use a number above 0"),
    ("roclip --attacks.label-consistent.fields size=3", "--attacks.label-consistent.fields size: the trigger label_consistent has no such"),
    ("roclip --attacks.wanet.fields k=1", "--attacks.wanet.fields k is 1: use a whole number from 2"),
    ("roclip --attacks.wanet.fields s=nan", "--attacks.wanet.fields 's=nan' is not understood"),
    ("pmg_aft --data.source.size 1000000", "the image size's short is 1000000: use a whole number from 1 to"),
    ("pmg_aft --data.source.size 256:0", "the image size's crop is 0"),
    ("pmg_aft --data.source.size ²", "image size '²' is not understood"),
    ("pmg_aft --tuning.last 0", "the last 0 parameter tensors are nothing to train"),
    ("pmg_aft --tuning.warmup 300 --tuning.steps 100", "--tuning.warmup is 300, more than the 100 updates of its training"),
    ("pmg_aft --tuning.steps=100 --tuning.warmup=300", "--tuning.warmup is 300, more than the 100 updates of its training"),
    ("rvpt --baselines.cleanclip.warmup 61", "--baselines.cleanclip.warmup is 61, more than the 60 updates"),
    ("rvpt --attacks.badnet-textbook.warmup 81", "--attacks.badnet-textbook.warmup is 81, more than the 80 updates"),
    ("roclip --few.training.warmup 9999", "--few.training.warmup is 9999, more than the 1608 updates"),
    ("roclip --data.pretrain-n 960 --pretraining.warmup 50", "--pretraining.warmup is 50, more than the 42 updates"),
    ("rvpt --attacks.wanet.pairs 3", "--attacks.wanet.batch is 128, more than the 3 pairs there are to train on"),
    ("rvpt --baselines.cleanclip.batch 6401", "--baselines.cleanclip.batch is 6401, more than the 6,400 pairs"),
    ("roclip --few.training.batch 5761", "--few.training.batch is 5761, more than the"),
    ("roclip --pretraining.batch 20000", "--pretraining.batch is 20000, more than the"),
    ("roclip --data.images-n 3", "--attacks.targets.n and --few.targets are chosen among --data.images-n pictures, 3"),
    ("rvpt --method.first 4", "--method.first is below the number of blocks, --sweeps.blocks 4"),
    ("rvpt --sweeps.depth-input 5", "--sweeps.depth-input go up to it"),
    ("rvpt --sweeps.perturbations.kernel 4", "use an odd number of pixels"),
    ("pmg_aft --attack.multiples 1 200", "beyond the pixel range"),
])  # fmt: skip
def test_what_numbers_are_together_is_looked_at_as_early(line, said):
    paper, *given = line.split()
    config = config_of(paper)
    with pytest.raises(UserError, match=said):
        parse(config.PRESETS, "", given, check=config.check)


@pytest.mark.parametrize(("line", "at", "left"), [
    ("pmg_aft --tuning.steps 3", "tuning", 3), ("pmg_aft --tuning.warmup 5 --tuning.steps 5", "tuning", 5),
    ("diffcap --fare.steps 5", "fare", 5), ("distshift --denoising.steps 1", "denoising", 1),
    ("rvpt --attacks.badnet.steps 14", "attacks.badnet", 14), ("rvpt --baselines.cleanclip.steps 4", "baselines.cleanclip", 4),
    ("roclip --data.pretrain-n 960", "pretraining", 42), ("roclip --few.pairs 384 --few.training.epochs 6", "few.training", 18),
    ("roclip --pretraining.batch 960", "pretraining", 50),
])  # fmt: skip
def test_a_warm_up_of_the_preset_is_no_longer_than_what_is_trained(line, at, left, capsys):
    options._say.cache_clear()
    paper, *given = line.split()
    config = config_of(paper)
    parsed = parse(config.PRESETS, "", given, check=config.check)[1]
    assert attrgetter(f"{at}.warmup")(parsed) == left
    said = capsys.readouterr().err.splitlines()
    before = attrgetter(f"{at}.warmup")(config.PRESETS["cpu"])
    assert said == [f"note: a training of {left} updates ends before a warm-up of {before}: that is cut to {left}."] * (
        left < before
    )


@pytest.mark.parametrize("line", WRONG)
def test_a_number_out_of_bounds_is_named_with_what_is_allowed(line):
    paper, option, *given = line.split()
    config = config_of(paper)
    with pytest.raises(UserError, match=rf"^{option} is \S+: use a (whole |finite )?number( from| above| of|\.)"):
        parse(config.PRESETS, "", [option, *given], check=config.check)


def test_help_shows_types_and_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(config_of("pmg_aft").PRESETS, "", ["--help"])
    said = capsys.readouterr().out
    for option in ("--attack.steps INT", "--attack.eps NUMBER/255", "--tuning.lr FLOAT", "--sweeps.last [INT"):
        assert option in said
    assert "(default: 10)" in said and "(default: 8/255)" in said
