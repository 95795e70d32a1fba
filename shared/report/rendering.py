"""HTML from the templates in templates/, which escape what they are given; and links from a page to files beside it."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

Links = Mapping[str, str]  # words -> where they lead


def render(template: str, **values: object) -> Markup:
    """The template of that name, filled in."""
    return Markup(_environment().get_template(f"{template}.html").render(values))


def links(folder: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Links of a page in `folder` to those of these files that are there."""
    return {words: quote(os.path.relpath(file, folder)) for words, file in files.items() if file.exists()}


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    found.filters |= {"commands": _commands, "minus": lambda number: number.replace("-", "−")}
    return found


def _commands(sentence: str) -> Markup:
    """Escaped, with `commands` set as code."""
    # as plain text: what re.sub puts into Markup, it escapes
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(sentence))))
