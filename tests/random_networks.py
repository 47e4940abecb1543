"""Networks of plain layers with drawn sizes, and images for them."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


@st.composite
def plain_networks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, int, int], Tensor]:
    """A network in evaluation mode, the shape of an image, and four of them, uint8."""
    channels, side = draw(st.sampled_from([1, 3])), draw(st.integers(6, 12))
    shape, layers, left = (channels, side, side), list[nn.Module](), side
    seed = draw(st.integers(0, 2**31))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(draw(st.integers(1, 3))):
            kernel, stride, padding = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
            outputs = draw(st.sampled_from([2, 4]))
            layers.append(nn.Conv2d(channels, outputs, kernel, stride, padding, bias=draw(st.booleans())))
            channels, left = outputs, (left + 2 * padding - kernel) // stride + 1
            if draw(st.booleans()):
                norm = nn.GroupNorm(draw(st.sampled_from([1, 2])), channels, eps=draw(st.sampled_from([1e-5, 0.5])))
                nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
                layers.append(norm)
            layers += [nn.ReLU()] if draw(st.booleans()) else []
            if left >= 4 and draw(st.booleans()):
                layers.append(draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(2))
                left //= 2
            if left < 3:
                break
        if draw(st.booleans()):
            layers.append(nn.AdaptiveAvgPool2d(1))
            left = 1
        module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * left**2, 3, bias=draw(st.booleans()))).eval()
        return module, shape, torch.randint(0, 256, (4, *shape)).to(torch.uint8)
