"""How far the numbers of one computation are apart on different kinds of CPU: the tables of docs/machines.md.

python -m tests.digits          prints both tables; a process for each setting of tests/cpus.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.cpus import ROOT, flags_of_this_cpu, settings

EXACT = {
    "pictures": "rendered scenes (bytes)",
    "triggers": "pictures with every trigger (bytes)",
    "texts": "captions, questions and answers",
    "labels": "labels, class names, prompts",
    "order": "order of batches",
    "uniform": "uniform and whole random numbers",
    "normal": "normal random numbers",
    "schedule": "noise schedule of the diffusion models",
    "interval": "intervals from given values",
}
ROUNDED = {
    "logits": "logits (cosine times 100)",
    "gradient": "gradient of the loss by pixels",
    "weights": "weights after ten updates",
    "adversarial": "adversarial pictures (PGD, 10 steps)",
    "survivors": "pictures that survive the attack, of 128",
}


def measured(reverse: bool = False) -> dict[str, np.ndarray]:
    """What is compared: name -> array. reverse: the pictures of a batch in the opposite order (and turned back)."""
    import torch
    from accelerate import Accelerator

    from shared.attacks import Threat, pgd
    from shared.attacks.triggers import make_trigger
    from shared.data.language import captions, questions
    from shared.data.scene_sets import SETS, ScenePairs, SceneSet
    from shared.data.scenes import sample
    from shared.diffusion import Schedule
    from shared.metrics import intervals
    from shared.models import zoo
    from shared.models.clip import create_clip
    from shared.models.victim import ZeroShot, text_matrix
    from shared.rng import SampleRng
    from shared.training.contrastive import ContrastiveConfig, batch_indices, pretrain

    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
    rows = np.arange(500)
    scenes = sample(0, rows)
    x, _ = ScenePairs(300).__getitems__(range(300))
    rng = SampleRng(0, range(200))
    kinds = ("badnet", "blended", "sig", "wanet", "label_consistent")
    triggers = [
        make_trigger(kind, preset, 32)(x[:32], range(32)) for kind in kinds for preset in ("cleanclip", "textbook")
    ]
    labels = [(name, SceneSet(name).prompts, SceneSet(name, n=100).labels.tolist()) for name in SETS]
    found = {
        "pictures": (x * 255).round().byte().numpy(),
        "triggers": (torch.cat(triggers) * 255).round().byte().numpy(),
        "texts": np.array(captions(scenes, 0, rows) + [" ".join(q) for q in questions(scenes, 0, rows)]),
        "labels": np.array(repr(labels)),
        "order": np.array([batch_indices(1000, 32, step) for step in range(50)]),
        "uniform": np.concatenate([rng.uniform((500,)).numpy(), rng.integers(1000, (500,)).numpy()]),
        "normal": rng.normal((500,)).numpy(),
        "schedule": Schedule.linear().alpha_bar(torch.arange(1001)).numpy(),
    }
    interval = intervals.mean([np.random.default_rng(k).random((3, 200)) < 0.4 for k in range(4)])
    found["interval"] = np.array([interval.value, interval.low, interval.high])

    clip = create_clip("scenes-vit-s8", zoo.weights("scenes-vit-s8")).requires_grad_(False)
    data = SceneSet("colour_shape", "test", 128)
    victim = ZeroShot(clip.visual, text_matrix(clip, data.prompts), 100.0)
    order = list(range(128))[::-1] if reverse else list(range(128))
    x, y = data.__getitems__(order)
    back = torch.tensor(order)
    image = x.clone().requires_grad_()
    logits = victim(image)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y, reduction="sum"), image)
    threat = Threat("linf", 1 / 255)
    x_adv = pgd(victim, x, y, threat, steps=10, step_size=threat.eps / 4, rng=SampleRng(0, order))
    with torch.no_grad():
        survivors = victim(x_adv).argmax(1) == y
    by_picture = {"logits": logits.detach(), "gradient": gradient, "adversarial": x_adv, "survivors": survivors}
    found |= {name: values[back].numpy() for name, values in by_picture.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = create_clip("scenes-vit-s8")
    config = ContrastiveConfig(steps=10, batch=32, lr=1e-3, warmup=2, every=0)
    pretrain(clip, ScenePairs(320), config, Accelerator(cpu=True))
    found["weights"] = torch.cat([p.detach().flatten() for p in clip.parameters()]).numpy()
    return found


def difference(name: str, a: np.ndarray, b: np.ndarray) -> str:
    """ "equal", or how far they are apart."""
    if a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():
        return "equal"
    if a.dtype.kind in "US":
        return "differ"
    if name == "survivors":
        return f"{a.sum()} and {b.sum()}, {(a != b).sum()} other ones"
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return f"{apart.max():.1e} in {(apart > 0).mean():.2%}" if name in (*EXACT, "adversarial") else f"{apart.max():.1e}"


def main() -> None:
    runs = {**settings(flags_of_this_cpu()), "batch reversed": {"REVERSE": "1"}}
    with tempfile.TemporaryDirectory() as folder:
        arrays = {}
        for k, (name, environment) in enumerate(runs.items()):
            path = Path(folder) / f"{k}.npz"
            subprocess.run(
                [sys.executable, "-m", "tests.digits", str(path)],
                cwd=ROOT,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": environment.get("TEST_THREADS", "1"), **environment},
            )
            with np.load(path) as saved:
                arrays[name] = dict(saved)
    base = arrays.pop("as it is")
    print(
        "the largest: "
        + ", ".join(f"{name} {np.abs(base[name]).max():.3g}" for name in ("logits", "gradient", "weights"))
    )
    for rows in (EXACT, ROUNDED):
        print("\n| | " + " | ".join(rows.values()) + " |\n|---|" + "---|" * len(rows))
        for name, found in arrays.items():
            print(f"| {name} | " + " | ".join(difference(key, base[key], found[key]) for key in rows) + " |")


if __name__ == "__main__":
    if sys.argv[1:]:
        np.savez(sys.argv[1], **measured(reverse="REVERSE" in os.environ))
    else:
        main()
