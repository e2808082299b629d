"""What a report is made of: spreads in a stream, packed arrays, blocks of attention, the use of codes."""

import gc
import random
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crate_mm.analysis.codes import atom_usage
from crate_mm.analysis.gather import measure_layers
from crate_mm.analysis.taps import capture
from crate_mm.extras.report.looks import AttentionBudget, Looks, block_attention
from crate_mm.extras.report.pack import pack, unpack
from crate_mm.extras.report.page import as_json, in_element
from crate_mm.extras.report.spread import BINS, Histogram
from crate_mm.extras.report.stream import TOP, AtomUsage, collect_stats
from crate_mm.models import ImageClassifier


@pytest.mark.parametrize("values", [[5.0] * 7, [-3.25, 1e-9, 4.0], list(np.random.default_rng(0).normal(100, 3, 500))])
def test_a_histogram_is_the_same_in_any_order(values):
    told = []
    for seed in range(3):
        histogram, mixed = Histogram(), list(values)
        random.Random(seed).shuffle(mixed)
        for start in range(0, len(mixed), 40):
            histogram.update(mixed[start : start + 40])
        told.append(histogram.data())
    assert told[0] == told[1] == told[2]
    start, width, counts = told[0].values()
    assert sum(counts) == len(values)
    assert len(counts) <= BINS
    if width:
        edges = start + width * np.arange(len(counts) + 1)
        assert np.histogram(values, edges)[0].tolist() == counts
        assert len(counts) > BINS // 2 or len(values) < BINS
    else:
        assert start == values[0]


@pytest.mark.parametrize(("bits", "power", "most"), [(8, 1, 255), (16, 1, 65535), (8, 2, 255), (16, 2, 65535)])
def test_an_array_is_packed_within_its_error(bits, power, most):
    values = torch.rand(4, 5, 6, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 0.0, 7e4])[:, None, None]
    values[0, 0, :3] = torch.tensor([0.0, 1e-12, 1.0])
    found = unpack(pack(values, bits, power, groups=4))
    scale = values.amax((1, 2)).numpy()
    assert (np.abs(found - values.numpy()) <= (scale / most)[:, None, None]).all()
    assert ((found != 0) == (values.numpy() != 0)).all()


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, -0.1]), torch.tensor([1.0, float("nan")])])
def test_what_cannot_be_packed(wrong):
    with pytest.raises(ValueError, match="must be finite and nonnegative"):
        pack(wrong)


def test_blocks_of_attention():
    """3 x 4 patches behind a CLS token in blocks of 2: 2 x 2 of them, the lower ones of one row."""
    attention = torch.rand(2, 13, 13).softmax(-1)
    assert torch.equal(block_attention(attention, 1, (3, 4), 1), attention)
    blocks = block_attention(attention, 1, (3, 4), 2)
    members = [[0], [1, 2, 5, 6], [3, 4, 7, 8], [9, 10], [11, 12]]
    expected = [[attention[:, a][:, :, b].sum(-1).mean(-1) for b in members] for a in members]
    torch.testing.assert_close(blocks, torch.stack([torch.stack(row, -1) for row in expected], 1))
    torch.testing.assert_close(blocks.sum(-1), torch.ones(2, 5))
    without = block_attention(attention[:, 1:, 1:], 0, (3, 4), 2)
    assert without[:, 0].abs().max() == without[:, :, 0].abs().max() == 0
    torch.testing.assert_close(
        without[:, 1:, 1:].sum(-1), attention[:, 1:, 1:].sum(-1)[:, [0]] * 0 + without.sum(-1)[:, 1:]
    )


def test_the_plan_keeps_to_its_room():
    base = (16 * 12 * 12, (14, 14))  # CRATE-Base, 16 images
    plan = AttentionBudget([base], 7e6)
    assert (plan.side, plan.bits) == (3, 8)
    assert (AttentionBudget([base], 9e6).side, AttentionBudget([base], 9e6).bits) == (2, 8)
    small = AttentionBudget([(16 * 12 * 6, (2, 2))] * 3, 7e6)
    assert (small.side, small.bits) == (1, 16)
    assert AttentionBudget([(0, (0, 0))], 7e6).side == 1
    assert AttentionBudget([base] * 100, 10.0).side == 14  # as little as can be


