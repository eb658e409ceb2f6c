"""`python tools/verify.py ...` is the same as `mvit-video verify ...`."""

import sys

from mvit_video.cli import main

sys.exit(main(["verify", *sys.argv[1:]]))
