import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import REPOSITORY

from mvit_video import cli
from mvit_video.config.load import config_from_dict, describe_settings, dump_config, load_config
from mvit_video.config.schema import Config
from mvit_video.config.slowfast import convert_slowfast
from mvit_video.errors import ConfigError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_values_come_from_the_base_then_the_file_then_the_words(tmp_path):
    write(tmp_path / "base.yaml", "data: {num_frames: 8, workers: 0}\ntrain: {epochs: 5}\n")
    file = write(tmp_path / "run.yaml", "_BASE_: base.yaml\ndata: {workers: 3}\ntrain: {seed: 4}\n")
    config = load_config(file, ["train.seed=7", "data.mean=[0.1, 0.2, 0.3]", "train.base_lr=1e-3"])
    assert (config.data.num_frames, config.data.workers, config.train.epochs, config.train.seed) == (8, 3, 5, 7)
    assert config.data.mean == (0.1, 0.2, 0.3)
    assert config.train.base_lr == 0.001


def test_a_dumped_config_reads_back_to_the_same(tmp_path):
    config = config_from_dict({"data": {"crop_size": [96, 128], "train": "größe.csv"}, "train": {"epochs": 3}}, "test")
    assert load_config(write(tmp_path / "c.yaml", dump_config(config))) == config


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_config_is_read(file):
    assert isinstance(load_config(file), Config)


