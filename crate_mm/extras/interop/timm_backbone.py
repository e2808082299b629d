"""timm's models as backbones: ``dict(type="TimmBackbone", name="vit_small_patch16_224")``.

A config names this module: ``custom_imports = dict(imports=["crate_mm.timm"])``.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions, K heads.
"""

import copy
from typing import Any, ClassVar

import timm
import torch
from timm.layers import Attention
from torch import Tensor, nn

from ...models.backbone import Backbone, InputSpec, Positions
from ...models.layers import Compression, Layer, Map, TokenLayout, scaled_similarity
from ...registry import BACKBONES, builds_from_data, suggest

# What would read files, fetch from elsewhere, or contradict the arguments that stand for it here.
NOT_TAKEN = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only")
NOT_TAKEN += ("num_classes", "in_chans", "drop_path_rate", "scriptable", "exportable", "no_jit")
MAX_SIDE = 8192  # pixels


class TappedTimmAttention(Compression):
    """timm's self-attention whose input passes ``tap_w``. It has no subspaces: R^c is not defined for it."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attn = attention

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.attn(self.tap_w(x), *args, **kwargs)

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        B, N, _ = w.shape
        q, k, _ = self.attn.qkv(w).view(B, N, 3, self.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.attn.q_norm(q), self.attn.k_norm(k)
        q, k = (x.transpose(1, 2).flatten(2) for x in (q, k))
        return {"attention": Map(scaled_similarity(q, k, self.attn.num_heads))}


class TimmLayer(Layer):
    """A layer of a timm model, ``(B, N, d) -> (B, N, d)``, with ``tap_out``, and ``tap_w`` where it has timm's
    ``Attention``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if type(getattr(layer, "attn", None)) is Attention:
            layer.attn = TappedTimmAttention(layer.attn)
            self.compress = layer.attn
        self.layer = layer
        self.tap_out = nn.Identity()

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.tap_out(self.layer(z, *args, **kwargs))


