"""The book as it is passes its guards; and each guard finds the fault that it is there for."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chapters
import guards
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem not in chapters.PAGES]

NOTEBOOK_GUARDS: dict[str, Callable[[Path], list[str]]] = {
    "execution counts": guards.execution_counts,
    "error outputs": guards.error_outputs,
    "semicolons": guards.semicolons,
    "magics": guards.magics,
    "alternative text": guards.missing_alt,
    "size": guards.too_large,
    "network": guards.network_use,
    "public imports": lambda notebook: guards.private_imports(notebook, ROOT / "nasbook"),
    "install cell": lambda notebook: guards.install_cell(notebook, ROOT),
}
REPOSITORY_GUARDS: dict[str, Callable[[Path], list[str]]] = {
    "home": guards.home_agreement,
    "version": guards.version_agreement,
    "machine paths": guards.machine_paths,
    "alternative text of pages": guards.page_alt,
    "citations": guards.citations,
    "contents": guards.contents,
    "import direction": lambda root: guards.import_direction(root / "nasbook"),
}


@pytest.mark.parametrize("guard", NOTEBOOK_GUARDS)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_pass(notebook: Path, guard: str) -> None:
    assert NOTEBOOK_GUARDS[guard](notebook) == []


@pytest.mark.parametrize("guard", REPOSITORY_GUARDS)
def test_the_repository_passes(guard: str) -> None:
    assert REPOSITORY_GUARDS[guard](ROOT) == []


@pytest.mark.parametrize("source", chapters.sources(ROOT), ids=lambda path: path.stem)
def test_text_equals_notebook(source: Path) -> None:
    assert guards.differences(source, chapters.notebook_of(source, ROOT)) == []


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_exercises_pass(notebook: Path) -> None:
    import nasbook
    from nasbook.exercises import list_exercises

    ours = {exercise.id: exercise.wrong_answers for exercise in list_exercises() if exercise.chapter == notebook.stem}
    assert len(ours) >= 4
    assert guards.exercises(notebook, ours, nasbook.check) == []


# -- planted faults ---------------------------------------------------------------------------------------------------

INSTALL = """import subprocess
import sys

if "google.colab" in sys.modules:
    archive = "https://github.com/nasbook/nasbook/archive/refs/tags/v0.1.0.zip"
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", archive, "jaxtyping==0.3.11"], check=True)"""


def code(source: str, *outputs: Any, tags: tuple[str, ...] = (), **metadata: Any) -> Any:
    """A code cell; :func:`save` counts it."""
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags), **metadata})


def shown(**data: str) -> Any:
    """An output that displays something: ``shown(html="<b>")``, ``shown(png="...")``."""
    kinds = {"html": "text/html", "png": "image/png", "svg": "image/svg+xml"}
    return nbformat.v4.new_output("display_data", data={kinds[name]: value for name, value in data.items()})


def said(text: str) -> Any:
    """An output on stdout."""
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def save(path: Path, *cells: Any) -> Path:
    """Writes a notebook whose code cells ran in order."""
    counted = [cell for cell in cells if cell.cell_type == "code"]
    for number, cell in enumerate(counted, start=1):
        cell.execution_count = number
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return tmp_path / "01-sample.ipynb"


def good_cells() -> list[Any]:
    return [
        code(INSTALL, tags=("install",)),
        nbformat.v4.new_markdown_cell("Words. ![a cell](cell.png)"),
        code("from nasbook.seeding import seed_everything", said("1; 2")),
        code("show()", shown(html='<img alt="A curve" src="data:,">')),
        code("plot()", shown(png=base64.b64encode(b"x").decode()), mystnb={"image": {"alt": "A curve"}}),
    ]


def test_a_good_notebook_has_no_fault(notebook: Path) -> None:
    save(notebook, *good_cells())
    package = notebook.parent / "nasbook"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "seeding.py").write_text('__all__ = ["seed_everything"]\n')
    ours = {name: guard for name, guard in NOTEBOOK_GUARDS.items() if name != "public imports"}
    assert {name: guard(notebook) for name, guard in ours.items()} == {name: [] for name in ours}
    assert guards.private_imports(notebook, package) == []


@pytest.mark.parametrize("counts", [(None, None, None, None), (1, 2, 4, 5), (1, 2, 3, 3), (2, 1, 3, 4)])
def test_finds_notebooks_that_did_not_run_in_order(notebook: Path, counts: tuple[int | None, ...]) -> None:
    save(notebook, *good_cells())
    content = nbformat.read(notebook, as_version=4)
    for cell, count in zip([c for c in content.cells if c.cell_type == "code"], counts, strict=True):
        cell.execution_count = count
    nbformat.write(content, notebook)
    assert guards.execution_counts(notebook)


