"""Search for the setting that gives a sparsity: see st3/search.py, or --help."""

import sys

from st3.search import main

if __name__ == "__main__":
    sys.exit(main())
