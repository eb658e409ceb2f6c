"""`python tools/infer.py VIDEO... --checkpoint C` is the same as `mvit-video predict ...`."""

import sys

from mvit_video.cli import main

if __name__ == "__main__":  # its worker processes import this file again
    sys.exit(main(["predict", *sys.argv[1:]]))
