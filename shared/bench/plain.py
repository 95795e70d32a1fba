"""What the product is compared with: open_clip's own classes and the loops that are commonly written around them."""

import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.models.clip import MEAN_STD, create_clip, small_config


def random_clip(name: str) -> nn.Module:
    """One of the product's CLIPs with random weights, the same each time."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        return create_clip(name)


def plain_clip(name: str, like: nn.Module) -> nn.Module:
    """open_clip's model `name` as open_clip builds it, with the weights of `like`, all of them trainable."""
    import open_clip

    config = small_config(name)
    with torch.random.fork_rng(), quiet():
        if config is None:
            model = open_clip.create_model(name, precision="fp32")
        else:
            model = open_clip.CLIP(**{**config, "text_cfg": {**config["text_cfg"], "vocab_size": like.vocab_size}})
    model.load_state_dict(like.state_dict())
    return model.eval()


class quiet:
    """No warnings that weights are random: they are meant to be."""

    def __enter__(self):
        self.level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error):
        logging.disable(self.level)


def classify(clip: nn.Module, x: Tensor, tokens: Tensor, text: Tensor | None = None) -> Tensor:
    """Logits (N, K) of pixels x in [0, 1]; the prompts are encoded here unless their embeddings are given."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD["clip"])
    image = clip.encode_image((x - mean) / std, normalize=True)
    text = clip.encode_text(tokens, normalize=True) if text is None else text
    return clip.logit_scale.exp() * image @ text.T


def pgd_loop(
    clip: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    tokens: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    text_once: bool = False,
) -> Tensor:
    """PGD as in most released code: the prompts go through the text tower in every step, and `backward` fills the
    gradients of all weights."""
    with torch.no_grad():
        text = clip.encode_text(tokens, normalize=True) if text_once else None
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(classify(clip, x_adv, tokens, text), y).backward()
        x_adv = x_adv + step_size * x_adv.grad.sign()
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - eps), x + eps), 0, 1)
    clip.zero_grad()
    return x_adv.detach()


def contrastive_loop(
    clip: nn.Module,
    tokenizer: Callable,
    pairs,
    batches: Sequence[Sequence[int]],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    clip_norm: float,
) -> float:
    """Contrastive training over open_clip's model (in place) and loss, the indices of every batch given; returns the
    last loss."""
    import open_clip

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD["clip"])
    loss_fn = open_clip.ClipLoss()
    for step, indices in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        x, texts = pairs.__getitems__(indices)
        loss = loss_fn(*clip((x - mean) / std, tokenizer(texts)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), clip_norm)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
    return loss.item()


def same_loss(a: dict, b: dict) -> str | None:
    """What is wrong where two trainings of a case did not reach the same loss."""
    a, b = a["loss reached"], b["loss reached"]
    return None if abs(a - b) < 1e-3 * abs(b) else f"the losses reached differ: {a:.5f} and {b:.5f}"
