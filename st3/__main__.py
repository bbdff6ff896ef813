"""`python -m st3 VERB …` is `st3 VERB …`."""

import sys

from st3.cli import main

sys.exit(main())
