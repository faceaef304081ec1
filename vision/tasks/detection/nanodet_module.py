"""NanoDet-g's network as a torch module.

RangiLyu, https://github.com/RangiLyu/nanodet (Apache-2.0): a CSP backbone, a path aggregation neck and three
heads that tell class scores and, as in generalized focal loss (Li et al. 2020, arXiv 2006.04388), each side of
a box as a distribution over its distance. Batch norms are folded into the convolutions.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vision.core.cuda import Levels

STRIDES = (8, 16, 32)
BINS = 11


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(0.1))


class Residual(nn.Module):
    """Two narrow convolutions whose outputs are concatenated to the input's width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv3x3(channels, channels // 2)
        self.second = conv3x3(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return torch.cat([self.second(first), first], dim=1)


class CSPBlock(nn.Module):
    """Cross stage partial block: half of the output passes the residuals by."""

    def __init__(self, inputs: int, channels: int, residuals: int, stride: int) -> None:
        super().__init__()
        self.enter = conv3x3(inputs, channels, stride)
        self.residuals = nn.Sequential(*(Residual(channels) for _ in range(residuals)))
        self.leave = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return torch.cat([self.leave(self.residuals(x)), x], dim=1)


class NanoDet(nn.Module):
    """Pictures (B, 3, S, S), BGR, normalised, S a multiple of 32 -> class scores and boxes of every anchor point."""

    def __init__(self, labels: int = 80) -> None:
        super().__init__()
        self.labels = labels
        self.stem = conv3x3(3, 32, stride=2)
        self.block1 = CSPBlock(32, 32, residuals=1, stride=1)
        self.block2 = CSPBlock(64, 64, residuals=2, stride=2)
        self.block3 = CSPBlock(128, 128, residuals=2, stride=2)
        self.block4 = CSPBlock(256, 256, residuals=3, stride=2)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, 128, 1) for channels in (128, 256, 512))
        self.heads = nn.ModuleList(
            nn.Sequential(*conv3x3(128, 128), nn.Conv2d(128, labels + 4 * BINS, 1)) for _ in STRIDES
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, N, labels), 0-1, and boxes xyxy (B, N, 4) in pixels of the S x S input."""
        outputs = [head(level) for head, level in zip(self.heads, self._neck(self._backbone(x)), strict=True)]
        scores = torch.cat([o[:, : self.labels].flatten(2) for o in outputs], dim=2).transpose(1, 2).sigmoid()
        boxes = torch.cat(
            [self._boxes(o[:, self.labels :], stride) for o, stride in zip(outputs, STRIDES, strict=True)], dim=1
        )
        return scores, boxes

    def _backbone(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(x), kernel_size=3, stride=2, padding=1)
        level2 = self.block2(self.block1(x))
        level3 = self.block3(level2)
        return [level2, level3, self.block4(level3)]

    def _neck(self, levels: list[Tensor]) -> list[Tensor]:
        small, middle, large = (lateral(x) for lateral, x in zip(self.laterals, levels, strict=True))
        middle = middle + _resize(large, 2.0)
        small = small + _resize(middle, 2.0)
        middle = middle + _resize(small, 0.5)
        large = large + _resize(middle, 0.5)
        return [small, middle, large]

    @staticmethod
    def _boxes(distances: Tensor, stride: int) -> Tensor:
        batch, _, height, width = distances.shape
        distances = distances.float()  # pixels of a box need more digits than half precision has
        bins = torch.arange(BINS, dtype=distances.dtype, device=distances.device)
        sides = (distances.view(batch, 4, BINS, -1).softmax(dim=2) * bins[:, None]).sum(dim=2) * stride
        y, x = torch.meshgrid(
            torch.arange(height, device=distances.device), torch.arange(width, device=distances.device), indexing="ij"
        )
        centre = (torch.stack([x, y]).flatten(1) + 0.5) * stride
        return torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], dim=1).transpose(1, 2)


class Letterboxed(Levels):
    """NanoDet behind bytes: RGB (B, S, S, 3), and where in each the picture lies, xyxy (B, 4); around it is zero."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        pixels, places = inputs
        x1, y1, x2, y2 = places[:, :, None].unbind(1)
        side = torch.arange(pixels.shape[1], device=pixels.device)
        rows, columns = (side >= y1) & (side < y2), (side >= x1) & (side < x2)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        bgr = self.normalized(pixels).flip(1) * inside
        answer: tuple[Tensor, Tensor] = self.network(bgr.to(next(self.parameters()).dtype))
        return answer


def _resize(x: Tensor, scale: float) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def load(folder: Path, labels: int) -> NanoDet:
    """Load from model.safetensors, which hold float16."""
    module = NanoDet(labels)
    module.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    return module.eval()
