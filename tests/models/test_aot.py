"""AoT: its layers only compress. (test_causal.py compares them with reference numbers, in the language model.)"""

import pytest
import torch

from crate_mm import get_model
from crate_mm.models import AoT
from crate_mm.testing import check_backbone

MICRO = dict(embed_dim=24, depth=2, num_heads=3)


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