def test_finds_an_error_output(notebook: Path) -> None:
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    assert "ValueError" in guards.error_outputs(save(notebook, code("f()", error)))[0]


@pytest.mark.parametrize("source", ["plot();", "plot() ; ", "a = 1;\nb = 2"])
def test_finds_a_trailing_semicolon(notebook: Path, source: str) -> None:
    assert guards.semicolons(save(notebook, code(source)))


@pytest.mark.parametrize(
    "source", ["%matplotlib inline", "%%time\nf()", "!ls", "f?", "  %timeit f()", "x = !ls", "x = %pwd"]
)
def test_finds_magics(notebook: Path, source: str) -> None:
    assert guards.magics(save(notebook, code(source)))


@pytest.mark.parametrize(
    "cell",
    [
        code("show()", shown(html='<img src="a.png">')),
        code("show()", shown(html='<p><img alt=" " src="a.png"></p>')),
        code("show()", shown(png="eA==")),
        code("show()", shown(svg="<svg/>")),
        nbformat.v4.new_markdown_cell("![](a.png)"),
        nbformat.v4.new_markdown_cell('<img src="a.png">'),
        nbformat.v4.new_markdown_cell("```{figure} a.png\n:name: x\n\nwords\n```"),
        nbformat.v4.new_markdown_cell(":::{image} a.png\n:::"),
    ],
)
def test_finds_figures_without_words(notebook: Path, cell: Any) -> None:
    assert guards.missing_alt(save(notebook, cell))


def test_finds_a_large_notebook(notebook: Path) -> None:
    assert guards.too_large(save(notebook, code("f()", said("x" * 1_600_000))))


@pytest.mark.parametrize(
    "source",
    [
        "import requests",
        "from urllib.request import urlopen",
        "load_images('cifar10')",
        "torch.hub",
        "import torch.hub",
    ],
)
def test_finds_network_use(notebook: Path, source: str) -> None:
    found = guards.network_use(save(notebook, code(source)))
    assert bool(found) == (source != "torch.hub")


def test_a_chapter_that_reaches_out_does_not_run(tmp_path: Path) -> None:
    sources = [
        "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=5)",
        "socket.getaddrinfo('example.org', 80)",
    ]
    for source in sources:
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("import socket"), nbformat.v4.new_code_cell(source)]
        )
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="NetworkUsed"):
            chapters.execute(book, tmp_path)


def test_tests_have_no_network() -> None:
    import socket

    with pytest.raises(OSError, match="No network here"):
        socket.create_connection(("192.0.2.1", 80), timeout=5)


@pytest.mark.parametrize(
    "source",
    [
        "from nasbook.parts import hidden",
        "from nasbook.parts import _secret",
        "from nasbook.parts.inner import anything",
        "from nasbook.nothing import anything",
        "import nasbook.parts.inner",
        "import nasbook\nnasbook.hidden()",
        "import nasbook\nnasbook._secret",
    ],
)
def test_finds_private_imports(notebook: Path, source: str) -> None:
    parts = notebook.parent / "nasbook" / "parts"
    parts.mkdir(parents=True)
    (parts.parent / "__init__.py").write_text('__all__ = ["check"]\n')
    (parts / "__init__.py").write_text('__all__ = ["offered"]\nhidden = 1\n')
    (parts / "inner.py").write_text("anything = 1\n")
    offered = "import nasbook\nfrom nasbook import check, parts\nfrom nasbook.parts import offered\nnasbook.check"
    assert guards.private_imports(save(notebook, code(offered)), parts.parent) == []
    assert guards.private_imports(save(notebook, code(source)), parts.parent)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v0.1.0", "v0.0.9"),
        ('"--no-deps", ', ""),
        ("nasbook/nasbook", "someone/nasbook"),
        ('if "google.colab" in sys.modules:', "if True:"),
        ("0.3.11", "0.0.1"),
    ],
)
def test_finds_a_wrong_install_cell(notebook: Path, old: str, new: str) -> None:
    wrong = INSTALL.replace(old, new)
    assert wrong != INSTALL
    assert guards.install_cell(save(notebook, code(wrong, tags=("install",))), ROOT)
    assert guards.install_cell(save(notebook, code(INSTALL)), ROOT), "the tag is missing"


