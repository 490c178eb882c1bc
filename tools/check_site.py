"""Looks at the built book in headless Chromium: ``python tools/check_site.py _build/html [--screenshots FOLDER]``.

Serves the folder on this machine and opens every page, light and dark, wide and phone-wide. Fails when a page
asks another host for anything, misses a file, logs an error, scrolls sideways, shows a formula or a widget that
did not render, an image without alternative text, or a Colab button that opens another notebook.

Needs ``chromium`` and ``chromedriver`` on the path; standard library otherwise. Not part of ``make test``.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
VIEWS = {"wide": 1400, "phone": 390}
THEMES = ("light", "dark")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Nothing but this machine has an address, so that a page can't lean on another host unnoticed.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

# Everything that one page can tell about itself, once its scripts are done.
PAGE_REPORT = """
const images = [...document.querySelectorAll('img')];
const views = document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]');
return {
  title: document.title,
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  formulas: document.querySelectorAll('.math').length,
  typeset: document.querySelectorAll('.math mjx-container').length,
  formulaErrors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent),
  views: views.length,
  widgets: [...views].filter(v => v.parentElement.querySelector('.jupyter-widgets')).length,
  labels: [...document.querySelectorAll('.jupyter-widgets .widget-label')]
    .filter(l => l.textContent.includes('$')).length,
  noAlt: images.filter(i => !(i.getAttribute('alt') || '').trim()).map(i => i.src.slice(0, 80)),
  broken: images.filter(i => i.complete && !i.naturalWidth && i.offsetParent).map(i => i.src.slice(0, 80)),
  colab: [...document.querySelectorAll('a[href*="colab.research.google.com"]')].map(a => a.href),
  theme: document.documentElement.dataset.theme,
};
"""
READY = """
const done = arguments[0];
const typeset = (window.MathJax && MathJax.startup && MathJax.startup.promise) || Promise.resolve();
typeset.then(() => setTimeout(done, document.querySelector('script[type*="jupyter.widget-state"]') ? 1500 : 600));
"""


class Browser:
    """A headless Chromium driven through chromedriver's HTTP interface."""

    def __init__(self, profile: str) -> None:
        driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
        if not driver or not chromium:
            raise SystemExit("tools/check_site.py needs chromium and chromedriver on the path.")
        port = free_port()
        self.process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        self.address = f"http://127.0.0.1:{port}"
        options = {"binary": chromium, "args": [*CHROMIUM_FLAGS, f"--user-data-dir={profile}"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        for _ in range(100):
            try:
                answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
                break
            except ConnectionError:
                time.sleep(0.1)
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            raise SystemExit("chromedriver does not answer.")
        self.address += f"/session/{answer['sessionId']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One command of the WebDriver protocol."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def devtools(self, command: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, theme: str, width: int) -> None:
        """Sets the colour scheme that the reader's system asks for, and the width of the window."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, address: str) -> dict[str, Any]:
        """Opens a page, waits until formulas and widgets are there, and asks it about itself."""
        self.call("POST", "/url", {"url": address})
        self.call("POST", "/execute/async", {"script": READY, "args": []})
        report: dict[str, Any] = self.call("POST", "/execute/sync", {"script": PAGE_REPORT, "args": []})
        return report

    def screenshot(self, path: Path, width: int) -> None:
        """The whole page as a PNG file."""
        height = min(self.devtools("Page.getLayoutMetrics")["cssContentSize"]["height"], 16000)
        window = {"width": width, "deviceScaleFactor": 1, "mobile": width < 600}
        # A window as high as the page: what is beyond a window, Chromium lays out anew, with the sidebars elsewhere.
        self.devtools("Emulation.setDeviceMetricsOverride", height=int(height), **window)
        time.sleep(0.5)
        answer = self.devtools("Page.captureScreenshot")
        self.devtools("Emulation.setDeviceMetricsOverride", height=900, **window)
        path.write_bytes(base64.b64decode(answer["data"]))

    def events(self) -> tuple[list[str], list[str], list[str]]:
        """Since the last call: the addresses asked for, the ones that failed, the errors on the console."""
        asked, failed = [], []
        for entry in self.call("POST", "/se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.responseReceived" and message["params"]["response"]["status"] >= 400:
                failed.append(message["params"]["response"]["url"])
        errors = [e["message"] for e in self.call("POST", "/se/log", {"type": "browser"}) if e["level"] == "SEVERE"]
        return asked, failed, errors

    def close(self) -> None:
        """Ends the browser and its driver."""
        try:
            self.call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def problems_of(page: str, report: dict[str, Any], host: str, events: tuple[list[str], ...]) -> list[str]:
    """What is wrong with a page, one line each."""
    asked, *rest = events
    # A browser looks for this file by itself on index.html, which only sends it on to the first page.
    failed, errors = ([line for line in lines if "/favicon.ico" not in line] for lines in rest)
    found = [f"asks another host: {a}" for a in sorted(set(asked)) if is_foreign(a, host)]
    found += [f"is missing a file: {a}" for a in sorted(set(failed))]
    found += [f"logs an error: {e}" for e in errors]
    if report["overflow"] > 0:
        found.append(f"scrolls sideways by {report['overflow']} px")
    if report["formulas"] != report["typeset"]:
        found.append(f"shows {report['typeset']} of {report['formulas']} formulas")
    found += [f"has a formula that does not typeset: {e}" for e in report["formulaErrors"]]
    if report["views"] != report["widgets"]:
        found.append(f"shows {report['widgets']} of {report['views']} widgets")
    if report["labels"]:
        found.append(f"has {report['labels']} widget labels with untypeset mathematics")
    found += [f"has an image without alternative text: {i}" for i in report["noAlt"]]
    found += [f"has an image that does not load: {i}" for i in report["broken"]]
    if page.startswith("notebooks/"):
        expected = f"{colab_root()}/{page.removesuffix('.html')}.ipynb"
        if expected not in report["colab"]:
            found.append(f"has no Colab button to {expected}")
    return found


def is_foreign(address: str, host: str) -> bool:
    """Whether an address asks anyone but our own server."""
    parts = urlsplit(address)
    return parts.scheme not in {"data", "blob", "about", "chrome"} and parts.netloc != host


@functools.cache
def colab_root() -> str:
    """Where Colab opens our files from, derived from ``repository.url``."""
    settings = (ROOT / "_config.yml").read_text(encoding="utf-8")
    home = re.search(r"^repository:\n(?:  .*\n)*?  url: *(\S+)", settings, re.M)
    branch = re.search(r"^repository:\n(?:  .*\n)*?  branch: *(\S+)", settings, re.M)
    if not home or not branch:
        raise SystemExit("_config.yml has no repository.url or no repository.branch.")
    return f"https://colab.research.google.com/github{urlsplit(home[1]).path}/blob/{branch[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder that holds index.html")
    parser.add_argument("--screenshots", type=Path, help="also write one PNG file a page and view into this folder")
    parser.add_argument("--only", default="", help="look only at pages whose path contains this")
    arguments = parser.parse_args()
    pages = sorted(str(p.relative_to(arguments.site)) for p in arguments.site.rglob("*.html"))
    pages = [p for p in pages if not p.startswith("_static") and p != "genindex.html" and arguments.only in p]
    if not pages:
        sys.exit(f"No page in {arguments.site}. Build the book first: make html.")
    handler = functools.partial(QuietHandler, directory=str(arguments.site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    problems: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            for view, width in VIEWS.items():
                for theme in THEMES:
                    browser.look(theme, width)
                    for page in pages:
                        report = browser.open(f"http://{host}/{page}")
                        for text in problems_of(page, report, host, browser.events()):
                            problems.setdefault(f"{page} {text}".replace(f"http://{host}", ""), []).append(
                                f"{view} {theme}"
                            )
                        if arguments.screenshots:
                            arguments.screenshots.mkdir(parents=True, exist_ok=True)
                            name = page.removesuffix(".html").replace("/", "-")
                            browser.screenshot(arguments.screenshots / f"{name}-{view}-{theme}.png", width)
        finally:
            browser.close()
            server.shutdown()
    lines = [f"{text} ({', '.join(views)})" for text, views in problems.items()]
    print("\n".join(lines) or f"{len(pages)} pages in {len(VIEWS) * len(THEMES)} views: nothing wrong.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
