"""Sphinx's settings; `make docs` calls it. Pages are Markdown (MyST), docs/index.md comes first."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import generate  # noqa: E402

project = "IRv2"
html_title = "IRv2"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["site"]
html_theme = "furo"
html_show_copyright = html_show_sphinx = html_copy_source = html_show_sourcelink = False
highlight_language = "text"
smartquotes = False  # options begin with two hyphens
myst_enable_extensions = ["deflist", "html_image"]
myst_heading_anchors = 3
python_use_unqualified_type_names = True
default_role = "code"  # what docstrings mean by `name`
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Types of other projects, whose inventories would have to be fetched, and what is no API of ours.
nitpick_ignore_regex = [("py:.*", r"(?!irv2\.).*|irv2\.(model|v1)\..*")]


def setup(app: Sphinx) -> None:
    """Write the pages that are made from the sources, and llms.txt beside the built ones."""
    app.connect("builder-inited", lambda app: generate.write_pages(Path(app.srcdir)))
    app.connect("sphinx-click-process-description", generate.describe)
    app.connect("sphinx-click-process-options", generate.describe_options)
    app.connect("autodoc-process-docstring", _leave_out_of_modules)
    app.connect("build-finished", generate.write_llms_txt)


def _leave_out_of_modules(
    app: Sphinx, what: str, name: str, documented: object, options: object, lines: list[str]
) -> None:
    """Show the members of a module alone: its docstring is for those who read the source."""
    if what == "module":
        lines.clear()
