"""The quickstart over several train/validation splits: ``python tests/benchmarks/run_quickstart_splits.py``.

Prints, for each split seed, the accuracy of linear probes on raw pixels and on the representation with 3 and 10 labels
a class (means over 100 label draws) and with all labels, the differences in points, and the seconds of training.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings

import numpy as np
import torch

from sslinfo.cli import main as sslinfo
from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import label_efficiency


def accuracies(pixels: bool, cli: object) -> list[float]:
    train, labels = clean_features(cli.datamodule, cli.model, "train", pixels=pixels)
    test, test_labels = clean_features(cli.datamodule, cli.model, "val", pixels=pixels)
    return [100 * label_efficiency(train, labels, test, test_labels, count).mean for count in (3, 10, None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(2)
    differences = []
    print("split   raw pixels (3, 10, all)   representation (3, 10, all)   difference, points   training")
    for split in range(arguments.splits):
        with tempfile.TemporaryDirectory() as folder:
            options = ["--data.split_seed", str(split), "--trainer.default_root_dir", folder]
            quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.callbacks", "[]"]
            quiet += ["--trainer.enable_checkpointing", "false", "--trainer.enable_model_summary", "false"]
            start = time.perf_counter()
            cli = sslinfo(["fit", "-c", "quickstart", *options, *quiet])
            seconds = time.perf_counter() - start
        raw, learned = accuracies(True, cli), accuracies(False, cli)
        differences.append(np.subtract(learned, raw))
        show = ["  ".join(f"{value:5.1f}" for value in row) for row in (raw, learned, differences[-1])]
        print(f"{split:5d}   {show[0]}       {show[1]}           {show[2]}   {seconds:6.1f} s", flush=True)
    for name, row in (("mean", np.mean(differences, axis=0)), ("smallest", np.min(differences, axis=0))):
        print(f"{name} difference, points:", "  ".join(f"{value:+.1f}" for value in row))


if __name__ == "__main__":
    main()
