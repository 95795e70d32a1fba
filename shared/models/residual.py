"""Residual networks for pictures of CIFAR's size: He et al. 2016 (section 4.2), and wide ones with pre-activation
(Zagoruyko & Komodakis 2016).

Both have a stem that keeps the resolution, three stages of blocks at 1, 1/2 and 1/4 of it, a mean over places and one
linear layer `fc`. The tensors of the wide ones are named as in the code that their published weights come from (TRADES,
RobustBench).
"""

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inside: int, outside: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)); where the shape changes the shortcut is a 1×1 convolution with
    BN (option B)."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inside, outside, 3, stride), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = _conv(outside, outside, 3), nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        self.shortcut = (
            nn.Sequential() if same else nn.Sequential(_conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet of 6·blocks + 2 layers. forward: (N, 3, H, W), normalised -> logits (N, classes)."""

    def __init__(self, blocks: int, classes: int, widths: tuple[int, int, int] = (16, 32, 64)):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, widths[0], 3), nn.BatchNorm2d(widths[0])
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(before if k == 0 else width, width, stride if k == 0 else 1) for k in range(blocks)))
            for before, width, stride in zip((widths[0], *widths), widths, (1, 2, 2), strict=False)
        )
        self.fc = nn.Linear(widths[-1], classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class WideBlock(nn.Module):
    """x + conv(relu(BN(conv(relu(BN(x)))))); where the number of channels changes, the shortcut is a 1×1 convolution of
    relu(BN(x))."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), _conv(inside, outside, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), _conv(outside, outside, 3)
        self.convShortcut = None if inside == outside else _conv(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class _Stage(nn.Module):
    """The blocks of one stage, under the name `layer`."""

    def __init__(self, blocks: int, inside: int, outside: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            *(WideBlock(inside if k == 0 else outside, outside, stride if k == 0 else 1) for k in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-widen, depth = 6·blocks + 4. forward: (N, 3, H, W), normalised -> logits (N, classes)."""

    def __init__(self, depth: int, widen: int, classes: int):
        super().__init__()
        blocks, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = _conv(3, widths[0], 3)
        self.block1, self.block2, self.block3 = (
            _Stage(blocks, *widths[k : k + 2], stride) for k, stride in enumerate((1, 2, 2))
        )
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
