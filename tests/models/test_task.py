"""What a task may ask of training and transfer, by a student and its teacher in a file of their own."""

import shutil

import pytest
import torch
from mmengine.hooks import Hook

from crate_mm.checkpoints import CheckpointError, as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.engine import read_checkpoint
from crate_mm.models import ImageClassifier, Task
from crate_mm.models.tasks.base import freeze_untrained, task_of
from tests.training import SGD, assert_identical, debug_runner, train, train_on_processes
from tests.two_crops import BACKBONE, OPTIONS, PREPROCESSOR, build


class KeepStudents(Hook):
    """Keep the student's projection after each step."""

    priority = "VERY_LOW"

    def __init__(self):
        self.weights = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.weights.append(runner.task.projection.weight.detach().clone())


def teachers(task):
    return {id(parameter) for parameter in task.teacher.parameters()}


@pytest.mark.parametrize("rules", [None, dict(custom_keys=dict(projection=dict(lr_mult=0.5)), norm_decay_mult=0.0)])
@pytest.mark.slow
def test_a_teacher_is_in_no_group_and_takes_no_gradient(tmp_path, rules):
    runner = debug_runner(tmp_path, **OPTIONS, **({"optim_wrapper__paramwise_cfg": rules} if rules else {}))
    runner.build_for_training()
    grouped = [id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in runner.task.trainable().parameters())
    assert not any(parameter.requires_grad for parameter in runner.task.teacher.parameters())
    runner.train()
    measured = {id(parameter) for parameter in runner.optim_wrapper.grad_norm_params}
    assert measured == set(grouped)
    assert not measured & teachers(runner.task)
    if rules:
        names = [name for group in runner.optim_wrapper.optimizer.param_groups for name in group["names"]]
        assert "projection.weight" in names, "names are those in the task"


@pytest.mark.slow
def test_a_teacher_is_the_average_of_the_student(tmp_path):
    start = build()
    runner = debug_runner(tmp_path, **OPTIONS, train_cfg__max_epochs=1)
    task = runner.task
    task.load_state_dict(start.state_dict())
    expected, students = start.teacher["projection"].weight.detach().clone(), KeepStudents()
    runner.register_hook(students)
    runner.train()
    assert task.calls == [(step, False) for step in range(1, 11)]
    for number, student in enumerate(students.weights, 1):
        expected += 0.1 / (1 + number / 10) * (student - expected)
    torch.testing.assert_close(task.teacher["projection"].weight.detach(), expected)
    assert not torch.equal(expected, start.teacher["projection"].weight)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.slow
def test_a_skipped_step_is_told_and_changes_no_teacher(tmp_path, on_device):
    options = {**OPTIONS, "train_cfg__max_epochs": 1, "optim_wrapper__decide_on_device": on_device}
    runner = debug_runner(tmp_path, **options)
    runner.task.projection.weight.register_hook(lambda g: g * float("nan") if runner.iter + 1 in (3, 7) else g)
    runner.train()
    assert runner.task.calls == [(step, step in (3, 7)) for step in range(1, 11)]
    assert runner.task.updates == 8


@pytest.mark.slow
def test_a_resumed_teacher_is_the_uninterrupted_one(tmp_path):
    options = {**OPTIONS, "default_hooks__checkpoint__every_iters": 6, "ema_momentum": 0.1, "train_cfg__max_epochs": 1}
    whole = train(tmp_path / "whole", **options)
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_0_iter_6.pth", tmp_path / "part")
    resumed = train(tmp_path / "part", resume=True, **options)
    assert whole["state_dict"]["updates"] == 10
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_identical(resumed[part], whole[part])


