"""The page of language models: its data, its forward pass and its sentences, in a real browser."""

import json
import re

import numpy as np
import pytest
import torch

from crate_mm.datasets.tokenizers import ByteTokenizer
from crate_mm.datasets.windows import Windows
from crate_mm.extras.report.pack import unpack
from crate_mm.extras.report.text import _text_of
from crate_mm.extras.report.write import report
from crate_mm.models import LanguageModel
from tests.analysis.test_report_page import data_of

TEXT = b"def add(a, b):\n\treturn a + b  # the sum\n" * 20
ARCH = dict(embed_dim=24, depth=2, num_heads=3)


def language_model(kind="CausalCRATE", tokenizer="bytes", seed=0):
    torch.manual_seed(seed)
    model = LanguageModel(dict(type=kind, arch=ARCH, vocab_size=256, context_length=32), tokenizer).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def windows():
    return Windows(torch.tensor(list(TEXT)).numpy(), 24)


@pytest.mark.slow
@pytest.mark.parametrize("weights_megabytes", [1, 0])
def test_the_page_shows_what_pytorch_computes(weights_megabytes, browser, windows, tmp_path):
    """Run by the page, or stored in it: attention, next tokens, and the loss."""
    model = language_model()
    settings = dict(num_images=12, shown=2, weights_megabytes=weights_megabytes)
    page = report({"mine": model}, loader(windows), tmp_path / "page.html", **settings)
    browser.open(page)
    data = data_of(page)
    assert (data["models"][0]["running"] is None) == (weights_megabytes == 0)
    window = int(browser.run("return document.querySelector(`[data-key='window']`).value"))
    ids = data["texts"][str(data["windows"][window]["position"])]
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))
    at = 11
    browser.run("document.querySelector(`.tokens [data-i='11']`).click()")
    browser.wait()
    probabilities, tokens = logits[0, at].softmax(-1).topk(6)
    rows = browser.texts(".next tr")
    for row, probability, token in zip(rows, probabilities.tolist(), tokens.tolist()):
        shown = {10: "line end", 9: "tab", 32: "space"}.get(token, f"“{_text_of(token, ByteTokenizer())}”")
        assert row.startswith(shown)
        told = float(re.search(r"([\d.]+)\u00a0%$", row)[1])
        assert told == pytest.approx(100 * probability, abs=0.06 if told < 10 else 0.6)
    nats = torch.nn.functional.cross_entropy(model(torch.stack([w["inputs"] for w in measured(windows, data)])).mT,
                                             torch.stack([w["labels"] for w in measured(windows, data)]))  # fmt: skip
    assert data["models"][0]["loss"] == pytest.approx(nats.item(), rel=1e-5)
    browser.check_quiet()


@pytest.mark.slow
def test_it_opens_where_a_token_looks_far_back(browser, windows, tmp_path):
    """The largest weight of a token on its favorite, at least 5 tokens before it; neither is a space."""
    settings = dict(num_images=12, shown=3, weights_megabytes=0)
    page = report({"mine": language_model()}, loader(windows), tmp_path / "page.html", **settings)
    browser.open(page)
    data, places = data_of(page), []
    for window, looks in enumerate(data["models"][0]["looks"]):
        ids = data["texts"][str(data["windows"][window]["position"])]
        attention = unpack(looks["attention"])
        for layer, head, at in np.ndindex(attention.shape[:3]):
            best = attention[layer, head, at, : at + 1].argmax()
            if at - best >= 5 and not {ids[at], ids[best]} & set(b" \t\n"):
                places.append((attention[layer, head, at, best], [window, layer, head, at]))
    opened = browser.run(
        "const value = (key) => Number(document.querySelector(`[data-key='${key}']`).value);"
        "const at = document.querySelector('.tokens [aria-current]').dataset.i;"
        "return [...['window', 'layer', 'head'].map(value), Number(at)];"
    )
    assert opened == max(places, key=lambda place: place[0])[1]
    browser.check_quiet()


def loader(windows):
    from torch.utils.data import DataLoader

    return DataLoader(windows, 4)


def measured(windows, data):
    generator = torch.Generator().manual_seed(data["run"]["settings"]["seed"])
    positions = torch.randperm(len(windows), generator=generator)[:12].tolist()
    return [windows[position] for position in sorted(positions)]


