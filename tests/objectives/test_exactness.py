"""Loss and gradient on several ranks are those of one process on the union of their shards, for every objective.

A new objective or entropy half is proved by one line in OBJECTIVES.
"""

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rank_trainer import SmallNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslinfo.objectives import (
    BYOL,
    WMSE,
    BarlowTwins,
    EntropyHalf,
    JointEmbedding,
    LogDet,
    MoCo,
    PairDist,
    SIGReg,
    SimCLR,
    SimSiam,
    SwAV,
    VarianceCovariance,
    VICReg,
    VonNeumann,
    base,
)

SAMPLES = 10  # a rank's; with 24 dimensions the batch of 2 ranks is smaller than d and that of 3 is larger
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def vicreg(half: EntropyHalf, between: str = "layer", backbone: nn.Module | None = None) -> JointEmbedding:
    network = backbone or SmallNet()
    return VICReg(entropy=half, backbone=network, projector=[16, 24], projector_norm=between)


def small(
    kind: type[JointEmbedding], width: int = 24, half: Callable[[], EntropyHalf | None] = lambda: None, **options: Any
) -> Callable[[], JointEmbedding]:
    """An objective on a network without batch statistics; what it predicts with has none either."""
    if "predictor" in options:
        options["predictor_norm"] = "layer"
    return lambda: kind(backbone=SmallNet(), projector=[16, width], projector_norm="layer", entropy=half(), **options)


def with_full_queue(build: Callable[[], JointEmbedding]) -> Callable[[], JointEmbedding]:
    def filled() -> JointEmbedding:
        model = build()
        generator = torch.Generator().manual_seed(5)
        for queue in model.queues:
            queue.push(nn.functional.normalize(torch.randn(29, 24, generator=generator), dim=1))
        return model

    return filled


OBJECTIVES: list[tuple[str, Callable[[], JointEmbedding]]] = [
    ("vicreg", lambda: vicreg(VarianceCovariance())),
    ("vicreg without norm", lambda: vicreg(VarianceCovariance(), between="none")),
    ("vicreg as in code", lambda: vicreg(VarianceCovariance(convention="code"))),
    ("logdet", lambda: vicreg(LogDet())),
    ("logdet unnormalised", lambda: vicreg(LogDet(normalize=False), between="none")),
    ("pairdist upper", lambda: vicreg(PairDist(bound="upper"))),
    ("pairdist lower", lambda: vicreg(PairDist(bound="lower"))),
    ("pairdist upper unnormalised", lambda: vicreg(PairDist(bound="upper", normalize=False), between="none")),
    ("pairdist lower unnormalised", lambda: vicreg(PairDist(bound="lower", normalize=False), between="none")),
    ("vonneumann", lambda: vicreg(VonNeumann())),
    ("sigreg", lambda: vicreg(SIGReg(slices=32))),
    ("simclr", small(SimCLR)),
    ("barlow twins", small(BarlowTwins)),
    ("byol", small(BYOL, predictor=[16])),
    ("byol and logdet", small(BYOL, predictor=[16], half=lambda: LogDet(weight=1.0))),
    ("byol and pairdist", small(BYOL, predictor=[16], half=PairDist)),
    ("simsiam", small(SimSiam, predictor=[16])),
    ("simsiam and vonneumann", small(SimSiam, predictor=[16], half=VonNeumann)),
    ("moco v3", small(MoCo, predictor=[16])),
    ("moco v2+", with_full_queue(small(MoCo, predictor=None, queue=29))),
    ("swav", small(SwAV, prototypes=7)),
    ("swav and sigreg", small(SwAV, prototypes=7, half=lambda: SIGReg(slices=32))),
    ("w-mse", small(WMSE, width=4, slice_size=11)),
    ("w-mse shrunk", small(WMSE, slice_size=13, eps=0.1)),
]
NAMES = [name for name, _ in OBJECTIVES]
# Means over samples of what one sample's rows give: their statistics need no other rank.
SAMPLEWISE = {"byol", "simsiam", "moco v2+"}


