"""A dataset written anew for fast training: every video of a list through `reencode`, in parallel, resumable.

The output folder becomes a data root of its own: videos at the same relative paths (as .mp4), the list under its old
name, classes.txt, manifest.jsonl with a line per video, lists.json on what the lists were made from, and bad.json where
videos could not be read. A video is written in a folder of unfinished files, noted in the manifest, and moved to its
place whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvit_video.data.lists.read import VideoList, locate_list, read_videos
from mvit_video.data.prepare.reencode import WriteError, encoding_settings, fingerprint
from mvit_video.data.video.guard_pool import DecoderPool, Job
from mvit_video.errors import AnnotationError, ConfigError
from mvit_video.locks import alone_in
from mvit_video.paths import file_sha256, write_json, write_whole
from mvit_video.progress import progress_bar
from mvit_video.shards import PART, Part, Shard, digest, write_part

MANIFEST, LISTS_FILE, BAD, CLASSES, UNFINISHED = (
    "manifest.jsonl",
    "lists.json",
    "bad.json",
    "classes.txt",
    ".unfinished",
)
REENCODE = "mvit_video.data.prepare.reencode:reencode_job"
SILENCE = 120.0  # seconds without a new frame after which a video is given up


@dataclass(frozen=True)
class Prepared:
    """What a call did: videos written, found done, and bad; the list and the folder they are in."""

    written: int
    kept: int
    bad: tuple[dict, ...]
    list_file: Path
    bytes: int


def prepare_dataset(
    annotations: str,
    root: str,
    output: str | Path,
    short_side: int,
    workers: int,
    complain: Callable[[str], None],
    overwrite: bool = False,
    silence: float = SILENCE,
    shard: Shard | None = None,
) -> Prepared:
    """Re-encode the videos of a list into `output`; those that an earlier call has finished stay.

    Videos that cannot be read cost one line through `complain` and stand in bad.json; their rows stay in the list.
    Raises ConfigError or AnnotationError where the output or the list cannot be used, before anything is encoded;
    WriteError where the disk is full; calling again goes on. A `shard` of N re-encodes every Nth video, for
    `merge_prepared`.
    """
    videos = read_videos(locate_list(annotations, root), root, need_labels=False)
    output = _output_folder(Path(output), Path(root))
    with alone_in(output, complain):
        shutil.rmtree(output / UNFINISHED, ignore_errors=True)  # of a killed call
        manifest = Manifest.read(output)
        names = output_names([record.path for record in videos.records], {} if overwrite else manifest.sources())
        new_list = NewList(videos, names, Path(root), output, overwrite)
        if shard is not None:
            job = {"list": digest([new_list.source, *new_list.rows]), "short_side": short_side}
            _check_part(output, shard, job)
            names = {path: names[path] for path in [*names][shard.number - 1 :: shard.count]}
        if overwrite:
            manifest.delete_files()
        todo = [path for path in names if not manifest.is_done(path, names[path], root, short_side)]
        failed = _encode_all(todo, names, manifest, root, short_side, workers, complain, silence)
        manifest.write()
        bad = _bad_rows(videos, failed)
        list_file = new_list.write(bad)
        if shard is not None:
            places = [place for place, record in enumerate(videos.records) if record.path in failed]
            content = {"list": new_list.name, "names": [*names.values()], "places": places}
            write_part(output, "prepare", shard, job, content)
    size = sum(manifest.records[name]["bytes"] for name in names.values() if name in manifest.records)
    return Prepared(len(todo) - len(failed), len(names) - len(todo), tuple(bad), list_file, size)


def _check_part(output: Path, shard: Shard, job: dict) -> None:
    """ConfigError where the folder holds another part, whose videos would be taken for this one's."""
    if (output / PART).is_file():
        before = json.loads((output / PART).read_text(encoding="utf-8"))
        if (before.get("shard"), before.get("job")) != (str(shard), job):
            raise ConfigError(
                f"{output}: contains shard {before.get('shard')} of a job: choose another --output for {shard}"
            )


