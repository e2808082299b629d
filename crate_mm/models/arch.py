"""The size of a transformer, by name or by numbers."""

from typing import NamedTuple

from ..registry import suggest


class Arch(NamedTuple):
    """Embedding dimension d, depth L, number of heads K (head dimension p = d / K)."""

    embed_dim: int
    depth: int
    num_heads: int


class Sizes(NamedTuple):
    """The named sizes of a backbone family (``Backbone.sizes``).

    ``get_model`` accepts the name 'prefix_arch' for each of ``archs``.
    """

    prefix: str
    archs: dict[str, Arch]

    def name_of(self, arch: Arch) -> str | dict[str, int]:
        """Return a size as a config value: the first name of this size, or a dict of its numbers."""
        return next((name for name, size in self.archs.items() if size == arch), arch._asdict())


def resolve_arch(arch: str | dict, archs: dict[str, Arch]) -> Arch:
    """Return the size of ``arch``, a name in ``archs`` or a dict; raise ``ValueError`` for an invalid ``arch``."""
    if isinstance(arch, str):
        if arch not in archs:
            raise ValueError(f"unknown arch {arch!r}: {suggest(arch, list(archs))}")
        return archs[arch]
    if set(arch) != set(Arch._fields):
        raise ValueError(f"arch needs exactly the keys {', '.join(Arch._fields)}; got {', '.join(arch) or 'none'}")
    if not all(isinstance(size, int) and size >= 1 for size in arch.values()):
        raise ValueError(f"arch needs positive integers, got {dict(arch)}")
    return Arch(**arch)
