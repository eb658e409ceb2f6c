"""`python tools/evaluate.py ...` is the same as `mvit-video evaluate ...`."""

import sys

from mvit_video.cli import main

if __name__ == "__main__":  # its worker processes import this file again
    sys.exit(main(["evaluate", *sys.argv[1:]]))
