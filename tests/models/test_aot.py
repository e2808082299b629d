"""AoT's layers against reference numbers, float64, 1e-9 relative (tests/data/README.md), and its contract.

The reference is a language model: its embeddings and its tied output are written out here.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crate_mm import get_model
from crate_mm.models import AOT_ARCHS, AoT
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import MSSA
from crate_mm.registry import LAYERS
from crate_mm.testing import check_backbone
from tests.official import official_state_dict, reference

REFERENCE = reference("aot")
LANGUAGE, COUNTS = REFERENCE["language_micro"], REFERENCE["parameter_counts_vocab50304_block1024"]
MICRO = dict(embed_dim=24, depth=2, num_heads=3)
OUR_NAMES = {"prenorm_1": "norm_compress", "attn.c_attn": "compress.proj", "attn.c_proj": "compress.out"}


class Causal(MSSA):
    """MSSA of a token with itself and the tokens before it."""

    def forward(self, x):
        w = self.proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(w, w, w, is_causal=True).transpose(1, 2).flatten(2))


@pytest.fixture
def causal():
    LAYERS.register_module(module=Causal)
    yield dict(type="Causal")
    del LAYERS.module_dict["Causal"]


def test_layers(causal):
    config = LANGUAGE["config"]
    weights = {key: value.requires_grad_() for key, value in official_state_dict(LANGUAGE["generated_shapes"]).items()}
    arch = dict(embed_dim=config["dim"], depth=config["depth"], num_heads=config["heads"])
    blocks, own = AoT(arch, 16, 8, compress=causal).blocks.double(), {}
    for key, value in weights.items():
        for theirs, ours in OUR_NAMES.items():
            if theirs in key:
                own[key.removeprefix("transformer.h.").replace(theirs, ours)] = value
    assert own.keys() == dict(blocks.named_parameters()).keys()
    ids = torch.tensor(LANGUAGE["token_ids"])
    z = weights["transformer.wte.weight"][ids[:, :-1]] + weights["transformer.wpe.weight"][: ids.shape[1] - 1]
    z = torch.func.functional_call(torch.nn.Sequential(*blocks), own, z)
    z = F.layer_norm(z, z.shape[-1:], weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"])
    logits = z @ weights["transformer.wte.weight"].T
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for value, expected in (
        (logits[:, -1, :10].detach(), LANGUAGE["logits_last_token_first10"]),
        (logits.norm().item(), LANGUAGE["logits_l2"]),
        (loss.item(), LANGUAGE["loss"]),
        ([g.norm().item() for g in gradients], [LANGUAGE["grad_l2_by_parameter"][key] for key in weights]),
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("arch", "size"), [("base", "24_layers_width_1024"), ("medium", "36_layers_width_1280")])
def test_named_sizes_have_the_parameters_of_the_papers_language_models(arch, size):
    d, depth, _ = AOT_ARCHS[arch]
    with torch.device("meta"):
        layer = build_block(d, 1, dict(type="MSSA", head_dim=d // 2), None)
        layer.compress.proj, layer.compress.out = torch.nn.Linear(d, d, bias=False), torch.nn.Linear(d, d)
    tokens_and_final_norm = 50304 * d + 2 * d
    parameters = depth * sum(p.numel() for p in layer.parameters()) + tokens_and_final_norm
    assert parameters == COUNTS[size]["without_position_embedding"]


@pytest.mark.parametrize("compress", ["default", dict(type="SoftmaxAttention"), dict(type="TSSA"), dict(type="CBSA")])
def test_contract(compress):
    backbone = AoT(MICRO, 16, 8, compress=compress)
    check_backbone(backbone)
    block = backbone.layers[0]
    assert (block.sparsify, block.lambd, block.returns_code) == (None, None, False)
    z = torch.randn(2, 5, 24)
    with torch.no_grad():
        torch.testing.assert_close(block(z), z + block.compress(block.norm_compress(z)))


def test_models_by_name():
    for compress in (dict(type="MSSA"), dict(type="SoftmaxAttention")):
        model = get_model("aot_tiny", num_classes=7, img_size=32, compress=compress)
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match="compress and sparsify are both None"):
        AoT(MICRO, 16, 8, compress=None)