def build(name: str, dtype: torch.dtype, device: str = "cpu") -> JointEmbedding:
    torch.manual_seed(0)
    model = dict(OBJECTIVES)[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            # Embeddings of standard deviation about 1: at torch's initial .02, beside means eight times that, float32's
            # rounding is larger than the tolerance in one process already.
            parameter.mul_(3 if parameter.dim() > 1 else 0.3)
    return model.to(device=device, dtype=dtype)


def shard(rank: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Two views; every rank's images differ from the others' in content, variance and mean."""
    generator = torch.Generator().manual_seed(100 + rank)
    images = (1 + 2 * rank) * torch.randn(SAMPLES, 3, 7, 7, generator=generator, dtype=torch.float64) + 0.5 * rank
    noise = 0.3 * torch.randn(2, SAMPLES, 3, 7, 7, generator=generator, dtype=torch.float64)
    return [(images + part).to(device=device, dtype=dtype) for part in noise]


def union(world_size: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    shards = [shard(rank, dtype, device) for rank in range(world_size)]
    return [torch.cat(view) for view in zip(*shards, strict=True)]


class Host(nn.Module):
    """DDP reduces gradients of what its own forward computes."""

    def __init__(self, model: JointEmbedding) -> None:
        super().__init__()
        self.model = model

    def forward(self, views: list[Tensor]) -> Any:
        return self.model.objective(views)


def arrays(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in values.items()}


def step(model: JointEmbedding, host: nn.Module, views: list[Tensor]) -> dict[str, Any]:
    """Terms, gradients by parameter, and what callbacks receive, after one forward and backward pass."""
    terms, outputs = host(views)
    terms["loss"].backward()
    rows = outputs.whole("representations", "embeddings")
    return {
        "terms": arrays(terms),
        "gradients": arrays(
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        ),
        "outputs": arrays({**{f"h{i}": h for i, h in enumerate(rows.representations)}, **rows.embeddings}),
    }


def step_of_rank(
    rank: int, world_size: int, name: str, dtype: torch.dtype, gather: Callable[..., Any] = base.gather
) -> dict[str, Any]:
    model = build(name, dtype)
    with mock.patch.object(base, "gather", gather):
        return step(model, DistributedDataParallel(Host(model)), shard(rank, dtype))


def norm(*gradients: np.ndarray) -> float:
    return float(np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in gradients)))


def gradient_error(
    measured: dict[str, np.ndarray], expected: dict[str, np.ndarray], without: Collection[str] = ()
) -> float:
    """Largest ||dg|| / max(||g||, 1e-3 ||all g||) over parameters."""
    whole = norm(*expected.values())
    assert measured.keys() == expected.keys()
    assert whole > 1e-3, "the gradient vanishes, and a comparison would show nothing"
    return max(
        norm(measured[name].astype(np.float64) - g) / max(norm(g), 1e-3 * whole)
        for name, g in expected.items()
        if name not in without
    )


def vanishing(name: str, world_size: int) -> set[str]:
    """Parameters without any gradient: the last bias, where the objective does not change with a common shift.

    What float32 has there is the rounding of a sum that cancels, of the order of 1e-8 ||all g|| in one process too.
    """
    model = build(name, torch.float64)
    gradients = step(model, Host(model), union(world_size, torch.float64))["gradients"]
    found = {name for name, g in gradients.items() if norm(g) < 1e-12 * norm(*gradients.values())}
    assert found <= {f"projector.{len(model.projector) - 1}.bias"}
    return found


def assert_exact(
    results: list[dict[str, Any]], expected: dict[str, Any], tolerance: float, zero: Collection[str] = ()
) -> None:
    for result in results:
        for name, term in expected["terms"].items():
            assert abs(result["terms"][name] - term) <= tolerance * max(1, abs(term)), name
        assert gradient_error(result["gradients"], expected["gradients"], zero) <= tolerance
        assert all(norm(result["gradients"][name]) <= 1e-7 * norm(*expected["gradients"].values()) for name in zero)
        assert list(result["outputs"]) == list(expected["outputs"])
        assert list(result["outputs"])[:4] == ["h0", "h1", "z1", "z2"]
        for name, rows in expected["outputs"].items():
            np.testing.assert_allclose(result["outputs"][name], rows, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_several_ranks_are_one_process_on_the_union(ranks: Any, name: str, world_size: int, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    expected = step(model, Host(model), union(world_size, dtype))
    assert (
        expected["outputs"]["z1"].dtype == expected["terms"]["loss"].dtype == torch.empty(0, dtype=dtype).numpy().dtype
    )
    assert len(expected["outputs"]["z1"]) == world_size * SAMPLES
    zero = vanishing(name, world_size) if dtype == torch.float32 else ()
    assert_exact(ranks(world_size, step_of_rank, name, dtype), expected, TOLERANCE[dtype], zero)


def gather_without_gradients_of_others(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The field's classic fault: every rank's values, but a gradient through the own rows alone."""
    out = {}
    for name, tensor in tensors.items():
        blocks = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(blocks, tensor.detach().contiguous())
        blocks[dist.get_rank()] = tensor
        out[name] = torch.cat(blocks)
    return out


def no_gather(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The other one: statistics of each rank by itself."""
    return dict(tensors)


@pytest.mark.parametrize("name", NAMES)
def test_the_check_finds_a_gather_without_summed_gradients(ranks: Any, name: str) -> None:
    model = build(name, torch.float64)
    expected = step(model, Host(model), union(2, torch.float64))
    wrong = ranks(2, step_of_rank, name, torch.float64, gather_without_gradients_of_others)
    for result in wrong:
        # The loss alone does not give it away: only gradients do, and here they are 1/W of what they should be.
        assert result["terms"]["loss"] == pytest.approx(expected["terms"]["loss"], rel=1e-12)
        assert gradient_error(result["gradients"], expected["gradients"]) == pytest.approx(0.5, abs=1e-6)
        with pytest.raises(AssertionError):
            assert_exact([result], expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SAMPLEWISE])
def test_the_check_finds_statistics_of_single_ranks(ranks: Any, name: str) -> None:
    model = build(name, torch.float64)
    expected = step(model, Host(model), union(2, torch.float64))
    for result in ranks(2, step_of_rank, name, torch.float64, no_gather):
        assert gradient_error(result["gradients"], expected["gradients"]) > 1e-2


def uneven_step(rank: int, world_size: int, kept: list[int]) -> dict[str, Any]:
    model = build("logdet", torch.float64)
    terms, outputs = model.objective(shard(rank, torch.float64), torch.arange(SAMPLES) < kept[rank])
    return {"terms": arrays(terms), "outputs": arrays(outputs.whole("embeddings").embeddings)}


@pytest.mark.parametrize("kept", [[7, 0, 4], [1, SAMPLES, 1]])
def test_validation_with_uneven_shards_is_one_process_on_what_is_kept(ranks: Any, kept: list[int]) -> None:
    keep = torch.cat([torch.arange(SAMPLES) < count for count in kept])
    model = build("logdet", torch.float64)
    terms, outputs = model.objective([view[keep] for view in union(3, torch.float64)])
    for result in ranks(3, uneven_step, kept):
        for name, term in terms.items():
            assert result["terms"][name] == pytest.approx(term.item(), rel=1e-12)
        for name, rows in outputs.embeddings.items():
            np.testing.assert_allclose(result["outputs"][name], rows.numpy(), rtol=0, atol=1e-12)


def with_batch_norm(model: JointEmbedding) -> JointEmbedding:
    """The same objective on a network of batch statistics: in the backbone, the heads and the target."""
    for module in list(model.modules()):
        if isinstance(module, SmallNet):
            module.layers.insert(1, nn.BatchNorm2d(8))
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.BatchNorm1d(child.normalized_shape[0]))
    if hasattr(model, "target"):
        model.target.requires_grad_(False)
    example = next(model.parameters())
    return model.to(device=example.device, dtype=example.dtype)


def gpu_step(rank: int, world_size: int, name: str, dtype: torch.dtype, backend: str, place: str) -> dict[str, Any]:
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    device = f"cuda:{rank % torch.cuda.device_count()}"
    torch.cuda.set_device(device)
    if backend != "gloo":
        dist.destroy_process_group()
        dist.init_process_group(backend, init_method=f"file://{place}", rank=rank, world_size=world_size)
    host = nn.SyncBatchNorm.convert_sync_batchnorm(Host(with_batch_norm(build(name, dtype, device))))
    result = step(host.model, DistributedDataParallel(host, device_ids=[device]), shard(rank, dtype, device))
    torch.cuda.synchronize()
    return result


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_whole_network_with_synchronised_batch_norm_on_gpus(
    ranks: Any, dtype: torch.dtype, backend: str, name: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch's synchronised batch norm runs on GPUs alone, and there is no CUDA device")
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL wants a GPU for each of 2 ranks, and there is one (gloo shares it)")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    model = with_batch_norm(build(name, dtype, "cuda"))
    expected = step(model, Host(model), union(2, dtype, "cuda"))
    with tempfile.TemporaryDirectory() as folder:
        results = ranks(2, gpu_step, name, dtype, backend, str(Path(folder) / "rendezvous"))
    zero = vanishing(name, 2) if dtype == torch.float32 else ()
    assert_exact(results, expected, TOLERANCE[dtype], zero)


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_variants_use_batch_statistics(name: str) -> None:
    """What the GPU test trains: one image changes what the others become, in the target too."""
    model = with_batch_norm(build(name, torch.float64))
    views = union(2, torch.float64)
    before = model.embed(views)
    after = model.embed([torch.cat([view[:-1], 9 * view[-1:]]) for view in views])
    assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())
    assert all((before[part][0] - after[part][0]).abs().max() > 1e-3 for part in before)
    gradients = step(model, Host(model), views)["gradients"]
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert any("backbone.layers.1" in name for name in gradients)
