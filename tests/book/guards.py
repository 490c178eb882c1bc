"""The guards of the book: each looks at files and returns what is wrong, one line each; nothing wrong, no lines.

They take paths, so that tests/book/test_guards.py can plant a fault in a copy and see that it is found.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chapters
import nbformat
import yaml

MAXIMUM_BYTES = 1_500_000
"""How large a notebook may be; beyond it GitHub and Colab get slow."""


def code_cells(notebook: Path) -> Iterator[tuple[int, Any]]:
    """The code cells of a notebook with their place, counted from 1 as Jupyter does."""
    cells = nbformat.read(notebook, as_version=4).cells
    yield from enumerate((cell for cell in cells if cell.cell_type == "code"), start=1)


def tags_of(cell: Any) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def tree_of(source: str) -> ast.Module:
    """The syntax tree of a cell; an empty one when the cell is not Python, which :func:`magics` reports."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


# -- one notebook -----------------------------------------------------------------------------------------------------


def execution_counts(notebook: Path) -> list[str]:
    """Every code cell ran, once, in order: counts are 1..n. nbval passes a stripped notebook without a word."""
    counts = [cell.execution_count for _, cell in code_cells(notebook)]
    expected = list(range(1, len(counts) + 1))
    return [] if counts == expected else [f"{notebook.name}: execution counts are {counts}, expected 1..{len(counts)}"]


def error_outputs(notebook: Path) -> list[str]:
    """No committed output is a traceback."""
    return [
        f"{notebook.name}, cell {place}: ends with {output.ename}"
        for place, cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error"
    ]


def semicolons(notebook: Path) -> list[str]:
    """No line ends with ``;``: outside IPython's own display it hides nothing, and nbval then compares an address."""
    return [
        f"{notebook.name}, cell {place}: a line ends with ';': {line.strip()}"
        for place, cell in code_cells(notebook)
        for line in cell.source.splitlines()
        if line.rstrip().endswith(";")
    ]


def magics(notebook: Path) -> list[str]:
    """Cells are plain Python: an unknown magic passes nbval and takes the rest of its cell with it."""
    found = []
    for place, cell in code_cells(notebook):
        lines = [line.strip() for line in cell.source.splitlines()]
        magic = next((line for line in lines if line.startswith(("%", "!", "?")) or line.endswith("?")), None)
        if magic and "\n".join(lines).count('"""') % 2 == 0:
            found.append(f"{notebook.name}, cell {place}: a magic: {magic}")
            continue
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            found.append(f"{notebook.name}, cell {place}: is not plain Python: {error.msg}")
    return found


