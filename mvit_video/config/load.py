"""YAML files with `_BASE_`, `KEY=VALUE` overrides, and the way back."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path, PurePath
from types import NoneType
from typing import Any, get_args
from urllib.parse import urljoin

import yaml
from pydantic import BaseModel, ValidationError

from mvit_video.config.plain_yaml import InvalidYaml, plain_values
from mvit_video.config.schema import AUTO, Config
from mvit_video.config.shipped import config_file, shipped_configs
from mvit_video.download import local_file
from mvit_video.errors import ConfigError, clipped, did_you_mean
from mvit_video.plugins import check_plugins

BASE = "_BASE_"
_ADDRESS = ("http://", "https://")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read settings from a YAML file, an http(s) address or a shipped configuration; `section.key=value` overrides come last.

    A file may name a base file in `_BASE_` (relative to itself, or a shipped configuration) and override single values of it.
    Raises ConfigError that names the file or the override, the key, its value and what is allowed, or a plugin that the
    settings need and that is not loaded.
    """
    if not str(path).startswith(_ADDRESS) and re.match(r"[\w.]+=", str(path)) and not Path(path).exists():
        raise ConfigError(f"'{path}' is an override, expected a CONFIG: name a YAML file first")
    config = config_from_dict(read_yaml(path), str(path), overrides)
    check_plugins(config.plugins, str(path))
    return config


def read_yaml(path: str | Path, duplicates: dict[str, list[int]] | None = None) -> dict[str, Any]:
    """Read the plain values of a YAML file, merged over those of its `_BASE_` file if it names one.

    A duplicate key is an error. With `duplicates` the last one counts, and the key is added to it with its line numbers.
    """
    return _read(config_file(str(path)), (), duplicates)


def dump_config(config: Config) -> str:
    """Write all settings, defaults included, as YAML that `load_config` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_from_dict(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Build settings from plain values, such as those in a checkpoint; errors name `source` or the override."""
    try:
        return Config.model_validate(_with_overrides(tree, overrides))
    except ValidationError as reason:
        raise ConfigError(_describe(reason, _offending_overrides(reason, tree, overrides) or source)) from None


def with_overrides(config: Config | str | Path, overrides: Mapping[str, Any]) -> Config:
    """Override settings, or those of a YAML file: `{"train": {"epochs": 3}}`, or `{"train.epochs": 3}`.

    Raises ConfigError that names the setting, its value and what is allowed.
    """
    given = isinstance(config, Config)
    tree = config.model_dump(exclude_unset=True) if isinstance(config, Config) else read_yaml(config)
    for key, value in overrides.items():
        section, dot, name = key.partition(".")
        values = {name: value} if dot else value
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{key} = {value!r} is not a section: write {key}={{'name': value}}, or name a setting of it"
            )
        plain = {name: str(value) if isinstance(value, PurePath) else value for name, value in values.items()}
        tree[section] = tree.get(section, {}) | plain
    return config_from_dict(tree, "settings" if given else str(config))


