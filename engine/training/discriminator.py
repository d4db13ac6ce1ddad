"""A patch discriminator: tells real frames from decoded ones, and the decoder is trained against it.

Absolute and squared errors ask for one picture, pixel by pixel; a discriminator of patches (PatchGAN, Isola et al.
2017, arXiv:1611.07004) asks for one that could be real, and objects to patterns no real frame has. Hinge losses as in
Lim and Ye (2017, arXiv:1705.02894), balanced against the decoder's own loss as in VQGAN (Esser et al. 2021,
arXiv:2012.09841). Knows signals [B, 3, H, W] in [-1, 1]; does not know codecs, data or the loop that trains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from engine.training.precision import autocast

# Brings the faint texture of a dark floor, a few hundredths of the signal's range, near unit size.
DETAIL = 8.0


class PatchDiscriminator(nn.Module):
    """Signals [B, 3, H, W] -> one logit for each 28x28 patch, every 4 pixels: [B, 1, H/4, W/4], high where real.

    It is shown a signal and, amplified, what a 3x3 mean takes from it. That is what a blurred frame lacks; texture of
    a few grey levels is otherwise so faint an input that a hundred steps do not find it. Spectral norm on every
    layer (Miyato et al. 2018, arXiv:1802.05957) bounds how fast the logits can change.

    Args:
        width: channels at half the frame's size; twice as many below.
    """

    def __init__(self, width: int = 48):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                spectral_norm(nn.Conv2d(6, width, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(2 * width, 2 * width, 3, padding=1)),
            ]
        )
        self.logits = spectral_norm(nn.Conv2d(2 * width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits and the features of every layer below them."""
        features = []
        x = torch.cat([x, DETAIL * (x - local_mean(x))], 1).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.logits(x), features


def local_mean(x: Tensor) -> Tensor:
    """The mean of each pixel's 3x3, or of what of it lies inside: the shape of `x`."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Adversary:
    """A discriminator and the optimiser it learns with: what a stage's checkpoint keeps beside the codec.

    Args:
        lr: constant; the decoder's own may warm up and decay.
        matching: weight of the feature matching within `term`.
    """

    def __init__(self, device: torch.device, width: int = 48, lr: float = 2e-3, matching: float = 0.0):
        self.net, self.matching = PatchDiscriminator(width).to(device), matching
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, betas=(0.5, 0.98), fused=True)

    def learn(self, real: Tensor, made: Tensor) -> float:
        """One step of the discriminator's own on signals [B, 3, H, W]; its loss before it."""
        self.net.train().requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(real.device):
            logits, _ = self.net(torch.cat([real, made.detach()]))
        loss = hinge_loss(*logits.float().chunk(2))
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def term(self, real: Tensor, made: Tensor) -> Tensor:
        """What the decoder is to lower, a scalar; its gradient reaches `made` alone."""
        self.net.eval().requires_grad_(False)
        with autocast(made.device):
            logits, features = self.net(made)
            term = -logits.float().mean()
            if self.matching:
                term = term + self.matching * feature_distance(self.net(real)[1], features)
        return term

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """Real logits should be above 1 and made ones below -1; 2 where both are 0."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def feature_distance(real: list[Tensor], made: list[Tensor]) -> Tensor:
    """Mean absolute distance of features, each layer's against its size (Wang et al. 2018, arXiv:1711.11585)."""
    pairs = [(a.float(), b.float()) for a, b in zip(real, made, strict=True)]
    return torch.stack([(a - b).abs().mean() / a.abs().mean().clamp(min=1e-6) for a, b in pairs]).mean()


def balance(own: Tensor, term: Tensor, last: Tensor) -> Tensor:
    """The factor that gives `term` a gradient as long as `own` loss's at the decoder's last weight (VQGAN, eq. 7)."""
    (ours,) = torch.autograd.grad(own, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(term, last, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(max=1e4).detach()
