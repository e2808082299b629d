"""Reconstructions of a masked autoencoder."""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure as MplFigure

from ...io.untrusted import sanitized
from ...models import MaskedAutoencoder
from ...registry import FIGURES
from ..taps import name_of
from .base import Figure, FigureInput, FigureOutput, captions, preprocessed, without_ticks
from .style import sheet

NORMALIZED = "mean and standard deviation of each masked patch are those of the original patch; they are not predicted"
HIDDEN = 127  # gray


@FIGURES.register_module("reconstruct")
class Reconstruct(Figure):
    """Images, their visible patches, and the reconstruction, with the same pixel scale.

    With ``norm_pix_loss`` the model predicts normalized patches. Each patch then gets the mean and standard deviation
    of the original patch, and a note in the figure says so.
    """

    help = "images, their visible patches and the reconstruction of a masked autoencoder"
    input_kind = "images"
    full_model = True

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        model = subject.model
        if not isinstance(model, MaskedAutoencoder):
            raise ValueError(f"{type(model).__name__} does not reconstruct patches: use a MaskedAutoencoder")
        if options.layers:
            raise ValueError("reconstruct uses the full model: remove --layers")
        images = preprocessed(subject)
        generator = torch.Generator().manual_seed(options.seed)
        noise = torch.rand(len(images), model.grid_size[0] * model.grid_size[1], generator=generator).to(images.device)
        with torch.inference_mode():
            output = model.reconstruct(images, noise)
            original, filled = (model.data_preprocessor.denormalize(x) for x in (images, output.filled))
            hidden = model.unpatchify(output.mask[..., None].expand(-1, -1, model.patchify(images).shape[2]))
            masked = original.masked_fill(hidden, HIDDEN)
            loss = [row.item() for row in model.predict(images, noise=noise)[0]["loss"]]
        rows = {"image": original, "masked": masked, "filled in": filled}
        rows = {name: row.permute(0, 2, 3, 1).cpu().numpy() for name, row in rows.items()}
        percent = 100 * output.mask.float().mean().item()
        title = f"{name_of(model)}: {percent:.0f} % of the patches masked, seed {options.seed}"
        texts = [f"{name}\nloss {value:.3f}".strip() for name, value in zip(captions(subject, len(loss)), loss)]
        note = NORMALIZED if model.norm_pix_loss else ""
        picture = plot_reconstruction(rows, texts, title, note)
        numbers = {"image": rows["image"], "filled": rows["filled in"], "mask": output.mask.cpu().numpy()}
        return FigureOutput({"reconstruct": picture}, {"reconstruct.npz": {**numbers, "loss": np.array(loss)}}, note)


def plot_reconstruction(rows: dict[str, np.ndarray], captions: list[str], title: str, note: str = "") -> MplFigure:
    """Plot rows of pictures, one column per image.

    Args:
        rows: ``{name: (B, H, W, C) of uint8}``, where C is 1 or 3.
        captions: text below each column.
        title: title of the figure.
        note: text below the title.
    """
    count = len(captions)
    figure = sheet(max(1.7 * count + 0.5, 6.5), 5.8, text=1.0)
    figure.suptitle(sanitized(title) + (f"\n{note}" if note else ""), fontsize="small", parse_math=False)
    for panels, (name, pictures) in zip(figure.subplots(len(rows), count, squeeze=False), rows.items()):
        panels[0].set_ylabel(name, fontsize="small")
        for axes, picture in zip(panels, pictures):
            gray = picture.shape[-1] == 1
            axes.imshow(picture[..., 0] if gray else picture, cmap="gray" if gray else None, vmin=0, vmax=255)
        without_ticks(panels)
    for axes, text in zip(panels, captions):
        axes.set_xlabel(text, fontsize="x-small", parse_math=False)
    return figure
