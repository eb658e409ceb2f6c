import pytest
from conftest import REPOSITORY

from mvit_video import cli
from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.config.shipped import config_file, shipped_configs
from mvit_video.errors import ConfigError

CONFIGS = REPOSITORY / "configs"


def test_every_configuration_of_the_repository_is_found_by_its_name_and_by_its_path_in_any_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    files = {file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "_base_"}
    assert set(shipped_configs().values()) == files
    for file in files:
        name = file.relative_to(CONFIGS).with_suffix("").as_posix()
        assert load_config(name) == load_config(f"configs/{name}.yaml") == load_config(file)


def test_the_folder_may_be_left_out_where_no_other_configuration_has_that_name():
    assert config_file("finetune") == str(CONFIGS / "custom/finetune.yaml")
    assert config_file("motion") == config_file("demo/motion")
    with pytest.raises(ConfigError, match="choose from kinetics400/mvitv2_s_16x4, ssv2/mvitv2_s_16x4"):
        config_file("mvitv2_s_16x4")


def test_a_file_of_the_user_comes_before_a_configuration_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune").write_text("train: {epochs: 3}\n")
    assert load_config("finetune").train.epochs == 3


def test_a_base_is_looked_for_beside_its_file_and_then_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text("_BASE_: configs/ssv2/mvitv2_s_16x4.yaml\ntrain: {seed: 9}\n")
    assert load_config(file) == load_config("ssv2/mvitv2_s_16x4", ["train.seed=9"])
    beside = tmp_path / "configs/ssv2/mvitv2_s_16x4.yaml"
    beside.parent.mkdir(parents=True)
    beside.write_text("train: {epochs: 4}\n")
    assert load_config(file).train.epochs == 4
    file.write_text("_BASE_: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        load_config(file)


def test_a_name_that_no_configuration_has_is_one_sentence_with_the_nearest(capsys):
    assert cli.main(["train", "finetun", "--dry-run"]) == 1
    assert capsys.readouterr().err == (
        "error: 'finetun' is neither a file nor a configuration that comes with mvit_video (did you mean 'finetune'?): "
        "run `mvit-video configs` for their names\n"
    )
    assert cli.main(["train", "my/own/file.yaml", "--dry-run"]) == 1
    assert capsys.readouterr().err == "error: my/own/file.yaml: no such file\n"


def test_the_list_names_every_configuration_and_its_purpose(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["configs"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in shipped_configs())
    assert "from published weights" in printed and "custom/_base_" not in printed and "_base_/" not in printed


def test_the_default_of_the_demonstration_is_its_own_configuration():
    arguments = cli.build_parser().parse_args(["demo", "--output", "out"])
    assert isinstance(load_config(arguments.config), Config)
    assert config_file(arguments.config) == str(CONFIGS / "demo/motion.yaml")
