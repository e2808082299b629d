"""The training loop: one iteration is one optimisation step."""

from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from ..registry import LOOPS


@LOOPS.register_module()
class TrainLoop(EpochBasedTrainLoop):
    """MMEngine's epoch-based loop, which splits what a device loads into micro-batches where that is needed.

    The gradients of the micro-batches are accumulated (by the OptimWrapper's ``accumulative_counts``) and every other
    part, such as the schedule, EMA, hooks and logs, sees one iteration a step, with or without accumulation.

    Args:
        runner, dataloader, kwargs: as for MMEngine's ``EpochBasedTrainLoop``.
        micro_batches: into how many equal parts a device's batch is split.
    """

    def __init__(self, runner, dataloader, micro_batches: int = 1, **kwargs) -> None:
        super().__init__(runner, dataloader, **kwargs)
        self.micro_batches = micro_batches

    def run_iter(self, idx: int, data_batch: dict[str, Tensor]) -> None:
        """Take one optimisation step on a device's batch."""
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        logs = [
            self.runner.model.train_step(micro_batch, optim_wrapper=self.runner.optim_wrapper)
            for micro_batch in split_batch(data_batch, self.micro_batches)
        ]
        outputs = {key: sum(log[key] for log in logs) / len(logs) for key in logs[0]}
        self.runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1


def split_batch(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Split every tensor of a batch ``(B, ...)`` into ``parts`` equal parts along its first dimension."""
    if parts == 1:
        return [batch]
    chunks = {key: value.chunk(parts) for key, value in batch.items()}
    return [{key: chunk[part] for key, chunk in chunks.items()} for part in range(parts)]
