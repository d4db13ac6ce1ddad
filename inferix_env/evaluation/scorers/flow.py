"""Optical flow without weights: Lucas and Kanade (1981), coarse to fine, seen from halfway between two frames.

Shape letters: N pairs, C channels, H W pixels. Flow is [N, 2, H, W], in pixels, x first. Knows tensors alone.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64  # larger frames are shrunk to this shorter side first
COARSEST = 12  # no level of the pyramid has a side below this
WINDOW, ROUNDS, STIFFNESS = 7, 3, 1e-3


def shrunk(frames: np.ndarray, side: int = SIDE) -> Tensor:
    """Frames uint8 [N, H, W, 3] -> [N, 3, h, w] in 0..1, by areas to a shorter side of at most `side`."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[-2:]
    scale = side / min(height, width)
    if scale >= 1:
        return x
    return F.interpolate(x, size=(round(height * scale), round(width * scale)), mode="area")


def flow_between(before: Tensor, after: Tensor) -> Tensor:
    """Flow [N, 2, H, W] of what is seen at each pixel halfway in time, from frame to frame.

    Args:
        before, after: grey [N, 1, H, W], in 0..1.
    """
    pyramid = [(before, after)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * COARSEST:
        first, second = pyramid[-1]
        pyramid.append((F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)))
    flow = torch.zeros(len(before), 2, *pyramid[-1][0].shape[-2:])
    for first, second in reversed(pyramid):
        grown = [new / old for new, old in zip(first.shape[:-3:-1], flow.shape[:-3:-1], strict=True)]
        flow = F.interpolate(flow, size=first.shape[-2:], mode="bilinear", align_corners=False)
        flow = flow * torch.tensor(grown)[:, None, None]
        for _ in range(ROUNDS):
            flow = flow + update(warped(first, -flow / 2), warped(second, flow / 2))
    return flow


def update(first: Tensor, second: Tensor) -> Tensor:
    """The step of flow that best makes one frame of the two, in the least squares of every window."""
    middle = F.pad((first + second) / 2, (1, 1, 1, 1), mode="replicate")
    dx = (middle[..., 1:-1, 2:] - middle[..., 1:-1, :-2]) / 2
    dy = (middle[..., 2:, 1:-1] - middle[..., :-2, 1:-1]) / 2
    dt = second - first
    terms = torch.cat([dx * dx, dx * dy, dy * dy, dx * dt, dy * dt], dim=1)
    padded = F.pad(terms, [WINDOW // 2] * 4, mode="replicate")
    xx, xy, yy, xt, yt = averaged(averaged(padded, -1), -2).split(1, dim=1)
    xx, yy = xx + STIFFNESS, yy + STIFFNESS  # flat windows stay where they are
    determinant = xx * yy - xy * xy
    step = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / determinant
    return step.clamp(-2, 2)


def averaged(x: Tensor, axis: int) -> Tensor:
    """Means over every WINDOW neighbours along an axis; many times quicker on a CPU than pooling."""
    count = x.shape[axis] - WINDOW + 1
    total = x.narrow(axis, 0, count).clone()
    for i in range(1, WINDOW):
        total += x.narrow(axis, i, count)
    return total / WINDOW


def warped(frames: Tensor, flow: Tensor) -> Tensor:
    """Frames [N, C, H, W] read at each pixel's place plus flow [N, 2, H, W]; beyond an edge, the edge."""
    height, width = frames.shape[-2:]
    x = torch.arange(width) + flow[:, 0]
    y = torch.arange(height)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)


def grey(frames: Tensor) -> Tensor:
    """Luma (BT.601) [N, 1, H, W] of [N, 3, H, W]."""
    return (frames * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


@torch.inference_mode()
def between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Frames halfway between others of the same size, moved along their flow: uint8 [N, H, W, 3] -> [N, H, W, 3]."""
    first, second = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (before, after))
    flow = flow_between(grey(first), grey(second))
    middle = (warped(first, -flow / 2) + warped(second, flow / 2)) / 2
    return (middle * 255).permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def speed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The mean speed of each pair's fastest twentieth of pixels [N], in pixels a frame of a picture 256 high."""
    flow = flow_between(grey(shrunk(before)), grey(shrunk(after)))
    return fastest(flow.numpy())


def fastest(flow: np.ndarray) -> np.ndarray:
    """VBench's dynamic degree of flows [N, 2, H, W] before it is made a truth value: the mean of the largest twentieth
    of the speeds, float64 [N], scaled to a shorter side of 256."""
    side = min(flow.shape[-2:])
    speeds = np.sort(np.hypot(flow[:, 0], flow[:, 1]).reshape(len(flow), -1))
    count = max(1, speeds.shape[1] // 20)
    return speeds[:, -count:].mean(1, dtype=np.float64) * 256 / side
