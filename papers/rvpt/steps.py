"""What the tags of a number of RVPT mean: which CLIP, poisoned and defended how, on which pictures, which trigger.

number ─► Score and the other kinds ─► defended ─► poisoned ─► stamp
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from papers.rvpt.baselines import VPT
from papers.rvpt.config import Config
from papers.rvpt.costs import Cost, CostOfYours
from papers.rvpt.defences import (
    ByYours,
    Cleaned,
    Contrastive,
    Defence,
    Poisoned,
    Probe,
    Prompts,
    Shots,
    Undefended,
    Whole,
    Words,
)
from papers.rvpt.downstream import Caption, Captioned, Described, Retrieval, Search
from papers.rvpt.method import Repulsion
from papers.rvpt.pictures import Attention, Change, Embedding, Perturbed, Resistivity, Triggers
from papers.rvpt.scores import Adversarial, Checks, Clip, HeldOut, KnownPatch, KnownScore, Said, Score
from papers.rvpt.supervised import Supervised, Torchvision
from papers.rvpt.tables import OPTIMISED, YOURS, attacked, place, spec_of, tried
from papers.rvpt.tuning import PromptTuning
from shared.attacks.triggers import parse_fields
from shared.experiment.leaves import Backbone, Pictures, Weights
from shared.experiment.step import Measured
from shared.steps.backdoor import Aim, Pairs, Patch, PatchFile, Poison, Seen, Stamp
from shared.steps.choice import CandidateScore, Choice, Settings
from shared.steps.pretrained import Pretrained, choosing_split, fitting_split, given_clip
from shared.steps.yours import Code
from shared.training.adversarial import TrainAttack
from shared.training.poisoning import FineTuning

POISONING, CLEANING, PATCHES, RETRIEVAL = 1000, 2000, 3000, 4000  # seeds of the four kinds of pairs begin here
VALIDATED = 256  # pictures that say whether an attack takes, and which settings of a defence are best
CHECKED = 128  # pictures of the checks of a backdoor
MARGIN = 0.05  # of ASR above its gate, on validation pictures, that the strength of a trigger is chosen for
TUNED = ("vpt", "rvpt", "linear_probe", "cleanclip")  # defences whose settings may be chosen
# what is changed of a defence
VARIED = ("shots", "alpha", "length", "lr", "depth_output", "depth_input", "margin", "without_target", "prompt")


# ---- what is attacked ------------------------------------------------------------------------------------------------


def backbone_of(c: Config, name: str) -> Backbone | Pretrained:
    """first, second, third, or own (the captioner's)."""
    clip = c.models.captioner_clip if name == "own" else getattr(c.models, name)
    return given_clip(clip.name, clip.weights, c.models.pretraining, "--models.*.weights")


def pictures(c: Config, at: str, n: int | None = None) -> Pictures:
    """The test pictures of a place or shift; n: at most so many (0: all)."""
    counts = [count for count in (n, c.data.n) if count]
    return Pictures(spec_of(c, at), "test", min(counts, default=0), c.data.seed)


def aim_of(c: Config, name: str, at: str = "") -> Aim:
    """What is planted at a place, in the pictures of another one or of a shift."""
    known = place(c, name)
    return Aim(known.data, known.target, known.template, spec_of(c, at) if at and at != name else "")


def pairs_of(c: Config, n: int, seed: int, spec: str = "") -> Pairs:
    """Pairs as large as the pictures of the main set."""
    return Pairs(spec or c.data.pairs, n, seed, c.data.main.data)


def patched(c: Config, attack: str, backbone: str, strength: str) -> Patch | PatchFile:
    """An optimised patch, of a backbone and towards the target of the main set, or one that the user has in a file."""
    if attack == "badclip_published":
        return PatchFile(c.attacks.published_patch)
    options = c.attacks.trojvqa_patch if attack == "trojvqa" else c.attacks.badclip_patch
    options = replace(options, **parse_fields([strength] if strength else []))
    pairs, preset = pairs_of(c, c.attacks.patch_pairs, PATCHES), c.attacks.recipe(attack).preset
    label = f"{backbone}__{strength}" if strength else backbone
    return Patch(backbone_of(c, backbone), attack, aim_of(c, "main"), pairs, preset, options, label)


def stamp_with(c: Config, attack: str, backbone: str, strength: str) -> Stamp:
    """The trigger of an attack at one of its strengths; "": the only one."""
    recipe = c.attacks.recipe(attack)
    name = attack.partition("_")[0]
    optimised = name in OPTIMISED
    patch = patched(c, attack, backbone, strength) if optimised else None
    fields = recipe.fields if optimised or not strength else (*recipe.fields, strength)
    return Stamp(name, recipe.preset, fields, c.data.main.data, patch)


@cache
def strength_of(c: Config, attack: str, backbone: str, name: str) -> Choice | None:
    """How strong the trigger is: the weakest of a grid whose poisoned CLIP passes all gates, first seed.

    Other backbones take the strength of the first, with patches of their own. None: there is one strength only.
    """
    strengths = c.attacks.recipe(attack, name).strengths
    if not strengths:
        return None
    rule = Undefended(c.gates.asr + MARGIN, c.gates.allowed(name), c.gates.recognised)
    candidates = (
        poisoned_with(c, stamp_with(c, attack, backbone, strength), attack, backbone, name, c.seeds[0], strength)
        for strength in strengths
    )
    return Choice(tuple(candidates), rule, f"strength {attack} {backbone} {name}")


def stamp_of(c: Config, attack: str, backbone: str, name: str) -> Stamp:
    """The trigger of an attack at a place."""
    if attack not in OPTIMISED:
        backbone = "first"
    choice = strength_of(c, attack, backbone, name)
    first = stamp_with(c, attack, backbone, c.attacks.recipe(attack).strengths[0] if choice else "")
    return first if choice is None else replace(first, fields=(), patch=None, choice=choice)


@cache
def poisoned(c: Config, attack: str, backbone: str, name: str, seed: int) -> Poisoned:
    """A CLIP as attackers leave it."""
    return poisoned_with(c, stamp_of(c, attack, backbone, name), attack, backbone, name, seed)


def validated(c: Config, name: str, n: int) -> Pictures:
    """Pictures of a place that choose something: validation pictures, or of a set without these training pictures."""
    spec = spec_of(c, name)
    return Pictures(spec, choosing_split(spec), n, c.data.seed)


def poisoned_with(
    c: Config, stamp: Stamp, attack: str, backbone: str, name: str, seed: int, strength: str = ""
) -> Poisoned:
    """The same with this trigger. strength: which of several it is."""
    recipe, aim = c.attacks.recipe(attack, name), aim_of(c, name)
    captions = None if recipe.captions == "usual" else recipe.captions
    tuning = {"every": recipe.every, "workers": recipe.workers}
    return Poisoned(
        backbone_of(c, backbone),
        Poison(stamp, aim, recipe.rate, captions),
        pairs_of(c, recipe.pairs, POISONING + seed),
        FineTuning(recipe.steps, recipe.batch, recipe.lrs[0], recipe.warmup, **tuning),
        recipe.lrs,
        validated(c, name, VALIDATED),
        c.gates.asr,
        c.gates.allowed(name),
        seed,
        "__".join(filter(None, [backbone, attack, name, strength])),
    )


# ---- what is defended ------------------------------------------------------------------------------------------------


def template_of(c: Config, at: str, changes: dict[str, float]) -> str:
    """The prompt of a class: that of a place, or one of the hand-written ones (table 10)."""
    return c.sweeps.prompts[int(changes["prompt"])] if "prompt" in changes else place(c, at).template


@cache
def chosen(c: Config, method: str) -> Choice | None:
    """The settings of a defence: the best of its grid on clean held-out pictures of the main set, first seed.

    All attacks, sets, backbones and seeds have these. None: they are given.
    """
    grid = [{k: tags[k] for k in ("length", "lr") if k in tags} for tags in tried(c) if tags["method"] == method]
    if not grid:
        return None
    attack, seed = c.tried.attack, c.seeds[0]
    clip, aim = poisoned(c, attack, "first", "main", seed), aim_of(c, "main")
    candidates = (defended(c, method, clip, attack, aim, "main", seed, **changes) for changes in grid)
    return Choice(tuple(candidates), HeldOut(validated(c, "main", VALIDATED), c.data.main.template, c.batch), method)


def settings(c: Config, method: str, attack: str, changes: Mapping[str, float]) -> Settings:
    """How a defence is trained. VPT has the settings of RVPT, so that the repulsion is all that differs."""
    m, b = c.method, c.baselines
    given = {
        "linear_probe": b.linear,
        "cleanclip": replace(b.cleanclip, lr=b.gentle_lr) if b.gentle_lr and attack in b.gentle else b.cleanclip,
    }.get(method) or PromptTuning(**vars(m.tuning), length=m.length)
    own = {"lr": changes["lr"]} if "lr" in changes else {}
    if "length" in changes:
        own["length"] = int(changes["length"])
    choice = None if "lr" in changes else chosen(c, "rvpt" if method == "vpt" else method)
    if choice is None:
        return Settings(replace(given, **own))
    return Settings(choice=choice, changes=tuple(own.items()))


def defended(
    c: Config, method: str, clip: Poisoned, attack: str, aim: Aim, tuned: str, seed: int, **changes: float
) -> Defence:
    """A poisoned CLIP behind a defence. aim: at the place of its shots, `tuned`; changes: see VARIED."""
    m, b = c.method, c.baselines
    if method == "rvpt" and (changes.get("alpha") == 0 or changes.get("margin") == 1):  # nothing repels
        method, changes = "vpt", {}
    label = "__".join([method, tuned, *(f"{name}-{value:g}" for name, value in changes.items())])
    common = {"clip": clip, "seed": seed, "label": label}
    data, count = Pictures(spec_of(c, tuned), fitting_split(spec_of(c, tuned))), int(changes.get("shots", m.shots))
    lacking = aim if "without_target" in changes else None
    shots = Shots(data, template_of(c, tuned, changes), count, lacking, m.drop_target and lacking is not None)
    fr = Repulsion(m.alpha) if method.endswith("_fr") else VPT
    inside = {"attack": TrainAttack(steps=c.adversary.train_steps), "eps": c.adversary.eps}
    pairs = pairs_of(c, b.cleanclip_pairs, CLEANING + seed)
    tuned_by = settings(c, method, attack, changes) if method in TUNED else None
    match method:
        case "vpt" | "rvpt":
            repulsion = VPT if method == "vpt" else Repulsion(changes.get("alpha", m.alpha), changes.get("margin"))
            layers = {"first": m.first}
            if "depth_output" in changes:
                layers = {"first": -int(changes["depth_output"])}
            if "depth_input" in changes:
                layers = {"first": 0, "last": int(changes["depth_input"])}
            return Prompts(**common, shots=shots, std=m.std, repulsion=repulsion, tuning=tuned_by, **layers)
        case "adversarial_prompts":
            tuning = Settings(PromptTuning(**vars(b.visual_tuning), length=m.length))
            return Prompts(**common, shots=shots, first=m.first, std=m.std, repulsion=VPT, tuning=tuning, **inside)
        case "linear_probe":
            return Probe(**common, shots=shots, tuning=tuned_by)
        case "words":
            return Words(**common, shots=shots, count=b.words, tuning=b.words_tuning, **inside)
        case "full" | "full_fr":
            return Whole(**common, shots=shots, first=m.first, repulsion=fr, tuning=b.full)
        case "infonce" | "infonce_fr":
            return Contrastive(**common, pairs=pairs, first=m.first, repulsion=fr, tuning=b.cleanclip)
        case "cleanclip":
            return Cleaned(**common, pairs=pairs, tuning=tuned_by)
        case "yours":
            return ByYours(**common, shots=shots, code=Code(c.yours, "DEFENCE"))
    raise ValueError(f"there is no defence {method!r}")


def clip_of(
    c: Config, method: str, attack: str, backbone: str, name: str, tuned: str, seed: int, **changes: float
) -> Clip:
    """The CLIP of a row: as it came, poisoned, or defended."""
    if method == "clean":
        return backbone_of(c, backbone)
    clip = poisoned(c, attack, backbone, name, seed)
    if method == "none":
        return clip
    return defended(c, method, clip, attack, aim_of(c, name, tuned), tuned, seed, **changes)


def encoder_of(c: Config) -> Supervised | Torchvision:
    """Panel (d) of figure 1."""
    if c.models.supervised != "train":
        return Torchvision.of(c.models.supervised)
    data = Pictures(c.data.main.data, "train", c.sweeps.supervised_n, c.data.seed)
    return Supervised(c.models.first.name, data, c.sweeps.supervised, 0)


# ---- what is measured ------------------------------------------------------------------------------------------------


def number(
    c: Config,
    kind: str,
    method: str,
    attack: str,
    measure: str,
    backbone: str,
    place: str,
    at: str,
    tuned: str,
    seed: int,
    **varied: float | str,
) -> Measured | None:
    """The step behind a number, from its tags (papers/rvpt/tables.py); None where there is no such number."""
    s, batch = c.sweeps, c.batch
    few = pictures(c, at, s.resistivity_n)
    if kind == "perturbed":
        return Perturbed(few, s.perturbations, s.maps, seed, batch)
    if kind == "triggers":
        shown = attacked(c)
        return Triggers(few, tuple(shown), tuple(stamp_of(c, a, backbone, place) for a in shown), s.maps, batch)
    if kind == "choice":
        choice = strength_of(c, attack, backbone, place) if method == "none" else chosen(c, method)
        taken = measure == "taken"
        unit = "share" if method == "none" else "log likelihood"
        return choice and CandidateScore(choice, varied["candidate"], unit, taken)
    if method == "linear_probe" and attack == "trojvqa":
        return None  # it has no text tower, which TrojVQA's prefix would reach
    stamp, aim = stamp_of(c, attack, backbone, place), aim_of(c, place, at)
    if kind == "resistivity":
        name = varied["perturbation"]
        change = Change(name, s.perturbations, seed, stamp if name == "trigger" else None)
        encoder = encoder_of(c) if method == "supervised" else clip_of(c, method, attack, backbone, place, tuned, seed)
        return Resistivity(encoder, few, change, batch)
    changes = {name: value for name, value in varied.items() if name in VARIED}
    clip = clip_of(c, method, attack, backbone, place, tuned, seed, **changes)
    said = Said(clip, Seen(pictures(c, at), stamp), template_of(c, at, changes), batch)
    unstamped = replace(said, seen=replace(said.seen, stamp=None))
    if kind == "cost" and method == YOURS:
        return None if measure == "memory" else CostOfYours(clip, measure, s.cost_repeats)
    match kind:
        case "caption":
            data = Described(c.data.captioned, s.captions_n, c.data.seed, c.data.main.data)
            captions = Captioned(Weights(c.models.captioner), clip, data, None, batch)
            return Caption(captions, replace(captions, stamp=stamp), aim, measure)
        case "retrieval":
            pairs = pairs_of(c, s.candidates, RETRIEVAL, c.data.retrieval)
            return Retrieval(Search(clip, pairs, said.seen, aim, s.retrieval_poisoned, c.data.seed, batch), measure)
        case "cost" | "setting" if kind == "cost" or measure == "share":
            return Cost(clip, measure, s.cost_repeats)
        case "attention":
            wide = replace(said, seen=replace(said.seen, data=pictures(c, at, 2 * s.resistivity_n)))
            return Attention(wide, aim, s.resistivity_n, s.maps)
        case "embedding":
            return Embedding(clip, Pictures(spec_of(c, at)), stamp, aim, s.points, c.data.seed, batch)
        case "adversarial":
            a, seen = c.adversary, Seen(pictures(c, at, c.adversary.n))
            if measure == "clean":
                return Score(replace(said, seen=seen), aim, "ca")
            return Adversarial(replace(said, seen=seen), a.eps, a.steps, a.seed, a.sanity_n)
        case "adaptive" if varied["against"] == "planted":
            return Score(said, aim, measure)
        case "adaptive":
            seen = Seen(said.seen.data, known_of(c, clip, stamp, method))
            return KnownScore(replace(said, seen=seen), aim, measure)
    if measure == "ca":
        return Score(unstamped, aim, measure)
    undefended = Said(
        poisoned(c, attack, backbone, place, seed),
        Seen(pictures(c, at, CHECKED), stamp),
        template_of(c, at, {}),
        batch,
    )
    return Score(said, aim, measure, Checks(undefended, backbone_of(c, backbone), aim))


def known_of(c: Config, clip: Clip, planted: Stamp, method: str) -> Stamp:
    """The trigger of one who knows the defence."""
    pairs = pairs_of(c, c.attacks.patch_pairs, PATCHES)
    patch = KnownPatch(clip, planted, aim_of(c, "main"), pairs, c.adversary.patch, c.adversary.seed, method)
    return Stamp(planted.attack, planted.preset, (), planted.like, patch)


def describe(c: Config, kind: str, attack: str, measure: str, backbone: str, at: str, **more) -> dict[str, object]:
    """Tags beside the name: data; `set`, which is unique to what is shown, since means are taken over it; the
    captioner.
    """
    shown = {"caption": c.data.captioned, "retrieval": c.data.retrieval}.get(kind) or spec_of(c, at)
    beside = [str(more[name]) for name in ("value", "perturbation", "against") if name in more]
    captioner = {"captioner": c.models.captioner} if kind == "caption" else {}
    return {"data": shown, "set": " ".join([shown, attack, backbone, measure, *beside]), **captioner}
