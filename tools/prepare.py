"""`python tools/prepare.py ...` is the same as `mvit-video prepare ...`."""

import sys

from mvit_video.cli import main

if __name__ == "__main__":  # its worker processes import this file again
    sys.exit(main(["prepare", *sys.argv[1:]]))
