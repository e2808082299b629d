"""ImageNet ReaL, by hand: six images, one without a label, one with two."""

import json

import pytest
import torch

from crate_mm.evaluation import ImageNetReaL

LABELS = [[3], [], [1, 2], [0], [4], [2]]
GUESSES = {1: 3, 2: 3, 3: 2, 4: 1, 5: 4, 6: 0}  # by the number in the file name: right, -, right, wrong, right, wrong


class Files:
    def __init__(self, numbers):
        self.numbers = numbers

    def path(self, position):
        return f"/data/val/n0{self.numbers[position]}/ILSVRC2012_val_{self.numbers[position]:08d}.JPEG"


def evaluate(tmp_path, numbers, order=None, labels=LABELS):
    """Evaluate on the images with these numbers in their names, loaded in some order."""
    (tmp_path / "real.json").write_text(json.dumps(labels))
    metric = ImageNetReaL(str(tmp_path / "real.json"))
    metric.dataset = Files(numbers)
    logits = torch.nn.functional.one_hot(torch.tensor([GUESSES.get(n, 0) for n in numbers]), 5).float()
    for chunk in torch.tensor(order or range(len(numbers))).split(4):
        batch = {"logits": logits[chunk], "labels": torch.zeros(len(chunk), dtype=torch.long), "sample_idx": chunk}
        metric.process({}, [batch])
    return metric.evaluate(len(numbers))


@pytest.mark.parametrize(
    ("numbers", "order"),
    [
        ([1, 2, 3, 4, 5, 6], None),
        ([6, 4, 2, 1, 3, 5], [5, 0, 3, 1, 4, 2]),
        ([6, 4, 2, 1, 3, 5], [2, 1, 0, 5, 4, 3, 0, 1]),
    ],
    ids=["sorted", "by class and shuffled", "padded"],
)
def test_three_of_five(tmp_path, numbers, order):
    assert evaluate(tmp_path, numbers, order) == {"real/top1": pytest.approx(60.0), "real/num_samples": 5}


def test_a_part_of_the_images_keeps_its_labels(tmp_path):
    assert evaluate(tmp_path, [3, 6]) == {"real/top1": pytest.approx(50.0), "real/num_samples": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist: download ImageNet ReaL's labels, the file real.json"),
        ("{", "cannot be read as JSON"),
        ('{"a": 1}', "expected a list of lists of class indices"),
        ("[[1], 2]", "expected a list of lists of class indices"),
        ('[["cat"]]', "expected a list of lists of class indices"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, message):
    if text is not None:
        (tmp_path / "real.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageNetReaL(str(tmp_path / "real.json"))


def test_other_file_names_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="is not an ImageNet validation image: ImageNet ReaL expects the name ILSVRC2012_val_NNNNNNNN"
    ):
        evaluate(tmp_path, [1, 7])  # the seventh of six
    with pytest.raises(ValueError, match="none of the 1 images has a label"):
        evaluate(tmp_path, [2])