def merge_prepared(parts: Sequence[Part], output: Path, overwrite: bool) -> int:
    """The data root of all parts, whose videos are linked where that can be, else copied; returns the number of bad rows.

    `output` may hold other lists that were prepared.
    """
    name, lists = parts[0].content["list"], _known_lists(output)
    if name in lists and not overwrite:
        raise ConfigError(f"{output / name}: is there already: choose another --output, or pass --overwrite")
    manifest, bad = Manifest.read(output), list[tuple[int, dict]]()
    for part in parts:
        made = Manifest.read(part.folder).records
        for video in part.content["names"]:
            if video in made:
                _take(part.folder / video, output / video)
                manifest.records[video] = made[video]
        known = _known_lists(part.folder)[name]
        bad += zip(part.content["places"], known["bad"], strict=True)
    manifest.write()
    known = _known_lists(parts[0].folder)[name] | {"bad": [row for _, row in sorted(bad, key=lambda each: each[0])]}
    beside = (parts[0].folder / name).with_name(CLASSES)
    if beside.is_file():
        classes = tuple(beside.read_text(encoding="utf-8").split("\n")[:-1])
        place = (output / name).with_name(CLASSES)
        write_whole(place, "".join(f"{each}\n" for each in _merge_classes(place, classes, overwrite)))
    write_whole(output / name, (parts[0].folder / name).read_bytes())
    _write_lists(output, lists | {name: known})
    return len(bad)


