"""Files as the authors of the family write them, at micro size, through ``from_official``."""

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crate_mm import Predictor, from_official, init_model
from crate_mm.checkpoints import CheckpointError, as_checkpoint, open_checkpoint
from crate_mm.checkpoints.publish import publish
from crate_mm.models import CRATE, Backbone, LanguageModel, MaskedAutoencoder
from crate_mm.models.official import Argument, Official
from crate_mm.registry import BACKBONES
from tests.checkpoints.test_write import size_limit
from tests.models.test_foreign import official as empty_crate
from tests.models.test_mae import official_file as official_mae
from tests.official import official_state_dict, reference

CRATE_REF, ALPHA, TOST = reference("crate")["micro"], reference("alpha")["micro"], reference("tost")["micro"]
MAE = reference("mae")["micro"]
LM = {name: ref for name, ref in reference("lm").items() if "loss" in ref}
LANGUAGE = {**LM, "language_micro": reference("tost")["language_micro"], "aot": reference("aot")["language_micro"]}
HEADS = CRATE_REF["config"]["heads"]


def crate():
    return official_state_dict(CRATE_REF["state_dict_shapes"])


def alpha():
    return official_state_dict(ALPHA["generated_shapes"])


def tost():
    weights = official_state_dict(TOST["generated_shapes"])
    for key in TOST["buffers"]:
        like = weights[f"{key.rpartition('.')[0]}.weight"]
        start = {"running_mean": torch.zeros_like(like), "running_var": torch.ones_like(like)}
        weights[key] = start.get(key.rpartition(".")[2], torch.tensor(0))
    return weights


def trained(weights):
    """What DeiT's and MAE's training code writes beside the weights."""
    args = argparse.Namespace(lr=5e-4, betas=(0.9, 0.95), output_dir="/tmp", eval=False, clip_grad=None, opt=["adamw"])
    state = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    return {"model": weights, "optimizer": state, "epoch": 7, "scaler": {"scale": 1.0}, "args": args}


