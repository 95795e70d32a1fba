"""Table 7: what the defended vision tower does inside a captioner (LLaVA), and in retrieval.

The paper says: the caption of a triggered picture holds the target class; one poisoned picture among the candidates is in the first ten for captions
of the target; how its place compares with the target's own pictures; whether a caption finds its picture. How many pictures and captions, which BLEU,
and how a prompted tower is put into LLaVA it does not say: what is done here stands at each function.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt.cells import Cell
from papers.rvpt.method import DeepPrompts
from papers.rvpt.models import Model
from shared.attacks.triggers import at_test
from shared.data.catalogue import open_vl
from shared.data.language import TEMPLATES
from shared.errors import UserError
from shared.experiment.evaluation import Values
from shared.metrics import backdoor
from shared.metrics.captions import Cider, tokens
from shared.models.sources import identity
from shared.models.victim import Pixels
from shared.models.vlm import open_vlm
from shared.models.vlm.llava import LlavaVLM

WORDS = 20  # tokens of a caption, at most
LONGEST = 4  # n-grams of BLEU
RETRIEVAL = 4000  # seed of the candidates
OF_TARGET = 16  # pictures of the target class among them: more than the ten places that are looked at


# ---- captioning ------------------------------------------------------------------------------------------------------------


class PromptedTower(nn.Module):
    """A tower with deep prompts, in the place of the vision tower of transformers' LLaVA: its hidden states are f^0 … f^L, class token and patches.

    The prompts work between the tokens inside the blocks, and their outputs are thrown away: the projector gets as many tokens as ever.
    """

    def __init__(self, prompts: DeepPrompts, dtype: torch.dtype):
        super().__init__()
        self._borrowed, self._dtype = (prompts,), dtype

    def forward(self, pixels: Tensor, output_hidden_states: bool = True) -> SimpleNamespace:
        prompts = self._borrowed[0]
        return SimpleNamespace(hidden_states=[f.to(self._dtype) for f in prompts.states(pixels.to(prompts.prompts.dtype))])


@contextlib.contextmanager
def seeing(vlm: LlavaVLM, visual: nn.Module) -> Iterator[LlavaVLM]:
    """The captioner with another vision tower, prompted or not. Raises UserError where it is no LLaVA or the tower does not fit."""
    if not isinstance(vlm, LlavaVLM):
        raise UserError(f"the captioner is a {type(vlm).__name__}: give --models.captioner a LLaVA, whose vision tower can be replaced.")
    inner, own = vlm.model.model, vlm.tower
    prompted = isinstance(visual, DeepPrompts)
    vlm.set_vision(visual.tower if prompted else visual)  # refuses what does not fit
    try:
        if prompted:
            inner.vision_tower = PromptedTower(visual, next(vlm.parameters()).dtype)
        yield vlm
    finally:
        inner.vision_tower = own


def caption(m, cell: Cell) -> Values:
    """A captioner with the cell's tower on `captions_n` pictures, answers of at most 20 tokens, one value per picture.

    asr: whether the caption of a triggered picture names the target; over pictures none of whose references does. cider: CIDEr-D × 100 of clean
    pictures, document frequencies from their own references. bleu: BLEU-4 of clean pictures, see `bleu`. Pictures have the side of the main set, at
    which the CLIP was poisoned, and are resized to the captioner's inside. extra: what was said of clean and of triggered pictures.
    """
    said, references = _captions(m, cell)
    extra = {f"{k} captions": np.array(v) for k, v in said.items()}
    if cell.measure == "cider":
        return Values(Cider(references).points(said["clean"], references), "CIDEr", extra)
    if cell.measure == "bleu":
        return Values(np.array([bleu(c, r) for c, r in zip(said["clean"], references, strict=True)]), "share", extra)
    target = m.bench.target(cell.place)
    others = [i for i, texts in enumerate(references) if not any(target.named_in(t) for t in texts)]
    if not others:
        raise UserError(f"every picture of {m.config.data.captioned} that was chosen shows {target.name!r}: take more with --sweeps.captions-n.")
    return Values(backdoor.caption_success([said["triggered"][i] for i in others], target.named_in), "share", extra)


def _captions(m, cell: Cell) -> tuple[dict[str, list[str]], list[list[str]]]:
    """({clean, triggered: captions}, references), made once per model."""
    name = ("captions", cell.poison, cell.defence, cell.attack)
    if name not in m.held:
        bench, config = m.bench, m.config
        x, indices, references = bench.once("captioned", lambda: _captioned(m))
        vlm = bench.once("captioner", lambda: open_vlm(config.models.captioner, device=bench.device))
        trigger = bench.trigger(cell.attack, cell.backbone)
        pictures = {"clean": x, "triggered": at_test(trigger, x, indices, 64)}
        prompts = [bench.once("instruction", lambda: _caption_set(m).prompt)] * len(x)
        with seeing(vlm, bench.of(cell).visual):
            m.held[name] = {k: vlm.answer(v, prompts, max_tokens=WORDS, batch=min(64, config.batch)) for k, v in pictures.items()}, references
    return m.held[name]


def captioner_key(m) -> list:
    """What captions depend on beside the cell's CLIP and trigger: the captioner, and pictures and references."""
    return [identity(m.config.models.captioner), _caption_set(m).version]


def _caption_set(m):
    spec = m.config.data.captioned
    return m.bench.once("caption set", lambda: open_vl("scenes-captions:plain" if spec == "scenes-captions" else spec, "test", m.config.source,
                                                       m.bench.size))