def test_finds_exercises_that_do_not_check(notebook: Path) -> None:
    def check(name: str, answer: object) -> bool:
        print("Correct" if answer == 4 else "Not yet")
        return answer == 4

    stub = code('nasbook.check("a", ...)', said("Not yet"), tags=("exercise",))
    solution = code('nasbook.check("a", 4)', said("Correct"), tags=("solution",))
    failed = code('nasbook.check("a", 5)', said("Not yet"), tags=("solution",))
    stray = code('nasbook.check("b", 5)', said("Correct"), tags=("solution",))
    assert guards.exercises(save(notebook, stub, solution), {"a": [5]}, check) == []
    assert "did not pass" in guards.exercises(save(notebook, stub, failed), {"a": [5]}, check)[0]
    assert "tagged solution" in guards.exercises(save(notebook, stub), {"a": [5]}, check)[0]
    assert "tagged exercise" in guards.exercises(save(notebook, solution), {"a": [5]}, check)[0]
    assert "unknown b" in guards.exercises(save(notebook, stub, solution, stray), {"a": [5]}, check)[0]
    assert "wrong answer 4 passes" in guards.exercises(save(notebook, stub, solution), {"a": [4]}, check)[0]
    assert "no wrong answer" in guards.exercises(save(notebook, stub, solution), {"a": []}, check)[0]


@pytest.mark.parametrize("change", ["source", "tags", "cells", "missing"])
def test_finds_a_notebook_that_is_not_its_text(tmp_path: Path, change: str) -> None:
    source = tmp_path / "01-sample.md"
    head = "---\njupytext:\n  text_representation: {extension: .md, format_name: myst}\n---\n# Title\n\n"
    cell = "```{code-cell} ipython3\n:tags: [a]\n\nprint(1)\n```\n"
    source.write_text(head + cell)
    notebook = save(tmp_path / "01-sample.ipynb", *chapters.read_source(source).cells)
    assert guards.differences(source, notebook) == []
    if change == "missing":
        notebook.unlink()
    changed = {"source": cell.replace("1", "2"), "tags": cell.replace("[a]", "[b]"), "cells": cell + "\nmore\n"}
    source.write_text(head + changed.get(change, cell))
    assert guards.differences(source, notebook)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("genotypes.py", "from nasbook.operations import build_operation"),
        ("operations/convolutional.py", "import nasbook.supernets"),
        ("supernets/cells.py", "def f():\n    from nasbook.methods import darts"),
        ("methods/darts.py", "from nasbook.experiments import reproduce"),
        ("methods/darts.py", "from nasbook.methods.random_search import Search"),
        ("methods/darts.py", "from nasbook.plots import show"),
        ("experiments/registry.py", "from nasbook import cli"),
        ("analysis/costs.py", "from nasbook.networks import DerivedNetwork"),
        ("data/images.py", "from nasbook.training import fit"),
        ("errors.py", "from nasbook.genotypes import Genotype"),
        ("unheard_of.py", "from nasbook.networks import DerivedNetwork"),
        ("training/fit.py", "from .bilevel import step"),
    ],
)
def test_finds_imports_that_run_upwards(tmp_path: Path, file: str, line: str) -> None:
    target = tmp_path / file
    target.parent.mkdir(exist_ok=True)
    target.write_text("from nasbook.errors import InvalidInput\n" if file != "errors.py" else "")
    assert guards.import_direction(tmp_path) == []
    target.write_text(line + "\n")
    assert guards.import_direction(tmp_path)


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    """A repository with one chapter that the guards of the repository accept."""
    for folder in ("book/chapters", "notebooks", "nasbook"):
        (tmp_path / folder).mkdir(parents=True)
    home = "https://github.com/nasbook/nasbook"
    colab = "https://colab.research.google.com/github/nasbook/nasbook/blob/main/notebooks/01-sample.ipynb"
    for name, text in {
        "_config.yml": f"repository:\n  url: {home}\n",
        "_toc.yml": "format: jb-book\nroot: book/intro\nparts:\n  - chapters:\n      - file: notebooks/01-sample\n",
        "README.md": f"{home} [Colab]({colab})\n",
        "CITATION.cff": f"repository-code: {home}\nversion: 0.1.0\n",
        "pyproject.toml": f'version = "0.1.0"\nHomepage = "{home}"\n',
        "nasbook/__init__.py": '__version__ = "0.1.0"\n',
        "book/intro.md": "# Intro\n\n{cite:t}`liu` and {cite:p}`liu, chu`. ![A cell](cell.png)\n",
        "book/references.bib": "@article{liu,\n title={A}\n}\n@article{chu,\n title={B}\n}\n",
        "book/chapters/01-sample.md": "# Sample\n",
    }.items():
        (tmp_path / name).write_text(text)
    save(tmp_path / "notebooks" / "01-sample.ipynb")
    for name, guard in REPOSITORY_GUARDS.items():
        assert guard(tmp_path) == [], name
    return tmp_path


