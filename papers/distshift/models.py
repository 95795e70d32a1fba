"""What a process works with: the victims, the diffusion models and the defences."""

from collections.abc import Callable
from dataclasses import replace

from papers.distshift.baselines import GDMP
from papers.distshift.cells import DIFFUSION, Cell
from papers.distshift.config import Config
from papers.distshift.method import Distshift
from papers.distshift.runs import Run, run_of
from shared.diffusion import Denoiser, Purifier, Sampler, open_denoiser
from shared.diffusion.weights import read_denoiser
from shared.experiment.bench import PictureBench
from shared.experiment.scale import plain
from shared.files import digest, sha256_file
from shared.models import preprocess
from shared.models.classifier import Classifier, open_classifier
from shared.models.sources import identity


class Bench(PictureBench):
    """The victims, the diffusion models and the defences of both sets, opened once, when first needed."""

    config: Config

    def downloads(self) -> list[tuple[str, str]]:
        return [(p.data, split) for p in self.config.protected for split in ("train", "test")]

    # -- victims ------------------------------------------------------------------------------------------------------------------------

    def run_key(self, run: Run) -> str:
        """The key of what is trained here."""
        return run.key(self.labelled(run.spec, "train").version)

    def _trained(self, run: Run) -> str:
        return str(self.finished(run.checkpoint(self.config, self.scale), self.run_key(run)))

    def victim(self, spec: str, which: str = "base") -> Classifier:
        """The classifier that is protected, or the adversarially trained one ("at")."""
        p = self.config.of(spec)

        def make():
            run, weights = run_of(self.config, p, which), p.weights if which == "base" else p.at_weights
            keep = imagenet30_logits() if p.restrict and run is None and weights != "random" else None
            source = weights if run is None else self._trained(run)
            return open_classifier(p.arch, source, self.labelled(spec).num_classes, keep, self.device)

        return self.once(("victim", spec, which), make)

    def identity(self, spec: str, which: str) -> str:
        """What a victim ("base", "at") or the "denoiser" of a set is made of, for keys."""
        p = self.config.of(spec)

        def make():
            run, source = run_of(self.config, p, which), {"base": p.weights, "at": p.at_weights, "denoiser": p.denoiser}[which]
            if run is not None:
                return digest([self.run_key(run), sha256_file(self._trained(run))])
            if which == "denoiser":
                return identity(source)
            return digest([p.arch, p.restrict, identity(source), self.labelled(spec).num_classes])

        return self.once(("identity", spec, which), make)

    # -- purification -------------------------------------------------------------------------------------------------------------------

    def denoiser(self, spec: str) -> Denoiser:
        """The diffusion model of a set; sets with the same source share it."""
        p = self.config.of(spec)
        run = run_of(self.config, p, "denoiser")
        if run is None:
            return self.once(("denoiser", p.denoiser), lambda: open_denoiser(p.denoiser).to(self.device))
        return self.once(("denoiser", run), lambda: read_denoiser(self._trained(run)).to(self.device))

    def time(self, spec: str) -> int:
        """t* of a set."""
        return self.config.of(spec).t or self.config.method.t

    def purifier(self, spec: str, t: int | None = None) -> Purifier:
        """Noising to t* and the reverse process."""
        m = self.config.method
        return Purifier(self.denoiser(spec), self.time(spec) if t is None else t, Sampler(m.sampler, m.sampler_steps, m.eta), m.recompute)

    def distshift(self, spec: str, t: int | None = None, rounds: int | None = None, **changes) -> Distshift:
        """The guided purifier; changes: fields of Guidance."""
        guidance = replace(self.config.guidance, **changes)
        return Distshift(self.purifier(spec, t), self.victim(spec), guidance, self.config.method.rounds if rounds is None else rounds)

    def diffpure(self, spec: str, t: int | None = None, rounds: int = 1) -> Distshift:
        """The same without a guide: DiffPure in its form with one DDPM and fixed times."""
        return Distshift(self.purifier(spec, t), self.victim(spec), None, rounds)

    def gdmp(self, spec: str) -> GDMP:
        """Guided towards the diffused input, in pixels."""
        b = self.config.baselines
        purifier = self.purifier(spec)
        purifier.sampler = replace(purifier.sampler, variance="large")  # V = β, as published
        return GDMP(purifier, b.gdmp, b.gdmp_rounds)

    def defence(self, method: str, spec: str) -> Callable:
        """What stands in front of the victim in a row; identity for the undefended and the adversarially trained one."""
        b = self.config.baselines
        return {"none": preprocess.Identity, "pgd_at": preprocess.Identity, "jpeg": lambda: preprocess.JPEG(b.jpeg),
                "bits": lambda: preprocess.BitDepth(b.bits), "tv": lambda: preprocess.TotalVariation(b.tv),
                "resize_pad": lambda: preprocess.ResizePad(1 + b.pad),
                "noise": lambda: preprocess.NoiseOnly(self.denoiser(spec).schedule, self.time(spec)), "diffpure": lambda: self.diffpure(spec),
                "gdmp": lambda: self.gdmp(spec), "distshift": lambda: self.distshift(spec)}[method]()

    def defence_key(self, cell: Cell, method: str | None = None) -> list:
        """Everything that a cell's defence is made of, for keys."""
        method, config = method or cell.method, self.config
        settings = {k: v for k, v in plain(config.method).items() if k not in ("batch", "recompute", "rounds", "t")} | {"t": self.time(cell.spec)}
        baselines = plain(config.baselines)
        if method in (*DIFFUSION, "noise"):
            own = {"gdmp": [baselines[k] for k in sorted(baselines) if k.startswith("gdmp")],
                   "distshift": [plain(config.guidance), config.method.rounds]}.get(method, [])
            return [method, self.identity(cell.spec, "denoiser"), settings, own]
        return [method, {k: v for k, v in baselines.items() if not k.startswith("gdmp")} if method not in ("none", "pgd_at") else []]


def imagenet30_logits() -> list[int]:
    """The 30 classes among ImageNet's 1,000 logits, in the order of their labels."""
    from shared.data.imagenet30 import LOGITS

    return list(LOGITS)
