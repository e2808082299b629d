"""Attention as color over a gray picture, in multiples of uniform attention, as on the report's page.

Uniform attention is 1/N for each of N tokens. In this unit, a map that is nearly uniform looks nearly uniform.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cm, colormaps
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as MplFigure
from torch import Tensor

from .style import color_bar

QUANTILE = 0.995  # the scale ends at this quantile, so that a few large values do not darken all other values
MIN_PIXELS = 240  # pixels of the longer side, so that patches have sharp edges in a small picture


def scale_end(values: Iterable[Tensor], tokens: int) -> float:
    """Return the end of one scale for all maps: the 0.995 quantile of the values, rounded up to 1, 2 or 5 x 10^i.

    Args:
        values: values of the maps, in multiples of uniform attention.
        tokens: N, the largest possible value. The scale ends between 2 and N.
    """
    high = np.quantile(np.concatenate([v.flatten().numpy() for v in values]), QUANTILE, method="inverted_cdf")
    power = 10.0 ** math.floor(math.log10(max(high, 1e-9)))
    end = next(m * power for m in (1, 2, 5, 10) if m * power >= high * (1 - 1e-6))
    return float(min(max(end, 2), max(tokens, 2)))


def effective_tokens(attention: Tensor) -> float:
    """Return the number of tokens over which CLS attention is spread, ``exp(entropy)``, from 1 to N.

    ``attention`` is the attention to the N - 1 patches. The rest, up to a sum of 1, is attention to the CLS token.
    """
    weights = torch.cat([attention.flatten(), (1 - attention.sum()).clamp(min=0)[None]])
    return torch.special.entr(weights).sum().exp().item()


def spread_of(attention: Tensor) -> str:
    """Return ``effective_tokens`` as text, "3.2 of 17"."""
    count = effective_tokens(attention)
    return f"{count:.{0 if count >= 9.95 else 1}f} of {attention.numel() + 1}"


def over_gray(picture: np.ndarray, values: Tensor, end: float, interpolation: str = "nearest") -> np.ndarray:
    """Return values as viridis over a gray picture, RGB in [0, 1]; the larger a value, the more opaque its color.

    Args:
        picture: ``(H, W, 3)`` of uint8. A small picture is enlarged by an integer factor.
        values: ``(rows, columns)``, in multiples of uniform attention.
        end: end of the color scale. Colors follow the square root of the values.
        interpolation: interpolation between patches, 'nearest' or 'bilinear'.
    """
    times = math.ceil(MIN_PIXELS / max(picture.shape[:2]))
    picture = picture.repeat(times, 0).repeat(times, 1)
    mode = {"nearest": "nearest-exact", "bilinear": "bilinear"}[interpolation]
    values = F.interpolate(values[None, None].float(), picture.shape[:2], mode=mode)[0, 0]
    strength = (values / end).clamp(0, 1).sqrt().numpy()[..., None]
    luma = (picture / 255.0 @ [0.2126, 0.7152, 0.0722])[..., None]  # Rec. 709
    color = colormaps["viridis"](strength[..., 0])[..., :3] * (0.65 + 0.35 * luma)
    opacity = 0.25 + 0.75 * strength  # with these weights, a larger value is never darker, for any gray
    return (1 - opacity) * (0.05 + 0.27 * luma) + opacity * color


def attention_bar(figure: MplFigure, panels: list[Axes], end: float, clipped: bool) -> Colorbar:
    """Add the color scale of ``over_gray`` beside panels. ``clipped``: whether values exceed its end."""
    scale = cm.ScalarMappable(PowerNorm(0.5, 0, end), "viridis")
    bar = color_bar(figure, scale, panels, extend="max" if clipped else "neither")
    steps = [m * 10**i for i in range(6) for m in (1, 2, 5) if m * 10**i < 0.8 * end]
    ticks = [0, *steps[:1], *steps[1:][-3:], end]
    bar.set_ticks(ticks, labels=[f"{t:g}\u00d7" if t != 1 else "uniform" for t in ticks])
    return bar