@pytest.mark.slow
def test_the_pages_forward_pass_is_that_of_pytorch_also_with_a_set_direction(browser, windows, tmp_path):
    model = language_model()
    browser.open(report(model, loader(windows), tmp_path / "page.html", num_images=8, shown=1))
    ids = list(b"return b + a")
    outputs = browser.run(
        "const [r, ids] = [window.crateReport, arguments[0]];"
        "return r.loadNet(r.report.models[0].running).then((net) => {"
        "const set = new Map([[1, new Map([[5, 2.5]])]]);"
        "const of = (o) => { const f = r.forwardText(net, ids, o);"
        "return [[...f.logits], [...f.layers[1].attention]]; };"
        "return [of({}), of({directions: set})]; })",
        ids,
    )

    def set_direction(module, inputs, code):
        code = code.clone()
        code[..., 5] = 2.5
        return code

    for (logits, attention), is_set in zip(outputs, (False, True)):
        hook = model.backbone.blocks[1].sparsify.register_forward_hook(set_direction) if is_set else None
        tokens = []
        tap = (
            model.backbone.layers[1].taps()["tap_w"].register_forward_hook(lambda m, i, w, kept=tokens: kept.append(w))
        )
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0]
            maps = model.backbone.layers[1].attention(tokens[0])[0]
        tap.remove()
        if hook:
            hook.remove()
        # the page's weights are halves
        torch.testing.assert_close(torch.tensor(logits).view_as(expected), expected, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(torch.tensor(attention).view_as(maps), maps, atol=5e-3, rtol=5e-3)
    assert not torch.allclose(torch.tensor(outputs[0][0]), torch.tensor(outputs[1][0]), atol=0.1)


@pytest.mark.slow
def test_a_typed_text_a_chosen_direction_and_its_effect(browser, windows, tmp_path):
    browser.open(report(language_model(), loader(windows), tmp_path / "page.html", num_images=8, shown=1))
    browser.find("#own-text").send_keys("x = 1")
    browser.run("return new Promise((go) => setTimeout(go, 900))")
    assert browser.texts(".tokens span") == ["\\x00", "x", " ", "=", " ", "1"]
    assert "looks most at" in browser.text("#attention-sentence") or "spreads" in browser.text("#attention-sentence")
    browser.find("#own-text").send_keys("0" * 40)
    browser.run("return new Promise((go) => setTimeout(go, 900))")
    assert len(browser.texts(".tokens span")) == 32
    assert "has 32 positions: the last 14 bytes are left out" in browser.text("#look .body")
    browser.click("#directions .entries button:nth-child(2)")
    chosen = browser.texts("#directions .entries [aria-pressed='true']")
    assert len(chosen) == 1
    assert f"use direction {chosen[0].partition(':')[0]}." in browser.text('[data-told="density"]')
    browser.run(
        "[...document.querySelectorAll('#directions button')].find((b) => b.textContent === 'switch off').click();"
        "return new Promise((go) => setTimeout(go, 500))"
    )
    assert "most likely" in browser.text('[data-told="effect"]')
    browser.check_quiet()


@pytest.mark.slow
def test_what_a_family_does_not_define_is_said(browser, windows, tmp_path):
    models = {"gpt": language_model("GPT2"), "tost": language_model("CausalToST"), "aot": language_model("CausalAoT")}
    page = report(models, loader(windows), tmp_path / "page.html", num_images=8, shown=1)
    browser.open(page)
    gpt, tost, aot = data_of(page)["models"]
    assert gpt["looks"][0]["attention"]["shape"] == [2, 3, 24, 24]
    assert aot["looks"][0]["attention"]["shape"] == [2, 3, 24, 24]
    assert tost["looks"][0]["attention"] is None
    assert "no attention between tokens" in tost["undefined"]["attention"]
    assert all(model["layers"][0]["code"] is None and model["running"] is None for model in (gpt, tost, aot))
    browser.choose("select[data-key='model']", "tost")
    browser.run("return new Promise((go) => setTimeout(go, 300))")
    assert "no attention between tokens" in browser.text("#attention-sentence")
    assert "has no sparse code" in browser.text("#directions .body")
    browser.check_quiet()


@pytest.mark.slow
def test_sentences_say_the_numbers(browser, windows, tmp_path):
    browser.open(report(language_model(), loader(windows), tmp_path / "page.html", num_images=8, shown=1))
    ask = "const r = window.crateReport; return r.%s;"
    assert browser.run(ask % "lookSentence([0.05, 0.8, 0.15], [97, 98, 99], 2, 0, 1)") == (
        "In head 1 of layer 2, “c” looks most at “b”, 1 token before: 80\u00a0%, 2.4 times an equal share."
    )
    assert "looks most at itself" in browser.run(ask % "lookSentence([0.1, 0.1, 0.8], [97, 98, 99], 2, 0, 1)")
    assert "over all earlier" in browser.run(ask % "lookSentence([0.3, 0.4, 0.3], [97, 98, 99], 2, 0, 1)")
    assert "stays" in browser.run(ask % "effectSentence([[97, 0.6]], [[97, 0.2]], 98)")
    assert browser.run(ask % "effectSentence([[97, 0.6]], [[99, 0.5]], 98)") == (
        "After “b”, the most likely token was “a” (60\u00a0%); now it is “c” (50\u00a0%)."
    )
    sentence = browser.run(ask % "lossSentence({label: 'm', loss: Math.LN2, labels: 10, is_bytes: true})")
    assert sentence == "m: 0.693 nats per token, 1 bits per byte, on 10 tokens."


def test_tokens_of_an_unknown_tokenizer_are_numbers(windows, tmp_path):
    tokenizer = {"name": "gpt2.json", "sha256": "0" * 64, "vocab_size": 256, "end": "<|endoftext|>"}
    page = report(language_model(tokenizer=tokenizer), loader(windows), tmp_path / "p.html", num_images=8, shown=1)
    data = data_of(page)
    assert data["vocabulary"]["100"] == "[100]"
    assert "Tokens are shown by their numbers" in data["vocabulary_note"]
    assert "gpt2.json" in data["vocabulary_note"]


def test_models_of_text_and_of_images_are_not_mixed(windows, tmp_path):
    from crate_mm import get_model

    models = {"text": language_model(), "image": get_model("crate_mini_digits", pretrained=True)}
    with pytest.raises(ValueError, match="either language models or image models"):
        report(models, loader(windows), tmp_path / "p.html", num_images=8, shown=1)
    others = {"a": language_model(), "b": language_model(tokenizer=None)}
    with pytest.raises(ValueError, match="different tokenizers"):
        report(others, loader(windows), tmp_path / "p.html", num_images=8, shown=1)


def test_a_byte_that_is_no_letter_is_shown_in_hexadecimal():
    assert [_text_of(token, ByteTokenizer()) for token in (97, 10, 0, 200)] == ["a", "\n", "\\x00", "\\xc8"]
    assert json.dumps(_text_of(300, ByteTokenizer())) == '"[300]"'
