"""The page in a real browser: what it shows equals the pure functions, it is quiet, and names stay names."""

import json
import re
import time

import numpy as np
import pytest
import torch

from crate_mm import init_model
from crate_mm.analysis import measures
from crate_mm.analysis.segmentation import attention_masks
from crate_mm.analysis.taps import capture
from crate_mm.engine import load_config
from crate_mm.extras.report.pack import unpack
from crate_mm.inference.standalone import build_loader
from tests.conftest import ROOT, start

pytestmark = pytest.mark.slow  # a page is made by the command, in a process of its own
ARROWS = dict(up="\ue013", down="\ue015", left="\ue012", right="\ue014")


def data_of(page):
    """The JSON in a page."""
    return json.loads(
        re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page.read_text(), re.S)[1]
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory, debug_checkpoint):
    """A page of the random model and a trained one, made by the command."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    args, log = ("debug", "random", debug_checkpoint, "--out", file, "--shown", "5"), file.with_suffix(".out")
    process = start(ROOT / "tools" / "report.py", args, log, ROOT, {})
    process.join(300)
    assert process.exitcode == 0, log.read_text()
    return file


@pytest.fixture(scope="module")
def truth(page, debug_checkpoint):
    """What the pure functions give for the images shown: by layer, of the trained model."""
    data = data_of(page)
    model, dataset = init_model("debug", debug_checkpoint), build_loader(load_config("debug")).dataset
    images = torch.stack([dataset[image["position"]]["inputs"] for image in data["images"]])
    with torch.no_grad(), capture(model, ("tap_w", "tap_out")) as seen:
        logits = model(model.data_preprocessor.normalize(images))
    attention = [block.attention(w) for block, w in zip(model.backbone.blocks, seen["tap_w"])]
    return dict(data=data, model=model, dataset=dataset, logits=logits, attention=attention, codes=seen["tap_out"])


def told(browser, selector):
    """The rows of a list of names and numbers."""
    rows = browser.run(
        "return [...document.querySelectorAll(arguments[0] + ' li')].map((li) => "
        "[...li.querySelectorAll(':scope > span')].slice(0, 2).map((span) => span.textContent))",
        selector,
    )
    return [(name, float(value.removesuffix(" %"))) for name, value in rows]


def test_what_is_chosen_is_what_the_pure_functions_give(browser, page, truth):
    browser.open(page)
    image, layer, head = 3, 1, 2
    names = [entry["name"] for entry in truth["data"]["images"]]
    browser.choose("#image-choice", f"{image + 1}: {names[image]}")
    browser.press("#layer-choice", ARROWS["right"])
    browser.choose("#head-choice", str(head + 1))
    browser.click('[data-key="attention-1"]', x=(2 + 0.5) / 4, y=(1 + 0.5) / 4)  # row 2, column 3 of 4 x 4 patches
    row = truth["attention"][layer][image][:, 1 + 1 * 4 + 2]

    canvas = browser.run("return [...document.querySelector('[data-key=\"attention-1\"]').attention]")
    np.testing.assert_allclose(canvas, row[head], atol=2e-5)
    # The entries are kept as 16-bit square roots, and are shown with four digits.
    expected = {f"row {i // 4 + 1}, column {i % 4 + 1}": v for i, v in enumerate(row[head, 1:].tolist())}
    expected["itself"], expected["the class token"] = expected.pop("row 2, column 3"), row[head, 0].item()
    shown = told(browser, '[data-model="1"] [data-told="attention"]')
    assert len(shown) == 4
    for name, value in shown:
        assert value == pytest.approx(expected[name], rel=2e-3), name
    largest = sorted((v for name, v in expected.items() if name != "the class token"), reverse=True)[:3]
    assert sorted((v for name, v in shown if name != "the class token"), reverse=True) == pytest.approx(
        largest, rel=2e-3
    )

    cls = browser.run("return [...document.querySelector('[data-key=\"cls-1\"]').attention]")
    np.testing.assert_allclose(cls, truth["attention"][layer][image, head, 0, 1:], atol=2e-5)
    cosines = browser.run("return document.querySelector('[data-key=\"agree-1\"]').cosines")
    unit = torch.nn.functional.normalize(row, dim=-1)
    np.testing.assert_allclose(np.reshape(cosines, (3, 3)), unit @ unit.mT, atol=1e-4)
    scores, classes = truth["logits"][image].softmax(-1).topk(5)
    assert told(browser, '[data-model="1"] [data-told="classes"]') == [
        (str(c), pytest.approx(100 * s, rel=5e-3)) for c, s in zip(classes.tolist(), scores.tolist())
    ]
    label = truth["data"]["images"][image]["label"]
    right = label == classes[0]
    assert browser.text('[data-model="1"] [data-told="verdict"]') == ("✓ right" if right else f"✗ wrong: it is {label}")

    code = truth["codes"][layer][image]
    zero = float(
        re.search(r"([\d.]+) % of these entries are zero", browser.text('#code [data-model="1"] [data-told="zero"]'))[1]
    )
    assert zero == pytest.approx(100 * (code == 0).float().mean().item(), rel=5e-3)
    values = browser.run("return [...document.querySelector('[data-key=\"code-1\"]').values]")
    np.testing.assert_allclose(values, (code / code.max()).flatten(), atol=1 / 255)

    masks = attention_masks(truth["attention"][layer][image, :, 0, 1:])
    for k in range(3):
        drawn = browser.run(f"return [...document.querySelector('[data-key=\"mask-1-{k}\"] canvas').values]")
        assert [v > 0.5 for v in drawn] == masks[k].tolist()

    U = truth["model"].backbone.blocks[layer].subspaces().U.detach()
    gram = browser.run("return [...document.querySelector('[data-key=\"gram-1\"]').values]")
    np.testing.assert_allclose(np.reshape(gram, (48, 48)), measures.subspace_gram(U).abs(), atol=2e-5)
    browser.check_quiet()


def test_it_opens_at_its_beginning(browser, page):
    """What is drawn later must not scroll it."""
    browser.open(page)
    time.sleep(0.5)
    assert browser.run("return [window.scrollY, document.body.scrollHeight > window.innerHeight]") == [0, True]


def test_a_patch_is_chosen_by_arrow_keys_and_told_to_those_who_hear(browser, page, truth):
    browser.open(page, "#image=2&layer=2&head=1&y=0.1&x=0.1")
    browser.press('[data-key="attention-1"]', ARROWS["right"], ARROWS["down"], ARROWS["down"])
    row = truth["attention"][1][1, 0, 1 + 2 * 4 + 1]
    canvas = browser.run("return [...document.activeElement.attention]")  # the focus is where it was
    np.testing.assert_allclose(canvas, row, atol=2e-5)
    assert "The patch at row 3, column 2 attends most to" in browser.text("#live")
    assert "y=0.625&x=0.375" in browser.driver.current_url
    browser.check_quiet()


def test_a_layer_is_clicked_and_its_distribution_told(browser, page, truth):
    browser.open(page)
    browser.click('[data-measure="r_out"]')
    browser.press("#layer-choice", ARROWS["right"])
    told_data = truth["data"]["models"][1]["layers"][1]["measures"]["r_out"]
    codes = []
    dataset, model = truth["dataset"], truth["model"]
    images = torch.stack([dataset[i]["inputs"] for i in range(len(dataset))])
    with torch.no_grad(), capture(model, ("tap_out",)) as seen:
        model(model.data_preprocessor.normalize(images))
    codes = measures.coding_rate(seen["tap_out"][1], unit_length=True)
    line = browser.text('#objective .detail .model:nth-child(2) [data-told="measure"]')
    mean, std = map(float, re.match(r"mean ([\d.]+), deviation ([\d.]+), 450 images", line).groups())
    assert mean == pytest.approx(codes.mean().item(), rel=1e-3)
    assert std == pytest.approx(codes.std().item(), rel=1e-3)
    order = codes.argsort()
    assert {p for p, _ in told_data["low"]} == set(order[:3].tolist())
    assert [p for p, _ in told_data["high"]] == order.flip(0)[:3].tolist()
    assert sum(told_data["histogram"]["counts"]) == 450
    shown = browser.texts("#objective .detail .model:nth-child(2) .end li")
    assert [float(v) for v in shown[3:]] == pytest.approx(sorted(codes.tolist(), reverse=True)[:3], rel=1e-3)
    labels = browser.texts('[data-chart="r_out"] .role-axis-label text')
    assert [label for label in labels if label in ("1", "2")] == ["1", "2"]
    # A click into a chart chooses the layer below it.
    browser.click('[data-chart="r_out"] svg', x=0.2, y=0.5)
    assert browser.text("#layer-number") == "1 of 2"
    browser.check_quiet()


def test_every_number_is_saved(browser, page, truth):
    browser.open(page)
    browser.click("button.save")
    file = browser.downloads / "report.json"
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.05)
    saved = json.loads(file.read_text())
    assert saved == truth["data"]
    attention = unpack(saved["models"][1]["layers"][0]["looks"]["attention"])
    np.testing.assert_allclose(attention, truth["attention"][0], atol=2e-5)
    browser.check_quiet()
