"""Refreshes book/_static/vendor: the scripts that pages need, so that the site asks no other host for them.

Run by hand when a version changes (``make vendor``, needs npm); the result is committed. Each package is
fetched with ``npm pack`` and checked against the index's own checksum by npm. Only files that
pages can load, and the licences, are kept (about 6 MB), unedited but for EDITS.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "book" / "_static" / "vendor"

# Package -> (folder under vendor, files to keep). The widget manager draws its icons in woff2 only.
PACKAGES = {
    "mathjax@3.2.2": ("mathjax", ["LICENSE", "es5/tex-chtml-full.js", "es5/output/chtml/fonts/woff-v2/*.woff"]),
    "requirejs@2.3.7": ("requirejs", ["require.js"]),
    "@jupyter-widgets/html-manager@1.0.14": ("widgets", ["LICENSE", "dist/embed-amd.js", "dist/*.woff2"]),
}

# (file, pattern, replacement, count). The widget manager looks for its icons beside the *page*, at an address made of
# its package's name; nasbook.js says where they stand.
EDITS = [
    (
        "widgets/dist/embed-amd.js",
        r"new URL\((\w+\.uri),document\.location\)",
        r"new URL(window.__jupyter_widgets_assets_path__||\1,document.location)",
        6,
    )
]


def edit() -> None:
    """Applies EDITS, and stops when a new version of a file has no such place."""
    for name, pattern, replacement, count in EDITS:
        path = VENDOR / name
        text, done = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
        if done != count:
            raise SystemExit(f"{name}: {done} places to edit, expected {count}")
        path.write_text(text, encoding="utf-8")


def vendor(package: str, folder: Path, patterns: list[str]) -> int:
    """Fetches one package and keeps the files that match; returns their bytes."""
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["npm", "pack", "--silent", package], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(temporary).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        source = Path(temporary) / "package"
        shutil.rmtree(folder, ignore_errors=True)
        total = 0
        for pattern in patterns:
            found = sorted(source.glob(pattern))
            if not found:
                raise SystemExit(f"{package} has no {pattern}")
            for path in found:
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                total += path.stat().st_size
    return total


def main() -> None:
    lines = ["# What stands here, and whose it is", "", "Written by `make vendor`; do not edit.", ""]
    for package, (name, patterns) in PACKAGES.items():
        size = vendor(package, VENDOR / name, patterns)
        lines.append(f"* `{name}/`: npm package {package}, {size / 1e6:.1f} MB")
        print(lines[-1])
    edit()
    lines += ["", "Edited by `tools/vendor.py`: where widgets/dist/embed-amd.js looks for its icons.", ""]
    lines += ["Licences: MathJax Apache-2.0, RequireJS MIT (in the file's head), the widget manager BSD-3-Clause,"]
    lines += ["its icons (Font Awesome Free) SIL OFL 1.1 and CC BY 4.0."]
    (VENDOR / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
