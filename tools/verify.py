"""`python tools/verify.py ...` is the same as `mvit-video verify ...`."""

import sys

from mvit_video.cli import main

if __name__ == "__main__":  # its worker processes import this file again
    sys.exit(main(["verify", *sys.argv[1:]]))
