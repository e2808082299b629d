"""Measure every layer during training."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import default_collate

from ..models.tasks.base import task_of
from ..registry import HOOKS
from .figures.layers import plot_layers
from .gather import LayerRow, defined_measures, measure_layers
from .table import check_measures


@HOOKS.register_module()
class WhiteBoxHook(Hook):
    """Measure every layer on a fixed set of validation images.

    The hook logs a line, and writes to the visualizer's backends (TensorBoard, files) one scalar per layer and a figure
    with one curve per measurement.

    Args:
        interval: epochs between measurements; the first and the last epoch are always measured.
        num_images: number of images, spread evenly over the validation data.
        measures: names from ``MEASURES``; measures that the model does not define are omitted.
        figure: whether to draw the figure.
        eps_squared: eps^2 of the coding rates.

    Raises:
        ValueError: a measure is unknown. At the start of training: there is no validation data, or the model defines
            none of the measures.
    """

    def __init__(
        self,
        interval: int = 10,
        num_images: int = 64,
        measures: tuple[str, ...] = ("rc_half", "sparsity", "active"),
        figure: bool = True,
        eps_squared: float = 0.01,
    ) -> None:
        check_measures(measures)
        if interval < 1 or num_images < 2:
            raise ValueError(f"WhiteBoxHook needs interval >= 1 and num_images >= 2, got {interval} and {num_images}")
        self.interval = interval
        self.num_images = num_images
        self.measures = list(measures)
        self.figure = figure
        self.eps_squared = eps_squared
        self.curves: dict[str, list[LayerRow]] = {}

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is None:
            raise ValueError("WhiteBoxHook needs validation images, but the config has no val_dataloader: add one")
        defined = defined_measures(task_of(runner.model))
        if not set(defined) & set(self.measures):
            raise ValueError(f"WhiteBoxHook: the model has none of {', '.join(self.measures)}: choose from {defined}")
        if is_main_process():
            dataset = runner.val_dataloader.dataset
            count = min(self.num_images, len(dataset))
            positions = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
            self.batch = default_collate([dataset[position] for position in positions])

    def after_train_epoch(self, runner: Runner) -> None:
        epoch = runner.epoch + 1
        due = epoch in (1, runner.max_epochs) or epoch % self.interval == 0
        if due and is_main_process():
            self.measure(runner, epoch)

    def after_train(self, runner: Runner) -> None:
        if runner.iter % len(runner.train_dataloader) and is_main_process():  # training stopped within an epoch
            self.measure(runner, runner.epoch)

    def measure(self, runner: Runner, epoch: int) -> None:
        """Measure the model; write the log line, the scalars and the figure."""
        model = task_of(runner.model)
        was_training = model.training
        model.eval()
        try:
            with (
                torch.no_grad(),
                measure_layers(model, eps_squared=self.eps_squared, measures=self.measures) as measures,
            ):
                model(**model.data_preprocessor(self.batch))
        finally:
            model.train(was_training)
        rows = measures.rows()
        for row in rows:
            runner.visualizer.add_scalar(f"white_box/{row.measure}/layer_{row.layer:02d}", row.mean, epoch)
        means = {measure: [row.mean for row in rows if row.measure == measure] for measure in self.measures}
        text = "; ".join(f"{m} {' '.join(f'{v:.3g}' for v in values)}" for m, values in means.items() if values)
        runner.logger.info(f"by layer: {text}")
        self.curves[f"epoch {epoch}"] = rows
        if self.figure:
            canvas = FigureCanvasAgg(plot_layers(self.curves, self.measures, band=False))
            canvas.draw()
            runner.visualizer.add_image("white_box", np.asarray(canvas.buffer_rgba())[..., :3].copy(), epoch)
