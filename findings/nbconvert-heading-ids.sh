#!/bin/sh
# Pages made of notebooks: headings without the ¶ that stands beside each.
#
# nbconvert 7.17.2, seen 2026-11-29: `HTMLExporter(exclude_anchor_links=True)` leaves out the ¶ and, with it, the `id` of every heading. A table of
# contents, links from one cell to another (`[below](#Attack-strength)`) and links from outside then lead nowhere, and nothing says so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nbconvert==7.17.2 nbformat==5.10.4 mistune==3.1.4 >/dev/null 2>&1
cat > "$folder/headings.py" <<'PY'
import re

import nbformat
from nbconvert import HTMLExporter

cells = [nbformat.v4.new_markdown_cell("# Results\n\nSee [below](#Attack-strength)."), nbformat.v4.new_markdown_cell("## Attack strength")]
book = nbformat.v4.new_notebook(cells=cells)


def body(**options):
    html, _ = HTMLExporter(**options).from_notebook_node(book)
    return html[html.index("<body") :]


def ids(html):
    return re.findall(r"<h[12][^>]* id=.([\w-]+)", html)


plain, without = body(), body(exclude_anchor_links=True)
print("by default: ids", ids(plain), "¶" in plain)
print("exclude_anchor_links: ids", ids(without), "¶" in without, "link kept:", 'href="#Attack-strength"' in without)
assert ids(plain) == ["Results", "Attack-strength"]
assert "¶" in plain
assert "¶" not in without
assert ids(without) == []
assert 'href="#Attack-strength"' in without  # which leads nowhere now
PY
"$folder/venv/bin/python" "$folder/headings.py"