@pytest.mark.parametrize(
    ("guard", "file", "old", "new"),
    [
        ("home", "CITATION.cff", "nasbook/nasbook", "someone/nasbook"),
        ("home", "README.md", "github/nasbook/nasbook", "github/someone/nasbook"),
        ("home", "pyproject.toml", "https://github.com/nasbook/nasbook", "https://example.org"),
        ("version", "CITATION.cff", "0.1.0", "0.2.0"),
        ("version", "nasbook/__init__.py", "0.1.0", "0.2.0"),
        ("machine paths", "README.md", "Colab", ".." + "/shared/data"),
        ("machine paths", "book/intro.md", "Intro", "/ho" + "me/ann/x"),
        ("alternative text of pages", "book/intro.md", "![A cell]", "![]"),
        ("citations", "book/intro.md", "liu, chu", "liu, wang"),
        ("citations", "book/intro.md", "liu, chu", "liu"),
        ("citations", "book/references.bib", "chu", "liu"),
        ("contents", "_toc.yml", "01-sample", "02-other"),
        ("contents", "_toc.yml", "      - file: notebooks/01-sample", "      - file: book/intro"),
        ("contents", "README.md", "notebooks/01-sample", "notebooks/02-other"),
        ("import direction", "nasbook/__init__.py", "", ""),
    ],
)
def test_finds_faults_of_the_repository(small_book: Path, guard: str, file: str, old: str, new: str) -> None:
    path = small_book / file
    path.write_text(path.read_text().replace(old, new))
    if guard == "import direction":
        (small_book / "nasbook" / "genotypes.py").write_text("import nasbook.cli\n")
    assert REPOSITORY_GUARDS[guard](small_book)


@pytest.mark.parametrize("added", ["notebooks/02-more.ipynb", "book/page.md", "book/chapters/02-more.md"])
def test_finds_files_outside_the_contents(small_book: Path, added: str) -> None:
    path = small_book / added
    shutil.copy(small_book / "notebooks" / "01-sample.ipynb", path) if path.suffix == ".ipynb" else path.write_text(
        "# P\n"
    )
    assert guards.contents(small_book)


# -- the tools --------------------------------------------------------------------------------------------------------


def test_a_second_run_writes_the_same_notebook(tmp_path: Path) -> None:
    folder = tmp_path / "book" / "chapters"
    folder.mkdir(parents=True)
    cells = [
        f"import ipywidgets\nipywidgets.IntSlider(description={str(tmp_path)!r} and 'n')",
        "from IPython.display import HTML\nimport uuid\nHTML(f'<div id=\"_anim_img{uuid.uuid4().hex}\">')",
        f"print({str(tmp_path)!r} + '/x')",
        "print(1)\nprint(2)",
    ]
    source = folder / "01-sample.md"
    source.write_text("# T\n\n" + "\n\n".join(f"```{{code-cell}} ipython3\n{cell}\n```" for cell in cells) + "\n")
    first = chapters.run(source, tmp_path).read_text()
    assert chapters.run(source, tmp_path).read_text() == first
    assert guards.execution_counts(tmp_path / "notebooks" / "01-sample.ipynb") == []
    assert "./x" in first


def test_a_chapter_that_fails_leaves_the_old_notebook(tmp_path: Path) -> None:
    folder = tmp_path / "book" / "chapters"
    folder.mkdir(parents=True)
    source = folder / "01-sample.md"
    source.write_text("```{code-cell} ipython3\nprint(1)\n```\n")
    before = chapters.run(source, tmp_path).read_bytes()
    source.write_text("```{code-cell} ipython3\n1 / 0\n```\n")
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        chapters.run(source, tmp_path)
    assert chapters.notebook_of(source, tmp_path).read_bytes() == before
    assert list((tmp_path / "notebooks").iterdir()) == [chapters.notebook_of(source, tmp_path)]