class _Images(HTMLParser):
    """Collects the ``<img>`` tags of a piece of HTML that have no words."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img" and not (dict(attrs).get("alt") or "").strip():
            self.silent += 1


def _silent_images(html: str) -> int:
    parser = _Images()
    parser.feed(html)
    return parser.silent


_DIRECTIVE = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?:figure|image)\}.*\n(?P<body>(?:.*\n)*?)(?P=fence)\s*$", re.M)


def images_without_words(text: str) -> list[str]:
    """The images of a piece of MyST text that have no alternative text."""
    prose = re.sub(r"^(`{3,})\{code-cell\}.*?^\1\s*$", "", text, flags=re.M | re.S)
    found = [match[0] for match in re.finditer(r"!\[\s*\]\([^)]*\)", prose)]
    found += [
        match[0].splitlines()[0]
        for match in _DIRECTIVE.finditer(prose)
        if not re.search(r"^:?alt: *\S", match["body"], re.M)
    ]
    return found + ["<img> without alt"] * _silent_images(re.sub(r"`[^`\n]*`", "", prose))


def missing_alt(notebook: Path) -> list[str]:
    """Every figure says in words what it shows: images in outputs (HTML and others) and in the text.

    myst-nb gives a page the alternative text of an ``image/png`` output only from the cell's metadata
    (``mystnb: {image: {alt: ...}}``); ``nasbook.plots.show`` writes HTML with its own.
    """
    found = []
    for place, cell in enumerate(nbformat.read(notebook, as_version=4).cells, start=1):
        where = f"{notebook.name}, cell {place} of all"
        if cell.cell_type == "markdown":
            found += [f"{where}: no alternative text: {image}" for image in images_without_words(cell.source)]
            continue
        words = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                found += [f"{where}: an <img> without alt"] * _silent_images(data["text/html"])
            elif any(kind.startswith("image/") for kind in data) and not words.strip():
                found.append(f"{where}: an image output without alternative text")
    return found


def too_large(notebook: Path) -> list[str]:
    """A notebook has at most 1.5 MB."""
    size = notebook.stat().st_size
    return [f"{notebook.name}: {size / 1e6:.2f} MB, at most {MAXIMUM_BYTES / 1e6}"] if size > MAXIMUM_BYTES else []


def differences(source: Path, notebook: Path) -> list[str]:
    """The executed notebook has exactly the cells of its text source."""
    if not notebook.exists():
        return [f"{source.name}: was never run (make chapter N={chapters.chapter_name(source)})"]
    expected = chapters.read_source(source).cells
    actual = nbformat.read(notebook, as_version=4).cells
    if len(expected) != len(actual):
        return [f"{notebook.name}: {len(actual)} cells, {source.name} has {len(expected)}"]
    return [
        f"{notebook.name}, cell {place} of all: is not that of {source.name}; run the chapter again"
        for place, (a, b) in enumerate(zip(expected, actual, strict=True), start=1)
        if (a.cell_type, a.source.strip(), tags_of(a)) != (b.cell_type, b.source.strip(), tags_of(b))
    ]


def network_use(notebook: Path) -> list[str]:
    """At quick, a chapter needs no network (`make test` also blocks it while the cells run)."""
    modules = {"aiohttp", "ftplib", "http", "httpx", "requests", "socket", "urllib", "urllib3"}
    found = []
    for place, cell in code_cells(notebook):
        if "install" in tags_of(cell):
            continue
        for node in ast.walk(tree_of(cell.source)):
            names = imported_names(node)
            found += [
                f"{notebook.name}, cell {place}: imports {name}"
                for name in names
                if name.split(".")[0] in modules or name.startswith("torch.hub")
            ]
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("load_images") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and name.value != "digits" and not str(name.value).endswith(".npz"):
                    found.append(f"{notebook.name}, cell {place}: loads {name.value!r}, which is not embedded")
    return found


def imported_names(node: ast.AST) -> list[str]:
    """The dotted names that an import statement brings in; none for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


# -- notebooks and the package ----------------------------------------------------------------------------------------


