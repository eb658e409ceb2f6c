"""The page about a dataset: classes, lengths, sizes, strips, near-duplicates, doubtful labels, unreadable videos."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mvit_video.data.draws import generator
from mvit_video.data.lists.failures import group_by_cause
from mvit_video.data.prepare.verify import Decoding
from mvit_video.errors import DecodeError
from mvit_video.figures import new_figure
from mvit_video.printable import printable
from mvit_video.report.browse import DOUBTED, DOUBTS, DUPLICATES, UNREADABLE, Entry, Survey, closest_first
from mvit_video.report.page import Number, Report, Section
from mvit_video.report.strips import ClipStrip, clip_strip
from mvit_video.version import __version__

MOST_BARS, EXTREMES = 40, 10
MOST_STRIPS = 60  # of random videos
SHOWN_GROUPS, SHOWN_OF_GROUP, SHOWN_DOUBTS, SHOWN_ROWS = 12, 4, 12, 100
COLOURS = {"train": "#1f6feb", "val": "#d1542c", "test": "#8a4fbf"}
LONGEST_NAME = 28  # letters beside a bar

Facts = Sequence[tuple[str, str]]


class BrowsePage:
    """Builds the page of a survey; videos that are shown are decoded again, in guarded processes."""

    def __init__(self, survey: Survey, decoding: Decoding, strips: int, seed: int) -> None:
        self.survey, self.decoding, self.strips, self.seed = survey, decoding, strips, seed

    def report(self, title: str) -> Report:
        survey = self.survey
        sections = [self._classes(), *self._lengths(), *self._random(), *self._copies(), *self._doubts()]
        return Report(
            title=title,
            lead=lead(survey),
            numbers=headline(survey),
            sections=[*sections, *self._unreadable()],
            footer=f"Random videos are drawn with seed {self.seed}. Written by mvit_video {__version__}.",
        )

    def _classes(self) -> Section:
        survey, names = self.survey, self.survey.classes
        counts = class_counts(survey)
        lacking = [
            f"{len(empty)} of {len(names)} classes have no video in {split}, such as '{names[empty[0]]}'."
            for split in counts
            if (empty := np.flatnonzero(counts[split] == 0).tolist())
        ]
        largest, smallest = next(iter(counts.values())).max(), next(iter(counts.values())).min()
        first = next(iter(counts))
        text = " ".join(
            [f"Videos of each class. In {first} the smallest class has {smallest}, the largest {largest}.", *lacking]
        )
        if len(names) <= MOST_BARS:
            return Section("Classes", text, [class_bars(counts, names)])
        order = np.argsort(-next(iter(counts.values())), kind="stable").tolist()
        rows = [(names[row], *(int(of[row]) for of in counts.values())) for row in order]
        shown = [*rows[:EXTREMES], *rows[-EXTREMES:]]
        text += f" The table has the {EXTREMES} largest and the {EXTREMES} smallest in {first}."
        return Section("Classes", text, [sorted_counts(counts)], columns=("class", *counts), rows=shown)

    def _lengths(self) -> list[Section]:
        looks = {split: [self._look(entry) for entry in self._of(split)] for split in self.survey.lists}
        looks = {split: found for split, found in looks.items() if found}
        if not looks:
            return []
        every = [look for found in looks.values() for look in found]
        seconds, frames = (
            {split: np.array([getattr(look, name) for look in found], float) for split, found in looks.items()}
            for name in ("seconds", "num_frames")
        )
        low, middle, high = np.quantile(np.concatenate(list(seconds.values())), [0, 0.5, 1])
        text = f"From {low:.1f} to {high:.1f} s, half of them up to {middle:.1f} s."
        if f"{low:.1f}" == f"{high:.1f}":
            text = f"All last {low:.1f} s."
        kinds = Counter((f"{look.width}×{look.height}", f"{look.fps:.4g}") for look in every)
        rows = [
            (size, rate, count, f"{100 * count / len(every):.1f} %") for (size, rate), count in kinds.most_common(12)
        ]
        more = f" The {len(rows)} most frequent of {len(kinds)} are below." if len(kinds) > len(rows) else ""
        return [
            Section("Lengths", text, [histogram(seconds, "seconds"), histogram(frames, "frames")]),
            Section(
                "Sizes and rates",
                f"Width × height in pixels, frames per second.{more}",
                columns=("size", "rate", "videos", "share"),
                rows=rows,
            ),
        ]

    def _random(self) -> list[Section]:
        chosen, text = random_entries(self.survey, self.strips, self.seed)
        facts = [(("class", self.survey.label_names(entry)), ("list", entry.split)) for entry in chosen]
        strips, more = self._shown(zip(chosen, facts, strict=True))
        return [Section("Random videos", text + more, strips=strips)] if chosen else []

    def _copies(self) -> list[Section]:
        survey = self.survey
        if not survey.groups:
            return []
        groups = closest_first(survey)
        shown = [(number, place) for number, group in enumerate(groups, 1) for place in group][:SHOWN_ROWS]
        rows = [
            (number, survey.entries[place].record.path, survey.entries[place].split, self._class(place))
            for number, place in shown
        ]
        pictured = [
            (survey.entries[place], (("group", str(number)), *self._facts(place)))
            for number, group in enumerate(groups[:SHOWN_GROUPS], 1)
            for place in group[:SHOWN_OF_GROUP]
        ]
        strips, more = self._shown(pictured)
        different = sum(len({survey.entries[place].record.labels for place in group}) > 1 for group in groups)
        differ = f" In {different} groups the labels differ." if different else ""
        text = (
            f"{len(groups)} groups of videos show nearly the same, {len(survey.leaks)} of them in more than one list, which come "
            f"first: a network that has seen one of them knows the other.{differ} Takes of one scene "
            "before a fixed camera can look the same too: look before you delete. "
            f"All are in {DUPLICATES}, with their distance: 0 is the same, above 1 is not listed."
        )
        columns = ("group", "video", "list", "class")
        return [Section("Near-duplicates", text + more, columns=columns, rows=rows, strips=strips)]

    def _doubts(self) -> list[Section]:
        survey = self.survey
        if survey.doubts is None:
            return []
        left_out = f" Not judged: {', '.join(survey.not_judged)}." if survey.not_judged else ""
        if not survey.doubts:
            return [Section("Doubtful labels", f"None was found.{left_out}")]
        strips, more = self._shown(
            (
                survey.entries[doubt.place],
                (
                    ("labelled", f"{survey.classes[doubt.label]} ({doubt.label_probability:.2f})"),
                    ("likely", f"{survey.classes[doubt.likely]} ({doubt.likely_probability:.2f})"),
                    ("list", survey.entries[doubt.place].split),
                ),
            )
            for doubt in survey.doubts[:SHOWN_DOUBTS]
        )
        pairs = Counter((survey.classes[doubt.label], survey.classes[doubt.likely]) for doubt in survey.doubts)
        rows = [(label, likely, count) for (label, likely), count in pairs.most_common(EXTREMES)]
        text = (
            f"{len(survey.doubts)} labels that a classifier of the network's features doubts after training on the other videos, most "
            f"doubtful first. All are in {DOUBTS}, and as a list to read again in {DOUBTED}.{left_out}"
        )
        columns = ("labelled", "likely", "videos")
        return [Section("Doubtful labels", text + more, columns=columns, rows=rows, strips=strips)]

    def _unreadable(self) -> list[Section]:
        bad = self.survey.unreadable
        if not bad:
            return []
        rows = []
        for group in group_by_cause([reason for _, _, reason in bad])[:SHOWN_ROWS]:
            split, record, reason = bad[group[0]]
            name = record.path if len(group) == 1 else f"{len(group)} videos, such as {record.path}"
            rows.append((name, split, reason))
        text = f"All are in {UNREADABLE}. Only frames that were looked at have been decoded: `mvit-video verify` decodes all."
        return [Section("Unreadable videos", text, columns=("video", "list", "reason"), rows=rows)]

    def _shown(self, videos: Iterable[tuple[Entry, Facts]]) -> tuple[list[ClipStrip], str]:
        """Strips of videos, and a sentence about those of which other frames cannot be read."""
        strips, lost, plan = list[ClipStrip](), 0, self.decoding
        for entry, facts in videos:
            try:
                strips.append(clip_strip(entry.record.path, plan.root, plan.backend, plan.timeout, facts))
            except DecodeError:
                lost += 1
        return strips, f" {lost} cannot be shown, since some of their frames are damaged." if lost else ""

    def _facts(self, place: int) -> Facts:
        return ("class", self._class(place)), ("list", self.survey.entries[place].split)

    def _class(self, place: int) -> str:
        return self.survey.label_names(self.survey.entries[place])

    def _of(self, split: str) -> list[Entry]:
        return [entry for entry in self.survey.entries if entry.split == split]

    def _look(self, entry: Entry):
        return self.survey.looks[entry.record.path]


def lead(survey: Survey) -> str:
    """What was found, in sentences."""
    counts = ", ".join(f"{len(videos):,} in {split}" for split, videos in survey.lists.items())
    sample = f" A random {len(survey.entries):,} of them were looked at." if survey.sampled else ""
    leaks = len(survey.leaks)
    found = (
        f"{leaks} groups of near-duplicates are in more than one list" if leaks else "No video was found in two lists"
    )
    return f"The lists have videos of {len(survey.classes)} classes: {counts}.{sample} {found}."


def headline(survey: Survey) -> list[Number]:
    total = sum(len(videos) + len(videos.refused) for videos in survey.lists.values())
    numbers = [
        Number(f"{total:,}", f"videos of {len(survey.classes)} classes", f"in {len(survey.lists)} lists"),
        Number(
            f"{len(survey.unreadable):,}",
            "unreadable",
            f"of {len(survey.unreadable) + len(survey.entries):,} looked at",
        ),
        Number(f"{len(survey.groups):,}", "groups of near-duplicates", f"{len(survey.leaks)} in more than one list"),
    ]
    if survey.doubts is not None:
        share = 100 * len(survey.doubts) / max(len(survey.entries), 1)
        numbers.append(Number(f"{len(survey.doubts):,}", "doubtful labels", f"{share:.1f} % of those looked at"))
    return numbers


def class_counts(survey: Survey) -> dict[str, np.ndarray]:
    """(K,) the videos of each class in each list; one with several labels counts in each of its classes."""
    counts = {}
    for split, videos in survey.lists.items():
        labels = np.array([label for record in videos.records for label in record.labels], np.int64)
        counts[split] = np.bincount(labels, minlength=len(survey.classes))
    return counts


def random_entries(survey: Survey, per_class: int, seed: int) -> tuple[list[Entry], str]:
    """`per_class` random videos of each class, of random classes if that is more than MOST_STRIPS; and a text about them."""
    members: dict[int, list[Entry]] = {}
    for entry in survey.entries:
        for label in entry.record.labels:
            members.setdefault(label, []).append(entry)
    rng = generator("browse", seed, "strips")
    most = max(MOST_STRIPS // per_class, 1)
    classes = sorted(members)
    if len(classes) > most:
        classes = sorted(rng.choice(classes, most, replace=False).tolist())
    chosen: list[Entry] = []
    for label in classes:
        places = rng.permutation(len(members[label]))[:per_class]
        chosen += [members[label][place] for place in places.tolist()]
    which = "each class" if len(classes) == len(members) else f"{len(classes)} of {len(members)} classes"
    how_many = "One" if per_class == 1 else f"Up to {per_class}"
    return chosen, f"{how_many} of {which}. Click a strip to play it."


def class_bars(counts: dict[str, np.ndarray], names: Sequence[str]) -> Figure:
    """The videos of each class, a bar for each list."""
    figure, axes = new_figure(7.0, 0.9 + len(names) * max(0.3, 0.16 * len(counts)))
    rows, height = np.arange(len(names)), 0.8 / len(counts)
    for number, (split, of) in enumerate(counts.items()):
        middle = rows + (number - (len(counts) - 1) / 2) * height
        bars = axes.barh(middle, of, height, color=COLOURS[split], label=split)
        axes.bar_label(bars, padding=2, fontsize=7)
    axes.set_yticks(rows, [shortened(name).replace("$", r"\$") for name in names], fontsize=8)
    axes.tick_params("x", labelsize=8)
    axes.set(xlabel="videos", ylim=(len(names) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(counts), frameon=False, fontsize=8)
    return figure


def shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def sorted_counts(counts: dict[str, np.ndarray]) -> Figure:
    """The videos of each class, the largest class first: for many classes."""
    figure, axes = new_figure(7.0, 3.2)
    for split, of in counts.items():
        axes.plot(np.arange(1, len(of) + 1), np.sort(of)[::-1], color=COLOURS[split], label=split)
    axes.set(xlabel="class, the largest first", ylabel="videos", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    return figure


def histogram(values: dict[str, np.ndarray], unit: str) -> Figure:
    """The share of each list's videos by a positive number, on a logarithmic axis if a few are far larger than the rest."""
    every = np.concatenate(list(values.values()))
    wide = every.max() > 10 * np.median(every)
    low, high = min(every.min(), 0.9 * np.median(every)), max(every.max(), 1.1 * np.median(every))
    edges = np.geomspace(low, high, 25) if wide else np.linspace(low, high, 25)
    figure, axes = new_figure(5.0, 3.0)
    for split, of in values.items():
        weights = np.full(len(of), 100 / len(of))
        axes.hist(of, edges, weights=weights, histtype="step", linewidth=1.6, color=COLOURS[split], label=split)
    axes.set(xlabel=unit, ylabel="% of the list", xscale="log" if wide else "linear")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    return figure
