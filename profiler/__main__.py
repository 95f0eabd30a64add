"""`python -m profiler VERB`; the same as `roofcal VERB`."""

import sys

from profiler.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
