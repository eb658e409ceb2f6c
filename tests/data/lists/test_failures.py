import doctest

from mvit_video.data.lists import failures
from mvit_video.data.lists.failures import FailureReporter, group_by_cause, summary_lines


def test_the_example_in_the_docstring_is_right():
    assert doctest.testmod(failures) == (0, 1)


def test_two_hundred_videos_with_one_cause_are_one_line_with_their_count():
    bad = [(f"clip {number}.mp4", f"clip {number}.mp4: frame {number} of 300 is missing") for number in range(200)]
    bad[7:7] = [("x.mp4", "x.mp4: no such file"), ("y: z.mp4", "y: z.mp4: no such file")]
    assert summary_lines(bad) == [
        "200 videos: frame 0 of 300 is missing; such as 'clip 0.mp4'",
        "x.mp4: no such file",
        "y: z.mp4: no such file",
    ]


def test_nothing_is_lost_in_groups():
    reasons = [f"row {n} has '{'ab'[n % 2]}'" if n % 3 else f"cause {chr(97 + n % 5)}" for n in range(100)]
    groups = group_by_cause(reasons)
    assert sorted(place for group in groups for place in group) == list(range(100))
    assert max(map(len, groups)) == 66 and groups == sorted(groups)
    assert group_by_cause([]) == [] and summary_lines([]) == []


def test_while_work_goes_on_the_first_of_each_cause_is_told_at_once_and_the_others_at_its_end():
    lines = []
    complaints = FailureReporter(lines.append)
    complaints("a.mp4: the file is empty (0 bytes)")
    complaints("b.mp4: no such file")
    assert lines == ["a.mp4: the file is empty (0 bytes)", "b.mp4: no such file"]
    for number in range(50):
        complaints(f"{number}.mp4: no such file")
    complaints("c.mp4: the file is empty (0 bytes)")
    assert len(lines) == 2
    complaints.end()
    assert sorted(lines[2:]) == ["50 videos: no such file; such as '0.mp4'", "c.mp4: the file is empty (0 bytes)"]
