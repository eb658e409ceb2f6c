"""mvit-video in a process that a signal hits at a chosen moment: `python killed_program.py SIGNAL EVENT COUNT VERB ...`.

EVENT is `step`, in the middle of the COUNT-th training step, or an audit event of Python's (os.rename, os.remove,
shutil.rmtree), just before the COUNT-th one under checkpoints/ takes place. Of several processes the second one is hit,
and not after torchrun has started them again.
"""

import os
import signal
import sys

from mvit_video.cli import main
from mvit_video.engine.trainer import Trainer

SIGNAL, EVENT, COUNT = signal.Signals[sys.argv[1]], sys.argv[2], int(sys.argv[3])
happened = 0


def happen():
    global happened
    happened += 1
    chosen = os.environ.get("RANK", "1") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if happened == COUNT and chosen:
        os.kill(os.getpid(), SIGNAL)


def watch(event, arguments):
    within_rmtree = event == "os.remove" and arguments[1] != -1  # it names files by the folder's handle
    if event == EVENT and (within_rmtree or "checkpoints" in str(arguments[0])):
        happen()


def watched_pass(self, *arguments, before=Trainer._pass):
    if EVENT == "step":
        happen()
    return before(self, *arguments)


Trainer._pass = watched_pass
sys.addaudithook(watch)
sys.exit(main(sys.argv[4:]))
