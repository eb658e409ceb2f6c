"""What a user is told when a run goes on."""

import torch

from mvit_video.config.schema import TrainSettings
from mvit_video.engine.checkpoint import TrainingState, environment
from mvit_video.engine.resume import first_step
from mvit_video.model.ops import cpu
from mvit_video.model.ops.cpu import CpuBackends

FAST = CpuBackends(onednn=True, bf16_blocks=True)
OTHER = "products oneDNN in fp32, was PyTorch's; attention blocks in bf16 and fp32, was fused"


def environment_with(backends: CpuBackends, device: str = "cpu") -> dict:
    with cpu.use_backends(backends):
        return environment(torch.device(device), TrainSettings())


def said(run, recorded: dict, now: dict) -> list[str]:
    sentences = []
    state = TrainingState(run / "checkpoints/step_00000000", 0, {}, recorded, [])
    assert first_step(run, state, now, sentences.append) == 0
    return sentences[1:]


def test_a_run_that_goes_on_with_other_products_and_attention_says_so(tmp_path):
    plain, fast = environment_with(CpuBackends()), environment_with(FAST)
    assert said(tmp_path, plain, fast) == [
        f"the environment has changed ({OTHER}): results will be similar, but not bit-exact"
    ]
    assert said(tmp_path, fast, fast) == said(tmp_path, plain, plain) == []
    assert len(said(tmp_path, fast, plain)) == 1


def test_states_that_do_not_say_what_they_took_are_of_pytorchs_products_and_fused_attention(tmp_path):
    plain, fast = environment_with(CpuBackends()), environment_with(FAST)
    before = {name: value for name, value in plain.items() if name not in ("products", "attention")}
    assert said(tmp_path, before, plain) == []
    assert said(tmp_path, before, fast) == [
        f"the environment has changed ({OTHER}): results will be similar, but not bit-exact"
    ]


def test_a_run_whose_clips_were_scaled_in_floats_says_that_it_goes_on_with_others(tmp_path):
    now = environment_with(CpuBackends())
    before = {name: value for name, value in now.items() if name != "scaling"}
    assert said(tmp_path, now, now) == []
    assert said(tmp_path, before, now) == [
        "the environment has changed (scaling uint8, was float32): results will be similar, but not bit-exact"
    ]


def test_runs_on_other_devices_do_not_tell_what_the_cpu_takes():
    assert not {"products", "attention"} & environment_with(FAST, "meta").keys()
