"""How every run of `papers.roclip.cells` is trained, and what its weights depend on.

    train(bench, run)       trains it and keeps, each under the run's key: the weights of the last RoCLIP epoch and of the last plain epoch (of other
                            methods: of the last), the pools, what was measured at the end of every epoch, and the manifests of its poisoned pairs
    settings(bench, run)    everything of the configuration that its training reads

    results/<scale>/roclip/checkpoints/<run>__<epoch>.safetensors, <run>__pools.safetensors, <run>.history.json; …/poison/<pairs>__<attack>.jsonl
"""

import json
from dataclasses import replace
from pathlib import Path

from torch import nn

from papers.roclip.augment import CaptionAugmentation
from papers.roclip.cells import Run
from papers.roclip.config import Config
from papers.roclip.safeclip import safeclip
from papers.roclip.training import Method
from papers.roclip.training import train as train_clip
from shared.errors import UserError
from shared.experiment.scale import WEIGHTLESS, plain
from shared.experiment.store import slug
from shared.files import digest, write_json
from shared.models.clip import save_tensors
from shared.models.sources import is_fresh
from shared.training.cleanclip import cleanclip

CODE = "roclip-train-1"  # raise it when the meaning of a training changes: everything is then trained again


def checkpoint(config: Config, scale: str, run: Run, what: str) -> Path:
    """Where the weights after an epoch, by its name, or the "pools" are kept."""
    return _folder(config, scale) / "checkpoints" / f"{run.slug}__{what}.safetensors"


def history_path(config: Config, scale: str, run: Run) -> Path:
    """Where the measurements of every epoch are kept; written last, so that it stands for the whole run."""
    return _folder(config, scale) / "checkpoints" / f"{run.slug}.history.json"


def manifest_path(config: Config, scale: str, run: Run, attack: str) -> Path:
    """Where it says what became of the pairs."""
    return _folder(config, scale) / "poison" / f"{_pairs(run)}__{attack}.jsonl"


def _folder(config: Config, scale: str) -> Path:
    return config.results / scale / "roclip"


def _pairs(run: Run) -> str:
    return slug(run.regime, f"seed{run.seed}", *([f"m{run.m}"] if run.m else []))


def read_history(path: Path) -> dict:
    """{} where there is none, or it is damaged: the run is then made again."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def is_done(bench, run: Run) -> bool:
    """Whether everything of a run is there under its key."""
    kept = [*run.epochs(bench.config), *(["pools"] if run.matching(bench.config) else [])]
    key = bench.key(run)
    return read_history(history_path(bench.config, bench.scale, run)).get("key") == key and all(
        is_fresh(checkpoint(bench.config, bench.scale, run, what), key) for what in kept)


def cost(config: Config, run: Run) -> float:
    """How long a run takes, relative to others: pairs that pass through both towers."""
    t = config.training(run.regime)
    if run.method == "cleanclip":
        return 2.0 * config.methods.cleanclip.steps * config.methods.cleanclip.batch
    pairs = config.pairs_n(run.regime) + config.added(run.regime, run.m)
    return (2.2 if run.method == "safeclip" else 1.0) * t.epochs * pairs


# ---- what a training reads -------------------------------------------------------------------------------------------------


def method_of(config: Config, run: Run) -> Method:
    """What is done with pairs. Draws and first contents are of the run's seed; the release draws every caption's one form with the seed 1."""
    if run.method == "clip":
        return Method()
    methods, changed = config.methods, dict(run.changes).get("augment")
    images = None if changed == "none" else replace(methods.images, seed=run.seed)
    alpha = {None: methods.alpha, "both": methods.alpha or config.sweeps.alpha}.get(changed, 0.0)
    matching = run.matching(config)
    return Method(None if matching is None else replace(matching, seed=run.seed), images, CaptionAugmentation(alpha, 1 + run.seed) if alpha else None)


def settings(bench, run: Run) -> list:
    """Everything that a run's training reads, besides weights that it begins with: for its key."""
    config = bench.config
    if run.method == "cleanclip":
        return ["cleanclip", plain(config.methods.cleanclip, WEIGHTLESS), run.seed, bench.clean_version(run.regime, run.seed, True), config.watch_n,
                bench.key(poisoned_by(run))]
    a = config.attacks
    poison = [bench.clean_version(run.regime, run.seed), a.targets.n, run.m or config.captions_each(run.regime), a.targets.scan,
              bench.images.version, [[name, plain(bench.trigger(name).spec), *_recipe(getattr(a, name))] for name in a.planted]]
    what = plain(config.methods.safeclip) if run.method == "safeclip" else plain(method_of(config, run))
    world = bench.labelled(config.data.main, "train").version
    return [run.regime, run.method, run.seed, what, plain(config.training(run.regime), WEIGHTLESS), bench.origin(run.regime), poison,
            [config.watch_n, config.data.seed, world]]


