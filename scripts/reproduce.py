"""Run a table of results and write its report: see st3/reproduce.py, or --help."""

import sys

from st3.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
