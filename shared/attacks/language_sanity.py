"""Can an attack on a vision-language model be trusted? `shared.attacks.sanity` for scores of answers instead of
accuracies.

The same checks with the same meaning, as far as they make sense: what was the share of correct images there is the mean
score here, divided by the mean score of the clean images, so that thresholds have no unit.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.attacks import sanity as S
from shared.attacks.goal import check_rng
from shared.attacks.language import Score, judge, nll_gradient
from shared.attacks.record import Checks
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.rng import SampleRng

IMAGES = 16  # how many of the images given are used
UNBOUNDED = 0.1  # share of the clean score that an unbounded attack may leave: a wrong caption still shares some words with the references
MORE_STEPS_FACTOR = (
    2  # an attack in stages tries again what its last stage left, so fewer steps are in doubt than with one
)
BATCH = 0.05  # mean difference of a score, as a share of the clean one, between batch sizes

Attack = Callable[..., Tensor]  # attack(rows, threat, *, steps, rng) -> images for the positions `rows` of x


def check_language_attack(
    vlm,
    x: Tensor,
    prompts: Sequence[str],
    truths: Sequence[Sequence[str]],
    score: Score,
    threat: Threat,
    attack: Attack,
    *,
    rng: SampleRng,
    steps: int = 10,
    images: int = IMAGES,
    max_tokens: int = 20,
    recheck: int = 1,
    batch_size: int | None = None,
) -> dict:
    """{check: {"passed", "value", "threshold", "detail"}, …, "passed"}, the record of `check_attack`; a check passes if
    value ≤ threshold.

    x (N, 3, H, W), prompts, truths (references or answers) of the N images, of which the first `images` are used; rng
    for all N. attack: what the scores were measured with, on the images at `rows` (a tensor of positions), for instance
        lambda rows, threat, steps, rng: captioning_ensemble(vlm, x[rows], prompt, [refs[i] for i in rows],
        cider.points, threat, steps=steps,
                                                             threshold=10, rng=rng).x_adv
    score, max_tokens, recheck, batch_size: see `judge`. It runs the attack at `steps`, 1 and 2 × `steps`, at 2ε,
    unbounded, and in batches of 7, or of half the images where there are fewer than 14. If the clean score is 0 the
    check `clean` fails and only the gradients are looked at. Raises UserError for an eps of 0 and for no images.
    """
    check_rng(x, rng)
    n = min(images, len(x))
    if n == 0 or threat.eps == 0:
        raise UserError("sanity checks need at least one image and an eps above 0.")
    x, prompts, truths, everyone = x[:n], list(prompts[:n]), list(truths[:n]), torch.arange(n, device=x.device)
    wide, boundless, checks = threat.doubled(), threat.boundless(x), Checks()

    def scores(pictures: Tensor) -> np.ndarray:
        return judge(
            vlm,
            pictures,
            prompts,
            truths,
            score,
            max_tokens=max_tokens,
            recheck=recheck,
            batch_size=batch_size,
            draw="sanity",
        )[1]

    def run(budget: int = steps, inside: Threat = threat, rows: Tensor = everyone) -> Tensor:
        return attack(rows, inside, steps=budget, rng=rng.subset(rows))

    clean = scores(x).mean()
    checks.add(
        "clean",
        float(clean <= 0),
        0.0,
        f"whether the clean images score nothing; their mean score is {clean:.4g}, {n} images",
    )
    if clean > 0:
        x_adv = run()
        left = scores(x_adv) / clean
        checks.in_ball(x_adv, x, threat, f"{left.mean():.3f} of the clean score {clean:.4g} is left")

        single = (scores(run(1)) / clean).mean()
        checks.add(
            "iterative",
            left.mean() - single,
            S.ITERATIVE_MARGIN,
            f"score above a single step's, which leaves {single:.3f}",
        )

        both = np.minimum(left, scores(run(MORE_STEPS_FACTOR * steps)) / clean).mean()
        checks.add(
            "more_steps",
            left.mean() - both,
            S.MORE_STEPS_MARGIN,
            f"score that {MORE_STEPS_FACTOR * steps} steps take from {steps}",
        )

        twice = (scores(run(inside=wide)) / clean).mean()
        checks.larger_eps(twice - left.mean(), S.LARGER_EPS_MARGIN, wide, threat, "score")

        free = (scores(run(inside=boundless)) / clean).mean()
        checks.add("unbounded", free, UNBOUNDED, f"score left at eps {boundless.eps:.4g}")

        size = S.small_batch(n)
        small = torch.cat([run(rows=rows) for rows in everyone.split(size)])
        differ = np.abs(scores(small) / clean - left).mean()
        checks.add("batch_size", differ, BATCH, f"mean difference of the score between batches of {n} and {size}")

    checks.gradient(nll_gradient(vlm, x, prompts, [texts[0] for texts in truths], batch_size=batch_size))
    return checks.record()