def describe_settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterable[tuple[str, str, str]]:
    """Yield (key, default, sentence) of every setting in schema order; the default as KEY=VALUE takes it."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from describe_settings(type(field.default), f"{prefix}{name}.")
        else:
            default = field.default if isinstance(field.default, str) else json.dumps(field.default)
            yield f"{prefix}{name}", default, field.description or ""


def _read(source: str, seen: tuple[str, ...], duplicates: dict[str, list[int]] | None) -> dict[str, Any]:
    file = local_file(source)
    known = source if source.startswith(_ADDRESS) else str(file.resolve())
    if known in seen:
        raise ConfigError(f"{source}: includes itself through {BASE} ({', '.join(Path(p).name for p in seen)})")
    tree = _parse(source, file, duplicates)
    base = tree.pop(BASE, None)
    tree = {key: {} if value is None and key in Config.model_fields else value for key, value in tree.items()}
    if base is None:
        return tree
    return _merged(_read(_base_path(source, base), (*seen, known), duplicates), tree)


def _parse(source: str, file: Path, duplicates: dict[str, list[int]] | None) -> dict[str, Any]:
    try:
        tree, found = plain_values(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as reason:
        raise ConfigError(f"{source}: is not UTF-8 text (byte {reason.start}): save it as UTF-8") from None
    except InvalidYaml as reason:
        raise ConfigError(f"{source}: {reason}") from None
    if found and duplicates is None:
        key, lines = next(iter(found.items()))
        name, places = key.rpartition(".")[2], " and ".join(map(str, lines))
        raise ConfigError(f"{source}: duplicate key '{name}' (lines {places}): keep one of them")
    if duplicates is not None:
        duplicates.update(found)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: contains a {type(tree).__name__}, expected sections such as `data:`")
    return tree


def _base_path(source: str, base: object) -> str:
    """Path of a base file, relative to the file that names it. A file from an address cannot name a local one."""
    if not isinstance(base, str):
        raise ConfigError(f"{source}: {BASE} is {base!r}, expected the name of a YAML file")
    if not source.startswith(_ADDRESS):
        beside = Path(source).parent / base
        return base if base.startswith(_ADDRESS) else str(beside) if beside.exists() else _shipped(base) or str(beside)
    place = urljoin(source, base)
    if not place.startswith(_ADDRESS):
        raise ConfigError(f"{source}: {BASE} is '{base}', expected an address, or a name relative to this file's")
    return place


def _shipped(base: str) -> str | None:
    """The shipped configuration of that name, if there is one; never a file beside the current folder."""
    name = base.removeprefix("configs/").removesuffix(".yaml")
    return str(shipped_configs()[name]) if name in shipped_configs() else None


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _with_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    changed = deepcopy(tree)
    for word in overrides:
        _override(changed, word)
    return changed


def _override(tree: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"command line: '{word}' is not an override: write section.key=value, such as train.epochs=10"
        )
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"command line, '{word}': '{section}' is a value, not a section")
    tree[last] = _value(sections, last, text)


def _value(sections: Sequence[str], name: str, text: str) -> Any:
    """Parse null, lists and mappings as YAML; keep the rest as text, since YAML reads 010 as 8, yes as true, `a #1` as a."""
    try:
        value, duplicates = plain_values(text)
    except InvalidYaml:
        return text
    if duplicates:
        raise ConfigError(f"command line, '{name}={text}': duplicate key '{next(iter(duplicates))}': keep one of them")
    joined = [key for key in value if value[key] is None and ":" in str(key)] if isinstance(value, dict) else []
    if joined:
        raise ConfigError(
            f"command line, '{name}={text}': '{joined[0]}' has no value: write a space behind the colon, as in {{name: value}}"
        )
    section = Config.model_fields.get(".".join(sections))
    field = type(section.default).model_fields.get(name) if section else None
    if value is None or field is None:
        return value
    is_text = {*(get_args(field.annotation) or [field.annotation])} <= {str, NoneType}
    return text if is_text or not isinstance(value, (list, dict)) else value


def _offending_overrides(reason: ValidationError, tree: dict[str, Any], overrides: Sequence[str]) -> str:
    """Name the overrides that caused the first error; an empty string if the file did."""
    place = [str(part) for part in reason.errors()[0]["loc"]]
    keys = [word.partition("=")[0].split(".") for word in overrides]
    about = [word for word, key in zip(overrides, keys, strict=True) if place[: len(key)] == key]
    without = [[other for other in overrides if other != word] for word in overrides]
    about = about or [word for word, rest in zip(overrides, without, strict=True) if _is_valid(tree, rest)][:1]
    if not about and overrides and _is_valid(tree, ()):
        about = list(overrides)
    return f"command line, '{clipped(' '.join(about))}'" if about else ""


def _is_valid(tree: dict[str, Any], overrides: Sequence[str]) -> bool:
    try:
        Config.model_validate(_with_overrides(tree, overrides))
    except (ValidationError, ConfigError):
        return False
    return True


def _describe(reason: ValidationError, source: str) -> str:
    errors = reason.errors()
    first = errors[0]
    where = _key(first)[: -1 if first["type"] == "missing" else None]  # whose value is what it is missing in
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _keys_of(where[:-1])
        near = did_you_mean(where[-1], known, prefix=".".join([*where[:-1], ""]))
        text = f"'{clipped(key)}' is not a setting{near}: known here: {', '.join(known)}"
    elif first["type"] == "value_error":
        text = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    else:
        auto = (
            f", or {AUTO}" if any(error["type"] == "literal_error" and _key(error) == where for error in errors) else ""
        )
        text = f"{key} = {clipped(repr(first['input']))}: {_expected(key, first)}{auto}"
    keys = {error["loc"][:2] for error in errors}
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return f"{source}: {text}{more}"


FORMS = {
    "data.crop_size": "a whole number of pixels, or [height, width]",
    "data.randaugment": "a text such as rand-m7-n4-mstd0.5-inc1, or auto",
    "train.class_weights": "balanced, or names of classes with factors, such as {fall: 5}",
    "evaluation.protocol": "clips × crops such as 5x1, up to 999x3, or kinetics-5x1, kinetics-5x3 or ssv2-1x3",
}
EXPECTED = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "dict_type": "expected names with values, such as {{name: value}}",
    "float_parsing": "input should be a valid number",
    "int_parsing": "input should be a valid integer, written in digits",
    "missing": "has too few values",
    "model_type": "expected settings under this name, such as {key}.NAME=VALUE",
    "string_type": "expected a text",
    "too_long": "has too many values",
    "tuple_type": "expected a list in brackets, such as [a, b]",
}


def _expected(key: str, error: Any) -> str:
    """Pydantic's message, or ours where that one speaks to programmers."""
    if key in FORMS and error["type"] in ("string_pattern_mismatch", "int_type", "dict_type"):
        return f"expected {FORMS[key]}"
    if error["type"] in EXPECTED:
        return EXPECTED[error["type"]].format(key=key)
    return f"{error['msg'][0].lower()}{error['msg'][1:]}"


def _key(error: Any) -> list[str]:
    """Names of section and setting, and list indices; not which of several types pydantic tried."""
    return [str(part) for depth, part in enumerate(error["loc"]) if depth < 2 or isinstance(part, int)]


def _keys_of(sections: Sequence[str]) -> list[str]:
    model: Any = Config
    for section in sections:
        model = type(model.model_fields[section].default)
    return list(model.model_fields)
