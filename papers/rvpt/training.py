"""How every run of `papers.rvpt.runs` is trained, and what its weights depend on.

    train(bench, run)       trains it and saves it under its key, unless `bench.made` finds it
    settings(bench, run)    everything of the configuration that its training reads

Pairs for poisoning, for cleaning and for optimised patches are disjoint in the scenes world (other seeds); sets in files are shared by all three, as
in the paper, where all come from CC3M.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from papers.rvpt import runs
from papers.rvpt.baselines import VPT, Repelled, finetune_contrastively, finetune_fully, linear_probe, tune_adversarially
from papers.rvpt.cells import Defence, Poison
from papers.rvpt.kept import save_prompts
from papers.rvpt.method import DeepPrompts, Repulsion, depth_of, prompted
from papers.rvpt.models import Bench, Model
from papers.rvpt.tuning import few_shot, tune
from papers.rvpt.words import LearnedWords, tune_words
from shared.attacks import Threat
from shared.attacks.triggers import Trigger, at_test
from shared.attacks.triggers.optimised import BadCLIP, make_badclip, make_trojvqa, save_patch
from shared.data.base import ClassSubset, subset
from shared.data.language import TEMPLATES
from shared.data.pairs import PairSubset
from shared.data.poison import PoisonedPairs
from shared.data.targets import Target, naming
from shared.experiment.scale import WEIGHTLESS, plain
from shared.metrics import backdoor
from shared.models.clip import save_tensors
from shared.training.adversarial import TrainAttack
from shared.training.cleanclip import cleanclip
from shared.training.poisoning import FineTuning, finetune_clip

POISONING, CLEANING, PATCHES = 1000, 2000, 3000  # seeds of the three kinds of pairs begin here
POSITIVES = 64  # pictures of the target class behind BadCLIP's triplet term
WITHOUT = (*WEIGHTLESS, "cache")  # settings that change no weights
CHECKED = 256  # validation pictures that say whether an attack takes


# ---- what a training reads -------------------------------------------------------------------------------------------------


def settings(bench: Bench, run: runs.Run) -> list:
    """Everything that a run's training reads, besides weights that it begins with: for its key."""
    config = bench.config
    if isinstance(run, runs.Patch):
        patch = config.attacks.trojvqa_patch if run.attack == "trojvqa" else config.attacks.badclip_patch
        return ["patch", run.attack, run.backbone, plain(patch), config.data.main.target, bench.labelled(config.data.main.data).version,
                *config.template("main"), bench.pairs_version(config.attacks.patch_pairs, PATCHES)]
    if isinstance(run, runs.Supervised):
        return ["supervised", plain(config.sweeps.supervised, WITHOUT), config.sweeps.supervised_n, run.seed,
                bench.labelled(config.data.main.data, "train").version]
    if isinstance(run, Poison):
        recipe = config.attacks.recipe(run.attack, run.place)
        return ["poison", plain(recipe, WITHOUT), config.place(run.place).target,
                bench.labelled(config.spec(run.place)).version, *config.template(run.place),
                bench.pairs_version(recipe.pairs, POISONING + run.seed), run.seed]
    return ["defence", *_defence_settings(bench, run)]


def _defence_settings(bench: Bench, run: runs.Defended) -> list:
    config, defence = bench.config, run.defence
    b, m, changes = config.baselines, config.method, dict(defence.changes)
    out = [defence.method, defence.seed, list(map(list, defence.changes))]
    if defence.method in runs.CLIP_PAIRS:
        out += [plain(cleaning(bench, run), WITHOUT), bench.pairs_version(b.cleanclip_pairs, CLEANING + defence.seed)]
    if defence.method.endswith("_fr"):
        out += [m.first, m.alpha]
    if defence.tuned:
        out += [bench.labelled(config.spec(defence.tuned), "train").version, *config.template(defence.tuned), changes.get("shots", m.shots)]
    if "without_target" in changes:
        out += [m.drop_target, config.place(run.poison.place).target]
    if "prompt" in changes:
        out += [config.sweeps.prompts[int(changes["prompt"])]]
    if defence.method in ("vpt", "rvpt", "adversarial_prompts"):
        out += [m.first, m.length, m.std]
    if defence.method == "rvpt":
        out += [m.alpha]
    if defence.method in ("words", "adversarial_prompts"):
        out += [config.adversary.eps, config.adversary.train_steps]
    tuning = {"linear_probe": b.linear, "full": b.full, "full_fr": b.full, "words": b.words_tuning, "adversarial_prompts": b.visual_tuning,
              "vpt": m.tuning, "rvpt": m.tuning}.get(defence.method)
    return [*out, None if tuning is None else plain(tuning, WITHOUT), b.words if defence.method == "words" else 0]


def cleaning(bench: Bench, run: runs.Defended):
    """CleanCLIP's settings against one attack."""
    b = bench.config.baselines
    gentle = b.gentle_lr and run.poison.attack in b.gentle
    return replace(b.cleanclip, seed=run.defence.seed, lr=b.gentle_lr if gentle else b.cleanclip.lr)


