"""Runs many command lines: ``python command_line.py < CASES``, a JSON list of argument lists or objects.

Each runs in a process of its own, forked from one that has imported nasbook (importing anew would take most of the
time). Says for each: exit status, standard output, standard error, and which files it made, changed or removed.
An object may also give ``limit`` (largest file that may be written, as a full disk would) and ``environment``.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from nasbook import cli, experiments, plots  # noqa: F401 -- the slow imports
from nasbook.cli import commands  # noqa: F401 -- likewise


def files() -> dict[str, str]:
    """A digest of every file in the working folder."""
    return {str(p): hashlib.md5(p.read_bytes()).hexdigest() for p in Path().rglob("*") if p.is_file()}


def run(case: dict[str, Any]) -> dict[str, Any]:
    before = files()
    out, err = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for number, (_, write) in enumerate((out, err), start=1):
            os.dup2(write, number)
        for end in (*out, *err):
            os.close(end)
        os.environ.update(case.get("environment", {}))
        if "limit" in case:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case["limit"], case["limit"]))
        code = 99
        try:
            code = cli.main(case["arguments"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    texts = []
    for read, write in (out, err):
        os.close(write)
        with open(read, encoding="utf-8") as file:  # noqa: PTH123 -- a descriptor
            texts.append(file.read())
    _, status = os.waitpid(child, 0)
    after = files()
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1], "changed": changed}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # the first optimiser imports half of torch
    cases = [case if isinstance(case, dict) else {"arguments": case} for case in json.load(sys.stdin)]
    json.dump([run(case) for case in cases], sys.stdout)