@pytest.mark.slow
@pytest.mark.parametrize("zero", [False, True])
def test_processes_take_the_same_steps_without_waiting_for_a_teacher(tmp_path, zero):
    """DistributedDataParallel would wait for the gradients of all that takes one."""
    one = train(tmp_path / "one", **SGD, **OPTIONS)
    three = train_on_processes(3, tmp_path / "three", **OPTIONS, zero=zero)
    assert one["meta"]["iter"] == three["meta"]["iter"] == 10
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(three["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_parameters_outside_of_the_task_are_refused():
    task = build()
    task.trainable = lambda: torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"TwoCrops.trainable\(\) has parameters that are not the task's"):
        freeze_untrained(task)


# Transfer -------------------------------------------------------------------------------------------------------------


def classifier():
    return ImageClassifier(BACKBONE, dict(type="LinearHead", num_classes=10), PREPROCESSOR)


@pytest.fixture
def pretrained():
    """A checkpoint of which the student and the teacher differ."""
    task = build()
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.add_(1)
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    return {"meta": {"transfer_from": "teacher"}, "state_dict": weights}


@pytest.mark.parametrize(
    ("part", "prefix"),
    [(None, "teacher.backbone"), ("teacher", "teacher.backbone"), ("teacher.backbone",) * 2, ("backbone",) * 2],
)
def test_a_transfer_takes_the_part_that_is_asked_for(pretrained, part, prefix):
    model, checkpoint = classifier(), as_checkpoint(pretrained)
    result = transfer_backbone(model, checkpoint, part=part)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, pretrained["state_dict"][f"{prefix}.{name}"]), name
    assert result.new.keys() == {f"head.{name}" for name in model.head.state_dict()}
    assert "projection.weight" in result.dropped
    noted = ["loading its teacher.backbone as the backbone (transfer_from)"] if prefix != "backbone" else []
    assert checkpoint.notes == noted


def test_a_part_that_is_not_there_is_refused_with_those_that_are(pretrained):
    message = r"has no part 'techer' to load as the backbone \(transfer_from\): it has backbone, teacher$"
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        transfer_backbone(model, as_checkpoint(pretrained), part="techer")
    assert_identical(dict(model.state_dict()), before)
    with pytest.raises(CheckpointError, match="has no part 'projection'"):
        transfer_backbone(model, as_checkpoint(pretrained), part="projection")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "prefix"), [({}, "teacher.backbone."), ({"transfer_from": "backbone"}, "backbone.")]
)
def test_a_run_starts_from_the_teacher_that_the_checkpoint_declares(tmp_path, setting, prefix):
    train(tmp_path / "pretrained", **OPTIONS, train_cfg__max_epochs=1)
    file = tmp_path / "pretrained" / "epoch_1.pth"
    weights = read_checkpoint(file)["state_dict"]
    model = dict(type="ImageClassifier", backbone=BACKBONE, preprocessor=PREPROCESSOR)
    model["head"] = dict(type="LinearHead", num_classes=10)
    runner = debug_runner(tmp_path / "tuned", model=model, load_from=str(file), **setting)
    runner.build_for_training()
    runner.load_or_resume()
    for name, value in runner.task.backbone.state_dict().items():
        assert torch.equal(value, weights[f"{prefix}{name}"]), name


@pytest.mark.parametrize("value", ["", 3])
def test_a_part_without_a_name_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="transfer_from must be the name of a submodule, or None, got"):
        debug_runner(tmp_path, transfer_from=value)


# What a task says of itself -------------------------------------------------------------------------------------------


def test_a_task_has_all_that_tools_ask_for():
    task = build()
    assert (task.is_classifier, task.num_classes, task.head) == (False, 0, None)
    assert (task.flip_test, task.freeze_backbone, task.described_by) == (None, False, None)
    assert (task.class_names, task.test_transforms, task.in_channels) == (None, None, None)


@pytest.mark.parametrize("classes", [0, 5])
def test_a_classifier_without_classes_is_none(classes):
    task = ImageClassifier(BACKBONE, dict(type="LinearHead", num_classes=classes), PREPROCESSOR)
    assert task.is_classifier is (classes > 0)
    assert isinstance(task.head, torch.nn.Module)


def test_a_model_that_is_no_task_is_refused():
    with pytest.raises(ValueError, match="model Linear is no task: let it inherit from crate_mm.models.Task"):
        task_of(torch.nn.Linear(1, 1))
    assert issubclass(ImageClassifier, Task)
