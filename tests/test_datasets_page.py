"""Every tree in datasets/README.md, built with empty files, is read with the settings that stand under it."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from list_files import write

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.checks import check_files_exist
from mvit_video.data.lists.read import locate_list, read_videos

PAGE = (REPOSITORY / "datasets/README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```text\n(.*?)```\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)


def build(tree: str, folder: Path) -> None:
    """`name/` is a folder, `name` a file; two spaces and text after a name, and lines below that text, are its content."""
    above, column, file = [(-1, folder)], 1000, folder
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == column:
            write(file, file.read_text(encoding="utf-8") + line.strip() + "\n")
            continue
        match = re.fullmatch(r"(\S+(?: \S+)*)(?: {2,}(.*))?", line.strip())
        while above[-1][0] >= indent:
            above.pop()
        file = above[-1][1] / match[1]
        if match[1].endswith("/"):
            file.mkdir(parents=True)
            above.append((indent, file))
        else:
            write(file, f"{match[2]}\n" if match[2] else b"")
            column = indent + match.start(2) if match[2] else 1000


@pytest.mark.parametrize(("tree", "settings"), EXAMPLES, ids=[tree.partition("/")[0] for tree, _ in EXAMPLES])
def test_a_tree_is_read_with_its_settings_and_all_of_its_videos_are_used(tmp_path, monkeypatch, tree, settings):
    build(tree, tmp_path)
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load(settings)["data"]
    assert data.keys() <= DataSettings.model_fields.keys()
    frames, classes, used = data.get("decoder") == "frames", None, set()
    for split in ("train", "val"):
        if split in data:
            videos = read_videos(data[split], data["root"], classes, frames)
            assert not check_files_exist(videos, data["root"], frames).missing
            classes = videos.classes
            used |= {f"{data['root']}/{record.path}" for record in videos.records}
    there = {str(path.parent if frames else path) for path in Path().rglob("*") if path.suffix in MEDIA}
    assert used == there
    assert len(classes) > 1 and not any(name.isdigit() for name in classes)


COMMANDS = re.findall(r"mvit-video (?:verify|prepare) --annotations (\S+) --root (\S+)", PAGE)


@pytest.mark.parametrize(("annotations", "root"), sorted(set(COMMANDS)))
def test_the_lists_that_verify_and_prepare_are_called_with_are_in_the_trees(tmp_path, monkeypatch, annotations, root):
    build(next(tree for tree, _ in EXAMPLES if tree.startswith(f"{root}/")), tmp_path)
    monkeypatch.chdir(tmp_path)
    videos = read_videos(locate_list(annotations, root), root, need_labels=False)
    assert not check_files_exist(videos, root).missing and len(videos) > 0


MEDIA = (".mp4", ".mkv", ".webm", ".avi", ".jpg")


def test_the_page_has_every_dataset():
    roots = {tree.partition("/")[0] for tree, _ in EXAMPLES}
    assert roots >= {"my_videos", "my_clips", "my_frames", "kinetics400", "ssv2", "ucf101", "hmdb51", "charades"}
    assert PAGE.count("```text") == len(EXAMPLES)
    assert {root for _, root in COMMANDS} == {"my_videos", "kinetics400", "ssv2", "ucf101", "hmdb51"}
