"""Images per second of the batched views against torchvision's per-image pipeline on PIL images, one thread each.

The recipe is VICReg's for CIFAR-10 at 32 x 32 pixels. The pipelines take turns, so that what else the machine does
meets all of them; the ratio is that of the medians. Run as ``python tests/benchmarks/bench_views.py``.
"""

import statistics
import time
from collections.abc import Callable

import PIL
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sslinfo.data.views import ViewPipeline, views_preset

BATCH, ROUNDS = 256, 15
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def per_image_pipeline() -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomSolarize(128, 0.1),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def photographs() -> Tensor:
    """Smooth images of many colours: the cost of a pixel does not depend on it, but noise would be an odd image."""
    noise = torch.rand(BATCH, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.resize(noise, [32, 32], antialias=True).mul(255).to(torch.uint8)


def main() -> dict[str, float]:
    """Images per second of each pipeline."""
    torch.set_num_threads(1)
    images = photographs()
    pictures = [F.to_pil_image(image) for image in images]
    per_image = per_image_pipeline()
    index = torch.arange(BATCH)

    def batched(compile: bool) -> Callable[[int], object]:
        views = ViewPipeline(views_preset("vicreg")[:1], 32, MEAN, STD, compile)
        return lambda turn: views(images, seed=0, epoch=0, index=index, batch=turn)

    pipelines: dict[str, Callable[[int], object]] = {
        "torchvision, PIL": lambda _: torch.stack([per_image(picture) for picture in pictures]),
        "sslinfo": batched(False),
    }
    try:
        compiled = batched(True)
        compiled(0)
        pipelines["sslinfo, compiled"] = compiled
    except RuntimeError as error:
        print(f"not compiled: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for turn in range(-2, ROUNDS):
        for name, pipeline in pipelines.items():
            start = time.perf_counter()
            pipeline(turn)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: BATCH / statistics.median(taken) for name, taken in seconds.items()}
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}")
    print(f"{torch.get_num_threads()} thread, batches of {BATCH} at 32 x 32, median of {ROUNDS} turns each")
    for name, rate in rates.items():
        print(f"{name:18s} {rate:8.0f} images/s  {rate / rates['torchvision, PIL']:5.1f}x")
    return rates


if __name__ == "__main__":
    main()
