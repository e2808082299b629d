"""A page of every kind of model and of hostile names: it opens without a complaint and says what is not defined."""

import json
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from crate_mm.analysis.table import MEASURES
from crate_mm.extras.report.collect import ReportDataset, ReportModel, ReportSettings, collect
from crate_mm.extras.report.page import make_page
from crate_mm.models import Backbone, ImageClassifier
from crate_mm.models.layers import Block, Compression, Sparsification
from crate_mm.registry import MODELS, head_for

pytestmark = pytest.mark.slow  # a browser, and the charts' script
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
    """Write the page of models by label; return its data."""
    total = list(range(len(dataset)))
    looked = [ReportModel(label, model, class_names=class_names or list("abcde")) for label, model in models.items()]
    wanted = ReportSettings(measured or total, shown or total[:3], **more)
    run = {"command": "", "date": "", "data": [], "measured": 0, "of": 0, "settings": {}, "versions": {}, "device": ""}
    data = {"title": "a page", "run": run, **collect(looked, [data_of(dataset)], wanted, say=lambda _: None)}
    file.write_text(make_page(data, data["title"]))
    return data


def nothings(browser, section):
    return browser.texts(f"#{section} .none")


FORMS = {
    "not square patches": (dict(size=(16, 24), patch_size=(8, 4)), {}),
    "one layer and head, gray": (dict(depth=1, heads=1, channels=1), {}),
    "24 layers": (dict(depth=24), {}),
    "CRATEMAE": (dict(kind="CRATEMAE"), {}),
    "ViT": (dict(kind="ViT"), {"code": "ViT has no sparse code", "subspaces": "ViT has no subspaces"}),
    "alpha": (dict(kind="CRATEAlpha"), {}),
    "ToST": (
        dict(kind="ToST"),
        {
            "look": "ToST has no attention map: its TSSA computes no attention matrix.",
            "code": "ToST has no sparse code",
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
    browser.open(tmp_path / "report.html", f"#layer={len(model.backbone.blocks)}&head=1&image=3")
    for section in ("look", "code", "subspaces", "segments"):
        said = nothings(browser, section)
        if section in lacking:
            assert said
            assert all(text.startswith(f"Not defined here. {lacking[section]}") for text in said)
        else:
            assert said == []
    (told,) = data["models"]
    assert len(told["layers"]) == len(model.backbone.blocks)
    assert browser.text("#layer-number") == f"{len(told['layers'])} of {len(told['layers'])}"
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.check_quiet()


def test_a_page_of_one_image(browser, tmp_path):
    data = page_of({"one": classifier()}, Images((3, 16, 24), count=1), tmp_path / "report.html", shown=[0])
    assert data["models"][0]["layers"][0]["measures"]["r_out"]["std"] is None
    browser.open(tmp_path / "report.html")
    assert "deviation \u2013, 1 images" in browser.text('[data-told="measure"]')
    browser.check_quiet()


def test_a_page_of_a_users_own_model(browser, tmp_path):
    model = ImageClassifier(Own(), dict(type="LinearHead", num_classes=5)).eval()
    data = page_of({"mine": model}, Images((3, 16, 24), labels=False), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    (told,) = data["models"]
    assert told["undefined"].keys() == {"attention", "cls", "subspaces", "pca", "labels"}
    assert "its layout does not define which tokens are patches" in nothings(browser, "look")[0]
    assert nothings(browser, "code") == ["Not defined here. The data has no labels (Images, test)."]
    assert len(browser.texts('[data-told="direction"] li')) > 0
    assert set(told["layers"][0]["measures"]) == {"sparsity", "r_out"}
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
    run = {"command": "", "date": "", "data": [], "measured": 0, "of": 0, "settings": {}, "versions": {}, "device": ""}
    (tmp_path / "report.html").write_text(make_page({"title": "", "run": run, **data}, "best"))
    browser.open(tmp_path / "report.html", "#image=2")
    (best,) = data["models"][0]["layers"][0]["looks"]["best"][1]
    told = re.search(r"class 3: head (\d), IoU ([\d.]+)\.$", browser.text('#segments [data-told="best"]'))
    assert (int(told[1]) - 1, float(told[2])) == (best["head"], pytest.approx(best["iou"], rel=1e-3))
    browser.click('[data-key="image-0"]')
    assert browser.texts('#segments [data-told="best"]') == []
    browser.check_quiet()


def test_a_page_of_a_masked_autoencoder(browser, tmp_path):
    torch.manual_seed(0)
    backbone = dict(type="CRATEMAE", arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=(16, 24), patch_size=8)
    model = MODELS.build(dict(type="MaskedAutoencoder", backbone=backbone)).eval()
    page_of({"mae": model}, Images((3, 16, 24)), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert nothings(browser, "look") == ["Not defined here. MaskedAutoencoder predicts no classes."]
    browser.check_quiet()


def test_what_the_class_tokens_map_shows_is_told_by_the_heads_pooling(browser, tmp_path):
    models = {pool: classifier() for pool in ("cls", "mean", "unknown")}
    models["mean"].head.pool = "mean"
    del models["unknown"].head.pool
    models["unknown"].head.pooled = lambda tokens: tokens[:, 0]
    page_of(models, Images((3, 16, 24)), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert browser.run("return document.querySelectorAll('[data-key^=\"cls-\"]').length") == 3
    cls, mean = browser.texts('[data-told="pool"]')
    assert cls == "The head predicts from the class token, so this map explains the prediction."
    assert mean.startswith("The head predicts from the mean of all tokens, so this map does not explain")
    assert browser.texts('#look [data-model="2"] [data-told="pool"]') == []
    assert "explain" not in browser.text("#look .intro")
    browser.check_quiet()


def test_models_side_by_side(browser, tmp_path):
    """Of other depths and heads: what one lacks is said, and the other is shown."""
    models = {
        "small": classifier(),
        "deep": classifier(depth=4, heads=6),
        "vit": classifier("ViT"),
        "t": classifier("ToST"),
    }
    page_of(models, Images((3, 16, 24)), tmp_path / "report.html")
    browser.open(tmp_path / "report.html", "#layer=4&head=5")
    assert nothings(browser, "look").count("Not defined here. This model has 2 layers.") == 3
    assert len(browser.run("return document.querySelector('[data-key=\"attention-1\"]').attention")) == 7
    browser.press("#layer-choice", "\ue012", "\ue012")
    assert "Not defined here. This model has 3 heads." in nothings(browser, "look")
    browser.click("#models li:nth-child(1) input")
    assert browser.run("return document.querySelector('#look [data-model=\"0\"]')") is None
    assert browser.run("return document.querySelector('#look [data-model=\"1\"]')") is not None
    assert "Not defined for vit." in browser.text("#objective .measure:nth-child(2)")
    browser.check_quiet()


def test_hostile_names_stay_names(browser, tmp_path):
    models = {name: classifier(depth=1) for name in HOSTILE}
    file = tmp_path / "report.html"
    data = page_of(models, Images((3, 16, 24), names=HOSTILE), file, class_names=list(HOSTILE), shown=[0, 1, 2, 3, 4])
    file.write_text(make_page(data, HOSTILE[2]))
    browser.open(file)
    for i in range(5):
        browser.click(f'[data-key="image-{i}"]')
        assert browser.text("#look .title strong") == data["images"][i]["name"]
    assert data["images"][0]["name"] == "<script>window.broken = 1<_script>"
    assert browser.texts("#models label")[0].startswith(HOSTILE[0])
    assert browser.text("h1") == browser.driver.title == HOSTILE[2]
    assert HOSTILE[0] in browser.text('#look [data-model="0"] [data-told="classes"]')
    assert "\\u202e" in data["images"][4]["name"]
    assert browser.run("return window.broken === undefined && document.querySelectorAll('script').length") == 3
    assert browser.run("return document.querySelectorAll('img[onerror], [onload]').length") == 0
    browser.check_quiet()


ODD = ["__proto__", "constructor", "toString", "a.b[0]", 'it\'s "q" \\ \\n back', "null", "twice", "twice"]


def test_names_that_mean_something_to_javascript_and_vega_stay_names(browser, tmp_path, monkeypatch):
    measures, models = ODD[:5], ODD[:7]
    for name in measures:
        monkeypatch.setitem(MEASURES, name, MEASURES["r_out"]._replace(name=name, meaning=f"meaning of {name}"))
    file, images = tmp_path / "report.html", Images((3, 16, 24), names=ODD, classes=len(ODD))
    page_of({name: classifier(depth=1) for name in models}, images, file, class_names=ODD)
    browser.open(file)
    assert [text.partition(" CRATE, ")[0] for text in browser.texts("#models label > span:last-child")] == models
    assert set(measures) < set(browser.texts(".measure > button"))
    for section in ("code", "subspaces"):
        labels = browser.texts(f'#{section} [data-model="0"] .role-axis-label text')
        assert {name for name in ODD if name not in labels} == set(), section
        assert labels.count("twice") == 2 * (2 if section == "code" else 1)
    for name in measures:
        buttons = "[...document.querySelectorAll('.measure > button')]"
        browser.run(f"{buttons}.find((button) => button.textContent === arguments[0]).click()", name)
        browser.wait()
        assert browser.text("#objective .detail h3") == f"{name}: layer 1"
        assert browser.text("#objective .detail .equation") == f"meaning of {name}"
        assert browser.texts("#objective thead th") == ["layer", *models]
    for name, chosen in (("__proto__", "__proto__"), ("valueOf", "Rᶜ after compression")):
        browser.open(file, f"#measure={name}")
        assert browser.text('.measure > [aria-pressed="true"]') == chosen
    browser.check_quiet()


def test_a_section_that_fails_leaves_the_others(browser, tmp_path):
    file = tmp_path / "report.html"
    data = page_of({"one": classifier()}, Images((3, 16, 24)), file)
    data["models"][0]["layers"][0]["code"]["sorted_share"]["gzip"] = "no base64"
    file.write_text(make_page(data, "title"))
    browser.open(file)
    assert len(browser.errors()) == 1
    assert browser.text("#code .body").startswith("This section could not be drawn: ")
    for section in ("objective", "look", "subspaces", "segments", "run"):
        assert "could not be drawn" not in browser.text(f"#{section} .body")
        assert browser.run("return document.querySelector(arguments[0]).children.length", f"#{section} .body") > 1
    browser.press("#layer-choice", "\ue014")
    assert "Use of the atoms of layer 2" in browser.text("#code .body")
    browser.check_quiet()


def test_the_policy_lets_nothing_out_and_no_other_script_in(browser, tmp_path):
    page_of({"one": classifier(depth=1)}, Images((3, 16, 24)), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
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


def test_print_and_phone(browser, tmp_path):
    page_of({"one": classifier()}, Images((3, 16, 24)), tmp_path / "report.html")
    for size in (dict(width=390, dark=True), dict(width=1280, dark=True), dict(width=800, media="print")):
        browser.view(**size)
        browser.open(tmp_path / "report.html")
        assert browser.run("return document.documentElement.scrollWidth") <= size["width"]
        background = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if "media" in size else "rgb(21, 23, 27)")
        browser.check_quiet()
    browser.view()


def test_a_page_is_valid_without_a_browser(tmp_path):
    """Its one JSON is all its data, and no name of it is markup."""
    file = tmp_path / "report.html"
    data = page_of({HOSTILE[2]: classifier()}, Images((3, 16, 24), names=HOSTILE), file, class_names=list(HOSTILE))
    text = file.read_text()
    (inside,) = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.S)
    assert json.loads(inside) == json.loads(json.dumps(data))
    assert text.count("<script") == text.count("</script") == 3
    assert "window.broken = 1<" not in text
