"""Checkpoints on the Hugging Face Hub: `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION`; read, and published.

A file is fetched once into huggingface_hub's own cache and read offline from then on. Only safetensors files are
fetched. The package huggingface_hub is imported when an address is used, not before.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from mvit_video.download import known_sha256
from mvit_video.errors import CheckpointError

PREFIX, FILE = "hf://", "model.safetensors"
ADDRESS = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[\w./-]+))?")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def is_hub(source: str | Path) -> bool:
    return str(source).startswith(PREFIX)


def hub_file(source: str) -> Path:
    """The file on this machine of an `hf://` address, fetched if it is not in the cache and compared with the Hub's sha256.

    Raises CheckpointError, which never holds a token.
    """
    name, revision, file = _parts(source)
    hub = _package(source)
    with _as_sentences(hub, source, name, revision, file):
        path = Path(hub.hf_hub_download(name, file, revision=revision, endpoint=endpoint()))
    stored = path.resolve()  # the cache names files of weights by their digest
    if SHA256.fullmatch(stored.name) and known_sha256(stored) != stored.name:
        raise CheckpointError(
            f"{source}: its sha256 is not the Hub's, so it is damaged: delete {stored} and fetch it again"
        )
    return path


def pinned(source: str) -> str:
    """An `hf://` address with the commit that it means today, so that a record of it means the same tomorrow."""
    _, revision, file = _parts(source)
    if revision is not None and COMMIT.fullmatch(revision):
        return source
    snapshots = hub_file(source).parts
    commit = snapshots[snapshots.index("snapshots") + 1]
    address = source.partition("@")[0] if revision else source.removesuffix(f"/{file}")
    return f"{address}@{commit}" + (f"/{file}" if file != FILE else "")


def publish(folder: Path, repo_id: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Upload the files of a folder as one commit, creating the repository if there is none; returns its address.

    Raises CheckpointError.
    """
    source = f"{PREFIX}{repo_id}"
    name, revision, file = _parts(source)
    hub = _package(source)
    with _as_sentences(hub, source, name, revision, file):
        api = hub.HfApi(endpoint=endpoint(), token=token)
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))


def endpoint() -> str | None:
    """Another server with the Hub's routes, by the Hub's own variable."""
    return os.environ.get("HF_ENDPOINT") or None


def _parts(source: str) -> tuple[str, str | None, str]:
    found = ADDRESS.fullmatch(source)
    if found is None or ".." in source:
        raise CheckpointError(f"{source}: names nothing on the Hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    file = found["file"] or FILE
    if not file.endswith(".safetensors"):
        raise CheckpointError(
            f"{source}: only .safetensors files are read from the Hub, since others may hold code: name one of these"
        )
    return found["name"], found["revision"], file


def _package(source: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(
            f"{source}: the package huggingface_hub is not installed: run 'pip install huggingface_hub'"
        ) from None
    return huggingface_hub


@contextmanager
def _as_sentences(hub: ModuleType, source: str, name: str, revision: str | None, file: str) -> Iterator[None]:
    """What the Hub or the way to it refuses, as CheckpointError. Reasons of others are left out: they may quote requests."""
    from huggingface_hub import errors

    reasons: list[tuple[type[BaseException], str]] = [
        (errors.GatedRepoError, f"'{name}' is gated: ask for access on its page, then log in with 'hf auth login'"),
        (
            errors.RepositoryNotFoundError,
            f"the Hub has no '{name}', or it is private: check the name, or 'hf auth login'",
        ),
        (
            errors.RevisionNotFoundError,
            f"'{name}' has no revision '{revision}': choose a branch, a tag or a commit of it",
        ),
        (
            errors.LocalEntryNotFoundError,
            "it is not in the cache and the Hub cannot be reached: connect, or name a local file",
        ),
        (errors.EntryNotFoundError, f"'{name}' has no file '{file}': it is not a checkpoint of mvit_video"),
        (errors.HFValidationError, "names nothing on the Hub: write hf://OWNER/NAME"),
        (
            errors.OfflineModeIsEnabled,
            "HF_HUB_OFFLINE is set and it is not in the cache: unset it, or name a local file",
        ),
    ]
    try:
        yield
    except errors.HfHubHTTPError as reason:
        known = next((text for kind, text in reasons if isinstance(reason, kind)), None)
        status = getattr(getattr(reason, "response", None), "status_code", "an error")
        raise CheckpointError(f"{source}: {known or f'the Hub answers {status}: try again later'}") from None
    except tuple(kind for kind, _ in reasons) as reason:
        text = next(text for kind, text in reasons if isinstance(reason, kind))
        raise CheckpointError(f"{source}: {text}") from None
    except Exception as reason:  # of whatever library carries the bytes
        why = getattr(reason, "strerror", None) or type(reason).__name__
        raise CheckpointError(f"{source}: cannot be fetched or written ({why}): try again") from None
