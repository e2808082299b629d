"""Self-distillation: SimDINO's reference numbers, the crops, the teacher, the contract."""

import copy
from inspect import signature

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper as MMEngineWrapper
from torch import nn

from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.checkpoints.unwrap import as_checkpoint
from crate_mm.engine.loading.chunks import split_batch
from crate_mm.engine.optim.schedule import CosineWeightDecay
from crate_mm.engine.optim.wrapper import OptimWrapper
from crate_mm.models import ViT
from crate_mm.models.backbone import registered_backbones
from crate_mm.models.tasks.distillation import ProjectionHead, SelfDistillation, rate_distillation_loss
from crate_mm.models.tasks.rate_loss import expansion, largest_expansion, patch_similarity
from crate_mm.testing import check_task
from tests.official import official_state_dict, reference

REFERENCE = reference("simdino")
LOSSES = [key for key in REFERENCE if key.startswith("loss_")]
EXPANDED = ("student", "mean")
SMALL = dict(hidden_dim=12, out_dim=8, preprocessor=dict(mean=(0.5,), std=(0.5,)))
CRATE = dict(type="CRATE", arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=16, patch_size=4, in_channels=1)


def normal(seed, shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def unit(seed, shape):
    return nn.functional.normalize(normal(seed, shape), dim=-1)


def close(actual, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(actual, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12)


def crops(images=4, sizes=(16, 16, 8, 8), channels=1):
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, channels, size, size) for size in sizes]
    return [torch.randint(256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]


def batch(**options):
    inputs = crops(**options)
    return {"inputs": inputs, "labels": torch.arange(len(inputs[0])), "sample_idx": torch.arange(len(inputs[0]))}


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("number", range(4))
def test_loss_equals_reference(case, number):
    config, expected = REFERENCE[case]["config"], REFERENCE[case]["simdino"][number]
    student = expected["scale_of_student_features"] * unit(11, (config["crops"] * config["images"], config["dim"]))
    teacher = unit(12, (2 * config["images"], config["dim"]))
    student.requires_grad_()
    settings = expected["eps"], EXPANDED[expected["expa_type"]], expected["coeff"]
    terms = rate_distillation_loss(student, teacher, config["crops"], *settings)
    close(torch.stack(terms).detach(), [expected[key] for key in ("loss", "compression", "expansion")])
    terms[0].backward()
    gradient = student.grad.unflatten(0, (config["crops"], -1))
    close(gradient.flatten(1).norm(dim=1), expected["student_grad_l2_per_crop"])
    width = min(config["dim"], 10)
    close(gradient[0, 0, :width], expected["student_grad_first10_of_crop0_image0"])
    close(gradient[-1, 0, :width], expected["student_grad_first10_of_last_crop_image0"])


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("number", range(5))
def test_loss_of_the_second_version_equals_reference(case, number):
    """It takes dot products, of features that are normalized or not; without ``no_diag``, equal crops are pairs too."""
    config, expected = REFERENCE[case]["config"], REFERENCE[case]["simdinov2"][number]
    n, images = config["crops"], config["images"]
    raw = (expected["scale_of_student_features"] * unit(11, (n * images, config["dim"]))).requires_grad_()
    teacher = unit(12, (2 * images, config["dim"]))
    student = raw if expected["normalized"] else nn.functional.normalize(raw, dim=-1)
    dots = torch.einsum("ibp,jbp->ij", teacher.view(2, images, -1), student.view(n, images, -1)) / images
    pairs = (dots.sum() - expected["no_diag"] * dots.diagonal().sum()) / (2 * n - 2)
    close((dots[0, 1] + dots[1, 0]).detach() / 2 if expected["no_diag"] else dots[:, :2].sum().detach() / 2,
          expected["global_compression"])  # fmt: skip
    close(pairs.detach(), expected["compression"])
    settings = expected["eps"], EXPANDED[expected["expa_type"]], expected["coeff"]
    loss, similarity, spread = rate_distillation_loss(student, teacher, n, *settings)
    close(spread.detach(), expected["expansion"])
    total = -expected["coeff"] * pairs - spread
    close(total.detach(), expected["loss"])
    total.backward()
    gradient = raw.grad.unflatten(0, (n, -1))
    close(gradient.flatten(1).norm(dim=1), expected["student_grad_l2_per_crop"])
    close(gradient[0, 0, :10], expected["student_grad_first10_of_crop0_image0"])
    if expected["no_diag"]:
        close([loss.item(), similarity.item()], [expected["loss"], expected["compression"]])


def test_patch_loss_equals_reference():
    expected = REFERENCE["patch_loss"]
    config = expected["config"]
    shape = config["images"], config["patches"], config["dim"]
    student, teacher = unit(21, shape).requires_grad_(), unit(22, shape)
    mask = torch.zeros(shape[:2], dtype=torch.bool)
    for image, patches in enumerate(expected["masked"]):
        mask[image, patches] = True
    loss = -patch_similarity(student[mask], teacher[mask], mask)
    close(loss.detach(), expected["loss_dense"])
    close(loss.detach(), expected["loss_of_masked_tokens"])
    loss.backward()
    close(student.grad.norm(), expected["student_grad_l2"])


@pytest.mark.parametrize(("group_size", "official"), [(3, "simdino_reduce_cov0"), ("batch", "simdino_reduce_cov1")])
def test_groups_equal_the_official_processes(group_size, official):
    """A process of the official code is a group; its reported gradients are divided by the number of processes."""
    config, ranks = REFERENCE["two_processes"]["config"], REFERENCE["two_processes"]["by_process"]
    images, m = 6, config["images_per_process"]
    student = unit(11, (config["crops"] * images, config["dim"])).requires_grad_()
    terms = rate_distillation_loss(student, unit(12, (2 * images, config["dim"])), 4, group_size=group_size)
    for value, key in zip(terms, ("loss", "compression", "expansion")):
        for version in (official, official.replace("simdino_", "simdinov2_")):
            close(value.detach(), np.mean([rank[version][key] for rank in ranks]))
    terms[0].backward()
    gradient = student.grad.unflatten(0, (4, -1))
    for number, rank in enumerate(ranks):
        own = gradient[:, number * m : (number + 1) * m]
        close(own.norm(), rank[official]["student_grad_l2_over_processes"])
        close(own[0, 0, :10], rank[official]["student_grad_first10_of_crop0_image0_over_processes"])


def test_head_equals_reference():
    expected = REFERENCE["head"]
    config = expected["config"]
    head = ProjectionHead(config["in_dim"], config["hidden_dim"], config["bottleneck_dim"]).double()
    head.load_state_dict(official_state_dict(expected["generated_shapes"]))
    rows = len(expected["output_first10_per_row"])
    output = head(normal(5, (rows, config["in_dim"])))
    close(output[:, :10].detach(), expected["output_first10_per_row"])
    close(output.norm().detach(), expected["output_l2"])
    sizes = {"tiny": 192, "small": 384, "base": 768, "large": 1024}
    with torch.device("meta"):
        models = {f"head_vit_{name}": ProjectionHead(d) for name, d in sizes.items()}
        for name, heads in (("small", 6), ("base", 12)):
            arch = dict(embed_dim=sizes[name], depth=12, num_heads=heads)
            models[f"backbone_vit_{name}16"] = ViT(arch, 224, 16)
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert counts == REFERENCE["parameter_counts"]


VIT = {  # the official names -> torchvision's
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj": "self_attention.out_proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
    "blocks.": "encoder.layers.encoder_layer_",
    "backbone.norm": "backbone.encoder.ln",
    "head.mlp": "projector.mlp",
}


def our_name(name):
    for official, ours in VIT.items():
        name = name.replace(official, ours)
    return name


def test_training_equals_reference():
    """Six steps with schedules, clipping per parameter, the teacher, and crops of another size."""
    expected = REFERENCE["training"]
    config = expected["config"]
    arch = dict(embed_dim=config["dim"], depth=config["depth"], num_heads=config["heads"])
    backbone = dict(type="ViT", arch=arch, img_size=config["global_size"], patch_size=config["patch_size"])
    sizes = dict(hidden_dim=config["hidden_dim"], out_dim=config["bottleneck_dim"])
    task = SelfDistillation(backbone, momentum=config["momentum"], group_size="batch", **sizes).double()
    values = official_state_dict(expected["generated_shapes"])
    names = {our_name(name): name for name in values}
    student = {name: p for name, p in task.named_parameters() if not name.startswith("teacher.")}
    assert student.keys() == names.keys()
    with torch.no_grad():
        for name, parameter in student.items():
            parameter.copy_(values[names[name]])
        for slow, fast in zip(task.teacher.parameters(), student.values()):
            slow.copy_(fast)
    sides = [config["global_size"]] * 2 + [config["local_size"]] * config["local_crops"]
    inputs = [normal(31 + number, (config["images"], 3, side, side)) for number, side in enumerate(sides)]
    assert sum(p.numel() for p in student.values()) == expected["num_parameters"]
    with torch.no_grad():
        output = task._features(task._student(), inputs).unflatten(0, (len(sides), -1))
    close(output.norm(), expected["student_output_l2"])
    close(output[0, 0, :10], expected["student_output_first10_of_crop0_image0"])
    close(output[-1, 0, :10], expected["student_output_first10_of_last_crop_image0"])
    decayed = [p for p in student.values() if p.ndim > 1]
    groups = [dict(params=decayed), dict(params=[p for p in student.values() if p.ndim < 2], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=1.0)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=config["clip"], per_parameter=True))
    task.total_steps = len(expected["lr_by_step"])
    for step, (lr, decay) in enumerate(zip(expected["lr_by_step"], expected["weight_decay_by_step"])):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.param_groups[0]["weight_decay"] = decay
        losses = task.loss(inputs)
        terms = [losses[key].item() for key in ("loss", "compression", "expansion")]
        close(terms, expected["loss_compression_expansion_by_step"][step])
        losses["loss"].backward()
        if step == 0:
            norms = {names[name]: p.grad.norm() for name, p in student.items()}
            for name, norm in expected["grad_l2_by_parameter"].items():
                close(norms[name], norm)
            close(torch.stack(list(norms.values())).norm(), expected["grad_l2_total"])
        wrapper.step()
        wrapper.zero_grad()
        assert task.momentum_at(step + 1) == pytest.approx(expected["momentum_by_step"][step], rel=1e-12)
        with torch.no_grad():
            task.after_step(step + 1, False)
    fast = torch.cat([p.detach().flatten() for p in student.values()])
    slow = torch.cat([p.flatten() for p in task.teacher.parameters()])
    close(fast.norm(), expected["student_l2_after"])
    close(slow.norm(), expected["teacher_l2_after"])
    close((slow - fast).norm(), expected["teacher_minus_student_l2_after"])
    with torch.no_grad():
        close(task.features(inputs[0])[:, :10], expected["teacher_backbone_output_after_first10"])


