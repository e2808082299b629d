"""Sphinx settings for the documentation site; ``build.py`` collects its sources."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.logging import getLogger

import crate_mm

project = "crate_mm"
smartquotes = False  # keep the -- of command-line options
release = crate_mm.__version__
root_doc = "README"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]

nb_execution_mode = "off"  # tests run the notebook
myst_enable_extensions = ["dollarmath"]
myst_disable_syntax = ["myst_line_comment", "myst_target", "myst_block_break", "myst_role"]  # not available on GitHub
myst_heading_anchors = 4  # as on GitHub

autosummary_generate = False
autodoc_inherit_docstrings = False  # leave out those of PyTorch and MMEngine
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


def add_contents(app, docname: str, source: list[str]) -> None:
    """Give the first page a table of contents: pages in the order of its links, then the API."""
    if docname == root_doc:
        linked = re.findall(r"\(([\w/]+)\.(?:md|ipynb)\)", source[0].rpartition("\n## Documentation\n")[2])
        others = sorted(page for page in app.env.found_docs if not page.startswith("api/"))
        pages = [page for page in dict.fromkeys([*linked, *others]) if page != root_doc]
        source[0] += "\n".join(["\n```{toctree}\n:hidden:\n", *pages, "API <api/crate_mm>", "```\n"])


def skip_field(app, what, name, member, skip, options) -> bool | None:
    """Leave out generated members: Matplotlib's ``set``, and a NamedTuple's fields, which the signature shows."""
    text = getattr(member, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") or ":mpltype:" in text else None


def write_mathml(translator, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers draw without a script, a font file or a network."""
    try:
        formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
        translator.body.append(formula.replace(">‖<", ' stretchy="false">‖<'))  # else browsers lower the second bar
    except MathError as error:
        getLogger(__name__).warning("%r is not MathML: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


def setup(app) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-skip-member", skip_field)
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
