"""Every fast path computes what the plain one does."""

import copy
import re
import sys
from functools import partialmethod

import lion_pytorch
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crate_mm.analysis.taps import capture
from crate_mm.engine import read_checkpoint
from crate_mm.engine.loading.chunks import join
from crate_mm.engine.loading.prefetch import Prefetcher
from crate_mm.engine.logs import RuntimeInfoHook
from crate_mm.engine.optim.wrapper import Lion
from crate_mm.engine.parallel.blocks import (
    compile_backbone,
    compile_blocks,
    enable_activation_checkpointing,
    layer_groups,
    prepare_blocks,
    set_residual_dtype,
)
from crate_mm.engine.safety.finite import FiniteCheck, RunStoppedError
from crate_mm.models import Backbone, ImageClassifier, LinearHead, MaskedAutoencoder
from crate_mm.models.layers import MSSA
from crate_mm.registry import BACKBONES, OPTIM_WRAPPERS, OPTIMIZERS
from tests.conftest import ROOT
from tests.training import SGD, debug_runner, train

sys.path.insert(0, str(ROOT / "tools" / "benchmarks"))
from textbook import textbook_logits


def small_model(backbone="CRATE") -> ImageClassifier:
    torch.manual_seed(0)
    arch = dict(embed_dim=48, depth=3, num_heads=3)
    return ImageClassifier(
        dict(type=backbone, arch=arch, img_size=32, patch_size=8),
        dict(type="LinearHead", num_classes=10, norm=backbone == "CRATE"),
    )