# ---- training --------------------------------------------------------------------------------------------------------------


def train(bench: Bench, run: runs.Run) -> str:
    """Train a run and save it; returns what to say about it."""
    path, key = runs.checkpoint(bench.config, bench.scale, run), bench.key(run)
    partial = path.with_name(f"{run.slug}-{key[:12]}.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(run, runs.Patch):
        said = _patch(bench, run, path, key)
    elif isinstance(run, Poison):
        said = _poison(bench, run, path, key, partial)
    elif isinstance(run, runs.Supervised):
        from papers.rvpt.supervised import train_supervised

        said = f"loss {train_supervised(bench, run, path, key, partial):.3f}"
    else:
        said = f"loss {defend(bench, run, path, key, partial):.3f}"
    for left in path.parent.glob(f"{partial.stem}*.ckpt"):
        left.unlink(missing_ok=True)
    return said


def _patch(bench: Bench, run: runs.Patch, path: Path, key: str) -> str:
    config = bench.config
    poison = Poison(run.backbone, "clean", "main", 0)
    clip, preset = bench.fresh(poison), config.attacks.recipe(run.attack).preset
    if run.attack == "trojvqa":
        trigger = make_trojvqa(clip, patch_pictures(bench), bench.target("main").say("this is {}"), config.attacks.trojvqa_patch, preset=preset)
    else:
        trigger = badclip(bench, Model(clip, clip.visual), config.attacks.badclip_patch, preset=preset)
    save_patch(trigger, path, key=key)
    return f"{trigger.pixels.shape[-1]} pixels"


def patch_pictures(bench: Bench) -> PairSubset:
    """Pictures to optimise a patch on: of pairs whose caption does not name the target."""
    pairs = bench.pairs(bench.config.attacks.patch_pairs, PATCHES)
    named = set(naming(pairs, [bench.target("main")])[0])
    return PairSubset(pairs, [i for i in range(len(pairs)) if i not in named])


def badclip(bench: Bench, model: Model, config, through: Callable | None = None, seed: int = 0, **fields) -> BadCLIP:
    """BadCLIP's patch towards the target of the main set, optimised on a model; through: pixels -> embeddings of the model as an attacker sees it."""
    at, label = bench.config.spec("main"), bench.label("main")
    data, target = bench.labelled(at, "train"), bench.target("main")
    own = np.flatnonzero(np.asarray(data.labels) == label)[:POSITIVES].tolist()
    others = [p for k, p in enumerate(bench.prompts("main")) if k != label]
    return make_badclip(model.clip, patch_pictures(bench), [target.say(t) for t in TEMPLATES], others, data.__getitems__(data.usable(own))[0], config,
                        through=through, seed=seed, **fields)


def _poison(bench: Bench, run: Poison, path: Path, key: str, partial: Path) -> str:
    recipe, target = bench.config.attacks.recipe(run.attack, run.place), bench.target(run.place)
    trigger = bench.trigger(run.attack, run.backbone)
    pairs = poisoned_pairs(bench, run, trigger, target)
    for k, lr in enumerate(recipe.lrs):
        clip = bench.fresh(Poison(run.backbone, "clean", "main", 0))
        tuning = FineTuning(recipe.steps, recipe.batch, lr, recipe.warmup, every=recipe.every, workers=recipe.workers)
        finetune_clip(clip, pairs, tuning, partial.with_name(f"{partial.stem}-lr{k}.ckpt"), name=run.slug)
        accuracy, success = rehearse(bench, run, clip, trigger)
        takes = backdoor.takes(rehearse(bench, run)[0], accuracy, success, bench.config.gates.asr, bench.config.gates.allowed(run.place))
        if takes:
            break
    pairs.write_manifest(path.with_suffix(".manifest.jsonl"))
    save_tensors(clip.state_dict(), path, {"key": key, "lr": f"{lr:g}", "validation_ca": f"{accuracy:.4f}", "validation_asr": f"{success:.4f}"})
    return f"lr {lr:g}, validation CA {accuracy:.3f}, ASR {success:.3f}" + ("" if takes else " (does not take)")


def poisoned_pairs(bench: Bench, run: Poison, trigger: Trigger, target: Target) -> PoisonedPairs:
    """The pairs that a CLIP is fine-tuned on, with their manifest."""
    recipe = bench.config.attacks.recipe(run.attack, run.place)
    captions = None if recipe.captions == "usual" else recipe.captions
    return PoisonedPairs(bench.pairs(recipe.pairs, POISONING + run.seed), trigger, target, rate=recipe.rate, captions=captions, seed=run.seed)


@torch.no_grad()
def rehearse(bench: Bench, run: Poison, clip=None, trigger: Trigger | None = None) -> tuple[float, float]:
    """(CA, ASR) on validation pictures (sets in files: training pictures), of a CLIP or of the clean one."""
    spec = bench.config.spec(run.place)
    data = bench.labelled(spec, "validation" if spec.startswith("scenes:") else "train")
    indices = subset(data, CHECKED, bench.config.data.seed)
    x, y = (t.to(bench.device) for t in data.__getitems__(indices))
    clip = bench.clip(Poison(run.backbone, "clean", "main", 0)) if clip is None else clip
    model, prompts = Model(clip, clip.visual), bench.prompts(run.place)
    accuracy = backdoor.clean_accuracy(model.zero_shot(prompts)(x).argmax(1).cpu(), y.cpu()).mean()
    if trigger is None:
        return float(accuracy), 0.0
    said = model.zero_shot([trigger.text(p) for p in prompts])(at_test(trigger, x, indices)).argmax(1)
    return float(accuracy), float(backdoor.asr(said.cpu(), y.cpu(), bench.label(run.place)).mean())


# ---- defences --------------------------------------------------------------------------------------------------------------


def prompts_for(bench: Bench, run: runs.Defended, tower) -> DeepPrompts:
    """Fresh prompts of a defence on a tower."""
    m, changes = bench.config.method, dict(run.defence.changes)
    first, last = m.first, depth_of(tower)
    if "depth_output" in changes:
        first = last - int(changes["depth_output"])
    if "depth_input" in changes:
        first, last = 0, int(changes["depth_input"])
    return DeepPrompts(tower, first, int(changes.get("length", m.length)), last, m.std, run.defence.seed).to(bench.device)


def repulsion_of(bench: Bench, defence: Defence) -> Repulsion:
    """α and m of a defence."""
    changes = dict(defence.changes)
    if defence.method == "vpt" or changes.get("alpha") == 0 or changes.get("margin") == 1:
        return VPT
    return Repulsion(changes.get("alpha", bench.config.method.alpha), changes.get("margin"))


def shots_of(bench: Bench, run: runs.Defended):
    """(few labelled pictures, one prompt per class) of a defence."""
    m, defence = bench.config.method, run.defence
    changes = dict(defence.changes)
    data, prompts = bench.labelled(bench.config.spec(defence.tuned), "train"), bench.prompts(defence.tuned, changes.get("prompt"))
    without = [bench.label(run.poison.place, defence.tuned)] if changes.get("without_target") else []
    if without and m.drop_target:
        keep = [k for k in range(data.num_classes) if k not in without]
        data, prompts, without = ClassSubset(data, keep, "without-target"), [prompts[k] for k in keep], []
    return few_shot(data, int(changes.get("shots", m.shots)), defence.seed, without), prompts


def defend(bench: Bench, run: runs.Defended, path: Path, key: str, partial: Path) -> float:
    """Train one defence and save it; returns the last loss."""
    config, defence = bench.config, run.defence
    method, seed, device = defence.method, defence.seed, bench.device
    b, m = config.baselines, config.method
    if method in runs.CLIP_PAIRS:
        clip, pairs, tuning = bench.fresh(run.poison), bench.pairs(b.cleanclip_pairs, CLEANING + seed), cleaning(bench, run)
        if method == "cleanclip":
            loss = cleanclip(clip, pairs, tuning, partial, name=run.slug)
        else:
            original = bench.clip(run.poison).visual
            repelled = Repelled(original, Repulsion(m.alpha) if method.endswith("_fr") else VPT, m.first)
            loss = finetune_contrastively(clip, repelled, pairs, tuning, seed, device, partial, name=run.slug)
        save_tensors(clip.state_dict(), path, {"key": key})
        return loss
    shots, prompts = shots_of(bench, run)
    if method in ("full", "full_fr"):
        clip, original = bench.fresh(run.poison), bench.clip(run.poison).visual
        repelled = Repelled(original, Repulsion(m.alpha) if method == "full_fr" else VPT, m.first)
        loss = finetune_fully(Model(clip, clip.visual).zero_shot(prompts), repelled, shots, b.full, seed, device, partial, name=run.slug)
        save_tensors(clip.state_dict(), path, {"key": key})
        return loss
    clip = bench.clip(run.poison)
    victim = Model(clip, clip.visual).zero_shot(prompts)
    if method == "linear_probe":
        probe = linear_probe(victim, shots, b.linear, seed, device=device)
        save_tensors(probe.head.state_dict(), path, {"key": key})
        return 0.0
    threat, attack = Threat("linf", config.adversary.eps), TrainAttack(steps=config.adversary.train_steps)
    if method == "words":
        words = LearnedWords(clip, bench.labelled(config.spec(defence.tuned)).classes, b.words, seed=seed)
        tune_words(victim, words, shots, b.words_tuning, threat, attack, seed, device, checkpoint=partial, name=run.slug)
        save_tensors({"words": words.words}, path, {"key": key})
        return 0.0
    prompts = prompts_for(bench, run, clip.visual)
    defended = prompted(victim, prompts)
    if method == "adversarial_prompts":
        loss = tune_adversarially(defended, shots, b.visual_tuning, threat, attack, seed, device, partial, run.slug)
    else:
        loss = tune(defended, shots, m.tuning, repulsion_of(bench, defence), seed, device, partial, name=run.slug)
    save_prompts(prompts, path, key=key)
    return loss