@BACKBONES.register_module()
class TimmBackbone(Backbone):
    """A model of timm without its classifier: ``(B, C, H, W) -> (B, 1 + N, d)``.

    The first token is the CLS token or, of a model without one, the mean of its tokens; so a head pools it by 'cls'.
    Further prefix tokens, such as registers, are left out. A model with ``blocks`` has layers that can be looked into.

    Args:
        name: one of ``timm.list_models()``.
        img_size: height and width of the images, one number if square; the model's own if not given.
        in_channels: C.
        drop_path: stochastic depth, which timm calls ``drop_path_rate``.
        pretrained: take timm's weights, from its Hub. A model that is built from what a file says takes the file's.
        options: further arguments of the model, as ``timm.create_model`` takes them; none that name files.

    Raises:
        ValueError: timm has no such model, its features are no tokens, or an argument is not taken.

    Attributes:
        original_names: timm's names of the weights, each with the names that the tensor has here. A file of timm's own
            is read by it.
    """

    head_settings: ClassVar[dict[str, Any]] = {"norm": False}  # timm's features have passed a LayerNorm, if any

    def __init__(
        self,
        name: str,
        img_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        drop_path: float = 0.0,
        pretrained: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}: {suggest(name, timm.list_models())}")
        wrong = next((option for option in options if option in NOT_TAKEN), None)
        if wrong:
            raise ValueError(f"TimmBackbone does not take {wrong}: pretrained=True or a checkpoint gives it weights")
        sides = (img_size,) if isinstance(img_size, int) else img_size or ()
        if any(not isinstance(side, int) or not 1 <= side <= MAX_SIDE for side in sides):
            raise ValueError(f"img_size must be of 1 to {MAX_SIDE} pixels, got {img_size!r}")
        sized = {} if img_size is None else {"img_size": img_size}
        pretrained = pretrained and not builds_from_data()
        options |= {"num_classes": 0, "in_chans": in_channels, **sized}
        try:
            self.model = _create(name, pretrained, drop_path, options)
        except TypeError as error:
            raise ValueError(f"timm's {name} does not take these arguments: {error}") from None
        original: dict[int, list[str]] = {}
        for theirs, value in self.model.state_dict(keep_vars=True).items():
            original.setdefault(id(value), []).append(theirs)
        self.embed_dim = self.model.num_features
        self.in_channels = in_channels
        size = img_size or self.model.default_cfg["input_size"][1:]
        self.img_size = (size, size) if isinstance(size, int) else tuple(size)
        self.prefix = getattr(self.model, "num_prefix_tokens", 0)
        blocks = getattr(self.model, "blocks", None)
        if isinstance(blocks, (nn.Sequential, nn.ModuleList)) and self.prefix:
            for number, layer in enumerate(blocks):
                blocks[number] = TimmLayer(layer)
        self.original_names: dict[str, list[str]] = {}
        for own, value in self.state_dict(keep_vars=True).items():
            for theirs in original[id(value)]:
                self.original_names.setdefault(theirs, []).append(own)
        self.eval().requires_grad_(True)
        features = self._meta_features()
        if not isinstance(features, Tensor):
            raise ValueError(f"{name} gives no tokens: its features are of kind {type(features).__name__}")
        tokens = self._with_first(features)
        if tokens.ndim != 3 or tokens.shape[2] != self.embed_dim:
            raise ValueError(f"{name} gives no tokens of {self.embed_dim} channels: its features are {tokens.shape}")
        self.num_tokens = tokens.shape[1] - 1 + self.prefix
        self.train()

    @property
    def stem(self) -> list[str]:
        """The parameters before the layers, as timm's model groups them."""
        names = timm.models.group_parameters(self.model, self.model.group_matcher())
        return [f"model.{name}" for name in names[0]]

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.in_channels, self.img_size)

    def layout(self, inputs: Tensor) -> TokenLayout | None:
        """Return the grid of the patches; None where timm's model has no grid or other tokens too."""
        grid = getattr(getattr(self.model, "patch_embed", None), "grid_size", None)
        if grid is None or self.prefix + grid[0] * grid[1] != self.num_tokens:
            return None
        return TokenLayout(self.prefix, *grid)

    def resizable(self) -> dict[str, Positions]:
        positions = getattr(self.model, "pos_embed", None)
        if positions is None or self.prefix != 1 or positions.shape[1] != self.num_tokens:
            return {}
        layout = self.layout(torch.empty(1, *self.input_spec.shape, device="meta"))
        return {} if layout is None else {"model.pos_embed": Positions(layout[1:])}

    def original_classifier(self) -> str:
        """The name of timm's classifier, if it takes the vector that a head pools here by 'cls'; else ''.

        That is asked of random features.
        """
        name = self.model.pretrained_cfg.get("classifier")
        copied, shape, like = self._copy(), self._meta_features().shape, next(self.parameters())
        with torch.no_grad():
            try:
                generator = torch.Generator(like.device).manual_seed(0)  # the run's own numbers stay as they are
                features = torch.randn(2, *shape[1:], dtype=like.dtype, device=like.device, generator=generator)
                pooled = copied.model.forward_head(features, pre_logits=True)
                same = torch.allclose(pooled, copied._with_first(features)[:, 0], rtol=1e-3, atol=1e-3)
            except (AttributeError, TypeError, RuntimeError):  # no such method, several vectors, no memory
                same = False
        return name if same and isinstance(name, str) else ""

    def _copy(self, device: str | None = None) -> "TimmBackbone":
        """A copy in eval mode with the same tensors, or with tensors without memory on the meta device."""
        tensors = (*self.parameters(), *self.buffers())
        return copy.deepcopy(self, {id(value): value.detach().to(device) for value in tensors}).eval()

    @torch.no_grad()
    def _meta_features(self) -> Any:
        """Return what timm's model gives for one image on the meta device.

        Nothing is computed, so large images cost no time and no memory.
        """
        with torch.device("meta"):
            return self._copy("meta").model.forward_features(torch.zeros(1, self.in_channels, *self.img_size))

    def _with_first(self, z: Tensor) -> Tensor:
        """The first token and the patches, ``(B, 1 + N, d)``, of timm's features."""
        if z.ndim == 4:  # a convolutional model's; those with the channels last say so
            z = z.flatten(1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else z.flatten(2).mT
        patches = z[:, self.prefix :]
        has_cls = self.prefix > 0 and getattr(self.model, "cls_token", None) is not None  # or registers alone
        return torch.cat([z[:, :1] if has_cls else patches.mean(dim=1, keepdim=True), patches], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self._with_first(self.model.forward_features(images))


def _create(name: str, pretrained: bool, drop_path: float, options: dict[str, Any]) -> nn.Module:
    """timm's model; one whose constructor has no stochastic depth is built without it."""
    try:
        return timm.create_model(name, pretrained, drop_path_rate=drop_path, **options)
    except TypeError as error:
        if drop_path or "drop_path_rate" not in str(error):
            raise
    return timm.create_model(name, pretrained, **options)
