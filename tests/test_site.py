"""The documentation site builds without a warning, loses no word of a README, and links only to what is there."""

import os
import re
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import crate_mm
from crate_mm import registry
from tests.conftest import ROOT, start
from tests.test_readmes import READMES

pytest.importorskip("furo", reason="the site needs Python 3.11: see setup.py")
markdown_it = pytest.importorskip("markdown_it")
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """A page's anchors, the links of its text, the files that it loads, and its words outside code and formulas."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded, self.text, self.code = set(), set(), set(), [], 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.code += tag in ("pre", "code", "math")
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value)
            elif name in ("href", "src"):
                (self.links if tag == "a" else self.loaded).add(value)

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag in ("pre", "code", "math")

    def handle_data(self, data: str) -> None:
        if not self.code:
            self.text.append(data)


def words(text: str) -> Counter:
    return Counter(re.findall(r"\w+", text))


def test_the_site(tmp_path):
    """One test, because a build takes a minute or more, and each process of pytest-xdist would build a site."""
    out = tmp_path / "html"
    process = start(ROOT / "tools" / "site" / "build.py", (out,), tmp_path / "log", ROOT, {})
    process.join(900)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    pages = {str(path.relative_to(out)): Page(path) for path in out.rglob("*.html")}
    check_links(out, pages)
    for readme in READMES:
        check_words(readme, pages)
    check_names(out)


def check_links(out: Path, pages: dict[str, Page]) -> None:
    """Links have targets, and nothing is loaded from elsewhere."""
    for name, page in pages.items():
        for link in page.links | page.loaded:
            address = urlsplit(link)
            if address.scheme == "data":  # an empty icon
                continue
            if address.scheme:
                assert link in page.links, f"{name} loads {link}"
                assert address.scheme in ("https", "http", "mailto"), f"{name} links to {link}"
                assert address.scheme == "mailto" or "." in address.netloc, f"{name} links to {link}"
                continue
            assert not address.netloc, f"{name} links to {link}"
            target = os.path.normpath(os.path.join(os.path.dirname(name), unquote(address.path)))
            target = target if address.path else name
            assert (out / target).is_file(), f"{name} links to {link}"
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].anchors, f"{name} links to {link}"


def check_words(readme: Path, pages: dict[str, Page]) -> None:
    """A page has all words of its README."""
    source = re.sub(r"\$\$?[^$]+\$\$?", "", re.sub(r"`+[^`]+`+", "", readme.read_text()))
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(source)
    text = [part.content for token in tokens for part in token.children or () if part.type == "text"]
    page = pages[str(readme.relative_to(ROOT).with_suffix(".html"))]
    assert words(" ".join(text)) - words(" ".join(page.text)) == Counter(), readme


def check_names(out: Path) -> None:
    """What is exported and what is registered is on a page."""
    inventory = zlib.decompress((out / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    described = {line.split(" ")[0] for line in inventory.splitlines()}
    public = [getattr(crate_mm, name) for name in crate_mm.__all__]
    for value in vars(registry).values():
        if isinstance(value, registry.Registry):
            value.import_from_location()
            public += value.module_dict.values()
    names = {
        f"{part.__module__}.{part.__qualname__}"
        for part in public
        if getattr(part, "__module__", "").startswith("crate_mm.")
    }
    assert len(names) > 50
    assert names - described == set()
