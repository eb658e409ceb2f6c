"""`python tools/train.py ...` is the same as `mvit-video train ...`."""

import sys

from mvit_video.cli import main

if __name__ == "__main__":  # its worker processes import this file again
    sys.exit(main(["train", *sys.argv[1:]]))
