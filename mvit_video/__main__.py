"""`python -m mvit_video` is the same as `mvit-video`."""

import sys

from mvit_video.cli import main

sys.exit(main())
