"""The contract between the loop and its hooks."""

import pytest

from mvit_video.engine.loop import Hook, Loop, Steps
from mvit_video.errors import Interrupted, TrainingError


class Diary(Hook):
    """Writes down what it is called for, and after how many steps; `at` may do something at one of these moments."""

    def __init__(self, name, diary, at=None):
        self.name, self.diary, self.at = name, diary, at or {}

    def _note(self, moment, loop):
        self.diary.append((self.name, moment, loop.done))
        if (moment, loop.done) in self.at:
            self.at[moment, loop.done](loop)

    def before_train(self, loop):
        self._note("before_train", loop)

    def before_batch(self, loop):
        self._note("before_batch", loop)

    def before_step(self, loop):
        self._note("before_step", loop)

    def after_step(self, loop):
        self._note("after_step", loop)

    def before_save(self, loop):
        self._note("before_save", loop)

    def after_validation(self, loop, numbers):
        self._note(f"after_validation {numbers}", loop)

    def after_train(self, loop, failure):
        self._note(f"after_train {failure}", loop)


def run(*hooks, first=0, last=1, batches=None, step=None):
    def plain(number, batch):
        return {"number": number, **batch}

    loop = Loop(step or plain, Steps(first, last, 2), hooks)
    loop.run(batches if batches is not None else [{"batch": number} for number in range(last - first)])
    return loop


def fail(loop):
    raise TrainingError("it broke")


def test_hooks_are_called_in_their_order_and_closed_in_the_reverse_one():
    diary = []
    run(Diary("a", diary), Diary("b", diary))
    moments = ["before_train", "before_batch", "before_step", "after_step"]
    expected = [(name, moment, int(moment == "after_step")) for moment in moments for name in "ab"]
    assert diary == [*expected, ("b", "after_train None", 1), ("a", "after_train None", 1)]


def test_a_resumed_loop_counts_on_and_makes_the_rest():
    seen = []

    class Watch(Hook):
        def after_step(self, loop):
            seen.append((loop.record, loop.done, loop.epoch))

    run(Watch(), first=3, last=5)
    assert seen == [({"number": 3, "batch": 0}, 4, 2.0), ({"number": 4, "batch": 1}, 5, 2.5)]


def test_a_loop_with_nothing_left_opens_and_closes_its_hooks():
    diary = []
    run(Diary("a", diary), first=4, last=4, batches=[])
    assert diary == [("a", "before_train", 4), ("a", "after_train None", 4)]


def test_a_batch_that_a_hook_replaces_is_the_steps_and_what_it_adds_is_in_the_record_for_those_behind_it():
    class Replace(Hook):
        def before_step(self, loop):
            loop.batch = {"batch": "another"}

        def after_step(self, loop):
            loop.record |= {"more": 1}

    class Watch(Hook):
        def after_step(self, loop):
            assert loop.record == {"number": 0, "batch": "another", "more": 1}

    assert run(Replace(), Watch()).done == 1


@pytest.mark.parametrize("moment", ["before_batch", "before_step"])
def test_an_error_of_a_hook_ends_the_run_and_every_hook_is_closed_and_told(moment):
    diary = []
    with pytest.raises(TrainingError, match="it broke"):
        run(Diary("a", diary, {(moment, 1): fail}), Diary("b", diary), last=3)
    assert diary[-2:] == [("b", "after_train it broke", 1), ("a", "after_train it broke", 1)]


def test_an_error_of_the_step_is_told_too_and_counts_no_step():
    diary = []
    with pytest.raises(TrainingError):
        run(Diary("a", diary), step=lambda number, batch: fail(None))
    assert diary[-1] == ("a", "after_train it broke", 0)


def test_hooks_that_were_not_opened_are_not_closed():
    diary = []
    with pytest.raises(TrainingError):
        run(Diary("a", diary), Diary("b", diary, {("before_train", 0): fail}), Diary("c", diary))
    assert diary == [("a", "before_train", 0), ("b", "before_train", 0), ("a", "after_train it broke", 0)]


def test_one_hook_that_fails_to_close_does_not_keep_the_others_from_it():
    diary = []
    with pytest.raises(TrainingError, match="it broke"):
        run(Diary("a", diary), Diary("b", diary, {("after_train None", 1): fail}))
    assert diary[-2:] == [("b", "after_train None", 1), ("a", "after_train it broke", 1)]


def test_a_stop_lets_the_moments_hooks_finish_and_ends_the_run_before_the_next_batch():
    diary = []
    with pytest.raises(Interrupted, match="enough"):
        run(Diary("a", diary, {("after_step", 1): lambda loop: loop.stop("enough")}), Diary("b", diary), last=3)
    assert diary[-4:] == [
        ("a", "after_step", 1),
        ("b", "after_step", 1),
        ("b", "after_train enough", 1),
        ("a", "after_train enough", 1),
    ]


def test_a_stop_before_the_first_step_makes_none():
    diary = []
    with pytest.raises(Interrupted):
        run(Diary("a", diary, {("before_train", 0): lambda loop: loop.stop("enough")}), last=3)
    assert [moment for _, moment, _ in diary] == ["before_train", "after_train enough"]


def test_saving_and_validated_numbers_reach_every_hook():
    diary = []

    class Saves(Hook):
        def after_step(self, loop):
            loop.saving()
            loop.validated({"top1": 50.0})

    run(Diary("a", diary), Saves(), Diary("b", diary))
    told = [entry for entry in diary if "sav" in entry[1] or "valid" in entry[1]]
    numbers = "after_validation {'top1': 50.0}"
    assert told == [("a", "before_save", 1), ("b", "before_save", 1), ("a", numbers, 1), ("b", numbers, 1)]
