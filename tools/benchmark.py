"""`python tools/benchmark.py ...` is the same as `mvit-video benchmark ...`."""

import sys

from mvit_video.cli import main

if __name__ == "__main__":  # its worker processes import this file again
    sys.exit(main(["benchmark", *sys.argv[1:]]))
