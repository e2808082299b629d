"""Text of a language model: the same with a cache and without, what the options choose, and where it ends."""

import math

import pytest
import torch

from crate_mm import get_model
from crate_mm.inference.generate import TextGenerator, choose
from crate_mm.models import LanguageModel

LENGTH = 12


@pytest.fixture(scope="module")
def generate():
    torch.manual_seed(0)
    arch = dict(embed_dim=24, depth=2, num_heads=3)
    backbone = dict(type="CausalCRATE", arch=arch, vocab_size=256, context_length=LENGTH)
    model = LanguageModel(backbone, tokenizer="bytes").double()
    model.backbone.token_embedding.weight.data.mul_(20)  # distinct logits
    model.backbone.position_embedding.weight.data.mul_(60)  # another token than the input
    return TextGenerator(model)


def greedy(model, ids, number):
    """Continue without a cache; after the last position, from the last half of the context."""
    new = []
    while len(new) < number:
        ids = ids[-LENGTH // 2 :] if len(ids) > LENGTH else ids
        new.append(model(torch.tensor([ids]), mode="tensor")[0, -1].argmax().item())
        ids = [*ids, new[-1]]
    return new


@torch.no_grad()
@pytest.mark.parametrize("prompt", [b"", b"def ", b"a prompt of more bytes than positions"])
def test_greedy_text_is_that_of_the_full_forward_pass(generate, prompt):
    ids = [0, *prompt]
    expected = greedy(generate.model, ids[-LENGTH // 2 :] if len(ids) > LENGTH else ids, 30)
    assert 0 not in expected
    assert list(generate._sample(ids, 30, (0, None, None), torch.Generator())) == expected
    text = generate(prompt, max_tokens=30, temperature=0)
    assert text == bytes(expected).decode(errors="replace")


def test_a_seed_determines_the_text(generate):
    first, again, other = (generate("def ", max_tokens=20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert "".join(generate.stream("def ", max_tokens=20, seed=1)) == first


def test_the_text_ends_with_the_document(generate, monkeypatch):
    monkeypatch.setattr(generate.tokenizer, "end", generate.tokenizer.encode(b"c").item())
    always_c = torch.zeros(1, 1, 256)
    always_c[..., ord("c")] = 9
    monkeypatch.setattr(generate.model.backbone, "logits", lambda tokens: always_c)
    assert generate("ab", temperature=0) == ""


def test_a_character_is_written_when_its_bytes_are_complete(generate):
    assert list(generate._pieces(iter("né!".encode()))) == ["n", "é", "!"]
    assert list(generate._pieces(iter(b"a\xc3"))) == ["a", "\ufffd"]


def test_the_options_choose_among_the_most_likely():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()

    def drawn(*options):
        generator = torch.Generator().manual_seed(0)
        tokens = [choose(logits, *options, generator).item() for _ in range(1000)]
        return [tokens.count(token) / 1000 for token in range(4)]

    assert drawn(1.0, None, None) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.05)
    assert drawn(0.5, None, None) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30], abs=0.05)
    assert drawn(1.0, 2, None) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.05)
    assert drawn(1.0, None, 0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.05)
    assert drawn(1.0, None, 0.39) == [0, 1, 0, 0]
    assert drawn(1.0, 99, 1.0) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.05)
    assert drawn(0, None, None) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_tokens=0), "max_tokens must be a positive integer, got 0"),
        (dict(temperature=-1), "temperature must be a finite number of at least 0, got -1"),
        (dict(temperature=math.nan), "temperature must be a finite number"),
        (dict(top_k=0), "top_k must be a positive integer, got 0"),
        (dict(top_p=0.0), "top_p must be a number above 0, up to 1, got 0.0"),
        (dict(top_p=1.5), "top_p must be a number above 0, up to 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(generate, options, message):
    with pytest.raises(ValueError, match=message):
        generate.stream("", **options)


def test_what_generates_no_text_is_refused():
    with pytest.raises(ValueError, match="expected a LanguageModel to generate text, got the task ImageClassifier"):
        TextGenerator(get_model("crate_mini_digits"))
    small = dict(type="CausalCRATE", arch=dict(embed_dim=4, depth=1, num_heads=1), vocab_size=9, context_length=4)
    with pytest.raises(ValueError, match="the tokenizer has 256 tokens, the model 9"):
        TextGenerator(LanguageModel(small, tokenizer="bytes"))
    with pytest.raises(ValueError, match="the checkpoint does not name its tokenizer"):
        TextGenerator(LanguageModel(small))
