"""Plugins that a run needs: recorded in config.yaml, so that resuming can report a missing one."""

from mvit_video.config.schema import Config
from mvit_video.data.transform_registry import TRANSFORMS
from mvit_video.engine.losses import LOSSES
from mvit_video.engine.trackers import TRACKERS, trackers_of
from mvit_video.model.registry import MODELS
from mvit_video.plugins import Registry, plugins_of


def with_plugins(config: Config) -> Config:
    """Add the plugins that the settings need. Raises ConfigError for an unregistered name."""
    chosen: list[tuple[Registry, str]] = [(MODELS, config.model.name), (LOSSES, config.train.loss)]
    chosen += [(TRANSFORMS, name) for name in config.data.transforms]
    chosen += [(TRACKERS, name) for name in trackers_of(config)]
    return config.model_copy(update={"plugins": tuple(dict.fromkeys((*config.plugins, *plugins_of(chosen))))})
