"""Records in arrays: what goes in comes out, and processes share one copy."""

import multiprocessing
import pickle
import sys

import pytest

from mvit_video.benchmark.lists import benchmark_lists
from mvit_video.data.lists.records import CHUNK, NO_LABEL, VideoList, VideoRecord, VideoRecords

ODD = [
    VideoRecord("a.mp4", 0, 1),
    VideoRecord("größe/行く#1 😀.webm", 7, 2, (3, 1)),
    VideoRecord("", NO_LABEL, 0),
    VideoRecord("x" * 5000, 99_999, 2**31 - 1),
    VideoRecord("no text \udce9", 2, 5, (1,)),
]


def many(count):
    return [
        VideoRecord(f"{number % 17}/{'v' * (number % 5)}{number}.mp4", number % 400, number + 1)
        for number in range(count)
    ]


@pytest.mark.parametrize("records", [[], ODD[:1], ODD, many(CHUNK), many(CHUNK + 1), many(3 * CHUNK - 5)], ids=len)
def test_records_come_out_as_they_went_in(records):
    packed = VideoRecords.of(records)
    assert len(packed) == len(records) and list(packed) == records == packed and packed == tuple(records)
    assert list(packed.paths()) == [record.path for record in records]
    assert packed.labels.tolist() == [record.label for record in records]
    for place in {*range(0, len(records), 997), *range(-min(len(records), 3), 0)}:
        assert packed[place] == records[place]
    for cut in (slice(None), slice(1, 3), slice(-2, None), slice(None, None, -1), slice(5, 1)):
        assert list(packed[cut]) == records[cut]
    assert pickle.loads(pickle.dumps(packed)) == packed


def test_places_outside_are_refused_as_those_of_a_list():
    packed = VideoRecords.of(ODD)
    for place in (5, -6):
        with pytest.raises(IndexError):
            packed[place]
    with pytest.raises(TypeError):
        packed["0"]
    assert packed != ODD[:-1] and packed != 5 and VideoRecords.of(ODD[:2]) != VideoRecords.of(ODD[1:3])


def test_records_are_taken_in_any_order():
    packed = VideoRecords.of(ODD)
    assert list(packed.take([3, 1, 1])) == [ODD[3], ODD[1], ODD[1]]
    assert packed.with_several_labels == (ODD[1], ODD[4]) and VideoRecords.of(many(9)).with_several_labels == ()


def test_the_arrays_cannot_be_written():
    packed = VideoRecords.of(ODD)
    with pytest.raises(ValueError, match="read-only"):
        packed.labels[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(packed)).labels[0] = 3


def test_a_list_takes_any_sequence_of_records():
    for records in (ODD, tuple(ODD), VideoRecords.of(ODD)):
        videos = VideoList(records, ("a",), "x/list.csv")
        assert isinstance(videos.records, VideoRecords) and videos == VideoList(tuple(ODD), ("a",), "x/list.csv")
        assert videos.with_several_labels == (ODD[1], ODD[4]) and videos.where(ODD[1]) == "row 2 of list.csv"


def answer(connection, videos):
    connection.send((list(videos.records), videos.records.labels.sum().item(), videos.records.labels.flags.writeable))


@pytest.mark.integration
@pytest.mark.parametrize("method", sorted({"fork", "spawn", "forkserver"} & {*multiprocessing.get_all_start_methods()}))
def test_workers_of_any_kind_read_the_same_records(method):
    context, records = multiprocessing.get_context(method), [*many(3000), *ODD]
    videos = VideoList(tuple(records), ("a",), "list")
    for _ in range(2):  # the second is given the file that the first was given
        ours, theirs = context.Pipe()
        worker = context.Process(target=answer, args=(theirs, videos))
        worker.start()
        assert ours.recv() == (records, sum(record.label for record in records), False)
        worker.join()


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="private memory is read from /proc")
def test_a_worker_that_looks_at_every_row_makes_no_copy_of_the_list():
    """Three bytes a row of its own, an order of eight bytes a row being let go; a copy would take a hundred and more."""
    rows = 200_000
    result = benchmark_lists(rows, workers=2)
    assert {worker["letters"] for worker in result["workers"]} == {45 * rows + sum(row % 400 for row in range(rows))}
    for worker in result["workers"]:
        assert worker["private_megabytes"] < 0.03e-3 * rows + 4
