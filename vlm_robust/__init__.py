"""Judge how robust a vision model is: victims, attacks, purifiers, intervals, and the judge that puts them together.

Every name here stands in `shared`, where the reproduced papers use it too; this package only says which of them are
meant for others and stay. `shared` and `papers` are installed beside it, under their own names, since what a step has
measured is known by the modules that computed it.

* **Data**: `LabelledImages`, `SceneSet`, `open_set`, `Source`
* **Models and victims**: `create_clip`, `zoo_weights`, `text_matrix`, `ZeroShot`, `Classifier`, `open_classifier`
* **Attacks**: `Threat`, `fgsm`, `pgd`, `ascend`, `apgd`, `apgd_ce`, `apgd_dlr`, `apgd_t`, `square`, `autoattack`,
  `cascade`, `AdaptiveAttack`, `Defended`, `input_gradient`, `check_attack`; their random numbers: `SampleRng`
* **Purifiers**: `open_denoiser`, `Schedule`, `Sampler`, `Purifier`; transformations of the input: `BitDepth`,
  `GaussianBlur`, `JPEG`, `MedianBlur`, `ResizeOnly`, `ResizePad`, `TotalVariation`
* **Numbers with intervals**: `mean`, `paired_difference`, `unpaired_difference`, `ratio`, `Estimate`
* **The judge**: `judge`, `JudgeOptions`, `compare`, `CompareOptions`
* **Experiments that continue where they were interrupted**: `Step`, `Kept`, `Trained`, `Measured`, `Values`, `free`,
  `Lab`, `Store`, `Measurement`

What a user can mend raises `UserError`, one sentence that says what is wrong and what to do.
"""

from pathlib import Path

import shared

if Path(str(shared.__file__)).resolve().parents[1] != Path(__file__).resolve().parents[1]:
    raise ImportError(
        f"another package named shared, {shared.__file__}, hides the one of vlm-robust: start in another folder, or "
        "install vlm-robust into an environment without it"
    )

from shared.attacks import (
    Threat,
    apgd,
    apgd_ce,
    apgd_dlr,
    apgd_t,
    ascend,
    autoattack,
    cascade,
    check_attack,
    fgsm,
    input_gradient,
    pgd,
    square,
)
from shared.attacks.adaptive import AdaptiveAttack, Defended
from shared.data.base import LabelledImages
from shared.data.catalogue import Source, open_set
from shared.data.scene_sets import SceneSet
from shared.diffusion import Purifier, Sampler, Schedule, open_denoiser
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.experiment.step import Kept, Measured, Step, Trained, Values, free
from shared.experiment.store import Measurement, Store
from shared.judge.options import Compare as CompareOptions
from shared.judge.options import Config as JudgeOptions
from shared.judge.page import compare
from shared.judge.run import judge
from shared.metrics.intervals import Estimate, mean, paired_difference, ratio, unpaired_difference
from shared.models.classifier import Classifier, open_classifier
from shared.models.clip import create_clip
from shared.models.preprocess import (
    JPEG,
    BitDepth,
    GaussianBlur,
    MedianBlur,
    ResizeOnly,
    ResizePad,
    TotalVariation,
)
from shared.models.victim import ZeroShot, text_matrix
from shared.models.zoo import weights as zoo_weights
from shared.rng import SampleRng

__all__ = [
    "JPEG", "AdaptiveAttack", "BitDepth", "Classifier", "CompareOptions", "Defended", "Estimate", "GaussianBlur",
    "JudgeOptions", "Kept", "Lab", "LabelledImages", "Measured", "Measurement", "MedianBlur", "Purifier", "ResizeOnly",
    "ResizePad", "SampleRng", "Sampler", "SceneSet", "Schedule", "Source", "Step", "Store", "Threat", "TotalVariation",
    "Trained", "UserError", "Values", "ZeroShot", "apgd", "apgd_ce", "apgd_dlr", "apgd_t", "ascend", "autoattack",
    "cascade", "check_attack", "compare", "create_clip", "fgsm", "free", "input_gradient", "judge", "mean",
    "open_classifier", "open_denoiser", "open_set", "paired_difference", "pgd", "ratio", "square", "text_matrix",
    "unpaired_difference", "zoo_weights",
]  # fmt: skip