def test_every_setting_has_a_sentence():
    for key, _, sentence in describe_settings():
        assert sentence.endswith((".", ".`")) and len(sentence) > 10, key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {num_frame: 8}", "'data.num_frame' is not a setting (did you mean 'data.num_frames'?): known here:"),
        (
            "dat: {}",
            "'dat' is not a setting (did you mean 'data'?): known here: model, data, train, pretrain, evaluation",
        ),
        ("train: {epochs: 0}", "train.epochs = 0: input should be greater than or equal to 1"),
        ("train: {epochs: many}", "train.epochs = 'many': input should be a valid integer"),
        ("data: {decoder: ffmpeg}", "data.decoder = 'ffmpeg': input should be 'pyav', 'decord' or 'frames'"),
        ("data: {crop_size: 300}", "crop_size 300 is larger than short_side 256: the crop must fit"),
        ("data: {std: [1, 0, 1]}", "std [1.0, 0.0, 1.0] must be above 0 in every channel"),
        ("data: {crop_area: [0.5, 1.5]}", "crop_area [0.5, 1.5] must not exceed 1"),
        ("data: {crop_ratio: [2, 1]}", "crop_ratio [2, 1] must be two numbers above 0, the smaller one first"),
        ("data: {jitter_scales: [320, 256]}", "jitter_scales [320, 256] must be two numbers above 0, the smaller one"),
        (
            "data: {crop: jitter, crop_size: [120, 128], jitter_scales: [112, 320]}",
            "crop_size (120, 128) is larger than the smallest of jitter_scales [112, 320]: the crop must fit",
        ),
        (
            "data: {crop_size: [224, 400]}\ntrain: {resolutions: [160]}",
            "train.resolutions 160 has another aspect ratio than data.crop_size (224, 400) and would stretch clips: "
            "write [160, 286]",
        ),
        (
            "data: {randaugment: rand-m11-n4-mstd0.5-inc1}",
            "data.randaugment = 'rand-m11-n4-mstd0.5-inc1': expected a text such as rand-m7-n4-mstd0.5-inc1, or auto",
        ),
        ("data: {on_error: ignore}", "data.on_error = 'ignore': input should be 'stop', 'skip' or 'substitute'"),
        ("data: {repeated_aug: 0}", "data.repeated_aug = 0: input should be greater than or equal to 1"),
        ("train: {mix_switch: 2}", "train.mix_switch = 2: input should be less than or equal to 1"),
        ("model: {arguments: {num_frames: 4}}", "num_frames is set by data.num_frames: remove it from model.arguments"),
        ("- a\n- b", "contains a list, expected sections such as `data:`"),
        ("data: [", "is not YAML"),
        ("_BASE_: c.yaml", "includes itself through _BASE_"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml: no such file"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML (could not determine a constructor"),
        ("train: {epochs: 2024-02-30}", "is not YAML (day is out of range for month)"),
        ("data: {}\ntrain: {}\ndata: {}", "c.yaml: duplicate key 'data' (lines 1 and 3): keep one of them"),
        ("train: {seed: 1, seed: 2}", "c.yaml: duplicate key 'seed' (lines 1 and 1): keep one of them"),
        ("a: [{b: 1}, {b: 1,\n b: 2}]", "c.yaml: duplicate key 'b' (lines 1 and 2): keep one of them"),
        ("_BASE_: 3", "c.yaml: _BASE_ is 3, expected the name of a YAML file"),
        ("train: {betas: [0.9, 1.0]}", "train.betas.1 = 1.0: input should be less than 1"),
        ("train: {betas: [-1, 0.9]}", "train.betas.0 = -1: input should be greater than or equal to 0"),
        ("train: {base_lr: .inf}", "train.base_lr = inf: input should be a finite number"),
        ("data: {mean: [.nan, 0, 0]}", "data.mean.0 = nan: input should be a finite number"),
        ("train: {epochs: yes}", "train.epochs: true is not allowed here: write a number, or quote the text"),
        ("data: {root: no}", "data.root: false is not allowed here: write a number, or quote the text"),
        ("data: {mean: [yes, no, 0.5]}", "data.mean: false in [True, False, 0.5] is not allowed here: write a number"),
        ("data: {crop_area: [true, true]}", "data.crop_area: true in [True, True] is not allowed here"),
        ("data: {crop_size: [true, 4]}", "data.crop_size: true in [True, 4] is not allowed here"),
        ("train: {betas: [false, 0.9]}", "train.betas: false in [False, 0.9] is not allowed here"),
        ("train: {resolutions: [[64, true]]}", "train.resolutions: true in [[64, True]] is not allowed here"),
        ("train: {resolutions: {a: true}}", "train.resolutions: true in {'a': True} is not allowed here"),
        ("data: {std: 0.2}", "data.std = 0.2: expected a list in brackets, such as [a, b]"),
        ("data: {mean: [0.5, 0.5]}", "data.mean = [0.5, 0.5]: has too few values"),
        ("data: {mean: [1, 1, 1, 1]}", "data.mean = [1, 1, 1, 1]: has too many values"),
        ("data: {crop_size: [1, 2, 3]}", "data.crop_size = [1, 2, 3]: expected a whole number of pixels, or [height"),
        ("data: {root: [a]}", "data.root = ['a']: expected a text"),
        ("data: {flip: maybe}", "data.flip = 'maybe': expected true or false"),
        ("train: 5", "train = 5: expected settings under this name, such as train.NAME=VALUE"),
        ("model: {arguments: 5}", "model.arguments = 5: expected names with values, such as {name: value}"),
        ("evaluation: {protocol: '0x3'}", "evaluation.protocol = '0x3': expected clips × crops such as 5x1"),
        ("data: {crop_size: abc}", "data.crop_size = 'abc': input should be a valid integer"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "c.yaml", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_true_and_false_are_taken_where_a_setting_is_true_or_false(tmp_path):
    config = load_config(
        write(tmp_path / "c.yaml", "data: {flip: yes}\nmodel: {arguments: {cls_token: no, x: [true]}}")
    )
    assert config.data.flip is True and config.model.arguments == {"cls_token": False, "x": [True]}


def laughs(levels: int, width: int = 10) -> str:
    """A YAML text of a few lines whose last list stands for width ** levels values."""
    lines = ["data:", f"  k0: &k0 [{', '.join('x' * width)}]"]
    lines += [f"  k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"  mean: *k{levels - 1}"])


def merges(levels: int, width: int = 10) -> str:
    first = "a: &m0 {" + ", ".join(f"k{n}: 1" for n in range(width)) + "}"
    return "\n".join([first] + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * width)}]}}" for n in range(1, levels)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "line 1 is nested deeper than 50 levels"),
        ("{a: " * 100_000, "line 1 is nested deeper than 50 levels"),
        ("\n".join(f"{' ' * level}a:" for level in range(300)), "line 50 is nested deeper than 50 levels"),
        ("data: " + "{a: " * 5000 + "1" + "}" * 5000, "nested deeper than 50 levels"),
        (laughs(8), "line 6 expands to more than 100,000 values"),
        (merges(8), "line 5 expands to more than 100,000 values"),
        ("data: &a [*a]", "line 1 has an alias that contains itself"),
        ("data: &a {root: {b: *a}}", "line 1 has an alias that contains itself"),
        ("data: {root: &a {? *a : 1}}", "line 1 has an alias that contains itself"),
        ("? [1, 2]\n: 3", "is not YAML (while constructing a mapping"),
        ("data: {root: a\0b}", "is not YAML (unacceptable character #x0000"),
        ("# " + "x" * 1_000_001, "1,000,003 characters are above the limit of 1,000,000"),
    ],
    ids=["lists", "mappings", "lines", "closed", "laughs", "merges", "loop", "longer loop", "key loop", "key", "zero byte", "long"],
)  # fmt: skip
def test_a_file_made_to_overwhelm_its_reader_is_one_sentence_at_once(tmp_path, text, message):
    file, start = write(tmp_path / "c.yaml", text), time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert (
        message in str(caught.value) and str(caught.value).startswith(f"{file}: is ") and "\n" not in str(caught.value)
    )
    assert time.process_time() - start < 3
    with pytest.raises(ConfigError):
        convert_slowfast(file)


