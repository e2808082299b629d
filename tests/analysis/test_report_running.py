"""The model that runs in the page: its forward pass, its drawings, its changes and its sentences, in a real browser."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from crate_mm import get_model
from crate_mm.analysis import measures
from crate_mm.analysis.codes import zero_reasons
from crate_mm.analysis.taps import capture
from crate_mm.datasets import ClassificationDataset
from crate_mm.extras.report.collect import ReportDataset, ReportModel, ReportSettings, collect
from crate_mm.extras.report.page import make_page
from crate_mm.extras.report.running import rounded, running_model, why_not
from crate_mm.models import ImageClassifier

pytestmark = pytest.mark.slow  # a browser
RUN = dict(command="", date="", data=[], measured=0, of=0, settings={"eps_squared": 0.01}, versions={}, device="")
FORMS = {
    "one channel, class token": {},
    "three channels, tied output": dict(channels=3, compress=dict(type="MSSA", tied=True)),
    "one head, no output projection, mean": dict(heads=1, pool="mean"),
    "no LayerNorm in the head": dict(norm=False),
}


def classifier(channels=1, heads=4, pool="cls", norm=True, **backbone):
    torch.manual_seed(0)
    arch = dict(embed_dim=96, depth=3, num_heads=heads)
    return ImageClassifier(
        dict(type="CRATE", arch=arch, img_size=32, patch_size=8, in_channels=channels, **backbone),
        dict(type="LinearHead", num_classes=10, pool=pool, norm=norm),
        dict(mean=(0.3,) * channels, std=(0.37,) * channels),
        label_smoothing=0.1,
    ).eval()


class Noise(torch.utils.data.Dataset):
    def __init__(self, channels, count=10):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (count, channels, 32, 32), dtype=torch.uint8, generator=generator)
        self.classes = list("0123456789")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"inputs": self.images[i], "labels": i % 10, "sample_idx": i}


def page_of(models, dataset, file, **settings):
    data = ReportDataset("images", dataset, lambda positions: DataLoader(Subset(dataset, positions), 5))
    positions = list(range(min(len(dataset), 10)))
    collected = collect(models, [data], ReportSettings(positions, positions, **settings), say=lambda _: None)
    file.write_text(make_page({"title": "running", "run": RUN, **collected}, "running"))
    return collected


def in_page(browser, body, *args):
    """Run a script in the page. ``net`` is the running model; ``image(i)`` returns the bytes of a shown image."""
    setup = """
        const r = window.crateReport, args = [...arguments], done = arguments[arguments.length - 1];
        (async () => {
          const model = r.report.models.find((m) => m.running), net = await r.loadNet(model.running);
          const { inputs } = r.report.datas[model.data], size = inputs.shape.slice(1).reduce((a, b) => a * b);
          const all = new Uint8Array(await r.gunzip(inputs.gzip));
          const image = (i) => all.subarray(i * size, (i + 1) * size);
    """
    script = f"{setup}{body}}})().then(done, (error) => done(String(error)))"
    return browser.driver.execute_async_script(script, *args)


@pytest.mark.parametrize("dtype", ["half", "byte"])
@pytest.mark.parametrize("form", FORMS)
def test_its_forward_pass_is_that_of_pytorch(browser, tmp_path, form, dtype):
    """Logits, attention, Z^{l+1/2}, Z^{l+1}, R and R^c of ten images, with the same rounded weights."""
    model, dataset = classifier(**FORMS[form]), Noise(FORMS[form].get("channels", 1))
    whole = len(running_model(model, 1e9, dataset.images)["gzip"])
    limit = 1e9 if dtype == "half" else whole - 1
    data = page_of([ReportModel("one", model)], dataset, tmp_path / "report.html", weights_bytes=limit)
    assert data["models"][0]["running"]["dtype"] == dtype
    assert data["models"][0]["running"]["checked"]["of"] == 10
    browser.open(tmp_path / "report.html")
    script = (
        "return [...Array(10).keys()].map((i) => { const f = r.forward(net, image(i)); return {logits: [...f.logits], "
        "layers: f.layers.map((s, l) => ({half: [...s.half], code: [...s.code], attention: [...s.attention], "
        "rates: r.layerRates(net, net.layers[l], s, 0.01), R: r.codingRate(s.code, net.tokens, 0, net.width, 0.01), "
        "reasons: r.reasons(s)}))}; });"
    )
    found = in_page(browser, script)
    copy = rounded(model, dtype)
    with torch.no_grad(), capture(copy, ("tap_in", "tap_w", "tap_half", "tap_out")) as seen:
        logits = copy(copy.data_preprocessor.normalize(dataset.images))
        np.testing.assert_allclose([f["logits"] for f in found], logits, atol=1e-4)
        for l, block in enumerate(copy.backbone.blocks):  # noqa: E741
            for name, tensor in (("half", seen["tap_half"][l]), ("code", seen["tap_out"][l])):
                np.testing.assert_allclose([f["layers"][l][name] for f in found], tensor.flatten(1), atol=1e-4)
            attention = block.attention(seen["tap_w"][l]).flatten(1)
            np.testing.assert_allclose([f["layers"][l]["attention"] for f in found], attention, atol=1e-4)
            U, K = block.subspaces()
            rates = {
                "normed": measures.subspace_coding_rate(seen["tap_w"][l], K, 0.01, True),
                "before": measures.subspace_coding_rate(seen["tap_in"][l] @ U, K, 0.01, True),
                "after": measures.subspace_coding_rate(seen["tap_half"][l] @ U, K, 0.01, True),
            }
            for name, values in rates.items():
                np.testing.assert_allclose([f["layers"][l]["rates"][name] for f in found], values, atol=1e-3)
            whole_rate = measures.coding_rate(seen["tap_out"][l], 0.01, True)
            np.testing.assert_allclose([f["layers"][l]["R"] for f in found], whole_rate, atol=1e-3)
            x, D = block.norm_sparsify(seen["tap_half"][l]), block.sparsify.dictionary
            counts = [zero_reasons(a, a + 0.1 * (a - a @ D.mT) @ D, z) for a, z in zip(x, seen["tap_out"][l])]
            left = [f["layers"][l]["reasons"]["left"] for f in found]
            np.testing.assert_allclose(left, [c[4] / z.numel() for c, z in zip(counts, seen["tap_out"][l])], atol=1e-3)
            for i, name in enumerate(("negative", "dictionary", "threshold")):
                shares = [c[i] / c[:3].sum() for c in counts]
                np.testing.assert_allclose([f["layers"][l]["reasons"][name] for f in found], shares, atol=2e-3)
    browser.check_quiet()


def test_a_head_a_direction_and_lambda_are_changed_exactly(browser, tmp_path):
    model, dataset = classifier(), Noise(1)
    page_of([ReportModel("one", model)], dataset, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    script = (
        "const of = (c) => [...r.forward(net, image(0), c).logits];"
        "return [of({heads: new Map([[1, new Set([2])]])}), of({heads: new Map([[0, new Set([0, 1, 2, 3])]])}), "
        "of({directions: new Map([[1, new Set([7])]])}), of({lambda: 1})];"
    )
    found = in_page(browser, script)
    copy = rounded(model, "half")
    blocks, x = copy.backbone.blocks, copy.data_preprocessor.normalize(dataset.images[:1])

    def logits(hooked=None, hook=None):
        handle = hooked.register_forward_hook(hook) if hooked else None
        with torch.no_grad():
            out = copy(x)[0]
        if handle:
            handle.remove()
        return out

    def without_heads(block, heads):
        def hook(module, args):
            mixed = args[0].clone()
            for k in heads:
                mixed[..., 24 * k : 24 * (k + 1)] = 0
            return (mixed,)

        handle = block.compress.out.register_forward_pre_hook(hook)
        out = logits()
        handle.remove()
        return out

    def without_direction(module, args, code):
        code = code.clone()
        code[..., 7] = 0
        return code

    np.testing.assert_allclose(found[0], without_heads(blocks[1], [2]), atol=1e-4)
    np.testing.assert_allclose(found[1], without_heads(blocks[0], range(4)), atol=1e-4)
    np.testing.assert_allclose(found[2], logits(blocks[1].sparsify, without_direction), atol=1e-4)
    for block in blocks:
        block.sparsify.lambd = 1.0
    np.testing.assert_allclose(found[3], logits(), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(residual=True), "The page can run only CRATE's own layers: CRATE shows"),
        (dict(sparsify=dict(type="MLP")), "The page can run only CRATE's own layers"),
        (dict(channels=2), "The page can run only CRATE's own layers"),
    ],
)
def test_a_model_of_other_parts_does_not_run(change, reason):
    assert why_not(classifier(**change)).startswith(reason)
    assert why_not(classifier()) is None


def test_a_model_that_does_not_fit_or_is_large_does_not_run(tmp_path):
    model = classifier()
    assert running_model(model, 1000, Noise(1).images) is None
    arch = dict(embed_dim=768, depth=12, num_heads=12)
    with torch.device("meta"):
        base = ImageClassifier(dict(type="CRATE", arch=arch, img_size=224), dict(type="LinearHead", num_classes=10))
    assert "more than 60 million multiply-adds" in why_not(base)


class Digits8(ClassificationDataset):
    """The digits enlarged to 32 x 32, as ``configs/crate_mini_digits.py`` prepares them."""

    def __init__(self):
        super().__init__(dict(type="Digits", split="test"), [dict(type="Resize", size=(32, 32))])


def test_a_drawing_is_prepared_as_the_data_are(browser, tmp_path):
    """Enlarged bytes equal the data's; odd drawings are finite; the model's answers follow from them."""
    dataset = Digits8()
    data = page_of(
        [ReportModel("one", classifier(), class_names=list("0123456789"))], dataset, tmp_path / "report.html"
    )
    assert data["datas"][0]["drawing"] == {"kind": "digits8", "side": 8, "times": 4}
    browser.open(tmp_path / "report.html")
    originals = [np.array(dataset.source[i][0]).flatten().tolist() for i in range(10)]
    enlarged = in_page(browser, "return args[0].map((b) => [...r.enlarge(b, 8, 8, 4)]);", originals)
    assert enlarged == [dataset[i]["inputs"].flatten().tolist() for i in range(10)]
    inputs = in_page(browser, "return [...Array(10).keys()].map((i) => [...image(i)]);")
    assert inputs == enlarged
    odd = in_page(
        browser,
        "const full = [...Array(64).keys()].map((i) => [[0, i / 63], [1, i / 63]]);"
        "return [[], [[[0.5, 0.5]]], full].map((s) => { const b = r.digits8(s); "
        "return [[...b], [...r.forward(net, r.enlarge(b, 8, 8, 4)).scores]]; });",
    )
    for (pixels, scores), total in zip(odd, (0, 256, None)):
        assert np.isfinite(scores).all()
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        assert total is None or sum(pixels) == total  # a dot of 5 cells, in the middle: 4 blocks of 4 cells
    assert min(odd[2][0]) > 0


def pen_strokes(image):
    """Strokes through the pixels of an 8 x 8 digit that are at least half inked, in shares of its sides.

    Each connected part is one stroke: a walk over its maximum spanning tree.
    """
    ink = {(y, x): image[y, x] for y, x in zip(*np.nonzero(image >= 128))}
    strokes, rest = [], set(ink)

    def walk(pixel, tree):
        return [pixel, *(step for child in tree[pixel] for step in (*walk(child, tree), pixel))]

    while rest:
        first = max(rest, key=ink.get)
        tree = {first: []}
        rest.remove(first)
        while True:
            near = [(a, b) for a in tree for b in rest if max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1]
            if not near:
                break
            # The most ink; of equal neighbors, one beside or below rather than across.
            a, b = max(near, key=lambda ab: (min(map(ink.get, ab)), -sum(abs(p - q) for p, q in zip(*ab))))
            tree[a].append(b)
            tree[b] = []
            rest.remove(b)
        strokes.append([((x + 0.5) / 8, (y + 0.5) / 8) for y, x in walk(first, tree)])
    return strokes


# Draw strokes on the pad by its own events: the mouse of Selenium takes half a minute for ten digits.
DRAW = """
    const [pad, strokes] = arguments, { left, top, width } = pad.getBoundingClientRect();
    const send = (kind, [x, y]) => pad.dispatchEvent(
      new PointerEvent(kind, { clientX: left + x * width, clientY: top + y * width }));
    pad.setPointerCapture = () => {};
    document.querySelector('[data-key="clear"]').click();
    for (const [first, ...others] of strokes) {
      send("pointerdown", first);
      for (const point of others) send("pointermove", point);
      send("pointerup", first);
    }
"""


def test_ten_test_images_drawn_on_the_canvas_are_recognized(browser, tmp_path):
    """A test image of each digit, drawn on the pad, gets its label from the shipped model."""
    dataset = Digits8()
    model = get_model("crate_mini_digits", pretrained=True).eval()
    page_of([ReportModel("one", model, class_names=list("0123456789"))], dataset, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    labels = [dataset.source[i][1] for i in range(len(dataset))]
    answers = []
    for digit in range(10):
        image = np.array(dataset.source[labels.index(digit)][0])
        browser.run(DRAW, browser.find(".pad"), pen_strokes(image))
        browser.wait()
        answers.append(browser.text('[data-told="answer"]'))
    assert [answer.split("says ")[-1][0] for answer in answers] == list("0123456789")
    browser.check_quiet()


CELLS = "return [...document.querySelectorAll('.switches td > button')].map((b) => [b.dataset.key, b.textContent])"


def test_one_draws_and_changes_the_model(browser, tmp_path):
    """What is drawn, switched off and moved is what the forward pass is asked for, and the address keeps it."""
    dataset = Digits8()
    page_of([ReportModel("one", classifier(), class_names=list("0123456789"))], dataset, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    before = browser.run("return [...document.querySelector('.gets').bytes]")
    browser.run("window.scrollTo({top: document.querySelector('.pad').offsetTop - 100, behavior: 'instant'})")
    from selenium.webdriver import ActionChains

    pad = browser.find(".pad")
    ActionChains(browser.driver).move_to_element_with_offset(pad, -40, -100).click_and_hold().move_by_offset(
        80, 0
    ).move_by_offset(-60, 180).release().perform()
    browser.wait()
    assert "ink=" in browser.driver.current_url
    drawn = browser.run("return [...document.querySelector('.gets').bytes]")
    assert drawn != before
    answer = in_page(browser, "return [...r.forward(net, args[0]).scores];", drawn)
    best = max(range(10), key=answer.__getitem__)
    assert f"{best} (" in browser.text('[data-told="answer"]')
    without = (
        "const off = {heads: new Map([[1, new Set([2])]]), directions: new Map()};"
        "return [...r.forward(net, args[0], off).scores];"
    )
    points = 100 * (in_page(browser, without, drawn)[best] - answer[best])
    assert float(browser.text('[data-key="off-1-2"]').replace("\u2212", "-")) == pytest.approx(points, abs=0.051)
    matters = re.match(r"Here head (\d) of layer (\d) matters most: ", browser.text('[data-told="matters"]'))
    cells = {key: abs(float(text.replace("\u2212", "-"))) for key, text in browser.run(CELLS)}
    most = f"off-{int(matters[2]) - 1}-{int(matters[1]) - 1}" if matters else max(cells, key=cells.get)
    assert cells[most] == max(cells.values())
    assert bool(matters) == (cells[most] >= 0.5)
    browser.click('[data-key="off-1-2"]')
    assert browser.text('[data-told="changed"]').startswith("Without head 3 of layer 2, ")
    assert "of the 10 images shown" in browser.text('[data-told="changed"]').lower()
    url = browser.driver.current_url
    browser.open(tmp_path / "report.html", "#" + url.split("#")[1])
    assert browser.run("return [...document.querySelector('.gets').bytes]") == drawn
    assert browser.find('[data-key="off-1-2"]').get_attribute("aria-pressed") == "true"
    browser.click('[data-key="clear"]')
    assert browser.text('[data-told="answer"]').startswith("Nothing is drawn. An empty picture is ")
    browser.check_quiet()


def test_the_steps_of_a_layer(browser, tmp_path):
    """Each step's sentence has the numbers of the forward pass; keys and buttons walk through them."""
    model, dataset = classifier(), Noise(1)
    page_of([ReportModel("one", model)], dataset, tmp_path / "report.html")
    browser.open(tmp_path / "report.html", "#image=2&layer=2&head=1&token=cls&step=1")
    assert browser.text('[data-told="step"]') == "Step 1: The class token enters as 96 numbers."
    copy = rounded(model, "half")
    with torch.no_grad(), capture(copy, ("tap_w", "tap_out")) as seen:
        copy(copy.data_preprocessor.normalize(dataset.images[1:2]))
    row = copy.backbone.blocks[1].attention(seen["tap_w"][1])[0, 0, 0]
    browser.click('[data-key="forward"]')
    browser.click('[data-key="forward"]')
    times = float(browser.text('[data-told="step"]').split(": ")[-1].split(" times")[0])
    assert times == pytest.approx(17 * row.max().item(), rel=1e-2)
    browser.click('[data-key="stage-8"]')
    left = int((seen["tap_out"][1][0, 0] > 0).sum())
    assert browser.text('[data-told="step"]').startswith(f"Step 8: {left} numbers are left.")
    browser.click('[data-key="start"]')
    assert browser.text("#layer-number") == "1 of 3"
    browser.check_quiet()


def measure_data(rng, layers, level, slope, noise, count=100):
    """Statistics of a measure by layer: per-image values with a common part, as ``Spreads.data`` gives them."""
    values = level + slope * np.arange(layers)[:, None] + rng.normal(0, noise, (layers, count))
    stats = lambda x: {"mean": float(x.mean()), "std": float(x.std(ddof=1)), "count": count}  # noqa: E731
    return [
        {
            **stats(values[i]),
            "from_first": stats(values[i] - values[0]) if i else None,
            "from_previous": stats(values[i] - values[i - 1]) if i else None,
            "from_before": stats(slope + rng.normal(0, noise, count)),
        }
        for i in range(layers)
    ]


def test_no_sentence_contradicts_its_numbers(browser, tmp_path):
    """Two hundred random models: a verb is only said of a change that counts, and in its direction."""
    page_of([ReportModel("one", classifier())], Noise(1), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    rng, cases = np.random.default_rng(0), []
    names = ("rc_half", "rc_z", "rc_out", "sparsity", "r_out", "objective")
    for _ in range(200):
        layers = int(rng.integers(1, 13))
        slope, noise = float(rng.choice([-8, -3, -0.1, 0, 0.1, 3, 8])), float(rng.choice([0.1, 2, 10]))
        data = {name: measure_data(rng, layers, 120, slope, noise) for name in names}
        data["sparsity"] = measure_data(rng, layers, 0.5, slope / 100, noise / 100)
        rows = [{"measures": {name: data[name][i] for name in names}, "code": None} for i in range(layers)]
        cases.append({"label": "M", "layers": rows, "bounds": {}, "labelled": 10, "predicted": [1], "right": 5})
    script = """
        const { sentences: s } = window.crateReport, all = arguments[0];
        return all.map((m, i) => [s.rateSentence(m), s.entriesSentence(m), s.stepsSentence(m), s.wholeRateSentence(m),
          s.againstUntrained(m, all[(i + 1) % 200], "rc_half")]);
    """
    found = browser.run(script, cases)
    verbs = 0
    for case, (rate, entries, steps, whole, against), after in zip(cases, found, cases[1:] + cases[:1]):
        means = [layer["measures"]["rc_half"]["mean"] for layer in case["layers"]]
        if " R\u1d9c falls by " in rate:
            assert means[-1] < means[0] - 0.02 * means[0]
        if " R\u1d9c rises by " in rate:
            assert means[-1] > means[0] + 0.02 * means[0]
        if "does not change by more than" in rate:
            assert max(means) - min(means) < 0.02 * means[0]
        verbs += " R\u1d9c falls by " in rate or " R\u1d9c rises by " in rate
        shares = [layer["measures"]["sparsity"]["mean"] for layer in case["layers"]]
        if "fuller with depth" in entries:
            assert shares[-1] >= shares[0] + 0.01
        changes = [layer["measures"]["rc_half"]["from_before"] for layer in case["layers"]]
        lower = sum(c["mean"] < 0 and -c["mean"] > 3 * c["std"] / 10 for c in changes)
        expected = {0: "None of the", len(changes): "All"}.get(lower, f"{lower} of the")
        if len(changes) > 1:
            assert steps.startswith(expected)
        rates = [layer["measures"]["r_out"]["mean"] for layer in case["layers"]]
        if "R falls by" in whole:
            assert rates[-1] < 0.98 * rates[0]
        own, other = means[-1], after["layers"][-1]["measures"]["rc_half"]["mean"]
        if "training lowers it" in against:
            assert own < other
        elif "the untrained model is better" in against:
            assert own > other
        else:
            assert "differences below" in against
    assert verbs > 50


def value_of(text):
    """The number at the start of a text of the page."""
    return float(re.match(r"[\u2212\d.e]+", text)[0].rstrip(".").replace("\u2212", "-"))


def test_no_sentence_of_directions_contradicts_its_numbers(browser, tmp_path):
    """Shares, the class that is named and how often it uses a direction; a class with few uses is not named."""
    page_of([ReportModel("one", classifier())], Noise(1), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    rng, cases = np.random.default_rng(1), []
    for i in range(300):
        share = float(rng.choice([0, 1e-5, rng.random() / 10, rng.random()]))
        shares = np.clip(share * rng.choice([0, 0.5, 1.5, 2, 5], 4) * rng.random(4), 0, 1)
        classes = [dict(name=f"c{k}", share=s, uses=int(rng.choice([0, 29, 30, 900]))) for k, s in enumerate(shares)]
        cases.append(
            dict(number=i + 1, share=share, images=int(rng.integers(1, 900)), classes=classes if i % 5 else [])
        )
    told = browser.run("return arguments[0].map(window.crateReport.sentences.directionSentence)", cases)
    named = 0
    for case, text in zip(cases, told):
        share, classes = case["share"], case["classes"]
        if share == 0:
            count = f"{case['images']} image{'s' * (case['images'] > 1)}"
            assert text == f"None of {count} uses direction {case['number']}."
            continue
        assert text.startswith(f"{percent(share)} of tokens use it")
        assert ("a background that most share" in text) == (share >= 0.5)
        best = max(classes, key=lambda c: c["share"], default=None)
        stands_out = bool(classes) and best["share"] >= 2 * share and best["uses"] >= 30
        assert ("No class stands out." in text) == (bool(classes) and not stands_out)
        found = re.search(r"Class (\w+) uses it (.*) times as often as the average", text)
        assert bool(found) == stands_out
        if found:
            named += 1
            assert found[1] == best["name"]
            assert value_of(found[2]) == pytest.approx(best["share"] / share, rel=5e-3)
    assert named > 10


def percent(share):
    """As ``numbers.js``, for shares that no more than one decimal tells."""
    value = 100 * share
    if value < 0.1:
        return "less than 0.1\u00a0%"
    return "over 99.9\u00a0%" if 99.9 < value < 100 else f"{round(value, 0 if value >= 9.95 else 1):g}\u00a0%"


def test_no_sentence_of_maps_contradicts_its_numbers(browser, tmp_path):
    """Whom a token takes from and how much, which heads differ most, in which layer A and B do."""
    page_of([ReportModel("one", classifier())], Noise(1), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    rng = np.random.default_rng(2)
    tokens = [int(rng.integers(2, 40)) for _ in range(200)]
    rows = [rng.dirichlet(np.full(n, rng.choice([0.02, 0.3, 2, 300])), size=int(rng.integers(1, 5))) for n in tokens]
    layers = [sorted(rng.choice(np.arange(1, 30), int(rng.integers(1, 13)), replace=False).tolist()) for _ in rows]
    means = [(rng.choice([0.01, 1, 7]) * (1 + rng.choice([0.05, 0.9]) * rng.random(len(of)))).tolist() for of in layers]
    told = browser.run(
        "const s = window.crateReport.sentences, names = [...Array(40).keys()].map((i) => `token ${i}`);"
        "return arguments[0].map((rows, i) => [s.attentionSentence(3, 'it', rows[0], names), s.headsSentence(rows), "
        "s.mapsSentence('A', 'B', arguments[1][i], arguments[2][i])]);",
        [r.tolist() for r in rows],
        means,
        layers,
    )
    kinds = set()
    for n, heads, of, values, (attention, differ, maps) in zip(tokens, rows, layers, means, told):
        row = heads[0]
        spread = np.exp(-(row[row > 0] * np.log(row[row > 0])).sum())
        if spread >= 0.9 * n:
            kinds.add("uniform")
            assert attention == f"Head 3: it takes nearly the same from all {n} tokens."
        elif spread <= 1.5:
            kinds.add("one")
            assert attention == f"Head 3: it takes almost all from token {row.argmax()}."
        else:
            kinds.add("some")
            pattern = (
                r"takes most from token (\d+) \((\S+) times uniform\)( and token (\d+) \((\S+)\))?; "
                r"it is spread over about (\S+) of (\d+)"
            )
            first, times, both, second, less, about, total = re.search(pattern, attention).groups()
            order = row.argsort()[::-1]
            assert (int(first), int(total)) == (order[0], n)
            assert value_of(times) == pytest.approx(n * row[order[0]], rel=5e-3)
            assert value_of(about) == pytest.approx(spread, rel=5e-3)
            assert bool(both) == (row[order[1]] >= row[order[0]] / 2)
            if both:
                assert int(second) == order[1]
                assert value_of(less) == pytest.approx(n * row[order[1]], rel=5e-3)
        pairs = {(i, j): np.abs(heads[i] - heads[j]).sum() / 2 for j in range(len(heads)) for i in range(j)}
        if not pairs:
            assert differ is None
        elif np.mean(list(pairs.values())) < 0.1:
            kinds.add("alike")
            assert differ == "All heads look at nearly the same tokens here."
        else:
            i, j = map(int, re.fullmatch(r"Heads (\d) and (\d) differ most\.", differ).groups())
            assert pairs[i - 1, j - 1] == max(pairs.values())
        if max(values) - min(values) < 0.2 * np.mean(values):
            kinds.add("every layer")
            assert "differ as much in every layer" in maps
            assert value_of(maps.split("average by ")[1]) == pytest.approx(np.mean(values), rel=5e-3)
        else:
            most, by, least = re.search(r"most in layer (\d+) .*by (\S+) times.*least in layer (\d+)\.", maps).groups()
            assert (int(most), int(least)) == (of[np.argmax(values)], of[np.argmin(values)])
            assert value_of(by) == pytest.approx(max(values), rel=5e-3)
    assert kinds == {"uniform", "one", "some", "alike", "every layer"}


@pytest.mark.parametrize(("measure", "better"), [("rc_half", -1), ("sparsity", -1), ("objective", 1), ("r_out", 1)])
def test_the_better_of_trained_and_untrained_is_named(browser, tmp_path, measure, better):
    """Training is said to help only where its number is better, and to hurt only where it is worse, by what counts."""
    page_of([ReportModel("one", classifier())], Noise(1), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    rng, cases = np.random.default_rng(3), []
    level = {"sparsity": 0.5, "objective": -150}.get(measure, 100)
    for _ in range(200):
        values = level * (1 + rng.choice([0, 0.005, 0.3], 2) * rng.normal(size=2))
        entry = lambda mean: dict(mean=mean, std=abs(level) / 50, count=100, from_first=None)  # noqa: E731
        models = [dict(label="M", layers=[{"measures": {measure: entry(float(v))}}]) for v in values]
        for model in models if measure == "objective" else ():
            model["layers"][0]["measures"] |= {"r_out": entry(40.0), "rc_out": entry(100.0)}
        cases.append(models)
    ask = "return arguments[0].map(([m, u]) => window.crateReport.sentences.againstUntrained(m, u, arguments[1]))"
    seen = set()
    for (model, untrained), text in zip(cases, browser.run(ask, cases, measure)):
        x, u = (m["layers"][0]["measures"][measure]["mean"] for m in (model, untrained))
        for kind, said in (
            ("better", "as the derivation asks"),
            ("worse", "the untrained model is better"),
            ("same", "differences below"),
        ):
            if said in text:
                seen.add(kind)
                assert {"better": better * (x - u) > 0, "worse": better * (x - u) < 0, "same": True}[kind]
        if "training" in text:
            assert ("training raises it" in text) == (x > u)
        if "differences below" in text:
            within = text.split("differences below ")[1].partition(" do")[0]
            assert abs(x - u) <= 1.02 * value_of(within) / (100 if "%" in within else 1)
    assert seen == {"better", "worse", "same"}


def test_the_untrained_model_may_be_ahead(browser, tmp_path):
    """The page says so, and which term makes the gap."""
    page_of([ReportModel("one", classifier())], Noise(1), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")

    def model(label, r, rc, objective, untrained=False):
        at = lambda mean: {"mean": mean, "std": 1.0, "count": 100, "from_first": None, "from_before": None}  # noqa: E731
        rows = [{"measures": dict(r_out=at(r), rc_out=at(rc), rc_half=at(rc), objective=at(objective)), "code": None}]
        return {"label": label, "layers": rows, "untrained": untrained, "labelled": 1, "right": 1, "predicted": [1]}

    ask = "return window.crateReport.sentences.againstUntrained(arguments[0], arguments[1], 'objective')"
    trained, untrained = model("M", 40, 100, -160), model("U", 41, 100, -109, True)
    assert browser.run(ask, trained, untrained) == (
        "An untrained model has \u2212109: by this measure the untrained model is better. Most of the gap is the "
        "number of nonzero entries. Training looked at the labels, not at this number."
    )
    assert browser.run(ask, untrained, trained).startswith("An untrained model has \u2212160: training raises it")
