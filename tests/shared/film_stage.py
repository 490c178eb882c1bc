"""Runs a film's script in node, on a picture that is taken apart: no browser, the same ``querySelectorAll``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest

from nasbook.plots import Film

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the film's script")

_STAGE = """
const film = FILM;
function element(found) {
  const made = { ...found.attributes, style: { display: found.hidden ? "none" : "" }, textContent: found.words,
                 children: found.children.map(element) };
  made.setAttribute = function (name, value) { made[name] = value; };
  made.querySelectorAll = function (selector) {
    return made.children.flatMap(function (child) {
      return ("." + child.class === selector ? [child] : []).concat(child.querySelectorAll(selector));
    });
  };
  return made;
}
const player = element(PICTURE), slider = { setAttribute: function (name, value) { this[name] = value; } };
PAINT
console.log(JSON.stringify(FRAMES.map(function (frame) {
  paint(frame);
  return JSON.parse(JSON.stringify({ spoken: slider["aria-valuetext"], picture: player }));
})));
"""


def taken_apart(picture: str) -> dict[str, Any]:
    """An SVG as nested elements: attributes, words, whether it is hidden, children."""

    def read(node: ElementTree.Element) -> dict[str, Any]:
        return {
            "attributes": dict(node.attrib),
            "words": (node.text or "").strip(),
            "hidden": "display: none" in node.attrib.get("style", ""),
            "children": [read(child) for child in node],
        }

    return read(ElementTree.fromstring(picture))


def still(film: Film) -> dict[str, Any]:
    """The picture before the script has run, in the form of :func:`play`'s."""

    def made(found: dict[str, Any]) -> dict[str, Any]:
        style = {"display": "none" if found["hidden"] else ""}
        children = [made(child) for child in found["children"]]
        return {**found["attributes"], "style": style, "textContent": found["words"], "children": children}

    return made(taken_apart(film.picture))


def play(film: Film, frames: Sequence[int]) -> list[dict[str, Any]]:
    """What the script makes of the picture in each frame: ``spoken`` words and the ``picture``, nested as before."""
    program = _STAGE.replace("PICTURE", json.dumps(taken_apart(film.picture))).replace("FILM", film.data)
    program = program.replace("PAINT", film.paint).replace("FRAMES", json.dumps(list(frames)))
    result = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    seen: list[dict[str, Any]] = json.loads(result.stdout)
    return seen


def of_class(picture: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """All elements of a class, in the order of the picture."""
    found = []
    for child in picture["children"]:
        found += [child] if child.get("class") == name else []
        found += of_class(child, name)
    return found


def shown(element: dict[str, Any]) -> bool:
    """Whether an element is not hidden."""
    return element["style"].get("display", "") != "none"
