"""What we use of PyTorch under names that are its own: all of it is here, tried on PyTorch 2.14, all but
``keep_graphs_whole`` on 2.6 too, and all but this, ``end_workers`` and ``BatchNorm`` on 2.11 and 2.15."""

from torch import _foreach_add_ as foreach_add_  # noqa: F401
from torch import _foreach_mul as foreach_mul  # noqa: F401
from torch import _foreach_mul_ as foreach_mul_  # noqa: F401
from torch import _foreach_norm as foreach_norm  # noqa: F401
from torch import _foreach_sign_ as foreach_sign_  # noqa: F401
from torch._C import PyTorchFileReader  # noqa: F401
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # noqa: F401
from torch.utils.data import DataLoader


def keep_graphs_whole() -> None:
    """Let what is compiled inside of DistributedDataParallel stay one graph.

    Dynamo would split it at the borders of DDP's buckets, so that their gradients are sent before its backward pass has
    ended. A repeated block is small: its own gradients are sent while the block before it is computed.
    """
    import torch._dynamo  # which takes a second

    torch._dynamo.config.optimize_ddp = False


def end_workers(loader: DataLoader, iterator: object = None) -> None:
    """End a loader's workers, those of the loader and of an iterator over it that has not come to its end.

    The garbage collector would end them too, at a time of its own. But it closes the queues to the workers first, so
    that they never hear that they are to end, and PyTorch waits ten seconds for each.
    """
    for each in (iterator, getattr(loader, "_iterator", None)):
        if hasattr(each, "_shutdown_workers"):
            each._shutdown_workers()
    if hasattr(loader, "_iterator"):
        loader._iterator = None  # the next iteration starts others