@functools.cache  # chapters ask for the same modules again and again
def public_names(module: str, package: Path) -> set[str] | None:
    """The ``__all__`` of a module of nasbook, and the modules of a package that have one; None for no such module."""
    path = package.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return None
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            names |= set(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    if path.is_dir():
        inner = [p.stem for p in path.glob("*.py")] + [p.parent.name for p in path.glob("*/__init__.py")]
        names |= {name for name in inner if not name.startswith("_") and public_names(f"{module}.{name}", package)}
    return names


def private_imports(notebook: Path, package: Path) -> list[str]:
    """Chapters use what the package offers: names that stand in an ``__all__``, none with an underscore."""
    found = []
    for place, cell in code_cells(notebook):
        where = f"{notebook.name}, cell {place}"
        for node in ast.walk(tree_of(cell.source)):
            for name in imported_names(node):
                if name.split(".")[0] != "nasbook":
                    continue
                module, _, attribute = name.rpartition(".") if isinstance(node, ast.ImportFrom) else (name, "", "")
                offered = public_names(module, package)
                if offered is None or (isinstance(node, ast.Import) and "." in name and not offered):
                    found.append(f"{where}: no public module {module}")
                elif attribute and attribute not in offered:
                    found.append(f"{where}: {attribute} is not public in {module}")
                if any(part.startswith("_") for part in name.split(".")):
                    found.append(f"{where}: {name} is private")
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("nasbook."):
                if node.attr.startswith("_") and node.attr != "__version__":
                    found.append(f"{where}: {ast.unparse(node)} is private")
                offered = public_names(ast.unparse(node.value), package) if _is_dotted(node.value) else None
                if offered is not None and node.attr not in offered and node.attr != "__version__":
                    found.append(f"{where}: {node.attr} is not public in {ast.unparse(node.value)}")
    return found


def _is_dotted(node: ast.expr) -> bool:
    """Whether an expression is a plain dotted name, as modules have."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def install_cell(notebook: Path, root: Path) -> list[str]:
    """The first code cell installs this version from the book's home, on Colab only, and touches nothing else."""
    first = next((cell for _, cell in code_cells(notebook)), None)
    if first is None or "install" not in tags_of(first):
        return [f"{notebook.name}: its first code cell is not tagged install"]
    wanted = {
        f"{home_of(root)}/archive/refs/tags/v{version_of(root)}.zip": "the archive of this version at the book's home",
        '"--no-deps"': "--no-deps, so that Colab's torch stays",
        'if "google.colab" in sys.modules:': "the condition that this is Colab",
    }
    found = [
        f"{notebook.name}: the install cell lacks {why}: {text}"
        for text, why in wanted.items()
        if text not in first.source
    ]
    pins = (root / "constraints.txt").read_text(encoding="utf-8")
    for requirement in re.findall(r'"([\w.-]+==[\w.]+)"', first.source):
        if not re.search(rf"^{re.escape(requirement)}( |$)", pins, re.M):
            found.append(f"{notebook.name}: the install cell pins {requirement}, constraints.txt does not")
    return found


def exercises(notebook: Path, wrong_answers: dict[str, Iterable[Any]], check: Callable[[str, Any], Any]) -> list[str]:
    """Each exercise of a chapter has a stub and a solution, the solution passed, and each wrong answer is refused.

    Args:
        notebook: the executed chapter.
        wrong_answers: the ids of the chapter's exercises in the registry, with answers that must not pass.
        check: ``nasbook.check``, called with an id and an answer; its answer or what it prints says "Correct".
    """
    found = []
    cells = [cell for _, cell in code_cells(notebook)]
    for tag in ("exercise", "solution"):
        calls = {name for cell in cells if tag in tags_of(cell) for name in checked_ids(cell.source)}
        found += [f"{notebook.name}: {name} has no cell tagged {tag}" for name in sorted(set(wrong_answers) - calls)]
        found += [
            f"{notebook.name}: a cell tagged {tag} checks unknown {name}" for name in sorted(calls - set(wrong_answers))
        ]
    for cell in cells:
        if "solution" in tags_of(cell) and checked_ids(cell.source):
            said = json.dumps([output.get("text") or output.get("data", {}) for output in cell.outputs])
            passed = said.count("Correct")
            if passed < len(checked_ids(cell.source)):
                found.append(f"{notebook.name}: the solution of {', '.join(checked_ids(cell.source))} did not pass")
    for name, answers in wrong_answers.items():
        answers = list(answers)
        if not answers:
            found.append(f"{name}: the registry has no wrong answer to test it with")
        found += [f"{name}: the wrong answer {answer!r} passes" for answer in answers if passes(check, name, answer)]
    return found


def checked_ids(source: str) -> list[str]:
    """The ids that a cell gives to ``check``."""
    return [
        str(node.args[0].value)
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] == "check"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]