def _take(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:  # another file system
        shutil.copyfile(file, place)


def _encode_all(todo, names, manifest, root, short_side, workers, complain, timeout) -> dict[str, str]:
    """Re-encode what is left; the reason for each video that failed."""
    failed = {}
    unfinished = manifest.output / UNFINISHED / str(os.getpid())
    unfinished.mkdir(parents=True)
    files = {path: unfinished.absolute() / f"{number}.mp4" for number, path in enumerate(todo)}
    folder = os.path.abspath(root)
    jobs = [Job(path, REENCODE, (path, folder, str(file), short_side)) for path, file in files.items()]
    try:
        with DecoderPool() as pool, progress_bar("prepare", len(names), len(names) - len(todo)) as bar:
            for done in pool.run(jobs, workers, timeout):
                path = done.job.name
                if done.reason:
                    failed[path] = done.reason
                    complain(done.reason)
                elif "stopped" in done.result:
                    raise WriteError(done.result["stopped"])
                else:
                    manifest.add(names[path], done.result["written"], files[path])
                bar.advance(1, path)
    finally:
        shutil.rmtree(unfinished.parent, ignore_errors=True)
    return failed


class Manifest:
    """manifest.jsonl: by name in the output folder, what `reencode` said of each video, and its `path`."""

    def __init__(self, output: Path, records: dict[str, dict]) -> None:
        self.output, self.records = output, records

    @classmethod
    def read(cls, output: Path) -> "Manifest":
        """The manifest of a folder; empty where there is none. A last line that a kill has cut short does not count."""
        file = output / MANIFEST
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        records = {}
        for row, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                records[record["path"]] = record
                damaged = not _is_inside(record["path"])
            except (ValueError, KeyError, TypeError):
                damaged = True
            if damaged:
                raise ConfigError(f"{file}: row {row} is not a line of a manifest: choose another --output")
        manifest = cls(output, records)
        manifest.write()
        return manifest

    def sources(self) -> dict[str, str]:
        """Name in the output folder → the video it was made from."""
        return {name: record["source"] for name, record in self.records.items()}

    def is_done(self, path: str, name: str, root: str, short_side: int) -> bool:
        """Whether an earlier call has finished this video. ConfigError where it would have to go to make room."""
        file, record = self.output / name, self.records.get(name)
        if record is None:
            if _is_inside(name) and os.path.lexists(file):
                raise ConfigError(f"{file}: exists, but is not in {MANIFEST}: choose another --output")
            return False
        if record.get("settings") != encoding_settings(short_side):
            raise ConfigError(
                f"{self.output}: contains videos prepared with other settings, such as a short side of "
                f"{record.get('settings', {}).get('short_side')}: choose another --output, or pass --overwrite"
            )
        if not file.is_file() or file.stat().st_size != record["bytes"]:
            return False
        return _same_source(Path(root) / path, record)

    def add(self, name: str, record: dict, file: Path) -> None:
        """Note a finished file, then move it to its place: what is there and not noted is then never ours."""
        self.records[name] = {"path": name, **record}
        with (self.output / MANIFEST).open("a", encoding="utf-8") as manifest:
            manifest.write(_line(self.records[name]))
            manifest.flush()
            os.fsync(manifest.fileno())
        (self.output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, self.output / name)

    def write(self) -> None:
        """The whole file anew, a line per video, sorted by name."""
        if self.records or (self.output / MANIFEST).exists():
            lines = [_line(self.records[name]) for name in sorted(self.records)]
            write_whole(self.output / MANIFEST, "".join(lines))

    def delete_files(self) -> None:
        """Delete the videos that the manifest knows, and forget them."""
        for name in self.records:
            (self.output / name).unlink(missing_ok=True)
        self.records = {}
        self.write()


def output_names(paths: list[str], taken: dict[str, str]) -> dict[str, str]:
    """Where each distinct video goes: its path with .mp4 for a suffix, or behind it where two would be the same.

    `taken` are names of earlier lists with the videos they were made from.

    >>> output_names(["a/x.webm", "a/x.mp4", "a/y.avi"], {})
    {'a/x.webm': 'a/x.mp4', 'a/x.mp4': 'a/x.mp4.mp4', 'a/y.avi': 'a/y.mp4'}
    """
    owners, names = dict(taken), {}
    for path in dict.fromkeys(paths):
        plain = Path(path)
        for name in (plain.with_suffix(".mp4"), plain.with_name(plain.name + ".mp4")):
            if owners.setdefault(str(name), path) == path:
                names[path] = str(name)
                break
        else:
            raise ConfigError(f"{path}: has the same output name as {owners[str(name)]}: rename one of the videos")
    return names


class NewList:
    """The list of the output folder: `path label` rows with the new names, and the classes beside it.

    It is tried when it is made, before hours of encoding: AnnotationError where it would not say the same when it is
    read back, ConfigError where it would replace a list that was made from another one.
    """

    def __init__(self, videos: VideoList, names: dict[str, str], root: Path, output: Path, overwrite: bool) -> None:
        self.output, self.name = output, _list_name(videos, root)
        self.source = _relative_source(root, Path(videos.source))
        self.lists = {} if overwrite else _known_lists(output)
        before = self.lists.get(self.name, {}).get("source", self.source)
        if before != self.source:
            raise ConfigError(
                f"{output / self.name}: was made from {before}, not from {self.source}: choose another --output, "
                "or pass --overwrite, which redoes the whole folder"
            )
        self.rows = [(names[record.path], record.labels) for record in videos.records]
        place = (output / self.name).with_name(CLASSES)
        self.classes = _merge_classes(place, videos.classes, overwrite) if videos.named else ()
        self._try(output / UNFINISHED / f"{os.getpid()}_list")

    def write(self, bad: list[dict]) -> Path:
        """Into the output folder, with what is known of it and the bad rows of all lists so far."""
        file = self._write_into(self.output)
        self.lists[self.name] = {"source": self.source, "num_videos": len(self.rows), "bad": bad}
        _write_lists(self.output, self.lists)
        return file

    def _try(self, folder: Path) -> None:
        try:
            file = self._write_into(folder)
            videos = read_videos(self.name, str(folder), need_labels=False)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if [(record.path, record.labels) for record in videos.records] != self.rows:
            raise AnnotationError(
                f"{self.output / file.relative_to(folder)}: has names that a list cannot hold, with quotes or spaces at an "
                "end: rename them"
            )

    def _write_into(self, folder: Path) -> Path:
        separator = "\t" if any(set(name) & set(" ,\t") for name, _ in self.rows) else " "
        lines = [f"{name}{separator if labels else ''}{';'.join(map(str, labels))}\n" for name, labels in self.rows]
        file = folder / self.name
        file.parent.mkdir(parents=True, exist_ok=True)
        if self.classes:
            write_whole(file.with_name(CLASSES), "".join(f"{name}\n" for name in self.classes))
        write_whole(file, "".join(lines))
        return file


def _write_lists(output: Path, lists: dict[str, dict]) -> None:
    """lists.json, and bad.json where there are bad rows."""
    write_json(output / LISTS_FILE, lists)
    rows = [{"list": name, **row} for name, known in lists.items() for row in known["bad"]]
    total = sum(known["num_videos"] for known in lists.values())
    if rows:
        write_json(output / BAD, {"num_videos": total, "bad": rows})
    else:
        (output / BAD).unlink(missing_ok=True)


def _known_lists(output: Path) -> dict[str, dict]:
    """By name in the output folder: the list that each was made from, its videos and its bad rows."""
    file = output / LISTS_FILE
    try:
        lists = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for known in lists.values():
            known["source"], known["num_videos"], known["bad"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{file}: was not written by `prepare`: choose another --output") from None
    return lists


def _merge_classes(file: Path, classes: tuple[str, ...], overwrite: bool) -> tuple[str, ...]:
    """Class names once for all lists of a folder: the longer of two where one goes on where the other ends."""
    known = tuple(file.read_text(encoding="utf-8").split("\n")[:-1]) if file.exists() and not overwrite else ()
    longer = max(known, classes, key=len)
    if longer[: len(known)] != known or longer[: len(classes)] != classes:
        raise AnnotationError(
            f"{file}: has other classes than this list: put the same classes.txt next to all lists, or choose another --output"
        )
    return longer


def _relative_source(root: Path, source: Path) -> str:
    """A list's place relative to the root, which may move, or for one elsewhere in full."""
    inside = source.resolve().is_relative_to(root.resolve())
    return str(source.resolve().relative_to(root.resolve()) if inside else source.resolve())


def _list_name(videos: VideoList, root: Path) -> str:
    """Where the list goes in the output folder: where it was in the root, so that data.train need not change."""
    source = Path(videos.source)
    inside = source.resolve().is_relative_to(root.resolve())
    name = source.resolve().relative_to(root.resolve()) if inside else Path(source.name)
    if name == Path("."):
        name = Path("videos")
    return str(name if name.suffix in (".csv", ".txt") else name.with_name(name.name.removesuffix(".json") + ".csv"))


def _output_folder(output: Path, root: Path) -> Path:
    if output.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{output}: is inside --root {root}, which must not be changed: choose an --output outside")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file, expected a folder for the output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigError(f"{output}: cannot be created ({reason.strerror}): choose another --output") from None
    return output


def _same_source(source: Path, record: dict) -> bool:
    """By size and time; a copy, which has another time, by its content."""
    if not source.is_file():
        return True
    now = fingerprint(source)
    if now["source_bytes"] != record["source_bytes"]:
        return False
    return now["source_mtime_ns"] == record["source_mtime_ns"] or file_sha256(source) == record["source_sha256"]


def _bad_rows(videos: VideoList, failed: dict[str, str]) -> list[dict]:
    bad = [record for record in videos.records if record.path in failed]
    return [{"path": record.path, "row": record.row, "reason": failed[record.path]} for record in bad]


def _is_inside(name: str) -> bool:
    """Whether a name stays in the output folder; the reader refuses videos that lie elsewhere."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
