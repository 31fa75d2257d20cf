"""`python -m fastws`: the same as the command `fastws`."""

import sys

from fastws.cli import main

if __name__ == "__main__":
    sys.exit(main())
