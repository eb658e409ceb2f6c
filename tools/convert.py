"""`python tools/convert.py ...` is the same as `mvit-video convert ...`."""

import sys

from mvit_video.cli import main

if __name__ == "__main__":  # its worker processes import this file again
    sys.exit(main(["convert", *sys.argv[1:]]))
