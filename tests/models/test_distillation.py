"""Self-distillation: SimDINO's reference numbers, the crops, the teacher, the contract."""

import copy
import json
from pathlib import Path

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
from crate_mm.models.tasks.distillation import ProjectionHead, SelfDistillation, rate_distillation_loss
from crate_mm.models.tasks.rate_loss import expansion, largest_expansion
from crate_mm.testing import check_task

REFERENCE = json.loads((Path(__file__).parents[1] / "data/simdino_reference.json").read_text())
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


def parameters(shapes):
    """The parameters of the reference numbers, by the rule of their README."""
    values = {}
    for number, name in enumerate(sorted(shapes)):
        z = normal(1000 + number, shapes[name])
        if z.ndim == 1:
            values[name] = 0.1 * z + name.endswith("weight")
        else:
            values[name] = z / z.shape[-1] ** 0.5 if z.ndim == 2 else 0.5 * z
    return values


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


@pytest.mark.parametrize(("group_size", "official"), [(3, "simdino_reduce_cov0"), ("batch", "simdino_reduce_cov1")])
def test_groups_equal_the_official_processes(group_size, official):
    """A process of the official code is a group; its reported gradients are divided by the number of processes."""
    config, ranks = REFERENCE["two_processes"]["config"], REFERENCE["two_processes"]["by_process"]
    images, m = 6, config["images_per_process"]
    student = unit(11, (config["crops"] * images, config["dim"])).requires_grad_()
    terms = rate_distillation_loss(student, unit(12, (2 * images, config["dim"])), 4, group_size=group_size)
    for value, key in zip(terms, ("loss", "compression", "expansion")):
        close(value.detach(), np.mean([rank[official][key] for rank in ranks]))
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
    head.load_state_dict(parameters(expected["generated_shapes"]))
    rows = len(expected["output_first10_per_row"])
    output = head(normal(5, (rows, config["in_dim"])))
    close(output[:, :10].detach(), expected["output_first10_per_row"])
    sizes = {"tiny": 192, "small": 384, "base": 768, "large": 1024}
    with torch.device("meta"):
        counts = {f"head_vit_{n}": sum(p.numel() for p in ProjectionHead(d).parameters()) for n, d in sizes.items()}
    assert counts == {key: REFERENCE["parameter_counts"][key] for key in counts}


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
    values = parameters(expected["generated_shapes"])
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


FAMILIES = [
    CRATE,
    dict(CRATE, type="CRATEAlpha"),
    dict(CRATE, type="CRATEMAE"),
    dict(CRATE, type="ViT"),
    dict(CRATE, type="ToST", img_size=32, patch_size=8, arch=dict(embed_dim=24, depth=2, num_heads=3)),
]


@pytest.mark.parametrize("objective", ["rate", "dino"])
@pytest.mark.parametrize("backbone", FAMILIES, ids=lambda backbone: backbone["type"])
def test_every_family_keeps_the_contract_with_crops_of_two_sizes(backbone, objective):
    task = SelfDistillation(backbone, objective, group_size=2, prototypes=20, **SMALL)
    side = backbone["img_size"]
    training = batch(sizes=(side, side, side // 2, side // 2, side // 2))
    evaluated = {**training, "inputs": training["inputs"][0]}
    check_task(task, training, evaluated)


def test_timm_backbone_takes_local_crops():
    pytest.importorskip("timm")
    import crate_mm.timm  # noqa: F401  registers TimmBackbone

    backbone = dict(type="TimmBackbone", name="vit_tiny_patch16_224", img_size=32, in_channels=1, embed_dim=24, depth=1)
    backbone |= dict(num_heads=3, dynamic_img_size=True)
    inputs = crops(sizes=(32, 32, 16))
    task = SelfDistillation(backbone, group_size=4, **SMALL)
    assert task(**task.data_preprocessor({"inputs": inputs}), mode="loss")["loss"].isfinite()
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
    student, teacher = ([task._features(model, [crop]) for crop in inputs] for model in (task, task.teacher))
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
    with pytest.raises(ValueError, match="objective must be 'rate' or 'dino'"):
        SelfDistillation(CRATE, "byol", **SMALL)
