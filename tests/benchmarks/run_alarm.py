"""What CollapseAlarm says: ``python tests/benchmarks/run_alarm.py [--root FOLDER] [--steps 500] [--seeds 0]``.

Three trainings that are made to collapse, 100 steps each, and every objective as its recipe has it, all under
trainer/cpu5min (conv4, AdamW), on CIFAR-10 as an image folder or, without FOLDER, on scikit-learn's digits. Prints for
each run what was raised and at which step, and how near it came: the smallest effective rank, the largest share of one
direction, the smallest standard deviation against the start.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from typing import Any

import torch

from sslinfo.callbacks import CollapseAlarm
from sslinfo.callbacks.collapse_alarm import Evidence
from sslinfo.cli import main as sslinfo
from sslinfo.recipes import names

METHODS = [name for name in names() if "/" not in name and name not in ("quickstart", "diagnostics")]
EARLY = {"--model.optimizer.warmup_steps": 5}  # at the overlay's 100 nothing would have moved by step 100
COLLAPSES: dict[str, tuple[str, dict[str, Any]]] = {
    "complete": ("vicreg", {"--model.entropy.variance": 0, "--model.entropy.covariance": 0, **EARLY}),
    "dimensional": ("vicreg", {"--model.entropy.covariance": 0, **EARLY}),
    "cluster": ("swav", {"--model.prototypes": 2, "--model.freeze_prototypes_epochs": 0, **EARLY}),
}
FITTING: dict[str, dict[str, Any]] = {
    "wmse": {"--model.projector": "[512,64]"},
    "moco_v2plus": {"--model.queue": 4096},
    "swav": {"--model.epsilon": 0.03},  # at .05 without its queue conv4 learns nothing on CIFAR-10
}
SMALL: dict[str, dict[str, Any]] = {  # digits have 1797 images in batches of 128
    "wmse": {"--model.projector": "[128,32]"},
    "moco_v2plus": {"--model.queue": 700},
    "swav": {"--model.prototypes": 30},
}


class Watch(CollapseAlarm):
    """Keeps the evidence of every check."""

    def __init__(self, every_n_steps: int = 25) -> None:
        super().__init__(every_n_steps)
        self.seen: list[Evidence] = []

    def on_train_batch_end(self, *args: Any) -> None:
        checked = self._checked
        super().on_train_batch_end(*args)
        if self._checked != checked and self._before is not None:
            self.seen.append(self._before)


def run(recipe: str, given: dict[str, Any], root: str | None, seed: int, steps: int) -> Watch:
    digits = {
        "--data.dataset": "digits",
        "--data.views": "digits",
        "--data.batch_size": 128,
        "--data.download": "false",
        "--model.in_channels": 1,
        "--model.backbone_options": "{width: 8}",
        "--model.projector": "[128,128,64]",
        **SMALL.get(recipe, {}),
    }
    cifar = {
        "--data.dataset": "imagefolder",
        "--data.root": root,
        "--data.download": "false",
        "--data.mean": "[0.4914,0.4822,0.4465]",
        "--data.std": "[0.2470,0.2435,0.2616]",
        **FITTING.get(recipe, {}),
    }
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {
        "-c": "trainer/cpu5min",
        "--seed_everything": seed,
        "--trainer.limit_val_batches": 0,
        "--trainer.max_steps": steps,
        "--trainer.callbacks": "run_alarm.Watch",
        **{f"--trainer.{part}": "false" for part in quiet},
        **(cifar if root else digits),
        **given,
    }
    words = ["fit", "-c", recipe]
    with tempfile.TemporaryDirectory() as folder:
        options["--trainer.default_root_dir"] = folder
        cli = sslinfo([*words, *(str(word) for option in options.items() for word in option)])
    return next(callback for callback in cli.trainer.callbacks if type(callback).__name__ == "Watch")  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="CIFAR-10 as an image folder")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="*", default=METHODS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    runs = [(f"made to collapse: {kind}", *case, 100) for kind, case in COLLAPSES.items()]
    runs += [(recipe, recipe, {}, arguments.steps) for recipe in arguments.recipes]
    for name, recipe, given, steps in runs:
        for seed in arguments.seeds:
            watch = run(recipe, given, arguments.root, seed, steps)
            said = "; ".join(message.split(":")[0] for message in watch.alarms.values()) or "no alarm"
            start, *checks = watch.seen
            rank, line = min(e.rank for e in checks), max(e.one_direction for e in checks)
            shrunk = min(e.std for e in checks) / start.std
            near = f"rank >= {rank:.1f}, one direction <= {line:.2f}, std >= {shrunk:.2f} of the start"
            print(f"{name:30s} seed {seed}, {steps} steps: {said} ({near})", flush=True)


if __name__ == "__main__":
    main()
