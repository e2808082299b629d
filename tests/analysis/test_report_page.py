"""The page in a real browser: what it shows equals the pure functions, and its address holds what is chosen."""

import json
import math
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
WEIGHTS = {"computed in the page": "1", "stored": "0"}  # megabytes of weights in the page


def data_of(page):
    """The JSON in a page."""
    return json.loads(
        re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page.read_text(), re.S)[1]
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory, debug_checkpoint):
    """Pages of the random model and a trained one, made by the command: with the trained one's weights, and without."""
    files = {}
    for kind, megabytes in WEIGHTS.items():
        file = tmp_path_factory.mktemp("page") / "report.html"
        args = ("debug", "random", debug_checkpoint, "--out", file, "--shown", "5", "--weights-megabytes", megabytes)
        process = start(ROOT / "tools" / "report.py", args, file.with_suffix(".out"), ROOT, {})
        process.join(300)
        assert process.exitcode == 0, file.with_suffix(".out").read_text()
        files[kind] = file
    return files


@pytest.fixture(scope="module")
def page(pages):
    return pages["computed in the page"]


@pytest.fixture(scope="module")
def truth(pages, debug_checkpoint):
    """What the pure functions give for the images shown: by layer, of the trained model."""
    data = data_of(pages["stored"])
    model, dataset = init_model("debug", debug_checkpoint), build_loader(load_config("debug")).dataset
    images = torch.stack([dataset[image["position"]]["inputs"] for image in data["images"]])
    with torch.no_grad(), capture(model, ("tap_w", "tap_out")) as seen:
        logits = model(model.data_preprocessor.normalize(images))
    attention = [block.attention(w) for block, w in zip(model.backbone.blocks, seen["tap_w"])]
    return dict(data=data, model=model, dataset=dataset, logits=logits, attention=attention)


def percent(share):
    """As ``numbers.js``: whole from 10, one decimal below."""
    value = 100 * share
    if 0 < value < 0.1:
        return "less than 0.1\u00a0%"
    if 99.9 < value < 100:
        return "over 99.9\u00a0%"
    return f"{round(value, 0 if value >= 9.95 else 1):g}\u00a0%"


def values_of(browser, selector, name):
    return browser.run("return [...document.querySelector(arguments[0])[arguments[1]]]", selector, name)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_is_chosen_is_what_the_pure_functions_give(browser, pages, truth, kind):
    browser.open(pages[kind])
    image, layer, head = 3, 0, 2
    names = [entry["name"] for entry in truth["data"]["images"]]
    browser.choose("#image-choice", f"{image + 1}: {names[image]}")
    browser.press("#layer-choice", ARROWS["left"])
    browser.choose("#head-choice", str(head + 1))
    browser.click('[data-key="attention-1"]', x=(2 + 0.5) / 4, y=(1 + 0.5) / 4)  # row 2, column 3 of 4 x 4 patches
    token = 1 + 1 * 4 + 2
    rows = truth["attention"][layer][image]
    row = rows[head, token]

    np.testing.assert_allclose(values_of(browser, '[data-key="attention-1"]', "attention"), row, atol=2e-5)
    names = ["the class token", *(f"the patch at row {i // 4 + 1}, column {i % 4 + 1}" for i in range(16))]
    names[token] = "itself"
    spread = math.exp(-(row * row.log()).sum())
    sentence = browser.text('[data-model="1"] [data-told="attention"]')
    assert sentence.startswith("Head 3: the patch at row 2, column 3 takes ")
    if spread >= 0.9 * 17:
        assert sentence.endswith("nearly the same from all 17 tokens.")
    else:
        found = re.search(r"most from (.*?) \(([\d.]+) times uniform\).*about ([\d.]+) of 17", sentence)
        assert found[1] == names[row.argmax()]
        assert [float(found[2]), float(found[3])] == pytest.approx([17 * row.max().item(), spread], rel=5e-3)
    stored = unpack(truth["data"]["models"][0]["layers"][layer]["looks"]["attention"])[image, head, token]
    difference = values_of(browser, "#look canvas[aria-label^='A \u2212 B']", "difference")
    np.testing.assert_allclose(difference, 17 * (row.numpy() - stored), atol=1e-3)

    scores, classes = truth["logits"][image].softmax(-1).topk(5)
    told = browser.texts('#look [data-model="1"] [data-told="classes"] li > span:nth-child(-n + 2)')
    expected = [(str(c), percent(s)) for c, s in zip(classes.tolist(), scores.tolist())]
    assert list(zip(told[::2], told[1::2])) == expected
    label = truth["data"]["images"][image]["label"]
    right = label == classes[0]
    assert browser.text('#look [data-model="1"] [data-told="verdict"]') == (
        "✓ right" if right else f"✗ wrong: it is {label}"
    )

    masks = attention_masks(rows[:, 0, 1:])
    for k in range(3):
        assert [v > 0.5 for v in values_of(browser, f'[data-key="mask-1-{k}"] canvas', "mask")] == masks[k].tolist()
    U = truth["model"].backbone.blocks[layer].subspaces().U.detach()
    gram = values_of(browser, '[data-key="gram-1"]', "values")
    np.testing.assert_allclose(np.reshape(gram, (48, 48)), measures.subspace_gram(U).abs(), atol=2e-5)
    browser.check_quiet()


