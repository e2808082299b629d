"""List the operations of a training step from shapes alone, without computing or allocating anything.

The step runs on fake tensors. Each operator that PyTorch would run is recorded with its FLOPs and the bytes it moves.
"""

from collections.abc import Callable
from itertools import accumulate, groupby
from math import prod
from typing import Any, NamedTuple

import torch

# Private by name, but documented by PyTorch 2.6 to 2.14 under "fake tensors" and "modes for dispatch".
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from crate_mm.engine.optim.wrapper import OptimWrapper


class Operation(NamedTuple):
    """One call of an operator.

    Attributes:
        kind: 'product', 'attention' or 'memory' (time is determined by the bytes moved).
        flops: two per multiply-add.
        read, written: bytes of each tensor's storage, by storage number.
        tokens: number of tokens of an attention.
    """

    name: str
    phase: str
    kind: str
    flops: int
    read: dict[int, int]
    written: dict[int, int]
    dtype: torch.dtype
    tokens: int = 0

    @property
    def bytes_moved(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())


class Recorder(TorchDispatchMode):
    """Record all operators except views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.phase = "forward"
        self._memories: dict[int, tuple[int, Any]] = {}  # by storage id; holding the storage keeps its id unique

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read = self._memory_of((args, kwargs))
        written = self._memory_of(out)
        name = func.overloadpacket.__name__
        in_place = name.endswith("_") or (name.startswith("_foreach") and out is None)
        if in_place:
            written = self._memory_of(args[0])
        is_view = not in_place and written and written.keys() <= read.keys()
        if not is_view and written and not name.startswith(("empty", "detach")):
            self.operations.append(self._operation(func, name, args, kwargs or {}, out, read, written))
        return out

    def _operation(self, func, name, args, kwargs, out, read, written) -> Operation:
        first = next(leaf for leaf in tree_leaves((out, args)) if isinstance(leaf, torch.Tensor))
        kind, flops, tokens = "memory", 0, 0
        if "scaled_dot_product" in name:
            kind = "attention"
            backward = "backward" in name
            q, k, v = args[1:4] if backward else args[:3]
            tokens = q.shape[-2]
            # Two products forward; five backward: scores again, gradients of q, k, v and of the weights.
            both = prod(q.shape[:-1]) * k.shape[-2] * 2
            flops = both * (3 * q.shape[-1] + 2 * v.shape[-1] if backward else q.shape[-1] + v.shape[-1])
        elif func.overloadpacket in flop_registry:
            kind = "product"
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return Operation(name, self.phase, kind, flops, read, written, first.dtype, tokens)

    def _memory_of(self, values: Any) -> dict[int, int]:
        """Return the bytes of each storage among values; a view counts its own bytes."""
        sizes: dict[int, int] = {}
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                number, _ = self._memories.setdefault(id(storage), (len(self._memories), storage))
                # An expanded dimension is read once.
                elements = prod(size for size, stride in zip(tensor.shape, tensor.stride()) if stride)
                sizes[number] = max(sizes.get(number, 0), elements * tensor.element_size())
        return sizes


def record_step(
    task: torch.nn.Module,
    batch: Callable[[], dict[str, torch.Tensor]],
    wrapper: Callable[[list[torch.nn.Parameter]], OptimWrapper],
    bf16: bool = False,
) -> list[Operation]:
    """Return the operations of a training step, from the loader's batch to the updated parameters.

    Args:
        task: model on the device "meta".
        batch: function that returns a batch.
        wrapper: function that builds an optimizer wrapper for parameters. If its optimizer can skip a step on the
            device, the recorded step includes the check of the gradients.
        bf16: whether the forward pass runs under autocast to bf16.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # buffers and seeds may be real
        task = task.to_empty(device="cpu").train()
        params = [parameter for parameter in task.parameters() if parameter.requires_grad]
        steps, recorder, data = wrapper(params), Recorder(), batch()
        for parameter in params:  # the first step creates the optimizer's state
            parameter.grad = torch.zeros_like(parameter)
        steps.optimizer.step()
        steps.zero_grad()
        with recorder:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = task(**task.data_preprocessor(data, True), mode="loss")
                loss = sum(value for name, value in losses.items() if name.startswith("loss"))
            recorder.phase = "backward"
            loss.backward()
            recorder.phase = "optimizer"
            steps._measure()
            if steps._supports_found_inf():
                steps._step_if_finite()
            else:
                steps.optimizer.step()
            steps.zero_grad()
    return recorder.operations


def lifetimes(operations: list[Operation]) -> dict[int, tuple[int, int]]:
    """Return the first and the last operation that use each storage allocated in the step.

    Storage that is read before it is written existed before the step: parameters, the optimizer's state, the batch.
    """
    lives: dict[int, tuple[int, int]] = {}
    before: set[int] = set()
    for number, operation in enumerate(operations):
        before.update(memory for memory in operation.read if memory not in lives)
        for memory in (*operation.read, *operation.written):
            if memory not in before:
                lives[memory] = (lives.get(memory, (number,))[0], number)
    return lives


def peak_bytes(operations: list[Operation]) -> int:
    """Return the peak memory of the step, in bytes, beyond the memory before it."""
    alive = [0] * (len(operations) + 1)
    lives, sizes = lifetimes(operations), sizes_of(operations)
    for memory, (first, last) in lives.items():
        alive[first] += sizes[memory]
        alive[last + 1] -= sizes[memory]
    return max(accumulate(alive))


def sizes_of(operations: list[Operation]) -> dict[int, int]:
    """Return the bytes of each storage: the most that an operation reads or writes of it."""
    sizes: dict[int, int] = {}
    for operation in operations:
        for memory, size in (*operation.read.items(), *operation.written.items()):
            sizes[memory] = max(sizes.get(memory, 0), size)
    return sizes


def fused(operations: list[Operation]) -> list[Operation]:
    """Merge all operations between two products into one, as a compiler does.

    Storage used only inside such a group is neither read nor written. The optimizer's operations stay separate.
    """
    lives, done = lifetimes(operations), []
    numbered = enumerate(operations)
    for (kind, phase), run in groupby(numbered, lambda item: (item[1].kind, item[1].phase)):
        run = list(run)
        if kind != "memory" or phase == "optimizer":
            done += [operation for _, operation in run]
            continue
        read, written, end = {}, {}, run[-1][0]
        for _, operation in run:
            read |= {memory: size for memory, size in operation.read.items() if memory not in written}
            written |= operation.written
        outputs = {memory: size for memory, size in written.items() if lives.get(memory, (0, end + 1))[1] > end}
        done.append(run[0][1]._replace(name="fused", read=read, written=outputs))
    return done
