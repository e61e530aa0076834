"""What is read of a command line before its parser, and recipes as the parser reads them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_checkpoints import write

from sslinfo.cli import Cli, main
from sslinfo.cli.arguments import recipe_name, values_of, with_checkpoint
from sslinfo.errors import UserError
from sslinfo.objectives import LogDet, PairDist

RECIPE = """
model:
  class_path: VICReg
  init_args:
    backbone: conv4
    backbone_options: {width: 2}
    in_channels: 1
    projector: [16, 8]
data: {init_args: {dataset: digits, batch_size: 256}}
trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false, enable_model_summary: false}
"""
DRY = ["--trainer.fast_dev_run", "true"]
LOGGER = "\ntrainer: {logger: {class_path: %s, init_args: {%s}}}\n"


class Read(Cli):
    """Reads the options of a command and runs nothing."""

    def instantiate_classes(self) -> None:
        pass

    def run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning warns where both sys.argv and args hold arguments.
    monkeypatch.setattr(sys, "argv", ["sslinfo"])


def options(*args: str) -> dict[str, Any]:
    return main(["fit", *args], Read).plain_options()


def logger_name(*args: str) -> Any:
    return options(*args)["trainer"]["logger"]["init_args"]["name"]


# Before the parser


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], []),
        (["fit", "--ckpt_path", "last"], ["last"]),
        (["fit", "--ckpt_path=last", "--model.lr", "3", "--ckpt_path", "best"], ["last", "best"]),
        (["fit", "--ckpt_path"], []),
        (["fit", "--ckpt_path", "--data.root", "x"], []),
        (["fit", "--ckpt", "last", "--ckpt_paths", "last"], []),
        (["fit", "--trainer.callbacks+=KNNProbe", "--ckpt_path=a=b"], ["a=b"]),
    ],
)
def test_values_of_an_option(args: list[str], expected: list[str]) -> None:
    assert values_of(args, "--ckpt_path") == expected


def test_values_of_an_option_with_a_short_name() -> None:
    args = ["fit", "-c", "a", "--config=b", "-c=c", "-cd", "--config", "e", "--configs", "f"]
    assert values_of(args, "-c", "--config") == ["a", "b", "c", "d", "e"]


def test_the_last_checkpoint_counts_and_other_arguments_keep_their_order(in_tmp: Path) -> None:
    path = str(write())
    args = ["validate", "--ckpt_path", "lost.ckpt", "-c", "byol", "--model.momentum", "1", f"--ckpt_path={path}"]
    given, stored = with_checkpoint(args)
    assert stored is not None
    assert given[:2] == ["validate", "--config"]
    assert yaml.safe_load(given[2])["model"] == stored.config["model"]
    assert given[3:] == [*args[1:], "--ckpt_path", path]


@pytest.mark.parametrize("args", [[], ["fit"], ["--ckpt_path", "x"], ["--help"], ["fit", "--ckpt_path"]])
def test_without_a_checkpoint_nothing_changes(args: list[str]) -> None:
    assert with_checkpoint(args) == (args, None)


def test_a_checkpoint_is_read_once_and_leaves_no_file(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("elsewhere/a.ckpt")
    read: list[str] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(str(path)) or load(path, **options))
    monkeypatch.setattr(tempfile, "tempdir", str(in_tmp / "none"))  # where a temporary file would fail
    with_checkpoint(["validate", "--ckpt_path", "last", "--trainer.default_root_dir=elsewhere"])
    assert read == [str(Path("elsewhere/a.ckpt"))]


def test_a_class_is_named_in_a_recipe_or_in_what_it_extends(in_tmp: Path) -> None:
    path = str(write(data={"transform": "os.system"}))
    Path("b.yaml").write_text("data: {init_args: {transform: os.system}}")
    Path("a.yaml").write_text("extends: b")
    for named in (["-c", "a"], ["--config=b.yaml"], ["-c", Path("b.yaml").read_text()], ["--data.transform=os.system"]):
        assert with_checkpoint(["validate", "--ckpt_path", path, *named])[1] is not None
    for named in ([], ["-c", "vicreg"], ["-c", "data/cifar100"]):
        with pytest.raises(UserError, match=r"os\.system, which is not sslinfo's"):
            with_checkpoint(["validate", "--ckpt_path", path, *named])


def test_a_checkpoint_extends_nothing(in_tmp: Path) -> None:
    Path("b.yaml").write_text("data: {init_args: {transform: os.system}}")
    path = str(write(extends="b", config="b.yaml"))
    text = with_checkpoint(["validate", "--ckpt_path", path])[0][2]
    assert set(yaml.safe_load(text)) == {"model", "data", "trainer"}


# As the parser reads them


def test_recipes_extend_and_compose_on_the_command_line(in_tmp: Path) -> None:
    Path("mine").mkdir()
    Path("mine/base.yaml").write_text(RECIPE)
    Path("mine/a.yaml").write_text("extends: base\nmodel: {init_args: {entropy: {class_path: LogDet}}}")
    over = "model: {init_args: {entropy: {class_path: PairDist, init_args: {variance: 1e-2}}}}"
    cli = main(["fit", "-c", "mine/a", *DRY])
    assert (type(cli.model.entropy), cli.model.embedding_dim) == (LogDet, 8)
    cli = main(["fit", "-c", "mine/a", "-c", over, "--model.entropy.weight", "3", *DRY])
    assert type(cli.model.entropy) is PairDist
    assert (cli.model.entropy.variance, cli.model.entropy.weight) == (0.01, 3)


def test_paths_in_a_recipe_start_from_its_folder(in_tmp: Path) -> None:
    Path("mine").mkdir()
    Path("mine/half.yaml").write_text("class_path: LogDet\ninit_args: {beta: 7}")
    Path("mine/a.yaml").write_text(RECIPE.replace("  init_args:\n", "  init_args:\n    entropy: half.yaml\n", 1))
    assert main(["fit", "-c", "mine/a.yaml", *DRY]).model.entropy.beta == 7
    assert Path.cwd() == in_tmp
    # A checkpoint beside it names none of the files that lie there.
    path = str(write(model={"backbone": "./half.yaml"}))
    assert with_checkpoint(["validate", "--ckpt_path", path])[1] is not None
    with pytest.raises(UserError, match=r"the checkpoint's model uses \./half\.yaml"):
        with_checkpoint(["validate", "--ckpt_path", path, "-c", "mine/a.yaml"])
    path = str(write(model={"in_channels": 1}, callbacks={}))
    with pytest.raises(UserError, match=r"\(?leave out --model"):  # its weights are of 3 channels
        main(["validate", "--ckpt_path", path, "-c", "mine/a.yaml", *DRY])


def test_an_unknown_recipe(in_tmp: Path) -> None:
    for args in (["-c", "vicreg", "-c", "data/cifar-100"], ["-c", "data/cifar-100", "--ckpt_path", str(write())]):
        with pytest.raises(UserError, match="no file 'data/cifar-100' and no recipe of this name: did you mean data/c"):
            main(["fit", *args])


# Names of runs


def test_a_run_is_named_after_data_set_and_first_recipe(in_tmp: Path) -> None:
    assert logger_name("-c", "vicreg_logdet") == "cifar10-vicreg-logdet"
    assert logger_name("-c", "vicreg_logdet", "-c", "data/cifar100") == "cifar100-vicreg-logdet"
    assert logger_name("-c", "vicreg_logdet", "--data.dataset", "stl10", "-c", "diagnostics") == "stl10-vicreg-logdet"
    assert logger_name("-c", "quickstart") == "quickstart"
    Path("my_recipe.yaml").write_text("extends: byol")
    assert logger_name("-c", "my_recipe.yaml") == "cifar10-my-recipe"
    assert recipe_name(["fit", "--config=data/cifar100", "-c", "byol"]) == "cifar100"


def test_a_data_set_of_one_s_own_gives_the_name_of_its_class(in_tmp: Path) -> None:
    fake = "torchvision.datasets.FakeData"
    assert logger_name("-c", "byol", "--data.dataset", fake) == "FakeData-byol"
    assert logger_name("-c", "byol", "--data.dataset", f"{{class_path: {fake}}}") == "FakeData-byol"


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger"])
def test_a_name_that_was_given_stays(in_tmp: Path, kind: str) -> None:
    Path("a.yaml").write_text("extends: byol" + LOGGER % (kind, "save_dir: runs"))
    Path("b.yaml").write_text("extends: byol" + LOGGER % (kind, "save_dir: runs, name: mine"))
    assert logger_name("-c", "a.yaml") == "cifar10-a"
    assert logger_name("-c", "b.yaml") == "mine"
    assert logger_name("-c", "a.yaml", "--trainer.logger.name", "here") == "here"
    assert logger_name("-c", "a.yaml", "--trainer.logger.name", "") == ""
    assert logger_name("--model", "VICReg", "--trainer.logger", kind, "--trainer.logger.save_dir", "runs") == (
        "lightning_logs"
    )


def test_each_of_several_loggers_is_named_and_none_may_be(in_tmp: Path) -> None:
    loggers = "[{class_path: CSVLogger, init_args: {save_dir: a}}, {class_path: TensorBoardLogger, init_args: {%s}}]"
    found = options("-c", "byol", "--trainer.logger", loggers % "save_dir: b, name: null")["trainer"]["logger"]
    assert [logger["init_args"]["name"] for logger in found] == ["cifar10-byol", None]
    assert options("-c", "byol", "--trainer.logger", "false")["trainer"]["logger"] is False


def test_saved_configuration_runs_again_under_its_name(in_tmp: Path) -> None:
    Path("base.yaml").write_text(RECIPE)
    text = "extends: base" + LOGGER % ("CSVLogger", "save_dir: runs")
    Path("my_run.yaml").write_text(text + "  # and short\nmodel: {init_args: {optimizer: {lr: 1e-4}}}")
    main(["fit", "-c", "my_run", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"])
    (saved,) = Path("runs/digits-my-run").rglob("config.yaml")
    assert "extends" not in yaml.safe_load(saved.read_text())
    again, before = options("-c", str(saved)), yaml.safe_load(saved.read_text())
    for part in ("model", "data", "trainer"):
        assert again[part] == before[part]
    assert again["trainer"]["logger"]["init_args"]["name"] == "digits-my-run"
    assert again["model"]["init_args"]["optimizer"]["lr"] == 1e-4
