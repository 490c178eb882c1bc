"""``python -m nasbook``: the command line."""

import sys

from nasbook.cli import main

sys.exit(main())
