import pytest
import torch
from conftest import REPOSITORY

from mvit_video.config.load import config_from_dict, load_config
from mvit_video.engine.threads import CHOSEN, fitting_threads, threads_for

SMALL = load_config(REPOSITORY / "configs/demo/motion.yaml")
S = config_from_dict({"model": {"name": "mvitv2_s_16x4"}}, "here")
CPU = torch.device("cpu")


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.delenv(CHOSEN, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_a_small_network_leaves_cores_to_decoding_and_gives_them_back(four_threads):
    with fitting_threads(SMALL, CPU) as told:
        assert torch.get_num_threads() == 2 and "2 of 4 threads compute, the others decode" in told
    assert torch.get_num_threads() == 4


def test_a_large_network_a_gpu_and_a_chosen_number_keep_all_threads(four_threads, monkeypatch):
    for config, device in ((S, CPU), (SMALL, torch.device("cuda"))):
        with fitting_threads(config, device) as told:
            assert torch.get_num_threads() == 4 and not told
    monkeypatch.setenv(CHOSEN, "4")
    with fitting_threads(SMALL, CPU) as told:
        assert torch.get_num_threads() == 4 and not told


def test_threads_grow_with_cores_and_cost_and_are_never_none():
    assert [threads_for(cost, 8) for cost in (1e-6, 0.06, 0.5, 64.0)] == [1, 4, 7, 8]
    assert [threads_for(0.052, cores) for cores in (1, 2, 4, 16)] == [1, 1, 2, 7]