def passes(check: Callable[[str, Any], Any], name: str, answer: Any) -> bool:
    """Whether ``check`` accepts an answer."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as said:
        result = check(name, answer)
    return result is True or "Correct" in f"{result} {said.getvalue()}"


# -- the package ------------------------------------------------------------------------------------------------------

LAYERS = {
    "cli": 6,
    "plots": 5,
    "exercises": 5,
    "environment": 5,
    "experiments": 4,
    "methods": 3,
    "tabular": 3,
    "supernets": 2,
    "growth": 2,
    "continual": 2,
    "training": 2,
    "networks": 1,
    "operations": 1,
    "data": 0,
    "analysis": 0,
    "genotypes": 0,
}
"""A package imports from lower layers, and from its own; data, analysis and genotypes stand beside each other."""

EVERYWHERE = {"errors", "seeding", "files", "processes", "__version__"}
"""Modules that each other one may use."""

BUILDS_ON: dict[str, set[str]] = {
    "darts": set(),
    "growing": {"darts"},
    "growing_recurrent": {"darts"},
    "milenas": {"darts"},
    "stretchable": {"milenas"},
    "pc_darts": {"darts"},
    "entrannas": {"darts"},
    "entrannas_dst": {"entrannas"},
    "pr_darts": {"darts"},
    "firefly": set(),
    "firefly_cells": {"firefly"},
    "splitting_descent": set(),
    "net2net": set(),
    "hill_climbing": set(),
    "random_search": set(),
    "regularized_evolution": set(),
    "local_search": set(),
}
"""Methods that may use another method, because their paper does."""

SHARED_BY_METHODS = {"search", "growth", "growing_search", "sampled_search"}


def import_direction(package: Path) -> list[str]:
    """Imports run downwards only, also those inside functions; no method uses another one's file."""
    found = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts == ("__init__",) or parts == ("__main__",):
            continue
        here = parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                found.append(f"{'/'.join(parts)}: a relative import; write the whole name")
            for name in imported_names(node):
                there = name.split(".")[1:]
                if name.split(".")[0] != "nasbook" or not there or there[0] in EVERYWHERE | {here}:
                    if there[:1] == ["methods"] == [here] and not _may_use(parts[-1], there):
                        found.append(f"{'/'.join(parts)}: imports {name}, another method")
                    continue
                if there[0] not in LAYERS or here not in LAYERS | dict.fromkeys(EVERYWHERE, -1):
                    found.append(f"{'/'.join(parts)}: imports {name}, and guards.LAYERS does not say where they stand")
                elif not _is_below(there[0], here):
                    found.append(f"{'/'.join(parts)}: imports {name}, which is not below it")
    return found


def _is_below(there: str, here: str) -> bool:
    """Whether ``here`` may import from ``there``."""
    if here in EVERYWHERE:
        return False
    if here in {"data", "analysis", "genotypes"}:
        return (here, there) == ("analysis", "genotypes")
    return LAYERS[there] <= LAYERS[here]


def _may_use(method: str, there: list[str]) -> bool:
    """Whether the file of a method may import from another file of nasbook.methods."""
    if method == "__init__" or len(there) < 2:
        return True
    return there[1] in SHARED_BY_METHODS | BUILDS_ON.get(method, set()) | {method}


# -- the repository ---------------------------------------------------------------------------------------------------


def settings_of(root: Path) -> dict[str, Any]:
    """The book's ``_config.yml``."""
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def home_of(root: Path) -> str:
    """The book's public home."""
    return str(settings_of(root)["repository"]["url"])


def version_of(root: Path) -> str:
    """The package's version, as pyproject.toml has it."""
    match = re.search(r'^version = "(.+)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert match, "pyproject.toml has no version"
    return match[1]


def tracked_files(root: Path) -> list[Path]:
    """The text files of the repository that people write: tracked by git where there is git, without vendored ones."""
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    names = answer.stdout.split("\0") if answer.returncode == 0 else []
    paths = [root / name for name in names if name] or [
        p for p in root.rglob("*") if ".venv" not in p.parts and ".git" not in p.parts
    ]
    skipped = {".png", ".woff", ".woff2", ".npz", ".gz", ".pyc"}
    built = {"vendor", "_build"}
    return [p for p in paths if p.is_file() and p.suffix not in skipped and not built & set(p.relative_to(root).parts)]


def version_agreement(root: Path) -> list[str]:
    """The version stands in pyproject.toml, the package and CITATION.cff, and is the same."""
    version = version_of(root)
    places = {"nasbook/__init__.py": f'__version__ = "{version}"', "CITATION.cff": f"version: {version}"}
    return [
        f"{name}: does not say {text}"
        for name, text in places.items()
        if text not in (root / name).read_text(encoding="utf-8")
    ]


def home_agreement(root: Path) -> list[str]:
    """Whatever names the book's home names the one of _config.yml; pyproject.toml, CITATION.cff and README.md do."""
    home = home_of(root)
    owner, name = home.removeprefix("https://github.com/").split("/")
    pattern = re.compile(
        rf"github\.com/([\w.-]+)/({name})\b|colab\.research\.google\.com/github/([\w.-]+)/([\w.-]+)|([\w.-]+)\.github\.io/({name})\b"
    )
    found = []
    for path in tracked_files(root):
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="ignore")):
            if tuple(part for part in match.groups() if part) != (owner, name):
                found.append(f"{path.relative_to(root)}: {match[0]} is not the home {home}")
    for file in ("pyproject.toml", "CITATION.cff", "README.md"):
        if home not in (root / file).read_text(encoding="utf-8"):
            found.append(f"{file}: does not name the home {home}")
    return found