def test_it_opens_where_it_is_interesting_and_at_its_beginning(browser, page, truth):
    """The last layer, an image that the trained model has right; what is drawn later does not scroll the page."""
    browser.open(page)
    predicted, images = truth["data"]["models"][1]["predicted"], truth["data"]["images"]
    right = [i for i, image in enumerate(images) if predicted[i][0][0] == image["label"]]
    scores = sorted(predicted[i][0][1] for i in right)
    sure = [i for i in right if predicted[i][0][1] >= scores[int(0.9 * (len(scores) - 1))]]
    chosen = browser.run(
        "return ['image', 'a', 'b', 'head'].map((name) => document.getElementById(`${name}-choice`).value)"
    )
    image = (sure or [0])[0]
    pixels = truth["dataset"][images[image]["position"]]["inputs"].float()[0]
    patches = pixels.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2).flatten(0, 1)  # 4 x 4 of 2 x 2 pixels
    token = patches.var(-1, correction=0).argmax().item()
    rows = truth["attention"][1][image][:, 1 + token]
    head = (rows * rows.log()).sum(-1).argmax().item()
    assert chosen == [str(image), "1", "0", str(head)]
    name = f"the patch at row {token // 4 + 1}, column {token % 4 + 1}"
    assert browser.find("#layer canvas.pick").get_attribute("aria-label") == f"the image; {name} is chosen"
    assert browser.text("#layer-number") == "2 of 2"
    time.sleep(0.5)
    assert browser.run("return [window.scrollY, document.body.scrollHeight > window.innerHeight]") == [0, True]


def test_a_patch_is_chosen_by_arrow_keys_and_told_to_those_who_hear(browser, page, truth):
    browser.open(page, "#image=2&layer=2&head=1&y=0.1&x=0.1")
    browser.press('[data-key="attention-1"]', ARROWS["right"], ARROWS["down"], ARROWS["down"])
    row = truth["attention"][1][1, 0, 1 + 2 * 4 + 1]
    canvas = browser.run("return [...document.activeElement.attention]")  # the focus is where it was
    np.testing.assert_allclose(canvas, row, atol=2e-5)
    assert "the patch at row 3, column 2 takes" in browser.text("#live")
    assert "y=0.625&x=0.375" in browser.driver.current_url
    browser.check_quiet()


