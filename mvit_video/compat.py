"""Repairs that let torchvision and pytorchvideo be imported beside current torch; all of them in this file.

- torchvision registers shape functions for its compiled operators `nms` and `qnms` when it is imported. Where its
  compiled part does not match torch (a CPU build beside a CUDA build, or versions that differ) the operators are not
  there, and the import ends in `operator torchvision::nms does not exist`, although the networks and transforms that
  we use need neither. Their two schemas, without an implementation, are all that the import asks for.
- pytorchvideo 0.1.5, its last release, imports `torchvision.transforms.functional_tensor`, which torchvision renamed
  to `_functional_tensor` in 0.17. The old name is made to mean the new module.

Each repair is made only where the import needs it. Nothing of ours imports either package except through here, so
that `import mvit_video` and inference work without them.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import torch

from mvit_video.errors import ConfigError

_DETECTION_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OLD_NAME, _NEW_NAME = "torchvision.transforms.functional_tensor", "torchvision.transforms._functional_tensor"


def import_torchvision(module: str = "torchvision") -> ModuleType:
    """torchvision, or a module of it such as `torchvision.models.video`. Raises ConfigError where it cannot be had."""
    cure = f"install the torchvision that matches torch {torch.__version__}"
    try:
        return importlib.import_module(module)
    except RuntimeError as reason:
        if "operator torchvision::" not in str(reason):
            raise _cannot("torchvision", reason, cure) from None
    except (ImportError, OSError) as reason:
        raise _cannot("torchvision", reason, cure) from None
    _define_detection_operators()
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as reason:
        raise _cannot("torchvision", reason, cure) from None


def import_pytorchvideo(module: str = "pytorchvideo") -> ModuleType:
    """pytorchvideo, or a module of it such as `pytorchvideo.transforms`. Raises ConfigError where it cannot be had.

    After one call a plain `from pytorchvideo.transforms import ...` works as well.
    """
    import_torchvision()
    if _OLD_NAME not in sys.modules and find_spec(_OLD_NAME) is None:
        sys.modules[_OLD_NAME] = importlib.import_module(_NEW_NAME)
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as reason:
        raise _cannot("pytorchvideo", reason, "run 'pip install pytorchvideo==0.1.5'") from None


def _define_detection_operators() -> None:
    """Schemas for those of `nms` and `qnms` that torch does not know; calling one still fails, as it did before."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _DETECTION_SCHEMA)


def _cannot(package: str, reason: Exception, cure: str) -> ConfigError:
    return ConfigError(f"package '{package}' cannot be imported ({' '.join(str(reason).split())}): {cure}")
