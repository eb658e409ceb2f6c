"""The networks by name: what each is built from, and what it can do besides clips -> logits.

Ours, other packages' and those of plugins come in through the same door, `register_model`. Who needs more of a network than
its logits asks its entry, never its class or its name.
"""

# B clips, K classes, C channels, T/H/W frames and pixels, or a map's grid

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.model.checkpoint_format import CheckpointFormat
from mvit_video.plugins import Registry, calling_module

# Every module of ours that registers networks: a new one is its file and a line here.
NETWORKS = (
    "mvit_video.model.mvit_variants",
    "mvit_video.model.cswin",
    "mvit_video.model.maxvit",
    "mvit_video.model.pvt",
    "mvit_video.model.baselines",
)

INPUT = ("num_classes", "num_frames", "crop_size")  # arguments that every network is built with
Evidence = Callable[[nn.Module, Tensor], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Capabilities:
    """What a network can do besides clips (B, 3, T, H, W) -> logits (B, K). What is left out, verbs refuse in one sentence."""

    head: str | None = None
    """Name of the linear layer that classifies, such as "head.projection"; None for the last linear layer that there is."""
    blocks: Callable[[nn.Module], Sequence[nn.Module]] | None = None
    """The network's blocks in the order in which they run: for train.layer_decay, and train.parallel=fsdp shares out by them.
    Modules outside of them are registered in the order in which they run, too."""
    feature: bool = False
    """`network(clips, with_feature=True)` gives (logits, the feature (B, C) that the head classifies): for
    train.resolutions and `features`."""
    stage_maps: bool = False
    """`network.forward_features(clips)` gives the map (B, C, T, H, W) after each stage, `network.stage_dims` their
    C: for `features --stage N` and as a backbone."""
    evidence: Evidence | None = None
    """(network, clips) -> logits, and the maps (B, C, T, H, W) that they were computed from, differentiably: for `explain`. See
    `model/evidence.py`."""
    activation_checkpointing: bool = False
    """`network.activation_checkpointing` may be set to True: for the setting of that name."""
    formats: tuple[CheckpointFormat, ...] = ()
    """Formats of other projects that its weights are read from and written in, besides ours: see `model/checkpoint_format.py`."""
    form: Callable[[Mapping[str, Tensor], str, Mapping[str, Any]], dict[str, Any] | None] | None = None
    """(tensors under our names, their format, the arguments of a name) -> those of their network that differ, such as depths;
    None where it is not a form of this name. Without it files are recognised that are of the name exactly."""
    plain: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that make a network whose operations a counter sees, such as attention by the plain formula."""
    graphs: bool = False
    """In eval mode its forward pass depends on nothing but the shape of the clips: no value is read on the host, and from the
    second batch of a shape on no tensor is made from host data. On GPUs it then runs as a CUDA graph (`model/graphs.py`)."""
    masked: Callable[..., nn.Module] | None = None
    """(predict_from, target, the network's own arguments) -> its pre-training form, as `MaskedMViT`: for `pretrain`."""
    meta: bool = False
    """Can be built on PyTorch's meta device, where weights take no memory: reads no value of a tensor while being built."""


@dataclass(frozen=True)
class ModelEntry:
    """A registered network."""

    name: str
    build: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    capabilities: Capabilities
    sampling_rate: int
    package: str
    source: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """What `build` is called with where nothing else is said: its own defaults, and what the name stands for."""
        own = {one.name: one.default for one in parameters_of(self.build) if one.default is not one.empty}
        return own | dict(self.arguments)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips that the network is usually given."""
        crop = self.defaults["crop_size"]
        height, width = (crop, crop) if isinstance(crop, int) else crop
        return self.defaults["num_frames"], height, width

    @property
    def plugin(self) -> str | None:
        """The plugin that it comes from; None for those that come with this package."""
        return MODELS.plugin_of(self.name)


MODELS: Registry[ModelEntry] = Registry("model", NETWORKS)


def register_model(
    name: str,
    build: Callable[..., nn.Module],
    arguments: Mapping[str, Any] | None = None,
    capabilities: Capabilities | None = None,
    sampling_rate: int = 1,
    package: str = "",
    source: str = "",
) -> None:
    """Let `name` stand for a network wherever a network is named: `build_model`, `model.name`, the command line.

    Args:
        build: the class, or a function, that makes the network: `build(**arguments)` takes num_classes, num_frames and
            crop_size (one int, or height and width), and what else `model.arguments` may set. Clips (B, 3, T, H, W), RGB,
            normalised, go in, logits (B, num_classes) come out, no softmax.
        arguments: what the name stands for: they win over the defaults of `build`. One of the two says num_frames,
            crop_size and num_classes, the network's usual ones.
        capabilities: what the network can do besides.
        sampling_rate: distance between the frames of a clip that it is usually given, at 30 a second.
        package: another package whose network it is, imported when it is built.
        source: the paper or the project that it is from, for `mvit-video models`.

    Raises ConfigError for a name that is taken, and for a `build` that does not take what every network is built with.
    """
    module = calling_module()
    entry = ModelEntry(
        name, build, dict(arguments or {}), capabilities or Capabilities(), sampling_rate, package, source
    )
    allowed = arguments_of(entry)
    lacking = [word for word in (*INPUT, *entry.arguments) if allowed is not None and word not in allowed]
    if lacking:
        raise ConfigError(
            f"'{module}' registers the model '{name}', whose constructor takes no argument '{lacking[0]}': every network takes "
            f"{', '.join(INPUT)} and what its own name stands for"
        )
    silent = [word for word in INPUT if word not in entry.defaults]
    if silent:
        raise ConfigError(
            f"'{module}' registers the model '{name}' without its usual {silent[0]}: put it into `arguments`, or give "
            "the constructor a default"
        )
    MODELS.add(name, entry, module)


def arguments_of(entry: ModelEntry) -> list[str] | None:
    """The arguments that the network takes; None where it takes any."""
    parameters = parameters_of(entry.build)
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return [one.name for one in parameters if one.kind is not one.VAR_POSITIONAL]


def parameters_of(build: Callable[..., nn.Module]) -> list[inspect.Parameter]:
    """What a constructor takes: its own parameters, or the fields of the dataclass that it names as `arguments_class`."""
    return list(inspect.signature(getattr(build, "arguments_class", build)).parameters.values())


def list_models() -> list[str]:
    """Every name that `build_model` takes: our networks, other packages' (which may be missing), those of plugins."""
    entries = [MODELS.get(name) for name in MODELS.names()]
    return [e.name for e in sorted(entries, key=lambda e: (e.plugin is not None, e.package != "", e.name))]


def build_model(name: str, num_classes: int | None = None, **arguments: Any) -> nn.Module:
    """A network by name, with new (random) weights; `arguments` are those of its class and win over the named ones.

    Without `num_classes` the head is the published one: 400 for video, 1000 for in1k, 19168 for in21k.
    A baseline such as "torchvision/mvit_v2_s" takes num_classes, num_frames and crop_size, and imports its package now.
    Raises ConfigError for an unknown name or argument, sizes that no memory holds, or where a baseline's package cannot
    be imported.
    """
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    wanted = model_arguments(name, **arguments)
    entry = MODELS.get(name)
    try:
        model = entry.build(**wanted)
    except RuntimeError as reason:
        first_line = str(reason).splitlines()[0]
        raise ConfigError(
            f"{name} cannot be built as large as its arguments say ({first_line}): lower them"
        ) from reason
    _check_promises(entry, model)
    model.__dict__.update(registered_name=name, registered_arguments=wanted)  # which copies keep
    return model


def masked_form(name: str) -> Callable[..., nn.Module]:
    """What builds the pre-training form of a network. Raises ConfigError for a network without one."""
    masked = model_entry(name).capabilities.masked
    if masked is None:
        cure = "set model.name to one of the mvit networks"
        raise lacks(name, "masked", "cannot be pre-trained by masked prediction", cure)
    return masked


def build_masked(name: str, predict_from: Sequence[int] = (), target: str = "hog", **arguments: Any) -> nn.Module:
    """The pre-training form of a network by name: (clips, mask) -> predictions, see `model/maskfeat.py`.

    Raises ConfigError for a network without one, and as `build_model`.
    """
    masked = masked_form(name)
    model = masked(predict_from, target, **model_arguments(name, **arguments))
    model.__dict__["registered_name"] = name
    return model


def model_entry(name: str) -> ModelEntry:
    """The entry of a network; ConfigError for a name that `build_model` does not take."""
    known = list_models()
    if name not in known:
        raise ConfigError(
            f"model '{name}' is unknown{did_you_mean(name, known)}: choose from {', '.join(known)}; a plugin's are known "
            "with --plugin MODULE"
        )
    return MODELS.get(name)


def model_arguments(name: str, **arguments: Any) -> dict[str, Any]:
    """The plain arguments that `name` stands for, with `arguments` put in."""
    entry = model_entry(name)
    allowed = arguments_of(entry)
    for argument in arguments:
        if allowed is not None and argument not in allowed:
            near = did_you_mean(argument, allowed)
            raise ConfigError(f"model argument '{argument}' is unknown{near}: choose from {', '.join(sorted(allowed))}")
    return dict(entry.arguments) | arguments


def settled_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the network `name` with `arguments` put in, as the network itself has settled them."""
    entry = model_entry(name)
    every = entry.defaults | dict(arguments)
    kind = getattr(entry.build, "arguments_class", None)
    return every if kind is None else dict(vars(kind(**every)))


def capabilities_of(model: nn.Module) -> Capabilities:
    """What a network can do: by the name that it was built by, or else by its class; nothing special if that is not known."""
    name = model.__dict__.get("registered_name")
    if name is not None:
        return MODELS.get(name).capabilities
    entries = (MODELS.get(known) for known in MODELS.names())
    return next((entry.capabilities for entry in entries if entry.build in type(model).__mro__), Capabilities())


def name_of(model: nn.Module) -> str:
    """The name that a network was built by, or else its class's."""
    return str(model.__dict__.get("registered_name", type(model).__name__))


def head_of(model: nn.Module) -> nn.Module:
    """The layer that classifies."""
    return model.get_submodule(head_name(model))


def head_name(model: nn.Module) -> str:
    """The name of the layer that classifies."""
    named = capabilities_of(model).head
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return named if named is not None else linear[-1]


def lacks(name: str, capability: str, what: str, cure: str) -> ConfigError:
    """The error for a network without a capability that something needs: what it cannot do, and what to do about it."""
    plugin = MODELS.plugin_of(name) if name in MODELS.names() else None
    if plugin is None:
        return ConfigError(f"'{name}' {what}: {cure}")
    return ConfigError(
        f"'{name}', which the plugin '{plugin}' registers without the capability `{capability}`, {what}: {cure}, or add it there"
    )


def _check_promises(entry: ModelEntry, model: nn.Module) -> None:
    """ConfigError where a network has not what its capabilities say."""
    promised = {
        "forward_features": entry.capabilities.stage_maps,
        "stage_dims": entry.capabilities.stage_maps,
        "activation_checkpointing": entry.capabilities.activation_checkpointing,
    }
    if entry.capabilities.feature and "with_feature" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"'{entry.name}' is registered as a network whose forward takes `with_feature`, which it does not"
        )
    for attribute, wanted in promised.items():
        if wanted and getattr(model, attribute, None) is None:
            raise ConfigError(f"'{entry.name}' is registered as a network with `{attribute}`, which it does not have")