def test_one_scale_of_all_maps(model):
    """The 0.995 quantile over layers, heads and images of what patches get, in times uniform, rounded up to 1, 2, 5."""
    looks, maps = Looks(model, SimpleNamespace(side=1, bits=16)), []
    for batch in batches(40):
        looks.look(batch)
        with torch.no_grad(), capture(model, ("tap_w",)) as seen:
            model(model.data_preprocessor.normalize(batch["inputs"]))
        maps += [block.attention(w)[..., 1:].flatten() for block, w in zip(model.backbone.blocks, seen["tap_w"])]
    high = 17 * torch.cat(maps).quantile(0.995).item()
    assert looks.scale() == min(end for end in (2, 5, 10, 17) if end >= high)
    for value, end in ((1 / 17, 2), (0.13, 5), (0.5, 10), (0.9, 17)):
        looks.blocks = {0: [torch.full((3, 17, 17), value)]}
        assert looks.scale() == end


def test_the_use_of_directions():
    code = torch.tensor([[[1.0, 0, 0], [2, 0, 0]], [[0, 3, 0], [1, 0, 0]]])
    assert atom_usage(code).tolist() == [[1, 0, 0], [0.5, 0.5, 0]]


def test_the_images_that_use_a_direction_most():
    torch.manual_seed(0)
    codes, labels = torch.randn(50, 5, 7).relu(), [i % 3 for i in range(50)]
    codes[..., 6] = 0
    use = AtomUsage([0, 1, 2])
    for start in range(0, 50, 8):
        rows = slice(start, start + 8)
        use.update(codes[rows], list(range(100 + start, 100 + min(start + 8, 50))), labels[rows], first=1)
    patches = codes[:, 1:].amax(1)
    order = patches[:, 2].argsort(descending=True)[:TOP].tolist()
    assert [p for p, _, _ in use.top(2)] == [100 + i for i in order]
    assert [t for _, t, _ in use.top(2)] == [codes[i, 1:, 2].argmax().item() for i in order]
    assert use.top(6) == []
    most, least = use.listed()
    assert (set(most), least) == (set(range(6)), [])
    share = (codes != 0).float().mean(1)
    means = torch.stack([share[[i for i in range(50) if labels[i] == c]].mean(0) for c in range(3)])
    torch.testing.assert_close(use.by_class.means(), means.double())
    assert use.middle(6) == []
    for atom in range(6):
        values = codes[:, 1:, atom]
        used = values[values > 0].sort().values
        middle = use.middle(atom)
        assert len(middle) == TOP
        for position, token, value in middle:
            assert value == values[position - 100, token].item()
            # around the median of a sample of 64 uses: within the middle third of all
            assert used[len(used) // 3] <= value <= used[-len(used) // 3]


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = dict(type="CRATE", arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=16, patch_size=4)
    return ImageClassifier(backbone, dict(type="LinearHead", num_classes=5)).eval()


def batches(count, size=20):
    for start in range(0, count, size):
        images = torch.randint(
            0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(start)
        )
        positions = torch.arange(start, start + size)
        yield {"inputs": images, "labels": positions % 5, "sample_idx": positions}


def test_a_stream_is_what_the_pure_functions_give(model):
    found = collect_stats(model, batches(60))
    with measure_layers(model) as measured, torch.inference_mode(), capture(model, ("tap_code",)) as seen:
        right, codes = 0, []
        for batch in batches(60):
            right += (model(**model.data_preprocessor(batch)).argmax(-1) == batch["labels"]).sum().item()
            codes.append(seen["tap_code"][1])
    codes = torch.cat(codes)
    assert found.spreads.rows() == measured.rows()
    assert (found.images, found.labelled, found.right) == (60, 60, right)
    torch.testing.assert_close(found.codes[1].use / 60, atom_usage(codes).double().mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(model):
    """The peak of what Python allocates, and the tensors that are left, once the histograms are full."""

    def collected(count):
        for batch in batches(count):
            gc.collect()  # what is left in circles is not kept
            yield batch

    def peak(count):
        gc.collect()
        tracemalloc.start()
        kept = collect_stats(model, collected(count))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept.images == count
        tensors = sum(x.numel() for x in gc.get_objects() if isinstance(x, torch.Tensor))
        return most, tensors

    peak(40)
    (few, tensors), (many, still) = peak(400), peak(2000)
    assert still == tensors
    # PyTorch and Python leave some bytes a batch; a list of a number an image, layer and measure would have 500,000.
    assert many < few + 80_000


def test_json_ends_no_element():
    text = as_json({"a": "</script><!-- \u2028 & é", "b": [1.5, None]})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert in_element("'</script>' '<!--'") == "'<\\/script>' '<\\!--'"
    with pytest.raises(ValueError, match="not finite"):
        as_json([float("nan")])