def test_back_undoes_choices_also_those_that_the_address_does_not_name(browser, page):
    browser.open(page)
    image = browser.run("return document.getElementById('image-choice').value")
    browser.click('[data-key="image-4"]')
    browser.click('[data-key="ask-cls"]')
    browser.click('[data-measure="sparsity"]')
    asks = "return document.querySelector('[data-key=\"ask-cls\"]').getAttribute('aria-pressed')"
    measure = '[data-measure][aria-pressed="true"]'
    assert (browser.run(asks), browser.text(measure)) == ("true", "Nonzero entries of the code")
    for expected in (("true", "4"), ("false", "4"), ("false", image)):
        browser.driver.back()
        time.sleep(0.1)
        browser.wait()
        assert browser.text(measure) == "Rᶜ after compression"
        assert (browser.run(asks), browser.run("return document.getElementById('image-choice').value")) == expected
    browser.click('[data-key="image-1"]')
    browser.run("document.querySelector('.skip').click()")  # a link to a section changes no choice
    browser.wait()
    assert browser.run("return document.getElementById('image-choice').value") == "1"
    assert browser.driver.find_elements("css selector", ".warning") == []
    browser.check_quiet()


def test_parts_of_an_address_that_do_not_fit_are_told_and_left_out(browser, page):
    browser.open(page, "#image=99&layer=3&head=2&token=other&constructor=1&off=h9.1&lambda=11&a=1&b=1&step=0")
    names = "image, layer, token, step, lambda, constructor"
    assert browser.text("#ignored") == f"This link's {names} could not be used on this page and was left out."
    assert browser.run("return document.getElementById('head-choice').value") == "1"
    pair = "return [document.getElementById('a-choice').value, document.getElementById('b-choice').value]"
    assert browser.run(pair) == ["0", ""]
    assert browser.text("#layer-number") == "2 of 2"
    browser.open(page, "#off=h9.1,d1.99999")
    assert browser.text('[data-told="changed"]').startswith("What this link switches off is not in this model.")
    browser.check_quiet()


def test_a_layer_is_clicked_and_its_distribution_told(browser, page, truth):
    browser.open(page)
    browser.click('[data-measure="r_out"]')
    told_data = truth["data"]["models"][1]["layers"][1]["measures"]["r_out"]
    dataset, model = truth["dataset"], truth["model"]
    images = torch.stack([dataset[i]["inputs"] for i in range(len(dataset))])
    with torch.no_grad(), capture(model, ("tap_out",)) as seen:
        model(model.data_preprocessor.normalize(images))
    rates = measures.coding_rate(seen["tap_out"][1], unit_length=True)
    (line,) = (told for told in browser.texts('#objective [data-told="measure"]') if told.startswith("epoch_1: "))
    mean, std = map(float, re.match(r"epoch_1: mean ([\d.]+), deviation ([\d.]+), 450 images", line).groups())
    assert [mean, std] == pytest.approx([rates.mean().item(), rates.std().item()], rel=1e-3)
    assert sum(told_data["histogram"]["counts"]) == 450
    assert browser.texts('[data-chart="r_out"] .x-tick') == ["1", "2"]
    # A click into a chart chooses the layer below it.
    left = browser.run("return document.querySelector('[data-chart=\"r_out\"] svg').clientWidth")
    browser.click('[data-chart="r_out"] svg', x=47 / left, y=0.5)
    assert browser.text("#layer-number") == "1 of 2"
    browser.check_quiet()


def test_an_address_names_the_section_that_is_looked_at(browser, page):
    top = "return document.querySelector('#objective').getBoundingClientRect().top"
    browser.open(page, "#s=objective&image=2&head=1")
    assert 0 <= browser.run(top) < 200  # below the bar
    browser.click('[data-measure="sparsity"]')
    assert "s=objective" in browser.driver.current_url
    browser.open(page, "#s=elsewhere")
    assert browser.text("#ignored").startswith("This link's s could not be used")
    browser.check_quiet()


def test_every_number_is_saved(browser, pages, truth):
    browser.open(pages["stored"])
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
