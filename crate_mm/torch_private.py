"""All uses of PyTorch's private names.

All were tested with PyTorch 2.14. With 2.6, all but ``keep_graphs_whole`` were tested; with 2.11 and 2.15, all but
``keep_graphs_whole``, ``end_workers`` and ``BatchNorm``.
"""

from torch import _foreach_add_ as foreach_add_  # noqa: F401
from torch import _foreach_mul as foreach_mul  # noqa: F401
from torch import _foreach_mul_ as foreach_mul_  # noqa: F401
from torch import _foreach_norm as foreach_norm  # noqa: F401
from torch import _foreach_sign_ as foreach_sign_  # noqa: F401
from torch._C import PyTorchFileReader  # noqa: F401
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # noqa: F401
from torch.utils.data import DataLoader


def keep_graphs_whole() -> None:
    """Compile modules within DistributedDataParallel as one graph each.

    Dynamo splits graphs at DDP's buckets, so that gradients are sent before the backward pass of the graph ends. Blocks
    need no splits: the gradients of a block are sent while the gradients of the previous block are computed.
    """
    import torch._dynamo  # takes a second

    torch._dynamo.config.optimize_ddp = False


def end_workers(loader: DataLoader, iterator: object = None) -> None:
    """Shut down the workers of a loader, including those of an unfinished iterator.

    The garbage collector would shut down workers later, and would close the queues first: the workers then miss the
    request to exit, and PyTorch waits ten seconds for each worker.
    """
    for workers in (iterator, getattr(loader, "_iterator", None)):
        if hasattr(workers, "_shutdown_workers"):
            workers._shutdown_workers()
    if hasattr(loader, "_iterator"):
        loader._iterator = None  # the next iteration starts new workers