def machine_paths(root: Path) -> list[str]:
    """No file names a folder of the machine that it was written on."""
    pattern = re.compile(
        r"\.\./" + r"shared\b|/work" + r"/(?:main|shared)|/root" + r"/|/home" + r"/(?!some|you)\w+/|/Users" + r"/\w+/"
    )
    return [
        f"{path.relative_to(root)}: {match[0]}"
        for path in tracked_files(root)
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="ignore"))
    ]


def texts(root: Path) -> list[Path]:
    """The pages and the text sources of the chapters."""
    return [*sorted((root / "book").glob("*.md")), *sorted((root / "book" / "chapters").glob("*.md"))]


def page_alt(root: Path) -> list[str]:
    """Every image of a page or of README.md has alternative text."""
    pages = [*texts(root), root / "README.md"]
    return [
        f"{p.name}: no alternative text: {image}"
        for p in pages
        for image in images_without_words(p.read_text(encoding="utf-8"))
    ]


def citations(root: Path) -> list[str]:
    """Every cited key is in the bibliography, and every entry of the bibliography is cited."""
    entries = re.findall(
        r"^\s*@(?!comment|string)\w+\{([^,\s]+),",
        (root / "book" / "references.bib").read_text(encoding="utf-8"),
        re.M | re.I,
    )
    cited: dict[str, str] = {}
    for path in texts(root):
        for keys in re.findall(r"\{(?:cite|footcite)(?::\w+)?\}`([^`]+)`", path.read_text(encoding="utf-8")):
            cited |= {key.strip(): path.name for key in keys.split(",")}
    return [
        *(
            f"{cited[key]}: cites {key}, which references.bib does not have"
            for key in sorted(set(cited) - set(entries))
        ),
        *(f"references.bib: nobody cites {key}" for key in sorted(set(entries) - set(cited))),
        *(f"references.bib: {key} stands twice" for key in sorted({k for k in entries if entries.count(k) > 1})),
    ]


def contents(root: Path) -> list[str]:
    """The table of contents, the text sources, the notebooks, the pages and README's table name the same files."""

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key in ("file", "root"))
            node = list(node.values())
        if isinstance(node, list):
            for inner in node:
                yield from files(inner)

    listed = list(files(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))
    sources = {f"notebooks/{path.stem}" for path in chapters.sources(root)}
    notebooks = {f"notebooks/{path.stem}" for path in (root / "notebooks").glob("*.ipynb")}
    pages = {f"book/{path.stem}" for path in (root / "book").glob("*.md") if path.stem not in chapters.PAGES}
    found = [f"_toc.yml: {name} stands twice" for name in sorted({n for n in listed if listed.count(n) > 1})]
    found += [f"_toc.yml: lists {name}, which does not exist" for name in sorted(set(listed) - notebooks - pages)]
    found += [f"_toc.yml: does not list {name}" for name in sorted((notebooks | pages) - set(listed))]
    found += [f"{name}.ipynb: has no text source" for name in sorted(notebooks - sources)]
    readme = (root / "README.md").read_text(encoding="utf-8")
    table = set(
        re.findall(
            r"colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w.-]+/(notebooks/[\w-]+)\.ipynb", readme
        )
    )
    expected = {name for name in sources if name != "notebooks/claims"}
    found += [f"README.md: has no Colab link to {name}" for name in sorted(expected - table)]
    found += [f"README.md: links to {name}, which does not exist" for name in sorted(table - expected - sources)]
    return found
