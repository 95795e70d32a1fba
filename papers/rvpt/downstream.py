"""Table 7: what the defended vision tower does inside a captioner (LLaVA), and in retrieval.

The paper says: the caption of a triggered picture holds the target class; one poisoned picture among the candidates is
in the first ten for captions of the target; how its place compares with the target's own pictures; whether a caption
finds its picture. How many pictures and captions, which BLEU, and how a prompted tower is put into LLaVA it does not
say: what is done here stands at each class.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt.defences import Model, model_of
from papers.rvpt.method import DeepPrompts
from papers.rvpt.scores import Clip
from shared.attacks.triggers import at_test
from shared.data.catalogue import open_vl
from shared.data.language import TEMPLATES
from shared.data.vision_language import CaptionSet
from shared.errors import UserError
from shared.experiment import source
from shared.experiment.leaves import Weights
from shared.experiment.step import Lab, Measured, Values, free, once
from shared.metrics import backdoor
from shared.metrics.captions import Cider, tokens
from shared.models.victim import Pixels
from shared.models.vlm import open_vlm
from shared.models.vlm.llava import LlavaVLM
from shared.repeat import joined, parts_of
from shared.steps.backdoor import Aim, Pairs, Seen, Stamp, side

WORDS = 20  # tokens of a caption, at most
LONGEST = 4  # n-grams of BLEU
OF_TARGET = 16  # pictures of the target class among the candidates: more than the ten places that are looked at


# ---- captioning ------------------------------------------------------------------------------------------------------


class PromptedTower(nn.Module):
    """A tower with deep prompts in the place of the vision tower of transformers' LLaVA.

    Its hidden states are f^0 … f^L, class token and patches: the prompts work between the tokens inside the blocks, and
    their outputs are thrown away, so the projector gets as many tokens as ever.
    """

    def __init__(self, prompts: DeepPrompts, dtype: torch.dtype):
        super().__init__()
        self._borrowed, self._dtype = (prompts,), dtype

    def forward(self, pixels: Tensor, output_hidden_states: bool = True) -> SimpleNamespace:
        """What LLaVA asks of a tower, for what a processor has made of pictures."""
        prompts = self._borrowed[0]
        states = prompts.states(pixels.to(prompts.prompts.dtype))
        return SimpleNamespace(hidden_states=[f.to(self._dtype) for f in states])


@contextlib.contextmanager
def seeing(vlm: LlavaVLM, visual: nn.Module) -> Iterator[LlavaVLM]:
    """The captioner with another vision tower, prompted or not.

    Raises UserError where it is no LLaVA or the tower does not fit.
    """
    if not isinstance(vlm, LlavaVLM):
        wrong = f"the captioner is a {type(vlm).__name__}"
        raise UserError(f"{wrong}: give --models.captioner a LLaVA, whose vision tower can be replaced.")
    inner, own = vlm.model.model, vlm.tower
    prompted = isinstance(visual, DeepPrompts)
    vlm.set_vision(visual.tower if prompted else visual)  # refuses what does not fit
    try:
        if prompted:
            inner.vision_tower = PromptedTower(visual, next(vlm.parameters()).dtype)
        yield vlm
    finally:
        inner.vision_tower = own


@dataclass(frozen=True)
class Described:
    """n pictures with reference captions, as large as those of the set `like`; seed: of the choice."""

    spec: str
    n: int
    seed: int
    like: str

    def identity(self, lab: Lab) -> list:
        """The contents of the set, the code that makes its pictures, and which of them are chosen."""
        data = self.open(lab)
        return [data.version, source.of(type(data)), self.n, self.seed]

    @once
    def open(self, lab: Lab) -> CaptionSet:
        """The whole set."""
        spec = "scenes-captions:plain" if self.spec == "scenes-captions" else self.spec
        return open_vl(spec, "test", lab.source, side(lab, self.like))

    def rows(self, lab: Lab) -> list[int]:
        """The indices of the choice."""
        data = self.open(lab)
        return data.usable(np.random.default_rng(self.seed).permutation(len(data)).tolist()[: self.n])

    @once
    def pictures(self, lab: Lab) -> Tensor:
        """x (n, 3, H, W), on the device."""
        data, parts = self.open(lab), parts_of(self.rows(lab), 64)
        return torch.cat([data.pictures(part) for part in parts]).to(lab.device)

    def references(self, lab: Lab) -> list[list[str]]:
        """The captions of each."""
        return self.open(lab).references(self.rows(lab))


@dataclass(frozen=True)
class Captioned:
    """What a captioner with the tower of a CLIP says of pictures, clean or triggered, in at most WORDS tokens."""

    captioner: Weights
    clip: Clip
    data: Described
    stamp: Stamp | None
    batch: int = free(256)

    @once
    def captions(self, lab: Lab) -> list[str]:
        """One per picture, made once."""
        x = self.data.pictures(lab)
        if self.stamp is not None:
            x = at_test(self.stamp.open(lab), x, self.data.rows(lab), 64)
        vlm = lab.once(("captioner", self.captioner), lambda: open_vlm(self.captioner.spec, device=lab.device))
        asked = [self.data.open(lab).prompt] * len(x)
        with seeing(vlm, model_of(lab, self.clip).visual):
            return vlm.answer(x, asked, max_tokens=WORDS, batch=min(64, self.batch))


@dataclass(frozen=True)
class Caption(Measured):
    """Captions by a captioner with the CLIP's tower, one value per picture.

    asr: whether the caption of a triggered picture names the target, over pictures none of whose references does;
    cider: CIDEr-D × 100 of clean pictures, document frequencies from their own references; bleu: BLEU-4 of clean
    pictures, see `bleu`. Pictures have the side at which the CLIP was poisoned, and are resized to the captioner's
    inside. extra: what was said of clean and of triggered pictures.
    """

    weight: ClassVar[float] = 12.0
    clean: Captioned
    triggered: Captioned
    aim: Aim
    measure: Literal["asr", "cider", "bleu"]

    def make(self, lab: Lab) -> Values:
        said = {"clean": self.clean.captions(lab), "triggered": self.triggered.captions(lab)}
        references, target = self.clean.data.references(lab), self.aim.said(lab)
        extra = {f"{state} captions": np.array(captions) for state, captions in said.items()}
        if self.measure == "cider":
            return Values(Cider(references).points(said["clean"], references), "CIDEr", extra)
        if self.measure == "bleu":
            scores = [bleu(caption, texts) for caption, texts in zip(said["clean"], references, strict=True)]
            return Values(np.array(scores), "share", extra)
        others = [i for i, texts in enumerate(references) if not any(target.named_in(text) for text in texts)]
        if not others:
            wrong = f"every picture of {self.clean.data.spec} that was chosen shows {target.name!r}"
            raise UserError(f"{wrong}: take more with --sweeps.captions-n.")
        hits = backdoor.caption_success([said["triggered"][i] for i in others], target.named_in)
        return Values(hits, "share", extra)


def bleu(caption: str, references: Sequence[str]) -> float:
    """BLEU-4 of one caption against several references, in [0, 1].

        BLEU = min(1, e^{1 − r/c}) · (p_1 p_2 p_3 p_4)^{1/4}
        p_1 = h_1/c,   p_n = (h_n + 1)/(max(0, c − n + 1) + 1) for n > 1

    h_n: n-grams of the caption that some reference has, each counted at most as often as there; c: its words; r: those
    of the reference nearest in length, the shorter of two. Papineni et al. 2002, smoothed for single sentences as in
    Lin and Och 2004 (ORANGE, §4). Words are those of CIDEr here.
    """
    said, refs = tokens(caption), [tokens(r) for r in references]
    if not said or not refs:
        return 0.0
    c, logs = len(said), 0.0
    for n in range(1, LONGEST + 1):
        most: Counter = Counter()
        for ref in refs:
            most |= _grams(ref, n)
        hits = sum((_grams(said, n) & most).values())
        if n == 1 and not hits:
            return 0.0
        add = int(n > 1)
        logs += math.log((hits + add) / (max(0, c - n + 1) + add))
    r = min((abs(len(ref) - c), len(ref)) for ref in refs)[1]
    return min(1.0, math.exp(1 - r / c)) * math.exp(logs / LONGEST)


def _grams(words: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))


# ---- retrieval -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """Pictures and captions that a CLIP compares: pairs, and OF_TARGET test pictures of the target beside them.

    seen: triggered test pictures; the first `poisoned` of other classes join the candidates one at a time. seed: of
    the choice of the target's pictures.
    """

    clip: Clip
    pairs: Pairs
    seen: Seen
    aim: Aim
    poisoned: int
    seed: int
    batch: int = free(256)

    @once
    def cosines(self, lab: Lab) -> dict[str, np.ndarray]:
        """clean (pairs × pairs), queries (captions of the target × candidates), poisoned (captions × poisoned).

        of_target (candidates,): which of them show the target. Made once.
        """
        model, pairs, target = model_of(lab, self.clip), self.pairs.open(lab), self.aim.said(lab)
        texts = pairs.captions(range(len(pairs)))
        named = [target.named_in(text) for text in texts]
        naming = [text for text, yes in zip(texts, named, strict=True) if yes]
        queries = list(dict.fromkeys(naming + [target.say(template) for template in TEMPLATES]))
        parts = parts_of(list(range(len(pairs))), self.batch)
        candidates = torch.cat([self._embedded(lab, model, pairs.__getitems__(rows)[0]) for rows in parts])
        own = self._embedded(lab, model, self._of_target(lab))
        asked, poisoned = model.text(queries).cpu(), self._embedded(lab, model, self._poisoned(lab))
        found = {
            "clean": model.text(texts).cpu() @ candidates.T,
            "queries": asked @ torch.cat([candidates, own]).T,
            "poisoned": asked @ poisoned.T,
        }
        cosines = {name: values.double().numpy() for name, values in found.items()}
        return cosines | {"of_target": np.array([*named, *[True] * len(own)])}

    def _of_target(self, lab: Lab) -> Tensor:
        data = self.seen.data.open(lab)
        rows = np.flatnonzero(np.asarray(data.labels) == self.aim.label(lab))
        chosen = np.random.default_rng(self.seed).permutation(rows)[:OF_TARGET].tolist()
        return data.__getitems__(data.usable(chosen))[0]

    def _poisoned(self, lab: Lab) -> Tensor:
        (x, y), indices = self.seen.clean(lab), self.seen.data.rows(lab)
        rows = (y != self.aim.label(lab)).nonzero().flatten()[: self.poisoned]
        return at_test(self.seen.stamp.open(lab), x[rows], [indices[i] for i in rows.tolist()])

    @torch.no_grad()
    def _embedded(self, lab: Lab, model: Model, x: Tensor) -> Tensor:
        """Unit embeddings (N, D) of pictures, on the CPU."""
        pixels = Pixels.of(model.visual).to(lab.device)

        def embedded(part: Tensor) -> Tensor:
            return F.normalize(model.visual(pixels(part.to(lab.device))), dim=1).float().cpu()

        return joined(embedded, x.split(self.batch))


@dataclass(frozen=True)
class Retrieval(Measured):
    """Pictures by captions.

    asr, rank_ratio: one value per poisoned picture, the mean over the captions of the target (each different one of
    the pairs, and the templates). asr: in the first ten. rank_ratio: the share of the target's clean candidates ahead
    of it, so high is good for the defender. ca: per pair, whether its caption's first candidate is its own picture,
    among the pictures of the pairs. With fewer than ten pictures of the target, any could come into the first ten.
    """

    weight: ClassVar[float] = 4.0
    search: Search
    measure: Literal["asr", "rank_ratio", "ca"]

    def make(self, lab: Lab) -> Values:
        found, skipped = self.search.cosines(lab), self.search.seen.skipped(lab)
        clean, queries, marks = found["clean"], found["queries"], np.append(found["of_target"], False)
        if self.measure == "ca":
            return Values(backdoor.retrieval_accuracy(clean, np.arange(len(clean))), "share", skipped=skipped)
        values = []
        for column in found["poisoned"].T:
            table, last = np.concatenate([queries, column[:, None]], axis=1), queries.shape[1]
            asr = self.measure == "asr"
            each = backdoor.retrieval_success(table, last) if asr else backdoor.rank_ratio(table, last, marks)
            values.append(each.mean())
        return Values(np.array(values), "share", skipped=skipped)
