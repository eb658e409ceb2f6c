"""YAML files with `_BASE_`, `KEY=VALUE` overrides, and the way back."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mvit_video.config.schema import Config
from mvit_video.download import local_file
from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.plugins import check_plugins


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of a YAML file, with `section.key=value` words put in last.

    A file may name another in `_BASE_` (relative to itself), whose values it then changes one by one.
    Raises ConfigError that names the file or the word, the key, its value and what is allowed, or a plugin that the settings
    need and that is not loaded.
    """
    tree = read_yaml(path)
    for word in overrides:
        _override(tree, word)
    config = _validated(tree, str(path))
    check_plugins(config.plugins, str(path))
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The plain values of a YAML file, put into those of the file that it names in `_BASE_`, if it names one."""
    return _read(Path(path), seen=())


def dump_config(config: Config) -> str:
    """All settings, defaults too, as YAML that `load_config` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_from_dict(tree: dict[str, Any], source: str) -> Config:
    """Settings from plain values, such as those a checkpoint carries; errors name `source`."""
    return _validated(tree, source)


def describe_settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterable[tuple[str, str, str]]:
    """(key, default, sentence) of every setting, in the order of the schema; the default as KEY=VALUE takes it."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from describe_settings(type(field.default), f"{prefix}{name}.")
        else:
            default = field.default if isinstance(field.default, str) else json.dumps(field.default)
            yield f"{prefix}{name}", default, field.description or ""


class _Loader(yaml.SafeLoader):
    """Plain values. A key that stands twice is refused: the first of them would be lost without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                raise yaml.YAMLError(f"'{name}' stands in line {line} and in line {lines[name]}: keep one of them")
            lines[name] = line
        return node


def _plain_values(text: str) -> Any:
    """What a YAML text says. Raises YAMLError, or ValueError, such as for the 30th of February."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    file = local_file(path)
    if file.resolve() in seen:
        raise ConfigError(f"{path}: names itself as _BASE_, by way of {', '.join(p.name for p in seen)}")
    try:
        tree = _plain_values(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError) as reason:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(reason).split())})") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, wanted sections such as `data:`")
    base = tree.pop("_BASE_", None)
    tree = {key: {} if value is None and key in Config.model_fields else value for key, value in tree.items()}
    if base is None:
        return tree
    return _merged(_read(file.parent / str(base), (*seen, file.resolve())), tree)


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _override(tree: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{word}' is not an override: write section.key=value, such as train.epochs=10")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"'{word}': '{section}' is a value, not a section")
    tree[last] = _value(sections, last, text)


def _value(sections: Sequence[str], name: str, text: str) -> Any:
    """YAML's null, lists and mappings; all else is left to the setting, for YAML reads 010 as 8, yes as true, `a #1` as a."""
    try:
        value = _plain_values(text)
    except (yaml.YAMLError, ValueError):
        return text
    section = Config.model_fields.get(".".join(sections))
    field = type(section.default).model_fields.get(name) if section else None
    if value is None or field is None:
        return value
    is_text = {*(get_args(field.annotation) or [field.annotation])} <= {str, NoneType}
    return text if is_text or not isinstance(value, (list, dict)) else value


def _validated(tree: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as reason:
        raise ConfigError(_sentence(reason, source)) from None


def _sentence(reason: ValidationError, source: str) -> str:
    errors = reason.errors()
    first = errors[0]
    where = _key(first)
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _keys_of(where[:-1])
        text = f"'{key}' is not a setting{did_you_mean(where[-1], known)}: allowed here are {', '.join(known)}"
    elif first["type"] == "value_error":
        text = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    else:
        text = f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    keys = {error["loc"][:2] for error in errors}
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return f"{source}: {text}{more}"


def _key(error: Any) -> list[str]:
    """The names of section and setting, and places in lists; not which of several forms pydantic has tried."""
    return [str(part) for depth, part in enumerate(error["loc"]) if depth < 2 or isinstance(part, int)]


def _keys_of(sections: Sequence[str]) -> list[str]:
    model: Any = Config
    for section in sections:
        model = type(model.model_fields[section].default)
    return list(model.model_fields)
