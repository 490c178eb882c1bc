"""Makes the environment that the book is built and tested in: ``python3 tools/environment.py .venv``.

Needs Python 3.10 to 3.13 and nothing else. Debian and Ubuntu ship Python without ``ensurepip`` (it is in
the package python3-venv); there, pip itself is fetched from the package index and checked against the
checksum below. What is installed is pinned by constraints.txt.

Standard library only, and plain enough for an old Python to read, so that it can say that it is too old.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SUPPORTED = ((3, 10), (3, 13))
PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
EXTRAS = "test,book,widgets"


def check_python():
    """Stops with one line when this Python is outside the tested range."""
    lowest, highest = SUPPORTED
    if not lowest <= sys.version_info[:2] <= highest:
        sys.exit(
            "nasbook needs Python %d.%d to %d.%d; %s is %d.%d. Name another one: make PYTHON=python3.12 ..."
            % (lowest + highest + (sys.executable,) + tuple(sys.version_info[:2]))
        )


def python_of(folder):
    """The interpreter of the environment in ``folder``."""
    return os.path.join(folder, "Scripts" if os.name == "nt" else "bin", "python")


def is_usable(folder):
    """Whether ``folder`` holds an environment of this Python version that has pip."""
    command = [python_of(folder), "-c", "import pip, sys; print(sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.decode().strip() == str(tuple(sys.version_info[:2]))


def fetch_pip(folder):
    """Downloads the pinned pip wheel from the package index into ``folder``; returns its path."""
    page_address = INDEX + "/pip/"
    try:
        with urllib.request.urlopen(page_address, timeout=60) as page:
            links = re.findall(r'href="([^"#]+)', page.read().decode())
            base = page.geturl()
        address = next(urllib.parse.urljoin(base, link) for link in links if link.endswith("/" + PIP_WHEEL))
        with urllib.request.urlopen(address, timeout=60) as answer:
            content = answer.read()
    except StopIteration:
        sys.exit("%s does not list %s." % (page_address, PIP_WHEEL))
    except OSError as error:
        sys.exit("Can't fetch pip from %s (%s). Install python3-venv, or set PIP_INDEX_URL." % (page_address, error))
    found = hashlib.sha256(content).hexdigest()
    if found != PIP_SHA256:
        sys.exit("%s has SHA-256 %s, expected %s: not used." % (address, found, PIP_SHA256))
    path = os.path.join(folder, PIP_WHEEL)
    with open(path, "wb") as file:
        file.write(content)
    return path


def create(folder):
    """Makes an empty environment with pip in ``folder``."""
    command = [sys.executable, "-m", "venv", "--clear", folder]
    quiet = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if quiet.returncode == 0 and is_usable(folder):
        return
    print("This Python can't put pip into an environment: fetching pip from %s" % INDEX, flush=True)
    subprocess.run([*command, "--without-pip"], check=True)
    with tempfile.TemporaryDirectory() as temporary:
        wheel = fetch_pip(temporary)
        # A wheel is a zip file, and pip's can run from inside it.
        subprocess.run([python_of(folder), wheel + "/pip", "install", "--quiet", "--no-index", wheel], check=True)


def install(folder):
    """Installs nasbook in place, with its tools, at exactly the versions of constraints.txt."""
    print("Installing the pinned packages (about 3 GB with torch; a minute or two after the downloads)", flush=True)
    pip = [python_of(folder), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", "constraints.txt", "--editable", ".[%s]" % EXTRAS], check=True, cwd=ROOT)


def main():
    check_python()
    folder = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, ".venv"))
    try:
        if not is_usable(folder):
            create(folder)
        install(folder)
    except subprocess.CalledProcessError as error:
        sys.exit(
            "The environment is not complete (exit code %d above). Try again; nothing else was changed."
            % error.returncode
        )


if __name__ == "__main__":
    main()
