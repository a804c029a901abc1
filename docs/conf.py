"""How Sphinx builds these pages: `tox run -e docs`. Warnings are errors there; nothing is fetched from the network."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "queuebridge"
author = "queuebridge contributors"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = installed_version("qstash-queuebridge")

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist", "tasklist"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "requirements.txt"]
nitpicky = True

# Links are written out; text that merely looks like one stays text.
myst_linkify_fuzzy_links = False
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"queuebridge {release}"
html_show_sourcelink = False
html_show_copyright = False
