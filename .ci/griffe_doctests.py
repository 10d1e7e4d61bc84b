"""A griffe extension: examples in docstrings become code blocks, which Markdown would quote."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)  # up to the next empty line


class Doctests(griffe.Extension):
    """Puts each run of `>>>` lines and what they print between code fences."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of one module, class, function or attribute."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = EXAMPLE.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n\n", text)
