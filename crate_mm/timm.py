"""crate_mm backbones as timm models: ``import crate_mm.timm`` registers them.

    import crate_mm.timm, timm
    model = timm.create_model("crate_base_patch16_224", num_classes=10)
    timm.create_model("tost_small_12_patch16_224", features_only=True)
    timm.create_model("crate_mini_digits", pretrained=True)

A model name is a name of ``crate_mm.list_models()`` plus patch and image size. torchvision's ViT has the prefix
``torchvision_``, because timm has its own ViT. Models with weights in the package keep their plain name. State dicts
use crate_mm's parameter names, ``backbone.*`` and ``head.*``. timm does not load the weights that other authors
published: use ``crate_mm.get_model(..., pretrained=True)``.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

try:
    import timm  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("crate_mm.timm needs timm, which is not installed: pip install 'crate_mm[timm]'") from None
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .checkpoints.zoo import PUBLISHED, packaged, published_hint
from .extras.interop.timm_backbone import TimmBackbone  # noqa: F401  registers it
from .inference.model_factory import packaged_model
from .models.backbone import registered_backbones
from .models.tasks.heads import LinearHead
from .models.tasks.preprocessor import IMAGENET_MEAN, IMAGENET_STD
from .registry import BACKBONES, head_for

POOLS = {"token": "cls", "avg": "mean"}  # timm name -> crate_mm name


class TimmModel(nn.Module):
    """A backbone with timm's interface: normalized images ``(B, C, H, W)`` to logits ``(B, num_classes)``.

    Args:
        kind: type of the backbone, in ``BACKBONES``.
        num_classes: number of classes; 0 for features instead of logits.
        in_chans: C.
        global_pool: 'token' for the CLS token, 'avg' for the mean of all tokens, '' for all tokens without pooling.
        drop_path_rate: drop probability of stochastic depth.
        drop_rate: must be 0: the heads have no dropout.
        backbone: further arguments of the backbone, such as ``arch``, ``img_size`` and ``patch_size``.

    Raises:
        ValueError: an argument is not supported.
    """

    def __init__(
        self,
        kind: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "token",
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        **backbone: Any,
    ) -> None:
        super().__init__()
        if drop_rate:
            raise ValueError(f"drop_rate must be 0, because the heads have no dropout, got {drop_rate!r}")
        self.kind = kind
        self.backbone = BACKBONES.build(dict(type=kind, in_channels=in_chans, drop_path=drop_path_rate, **backbone))
        self.num_features = self.head_hidden_size = self.embed_dim = self.backbone.embed_dim
        self.in_chans, self.grad_checkpointing = in_chans, False
        spec = self.backbone.input_spec
        _, rows, columns = self.backbone.layout(torch.empty(1, *spec.shape, device="meta"))
        self.reduction = spec.size[0] // rows, spec.size[1] // columns
        names = {id(module): name for name, module in self.named_modules()}
        self.feature_info = [
            {"module": names[id(block)], "num_chs": self.embed_dim, "reduction": self.reduction[0]}
            for block in self.backbone.layers
        ]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new head. With 0 classes, the new head only pools and normalizes."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in (*POOLS, "") or (pool == "" and num_classes):
            known = ", ".join(map(repr, POOLS))
            raise ValueError(f"global_pool must be {known} or, with num_classes=0, '': got {global_pool!r}")
        self.global_pool, self.num_classes = pool, num_classes
        settings = head_for(self.kind)
        self.head = LinearHead(self.embed_dim, num_classes, POOLS.get(pool, "cls"), **settings)
        parameter = next(self.backbone.parameters())
        self.head.to(parameter.device, parameter.dtype)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the backbone's tokens, ``(B, 1 + N, d)``, before the head's LayerNorm."""
        return self.backbone(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map tokens to logits; with ``pre_logits`` to ``(B, d)``, or ``(B, 1 + N, d)`` if ``global_pool=''``."""
        pooled = self.head.norm(x if self.global_pool == "" else self.head.pooled(x))
        return pooled if pre_logits else self.head.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the outputs of layers.

        Args:
            x: images.
            indices: list of layer indices; an integer n for the last n layers, None for all.
            return_prefix_tokens: return pairs (patches, prefix tokens); ToST's layers have no prefix tokens.
            norm: apply the head's LayerNorm to each output.
            stop_early: no effect, because all layers are computed.
            output_fmt: 'NCHW' for ``(B, d, rows, columns)``, 'NLC' for ``(B, N, d)``.
            intermediates_only: return only the list, not (tokens, list).

        Raises:
            ValueError: unknown ``output_fmt``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        indices = self._layer_indices(indices)
        outputs: dict[int, Tensor] = {}

        def store(layer: int, _block: nn.Module, _inputs: tuple, z: Tensor) -> None:
            outputs[layer] = z

        hooks = [self.backbone.layers[layer].register_forward_hook(partial(store, layer)) for layer in indices]
        try:
            tokens = self.forward_features(x)
        finally:
            for hook in hooks:
                hook.remove()
        first, rows, columns = self.backbone.layout(x)
        layers = [self.head.norm(outputs[layer]) if norm else outputs[layer] for layer in indices]
        patches = [z[:, first:] for z in layers]
        if output_fmt == "NCHW":
            patches = [z.mT.unflatten(2, (rows, columns)).contiguous() for z in patches]
        if return_prefix_tokens:
            patches = [(z, layer[:, :first]) for z, layer in zip(patches, layers)]
        return patches if intermediates_only else (tokens, patches)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove parts of the head as requested, but no layers; return the layer indices."""
        if prune_head:
            self.head.fc = nn.Identity()
            self.num_classes = 0
        if prune_norm:
            self.head.norm = nn.Identity()
        return self._layer_indices(indices)

    def _layer_indices(self, indices: int | list[int] | None) -> list[int]:
        """Return sorted layer indices: the last n for an integer, all for None. A list may have negative indices."""
        all_layers = list(range(len(self.backbone.layers)))
        if indices is None or isinstance(indices, int):
            return all_layers[-indices:] if indices else all_layers
        invalid = [layer for layer in indices if layer not in range(-len(all_layers), len(all_layers))]
        if invalid:
            raise ValueError(f"layer {invalid[0]} does not exist: the model has {len(all_layers)}, the first is 0")
        return sorted(all_layers[layer] for layer in indices)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of CLS tokens and position embeddings."""
        ends = ("cls_token", "class_token", "pos_embed", "pos_embedding")
        return {name for name, _ in self.named_parameters() if name.endswith(ends)}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass (activation checkpointing)."""
        self.grad_checkpointing = enable
        for block in self.backbone.layers:
            block.__dict__.pop("forward", None)
            if enable:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return parameter name patterns for layer-wise learning rates: stem, each layer, and everything after."""
        holder = self.feature_info[0]["module"].rpartition(".")[0].replace(".", r"\.")
        number = self.feature_info[0]["module"].rpartition(".")[2].removesuffix("0")
        return {
            "stem": r"^backbone\.(?:embedding|conv_proj|class_token|encoder\.pos_embedding)",
            "blocks": [(rf"^{holder}\.{number}(\d+)", None), (r"^backbone\.|^head\.norm", (99999,))],
        }


# Settings that replace the test transforms of ``default_cfg``: ToST uses its authors' settings.
TEST_TRANSFORMS = {"tost": {"crop_pct": 1.0, "interpolation": "bicubic"}}


def default_cfg(family: str) -> dict[str, Any]:
    """Return timm's config of a family, without pretrained weights, with the test transforms of crate_mm's configs."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "fixed_input_size": True,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": None,
        "classifier": "head.fc",
        "license": "mit",
        **TEST_TRANSFORMS.get(family, {}),
    }


