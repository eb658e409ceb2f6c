"""How far attention in bf16 moves a trained network's answers on a CPU, fused and block-wise: docs/performance.md.

python tools/attention_agreement.py CHECKPOINT LIST ROOT
"""

import sys

import torch

from mvit_video import make_loader
from mvit_video.model.ops import cpu
from mvit_video.model.weights.load import load_checkpoint


def main(checkpoint: str, videos: str, root: str) -> int:
    """Print top-1, agreement with fp32, and differences of softmax, over the middle clip of each video."""
    model, card = load_checkpoint(checkpoint)
    model.eval()
    batches = list(make_loader(videos, card.preprocessing, root=root, workers=0))
    labels = torch.cat([batch["label"] for batch in batches])
    exact = scores(model, batches, None)
    print(f"{len(labels)} clips; fp32: top-1 {top1(exact, labels):.2f} %")
    for name, blocks in (("fused", False), ("blocks", True)):
        found = scores(model, batches, cpu.CpuBackends(bf16_blocks=blocks))
        agreeing, difference = top1(found, exact.argmax(1)), (found - exact).abs()
        print(
            f"bf16, {name}: top-1 {top1(found, labels):.2f} %, the label of fp32 for {agreeing:.2f} %; softmax differs by "
            f"{difference.max():.4f} at most, {difference.amax(1).mean():.5f} on average of a clip's largest"
        )
    return 0


@torch.inference_mode()
def scores(model: torch.nn.Module, batches: list[dict], backends: cpu.CpuBackends | None) -> torch.Tensor:
    """Softmax (clips, classes); in bf16 with these backends, in fp32 without."""
    with (
        cpu.use_backends(backends or cpu.CpuBackends()),
        torch.autocast("cpu", torch.bfloat16, enabled=backends is not None),
    ):
        return torch.cat([model(batch["video"]).float().softmax(1) for batch in batches])


def top1(found: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * (found.argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