def test_values_of_any_length_leave_a_sentence_that_can_be_read(tmp_path):
    for text in (
        "data: {mean: [" + "0," * 5_000 + "0]}",
        "data: {mean: [true," + "0," * 5_000 + "0]}",
        f"{'x' * 5000}: 1",
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(write(tmp_path / "c.yaml", text))
        assert len(str(caught.value)) < 700
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "c.yaml", ""), [f"{'a' * 5000}=1"])
    assert len(str(caught.value)) < 1000


def test_nested_words_end_in_a_sentence_too(tmp_path):
    file = write(tmp_path / "c.yaml", "")
    with pytest.raises(ConfigError, match=r"command line, 'data.mean=\[\[\["):
        load_config(file, ["data.mean=" + "[" * 10_000])
    with pytest.raises(ConfigError, match=r"command line, 'train=.*: duplicate key 'seed'"):
        load_config(file, ["train={seed: 1, seed: 2}"])


def test_aliases_that_stand_for_a_few_values_are_read(tmp_path):
    text = "data: {mean: &m [0.1, 0.2, 0.3], std: *m}\ntrain: &t {seed: 3}\n"
    config = load_config(write(tmp_path / "c.yaml", text))
    assert config.data.mean == config.data.std == (0.1, 0.2, 0.3) and config.train.seed == 3