def images_and_labels(count=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 10


def gradients(model, forward=None) -> dict[str, torch.Tensor]:
    images, labels = images_and_labels()
    model.zero_grad()
    F.cross_entropy((forward or model)(images), labels, label_smoothing=0.1).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_gradients_agree(ours, expected, tolerance=1e-4):
    for name, gradient in expected.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < tolerance, (name, error)


@pytest.mark.slow
def test_compiled_blocks_are_the_same_function():
    plain, compiled = small_model(), small_model()
    compile_blocks(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert_gradients_agree(gradients(compiled), gradients(plain))


@pytest.fixture
def no_inductor(monkeypatch):
    """Compile without writing code, where it is not the code that is tested."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))


@pytest.mark.slow
def test_the_taps_of_compiled_blocks_can_be_read(no_inductor):
    model = small_model().eval()
    images, _ = images_and_labels(2)
    with torch.no_grad(), capture(model) as seen:
        model(images)
        expected = copy.deepcopy(seen)
    compile_blocks(model)
    with torch.no_grad():
        model(images)
        with capture(model) as seen:
            model(images)
    torch.testing.assert_close(seen, expected)


@pytest.mark.slow
def test_a_compiled_run_takes_the_same_steps(tmp_path, no_inductor, one_process):
    options = dict(SGD, compile_blocks=True, activation_checkpointing=True)
    expected = read_checkpoint(one_process / "epoch_1.pth")["state_dict"]
    torch.testing.assert_close(train(tmp_path, **options)["state_dict"], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def graphs(monkeypatch):
    """Compile to graphs as they are; by graph, the shapes of its inputs."""
    found = []

    def backend(graph, inputs):
        found.append([shape for each in inputs for shape in getattr(each, "shape", [each])])
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    return found


@pytest.mark.slow
def test_a_validation_before_training_leaves_the_shapes_fixed(graphs):
    """And each shape is compiled once: validation's two batches, and training's."""
    model, (images, labels) = small_model(), images_and_labels(8)
    compile_blocks(model)
    with torch.no_grad():
        for batch in (images[:5], images[:3], images[:5]):
            model.eval()(batch)
    for _ in range(2):
        model.train()(images, labels, mode="loss")["loss"].backward()
    assert len(graphs) == 3
    assert all(type(size) is int for shapes in graphs for size in shapes)


@pytest.mark.parametrize(("backbone", "count"), [("CRATE", 1), ("ViT", 2)])  # ViT's first block gets other strides
@pytest.mark.slow
def test_one_compilation_serves_all_blocks(backbone, count, graphs):
    plain, compiled = small_model(backbone), small_model(backbone)
    compile_blocks(compiled)
    assert_gradients_agree(gradients(compiled), gradients(plain))
    assert len(graphs) == count  # for three blocks


class Distillation(nn.Module):
    """A second model beside the backbone, in a part of its own."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.backbone, self.parts = small_model().backbone, nn.ModuleDict({"teacher": teacher})

    def forward(self, images):
        return self.backbone(images), self.parts["teacher"](images)


def test_the_blocks_of_a_second_model_are_prepared_too(graphs):
    model, (images, _) = Distillation(small_model("ViT").backbone).eval(), images_and_labels(2)
    student, teacher = layer_groups(model)
    assert (student, teacher) == ([*model.backbone.blocks], [*model.parts["teacher"].blocks])
    set_residual_dtype(torch.bfloat16, model)
    given = {}
    for block in (*student, *teacher):
        block.register_forward_hook(lambda block, inputs, z: given.update({block: z.dtype}))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(images)
    for blocks in (student, teacher):
        assert [given[block] for block in blocks] == [torch.bfloat16] * (len(blocks) - 1) + [torch.float32]
    compile_backbone(model)
    assert all(part._compiled_call_impl for part in (model.backbone, model.parts["teacher"]))


@pytest.mark.parametrize("backbone", ["CRATE", "ToST"])  # without and with a residual of the block's own
@pytest.mark.slow
def test_a_compiled_block_hands_on_short_tokens_itself(backbone, monkeypatch):
    """In its graph, so that no other kernel reads what it wrote in float32."""
    given = []

    def backend(graph, inputs):
        given.append({node.meta["example_value"].dtype for node in next(iter(reversed(graph.graph.nodes))).args[0]})
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    model, (images, _) = small_model(backbone), images_and_labels(2)
    set_residual_dtype(torch.bfloat16, model)
    compile_blocks(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model.eval()(images)
    assert given.count({torch.float32}) == 1  # the last block
    assert set().union(*given) == {torch.bfloat16, torch.float32}
    assert len(given) <= 3  # no more than for a first, a middle and a last block


def test_a_second_backbone_without_blocks_is_refused():
    @BACKBONES.register_module()
    class Plain(Backbone):
        pass

    try:
        with pytest.raises(ValueError, match="Plain has no layers"):
            enable_activation_checkpointing(Distillation(Plain()))
    finally:
        del BACKBONES.module_dict["Plain"]


@pytest.mark.slow
def test_the_whole_backbone_is_one_graph(graphs):
    model = small_model()
    expected = gradients(model)
    prepare_blocks(model, "backbone", recompute=False)
    assert_gradients_agree(gradients(model), expected)
    assert len(graphs) == 2  # the head is another


@pytest.fixture
def alone():
    """A process group of this process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@torch._dynamo.config.patch(optimize_ddp=True)  # PyTorch's default; what the test sets is put back
@pytest.mark.slow
def test_a_block_stays_whole_among_several_processes(graphs, alone):
    """Dynamo would split one of Tiny's into two graphs, which a bucket's border lies in."""
    arch = dict(embed_dim=384, depth=2, num_heads=6)
    model = ImageClassifier(dict(type="CRATE", arch=arch, img_size=32), dict(type="LinearHead", num_classes=10))
    compile_blocks(model)
    images, labels = images_and_labels(2)
    torch.nn.parallel.DistributedDataParallel(model)(images, labels, mode="loss")["loss"].backward()
    assert len(graphs) == 1


@pytest.mark.parametrize("backbone", ["CRATE", "ViT"])
def test_recomputed_blocks_have_the_same_gradients_and_keep_less(backbone):
    def saved_bytes(model) -> tuple[int, dict]:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            images, labels = images_and_labels()
            loss = F.cross_entropy(model(images), labels)
        kept = sum(sizes)
        loss.backward()
        return kept, {name: p.grad for name, p in model.named_parameters()}

    model, frugal = small_model(backbone), small_model(backbone)
    enable_activation_checkpointing(frugal)
    assert list(frugal.state_dict()) == list(model.state_dict())
    (all_kept, expected), (kept, ours) = saved_bytes(model), saved_bytes(frugal)
    assert kept < all_kept / 2
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("backbone", ["CRATE", "ViT"])
@pytest.mark.slow
def test_tokens_in_bf16_are_handed_on_and_err_little_more(backbone, compiled, graphs):
    plain, short = small_model(backbone), small_model(backbone)
    set_residual_dtype(torch.bfloat16, short)
    images, labels = images_and_labels(64)
    torch.testing.assert_close(short(images), plain(images), rtol=0, atol=0)  # without autocast
    if compiled:
        torch._dynamo.reset()
        compile_blocks(short)
    handed_on = []
    for block in short.backbone.blocks[1:]:
        block.register_forward_pre_hook(lambda _block, inputs: handed_on.append(inputs[0].dtype))

    def mean_error(model):
        exact = gradients(plain)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images, labels, mode="loss")["loss"]
        model.zero_grad()
        loss.backward()
        errors = [(p.grad - exact[name]).norm() / exact[name].norm() for name, p in model.named_parameters()]
        return sum(errors) / len(errors)

    def gradients(model):
        model.zero_grad()
        model(images, labels, mode="loss")["loss"].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    assert 0 < mean_error(short) < 4 * mean_error(plain)
    assert set(handed_on) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert short.backbone(images).dtype == torch.float32


def test_behind_the_last_block_of_an_encoder_and_of_a_decoder_tokens_are_float32():
    backbone = dict(type="CRATEMAE", arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=32, patch_size=8)
    model = MaskedAutoencoder(backbone, dict(depth=2, num_heads=3))
    set_residual_dtype(torch.bfloat16, model)
    came = []
    for norm in (model.backbone.norm, model.decoder.norm):
        norm.register_forward_pre_hook(lambda _norm, inputs: came.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(images_and_labels(2)[0], mode="loss")
    assert came == [torch.float32] * 2


@pytest.mark.slow
def test_tokens_in_bf16_need_mixed_precision(tmp_path):
    with pytest.raises(ValueError, match="residual_dtype='bfloat16' needs mixed precision, but training is in float32"):
        debug_runner(tmp_path, residual_dtype="bfloat16")
    mixed = dict(optim_wrapper__type="AutocastOptimWrapper", train_cfg__max_epochs=1)
    debug_runner(tmp_path, residual_dtype="bfloat16", **mixed).train()


def test_a_backbone_without_blocks_is_named():
    class Flat(Backbone):
        embed_dim = 12

    model = ImageClassifier(Flat(), LinearHead(12, 2))
    with pytest.raises(ValueError, match="Flat has no layers"):
        enable_activation_checkpointing(model)


@pytest.mark.parametrize("fuse", [False, True])
def test_crate_is_the_textbook_form(fuse):
    model = small_model()
    images, _ = images_and_labels()
    if not fuse:
        assert_gradients_agree(gradients(model), gradients(model, lambda x: textbook_logits(model, x)))
    model.eval()
    with torch.no_grad():
        expected = textbook_logits(model, images)
        if fuse:
            model.backbone.fuse()
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["plain", "fused", pytest.param("compiled", marks=pytest.mark.slow)])
def test_bf16_errs_no_more_than_the_textbook_form(form):
    model = small_model().eval()
    images, _ = images_and_labels(64)
    with torch.no_grad():
        exact = textbook_logits(copy.deepcopy(model).double(), images.double())

        def error(forward):
            with torch.autocast("cpu", torch.bfloat16):
                return (forward(images).double() - exact).square().mean().sqrt().item()

        textbook = error(lambda x: textbook_logits(model, x))
        if form == "fused":
            model.backbone.fuse()
        elif form == "compiled":
            compile_blocks(model)
        ours = error(model)
    assert 0 < ours < 1.1 * textbook


def lion_steps(optimizer_class, steps=4, state=None, **settings):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (7,), (2, 2, 2), (4,))]
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0, "lr": 3e-3}]
    optimizer = optimizer_class(groups, lr=1e-2, **settings)
    if state:
        optimizer.load_state_dict(state)
    for step in range(steps):
        for index, p in enumerate(params):
            # The last parameter has a gradient in later steps only; some gradients are 0.
            p.grad = None if index == 3 and step < 2 else torch.randn(p.shape).relu() - torch.randn(p.shape).relu()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step()
    return params, optimizer.state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        dict(weight_decay=0.5),
        dict(betas=(0.95, 0.98)),
        dict(weight_decay=0.1, decoupled_weight_decay=True),
    ],
)
def test_lion_is_lion_pytorch_to_the_last_bit(settings):
    expected, their_state = lion_steps(lion_pytorch.Lion, **settings)
    params, state = lion_steps(Lion, **settings)
    torch.testing.assert_close(params, expected, rtol=0, atol=0)
    torch.testing.assert_close(state, their_state, rtol=0, atol=0)
    # Each goes on from the other's state.
    one, _ = lion_steps(Lion, state=their_state, **settings)
    other, _ = lion_steps(lion_pytorch.Lion, state=state, **settings)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("kinds", [["bfloat16"] * 4, ["float16"] * 4, ["float32", "bfloat16", "float64", "float32"]])
def test_lion_rounds_as_lion_pytorch_does_in_every_precision(kinds, decoupled):
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(5, 7).to(getattr(torch, kind))) for kind in kinds]
    theirs = copy.deepcopy(mine)
    settings = dict(lr=1e-2, weight_decay=0.1, decoupled_weight_decay=decoupled)
    optimizers = Lion(mine, **settings), lion_pytorch.Lion(theirs, **settings)
    for _ in range(6):
        for one, other in zip(mine, theirs):
            one.grad = torch.randn(5, 7).to(one.dtype)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    states = [[optimizer.state[p]["exp_avg"] for p in params] for optimizer, params in zip(optimizers, (mine, theirs))]
    torch.testing.assert_close([*mine, *states[0]], [*theirs, *states[1]], rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_lion_leaves_a_step_out_and_goes_on_to_the_last_bit(wrong):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(5, 7).to(getattr(torch, k))) for k in ("float32", "bfloat16", "float64")]
    others = copy.deepcopy(params)
    settings = dict(lr=1e-2, weight_decay=0.1)
    asked, plain = Lion(params, **settings), Lion(others, **settings)
    for skip in (False, True, True, False, False):
        for one, other in zip(params, others):
            one.grad = torch.randn(5, 7).to(one.dtype)
            other.grad = one.grad.clone()
            if skip:
                one.grad[0, 0] = wrong
        asked.found_inf = torch.tensor(float(skip))
        asked.step()
        if not skip:
            plain.step()
        ours, theirs = ([o.state[p]["exp_avg"] for p in group] for o, group in ((asked, params), (plain, others)))
        torch.testing.assert_close([*params, *ours], [*others, *theirs], rtol=0, atol=0)


def test_losses_that_waited_are_logged_in_order():
    class OneRun:
        message_hub = MessageHub.get_instance("losses_that_waited")

    hook = RuntimeInfoHook()
    hook.pending = [{"loss": torch.tensor(float(i))} for i in range(5)]
    hook.fetch(OneRun)
    assert OneRun.message_hub.get_scalar("train/loss").data[0].tolist() == [0, 1, 2, 3, 4]
    assert hook.pending == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("backend", [b for b in SDPBackend.__members__.values() if b.name.endswith("ATTENTION")])
def test_each_attention_back_end_computes_mssa(backend, dtype):
    """197 tokens, no multiple of 128, with query = key = value: numbers and gradients beside those in float64.

    By PyTorch's notes cuDNN before 9.15.1 is wrong for some lengths that 128 does not divide.
    """
    torch.manual_seed(0)
    mssa = MSSA(384, 6).cuda()
    x, outer = (torch.randn(4, 197, 384, device="cuda") for _ in range(2))

    def run(mssa, x, outer, backend):
        x = x.clone().requires_grad_()
        with sdpa_kernel(backend):
            z = mssa(x)
            z.backward(outer)
        return [z.detach().double(), x.grad.double(), mssa.proj.weight.grad.double()]

    exact = run(copy.deepcopy(mssa).double(), x.double(), outer.double(), SDPBackend.MATH)
    rounded = run(copy.deepcopy(mssa).to(dtype), x.to(dtype), outer.to(dtype), SDPBackend.MATH)
    try:
        found = run(copy.deepcopy(mssa).to(dtype), x.to(dtype), outer.to(dtype), backend)
    except RuntimeError as error:
        if not re.match("No (available kernel|viable backend)", str(error)):
            raise
        pytest.skip(f"{backend.name} takes no {dtype} here")
    for ours, plain, expected in zip(found, rounded, exact):
        error, allowed = (ours - expected).norm(), (plain - expected).norm()
        assert error <= 2 * allowed + 1e-6 * expected.norm()


@pytest.mark.gpu
def test_a_number_on_the_gpu_is_checked_one_step_later():
    check = FiniteCheck("loss")
    check.submit(torch.tensor(float("nan"), device="cuda"), 7, 0.1)
    with pytest.raises(RunStoppedError, match="the loss is nan at iteration 7"):
        check.resolve_pending()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [dict(type="Lion"), dict(type="AdamW", fused=True)], ids=["Lion", "AdamW"])
def test_the_gpu_skips_a_step_without_the_hosts_waiting_for_it(kind):
    model = torch.nn.Linear(8, 8).cuda()
    optimizer = OPTIMIZERS.build(dict(kind, params=model.parameters(), lr=0.1))
    wrapper = OPTIM_WRAPPERS.build(dict(type="OptimWrapper", optimizer=optimizer))
    images, seen = torch.randn(4, 8, device="cuda"), []
    try:
        for wrong in (False, True, True, False):
            wrapper.update_params((model(images) * (float("nan") if wrong else 1)).sum())
            seen.append(model.weight.detach().clone())
            torch.cuda.synchronize()  # the first step, which has no state yet, asks; the others must not
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert wrapper.next_report().in_a_row == 2
    assert wrapper.nonfinite_params == [*model.parameters()]


def batches_of_two(count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"inputs": torch.full((2, 3), i), "labels": torch.tensor([i, i]), "sample_idx": torch.tensor([i])}
        for i in range(count)
    ]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.gpu
def test_looking_ahead_moves_the_loaders_batches_to_the_gpu(pieces):
    batches = batches_of_two(4)
    pinned = [{key: value.pin_memory() for key, value in batch.items()} for batch in batches]
    whole = [join(batches[start : start + pieces]) for start in range(0, 4, pieces)]
    for batch, expected in zip(Prefetcher(pinned, pieces), whole, strict=True):
        assert batch["inputs"].is_cuda
        assert batch["sample_idx"].is_cuda
        assert torch.equal(batch["inputs"].cpu(), expected["inputs"])


def test_looking_ahead_is_one_batch_ahead_and_keeps_what_fails_for_the_end():
    loaded = []

    def load():
        for batch in batches_of_two(3):
            loaded.append(batch)
            yield batch
        raise OSError("the disk is gone")

    batches = Prefetcher(load())
    seen = []
    for batch in batches:
        assert len(loaded) == min(len(seen) + 2, 3)
        assert (batches.error is not None) == (len(seen) == 2)
        seen.append(batch)
    assert seen == loaded
    assert str(batches.error) == "the disk is gone"
    assert Prefetcher([]).error is None
    assert list(Prefetcher([])) == []
