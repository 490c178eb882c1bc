"""A Sphinx extension of the book: pages load only scripts that they use, and only from the book itself.

Jupyter Book loads sphinx-thebe on every page. We have no Thebe button, its settings are written into each page
twice (an error on the console), and they name another host.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def remove_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Takes Thebe's scripts out of a page."""
    context["script_files"] = [script for script in context.get("script_files", []) if not is_thebe(script)]
    body = context.get("body") or ""
    marker = '<script type="text/x-thebe-config">'
    if marker in body:
        before, rest = body.split(marker, 1)
        context["body"] = before + rest.split("</script>", 1)[1]


def is_thebe(script: Any) -> bool:
    """Whether a script of Sphinx' list is Thebe's."""
    attributes = getattr(script, "attributes", {})
    return "thebe" in f"{getattr(script, 'filename', script)} {attributes.get('body', '')}".lower()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", remove_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
