"""CBSA and AoT as a newcomer adds them: by CONTRIBUTING.md, in files outside the package."""

import csv
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from crate_mm import Predictor, get_model, init_model
from crate_mm.models import TokenLayout
from crate_mm.models.families.block import build_block
from crate_mm.registry import BACKBONES, LAYERS
from crate_mm.testing import check_backbone, check_layer

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _registered(_registries_as_before):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        import_module("aot")
        import_module("cbsa")
        yield


REFERENCES = HERE.parent / "data"
CBSA, AOT = (json.loads((REFERENCES / f"{name}_reference.json").read_text()) for name in ("cbsa", "aot"))
CBSA_CASES = [name for name, case in CBSA.items() if "cbsa_alone_first10" in case]
SIZE = dict(arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=16, patch_size=4)
BACKBONE = {
    "cbsa": dict(type="CRATE", **SIZE, compress=dict(type="CBSA", pool=2)),
    "aot": dict(type="AoT", **SIZE),
    "causal": dict(type="AoT", **SIZE, compress=dict(type="MaskedMSSA")),
}


def drawn(shapes):
    """The parameters of a reference model by name (tests/data/README.md)."""
    values = {}
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        z = np.random.RandomState(1000 + k).standard_normal(shape)
        if len(shape) == 1:
            z = 0.1 * z + name.endswith("weight")
        else:
            z = z / shape[-1] ** 0.5 if len(shape) == 2 else 0.5 * z
        values[name] = torch.from_numpy(z)
    return values


def assert_close(value, reference):
    torch.testing.assert_close(value, torch.tensor(reference, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BACKBONE)
def test_contract(name):
    backbone = BACKBONES.build(BACKBONE[name])
    check_layer(backbone.layers[0], embed_dim=24)
    check_backbone(backbone)


@pytest.mark.parametrize("case", CBSA_CASES)
def test_cbsa_reference(case):
    reference = CBSA[case]
    config = reference["config"]
    operator = LAYERS.get("CBSA")(config["dim"], config["heads"], shifted=True).double()
    own = "transformer.layers.0.0.fn."
    values = drawn(reference["generated_shapes"])
    operator.load_state_dict({key.removeprefix(own): value for key, value in values.items() if key.startswith(own)})
    side = config["image_size"] // config["patch_size"]
    layout = TokenLayout(prefix=1, rows=side, columns=side)
    x = torch.from_numpy(np.random.RandomState(5).standard_normal((2, 1 + side**2, config["dim"])))

    with torch.no_grad():
        out = operator(x, layout)
        w = operator.proj(x)
        q = operator.representatives(w, layout)
        A = operator.maps(w, layout)["attention"].values
    similarity = A.mT @ A
    assert_close(out[:, 0, :10], reference["cbsa_alone_first10"])
    assert_close(out.norm(), reference["cbsa_alone_l2"])
    assert_close(q[0, [0, 63], :10], reference["cbsa_alone_representatives_first10_of_number_0_and_63"])
    assert_close(q.norm(), reference["cbsa_alone_representatives_l2"])
    assert_close(similarity[0, 0, 0, :10], reference["cbsa_alone_similarity_image0_head0_token0_first10"])
    assert_close(similarity.norm(), reference["cbsa_alone_similarity_l2"])

    operator.shifted = False
    with torch.no_grad():
        out = operator(x, layout)
    assert_close(out[:, 0, :10], reference["cbsa_alone_if_cls_were_left_out_of_the_pool_first10"])
    assert_close(out.norm(), reference["cbsa_alone_if_cls_were_left_out_of_the_pool_l2"])


class CBT(nn.Module):
    """The reference's model around the operator: a stem, a CLS token, learned positions, our layers, a head."""

    def __init__(self, patch_size, num_classes, dim, depth, heads, image_size, **_):
        super().__init__()
        halvings = patch_size.bit_length() - 1
        widths = [3, *(dim >> k for k in reversed(range(halvings)))]
        stages = [
            nn.Sequential(nn.Conv2d(one, other, 3, 2, 1, bias=False), nn.BatchNorm2d(other))
            for one, other in pairwise(widths)
        ]
        self.stem = nn.Sequential(*[part for stage in stages for part in (stage, nn.GELU())][:-1])
        self.side = image_size // patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + self.side**2, dim))
        parts = dict(compress=dict(type="CBSA", shifted=True), sparsify=dict(type="ISTA"))
        self.blocks = nn.ModuleList(build_block(dim, heads, **parts) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, images):
        z = self.stem(images).flatten(2).mT
        z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], 1) + self.pos_embedding
        for block in self.blocks:
            z = block(z, TokenLayout(prefix=1, rows=self.side, columns=self.side))
        return self.head(z[:, 0])


