"""`python tools/evaluate.py ...` is the same as `mvit-video evaluate ...`."""

import sys

from mvit_video.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