@pytest.mark.parametrize(
    ("words", "blamed", "message"),
    [
        (["train.epoch=3"], "train.epoch=3", "'train.epoch' is not a setting (did you mean 'train.epochs'?)"),
        (["trian.epochs=3"], "trian.epochs=3", "'trian' is not a setting (did you mean 'train'?)"),
        (["epochs=3"], "epochs=3", "'epochs' is not a setting"),
        (["train.seed=1", "train.epochs=no"], "train.epochs=no", "train.epochs = 'no'"),
        (["train={epochs: 0}"], "train={epochs: 0}", "train.epochs = 0"),
        (["data.mean=[1, 2]"], "data.mean=[1, 2]", "data.mean = [1, 2]: has too few values"),
        (["train.seed=1", "data.crop_size=300"], "data.crop_size=300", "crop_size 300 is larger than short_side 256"),
        (["model.arguments.crop_size=3"], "model.arguments.crop_size=3", "crop_size is set by data.crop_size"),
        (["data.short_side=100", "data.crop_size=120"], "data.short_side=100", "crop_size 120 is larger than"),
        (["data.std=[1, 0, 1]", "data.std=[0, 1, 1]"], "data.std=[1, 0, 1] data.std=[0, 1, 1]", "std [0.0, 1.0, 1.0] must be"),
        (["train.epochs"], "", "'train.epochs' is not an override"),
    ],
)  # fmt: skip
def test_a_mistyped_word_blames_the_command_line_and_not_the_file(tmp_path, words, blamed, message):
    file = write(tmp_path / "c.yaml", "train: {epochs: 2}")
    with pytest.raises(ConfigError) as caught:
        load_config(file, words)
    start = f"command line, '{blamed}': " if blamed else "command line: "
    assert str(caught.value).startswith(start) and message in str(caught.value) and str(file) not in str(caught.value)


def test_a_mistake_of_the_file_is_the_files_whatever_the_words_say(tmp_path):
    file = write(tmp_path / "c.yaml", "train: {epochs: 0}\ndata: {crop_size: 300}")
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["train.seed=3"])
    assert str(caught.value).startswith(f"{file}: ")


