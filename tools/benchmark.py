"""`python tools/benchmark.py ...` is the same as `mvit-video benchmark ...`."""

import sys

from mvit_video.cli import main

sys.exit(main(["benchmark", *sys.argv[1:]]))
