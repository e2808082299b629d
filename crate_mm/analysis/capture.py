"""Read what passes a model's taps, without a flag in its forward.

A tap is an identity module with a public name: ``tap_w`` passes the tokens projected on the subspaces, ``(B, N, K p)``;
``tap_half`` and ``tap_out`` pass Z^{l+1/2} and Z^{l+1}, ``(B, N, d)``. Any model that names its taps so can be read.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

TAPS = ("tap_w", "tap_half", "tap_out")


@contextmanager
def capture(model: nn.Module, taps: tuple[str, ...] = TAPS) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what passes the taps of every layer while the context is open, first layer first::

        with capture(model) as seen:
            model(images)
        seen["tap_half"][0]  # Z^{1/2} of the first layer, (B, N, d)

    Each forward pass of the model starts afresh. The tensors are those of the forward pass, part of its graph. The
    hooks are gone when the context closes, after an exception too.

    Raises:
        ValueError: the model has no such tap.
    """
    seen: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    handles = []
    try:
        for tap, values in seen.items():
            modules = [m for name, m in model.named_modules() if name.rpartition(".")[2] == tap]
            if not modules:
                raise ValueError(f"{type(model).__name__} has no tap {tap!r}: choose from {', '.join(TAPS)}")
            handles += [m.register_forward_hook(lambda _m, _i, out, v=values: v.append(out)) for m in modules]
        handles.append(model.register_forward_pre_hook(lambda *_: [v.clear() for v in seen.values()] and None))
        yield seen
    finally:
        for handle in handles:
            handle.remove()