CBT_NAMES = (
    (r"to_patch_embedding\.proj", "stem"),
    (r"transformer\.layers\.(\d+)\.0\.fn", r"blocks.\1.compress"),
    (r"transformer\.layers\.(\d+)\.0\.norm", r"blocks.\1.norm_compress"),
    (r"transformer\.layers\.(\d+)\.1\.norm", r"blocks.\1.norm_sparsify"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.weight", r"blocks.\1.sparsify.dictionary"),
    (r"mlp_head", "head"),
)


def our_name(name):
    for pattern, ours in CBT_NAMES:
        name = re.sub(pattern, ours, name)
    return name


@pytest.mark.parametrize("case", CBSA_CASES)
def test_layers_with_cbsa_reference(case):
    reference = CBSA[case]
    model = CBT(**reference["config"]).double()
    parameters = dict(model.named_parameters())
    values = drawn(reference["generated_shapes"])
    assert {our_name(name) for name in values} == set(parameters)
    for name, value in values.items():
        parameters[our_name(name)].data.copy_(value)
    norms = []
    for block in model.blocks:
        block.compress.register_forward_hook(lambda module, inputs, output: norms.append(output.norm()))
    side, labels = reference["config"]["image_size"], torch.tensor(reference["labels"])
    images = torch.from_numpy(np.random.RandomState(0).standard_normal((reference["batch_size"], 3, side, side)))

    with torch.no_grad():
        logits = model.eval()(images)
    assert_close(logits[:, :10], reference["logits_first10"])
    assert_close(torch.stack(norms), reference["compress_output_l2_per_layer"])
    loss = F.cross_entropy(model.train()(images), labels, label_smoothing=0.1)
    assert_close(loss, reference["train_loss"])
    loss.backward()
    for name, norm in reference["grad_l2_by_parameter"].items():
        assert_close(parameters[our_name(name)].grad.norm(), norm)


AOT_NAMES = {"prenorm_1": "norm_compress", "attn.c_attn": "compress.qkv", "attn.c_proj": "compress.to_out"}


def test_aot_reference():
    """The layers between the embeddings and the tied output of the reference, a language model."""
    (reference,) = (case for name, case in AOT.items() if "config" in case)
    config, shapes = reference["config"], reference["generated_shapes"]
    values = {name: value.requires_grad_() for name, value in drawn(shapes).items()}
    arch = dict(embed_dim=config["dim"], depth=config["depth"], num_heads=config["heads"])
    blocks = BACKBONES.get("AoT")(arch, compress=dict(type="MaskedMSSA")).blocks.double()
    weights = {}
    for name, value in values.items():
        for theirs, ours in AOT_NAMES.items():
            if f".{theirs}." in name:
                weights[name.removeprefix("transformer.h.").replace(theirs, ours)] = value

    ids = torch.tensor(reference["token_ids"])
    tokens, targets = ids[:, :-1], ids[:, 1:]
    wte, wpe = values["transformer.wte.weight"], values["transformer.wpe.weight"]
    z = wte[tokens] + wpe[: tokens.shape[1]]
    for index, block in enumerate(blocks):
        own = {k.removeprefix(f"{index}."): v for k, v in weights.items() if k.startswith(f"{index}.")}
        z = torch.func.functional_call(block, own, (z,), strict=True)
    z = F.layer_norm(z, z.shape[-1:], values["transformer.ln_f.weight"], values["transformer.ln_f.bias"])
    logits = z @ wte.T
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert_close(logits[:, -1, :10], reference["logits_last_token_first10"])
    assert_close(logits.norm(), reference["logits_l2"])
    assert_close(loss, reference["loss"])
    gradients = torch.autograd.grad(loss, list(values.values()))
    for name, gradient in zip(values, gradients, strict=True):
        assert_close(gradient.norm(), reference["grad_l2_by_parameter"][name])


def test_aot_has_names():
    model = get_model("aot_tiny", num_classes=7, img_size=32)
    assert model.head.pool == "mean"
    assert len(model.backbone.layers) == 12
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def tool(monkeypatch, name, *arguments):
    """Run a command of tools/ in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    assert not import_module(f"crate_mm.cli.{name}").main()


@pytest.fixture(scope="module", params=["cbsa", "aot"])
def trained(request, tmp_path_factory):
    """A config, and the folder of its training."""
    config, folder = HERE / f"{request.param}_config.py", tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        tool(patch, "train", config, "--work-dir", folder)
    return config, folder


def test_training_resumes_bit_identically(trained, tmp_path, monkeypatch):
    config, folder = trained
    shutil.copy(folder / "epoch_1.pth", tmp_path)
    tool(monkeypatch, "train", config, "--work-dir", tmp_path, "--resume", tmp_path / "epoch_1.pth")
    one, other = (torch.load(f / "epoch_2.pth", weights_only=False) for f in (folder, tmp_path))
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"]["state"], other["optimizer"]["state"], rtol=0, atol=0)


def test_layers_are_measured(trained, tmp_path, monkeypatch):
    config, folder = trained
    options = ("--num-images", 16, "--out", tmp_path)
    tool(monkeypatch, "analyze", "layers", config, "random", folder / "epoch_2.pth", *options)
    with (tmp_path / "layers.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len({row["curve"] for row in rows}) == 2
    assert {row["layer"] for row in rows} == {"1", "2"}
    assert "rc_half" in {row["measure"] for row in rows}
    assert all(np.isfinite(float(row["mean"])) for row in rows)


def test_published_file_predicts_the_same(trained, tmp_path, monkeypatch):
    config, folder = trained
    published = tmp_path / "published.safetensors"
    tool(monkeypatch, "publish", folder / "epoch_2.pth", published)
    image = tmp_path / "image.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 8), dtype=np.uint8)).save(image)
    one, other = (
        Predictor(init_model(None, str(file)))([str(image)])[0] for file in (folder / "epoch_2.pth", published)
    )
    assert one == other
    result = tmp_path / "test.json"
    tool(monkeypatch, "test", config, published, "--json", result, "--work-dir", tmp_path)
    tested = json.loads(result.read_text())
    assert tested["num_samples"] == 450
    before = json.loads((folder / "result.json").read_text())
    assert tested["loss"] == pytest.approx(before["last"]["loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cbsa", "aot"])
def test_commands_from_another_folder(name, tmp_path):
    command = [sys.executable, HERE.parents[1] / "tools/train.py", HERE / f"{name}_config.py", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