def _captioned(m) -> tuple[Tensor, list[int], list[list[str]]]:
    """(pictures, their indices, their references): a choice by the seed of the data."""
    data, n = _caption_set(m), m.config.sweeps.captions_n
    order = np.random.default_rng(m.config.data.seed).permutation(len(data)).tolist()
    indices = data.usable(order[:n])
    x = torch.cat([data.pictures(part) for part in _split(indices, 64)])
    return x.to(m.bench.device), indices, data.references(indices)


def _split(values: list, n: int) -> list[list]:
    return [values[i:i + n] for i in range(0, len(values), n)]


def bleu(caption: str, references: Sequence[str]) -> float:
    """BLEU-4 of one caption against several references, in [0, 1].

        BLEU = min(1, e^{1 − r/c}) · (p_1 p_2 p_3 p_4)^{1/4},     p_1 = h_1/c,   p_n = (h_n + 1)/(max(0, c − n + 1) + 1) for n > 1

    h_n: n-grams of the caption that some reference has, each counted at most as often as there; c: its words; r: those of the reference nearest
    in length, the shorter of two. Papineni et al. 2002, smoothed for single sentences as in Lin and Och 2004 (ORANGE, §4). Words are those of CIDEr
    here.
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


# ---- retrieval -------------------------------------------------------------------------------------------------------------


def retrieval(m, cell: Cell) -> Values:
    """Pictures by captions, with the cell's CLIP: `candidates` pairs, and for asr and rank_ratio 16 test pictures of the target class beside them.

    asr, rank_ratio: one value per poisoned picture, of `retrieval_poisoned` triggered pictures of other classes that join the candidates one at a
    time: the mean over the captions of the target (each different one of the pairs, and the templates). asr: in the first ten. rank_ratio: the share
    of the target's clean candidates ahead of it, so high is good for the defender. ca: per pair, whether its caption's first candidate is its own
    picture, among the pictures of the pairs. With fewer than ten pictures of the target, any picture could come into the first ten.
    """
    made = _retrieval(m, cell)
    if cell.measure == "ca":
        return Values(backdoor.retrieval_accuracy(made["clean"], np.arange(len(made["clean"]))), "share")
    queries, poisoned, marks = made["queries"], made["poisoned"], made["of_target"]
    values = []
    for column in poisoned.T:
        table, last = np.concatenate([queries, column[:, None]], axis=1), queries.shape[1]
        each = backdoor.retrieval_success(table, last) if cell.measure == "asr" else backdoor.rank_ratio(table, last, np.append(marks, False))
        values.append(each.mean())
    return Values(np.array(values), "share")


def candidates_key(m) -> str:
    """Identity of the pairs to retrieve among; those of the scenes world are not drawn for it."""
    return m.bench.pairs_version(m.config.sweeps.candidates, RETRIEVAL, m.config.data.retrieval)


def _candidates(m):
    return m.bench.pairs(m.config.sweeps.candidates, RETRIEVAL, m.config.data.retrieval)


def _retrieval(m, cell: Cell) -> dict[str, np.ndarray]:
    """Cosines of a cell's CLIP, made once: clean (pairs × pairs), queries (captions of the target × candidates), poisoned (the same captions ×
    poisoned pictures), of_target (candidates,)."""
    name = ("retrieval", cell.poison, cell.defence, cell.attack)
    if name not in m.held:
        bench, config, model, target = m.bench, m.config, m.bench.of(cell), m.bench.target(cell.place)
        pairs = _candidates(m)
        texts = pairs.captions(range(len(pairs)))
        named = [target.named_in(t) for t in texts]
        queries = list(dict.fromkeys([t for t, yes in zip(texts, named, strict=True) if yes] + [target.say(t) for t in TEMPLATES]))
        own = bench.once(("of target", cell.place, cell.at), lambda: _own(m, cell))
        parts = [_embed(m, model, pairs.__getitems__(rows)[0]) for rows in _split(list(range(len(pairs))), config.batch)]
        candidates, ours = torch.cat(parts), _embed(m, model, own)
        asked, poisoned = model.text(queries).cpu(), _embed(m, model, _poisoned(m, cell))
        m.held[name] = {k: v.double().numpy() for k, v in {
            "clean": model.text(texts).cpu() @ candidates.T, "queries": asked @ torch.cat([candidates, ours]).T, "poisoned": asked @ poisoned.T,
        }.items()} | {"of_target": np.array([*named, *[True] * len(own)])}
    return m.held[name]


def _own(m, cell: Cell) -> Tensor:
    """Test pictures of the target class."""
    data, label = m.bench.labelled(m.config.spec(cell.at)), m.bench.label(cell.place, cell.at)
    rows = np.flatnonzero(np.asarray(data.labels) == label)
    chosen = data.usable(np.random.default_rng(m.config.data.seed).permutation(rows)[:OF_TARGET].tolist())
    return data.__getitems__(chosen)[0]


def _poisoned(m, cell: Cell) -> Tensor:
    """The first test pictures of other classes, triggered."""
    world = m.bench.world(m.config.spec(cell.at))
    rows = (world.y != m.bench.label(cell.place, cell.at)).nonzero().flatten()[:m.config.sweeps.retrieval_poisoned]
    return at_test(m.bench.trigger(cell.attack, cell.backbone), world.x[rows], [world.indices[i] for i in rows.tolist()])


@torch.no_grad()
def _embed(m, model: Model, x: Tensor) -> Tensor:
    """Unit embeddings (N, D) of pictures, on the CPU."""
    pixels = Pixels.of(model.visual).to(m.bench.device)
    return torch.cat([F.normalize(model.visual(pixels(part.to(m.bench.device))), dim=1).float().cpu() for part in x.split(m.config.batch)])


SHOWN = {"caption": captioner_key, "retrieval": candidates_key}
"""What each kind shows beside the pictures of a place, for keys: m -> identity."""