def renamed(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


def images(ref):
    size = (ref["batch_size"], 3, ref["config"]["image_size"], ref["config"]["image_size"])
    return torch.from_numpy(np.random.RandomState(0).standard_normal(size))


FILES = {  # the row of the table: what the file holds, what must be given, the reference
    "CRATE, ImageNet-1K": (lambda: {"state_dict": renamed(crate(), "module.")}, dict(num_heads=HEADS), CRATE_REF),
    "CRATE, ImageNet-21K": (lambda: {"model": crate()}, dict(num_heads=HEADS), CRATE_REF),
    "CRATE-alpha": (alpha, dict(num_heads=ALPHA["config"]["heads"]), ALPHA),
    "ToST": (lambda: {**trained(tost()), "model_ema": tost()}, dict(img_size=32), TOST),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("old_format", [False, True])
def test_a_file_gives_the_authors_model(name, old_format, tmp_path):
    contents, given, ref = FILES[name]
    torch.save(contents(), tmp_path / "x.pth", _use_new_zipfile_serialization=not old_format)
    model = from_official(tmp_path / "x.pth", **given)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with torch.no_grad():
        np.testing.assert_allclose(model(images(ref))[:, :10], ref["logits_first10"], rtol=1e-9)


def test_the_masked_autoencoder_comes_with_its_decoder(tmp_path):
    """As a task of its own, with what its file does not tell given by name."""
    torch.save(trained(official_mae(dtype=torch.float64)), tmp_path / "mae.pth")
    model = from_official(tmp_path / "mae.pth", num_heads=3, norm_pix_loss=MAE["config"]["norm_pix_loss"])
    assert isinstance(model, MaskedAutoencoder)
    assert not model.training
    size = (MAE["batch_size"], 3, MAE["config"]["image_size"], MAE["config"]["image_size"])
    pixels = torch.from_numpy(np.random.RandomState(0).standard_normal(size))
    noise = torch.from_numpy(np.random.RandomState(MAE["noise_seed"]).rand(MAE["batch_size"], 16))
    np.testing.assert_allclose(model(pixels, noise=noise, mode="loss")["loss"].item(), MAE["loss"], rtol=1e-9)
    with pytest.raises(CheckpointError, match="give num_heads"):
        from_official(tmp_path / "mae.pth")
    with pytest.raises(CheckpointError, match="weights of the official CRATE-MAE code do not accept width"):
        from_official(tmp_path / "mae.pth", num_heads=3, width=4)


def test_the_demos_features_are_those_of_its_6_heads(tmp_path):
    """Its mlp_head is d -> d, and a further head to the classes is left out."""
    torch.manual_seed(0)
    d, contents = CRATE_REF["config"]["dim"], crate()
    contents |= {"mlp_head.1.weight": torch.randn(d, d).double(), "mlp_head.1.bias": torch.randn(d).double()}
    contents |= {"head.weight": torch.randn(21, d).double(), "head.bias": torch.randn(21).double()}
    torch.save({"model": contents}, tmp_path / "crate-demo.pth")
    with pytest.raises(
        CheckpointError, match=r"crate-demo.pth: no published CRATE .*with a further head: give num_heads"
    ):
        from_official(tmp_path / "crate-demo.pth")
    model = from_official(tmp_path / "crate-demo.pth", num_heads=2 * HEADS)
    own = CRATE(dict(embed_dim=d, depth=CRATE_REF["config"]["depth"], num_heads=2 * HEADS), 32, 8)
    own.double().load_state_dict(model.backbone.state_dict())
    pixels = images(CRATE_REF)[..., :32, :32]
    torch.testing.assert_close(model(pixels, mode="features"), own(pixels)[:, 0], rtol=1e-12, atol=1e-12)
    assert model.num_classes == d


def test_width_768_in_patches_of_8_is_two_models():
    """B/8 has 12 heads, the demo of the same shapes 6; S/8 and T/8 are one each."""
    with pytest.raises(CheckpointError, match="models with 12 heads and with 6 are published: give num_heads"):
        from_official(empty_crate(embed_dim=768, patch_size=8))
    for width, heads in ((384, 6), (192, 3)):
        opened = as_checkpoint(empty_crate(embed_dim=width, patch_size=8, classes=21842))
        arch = opened.model["backbone"]["arch"]
        assert arch == ("tiny" if width == 384 else dict(embed_dim=192, depth=12, num_heads=3))
        assert f"{heads} heads" in opened.meta["assumed"]


def nanogpt(name):
    """A file of nanoGPT's training code: a compiled model, with its output a second time."""
    weights = official_state_dict(LANGUAGE[name]["generated_shapes"])
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}
    contents = {"model": renamed(weights | masks, "_orig_mod."), "model_args": {"n_layer": 2}, "iter_num": 9}
    return {**contents, "config": {}, "optimizer": trained({})["optimizer"]}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_file_of_nanogpts_code_gives_the_authors_language_model(name, tmp_path):
    torch.save(nanogpt(name), tmp_path / "ckpt.pt")
    model, ref = from_official(tmp_path / "ckpt.pt", num_heads=3), LANGUAGE[name]
    assert isinstance(model, LanguageModel)
    tokens = torch.tensor(ref["token_ids"])
    loss = model(tokens[:, :-1], labels=tokens[:, 1:], mode="loss")["loss"]
    np.testing.assert_allclose(loss.item(), ref["loss"], rtol=1e-9)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_that_does_not_fit_is_refused(name, tmp_path):
    contents = nanogpt(name)
    weights = contents["model"]
    says_heads = name == "language_micro"  # by the shape of denom_bias
    torch.save(contents, tmp_path / "ckpt.pt")
    if not says_heads:
        for use in (from_official, lambda file: init_model(None, file)):
            with pytest.raises(CheckpointError, match="several numbers of heads fit a width of 48: give num_heads"):
                use(tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="has 3 heads, but" if says_heads else "num_heads 5 does not divide"):
        from_official(contents, num_heads=5)
    untied = {**weights, "_orig_mod.lm_head.weight": weights["_orig_mod.lm_head.weight"] + 1e-3}
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from transformer.wte.weight: expected"):
        from_official(untied, num_heads=3)
    with pytest.raises(CheckpointError, match="'transformer.h.0.rotary' is not a parameter of"):
        from_official({**weights, "transformer.h.0.rotary": torch.zeros(3)}, num_heads=3)


def test_a_language_model_of_unknown_layers_is_refused():
    with pytest.raises(
        CheckpointError, match=r"of a language model \(transformer.wte.weight\), and no family here has its layers"
    ):
        from_official({"transformer.wte.weight": torch.zeros(9, 4), "transformer.h.0.rotary": torch.zeros(3)})


def gpt2(bias=True, d=24, layers=2):
    """GPT-2's weights in nanoGPT's layout."""
    shapes = {"wte.weight": (29, d), "wpe.weight": (16, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for layer in range(layers):
        for name, shape in {
            **{f"ln_{n}": (d,) for n in (1, 2)},
            **{"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)},
        }.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[:1]}
    return official_state_dict({f"transformer.{n}": s for n, s in shapes.items() if bias or not n.endswith("bias")})


def logits_of_gpt2(weights, ids, heads, approximate):
    """GPT-2 written out."""

    def get(name, kind):
        return weights.get(f"transformer.{name}.{kind}")

    def linear(x, name):
        return F.linear(x, get(name, "weight"), get(name, "bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], get(name, "weight"), get(name, "bias"))

    z = get("wte", "weight")[ids] + get("wpe", "weight")[: ids.shape[1]]
    for layer in range(2):
        qkv = linear(norm(z, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn")
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(torch.ones(ids.shape[1:] * 2).triu(1).bool(), -torch.inf)
        z = z + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"h.{layer}.attn.c_proj")
        hidden = F.gelu(linear(norm(z, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"), approximate=approximate)
        z = z + linear(hidden, f"h.{layer}.mlp.c_proj")
    return norm(z, "ln_f") @ get("wte", "weight").T


@pytest.mark.parametrize("bias", [True, False])
def test_gpt2_by_nanogpt_and_by_transformers(bias):
    weights, ids = gpt2(bias), torch.randint(29, (2, 11))
    for tanh in (False, True):
        expected = logits_of_gpt2(weights, ids, 3, "tanh" if tanh else "none")
        model = from_official(weights, num_heads=3, tanh_gelu=tanh)
        torch.testing.assert_close(model(ids), expected, rtol=1e-12, atol=1e-12)
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    theirs = {name: value.T.contiguous() if name.endswith(linear) else value for name, value in weights.items()}
    bare = {name.removeprefix("transformer."): value for name, value in theirs.items()}
    for layout in (theirs, bare, {**theirs, "lm_head.weight": theirs["transformer.wte.weight"]}):
        torch.testing.assert_close(from_official(layout, num_heads=3)(ids), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(CheckpointError, match="tanh_gelu"):
        from_official(theirs, num_heads=3, tanh_gelu=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("build", [crate, alpha, tost])
def test_weights_keep_their_kind_of_number(build, dtype):
    weights = {key: value.to(dtype) if value.is_floating_point() else value for key, value in build().items()}
    model = from_official(weights, **({} if build is tost else dict(num_heads=3)))
    kinds = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    assert kinds == {dtype}
    assert {buffer.dtype for buffer in model.data_preprocessor.buffers()} == {dtype}


def test_kinds_that_differ_stay_as_they_are():
    weights = {key: value.half() if "norm" in key else value.float() for key, value in crate().items()}
    model = from_official(weights, num_heads=HEADS)
    assert model.backbone.blocks[0].norm_compress.weight.dtype == torch.float16
    assert model.backbone.blocks[0].sparsify.dictionary.dtype == torch.float32


def test_what_is_given_reaches_the_model():
    model = from_official(crate(), num_heads=HEADS, ista_step_size=0.3, ista_lambda=0.05)
    assert {(b.sparsify.step_size, b.sparsify.lambd) for b in model.backbone.blocks} == {(0.3, 0.05)}
    weights = crate()
    weights["pos_embedding"] = weights["pos_embedding"][:, : 1 + 4 * 2]
    with pytest.raises(CheckpointError, match=r"the patches \(8\) do not form a square: give img_size"):
        from_official(weights, num_heads=HEADS)
    patch = CRATE_REF["config"]["patch_size"]
    model = from_official(weights, num_heads=HEADS, img_size=(4 * patch, 2 * patch))
    assert model.backbone.img_size == (4 * patch, 2 * patch)
    with pytest.raises(CheckpointError, match="of the position embeddings"):
        from_official(weights, num_heads=HEADS, img_size=4 * patch)


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (
            crate,
            dict(num_heads=3, decoder_num_heads=2),
            "do not accept decoder_num_heads, only num_heads, ista_step_size",
        ),
        (crate, dict(num_haeds=3), "weights of the official CRATE code do not accept num_haeds"),
        (crate, dict(num_heads=5), "num_heads 5 does not divide the projection's width 48"),
        (alpha, dict(num_heads=0), "num_heads 0 does not divide"),
        (alpha, {}, "no published CRATE-alpha has width 48 and depth 2: give num_heads"),
        (tost, dict(img_size=3.5), "img_size must be a number of pixels or"),
        (crate, dict(num_heads=3, img_size=[48]), "img_size must be a number of pixels or"),
        (crate, dict(num_heads=3, ista_lambda="much"), "ISTA needs finite numbers as step_size and lambd"),
        (tost, dict(ista_lambda=0.1), "weights of the ToST code for vision do not accept ista_lambda"),
        (
            lambda: {"mine.weight": torch.zeros(2)},
            dict(num_heads=3),
            "does not accept num_heads: no family knows the names",
        ),
        (lambda: {"mine.weight": torch.zeros(2)}, {}, "no family here knows the names of its weights"),
    ],
)
def test_what_no_family_takes_is_refused(source, given, message):
    with pytest.raises(ValueError, match=message):
        from_official(source(), **given)


def test_a_checkpoint_of_ours_is_no_official_one(tmp_path):
    model = from_official(crate(), num_heads=HEADS)
    described = as_checkpoint(crate(), num_heads=HEADS).model
    torch.save({"meta": {"model": described}, "state_dict": model.state_dict()}, tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match="is a checkpoint of crate_mm: load it with init_model"):
        from_official(tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match="ours.pth does not accept num_heads: it contains its model config"):
        from_official(tmp_path / "ours.pth", num_heads=HEADS)


def test_it_predicts_and_is_published(tmp_path):
    """What is published says its model, so that it opens without anything given."""
    weights = {key: value.float() if value.is_floating_point() else value for key, value in tost().items()}
    torch.save(trained(weights), tmp_path / "tost.pth")
    publish(open_checkpoint(tmp_path / "tost.pth", img_size=32), tmp_path / "tost.safetensors")
    images = [np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)]
    one = Predictor(from_official(tmp_path / "tost.pth", img_size=32))(images)
    assert one == Predictor(init_model(None, tmp_path / "tost.safetensors"))(images)


@pytest.mark.parametrize("build", [crate, alpha, tost, official_mae])
def test_what_the_sizes_are_read_from_is_refused_where_it_is_not_as_declared(build):
    """Missing, empty, of other dimensions, or of another size: a sentence, whatever the declaration computes of it."""
    family = {crate: "CRATE", alpha: "CRATEAlpha", tost: "ToST", official_mae: "CRATEMAE"}[build]
    for name in BACKBONES.get(family).official.shapes:
        value = build()[name]
        for other in (None, value[:0], torch.zeros([0] * value.ndim), value[None], torch.cat([value, value])):
            weights = {key: kept for key, kept in {**build(), name: other}.items() if kept is not None}
            with pytest.raises(CheckpointError):
                from_official(weights, num_heads=3)


def test_a_family_of_ones_own_declares_its_weights(monkeypatch):
    """Sizes are read off shapes, counts and flags; what is not given has a default or is asked for."""

    def model(s):
        seen.append(s)
        return dict(
            type="ImageClassifier", backbone=dict(type="ViT", img_size=32), head=dict(type="LinearHead", num_classes=2)
        )

    seen = []
    official = Official(
        source="my code",
        signs=("stem",),
        key_map=((r"(.*)", r"backbone.\1"),),
        shapes={"stem": "width _"},
        counts={"depth": r"layers\.(\d+)\."},
        flags={"biased": "stem_bias"},
        arguments={"rate": Argument(0.5, "rate {}"), "heads": Argument(words="{} heads")},
        model=model,
    )
    monkeypatch.setitem(BACKBONES.module_dict, "Own", type("Own", (Backbone,), {"official": official}))
    weights = {"stem": torch.zeros(6, 2), **{f"layers.{n}.weight": torch.zeros(1) for n in range(3)}}
    assert as_checkpoint(weights).unknown_reason == (
        "no model of these shapes is known: give heads, which shapes do not determine"
    )
    assert as_checkpoint(weights).meta["assumed"] == "RGB images, rate 0.5"
    with pytest.raises(CheckpointError, match="weights of my code do not accept width, only rate, heads"):
        as_checkpoint(weights, width=3)
    with pytest.raises(CheckpointError, match=r"does not fit its model: missing .*backbone.class_token"):
        as_checkpoint(weights, heads=2)
    found = vars(seen[-1])
    assert found == dict(width=6, depth=3, biased=False, rate=0.5, heads=2, options=dict(heads=2))
    with pytest.raises(CheckpointError, match="incomplete checkpoint: it has no tensor of layers"):
        as_checkpoint({"stem": torch.zeros(6, 2)})
    with pytest.raises(CheckpointError, match=r"stem has shape \(6,\), expected 2 dimensions"):
        as_checkpoint({**weights, "stem": torch.zeros(6)})


@pytest.mark.slow
def test_converted_by_the_command(run_tool, tmp_path):
    torch.save(crate(), tmp_path / "in.pth")
    arguments = ("--num-heads", str(HEADS), "--given", "ista_lambda=0.2")
    done = run_tool("convert_official", tmp_path / "in.pth", tmp_path / "out.pth", *arguments)
    assert done.code == 0, done.output
    assert init_model(None, tmp_path / "out.pth").backbone.blocks[0].lambd == 0.2
    torch.save(official_state_dict(MAE["generated_shapes"]), tmp_path / "mae.pth")
    for name, options in (("in", "(--num-heads K)"), ("mae", "(--num-heads K --given img_size=VALUE)")):
        done = run_tool("convert_official", tmp_path / f"{name}.pth", tmp_path / "other.pth")
        assert (done.code, done.last_line.endswith(options)) == (2, True), done.output


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_converted_file(run_tool, tmp_path):
    torch.save(crate(), tmp_path / "in.pth")
    (tmp_path / "out.pth").write_bytes(b"old")
    with size_limit(20_000):
        done = run_tool("convert_official", tmp_path / "in.pth", tmp_path / "out.pth", "--num-heads", HEADS, "--force")
    assert done.code == 2
    assert done.last_line == "error: [Errno 27] File too large"
    assert "Traceback" not in done.output
    assert (tmp_path / "out.pth").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.glob("*out.pth*")) == ["out.pth"]
