"""Write the report page: one self-contained HTML file with its data and scripts. It makes no network request."""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

# In order of dependency, because the page concatenates them into one module.
MODULES = (
    "numbers",
    "data",
    "state",
    "dom",
    "play",
    "svg",
    "sentences",
    "model",
    "colour",
    "views",
    "pixels",
    "changes",
    "heat",
    "charts",
    "layer",
    "draw",
    "objective",
    "directions",
    "image",
    "compare",
    "subspaces",
    "segments",
    "run",
    "words",
    "main",
)
# Maps the name of a page's template to the page's modules.
PAGES = {"page": MODULES, "text": ("numbers", "data", "dom", "svg", "sentences", "model", "text")}
POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def asset(name: str) -> str:
    """Return the text of a file in ``assets``."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def script(page: str = "page") -> str:
    """Return a page's modules as one script, without their imports, exports, comments and indentation."""
    text = "".join(asset(f"{name}.js") for name in PAGES[page])
    text = re.sub(r"^import\b[^;]*;\n", "", text, flags=re.M)
    text = re.sub(r"^export (?=(async )?(function|const|class|let)\b)", "", text, flags=re.M)
    text = re.sub(r"^\s*//.*\n|^\s+|\s+// .*$", "", text, flags=re.M)
    return "\n".join(map(without_spaces, text.split("\n")))


def without_spaces(line: str) -> str:
    """Return a line of a script without spaces around punctuation; lines with nested templates stay unchanged."""
    if line.count("`") > 2:
        return line
    code = re.split(r'("(?:[^"\\]|\\.)*"|`[^`]*`|/\S.*?/[a-z]*)', line)  # strings, a template, regular expressions
    code[::2] = [re.sub(r" ?([={}()\[\],;:?<>*/&|]) ?", r"\1", part) for part in code[::2]]
    return "".join(code)


def style(page: str = "page") -> str:
    """Return a page's style sheet, without comments and needless white space."""
    text = asset("style.css") + (asset("text.css") if page == "text" else "")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r"\s*([{};,>])\s*|(?<=:) ", r"\1", text).strip()


def make_page(data: dict[str, Any], title: str, page: str = "page") -> str:
    """Return the HTML page that shows data from ``collect`` or ``collect_text``.

    Args:
        data: plain data. Names in it are shown as text, never as markup.
        title: title of the page.
        page: name of the template, 'page' for images or 'text'.

    Raises:
        ValueError: the data has non-finite numbers.
    """
    code = in_element(script(page))
    policy = POLICY.format(hashes=digest(code))
    parts = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(title),
        "STYLE": style(page),
        "SUMMARY": asset("summary.html"),
        "EQUATIONS": asset("equations.html"),
        "DATA": as_json(data),
        "SCRIPT": code,
    }
    template = asset("frame.html").replace("{{BODY}}", asset(f"{page}.html"))
    template = re.sub(r"(\(?)\[\[(?:([^\]|]+)\|)?([^\]|]+)\]\]([.,;:)]*)", term, template)
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def term(match: re.Match[str]) -> str:
    """Return the button of ``[[text]]`` or ``[[term|text]]``; ``words.js`` explains the text, or the term if given.

    A line does not break between the button and adjacent punctuation.
    """
    before, name, text, after = match.groups()
    button = f'<button type="button" class="term" data-term="{name or text}">{text}</button>'
    return f'<span class="unbroken">{before}{button}{after}</span>' if before or after else button


def as_json(data: Any) -> str:
    """Return plain data as JSON that is safe inside an HTML element: ASCII only, without ``<``, ``>`` and ``&``."""
    try:
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise ValueError("some measurements are not finite: check the model's weights") from None
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def in_element(text: str) -> str:
    """Return a script that is safe in an HTML element: sequences that would end or alter the element are escaped."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def digest(text: str) -> str:
    """Return a script's hash in the form that a content security policy expects."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