def _recipe(recipe) -> list:
    return [recipe.target, recipe.rate, recipe.captions]


def key(bench, run: Run) -> str:
    """Identity of the weights of a run."""
    return digest([CODE, *settings(bench, run)])


def poisoned_by(run: Run) -> Run:
    """The CLIP that CleanCLIP cleans: the one that plain fine-tuning has poisoned."""
    return Run("finetune", "clip", run.seed)


# ---- training --------------------------------------------------------------------------------------------------------------


def train(bench, run: Run, accelerator=None) -> str:
    """Train a run and save it; returns what to say about it. accelerator: all processes train together, and the main one writes."""
    config, scale, key = bench.config, bench.scale, bench.key(run)
    main = accelerator is None or accelerator.is_main_process
    history = history_path(config, scale, run)
    partial = history.with_name(f"{run.slug}-{key[:12]}.ckpt")
    if main:
        history.parent.mkdir(parents=True, exist_ok=True)
        bench.poisons(run).write_manifests(_folder(config, scale) / "poison", _pairs(run))
    if accelerator is not None:
        accelerator.wait_for_everyone()
    kept = {epoch: name for name, epoch in run.epochs(config).items()}
    watch = bench.watch(run)

    def after_epoch(epoch: int, clip: nn.Module, pools: dict) -> dict:
        if main and epoch in kept:
            save_tensors(clip.state_dict(), checkpoint(config, scale, run, kept[epoch]), {"key": key})
        return watch(epoch, clip, pools)

    loss, rows = _fit(bench, run, accelerator, partial, after_epoch)
    if not main:
        return ""
    missing = [name for name in kept.values() if not is_fresh(checkpoint(config, scale, run, name), key)]
    partial.unlink(missing_ok=True)
    if missing:
        raise UserError(f"{run.slug}: the weights of its {missing[0].replace('_', ' ')} are gone since the run was interrupted: train it again.")
    write_json(history, {"key": key, "loss": loss, "history": rows})
    last = rows[-1]
    said = {"PSR": last.get("psr"), "BSR": last.get("bsr"), "accuracy": last.get("accuracy")}
    return f"loss {loss:.3f}, " + ", ".join(f"{k} {sum(v) / len(v):.2f}" for k, v in said.items() if v)


def _fit(bench, run: Run, accelerator, partial: Path, after_epoch) -> tuple[float, list[dict]]:
    """(last loss, rows of the epochs) of a run."""
    config, training = bench.config, replace(bench.config.training(run.regime), seed=run.seed)
    if run.method == "cleanclip":
        clip = bench.filled(poisoned_by(run), "last")
        cleaning = replace(config.methods.cleanclip, seed=run.seed)
        loss = cleanclip(clip, bench.clean(run.regime, run.seed, True), cleaning, partial, accelerator, name=run.slug)
        return loss, [{"epoch": training.epochs, "matched": False, "loss": loss} | after_epoch(training.epochs, clip, {})]
    clip, pairs = bench.start(run.regime, run.seed), bench.poisoned(run)
    if run.method == "safeclip":
        found = safeclip(clip, pairs, config.methods.safeclip, training, partial, after_epoch, name=run.slug)
        return found.loss, found.history
    found = train_clip(clip, pairs, method_of(config, run), training, accelerator, partial, after_epoch, name=run.slug)
    if found.pools and (accelerator is None or accelerator.is_main_process):
        save_tensors(nn.ModuleDict(found.pools).state_dict(), checkpoint(config, bench.scale, run, "pools"), {"key": bench.key(run)})
    return found.loss, found.history
