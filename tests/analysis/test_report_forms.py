"""Pages of every kind of model, of hostile names, of faults and of small windows, in a real browser."""

import base64
import io
import json
import re
import time
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from crate_mm.analysis.table import MEASURES
from crate_mm.datasets.masks import overlay
from crate_mm.extras.report.collect import ReportDataset, ReportModel, ReportSettings, collect
from crate_mm.extras.report.pack import unpack
from crate_mm.extras.report.page import make_page
from crate_mm.models import Backbone, ImageClassifier
from crate_mm.models.layers import Block, Compression, Sparsification
from crate_mm.registry import MODELS, head_for

pytestmark = pytest.mark.slow  # a browser
SECTIONS = ("layer", "draw", "look", "directions", "objective", "compare", "subspaces", "segments", "run")
RUN = {"command": "", "date": "", "data": [], "measured": 0, "of": 0, "versions": {}, "device": ""}
RUN["settings"] = {"eps_squared": 0.01}
HOSTILE = [
    "<script>window.broken = 1</script>",
    '"><img src=x onerror="window.broken = 1">',
    "</script><script>window.broken = 1</script>",
    "<!--<script>",
    "&lt;b&gt; {{DATA}} $x^2$ \u2028 \u202e",
]


class Images(Dataset):
    """Random images with labels and names."""

    def __init__(self, shape, count=9, names=(), labels=True, classes=5):
        self.images = torch.randint(
            0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        self.names, self.labels, self.classes = names, labels, classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"inputs": self.images[i], "labels": i % self.classes if self.labels else -1, "sample_idx": i}

    def path(self, i):
        return f"/folder/{self.names[i % len(self.names)].replace('/', '_')}" if self.names else f"{i}.png"


class Doubling(Compression):
    """A user's compression without subspaces and attention."""

    def forward(self, x):
        return self.tap_w(x)


class Threshold(Sparsification):
    """A user's sparsification."""

    lambd = 0.3

    def forward(self, x):
        return self.tap_code((x - self.lambd).relu())


class Own(Backbone):
    """A user's backbone, which tells nothing of its patches."""

    embed_dim = 24

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 24, 8, 8)
        self.blocks = nn.ModuleList(Block(24, Doubling(), Threshold()) for _ in range(2))

    def forward(self, images):
        z = self.proj(images).flatten(2).mT
        for layer in self.blocks:
            z = layer(z)
        return z


def data_of(dataset, label="Images, test", **more):
    return ReportDataset(label, dataset, lambda positions: DataLoader(Subset(dataset, positions), 4), **more)


def classifier(kind="CRATE", depth=2, heads=3, size=(16, 24), channels=3, **more):
    torch.manual_seed(0)
    backbone = dict(type=kind, arch=dict(embed_dim=48, depth=depth, num_heads=heads), img_size=size, patch_size=8)
    stats = dict(mean=(0.5,) * channels, std=(0.5,) * channels)
    head = dict(type="LinearHead", num_classes=5, **head_for(kind))
    return ImageClassifier(backbone | dict(in_channels=channels) | more, head, stats).eval()


def page_of(models, dataset, file, measured=None, shown=None, class_names=None, **more):
    """Write the page of models by label; return its data. With ``weights_bytes=0`` no model runs in the page."""
    total = list(range(len(dataset)))
    looked = [ReportModel(label, model, class_names=class_names or list("abcde")) for label, model in models.items()]
    wanted = ReportSettings(measured or total, shown or total[:3], **more)
    data = {"title": "a page", "run": RUN, **collect(looked, [data_of(dataset)], wanted, say=lambda _: None)}
    file.write_text(make_page(data, data["title"]))
    return data


def nothings(browser, section):
    return browser.texts(f"#{section} .none")