def test_weight_decay_equals_reference():
    groups = [
        dict(params=[nn.Parameter(torch.zeros(1))], weight_decay=0.04),
        dict(params=[nn.Parameter(torch.zeros(1))]),
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = CosineWeightDecay.build_iter_from_epoch(MMEngineWrapper(optimizer), end=2, epoch_length=3, end_factor=10)
    decays = []
    for _ in range(6):
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    close(torch.tensor(decays, dtype=torch.float64)[:, 0], REFERENCE["training"]["weight_decay_by_step"])
    assert {decay for _, decay in decays} == {0}


@pytest.mark.parametrize("group_size", [4, 32, None])
def test_largest_expansion_is_reached_by_orthogonal_features_and_falls_by_collapse(group_size):
    dim, images = 16, 32
    features = torch.eye(dim, dtype=torch.float64).repeat(2, 1).expand(2, -1, -1)
    largest = largest_expansion(images, dim, 0.05, group_size)
    close(expansion(features, 0.05, group_size), largest)
    assert expansion(unit(0, (2, images, dim)), 0.05, group_size) < largest
    assert expansion(features[:, :1].expand(-1, images, -1), 0.05, group_size) < 0.6 * largest
    assert largest_expansion(512, 256, 0.05, 64) == pytest.approx(0.4496, abs=1e-4)  # the published log ends at 0.424
    collapsed = expansion(torch.eye(256)[:1].expand(2, 512, -1), 0.05)
    assert collapsed < 0.02 * largest_expansion(512, 256, 0.05)


def test_expansion_is_float32_under_autocast():
    features = unit(0, (2, 8, 4)).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = expansion(features, 0.05)
    assert torch.equal(value, expansion(features, 0.05))
    assert expansion(features.fill_(torch.nan), 0.05).isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_crops=5), "expected features of 5 crops"),
        (dict(expansion_of="teacher"), "expansion_of must be 'mean' or 'student', got 'teacher'"),
        (dict(group_size=3), r"8 images has no whole number of covariance groups of 3 .* global_batch_size=9"),
        (dict(group_size=0), "group_size must be a positive integer or 'batch', got 0"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rate_distillation_loss(unit(0, (32, 4)), unit(1, (16, 4)), **{"num_crops": 4, **arguments})


STEM_OF_8 = ("ToST", "CBT")  # their convolutions make patches of 8 pixels


def family(name, **options):
    sizes = dict(img_size=32, patch_size=8) if name in STEM_OF_8 else {}
    return {**CRATE, "type": name, **sizes, **options}


def image_families():
    """The registered families that are built from an image size."""
    kinds = {name: kind for name, kind in registered_backbones().items() if kind.__module__.startswith("crate_mm.")}
    names = [name for name, kind in kinds.items() if {"arch", "img_size"} <= signature(kind).parameters.keys()]
    assert {"CRATE", "CRATEAlpha", "CRATEMAE", "ToST", "CBT", "AoT", "ViT"} <= set(names)
    return names


@pytest.mark.parametrize("objective", ["rate", "masks", "dino"])
@pytest.mark.parametrize("name", image_families())
def test_every_family_keeps_the_contract_with_crops_of_two_sizes(name, objective):
    """And learns: the loss falls, once the student is not its teacher."""
    masks = dict(patch_weight=1.0, mask_probability=1.0) if objective == "masks" else {}
    objective, backbone = objective.replace("masks", "rate"), family(name)
    if masks and name == "ToST":
        with pytest.raises(ValueError, match="ToST cannot mask patches: its forward has no mask and mask_token"):
            SelfDistillation(backbone, objective, **masks, **SMALL)
        return
    torch.manual_seed(0)
    task = SelfDistillation(backbone, objective, group_size=2, prototypes=20, **masks, **SMALL)
    side = backbone["img_size"]
    training = batch(sizes=(side, side, side // 2, side // 2, side // 2))
    training["sample_seed"] = torch.arange(4) + 7
    evaluated = {**training, "inputs": training["inputs"][0]}
    check_task(task, training, evaluated)
    optimizer, losses = torch.optim.AdamW(task.trainable().parameters(), 1e-3), []
    for step in range(4):
        task.before_step([training], 4)
        loss = task(**task.data_preprocessor(training, True), mode="loss")["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            task.after_step(step + 1, False)
    assert losses[3] < losses[2] < losses[1]


def test_timm_backbone_takes_local_crops():
    pytest.importorskip("timm")
    import crate_mm.timm  # noqa: F401  registers TimmBackbone

    backbone = dict(type="TimmBackbone", name="vit_tiny_patch16_224", img_size=32, in_channels=1, embed_dim=24, depth=1)
    backbone |= dict(num_heads=3, dynamic_img_size=True)
    inputs = crops(sizes=(32, 32, 16))
    task = SelfDistillation(backbone, group_size=4, **SMALL)
    task.before_step([{"inputs": inputs}], 4)
    losses = task(**task.data_preprocessor({"inputs": inputs}), mode="loss")
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for name, p in task.named_parameters() if not name.startswith("teacher."))
    assert 0 < losses["expansion"] < losses["expansion_max"]
    backbone["dynamic_img_size"] = False
    assert not SelfDistillation(backbone, **SMALL).backbone.input_spec.any_size


def test_full_size_crops_have_the_positions_unchanged():
    task = SelfDistillation(CRATE, **SMALL)
    assert task.backbone.input_spec.any_size
    plain = copy.deepcopy(task.backbone)
    plain.any_size = plain.embedding.any_size = False
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(task.backbone(images), plain(images))
    with pytest.raises(ValueError, match="expected images of shape"):
        plain(images[..., :8, :8])


def test_teacher_is_the_moving_average_of_the_student():
    task = SelfDistillation(dict(CRATE, type="ToST", img_size=32, patch_size=8), momentum=0.9, group_size=4, **SMALL)
    before = copy.deepcopy(task.teacher)
    with torch.no_grad():
        for parameter in task.trainable().parameters():
            parameter.add_(torch.randn_like(parameter))
    next(buffer for buffer in task.backbone.buffers() if buffer.is_floating_point()).add_(1)
    task.after_step(1, True)
    for old, new in zip(before.parameters(), task.teacher.parameters()):
        assert torch.equal(old, new)
    with torch.no_grad():
        task.after_step(1, False)
    for old, new, fast in zip(before.parameters(), task.teacher.parameters(), task.trainable().parameters()):
        assert torch.equal(new, old.mul(0.9).add(fast, alpha=1 - 0.9))
    for slow, fast in zip(task.teacher.buffers(), task.trainable().buffers()):
        assert torch.equal(slow, fast)
    task.total_steps = 10
    assert [task.momentum_at(1), task.momentum_at(6), task.momentum_at(11)] == pytest.approx([0.9, 0.95, 1])


MASKS = dict(patch_weight=1.0, mask_probability=0.5, mask_ratio=(0.25, 0.75))


@pytest.mark.parametrize("name", [name for name in image_families() if name != "ToST"])
def test_masked_patches_are_hidden_from_the_student_alone(name):
    torch.manual_seed(0)
    task = SelfDistillation(family(name), **MASKS, **SMALL).eval()
    crops = torch.randn(2, 1, *task.backbone.input_spec.size)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = True
    h, w = (side // 4 for side in crops.shape[2:])
    other = crops.clone()
    other[0, :, h : 2 * h, w : 2 * w].normal_()  # patch 5 of a grid of 4 x 4
    with torch.no_grad():
        hidden = [task._global_features(task._student(), [images], mask, task.mask_token) for images in (crops, other)]
        seen = [task._global_features(task.teacher, [images], mask) for images in (crops, other)]
    assert hidden[0][1].shape == (1, 8)
    if name != "CBT":  # its convolutions see the pixels of several patches
        torch.testing.assert_close(hidden[0][0], hidden[1][0])
    assert not torch.allclose(seen[0][1], seen[1][1])
    assert not torch.allclose(seen[0][0][0], hidden[0][0][0])
    torch.testing.assert_close(seen[0][0][1], hidden[0][0][1])


def test_masks_are_those_of_the_samples():
    task = SelfDistillation(CRATE, **MASKS, **SMALL)
    inputs, seeds = [torch.zeros(64, 1, 16, 16)] * 2, torch.arange(64) * 12345
    mask = task._mask(inputs, seeds).unflatten(0, (2, 64))
    counts = mask.sum(-1)
    assert set(counts.flatten().tolist()) <= {0, *range(4, 13)}
    assert 0.3 < (counts > 0).double().mean() < 0.7
    assert (mask[0] != mask[1]).any(1).double().mean() > 0.5
    part = task._mask([crop[10:20] for crop in inputs], seeds[10:20]).unflatten(0, (2, 10))
    assert torch.equal(part, mask[:, 10:20])


def test_registers_and_layer_scale_train():
    backbone = dict(CRATE, type="ViT", registers=2, layer_scale=0.1)
    task = SelfDistillation(backbone, group_size=2, **MASKS, **SMALL)
    training = {**batch(), "sample_seed": torch.arange(4)}
    check_task(task, training, {**training, "inputs": training["inputs"][0]})
    assert task.backbone.registers.shape == (1, 2, 24)
    assert {"registers", "encoder.layers.encoder_layer_1.gamma_sparsify"} <= task.backbone.state_dict().keys()
    with pytest.raises(ValueError, match="registers must be a number of tokens, got -1"):
        ViT(CRATE["arch"], 16, 4, registers=-1)


def test_temperature_of_the_teacher_warms_up():
    task = SelfDistillation(CRATE, "dino", teacher_temp=0.07, teacher_temp_start=0.04, prototypes=20, **SMALL)
    assert task._teacher_temp() == 0.07  # the length of the run is unknown
    task.total_steps = 100
    temperatures = []
    for step in (0, 15, 30, 100):
        task.after_step(step, False)
        temperatures.append(float(task._teacher_temp()))
    assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert task.state_dict()["steps"] == 100
    task.after_step(101, True)
    assert task.steps == 100


@pytest.mark.parametrize("autocast", [False, True])
def test_micro_batches_see_one_expansion_with_stochastic_depth(autocast):
    """The second pass repeats the random draws of the first."""
    task = SelfDistillation(dict(CRATE, drop_path=0.5), group_size=4, **SMALL)
    parts = split_batch(batch(images=8), 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            task.before_step(parts, 8)
        expansions = [task(**task.data_preprocessor(part), mode="loss")["expansion"].item() for part in parts]
        again = task(**task.data_preprocessor(parts[0]), mode="loss")["expansion"].item()
    assert expansions[0] == pytest.approx(expansions[1], rel=1e-6)
    assert again != pytest.approx(expansions[0], rel=1e-6)


def test_dino_equals_its_formula():
    task = SelfDistillation(CRATE, "dino", prototypes=20, **SMALL).double()
    task.center.normal_()
    center = task.center.clone()
    inputs = [normal(number, (4, 1, side, side)) for number, side in enumerate((16, 16, 8))]
    models = task._student(), task.teacher
    student, teacher = ([task._features(model, [crop]) for crop in inputs] for model in models)
    targets = [((teacher[i] - center) / 0.04).softmax(-1) for i in range(2)]
    pairs = [(i, j) for i in range(2) for j in range(3) if i != j]
    losses = [-(targets[i] * (student[j] / 0.1).log_softmax(-1)).sum(-1).mean() for i, j in pairs]
    task.before_step([{"inputs": inputs}], 4)
    close(task.loss(inputs)["loss"].detach(), (sum(losses) / 4).detach())
    with torch.no_grad():
        task.after_step(1, False)
    close(task.center, 0.9 * center + 0.1 * torch.cat(teacher[:2]).detach().mean(0))


def test_transfer_fills_student_and_teacher():
    source = SelfDistillation(CRATE, **SMALL)
    with torch.no_grad():
        next(source.teacher.parameters()).add_(1)
    contents = {"state_dict": source.state_dict(), "meta": {"transfer_from": "teacher"}}
    for part, expected in ((None, source.teacher["backbone"]), ("backbone", source.backbone)):
        task = SelfDistillation(CRATE, **SMALL)
        transfer_backbone(task, as_checkpoint(contents, "x.pth"), part=part)
        for backbone in (task.backbone, task.teacher["backbone"]):
            for name, value in expected.state_dict().items():
                assert torch.equal(backbone.state_dict()[name], value)


def test_invalid_data_is_refused():
    task = SelfDistillation(CRATE, **SMALL)
    with pytest.raises(ValueError, match="expected a list of at least 2 crops"):
        task(**task.data_preprocessor({"inputs": crops()[0]}), mode="loss")
    with pytest.raises(ValueError, match="4 images has no whole number of covariance groups of 64"):
        task.before_step([batch()], 4)
    for arguments, message in (
        (dict(objective="byol"), "objective must be 'rate' or 'dino'"),
        (dict(objective="dino", patch_weight=1.0), "patch_weight 1.0 needs objective='rate', got 'dino'"),
        (dict(mask_ratio=(0.5, 0.1)), r"mask_ratio two increasing fractions above 0, got 0.5 and \(0.5, 0.1\)"),
        (dict(teacher_temp_start=0.04, teacher_temp_warmup=30), "teacher_temp_warmup 30 a fraction of the run"),
    ):
        with pytest.raises(ValueError, match=message):
            SelfDistillation(CRATE, **arguments, **SMALL)
