"""`model.name=auto`: the network that a checkpoint is of, with the input that it was trained on."""

from collections.abc import Mapping
from typing import Any

from mvit_video.config.load import config_from_dict
from mvit_video.config.schema import AUTO, Config, InputSettings
from mvit_video.errors import ConfigError
from mvit_video.model.checks import is_nested
from mvit_video.model.weights.convert import usual_input
from mvit_video.model.weights.load import read_weights, recognise_model
from mvit_video.model.weights.zoo import zoo_entry


def resolve_model_name(config: Config) -> Config:
    """The configuration with model.name=auto replaced by the network of model.weights; others stay as they are.

    Arguments and preprocessing come with it, except for what the configuration sets itself. Raises ConfigError where
    the weights do not tell, CheckpointError where they cannot be read.
    """
    if config.model.name != AUTO:
        return config
    name, arguments, inputs = _network_of(config.model.weights)
    given = {key: getattr(config.data, key) for key in config.data.model_fields_set}
    tree = config.model_dump(exclude_unset=True)
    tree["model"] |= {"name": name, "arguments": arguments | config.model.arguments}
    tree["data"] = inputs.model_dump() | given
    return config_from_dict(tree, f"the input of {config.model.weights} with the settings given")


def _network_of(source: str | None) -> tuple[str, dict[str, Any], InputSettings]:
    if source is None:
        raise ConfigError(
            "model.name = auto needs model.weights, whose network it then is: set model.weights, or name the network"
        )
    entry = zoo_entry(source)  # by its name, so that nothing need be fetched
    if entry is not None and entry.preprocessing.num_frames == 1:
        raise ConfigError(
            f"model.name = auto: {source} is a network for images: name one for videos, such as model.name=mvitv2_s_16x4, "
            "which then starts from it"
        )
    if entry is not None and entry.arguments is not None:
        return entry.model, entry.arguments, entry.preprocessing
    weights = read_weights(source)
    if weights.pretrained is not None:
        trained = weights.pretrained
        return trained.name, fine_tuned_arguments(trained.arguments), trained.preprocessing
    found = recognise_model(weights) if entry is not None or weights.lacks else None
    if found is not None:
        return *found, entry.preprocessing if entry else usual_input(found[0])
    card = weights.card
    if card is None:
        raise ConfigError(
            f"model.name = auto: {source} does not say which network it is of, as checkpoints of ours and names of "
            "'mvit-video models' do: set model.name"
        )
    return card.name, dict(card.arguments), card.preprocessing


def fine_tuned_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the classifier that starts from pre-training with these: MaskFeat's form (arXiv 2112.09133).

    It classifies the mean of the patches, and a last stage that kept its grid in pre-training strides as the one before.
    """
    form = dict(arguments) | {"pooling": "mean_without_cls"}
    strides = form.get("q_stride")
    if strides and is_nested(strides) and len(strides) > 1 and max(strides[-1]) == 1:
        form["q_stride"] = [*strides[:-1], strides[-2]]
    return form
