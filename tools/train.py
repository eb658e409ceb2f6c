"""`python tools/train.py ...` is the same as `mvit-video train ...`."""

import sys

from mvit_video.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
