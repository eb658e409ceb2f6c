"""torchvision, which timm imports too, by way of the repair that some installations need."""

from mvit_video.compat import import_torchvision

import_torchvision()