FORMS = {
    "not square patches": (dict(size=(16, 24), patch_size=(8, 4)), {}),
    "one layer and head, gray": (dict(depth=1, heads=1, channels=1), {}),
    "24 layers": (dict(depth=24), {}),
    "CRATEMAE": (dict(kind="CRATEMAE"), {}),
    "ViT": (dict(kind="ViT"), {"directions": "ViT has no sparse code", "subspaces": "ViT has no subspaces"}),
    "alpha": (dict(kind="CRATEAlpha"), {}),
    "CBT": (dict(kind="CBT"), {}),
    "AoT": (dict(kind="AoT"), {"directions": "AoT has no sparse code"}),
    "ToST": (
        dict(kind="ToST"),
        {
            "look": "ToST has no attention map: the map 'membership' of TSSA is groups x tokens, not tokens x tokens.",
            "directions": "ToST has no sparse code",
            "segments": "ToST has no attention map",
        },
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_page_of_each_form(browser, tmp_path, form):
    given, lacking = FORMS[form]
    model = classifier(**given)
    dataset = Images((given.get("channels", 3), 16, 24))
    data = page_of({form: model}, dataset, tmp_path / "report.html")
    (entry,) = data["models"]
    browser.open(tmp_path / "report.html", f"#layer={len(model.backbone.blocks)}&head=1&image=3")
    why = nothings(browser, "layer")  # the one place that says why the page does not run a model
    assert why == ([] if entry["running"] else [entry["why_not_running"]])
    assert browser.find("#draw").is_displayed() == bool(entry["running"])
    for section in ("look", "directions", "subspaces", "segments"):
        said = nothings(browser, section)
        assert bool(said) == (section in lacking), (section, said)
        assert set(said) <= {f"Not defined for {form}: see its line at the top."}
        assert lacking.get(section, "") in browser.text("#models")
    for reason in entry["undefined"].values():  # once, in the model's line at the top
        assert browser.text("#models").count(reason) == 1
    assert browser.text("#layer-number") == f"{len(entry['layers'])} of {len(entry['layers'])}"
    assert not browser.find("#compare").is_displayed()
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    told = " ".join(browser.texts(".says, .sentence, .verdict, .note"))
    assert not re.search(r"NaN|undefined|null|Infinity|\\b1 (images|heads|layers|numbers)\\b", told)
    browser.check_quiet()


def test_a_page_of_one_image(browser, tmp_path):
    data = page_of({"one": classifier()}, Images((3, 16, 24), count=1), tmp_path / "report.html", shown=[0])
    assert data["models"][0]["layers"][0]["measures"]["r_out"]["std"] is None
    browser.open(tmp_path / "report.html")
    assert "deviation \u2013, 1 image" in browser.text('[data-told="measure"]')
    assert browser.text('[data-told="says-rc_half"]').endswith("on 1 image: too few to say more.")
    browser.check_quiet()


def test_a_page_of_a_users_own_model(browser, tmp_path):
    model = ImageClassifier(Own(), dict(type="LinearHead", num_classes=5)).eval()
    data = page_of({"mine": model}, Images((3, 16, 24), labels=False), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    (entry,) = data["models"]
    assert entry["undefined"].keys() == {"attention", "cls", "subspaces", "labels"}
    for section in ("look", "directions"):
        assert nothings(browser, section)[0] == "Not defined for mine: see its line at the top."
    assert "its layout does not define which tokens are patches" in browser.text("#models")
    assert "The data has no labels (Images, test)." in browser.text("#models")
    assert len(browser.texts('[data-told="strongest"] li')) > 0
    assert set(entry["layers"][0]["measures"]) == {"sparsity", "r_out"}
    browser.check_quiet()


def test_the_best_head_is_told_where_the_truth_is_known(browser, tmp_path):
    dataset, truth = Images((3, 16, 24)), torch.zeros(16, 24, dtype=torch.long)
    truth[:, 8:] = 3
    data = collect(
        [ReportModel("one", classifier())],
        [data_of(dataset, ground_truth=lambda position: truth if position == 1 else None)],
        ReportSettings(list(range(9)), [0, 1]),
        say=lambda _: None,
    )
    (tmp_path / "report.html").write_text(make_page({"title": "", "run": RUN, **data}, "best"))
    browser.open(tmp_path / "report.html", "#image=2")
    (best,) = data["models"][0]["layers"][1]["looks"]["best"][1]
    told = re.search(r"class 3: head (\d), IoU ([\d.]+)\.$", browser.text('#segments [data-told="best"]'))
    assert (int(told[1]) - 1, float(told[2])) == (best["head"], pytest.approx(best["iou"], rel=1e-3))
    browser.click('[data-key="image-0"]')
    assert browser.texts('#segments [data-told="best"]') == []
    browser.check_quiet()


def test_a_page_of_a_model_without_classes(browser, tmp_path):
    torch.manual_seed(0)
    backbone = dict(type="CRATEMAE", arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=(16, 24), patch_size=8)
    model = MODELS.build(dict(type="MaskedAutoencoder", backbone=backbone)).eval()
    page_of({"mae": model}, Images((3, 16, 24)), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert "MaskedAutoencoder predicts no classes." in browser.text("#models")
    assert len(nothings(browser, "look")) == 1
    browser.check_quiet()


class Masked(Images):
    """Images whose labels are masks: 13 columns of class 2, then class 0, and one void row."""

    def __getitem__(self, index):
        mask = torch.zeros(16, 24, dtype=torch.uint8)
        mask[:, :13], mask[3] = 2, 255
        return super().__getitem__(index) | {"labels": mask}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("decoder", ["LinearDecoder", "DEPICTSA"])
def test_a_page_of_a_segmentation_shows_masks_and_the_maps_of_class_tokens(browser, tmp_path, decoder, known):
    torch.manual_seed(0)
    sizes = {} if decoder == "LinearDecoder" else dict(depth=1, num_heads=2, head_dim=4)
    model = MODELS.build(
        dict(
            type="Segmentation",
            backbone=dict(type="CRATE", arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=(16, 24), patch_size=8),
            head=dict(type=decoder, num_classes=3, **sizes),
        )
    ).eval()
    dataset = (Masked if known else Images)((3, 16, 24))
    page_of({"scenes": model}, dataset, tmp_path / "report.html", shown=[0])
    browser.open(tmp_path / "report.html")
    sample = dataset[0]
    with torch.no_grad():
        logits = model(model.data_preprocessor({"inputs": sample["inputs"][None]})["inputs"])
    predicted, image = logits.argmax(1)[0].numpy(), sample["inputs"].permute(1, 2, 0).numpy()
    expected = {"predicted masks": overlay(image, predicted)}
    expected |= {"ground truth": overlay(image, sample["labels"].numpy())} if known else {}
    shown = {i.get_attribute("alt"): i for i in browser.driver.find_elements("css selector", "#look .answers img")}
    for name, pixels in expected.items():
        address = shown[name].get_attribute("src")
        picture = Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    maps = [name for name in shown if name.startswith("class token of")]
    assert len(shown) == len(expected) + len(maps)
    captions = maps if decoder == "DEPICTSA" else browser.texts('#look .answers [data-told="iou"]')
    if not known:
        assert not any("IoU" in text for text in captions)
        return
    truth = sample["labels"].numpy()
    for label, text in zip((2, 0), captions, strict=True):  # the class with the most pixels first
        ours = (predicted == label) & (truth != 255)
        iou = ((truth == label) & ours).sum() / ((truth == label) | ours).sum()
        assert re.fullmatch(rf"(class token of )?{'abc'[label]}, IoU [\d.]+", text)
        assert float(text.split()[-1]) == pytest.approx(iou, abs=5e-3)
    browser.check_quiet()


def test_what_the_class_tokens_map_shows_is_told_by_the_heads_pooling(browser, tmp_path):
    models = {pool: classifier() for pool in ("unknown", "cls", "mean")}
    models["mean"].head.pool = "mean"
    del models["unknown"].head.pool
    models["unknown"].head.pooled = lambda tokens: tokens[:, 0]
    page_of(models, Images((3, 16, 24)), tmp_path / "report.html", weights_bytes=0)
    browser.open(tmp_path / "report.html", "#token=cls&a=2&b=3")
    cls, mean = browser.texts('[data-told="pool"]')
    assert cls == "The head predicts from the class token, so this map explains the prediction."
    assert mean.startswith("The head predicts from the mean of all tokens, so this map does not explain")
    browser.choose("#b-choice", "unknown")
    assert browser.texts('#look [data-model="0"] [data-told="pool"]') == []
    browser.check_quiet()


def test_attention_between_blocks_of_patches(browser, tmp_path, monkeypatch):
    """2 x 3 patches in blocks of 2 x 2: the second has one column, and its weight is divided by two patches."""
    budget = SimpleNamespace(side=2, bits=16)
    monkeypatch.setattr("crate_mm.extras.report.collect.AttentionBudget", lambda grids, max_bytes: budget)
    data = page_of({"one": classifier()}, Images((3, 16, 24)), tmp_path / "report.html", weights_bytes=0)
    attention = unpack(data["models"][0]["layers"][1]["looks"]["attention"])[0, 0]
    browser.open(tmp_path / "report.html", "#image=1&y=0.1&x=0.1")
    browser.click('[data-key="attention-0"]', x=0.9)
    canvas = browser.run("return [...document.querySelector('[data-key=\"attention-0\"]').attention]")
    assert canvas == pytest.approx(attention[2].tolist(), abs=1e-6)
    sentence = browser.text('#look [data-told="attention"]')
    assert "the block of 2 \u00d7 2 patches at row 1 to 2, column 3 takes" in sentence
    assert browser.text("#look .reading").startswith("row 1 to 2, column 3: ")
    times = float(browser.text("#look .reading").split(": ")[1].split(" times")[0])
    assert times == pytest.approx(7 * attention[2, 2] / 2, rel=1e-3)
    said = re.search(r"takes most from (.+?) \(([\d.]+) times uniform\)", sentence)
    names = ["the class token", "the block of 2 \u00d7 2 patches at row 1 to 2, column 1 to 2", "itself"]
    shares = 7 * attention[2] / [1, 4, 2]  # of a token in the block
    assert float(said[2]) == pytest.approx(shares[names.index(said[1])], rel=5e-3)
    browser.check_quiet()


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """A page of eight models of other depths, heads and families: the last runs in the page."""
    models = {
        "small": classifier(),
        "deep": classifier(depth=4, heads=6),
        "vit": classifier("ViT"),
        "t": classifier("ToST"),
        **{f"more {i}": classifier() for i in range(3)},
        "runs": classifier(),
    }
    file = tmp_path_factory.mktemp("unlike") / "report.html"
    page_of(models, Images((3, 16, 24)), file)
    return file


def test_models_side_by_side(browser, unlike):
    """Of other depths and heads: what one lacks is said, and the other is shown."""
    browser.open(unlike, "#a=1&b=2&layer=4&head=5")
    for section in ("look", "directions", "subspaces", "segments"):
        assert nothings(browser, section) == ["Not defined here. small has 2 layers."]
    assert len(browser.run("return document.querySelector('[data-key=\"attention-1\"]').attention")) == 7
    browser.press("#layer-choice", "\ue012", "\ue012")
    assert nothings(browser, "look") == ["Not defined here. This model has 3 heads."]
    assert browser.run("return document.querySelector('#look canvas[aria-label^=\"A \u2212 B\"]')") is None
    browser.choose("#b-choice", "vit")  # of two layers and three heads: the choice follows
    assert browser.text("#layer-number") == "2 of 2"
    assert browser.run("return document.getElementById('head-choice').value") == "2"
    assert "Not defined for vit: Rᶜ after compression" in " ".join(browser.texts('[data-told="lacking"]'))
    browser.choose("#a-choice", "vit")  # A and B change places
    assert browser.run("return ['a', 'b'].map((m) => document.getElementById(`${m}-choice`).value)") == ["2", "0"]
    browser.click('[data-key="run-other"]')
    assert browser.run("return document.getElementById('a-choice').value") == "7"
    browser.choose("#b-choice", "no other model")
    assert nothings(browser, "compare") == ["Not defined here. Choose another model as B."]
    browser.check_quiet()


@pytest.mark.parametrize(("width", "most"), [(1400, 6500), (400, 9000)])
def test_the_page_is_no_longer_with_eight_models(browser, unlike, width, most):
    browser.view(width)
    browser.open(unlike)
    assert browser.run("return document.documentElement.scrollHeight") <= most
    browser.view()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_fails_leaves_the_others(browser, unlike, section):
    fault = f"""
        const whole = Element.prototype.replaceChildren;
        let broken = false;
        Element.prototype.replaceChildren = function (...children) {{
          if (!broken && this.matches("#{section} > .body")) {{
            broken = true;
            throw new Error("a fault");
          }}
          return whole.apply(this, children);
        }};
    """
    command = browser.driver.execute_cdp_cmd
    added = command("Page.addScriptToEvaluateOnNewDocument", {"source": fault})
    browser.open(unlike)
    command("Page.removeScriptToEvaluateOnNewDocument", added)
    said = "This section could not be drawn (a fault). The others are not affected."
    for name in SECTIONS:
        assert (browser.text(f"#{name} > .body") == said) == (name == section)
    assert len(browser.errors()) == 1
    browser.press("#layer-choice", "\ue012")
    assert (browser.text(f"#{section} > .body") == said) == (section == "run")  # which has nothing to choose
    browser.check_quiet()


def test_damaged_weights_leave_what_does_not_need_them(browser, tmp_path):
    data = page_of({"one": classifier()}, Images((3, 16, 24)), tmp_path / "report.html")
    data["models"][0]["running"]["gzip"] = "no base64"
    (tmp_path / "report.html").write_text(make_page(data, "title"))
    browser.open(tmp_path / "report.html")
    failed = {name for name in SECTIONS if "could not be drawn" in browser.text(f"#{name} > .body")}
    assert failed == {"layer", "draw", "look", "directions", "segments"}


def test_hostile_names_stay_names(browser, tmp_path):
    models = {name: classifier(depth=1) for name in HOSTILE}
    file = tmp_path / "report.html"
    data = page_of(models, Images((3, 16, 24), names=HOSTILE), file, class_names=list(HOSTILE), shown=[0, 1, 2, 3, 4])
    file.write_text(make_page(data, HOSTILE[2]))
    text = file.read_text()  # without a browser: its one JSON is all its data, and no name of it is markup
    (inside,) = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.S)
    assert json.loads(inside) == json.loads(json.dumps(data))
    assert text.count("<script") == text.count("</script") == 2
    assert "window.broken = 1<" not in text
    browser.open(file, "#a=1&b=2")
    for i in range(5):
        browser.click(f'[data-key="image-{i}"]')
        assert browser.text("#look .title strong") == data["images"][i]["name"]
    assert data["images"][0]["name"] == "<script>window.broken = 1<_script>"
    labels = [model["label"] for model in data["models"]]
    assert browser.texts("#a-choice option") == labels
    assert [text.partition(" CRATE, ")[0] for text in browser.texts("#models li")] == labels
    assert browser.text("h1") == browser.driver.title == HOSTILE[2]
    assert HOSTILE[0] in browser.texts('#look [data-model="0"] [data-told="classes"] span')
    assert "\\u202e" in data["images"][4]["name"]
    assert browser.run("return window.broken === undefined && document.querySelectorAll('script').length") == 2
    assert browser.run("return document.querySelectorAll('img[onerror], [onload]').length") == 0
    browser.check_quiet()


ODD = ["__proto__", "constructor", "length", "toString", "a.b[0]", 'it\'s "q" \\ \\n back', "null", "twice", "twice"]


def test_names_that_mean_something_to_javascript_stay_names(browser, tmp_path, monkeypatch):
    own, models = ODD[:6], ODD[:8]
    for name in own:
        monkeypatch.setitem(MEASURES, name, MEASURES["r_out"]._replace(name=name, meaning=f"meaning of {name}"))
    file, images = tmp_path / "report.html", Images((3, 16, 24), names=ODD, classes=len(ODD))
    page_of({name: classifier(depth=1) for name in models}, images, file, class_names=ODD)
    browser.open(file)
    assert [text.partition(" CRATE, ")[0] for text in browser.texts("#models li")] == models
    assert set(own) < set(browser.texts(".measure > button"))
    # Classes of one name stay two.
    assert browser.texts('#directions [data-told="class-shares"] li > span:first-child') == ODD
    assert browser.texts("[data-key='order'] option")[2:] == [f"used most by class {name}" for name in ODD]
    for i, name in enumerate(models):
        browser.choose("#a-choice", name)
        assert browser.texts("#objective thead th")[:2] == ["layer", name]
        assert browser.run("return document.getElementById('a-choice').value") == str(i)
    for name in own:
        buttons = "[...document.querySelectorAll('.measure > button')]"
        browser.run(f"{buttons}.find((button) => button.textContent === arguments[0]).click()", name)
        browser.wait()
        assert browser.text("#objective summary h3") == f"{name}: layer 1"
        assert browser.text("#objective .equation") == f"meaning of {name}"
    for name, chosen in (("__proto__", "__proto__"), ("valueOf", "Rᶜ after compression")):
        browser.open(file, f"#measure={name}")
        assert browser.text('.measure > [aria-pressed="true"]') == chosen
    browser.check_quiet()


def test_the_policy_lets_nothing_out_and_no_other_script_in(browser, unlike):
    browser.open(unlike)
    browser.check_quiet()
    tries = "fetch('https://example.org/').catch(() => {}); new Image().src = 'https://example.org/x.png';"
    browser.run(
        tries
        + "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s);"
    )
    refused = browser.errors()
    assert len(refused) >= 3
    assert all("Content Security Policy" in message for message in refused)
    assert browser.run("return window.broken") is None


SIDEWAYS = ".strip, .small, .swipe, .columns, .scroll, .list, .end, .equation, pre, .hidden, select"


@pytest.mark.parametrize("width", [400, 320, 700])  # 700: 1,400 pixels at 200 %
def test_a_narrow_page_scrolls_sideways_only_where_it_says_so(browser, unlike, width):
    browser.view(width, dark=True)
    browser.open(unlike)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    wide = browser.run(
        "const cut = (e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible';"
        "return [...document.querySelectorAll('main *')].filter((e) => e.clientWidth && cut(e) && "
        "!e.matches(arguments[0])).map((e) => e.outerHTML.slice(0, 99))",
        SIDEWAYS,
    )
    assert wide == []
    if width < 640:
        small = browser.run(
            "return [...document.querySelectorAll('button:not(.term), select, summary')].map((e) => "
            "[e.offsetHeight, e.outerHTML.slice(0, 99)]).filter(([height]) => height && height < 40)"
        )
        assert small == []
    browser.check_quiet()
    browser.view()


def test_print_shows_all(browser, unlike):
    browser.open(unlike)
    browser.view(800, dark=True, media="print")
    browser.wait()
    assert browser.run("return document.documentElement.scrollWidth") <= 800
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("return [...document.querySelectorAll('details')].every((e) => e.open)")
    shown = "return [...document.querySelectorAll('.stage')].map((e) => getComputedStyle(e).display)"
    assert browser.run(shown) == ["block"] * 8
    browser.view()
    closed = "return [...document.querySelectorAll('details')].some((e) => !e.open)"
    for _ in range(40):  # the page hears of it a little later
        if browser.run(closed):
            break
        time.sleep(0.05)
    assert browser.run(closed)


def asset_text(name):
    return (resources.files("crate_mm.extras.report") / "assets" / name).read_text(encoding="utf-8")


def contrast(a, b):
    """Of two colors, as WCAG defines it."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_and_lines_stand_out(theme):
    blocks = re.findall(r":root \{(.*?)\}", asset_text("style.css"), re.S)
    light, dark, printed = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks)
    colors = {"light": light, "dark": light | dark, "print": light | printed}[theme]
    for ground in ("page", "panel"):
        for text in ("ink", "soft"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for text in ("accent", "right", "wrong", "focus"):
        assert contrast(colors[text], colors["page"]) >= 4.5, text
    for line in ("a", "b", "untrained", "other", "edge", "focus"):
        assert contrast(colors[line], colors["page"]) >= 3, line
    script = asset_text("colour.js")
    stops = ["#" + stop for stop in re.search(r'STOPS = "(.*?)"', script)[1].split()]
    signs = re.findall(r"(?:NEGATIVE|POSITIVE) = \[(\d+), (\d+), (\d+)\]", script)
    assert len(signs) == 2
    least = [round((int(stops[3][i : i + 2], 16) + int(stops[4][i : i + 2], 16)) / 2) for i in (1, 3, 5)]
    for color in (*signs, least):  # least: the smallest entry of a code, at 0.35
        assert contrast("#{:02x}{:02x}{:02x}".format(*map(int, color)), colors["ground"]) >= 3
