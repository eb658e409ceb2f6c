"""`python tools/infer.py VIDEO... --checkpoint C` is the same as `mvit-video predict ...`."""

import sys

from mvit_video.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
