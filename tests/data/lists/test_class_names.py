import json

import pytest
from list_files import write

from mvit_video.compat import import_torchvision
from mvit_video.data.lists.class_names import (
    class_lookup,
    difference_from_published,
    name_key,
    published_classes,
    read_classes,
)
from mvit_video.errors import AnnotationError


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "row 2 is empty"), ("a\nb\na\n", "row 3 repeats the class 'a'"), ("\n", "contains no class names")],
)
def test_a_wrong_class_file_is_named(tmp_path, text, message):
    with pytest.raises(AnnotationError, match=message):
        read_classes(str(write(tmp_path / "classes.txt", text)))


def test_label_ids_give_the_order_and_lose_their_brackets(tmp_path):
    content = {"Moving [something] up": "2", "Holding [something]": "0", "größer": 1}
    assert read_classes(str(write(tmp_path / "labels.json", "\ufeff" + json.dumps(content)))) == [
        "Holding something",
        "größer",
        "Moving something up",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "0", "b": "0"}', "'a' and 'b' have the same id 0"),
        ('{"a": "0", "b": "2"}', "has 2 classes but no id 1, expected ids 0 to 1"),
        ('{"a": "x"}', "the class 'a' has the id 'x', expected a whole number from 0"),
        ('{"a": "0", "[a]": "1"}', "repeats the class 'a'"),
        ("[1]", "expected an object of class names and ids"),
        ("{}", "expected an object of class names and ids"),
        ('{"a" 0}', r"is not JSON \(line 1, column 6: expecting ':' delimiter\)"),
        ("[" * 100_000, "labels.json: is (nested too deeply|not JSON)"),
    ],
)
def test_a_wrong_label_file_is_named(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_classes(str(write(tmp_path / "labels.json", content)))


def test_the_published_lists_are_complete_and_in_order():
    kinetics, something = published_classes("kinetics400"), published_classes("ssv2")
    assert len(kinetics) == 400 and list(kinetics) == sorted(set(kinetics))
    assert (kinetics[0], kinetics[5], kinetics[399]) == ("abseiling", "archery", "zumba")
    assert len(something) == len(set(something)) == 174
    assert (
        something[0] == "Approaching something with your camera"
        and something[173] == "Wiping something off of something"
    )


def test_torchvision_has_the_same_kinetics_names_in_the_same_order():
    weights = import_torchvision("torchvision.models.video").MViT_V2_S_Weights
    assert list(published_classes("kinetics400")) == weights.KINETICS400_V1.meta["categories"]


def test_differences_are_counted_and_the_first_is_named():
    published = published_classes("kinetics400")
    assert difference_from_published(published, "kinetics400") == ""
    swapped = [published[1], published[0], *published[2:]]
    assert difference_from_published(swapped, "kinetics400").startswith(
        "2 of 400 class names differ from Kinetics-400, the first is class 0, 'air drumming' instead of 'abseiling'"
    )
    assert difference_from_published(published[:3], "kinetics400").startswith(
        "3 classes, but Kinetics-400 has 400: labels"
    )


def test_names_are_looked_up_exactly_before_they_are_by_their_letters():
    lookup = class_lookup(["a b", "ab", "tying knot (not on a tie)", "!?"])
    assert [lookup(name) for name in ("a b", "ab", "a_b", "tying_knot_not_on_a_tie", "", "?!", "!?")] == [
        0,
        1,
        None,
        2,
        None,
        None,
        3,
    ]
    assert len({name_key(name) for name in published_classes("kinetics400")}) == 400
