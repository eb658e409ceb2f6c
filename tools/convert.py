"""`python tools/convert.py ...` is the same as `mvit-video convert ...`."""

import sys

from mvit_video.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
