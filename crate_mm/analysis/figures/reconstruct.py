"""What a masked autoencoder makes of images that it sees a part of."""

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

NORMALISED = "each masked patch shown with the true patch's mean and standard deviation, which are not predicted"
HIDDEN = 127  # gray


@FIGURES.register_module("reconstruct")
class Reconstruct(Figure):
    """Images, what is left of them, and the predictions in the masked patches, on one scale of pixels.

    With ``norm_pix_loss`` the model predicts a patch without its mean and standard deviation. The true patch's are put
    back, and the picture says so.
    """

    help = "images, their masked form and what a masked autoencoder fills in"
    input_kind = "images"
    full_model = True

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        model = subject.model
        if not isinstance(model, MaskedAutoencoder):
            raise ValueError(f"{type(model).__name__} fills in no masked patches: reconstruct is for MaskedAutoencoder")
        if options.layers:
            raise ValueError("reconstruct shows what the whole model predicts: leave out --layers")
        images = preprocessed(subject)
        generator = torch.Generator().manual_seed(options.seed)
        noise = torch.rand(len(images), model.grid_size[0] * model.grid_size[1], generator=generator).to(images.device)
        with torch.inference_mode():
            found = model.reconstruct(images, noise)
            true, filled = (model.data_preprocessor.denormalize(x) for x in (images, found.filled))
            hidden = model.unpatchify(found.mask[..., None].expand(-1, -1, model.patchify(images).shape[2]))
            masked = true.masked_fill(hidden, HIDDEN)
            loss = [row.item() for row in model.predict(images, noise=noise)[0]["loss"]]
        rows = {"image": true, "masked": masked, "filled in": filled}
        rows = {name: row.permute(0, 2, 3, 1).cpu().numpy() for name, row in rows.items()}
        share = 100 * found.mask.float().mean().item()
        title = f"{name_of(model)}: {share:.0f} % of the patches masked, seed {options.seed}"
        below = [f"{name}\nloss {value:.3f}".strip() for name, value in zip(captions(subject, len(loss)), loss)]
        note = NORMALISED if model.norm_pix_loss else ""
        picture = plot_reconstruction(rows, below, title, note)
        numbers = {"image": rows["image"], "filled": rows["filled in"], "mask": found.mask.cpu().numpy()}
        return FigureOutput({"reconstruct": picture}, {"reconstruct.npz": {**numbers, "loss": np.array(loss)}}, note)


def plot_reconstruction(rows: dict[str, np.ndarray], captions: list[str], title: str, note: str = "") -> MplFigure:
    """Rows of pictures, a column an image.

    Args:
        rows: by their names, ``(B, H, W, C)`` of uint8, C 1 or 3.
        captions: below the columns.
        title: above them all.
        note: below the title.
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
