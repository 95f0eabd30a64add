"""Modules for `--module` that are no causal language models: a diffusion transformer and an encoder.

- DiT-XL/2: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3.2 (blocks with
  adaLN-Zero) and table 1 (depth 28, width 1152, 16 heads); patches of 2 of a latent of 32 × 32 × 4, which stands for
  256 × 256 pixels; 118.6 Gflops there are multiply-adds. It predicts the noise and its variance (learned sigma).
- BERT-base: Devlin et al., arXiv 1810.04805: 12 layers, width 768, 12 heads; each token sees all tokens.

Example: ``python -m profiler predict --module profiler.models.examples.dit:dit_xl_2 --hardware h100-sxm``
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

FREQUENCIES = 256
"""Sines and cosines of a time step, as in ADM (arXiv 2105.05233), which the paper follows."""
CLASSES = 1000
"""Classes of ImageNet; one more stands for no class (classifier-free guidance)."""


class TimestepEmbedding(nn.Module):
    """A time step as sines and cosines, through two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, steps: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=steps.device) / half)
        angles = steps[:, None].float() * rates
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(next(self.parameters()).dtype))


class Attention(nn.Module):
    """Attention of all tokens to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.proj(seen.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """A transformer block whose norms are scaled, shifted and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaln = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Output(nn.Module):
    """A last norm, modulated too, and each token's patch."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaln = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaln(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """Latents (batch, channels, side, side), time steps (batch) and classes (batch) to noise and variance."""

    def __init__(self, depth: int, width: int, heads: int, patch: int, side: int, channels: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.patches = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2, width), requires_grad=False)
        self.steps = TimestepEmbedding(width)
        self.classes = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.output = Output(width, patch, 2 * channels)

    def forward(self, latents: Tensor, steps: Tensor, classes: Tensor) -> Tensor:
        x = self.patches(latents).flatten(2).transpose(1, 2) + self.positions
        condition = self.steps(steps) + self.classes(classes)
        for block in self.blocks:
            x = block(x, condition)
        patches = self.output(x, condition)
        batch, tokens, _ = patches.shape
        side = math.isqrt(tokens)
        grid = patches.view(batch, side, side, self.patch, self.patch, 2 * self.channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, 2 * self.channels, side * self.patch, side * self.patch)


def dit_xl_2(batch: int = 1) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """DiT-XL/2 for 256 × 256 pixels, and one latent, time step and class for each image of a batch."""
    model = DiT(depth=28, width=1152, heads=16, patch=2, side=32, channels=4)
    whole = torch.zeros(batch, dtype=torch.long)
    return model, (torch.zeros(batch, 4, 32, 32), whole, whole.clone())


def bert_base(batch: int = 8, tokens: int = 128) -> tuple[nn.Module, dict[str, Tensor]]:
    """BERT-base and `batch` sequences of `tokens` token ids."""
    return BertModel(BertConfig()), {"input_ids": torch.zeros(batch, tokens, dtype=torch.long)}