PATCHES = {"crate": (16, 8), "crate_alpha": (8, 14, 16, 32), "tost": (16, 8)}  # patch sizes; other families: 16


def packaged_cfg(name: str, model: dict[str, Any]) -> dict[str, Any]:
    """Return timm's config of weights that the package contains."""
    backbone, preprocessor = model["backbone"], model["preprocessor"]
    size = (backbone["img_size"],) * 2
    return {
        **default_cfg(name),
        "file": str(PUBLISHED[name].file),
        "num_classes": model["head"]["num_classes"],
        "input_size": (backbone["in_channels"], *size),
        "crop_pct": 1.0,
        "mean": tuple(preprocessor["mean"]),
        "std": tuple(preprocessor["std"]),
    }


def _entry(name: str, model: str, kind: str, arch: str | dict[str, int], patch_size: int) -> Callable:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if (
            pretrained
            and name not in packaged()
            and not (kwargs.get("pretrained_cfg") or {}).get("url")
            and not kwargs.get("pretrained_cfg_overlay")
        ):
            raise RuntimeError(f"timm has no pretrained weights of {name}: {published_hint(model)}")
        arguments = {"kind": kind, "arch": arch, "patch_size": patch_size, **kwargs}
        features = {"out_indices": 3, "feature_cls": "getter"}
        return build_model_with_cfg(TimmModel, name, pretrained, feature_cfg=features, **arguments)

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{kind}, {arch}, with patches of {patch_size} pixels."
    return create


def _register() -> None:
    for kind, backbone in sorted(registered_backbones().items()):
        sizes = backbone.sizes
        if sizes is None or not backbone.__module__.startswith("crate_mm."):
            continue
        for arch in sizes.archs:
            for patch_size in PATCHES.get(sizes.prefix, (16,)):
                prefix = "torchvision_" if sizes.prefix == "vit" else ""
                name = f"{prefix}{sizes.prefix}_{arch}_patch{patch_size}_224"
                default_cfgs.update(generate_default_cfgs({name: default_cfg(sizes.prefix)}))
                globals()[name] = register_model(_entry(name, f"{sizes.prefix}_{arch}", kind, arch, patch_size))
    for name in packaged():
        model = packaged_model(name)
        backbone = model["backbone"]
        default_cfgs.update(generate_default_cfgs({name: packaged_cfg(name, model)}))
        entry = _entry(name, name, backbone["type"], backbone["arch"], backbone["patch_size"])
        globals()[name] = register_model(entry)


default_cfgs: dict[str, Any] = {}
_register()
