"""A Lightning Trainer inside a rank of the pool, and small models for tests."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment
from torch import Tensor, nn

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


class _ExistingGroup(ClusterEnvironment):
    """The process group is there already: Lightning starts no process and makes no group."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size

    creates_processes_externally = True
    main_address, main_port = "127.0.0.1", 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._world_size

    def set_world_size(self, size: int) -> None:
        assert size == self._world_size

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._rank

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0


def rank_trainer(rank: int, world_size: int, **options: Any) -> Trainer:
    """A Trainer over the processes of the pool's current call; plain where there is one."""
    if world_size == 1:
        return Trainer(**{**QUIET, "devices": 1, **options})
    environment = _ExistingGroup(rank, world_size)
    return Trainer(**{**QUIET, "devices": world_size, "strategy": "ddp", "plugins": [environment], **options})


class SmallNet(nn.Module):
    """Images (N, C, H, W) -> (N, 12) without batch statistics: what one image becomes depends on no other."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.num_features = 12
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, self.num_features, 3, stride=2), nn.Tanh()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


class Backbone(nn.Module):
    """A network whose forward pass draws random numbers."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 16)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
