"""From options to a page: what is given is looked at, the numbers are planned, made as every paper's are, and shown."""

import base64
import contextlib
import io
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import models

from shared.data.base import LabelledImages
from shared.data.catalogue import Source
from shared.data.stored import KINDS
from shared.errors import UserError
from shared.experiment import source
from shared.experiment.lab import Lab
from shared.experiment.paper import Paper, named
from shared.experiment.scripts import evaluate, locked
from shared.experiment.step import Measured, needs
from shared.files import digest, write_atomic, write_json
from shared.judge import page
from shared.judge.given import Model, Part, Set, defence_of
from shared.judge.look import Facts, look, see
from shared.judge.options import Config
from shared.judge.steps import Again, Against, Said, Score, System, Worst, as_png
from shared.models.clip import save_tensors
from shared.processes import accelerator
from shared.report.plots import Panel
from shared.steps.purification import Attacked, Checked, Seen
from shared.steps.yours import Code

NAME = named("kind", "attack", "judged", "seed{}")


def judge(c: Config) -> None:
    """All of it. Raises UserError for what `look` refuses."""
    source.renew()
    lab = Lab(c.out / page.KEPT / "judge", source_of(c), accelerator())
    data = Set(spec_of(c), names_of(c), c.template)
    every = len(data.open(lab))
    c = replace(c, n=min(c.n or every, every))
    model = Model(c.model, data)
    defence = defence_of(c.defence, c.denoiser, model)
    with locked(lab.root) if lab.accelerator.is_main_process else contextlib.nullcontext():
        lab.make(needs(defence))  # what it is calibrated on, say
        own = tuple(against(c, "own", Code(spec, "--attack")) for spec in c.attack)
        whole = Part(data, 0, c.n, c.seed)
        if lab.accelerator.is_main_process:
            see(lab, whole)
        plan = Plan(lab, c, data, look(lab, model, defence, whole, own))
        paper = Paper("judge", {}, lambda config: None, (), plan.number, NAME, facts=plan.shown)
        evaluate(paper, "", c, lab, paper.numbers(c, page.grids(plan.rows, c.seed)))
        if lab.accelerator.is_main_process:
            write_json(lab.root / page.EXAMPLES, examples(lab, plan))
            if c.pictures:
                write_pictures(lab, c, plan)
            print(page.Judged(c.out).write(), flush=True)
    lab.accelerator.end_training()


def source_of(c: Config) -> Source:
    """Where the pictures are."""
    root = c.data if spec_of(c) == "folder:all" else c.data_root
    return Source(root=root, size=c.size, skip_corrupt=c.skip_corrupt)


def spec_of(c: Config) -> str:
    """The set as `shared.data.catalogue` names it. Raises UserError for what is neither a set nor a folder."""
    kind, colon, name = c.data.partition(":")
    if colon and kind in ("scenes", "digits", *(KINDS if name else ())):
        return c.data
    if kind == "torchvision" and name:
        return f"named:{name}"
    if not Path(c.data).expanduser().is_dir():
        raise UserError(
            f"--data {c.data}: there is no such folder; write a folder, csv:FILE, shards:PATTERN, hf:FOLDER, "
            "torchvision:NAME or scenes:SET."
        )
    return "folder:all"


def names_of(c: Config) -> tuple[str, ...]:
    """The lines of --classes, or what weights of torchvision say. Raises UserError for a file without names."""
    kind, _, name = c.model.partition(":")
    if not c.classes and kind == "torchvision" and name in models.list_models(module=models):
        return tuple(models.get_model_weights(name).DEFAULT.meta["categories"])
    if not c.classes:
        return ()
    try:
        text = Path(c.classes).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--classes {c.classes} cannot be read ({error}): give a text file with a name a line."
        ) from error
    names = tuple(map(str.strip, text.rstrip().splitlines()))
    if not names or not all(names):  # the place of a line counts
        where = f"is blank in line {names.index('') + 1}" if any(names) else "has no names"
        raise UserError(f"--classes {c.classes} {where}: write one name a line.")
    return names


def against(c: Config, kind: str, own: Code | None = None) -> Against:
    """An attack of the table, at the budget of the options."""
    return Against(kind, c.norm, c.eps, c.steps, c.targets, c.queries, c.eot, c.seed, own, c.batch)


