"""timm models as backbones: ``dict(type="TimmBackbone", name="vit_small_patch16_224")``.

Configs import it with ``custom_imports = dict(imports=["crate_mm.timm"])``.
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

# These options would read files, download, or contradict an argument of TimmBackbone.
REFUSED_OPTIONS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only")
REFUSED_OPTIONS += ("num_classes", "in_chans", "drop_path_rate", "scriptable", "exportable", "no_jit")
MAX_SIDE = 8192  # pixels


class TappedTimmAttention(Compression):
    """timm's self-attention with ``tap_w`` on its input. Without subspaces, R^c is not defined."""

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
    """A timm layer, ``(B, N, d) -> (B, N, d)``, with ``tap_out``; with timm's ``Attention``, it also has ``tap_w``."""

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
    """A timm model without its classifier: ``(B, C, H, W) -> (B, 1 + N, d)``.

    The first token is the CLS token or, in a model without a CLS token, the mean of the patches. Heads therefore pool
    by 'cls'. Other prefix tokens, such as registers, are dropped. In a model with ``blocks`` and prefix tokens, each
    block becomes a ``Layer`` that measures and figures can read.

    Args:
        name: one of ``timm.list_models()``.
        img_size: height and width of the images, or one number for both (default: the model's).
        in_channels: C.
        drop_path: stochastic depth, timm's ``drop_path_rate``.
        pretrained: load timm's weights from the Hub; ignored when a checkpoint file defines the model.
        options: other arguments of ``timm.create_model``, except those in ``REFUSED_OPTIONS``.

    Raises:
        ValueError: timm has no such model, its features are not tokens, or an option is refused.

    Attributes:
        original_names: maps timm's name of each weight to its names in this module, to read timm's checkpoints.
    """

    head_settings: ClassVar[dict[str, Any]] = {"norm": False}  # timm applies the final LayerNorm itself

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
        refused = next((option for option in options if option in REFUSED_OPTIONS), None)
        if refused:
            raise ValueError(
                f"TimmBackbone does not accept {refused}: for weights, set pretrained=True or load a checkpoint"
            )
        sides = (img_size,) if isinstance(img_size, int) else img_size or ()
        if any(not isinstance(side, int) or not 1 <= side <= MAX_SIDE for side in sides):
            raise ValueError(f"img_size must be from 1 to {MAX_SIDE} pixels, got {img_size!r}")
        sized = {} if img_size is None else {"img_size": img_size}
        pretrained = pretrained and not builds_from_data()
        options |= {"num_classes": 0, "in_chans": in_channels, **sized}
        try:
            self.model = _create(name, pretrained, drop_path, options)
        except TypeError as error:
            raise ValueError(f"timm's {name} does not accept these arguments: {error}") from None
        original: dict[int, list[str]] = {}
        for timm_name, value in self.model.state_dict(keep_vars=True).items():
            original.setdefault(id(value), []).append(timm_name)
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
            for timm_name in original[id(value)]:
                self.original_names.setdefault(timm_name, []).append(own)
        self.eval().requires_grad_(True)
        features = self._meta_features()
        if not isinstance(features, Tensor):
            raise ValueError(f"{name} does not return tokens: its features are a {type(features).__name__}")
        tokens = self._with_first(features)
        if tokens.ndim != 3 or tokens.shape[2] != self.embed_dim:
            raise ValueError(f"expected tokens with {self.embed_dim} channels, got features {tokens.shape} from {name}")
        self.num_tokens = tokens.shape[1] - 1 + self.prefix
        self.train()

    @property
    def stem(self) -> list[str]:
        """Names of the parameters before the layers, by timm's own grouping."""
        names = timm.models.group_parameters(self.model, self.model.group_matcher())
        return [f"model.{name}" for name in names[0]]

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.in_channels, self.img_size, getattr(self.model, "dynamic_img_size", False))

    def layout(self, inputs: Tensor) -> TokenLayout | None:
        """Return the token layout; None unless the tokens are the prefix tokens and a grid of patches."""
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
        """Return the name of timm's classifier if its input is the first token (tested on random features), else ''."""
        name = self.model.pretrained_cfg.get("classifier")
        backbone, shape, parameter = self._copy(), self._meta_features().shape, next(self.parameters())
        with torch.no_grad():
            try:
                generator = torch.Generator(parameter.device).manual_seed(0)  # leaves the global random state unchanged
                options = {"dtype": parameter.dtype, "device": parameter.device, "generator": generator}
                features = torch.randn(2, *shape[1:], **options)
                pooled = backbone.model.forward_head(features, pre_logits=True)
                same = torch.allclose(pooled, backbone._with_first(features)[:, 0], rtol=1e-3, atol=1e-3)
            except (AttributeError, TypeError, RuntimeError):  # no forward_head, several outputs, out of memory
                same = False
        return name if same and isinstance(name, str) else ""

    def _copy(self, device: str | None = None) -> "TimmBackbone":
        """Return a copy in eval mode that shares the tensors, or, with ``device='meta'``, has meta tensors."""
        tensors = (*self.parameters(), *self.buffers())
        return copy.deepcopy(self, {id(value): value.detach().to(device) for value in tensors}).eval()

    @torch.no_grad()
    def _meta_features(self) -> Any:
        """Return meta tensors with the shapes of the features of timm's model for one image."""
        with torch.device("meta"):
            return self._copy("meta").model.forward_features(torch.zeros(1, self.in_channels, *self.img_size))

    def _with_first(self, z: Tensor) -> Tensor:
        """Return the first token and the patches, ``(B, 1 + N, d)``, from timm's features."""
        if z.ndim == 4:  # features of a convolutional model; channels-last models set output_fmt
            z = z.flatten(1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else z.flatten(2).mT
        patches = z[:, self.prefix :]
        has_cls = self.prefix > 0 and getattr(self.model, "cls_token", None) is not None  # else only registers
        return torch.cat([z[:, :1] if has_cls else patches.mean(dim=1, keepdim=True), patches], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self._with_first(self.model.forward_features(images))


def _create(name: str, pretrained: bool, drop_path: float, options: dict[str, Any]) -> nn.Module:
    """Return timm's model, without stochastic depth if its constructor does not support it."""
    try:
        return timm.create_model(name, pretrained, drop_path_rate=drop_path, **options)
    except TypeError as error:
        if drop_path or "drop_path_rate" not in str(error):
            raise
    return timm.create_model(name, pretrained, **options)
