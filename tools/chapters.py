"""Runs the text sources of the book and writes the executed notebooks that Colab, the pages and nbval read.

    python tools/chapters.py run          every book/chapters/NN-name.md, and the executed pages (PAGES)
    python tools/chapters.py run 01       one chapter; a page by its name, such as "claims"

A notebook is always executed as a whole, in a fresh kernel, at scale quick and without a network, and it is
written only when every cell ran. Whatever would differ from run to run for no reason (cell ids, times,
widget ids, versions, paths) is made constant, so that a diff of a notebook shows what changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 180
"""Seconds that one cell may take before the run is given up."""

PAGES = ("fast-supernet", "beyond-one-machine", "claims")
"""Pages of book/ that are executed although they are no chapters."""

METADATA: dict[str, Any] = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""What every notebook says about itself: no version, no path."""

ANIMATION_ID = re.compile(r"(?<=anim)[A-Za-z_]*([0-9a-f]{32})(?![0-9a-f])")
MODEL_ID = re.compile(r'"model_id": "([0-9a-f]{32})"')
REFERENCE = re.compile(r"IPY_MODEL_([0-9a-f]{32})")


def sources(root: Path = ROOT) -> list[Path]:
    """The text sources in reading order."""
    pages = [root / "book" / f"{name}.md" for name in PAGES]
    return [*sorted((root / "book" / "chapters").glob("[0-9][0-9]-*.md")), *(page for page in pages if page.exists())]


def notebook_of(source: Path, root: Path = ROOT) -> Path:
    """Where the executed form of a text source stands."""
    return root / "notebooks" / f"{source.stem}.ipynb"


def chapter_name(source: Path) -> str:
    """What ``make chapter N=`` calls a text source: a chapter's number, a page's name."""
    return source.stem if source.stem in PAGES else source.stem.split("-")[0]


def read_source(source: Path) -> NotebookNode:
    """The notebook that a text source stands for: no outputs, constant metadata and cell ids."""
    notebook = jupytext.read(source, fmt="md:myst")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Runs all cells in a fresh kernel in ``folder``, at quick, with one thread and no network."""
    environment = {
        **os.environ,
        "NASBOOK_SCALE": "quick",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(ROOT / "tools" / "offline"),
    }
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env=environment)


def _without_paths(text: str, root: Path) -> str:
    """Text in which the folders of this machine have names that hold on every machine."""
    names = {str(root): ".", tempfile.gettempdir(): "TEMPORARY", str(Path.home()): "~"}
    for path, name in names.items():
        if len(path) > 1:
            text = re.sub(re.escape(path) + r"(?=[/\\\"'\s:]|$)", name, text)
    return text


def normalize(notebook: NotebookNode, root: Path = ROOT) -> NotebookNode:
    """The executed notebook without what differs between two equal runs."""
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.from_dict({**METADATA, **({"widgets": widgets} if widgets else {})})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = _without_paths(output.text, root)
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = _without_paths(content, root)
    # Widgets and animations carry random ids. Number them in the order in which a reader meets them.
    text = nbformat.writes(notebook)
    for number, name in enumerate(_random_ids(notebook)):
        text = text.replace(name, hashlib.sha256(f"id {number}".encode()).hexdigest()[:32])
    return nbformat.from_dict(_sorted_state(json.loads(text)))


def _random_ids(notebook: NotebookNode) -> list[str]:
    """The ids of animations and widgets: those of outputs first, then those that they refer to, then the rest."""
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    states = {name: json.dumps(state, sort_keys=True) for name, state in widgets.get("state", {}).items()}
    found: dict[str, None] = {}

    def meet(name: str) -> None:
        if name not in found:
            found[name] = None
            for other in REFERENCE.findall(states.get(name, "")):
                meet(other)

    for cell in notebook.cells:
        outputs = json.dumps(cell.get("outputs", []), sort_keys=True)
        for name in [*ANIMATION_ID.findall(outputs), *MODEL_ID.findall(outputs)]:
            meet(name)
    for name in sorted(states, key=lambda name: REFERENCE.sub("", states[name])):
        meet(name)
    return list(found)


def _sorted_state(notebook: dict[str, Any]) -> dict[str, Any]:
    """The same notebook with its widgets in the order of their ids."""
    for widgets in notebook["metadata"].get("widgets", {}).values():
        widgets["state"] = dict(sorted(widgets.get("state", {}).items()))
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Writes the notebook in one step, so that a failed run leaves the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.validate(notebook)
    temporary = path.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, temporary)
    temporary.replace(path)


def run(source: Path, root: Path = ROOT) -> Path:
    """Executes one text source and writes its notebook; returns where."""
    target = notebook_of(source, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(normalize(execute(read_source(source), target.parent), root), target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("chapter", nargs="?", help="number of a chapter or name of a page; all when left out")
    arguments = parser.parse_args()
    chosen = [s for s in sources() if arguments.chapter in (None, s.stem, chapter_name(s))]
    if arguments.chapter and not chosen:
        sys.exit(f"No chapter {arguments.chapter!r}. There are: {', '.join(s.stem for s in sources()) or 'none yet'}.")
    for source in chosen:
        print(f"{source.relative_to(ROOT)} ...", end=" ", flush=True)
        started = time.perf_counter()
        try:
            target = run(source)
        except (nbclient.exceptions.CellExecutionError, nbclient.exceptions.CellTimeoutError) as error:
            sys.exit(f"failed; {notebook_of(source).relative_to(ROOT)} is left as it was.\n{error}")
        size = target.stat().st_size / 1e6
        print(f"{target.relative_to(ROOT)}: {time.perf_counter() - started:.0f} s, {size:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
