"""The demonstration dataset: videos in which only motion tells the class, in the manner of Something-Something.

One textured object of random shape, colour, size and speed before a random background moves left, right, up or down,
comes closer or goes away, turns one way or the other. At every moment of a video its place, size and angle have the
same distribution whatever the class is: places are uniform on an image that wraps around, angles on the circle, sizes
(in the logarithm) on a range that wraps around too (an object that has come all the way passes, and the next one is
small). So no single frame, not even one whose time is known, says anything about the class.
"""

# T frames, H/W pixels. Videos are uint8 (T, H, W, 3), RGB. Lengths are in image heights or widths, times in seconds.

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import combinations
from pathlib import Path

import av
import numpy as np

from mvit_video.paths import fresh_folder, write_json, write_whole

CLASSES = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "coming closer",
    "going away",
    "turning clockwise",
    "turning counter-clockwise",
)
PAIRS = tuple(pair for pair in combinations(range(len(CLASSES)), 2) if pair[0] // 2 != pair[1] // 2)  # no opposites
FPS = 15
HEIGHT, WIDTH = 64, 80
VIDEO_FRAMES = 36
LONG_ACTION_FRAMES = 36
SMALLEST, LARGEST = 0.14, 0.40  # the object's mean radius in image heights
SPLITS = ("train", "val")
OWNED = (*SPLITS, "train.csv", "val.csv", "classes.txt", "long.mp4", "long.json")


@dataclass(frozen=True)
class Pose:
    """Where the object is: x and y in widths and heights, size as a place in its range, angle in turns; all wrap at 1."""

    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What does not move: the object's outline and texture, and the background."""

    radii: np.ndarray  # (corners,) relative
    texture: np.ndarray  # (8, 8, 3) from 0 to 1
    background: np.ndarray  # (H, W, 3) from 0 to 1


def draw_scene(rng: np.random.Generator) -> Scene:
    """A bright object before a darker background. With brightness drawn for both, small networks do not learn motion."""
    corners = int(rng.integers(5, 9))
    radii = rng.uniform(0.55, 1.25, corners)
    colours = rng.uniform(0.55, 1.0, (2, 3))
    texture = colours[(rng.random((8, 8)) < 0.5).astype(int)]
    return Scene(radii / radii.mean(), texture, _background(rng))


def _background(rng: np.random.Generator) -> np.ndarray:
    """Smooth random colours with a fine grain, from 0 to 0.4."""
    coarse = rng.uniform(0.0, 0.3, (5, 6, 3))
    rows, columns = np.linspace(0, 3.999, HEIGHT), np.linspace(0, 4.999, WIDTH)
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = coarse[top][:, left] * (1 - right) + coarse[top][:, left + 1] * right
    lower = coarse[top + 1][:, left] * (1 - right) + coarse[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down + rng.uniform(0, 0.1, (HEIGHT, WIDTH, 1))


def draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(*rng.random(4))


def draw_velocity(rng: np.random.Generator, label: int) -> Pose:
    """Change of the pose per second for a class: one coordinate moves, the others stand."""
    still = Pose(0.0, 0.0, 0.0, 0.0)
    axis, backwards = divmod(label, 2)
    shift, zoom, turn = rng.uniform(0.35, 0.70), rng.uniform(0.25, 0.45), rng.uniform(0.16, 0.40)
    if axis == 0:
        return replace(still, x=shift if backwards else -shift)
    if axis == 1:
        return replace(still, y=shift if backwards else -shift)
    if axis == 2:
        return replace(still, size=-zoom if backwards else zoom)
    return replace(still, angle=-turn if backwards else turn)


def move(pose: Pose, velocity: Pose, seconds: float) -> Pose:
    """The pose `seconds` later."""
    return Pose(
        *((getattr(pose, name) + getattr(velocity, name) * seconds) % 1.0 for name in ("x", "y", "size", "angle"))
    )


def render(scene: Scene, pose: Pose) -> np.ndarray:
    """One frame, uint8 (H, W, 3): the object at a pose, drawn around the image's edges where it crosses them."""
    radius = SMALLEST * (LARGEST / SMALLEST) ** pose.size * HEIGHT
    x = _wrapped(np.arange(WIDTH) + 0.5 - pose.x * WIDTH, WIDTH)[None, :] / radius
    y = _wrapped(np.arange(HEIGHT) + 0.5 - pose.y * HEIGHT, HEIGHT)[:, None] / radius
    turn = 2 * np.pi * pose.angle  # y points down, so rising angles turn clockwise on the screen
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    outline = _outline(scene.radii, np.arctan2(across, along))
    cover = np.clip((outline - np.hypot(along, across)) * radius + 0.5, 0, 1)[..., None]  # edges one pixel soft
    cell = np.clip(((np.stack([across, along]) + 1.3) / 2.6 * 8).astype(int), 0, 7)
    picture = scene.background * (1 - cover) + scene.texture[cell[0], cell[1]] * cover
    return (picture * 255).round().astype(np.uint8)


def _wrapped(distance: np.ndarray, length: int) -> np.ndarray:
    return (distance + length / 2) % length - length / 2


def _outline(radii: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Radius of a closed, smooth outline through evenly spaced corners, at each angle."""
    at = (angle / (2 * np.pi)) % 1.0 * len(radii)
    corner = at.astype(int) % len(radii)
    blend = (1 - np.cos(np.pi * (at - np.floor(at)))) / 2
    return radii[corner] * (1 - blend) + radii[(corner + 1) % len(radii)] * blend


def draw_video(label: int, rng: np.random.Generator, num_frames: int = VIDEO_FRAMES) -> np.ndarray:
    """A video of one class: uint8 (T, H, W, 3)."""
    scene, pose, velocity = draw_scene(rng), draw_pose(rng), draw_velocity(rng, label)
    return np.stack([render(scene, move(pose, velocity, frame / FPS)) for frame in range(num_frames)])


def draw_pair(labels: Sequence[int], rng: np.random.Generator, num_frames: int = VIDEO_FRAMES) -> np.ndarray:
    """Two objects that move at once, each in the manner of one label, the second in front: uint8 (T, H, W, 3)."""
    objects = [(draw_scene(rng), draw_pose(rng), draw_velocity(rng, label)) for label in labels]
    frames = []
    for frame in range(num_frames):
        picture = objects[0][0].background
        for scene, pose, velocity in objects:
            shown = render(replace(scene, background=picture), move(pose, velocity, frame / FPS))
            picture = shown / 255
        frames.append(shown)
    return np.stack(frames)


def draw_long_video(labels: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """One object that does several actions in a row, each LONG_ACTION_FRAMES long: uint8 (T, H, W, 3)."""
    scene, pose, frames = draw_scene(rng), draw_pose(rng), []
    for label in labels:
        velocity = draw_velocity(rng, label)
        for _ in range(LONG_ACTION_FRAMES):
            frames.append(render(scene, pose))
            pose = move(pose, velocity, 1 / FPS)
    return np.stack(frames)


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 (T, H, W, 3) as H.264 in MP4; height and width must be even."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        # Without its macroblock tree x264 writes the same bytes each time; with it, now and then others.
        stream.options = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0:rc-lookahead=0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_dataset(
    folder: str | Path,
    num_train: int,
    num_val: int,
    seed: int,
    workers: int,
    overwrite: bool = False,
    two_motions: bool = False,
) -> Path:
    """Write videos with train.csv, val.csv (`path label`), classes.txt, and one long video with its segments.

    Classes are as even as the counts allow. The same seed writes the same images. With `two_motions`, a video has two
    objects and the labels of both, `3;4`.
    """
    folder = fresh_folder(folder, OWNED, overwrite)
    for split, (name, count) in enumerate(zip(SPLITS, (num_train, num_val), strict=True)):
        (folder / name).mkdir()
        with ProcessPoolExecutor(max(workers, 1)) as pool:
            rows = list(pool.map(partial(_write_one, folder, seed, split, two_motions), range(count), chunksize=16))
        write_whole(folder / f"{name}.csv", "".join(rows))
    write_whole(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES))
    _write_long(folder, seed)
    return folder


def _write_one(folder: Path, seed: int, split: int, two_motions: bool, index: int) -> str:
    name, rng = f"{SPLITS[split]}/{index:05d}.mp4", np.random.default_rng([seed, split, index])
    if two_motions:
        labels = list(PAIRS[index % len(PAIRS)])
        frames = draw_pair([labels[place] for place in rng.permutation(2)], rng)
    else:
        labels = [index % len(CLASSES)]
        frames = draw_video(labels[0], rng)
    write_video(folder / name, frames, FPS)
    return f"{name} {';'.join(map(str, labels))}\n"


def _write_long(folder: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, len(SPLITS)])
    labels = [int(label) for label in rng.permutation(len(CLASSES))[:6]]
    write_video(folder / "long.mp4", draw_long_video(labels, rng), FPS)
    seconds = LONG_ACTION_FRAMES / FPS
    segments = [
        {"start": place * seconds, "end": (place + 1) * seconds, "label": CLASSES[label]}
        for place, label in enumerate(labels)
    ]
    write_json(folder / "long.json", segments)