def test_words_in_the_place_of_the_file_are_told_from_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"'train.epochs=3' is an override, expected a CONFIG: name a YAML file"):
        load_config("train.epochs=3")
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a folder, and the folder."""
    (tmp_path / "www").mkdir()
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "cache"))
    kind = partial(QuietHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "www"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_file_and_its_base_may_lie_at_addresses(served, tmp_path):
    address, folder = served
    (folder / "deep").mkdir()
    write(folder / "base.yaml", "train: {epochs: 5, seed: 1}")
    write(folder / "deep/run.yaml", "_BASE_: ../base.yaml\ntrain: {seed: 2}")
    local = write(tmp_path / "local.yaml", f"_BASE_: {address}/deep/run.yaml\ndata: {{workers: 0}}")
    for source in (f"{address}/deep/run.yaml", local):
        config = load_config(source, ["train.warmup_epochs=2"])
        assert (config.train.epochs, config.train.seed, config.train.warmup_epochs) == (5, 2, 2)
    assert load_config(local).data.workers == 0
    assert cli.main(["train", f"{address}/nowhere.yaml", "--output", str(tmp_path / "run")]) == 1


@pytest.mark.parametrize("base", ["file:///etc/hostname", "ftp://example.org/a.yaml"])
def test_a_file_from_an_address_reads_no_file_of_this_machine(served, base):
    address, folder = served
    write(folder / "run.yaml", f"_BASE_: {base}")
    with pytest.raises(ConfigError, match="expected an address, or a name relative"):
        load_config(f"{address}/run.yaml")
    write(folder / "loop.yaml", "_BASE_: loop.yaml")
    with pytest.raises(ConfigError, match="includes itself through _BASE_"):
        load_config(f"{address}/loop.yaml")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.epochs", "'train.epochs' is not an override: write section.key=value"),
        ("train.epoch=3", "'train.epoch' is not a setting (did you mean 'train.epochs'?)"),
        ("train.epochs.x=3", "'epochs' is a value, not a section"),
        ("train.epochs=yes", "train.epochs = 'yes': input should be a valid integer, written in digits, or auto"),
        ("data.cache_gib=1e300", "data.cache_gib = '1e300': input should be less than or equal to 1000000"),
        ("train.epochs=1:30", "train.epochs = '1:30': input should be a valid integer"),
        ("train.epochs=2024-02-30", "train.epochs = '2024-02-30': input should be a valid integer"),
        ("train.base_lr=inf", "train.base_lr = 'inf': input should be a finite number"),
        ("train.class_weights={fall:5}", "'fall:5' has no value: write a space behind the colon"),
        ("model.arguments={drop_path_rate:0.4}", "'drop_path_rate:0.4' has no value: write a space behind the colon"),
        (
            "train.class_weights=balance",
            "train.class_weights = 'balance': expected balanced, or names of classes with factors, such as {fall: 5}",
        ),
        ("train.resolutions=[small]", "train.resolutions.0 = 'small': input should be a valid integer"),
    ],
)
def test_a_wrong_word_is_one_sentence(tmp_path, word, message):
    file = write(tmp_path / "c.yaml", "train: {epochs: 2}")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [word])
    assert message in str(caught.value)


def test_several_errors_are_counted(tmp_path):
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        load_config(write(tmp_path / "c.yaml", "train: {epochs: 0, seed: -1}"))


@pytest.mark.parametrize("text", ["/d/a #1", "2024", "no", "2024-01-01", "2024-02-30", "/d/a: b", "[a]", "*x", "C:\\x"])
def test_a_text_of_a_word_is_taken_as_it_stands(tmp_path, text):
    config = load_config(write(tmp_path / "c.yaml", ""), [f"data.root={text}", f"data.train={text}"])
    assert (config.data.root, config.data.train) == (text, text)


def test_null_numbers_and_lists_of_words_are_no_texts(tmp_path):
    words = [
        "data.val=null",
        "train.clip_gradient=null",
        "train.epochs=010",
        "data.crop_size=[24, 32]",
        "data.flip=yes",
    ]
    config = load_config(write(tmp_path / "c.yaml", "data: {val: val.csv}"), words)
    assert (config.data.val, config.train.clip_gradient, config.train.epochs) == (None, None, 10)
    assert config.data.crop_size == (24, 32) and config.data.flip
    words = ["model.arguments.drop_path_rate=0.5", "train={epochs: 3}"]
    config = load_config(write(tmp_path / "c.yaml", "model: {arguments: {depths: [1]}}"), words)
    assert config.model.arguments == {"depths": [1], "drop_path_rate": 0.5} and config.train.epochs == 3


def test_merged_keys_may_be_changed(tmp_path):
    file = write(tmp_path / "c.yaml", "data: {val: a.csv, test: a.csv}\n_BASE_: b.yaml")
    write(tmp_path / "b.yaml", "data: {<<: {val: c.csv, root: d}, val: b.csv}")
    data = load_config(file).data
    assert (data.root, data.val, data.test) == ("d", "a.csv", "a.csv")


def test_a_section_without_a_line_changes_nothing(tmp_path):
    write(tmp_path / "base.yaml", "train: {epochs: 5}")
    file = write(tmp_path / "c.yaml", "_BASE_: base.yaml\ntrain:\n  # epochs: 7\ndata:\n")
    assert load_config(file, ["train.seed=3"]) == load_config(tmp_path / "base.yaml", ["train.seed=3"])


def test_every_default_can_be_typed_as_it_is_listed(tmp_path):
    words = [f"{key}={default}" for key, default, _ in describe_settings()]
    assert load_config(write(tmp_path / "c.yaml", ""), words) == Config()
    assert "train.clip_gradient=1.0" in words and "data.val=null" in words and "data.mean=[0.45, 0.45, 0.45]" in words


def test_a_home_folder_is_found_where_no_shell_has_expanded_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "c.yaml").write_text("data:\n  root: ~/videos\n  train: a~/b.csv\n")
    config = load_config(tmp_path / "c.yaml", ["model.weights=~/w.pt"])
    assert (config.data.root, config.data.train) == ("/home/me/videos", "a~/b.csv")
    assert config.model.weights == "/home/me/w.pt"
