"""The configurations that come with the package, by name: `finetune`, `demo/motion`, `ssv2/mvitv2_s_16x4`.

They live in configs/ of a checkout, and in `mvit_video/configs` of an installed wheel.
"""

from pathlib import Path

from mvit_video.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_folder() -> Path:
    """The folder that holds the shipped configurations."""
    checkout = _PACKAGE.parent / "configs"
    return checkout if (checkout / "_base_").is_dir() else _PACKAGE / "configs"


def shipped_configs() -> dict[str, Path]:
    """Name to file of every shipped configuration, in alphabetical order; without those that only serve as `_BASE_`."""
    folder = configs_folder()
    files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.yaml"))}
    return {name: file for name, file in files.items() if not name.startswith("_base_/")}


def describe(file: Path) -> str:
    """The first sentence of a configuration's header."""
    header = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# "))
    return " ".join(header).partition(": ")[0].partition(". ")[0].rstrip(".")


def config_file(name: str) -> str:
    """The file that a CONFIG argument or a `_BASE_` means: a path that exists or an address stays as it is, a name is looked up.

    The folder may be left out of a name if no two share the rest; `configs/` and `.yaml` may be written.
    Raises ConfigError for a name that several configurations share, or that none has.
    """
    if name.startswith(("http://", "https://")) or Path(name).exists():
        return name
    short = name.removeprefix("configs/").removesuffix(".yaml")
    known = shipped_configs()
    found = [full for full in known if full == short] or [full for full in known if full.rpartition("/")[2] == short]
    if len(found) > 1:
        raise ConfigError(f"'{name}' names {len(found)} configurations: choose from {', '.join(found)}")
    if found:
        return str(known[found[0]])
    if not Path(name).suffix and len(Path(name).parts) < 3 and not Path(name).is_absolute():
        names = {full.rpartition("/")[2]: None for full in known} | dict.fromkeys(known)
        raise ConfigError(
            f"'{name}' is neither a file nor a configuration that comes with mvit_video{did_you_mean(short, names)}: "
            "run `mvit-video configs` for their names"
        )
    return name
