"""The command line: search, train, grow, learn tasks, segment, count, draw, reproduce, and lists of what there is.

Every expected error ends in one line on standard error and a non-zero exit. Help comes first and loads nothing:
torch is imported when a command runs.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from nasbook import __version__
from nasbook.errors import NasbookError, unknown_name

__all__ = ["main"]

USAGE = """\
usage: nasbook COMMAND [OPTIONS]

Differentiable and growing neural architecture search.

  search METHOD          search for a cell: nasbook search darts --data digits --out runs/darts
                         or a recurrent one: nasbook search growing-recurrent --data closes.csv
  train GENOTYPE         train the network of a cell: nasbook train runs/darts/genotype.json
                         or torch's, on sequences: nasbook train lstm --data closes.csv
  grow METHOD            train a small network and grow it: nasbook grow firefly --network vgg11 --widths 16
  continual METHOD       learn task after task: nasbook continual firefly-continual --data digits --tasks 5
  test MASTER            test what it learned: nasbook test runs/firefly-continual/master.safetensors --task 2
  segment GENOTYPE       train its cells under a DeepLabV3 head: nasbook segment DARTS_V2 --data shapes
  count GENOTYPE         count its network: nasbook count DARTS_V2 --channels 36 --cells 20
  draw GENOTYPE          draw a cell: nasbook draw DARTS_V2 --out darts-v2.png
                         or what grew: nasbook draw runs/firefly/result.json --out growth.png
  reproduce EXPERIMENT   measure a table or figure of the book: nasbook reproduce darts-random --seed 1
  sweep                  many of them, on Ray: nasbook sweep --methods darts pc-darts --seeds 0-9
  records                show what was measured and what it says of the papers' claims
  list                   list methods, networks, data sets, operations, cells, experiments and scales

nasbook COMMAND --help shows a command's options. A GENOTYPE is a JSON file or a published name.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, 1 on an error, 2 on wrong usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"nasbook {__version__}")
        return 0
    from nasbook.cli.commands import COMMANDS
    from nasbook.cli.options import Interrupted, Usage
    from nasbook.cli.together import is_speaker, program, speaker, together
    from nasbook.errors import DataError

    def say(text: str) -> None:
        """Prints what is wrong in all processes alike, once."""
        if is_speaker():
            print(text, file=sys.stderr)

    try:
        if arguments[0] not in COMMANDS:
            raise Usage(str(unknown_name("command", arguments[0], COMMANDS)))
        with together(arguments):
            COMMANDS[arguments[0]](arguments[1:])
    except SystemExit as stop:  # tyro has printed a help text
        return int(stop.code or 0)
    except Usage as error:
        say(f"nasbook: {error}")
        return 2
    except DataError as error:
        print(f"{speaker()}: {error}", file=sys.stderr)
        return 1
    except NasbookError as error:
        say(f"nasbook: {error}")
        return 1
    except RuntimeError as error:
        if program() != ["nasbook"] and "connection" in str(error).lower():  # Gloo has no type for it
            print(f"{speaker()}: lost another process; its error says why.", file=sys.stderr)
            return 1
        if "memory" not in str(error).lower():  # CUDA's and the CPU's allocators both say it in words only
            raise
        print(f"{speaker()}: out of memory: lower --batch-size, --channels or --cells.", file=sys.stderr)
        return 1
    except OSError as error:  # what no part of the package has given words to
        if isinstance(error, BrokenPipeError):  # `nasbook list | head`
            sys.stderr.close()
            return 0
        print(f"{speaker()}: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 1
    except Interrupted:
        again = shlex.join([*program(), *arguments, *([] if "--resume" in arguments else ["--resume"])])
        say(f"\nnasbook: interrupted and saved. To go on: {again}")
        return 130
    except KeyboardInterrupt:
        say("\nnasbook: interrupted before there was anything to save.")
        return 130
    return 0
