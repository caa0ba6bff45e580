"""`python -m memplan.profile script.py ARGS`: the memory of a script of one's own."""

import sys

from memplan.cli.attached import run_script

if __name__ == "__main__":
    sys.exit(run_script(sys.argv[1:]))
