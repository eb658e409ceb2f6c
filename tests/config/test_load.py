import pytest
from conftest import REPOSITORY

from mvit_video.config.load import config_from_dict, describe_settings, dump_config, load_config
from mvit_video.config.schema import Config
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
        ("data: {num_frame: 8}", "'data.num_frame' is not a setting (did you mean 'num_frames'?): allowed here are"),
        ("dat: {}", "'dat' is not a setting (did you mean 'data'?): allowed here are model, data, train, evaluation"),
        ("train: {epochs: 0}", "train.epochs = 0: input should be greater than or equal to 1"),
        ("train: {epochs: many}", "train.epochs = 'many': input should be a valid integer"),
        ("data: {decoder: ffmpeg}", "data.decoder = 'ffmpeg': input should be 'pyav', 'decord' or 'frames'"),
        ("data: {crop_size: 300}", "crop_size 300 is larger than short_side 256: the crop must fit"),
        ("data: {std: [1, 0, 1]}", "std [1.0, 0.0, 1.0] must be above 0 in every channel"),
        ("data: {crop_area: [0.5, 1.5]}", "crop_area [0.5, 1.5] must not exceed 1"),
        ("data: {crop_ratio: [2, 1]}", "crop_ratio [2, 1] must be two numbers above 0, the smaller one first"),
        ("data: {jitter_scales: [320, 256]}", "jitter_scales [320, 256] must be two numbers above 0, the smaller one"),
        (
            "data: {crop: jitter, crop_size: [96, 128], jitter_scales: [112, 320]}",
            "crop_size (96, 128) is larger than the smallest of jitter_scales [112, 320]: the crop must fit",
        ),
        (
            "data: {randaugment: rand-m11-n4-mstd0.5-inc1}",
            "data.randaugment = 'rand-m11-n4-mstd0.5-inc1': string should",
        ),
        ("data: {on_error: ignore}", "data.on_error = 'ignore': input should be 'stop', 'skip' or 'substitute'"),
        ("data: {repeated_aug: 0}", "data.repeated_aug = 0: input should be greater than or equal to 1"),
        ("train: {mix_switch: 2}", "train.mix_switch = 2: input should be less than or equal to 1"),
        ("model: {arguments: {num_frames: 4}}", "num_frames is set by data.num_frames: remove it from model.arguments"),
        ("- a\n- b", "holds a list, wanted sections such as `data:`"),
        ("data: [", "is not YAML"),
        ("_BASE_: c.yaml", "names itself as _BASE_"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml: no such file"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML (could not determine a constructor"),
        ("train: {epochs: 2024-02-30}", "is not YAML (day is out of range for month)"),
        ("data: {}\ntrain: {}\ndata: {}", "is not YAML ('data' stands in line 3 and in line 1: keep one of them)"),
        ("train: {seed: 1, seed: 2}", "is not YAML ('seed' stands in line 1 and in line 1: keep one of them)"),
        ("train: {betas: [0.9, 1.0]}", "train.betas.1 = 1.0: input should be less than 1"),
        ("train: {betas: [-1, 0.9]}", "train.betas.0 = -1: input should be greater than or equal to 0"),
        ("train: {base_lr: .inf}", "train.base_lr = inf: input should be a finite number"),
        ("data: {mean: [.nan, 0, 0]}", "data.mean.0 = nan: input should be a finite number"),
        ("train: {epochs: yes}", "train.epochs: true is not allowed here: write a number, or a text in quotes"),
        ("data: {root: no}", "data.root: false is not allowed here: write a number, or a text in quotes"),
        ("data: {crop_size: abc}", "data.crop_size = 'abc': input should be a valid integer"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "c.yaml", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.epochs", "'train.epochs' is not an override: write section.key=value"),
        ("train.epoch=3", "'train.epoch' is not a setting (did you mean 'epochs'?)"),
        ("train.epochs.x=3", "'epochs' is a value, not a section"),
        ("train.epochs=yes", "train.epochs = 'yes': input should be a valid integer"),
        ("train.epochs=1:30", "train.epochs = '1:30': input should be a valid integer"),
        ("train.epochs=2024-02-30", "train.epochs = '2024-02-30': input should be a valid integer"),
        ("train.base_lr=inf", "train.base_lr = 'inf': input should be a finite number"),
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
