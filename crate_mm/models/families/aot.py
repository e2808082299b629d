"""AoT, the attention-only transformer: each layer compresses the tokens and does nothing else.

Source: Wang et al., "Attention-Only Transformers via Unrolled Subspace Denoising", ICML 2025, arXiv 2506.03790. Its
authors have published neither code nor weights. Patch embedding and CLS token are CRATE's.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions.
"""

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import TokenEmbedding
from .block import build_blocks
from .crate import CRATE
from .patches import PatchBackbone

# The paper gives no sizes. As language models with GPT-2's embeddings, "base" and "medium" have as many parameters as
# the paper's models of these names, 102 and 182 million. "tiny" and "small" are this package's.
AOT_ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "small": Arch(embed_dim=384, depth=24, num_heads=6),
    "base": Arch(embed_dim=1024, depth=24, num_heads=16),
    "medium": Arch(embed_dim=1280, depth=36, num_heads=20),
}


@BACKBONES.register_module()
class AoT(PatchBackbone):
    """AoT backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first. A layer is
    ``Z^{l+1} = Z^l + MSSA(LN(Z^l))``.

    ``compress=dict(type="SoftmaxAttention")`` is the paper's variant with multi-head self-attention (MHSA).

    Args:
        arch: a name of ``AOT_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size, patch_size, in_channels, drop_path, drop_path_rule: as in ``CRATE``.
        compress: config of ``LAYERS`` to replace ``MSSA``; it gets ``embed_dim`` and ``num_heads``.

    Raises:
        ValueError: unknown ``arch``, indivisible sizes, ``compress=None``, or invalid ``drop_path``.
    """

    sizes = Sizes("aot", AOT_ARCHS)
    kernels = CRATE.kernels
    channels_last = True  # patches can be cut from images in either memory order

    def __init__(
        self,
        arch: str | dict = "small",
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        compress: dict | str = "default",
        drop_path: float = 0.0,
        drop_path_rule: str = "linear",
    ) -> None:
        super().__init__()
        size = resolve_arch(arch, AOT_ARCHS)
        self.embed_dim = size.embed_dim
        self.embedding = TokenEmbedding(img_size, patch_size, in_channels, size.embed_dim)
        self.blocks = build_blocks(size, compress, None, ({"type": "MSSA"}, None), drop_path, drop_path_rule)
