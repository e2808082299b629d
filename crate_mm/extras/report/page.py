"""The page: one HTML file that holds its data, its scripts and its charts, and asks no network for anything.

Charts are drawn by Vega, which ``vl-convert-python`` brings: 0.9 MB of script. Plotly's is 4.8 MB, and needs a policy
that lets text be run as code.
"""

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib import resources
from typing import Any

# In the order in which they use one another; the page is one module, made of them.
MODULES = (
    "data",
    "dom",
    "state",
    "heat",
    "charts",
    "objective",
    "image",
    "code",
    "subspaces",
    "segments",
    "run",
    "main",
)
POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@cache
def vega() -> str:
    """The script of Vega, Vega-Lite and Vega-Embed, with ``window.vegaEmbed``.

    Raises:
        ImportError: the package that brings it is not there.
    """
    try:
        import vl_convert
    except ImportError:
        raise ImportError(
            'a report draws its charts with Vega, which is not installed: pip install "crate_mm[report]" brings it'
        ) from None
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def asset(name: str) -> str:
    """The text of a file in ``assets``."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def script() -> str:
    """The page's modules as one: without the lines that import from and export to one another."""
    parts = []
    for name in MODULES:
        text = re.sub(r"^import\b[^;]*;\n", "", asset(f"{name}.js"), flags=re.M)
        parts.append(
            f"// {name}.js\n" + re.sub(r"^export (?=(async )?(function|const|class|let)\b)", "", text, flags=re.M)
        )
    return "\n".join(parts)


def make_page(data: dict[str, Any], title: str, library: str | None = None) -> str:
    """The page of what ``collect`` returns, as text.

    Args:
        data: plain data. Names in it are text, whatever they say.
        title: of the page.
        library: Vega's script, ``vega()`` if not given.

    Raises:
        ImportError: as ``vega``.
        ValueError: the data holds numbers that are not finite.
    """
    scripts = [in_element(vega() if library is None else library), in_element(script())]
    policy = POLICY.format(hashes=" ".join(map(digest, scripts)))
    parts = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(title),
        "STYLE": asset("style.css"),
        "EQUATIONS": asset("equations.html"),
        "DATA": as_json(data),
        "LIBRARY": scripts[0],
        "SCRIPT": scripts[1],
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))


def as_json(data: Any) -> str:
    """Plain data as JSON that ends no element of HTML: ASCII alone, without ``<``, ``>`` and ``&``."""
    try:
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise ValueError("what was measured holds numbers that are not finite: look at the model's weights") from None
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def in_element(text: str) -> str:
    """A script as it may stand in an element: in its strings, what would end the element is written otherwise."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def digest(text: str) -> str:
    """A script's hash, as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