class Plan:
    """What the tags of a number mean."""

    def __init__(self, lab: Lab, c: Config, data: Set, facts: Facts):
        self.c, self.data, self.facts = c, data, facts
        self.rows = page.rows(c, facts.system.random)
        parts = (Part(data, k, min(c.part, c.n - k), c.seed) for k in range(0, c.n, c.part))
        self.chunks = [part for part in parts if part.rows(lab)]  # a part may hold nothing that can be read
        self.n = sum(len(part.rows(lab)) for part in self.chunks)

    def shown(self, lab: Lab, config: Config) -> dict:
        """What the page needs to know beside the options."""
        data = self.data.open(lab)
        return {
            "attacks": list(self.rows.items()),
            "names": list(data.classes),
            "random": self.facts.system.random,
            "n": self.n,
            "cautions": [*self.facts.cautions, *self._left_out(data)],
            "pictures": digest([data.version, self.c.n, self.c.seed]),
        }

    def _left_out(self, data: LabelledImages) -> list[str]:
        """What is said where files could not be read."""
        lost = data.skipped
        return [f"{len(lost)} things cannot be read and are left out, the first is: {lost[0]}"] if lost else []

    def said(self, attack: str, system: System) -> tuple[Said, ...]:
        """What a system says of the pictures of an attack; transfer is on the model alone, all others on the system."""
        c, out = self.c, []
        for k, part in enumerate(self.chunks):
            row, attacked = f"{attack}-{k}", None
            if attack != "clean":
                target = self.facts.bare if attack == "transfer" else self.facts.system
                attacked = Attacked(target, part, self.against(attack), "judge", row)
            row += "" if system == self.facts.system else "-bare"
            out.append(Said(system, Seen(part, attacked), c.repeats if system.random else 1, c.seed, c.batch, row))
        return tuple(out)

    def against(self, attack: str) -> Against:
        """The attack of a row."""
        if attack.startswith("own"):
            return against(self.c, "own", Code(self.c.attack[int(attack[3:])], "--attack"))
        return against(self.c, "cascade" if attack == "transfer" else attack)

    @property
    def worst(self) -> Worst:
        """Over all attacks."""
        return Worst(tuple(self.said(attack, self.facts.system) for attack in self.rows if attack != "worst"))

    def number(self, c: Config, kind: str, attack: str, judged: str, seed: int) -> Measured | None:
        """The step behind a number; None: there is none."""
        if attack == "worst":
            if judged == "mean":
                return Score(self.worst)
            return Again(self.worst, judged) if judged in page.AGAIN.values() else None
        if judged == "bare":
            known = attack in ("clean", "transfer") and c.defence != "none"
            return Score(Worst((self.said(attack, self.facts.bare),))) if known else None
        if judged == "all" and not self.facts.system.random:
            return None
        few, checks = Seen(self.chunks[0], n=c.sanity_n), None
        if attack in page.CHECKED and judged == "mean":
            checks = Checked(self.facts.system, few, self.against(attack))
        return Score(Worst((self.said(attack, self.facts.system),)), judged, checks)


def examples(lab: Lab, plan: Plan) -> list[dict]:
    """`Panel`s for the page: the first pictures that the system is right about, row by row as they are, under the
    attack that is strongest for each, and what that changes."""
    part, worst, names = plan.chunks[0], plan.worst, plan.data.open(lab).classes
    x, y = (kept.cpu() for kept in Seen(part).clean(lab))
    first = torch.stack([lab.weights(parts[0])["labels"][:, 0].cpu() for parts in worst.attacks])
    chosen, attacked = worst.chosen(lab)[: len(x)], worst.pictures(lab)[0].cpu()
    said = first[chosen, torch.arange(len(x))]
    out = []
    for row, i in enumerate(first[0].eq(y).nonzero()[: page.SHOWN, 0].tolist(), start=1):
        change = (attacked[i] - x[i]) / (2 * (attacked[i] - x[i]).abs().max().clamp_min(1e-6)) + 0.5
        for column, (title, picture, label) in enumerate(
            (("no attack", x[i], first[0, i]), ("attacked", attacked[i], said[i]), ("change", change, None)), start=1
        ):
            tone = "" if label is None else "good" if label == y[i] else "bad"
            words = [] if label is None else [(names[int(label)], tone)]
            data = base64.b64encode(png(picture)).decode()
            panel = Panel(row, column, title if row == 1 else "", words, data, picture.shape[2], picture.shape[1])
            out.append(asdict(panel))
    return out


def png(picture: Tensor) -> bytes:
    """A picture (3, H, W) in [0, 1] as a file."""
    buffer = io.BytesIO()
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(lab: Lab, c: Config, plan: Plan) -> None:
    """The strongest pictures as PNG (rounded to 8 bits) and, as they are, in one file of tensors with their labels."""
    parts = plan.worst.pictures(lab)
    x, rows = torch.cat(parts).cpu(), [row for part in plan.chunks for row in part.rows(lab)]
    y = torch.cat([Seen(part).clean(lab)[1] for part in plan.chunks]).cpu()
    save_tensors({"x_adv": x, "y": y, "indices": torch.tensor(rows)}, c.out / "adversarial.safetensors")
    for row, label, picture in zip(rows, y.tolist(), as_png(x), strict=True):
        write_atomic(c.out / "adversarial" / f"{row:06d}-class{label}.png", png(picture))
