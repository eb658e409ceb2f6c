"""Videos of the demonstration in class folders, as a user has them."""

import shutil
from pathlib import Path


def class_folders(data: Path, folder: Path, splits: tuple[str, ...] = ("train", "val"), apart: bool = False) -> Path:
    """DIR/CLASS/SPLIT_NUMBER.mp4, or with `apart` DIR/SPLIT/CLASS/NUMBER.mp4, out of what `write_dataset` left in `data`."""
    classes = (data / "classes.txt").read_text().splitlines()
    for split in splits:
        for row in (data / f"{split}.csv").read_text().splitlines():
            path, label = row.split(" ")
            name = Path(path).name
            place = (
                folder / split / classes[int(label)] / name
                if apart
                else folder / classes[int(label)] / f"{split}_{name}"
            )
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / path, place)
    return folder
