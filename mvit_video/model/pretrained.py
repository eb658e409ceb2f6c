"""`from_pretrained`, `save_pretrained` and `push_to_hub` of a network, as users of the Hugging Face Hub know them."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mvit_video.errors import CheckpointError

if TYPE_CHECKING:
    from mvit_video.model.weights.card import ModelCard

Network = TypeVar("Network", bound="Pretrained")


class Pretrained:
    """What a network adds to load itself from a name and to publish itself; the card travels with it."""

    card: "ModelCard | None" = None
    """Classes, preprocessing and protocol of the weights, if `from_pretrained` has loaded them."""

    @classmethod
    def from_pretrained(cls: type[Network], path_or_name: str | Path) -> Network:
        """The network of a checkpoint, in eval mode, with its `card`.

        >>> model = MViT.from_pretrained("OWNER/NAME")  # doctest: +SKIP

        `path_or_name` is a file, a folder that `save_pretrained` wrote, a name that `mvit-video models` lists, or the
        name of a repository of the Hub, with @REVISION if wanted. Raises CheckpointError.
        """
        from mvit_video.model.weights.convert import load_network

        source = checkpoint_source(path_or_name)
        model, card = load_network(source)
        if not isinstance(model, cls):
            raise CheckpointError(f"{source}: is a {type(model).__name__}, expected a {cls.__name__}")
        model.card = card
        return model

    def save_pretrained(
        self, folder: str | Path, card: "ModelCard | None" = None, run: str | Path | None = None
    ) -> Path:
        """Write model.safetensors and README.md, the page of the model, into a folder; returns the folder.

        Args:
            card: classes, preprocessing and protocol; by default those that it was loaded with.
            run: a folder of `train` whose settings and evaluation the page tells.
        """
        from mvit_video.model.weights.files import save_checkpoint
        from mvit_video.model.weights.hub import FILE
        from mvit_video.model.weights.hub_page import hub_page
        from mvit_video.paths import write_whole

        card = card or self.card
        if card is None:
            raise CheckpointError(f"{folder}: not written, since nothing tells the classes: give card=ModelCard(...)")
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_checkpoint(Path(folder) / FILE, self, card)  # type: ignore[arg-type]
        write_whole(Path(folder) / "README.md", hub_page(card, Path(run) if run else None))
        return Path(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: "ModelCard | None" = None,
        run: str | Path | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a network of mvit_video",
    ) -> str:
        """`save_pretrained` into a repository OWNER/NAME of the Hub, created if there is none; returns its address.

        Without `token` the one of 'hf auth login' is used. Raises CheckpointError.
        """
        from mvit_video.locks import scratch_folder
        from mvit_video.model.weights.hub import publish

        with scratch_folder("mvit_video_push_") as scratch:
            folder = self.save_pretrained(scratch / "upload", card, run)
            return publish(folder, repo_id, private=private, token=token, message=commit_message)


def checkpoint_source(path_or_name: str | Path) -> str:
    """What `load_network` takes for a file, a folder, a name of the zoo, or a bare OWNER/NAME of the Hub."""
    from mvit_video.model.weights.hub import FILE, PREFIX, REPOSITORY
    from mvit_video.model.weights.zoo import ZOO

    name = str(path_or_name)
    if Path(name).is_dir():
        return str(Path(name) / FILE)
    if Path(name).exists() or name in ZOO or not REPOSITORY.fullmatch(name.partition("@")[0]):
        return name
    return PREFIX + name
