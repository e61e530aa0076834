"""`sslinfo sweep`: its figures are those of separate trainings, and it goes on where it stopped."""

from __future__ import annotations

import csv
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from sslinfo.__main__ import console
from sslinfo.cli import main
from sslinfo.cli.sweep import DESCRIPTION, sweep
from sslinfo.cli.sweep_folder import check_folder, read
from sslinfo.cli.sweep_report import draw
from sslinfo.errors import UserError
from sslinfo.evaluation.probes import Mean

RECIPE = """
seed_everything: 0
model:
  class_path: VICReg
  init_args:
    entropy: {class_path: LogDet, init_args: {weight: 5}}
    backbone: conv4
    backbone_options: {width: 2}
    in_channels: 1
    projector: [16, 8]
data: {init_args: {dataset: digits, batch_size: 256}}
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  limit_train_batches: 3
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: CSVLogger, init_args: {save_dir: elsewhere, name: mine}}
  callbacks: [{class_path: LinearProbe}, {class_path: KNNProbe}]
"""
MEASURED = ("probe/knn_top1", "probe/linear_loss", "probe/linear_top1", "train/entropy", "train/loss")


def rows_of(file: str | Path) -> list[dict[str, str]]:
    with Path(file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def without(file: Path, run: str) -> None:
    """Take a run out of a table, as if the sweep had been interrupted before it ended."""
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(f"{run},")]
    assert len(kept) == len(lines) - 1
    file.write_text("".join(kept))


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sslinfo"])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and a finished sweep over beta = 1 and 10, with two seeds each."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["sslinfo"])
        Path("a.yaml").write_text(RECIPE)
        sweep(["sweep", "-c", "a.yaml", "--beta", "1", "10", "--seeds", "0", "1", "--out", "out"])
    return folder


@pytest.fixture
def after(in_tmp: Path, swept: Path) -> Path:
    """The working folder after that sweep."""
    shutil.copytree(swept, in_tmp, dirs_exist_ok=True)
    return in_tmp


def test_figures_are_those_of_separate_trainings(after: Path) -> None:
    runs = {row["run"]: row for row in rows_of("out/runs.csv")}
    assert list(runs) == [f"beta={beta}_weight=5_seed={seed}" for beta in (1, 10) for seed in (0, 1)]
    found: list[list[float]] = []
    for seed in (0, 1):
        args = ["-c", "a.yaml", "--model.entropy.beta", "10", "--seed_everything", str(seed)]
        metrics = main(["fit", *args, "--trainer.logger", "false"]).trainer.callback_metrics
        found.append([float(metrics[name]) for name in MEASURED])
        row = runs[f"beta=10_weight=5_seed={seed}"]
        assert [float(row[name]) for name in MEASURED] == pytest.approx(found[-1], rel=1e-5)
        assert (float(row["beta"]), float(row["weight"]), row["seed"], row["error"]) == (10, 5, str(seed), "")
        assert float(row["seconds"]) > 0
    (table,) = [row for row in rows_of("out/sweep.csv") if float(row["beta"]) == 10]
    assert table["runs"] == "2"
    assert [float(table[name]) for name in MEASURED] == pytest.approx(np.mean(found, axis=0), rel=1e-5)
    errors = [float(table[f"{name} standard error"]) for name in MEASURED]
    assert errors == pytest.approx(stats.sem(found), rel=1e-3, abs=1e-9)
    # Another beta is another training.
    assert float(runs["beta=1_weight=5_seed=0"]["train/entropy"]) != pytest.approx(found[0][3], rel=1e-2)


def test_each_run_has_a_folder_of_its_values(after: Path) -> None:
    for beta in (1, 10):
        for seed in (0, 1):
            folder = Path(f"out/beta={beta}_weight=5_seed={seed}")
            config = yaml.safe_load((folder / "config.yaml").read_text())
            half = config["model"]["init_args"]["entropy"]["init_args"]
            assert (half["beta"], half["weight"], config["seed_everything"]) == (beta, 5, seed)
            assert (folder / "metrics.csv").is_file()
            assert list(folder.rglob("*.ckpt"))
    assert Path("out/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("elsewhere").exists()
    assert not Path("runs").exists()


def test_goes_on_where_it_stopped(after: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("out/runs.csv").read_text()
    stopped = "beta=10_weight=5_seed=0"
    without(Path("out/runs.csv"), stopped)
    unfinished = Path(f"out/{stopped}/unfinished")
    unfinished.touch()
    files = {file: file.stat().st_mtime_ns for file in Path("out").rglob("metrics.csv")}
    sweep(["sweep", "-c", "a.yaml", "--beta", "1", "10", "--seeds", "0", "1", "--out", "out"])
    said = capsys.readouterr().out
    assert "3 of 4 runs are in out/runs.csv already and are skipped" in said
    assert f"run 3 of 4: {stopped}" in said
    assert not unfinished.exists()
    again = {file: file.stat().st_mtime_ns for file in Path("out").rglob("metrics.csv")}
    assert [file.parent.name for file in files if files[file] != again[file]] == [stopped]

    def figures(rows: list[dict[str, str]]) -> dict[str, list[float]]:
        return {row["run"]: [float(row[name]) for name in MEASURED] for row in rows}

    now = figures(rows_of("out/runs.csv"))
    Path("before.csv").write_text(before)
    for run, expected in figures(rows_of("before.csv")).items():
        assert now[run] == pytest.approx(expected, rel=1e-5)


def test_goes_on_with_the_same_settings_only(after: Path) -> None:
    with pytest.raises(UserError, match=r"out='out' holds a sweep with other settings: choose another --out") as error:
        sweep(["sweep", "-c", "a.yaml", "--beta", "1", "--data.batch_size", "128", "--out", "out"])
    assert str(error.value).splitlines()[1:] == ["data.batch_size was 256, is 128"]


def test_a_failed_run_is_reported_and_the_sweep_goes_on(after: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without(Path("out/runs.csv"), "beta=10_weight=5_seed=1")
    args = ["sweep", "-c", "a.yaml", "--beta", "-1", "1", "10", "--seeds", "1", "--out", "out"]
    with pytest.raises(UserError, match=r"1 of 3 runs failed"):
        sweep(args)
    reason = "beta must be in [1e-9, 1e9], got -1.0"
    assert f"beta=-1_weight=5_seed=1 failed: {reason}\n" in capsys.readouterr().out
    errors = {row["run"]: row["error"] for row in rows_of("out/runs.csv")}
    assert [run for run, error in errors.items() if error] == ["beta=-1_weight=5_seed=1"]
    assert errors["beta=-1_weight=5_seed=1"] == reason
    assert errors["beta=10_weight=5_seed=1"] == ""
    assert reason in Path("out/beta=-1_weight=5_seed=1/traceback.txt").read_text()
    table = {float(row["beta"]): row for row in rows_of("out/sweep.csv")}
    assert {beta: row["runs"] for beta, row in table.items()} == {-1: "0", 1: "2", 10: "2"}
    assert table[-1]["train/loss"] == ""

    # What failed is tried again, what did not is not.
    with pytest.raises(UserError, match=r"1 of 3 runs failed"):
        sweep(args)
    said = capsys.readouterr().out
    assert "2 of 3 runs are in" in said
    assert [line for line in said.splitlines() if line.startswith("run ")] == ["run 1 of 3: beta=-1_weight=5_seed=1"]


def test_failures_alone_bind_no_settings(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE)
    for size in ("256", "128"):
        with pytest.raises(UserError, match=r"1 of 1 runs failed"):
            sweep(["sweep", "-c", "a.yaml", "--beta", "-1", "--out", "out", "--data.batch_size", size])
    assert yaml.safe_load(Path("out/sweep.yaml").read_text())["data"]["init_args"]["batch_size"] == 128
    assert not Path("out/sweep.png").exists()


def test_an_interruption_stops_the_sweep(
    after: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path("out/runs.csv").read_text()

    def interrupted(*args: object) -> None:
        sys.exit(1)

    monkeypatch.setattr("sslinfo.cli.sweep._fit", interrupted)
    with pytest.raises(SystemExit):
        sweep(["sweep", "-c", "a.yaml", "--beta", "1", "2", "3", "--out", "out"])
    assert "interrupted in beta=2_weight=5_seed=0: the same command goes on" in capsys.readouterr().out
    assert Path("out/runs.csv").read_text() == before


# Any option


@pytest.fixture
def configured(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The recipe in the working folder; takes each run's configuration by the name of its folder, in place of a fit."""
    Path("a.yaml").write_text(RECIPE)
    found: dict[str, dict[str, Any]] = {}

    def fit(config: dict[str, Any], folder: Path) -> dict[str, Any]:
        found[folder.name] = config
        return {"probe/knn_top1": 0.1 * len(found), "seconds": 1.0, "error": ""}

    monkeypatch.setattr("sslinfo.cli.sweep._fit", fit)
    return found


def test_any_option_is_swept_as_the_command_line_sets_it(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE)
    keys = ["--sweep", "model.entropy=PairDist", "--sweep", "model.optimizer.init_args.lr=1e-4,.03"]
    sweep(["sweep", "-c", "a.yaml", *keys, "--sweep", "model.projector=[12, 6]", "--out", "out"])
    rows = {row["run"]: row for row in rows_of("out/runs.csv")}
    names = [f"entropy=PairDist_lr={lr}_projector=12-6_seed=0" for lr in ("0.0001", "0.03")]
    assert list(rows) == names
    assert [(row["entropy"], float(row["lr"]), row["projector"], row["error"]) for row in rows.values()] == [
        ("PairDist", 1e-4, "12-6", ""),
        ("PairDist", 0.03, "12-6", ""),
    ]
    options = ["--model.entropy", "PairDist", "--model.optimizer.lr", "0.03", "--model.projector", "[12,6]"]
    callback_metrics = main(["fit", "-c", "a.yaml", *options, "--trainer.logger", "false"]).trainer.callback_metrics
    metrics = [float(callback_metrics[name]) for name in MEASURED]
    assert [float(rows[names[1]][name]) for name in MEASURED] == pytest.approx(metrics, rel=1e-5)
    assert float(rows[names[0]]["train/loss"]) != pytest.approx(metrics[-1], rel=1e-3)
    assert list(Path("out", names[1]).rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("swept", "names", "values"),
    [
        (
            ["model.optimizer.lr=.001,3e-3", "model.entropy.init_args.beta=1,10"],
            ["beta=1_lr=0.001", "beta=1_lr=0.003", "beta=10_lr=0.001", "beta=10_lr=0.003"],
            lambda model, data, trainer: (model["entropy"]["init_args"]["beta"], model["optimizer"]["lr"]),
        ),
        (
            # A class comes before its options, however they are given.
            ["model.entropy.weight=3", "model.entropy=LogDet,sslinfo.objectives.PairDist"],
            ["entropy=LogDet_weight=3", "entropy=PairDist_weight=3"],
            lambda model, data, trainer: (
                model["entropy"]["class_path"].split(".")[-1],
                model["entropy"]["init_args"]["weight"],
            ),
        ),
        (
            ["model.projector=[64,32],[128],[]", "data.views=vicreg,'simclr'"],
            [f"views={v}_projector={p}" for v in ("vicreg", "simclr") for p in ("64-32", "128", "empty")],
            lambda model, data, trainer: (
                data["views"],
                "-".join(map(str, model["projector"])) or "empty",
            ),
        ),
        (
            # Different lr, and a column of the name that every table has.
            [
                "model.optimizer.lr=.1",
                "trainer.callbacks+={class_path: LinearProbe, init_args: {lr: 3}}",
                "data.seed=7",
            ],
            ["data.seed=7_lr=0.1_callbacks+=LinearProbe-lr-3"],
            lambda model, data, trainer: (
                data["seed"],
                model["optimizer"]["lr"],
                f"LinearProbe-lr-{trainer['callbacks'][-1]['init_args']['lr']:g}",
            ),
        ),
        (
            ["model.optimizer.weight_decay=0", "trainer.callbacks.k=5,6", "model.entropy.normalize=no,yes"],
            [f"normalize={n}_weight_decay=0_k={k}" for n in ("false", "true") for k in (5, 6)],
            lambda model, data, trainer: (
                str(model["entropy"]["init_args"]["normalize"]).lower(),
                model["optimizer"]["weight_decay"],
                trainer["callbacks"][-1]["init_args"]["k"],
            ),
        ),
        (
            ["model.entropy={class_path: LogDet, init_args: {beta: 1}},{class_path: LogDet, init_args: {beta: 2}}"],
            ["entropy=LogDet-beta-1", "entropy=LogDet-beta-2"],
            lambda model, data, trainer: (f"LogDet-beta-{model['entropy']['init_args']['beta']:g}",),
        ),
        (
            ["data.root=a/b c,~/é", "data.batch_size=16,16"],
            ["batch_size=16_root=a-b-c", "batch_size=16_root=-é"],
            lambda model, data, trainer: (data["batch_size"], {"a/b c": "a-b-c", "~/é": "-é"}[data["root"]]),
        ),
    ],
)
def test_runs_are_named_after_their_values(
    configured: dict[str, dict[str, Any]], swept: list[str], names: list[str], values: Any
) -> None:
    sweep(["sweep", "-c", "a.yaml", *(word for text in swept for word in ("--sweep", text)), "--out", "out"])
    assert list(configured) == [f"{name}_seed=0" for name in names]
    for name, config in configured.items():
        parts = values(*(config[part].get("init_args", config[part]) for part in ("model", "data", "trainer")))
        for part in parts:
            assert f"={part:g}_" in name if isinstance(part, float) else f"={part}_" in name


def test_options_of_one_name_keep_what_tells_them_apart(configured: dict[str, dict[str, Any]]) -> None:
    keys = ["--sweep", "trainer.callbacks.k=5", "--sweep", "model.backbone_options.k=6"]
    sweep(["sweep", "-c", "a.yaml", *keys, "--out", "out"])
    assert list(configured) == ["backbone_options.k=6_callbacks.k=5_seed=0"]
    (row,) = rows_of("out/sweep.csv")
    assert list(row)[:3] == ["backbone_options.k", "callbacks.k", "runs"]


def test_a_model_may_come_from_the_sweep_alone(configured: dict[str, dict[str, Any]]) -> None:
    sweep(["sweep", "--sweep", "model=VICReg,BYOL", "--seeds", "3", "--out", "out"])
    assert {name: config["model"]["class_path"] for name, config in configured.items()} == {
        "model=VICReg_seed=3": "sslinfo.objectives.VICReg",
        "model=BYOL_seed=3": "sslinfo.objectives.BYOL",
    }


def test_a_sweep_goes_on_however_its_options_are_written(
    configured: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["--sweep", "model.optimizer.lr=.3,.1", "--sweep", "model.entropy=null"]
    sweep(["sweep", "-c", "a.yaml", *first, "--out", "out"])
    configured.clear()
    again = ["--sweep", "model.entropy=LogDet,null", "--sweep", "model.optimizer.init_args.lr=0.30,1e-1"]
    sweep(["sweep", "-c", "a.yaml", *again, "--out", "out"])
    assert list(configured) == [f"entropy=LogDet_lr={lr}_seed=0" for lr in (0.3, 0.1)]
    said = capsys.readouterr().out
    assert "2 of 4 runs are in out/runs.csv already and are skipped" in said
    assert "model.entropy and model.optimizer.lr of VICReg: mean" in " ".join(said.split())
    # Numbers stand by size, other values as they came.
    assert [(row["entropy"], row["lr"]) for row in rows_of("out/sweep.csv")] == [
        (entropy, lr) for entropy in ("null", "LogDet") for lr in ("0.1", "0.3")
    ]
    # What a class of the sweep takes over from the recipe is a setting too.
    with pytest.raises(UserError, match=r"holds a sweep with other settings") as error:
        sweep(["sweep", "-c", "a.yaml", *first, "--model.entropy.weight", "9", "--out", "out"])
    assert str(error.value).splitlines()[1:] == ["model.entropy.weight was 5.0, is 9.0"]


def test_a_folder_takes_one_choice_of_options(configured: dict[str, dict[str, Any]]) -> None:
    sweep(["sweep", "-c", "a.yaml", "--sweep", "model.optimizer.lr=.1", "--out", "out"])
    before = sorted(Path("out").iterdir())
    # Of the same short name, or with other columns.
    for key in ("model.backbone_options.lr", "model.entropy.beta"):
        with pytest.raises(
            UserError, match=rf"out='out' holds a sweep of model.optimizer.lr, and this one is of {key}"
        ):
            sweep(["sweep", "-c", "a.yaml", "--sweep", f"{key}=.1", "--out", "out"])
    assert list(configured) == ["lr=0.1_seed=0"]
    assert sorted(Path("out").iterdir()) == before


def test_a_folder_that_names_no_options_is_of_an_entropy_half(after: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(Path("out/sweep.yaml").read_text())
    assert settings.pop("sweep") == ["model.entropy.beta", "model.entropy.weight"]
    Path("out/sweep.yaml").write_text(yaml.safe_dump(settings))
    sweep(["sweep", "-c", "a.yaml", "--sweep", "model.entropy.beta=1,1e1", "--seeds", "0", "1", "--out", "out"])
    assert "4 of 4 runs are in out/runs.csv already and are skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds a sweep of model.entropy.beta and model.entropy.weight, and this one"):
        sweep(["sweep", "-c", "a.yaml", "--sweep", "model.optimizer.lr=.1", "--out", "out"])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["model.optimzer.lr=.1,.3"], "there is no option model.optimzer.lr: did you mean model.optimizer.lr?"),
        (["lr=.1,.3"], "there is no option lr: did you mean model.optimizer.lr?"),
        (["batch_size=16"], "there is no option batch_size: did you mean data.batch_size?"),
        (["model.entropy.bta=1"], "there is no option model.entropy.bta: did you mean model.entropy.beta?"),
        (["data.views.crop=1"], "there is no option data.views.crop: did you mean data.views?"),
        (["model.entropy.variance=1"], "--sweep model.entropy.variance: LogDet has no variance; what it has is weight"),
        (
            ["model.entropy=LogDet,PairDist", "model.entropy.beta=1"],
            "--sweep model.entropy.beta: PairDist has no beta; what it has is weight and variance",
        ),
        (
            ["model.entropy=LogDet,null", "model.entropy.beta=1"],
            "--sweep model.entropy.beta=1 with model.entropy=null: there is no option beta: it belongs to a class that",
        ),
        # The last value of all is read before the first run starts.
        (
            ["model.entropy.beta=1,10", "model.optimizer.lr=.1,fast"],
            "--sweep model.optimizer.lr=fast: expected float, got 'fast'",
        ),
        (
            ["model.entropy=LogDet,PairDst"],
            "--sweep model.entropy=PairDst: there is no class PairDst: did you mean PairDist?",
        ),
        (["data.batch_size=16,1.5"], "--sweep data.batch_size=1.5: expected int, got '1.5'"),
        (
            ["model.entropy.beta=1", "model.entropy.init_args.beta=2"],
            "model.entropy.beta is swept twice: give its values once, --sweep model.entropy.beta=V1,V2,...",
        ),
        (["model.entropy.beta=1", "--beta", "2"], "model.entropy.beta is swept twice: give its values once"),
        (
            ["trainer.default_root_dir=a,b"],
            "--sweep trainer.default_root_dir: every run has a folder of its own in --out",
        ),
        (["trainer.logger.name=a,b"], "--sweep trainer.logger.name: every run is logged in a folder of its own"),
        (["seed_everything=1,2"], "--sweep seed_everything: every combination is run with each of --seeds 0 1 2"),
        (["ckpt_path=last"], "--sweep ckpt_path: a sweep trains each run from its start"),
        (["model.help=VICReg"], "--sweep model.help: it is no option of a training"),
        (
            ["model.optimizer.options.a.b=1"],
            "--sweep model.optimizer.options.a.b: the configuration has no such entry: sweep model.optimizer.options.a",
        ),
        (
            ["model.entropy=LogDet,{class_path: LogDet, init_args: {weight: 5}}"],
            "--model.entropy=LogDet and --model.entropy={class_path: LogDet, init_args: {weight: 5}} are the same "
            "training: leave one of them out",
        ),
        (["data.root=a/b,a-b"], "--data.root=a-b and a value before it have the same name in files, root=a-b"),
        (["model.projector"], "--sweep model.projector: write the option and its values as KEY=V1,V2"),
        (["=1,2"], "--sweep =1,2: write the option and its values as KEY=V1,V2"),
        (["model.projector=[8],,[4]"], "--sweep model.projector=[8],,[4]: a value is missing beside a comma or ="),
        (["model.projector=[8,4"], "--sweep model.projector=[8,4: a bracket is not closed"),
        (["model.projector=8],[4"], "--sweep model.projector=8],[4: ] has no counterpart"),
        (["data.root=it's"], "--sweep data.root=it's: ' has no counterpart: quote a value that has it, such as"),
        (["model.optimizer.lr=.1", "--swep", "data.batch_size=16"], "there is no option --swep: did you mean --sweep?"),
    ],
)
def test_mistakes_in_an_option(
    configured: dict[str, dict[str, Any]], args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for arg in args for word in (["--sweep", arg] if "=" in arg or arg == args[0] else [arg])]
    with pytest.raises(SystemExit) as stopped:
        console(["sweep", "-c", "a.yaml", *words])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert line.startswith(f"sslinfo: {expected}")
    assert not configured
    assert [file.name for file in Path().iterdir()] == ["a.yaml"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--variance", "1"], "--variance: LogDet has no variance; what it has is weight and beta"),
        (
            ["--model.entropy", "PairDist", "--weight", "1", "--beta", "1", "2"],
            "--beta: PairDist has no beta; what it has is weight and variance",
        ),
        (
            ["--model.entropy", "VarianceCovariance", "--weight", "1"],
            "--weight: VarianceCovariance has no weight; what it has is variance and covariance",
        ),
        (
            ["--model.entropy", "null", "--beta", "1"],
            "VICReg names no entropy half whose beta could be swept: name one before the other options of the model, "
            "--model.entropy LogDet (or PairDist, ...)",
        ),
        ([], "there is nothing to sweep: give values of --beta, --variance or --weight, such as --beta 1 10"),
        (["--beta", "1,10"], "argument --beta: '1,10' is not a number; several stand apart: 1 10 100"),
        (["--beta", "nan"], "argument --beta: 'nan' is not a number; several stand apart: 1 10 100"),
        (["--beta"], "argument --beta: expected at least one argument"),
        (["--beta", "1", "--seeds", "0.5"], "argument --seeds: '0.5' is not a whole number from 0; several stand"),
        (["--beta", "1", "--seed", "3"], "there is no option --seed: did you mean --seeds?"),
        (["--bta", "1"], "there is no option --bta: did you mean --beta?"),
        (["--beta", "1", "--trainer.max_step", "1"], "there is no option --trainer.max_step: did you mean max_step"),
        (
            ["--beta", "1", "--seed_everything", "false"],
            "seed_everything=False: a run is named after its seed: --",
        ),
        (["--beta", "1", "--ckpt_path", "no.ckpt"], "ckpt_path='no.ckpt' is not a file"),
    ],
)
def test_mistakes(
    in_tmp: Path, args: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(RECIPE)
    monkeypatch.setattr(sys, "argv", ["sslinfo", "sweep", "-c", "a.yaml", *args])
    with pytest.raises(SystemExit) as stopped:
        console()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"sslinfo: {expected}")
    assert [file.name for file in in_tmp.iterdir()] == ["a.yaml"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for args, expected in (
        (["sweep", "--help"], ["--sweep KEY=V1,V2", "--beta B [B ...]"]),
        (["--help"], ["sslinfo sweep     one training for each value of an option"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            console(args)
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        assert [text for text in expected if text not in said] == []


def test_examples_of_the_help_are_read(configured: dict[str, dict[str, Any]]) -> None:
    examples = [shlex.split(line) for line in DESCRIPTION.splitlines() if line.startswith("  sslinfo sweep")]
    assert len(examples) == 2
    for number, words in enumerate(examples):
        assert words[2] == "-c"
        sweep(["sweep", "-c", "a.yaml", *words[4:], "--out", f"out{number}"])
    assert len(configured) == 2 * 2 * 3 + 2 * 2


def test_figure_shows_the_probe_against_the_option() -> None:
    points = [{"beta": beta, "weight": weight} for beta in (1.0, 10.0, 100.0) for weight in (5.0, 25.0)]
    means = [{"probe/knn_top1": Mean(0.01 * number, 0.005), "train/loss": Mean(1, 0)} for number in range(6)]
    figure = draw(points, means, "LogDet")
    assert figure is not None
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == ("beta of LogDet", "probe/knn_top1 (%)", "log")
    drawn = [container.lines[0].get_xydata() for container in axis.containers]
    # Lines stand side by side, 1.2 % of the axis apart: a factor of 100**.012 = 1.06.
    np.testing.assert_allclose(drawn, [[(1, 0), (10, 2), (100, 4)], [(1, 1), (10, 3), (100, 5)]], rtol=0.03)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["weight = 5", "weight = 25"]
    narrow = draw([{"variance": 0.1}, {"variance": 0.5}], [{"train/loss": Mean(1, 0)}] * 2, "PairDist")
    assert narrow is not None
    assert (narrow.axes[0].get_xscale(), narrow.axes[0].get_ylabel()) == ("linear", "train/loss")
    assert not narrow.legends


def test_figure_has_room_for_values_that_are_no_numbers() -> None:
    points = [{"model.entropy": entropy, "lr": lr} for entropy in ("null", "LogDet", 3) for lr in (0.1, 0.3)]
    means = [{"probe/knn_top1": Mean(0.01 * number, 0)} for number in range(6)]
    figure = draw(points, means, "VICReg")
    assert figure is not None
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_xscale()) == ("model.entropy of VICReg", "linear")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["3", "null", "LogDet"]
    lines = [container.lines[0] for container in axis.containers]
    # Steps of 1, by the order above; lines stand side by side, 1.2 % of the axis apart.
    expected = [[(0, 4), (1, 0), (2, 2)], [(0, 5), (1, 1), (2, 3)]]
    np.testing.assert_allclose([line.get_xydata() for line in lines], expected, atol=0.03)
    assert {line.get_linestyle() for line in lines} == {"None"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lr = 0.1", "lr = 0.3"]
    # Along numbers where they are the most, with a line for each text.
    turned = draw([{"a": a, "b": b} for a in ("x", "y") for b in (1, 2, 3)], means, "")
    assert turned is not None
    assert turned.axes[0].get_xlabel() == "b"
    assert [text.get_text() for text in turned.legends[0].get_texts()] == ["a = x", "a = y"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\n1\n",
        "run,seed\na,0\n",
        "run,seed,error\na,zero,\n",
        'run,seed,error\n"a,0,\n',
        "run,error\na,,1,2\n",
    ],
)
def test_a_table_that_is_none_of_a_sweep(in_tmp: Path, text: str) -> None:
    Path("runs.csv").write_text(text)
    if text:
        with pytest.raises(UserError, match=r"'runs\.csv' is no table of a sweep .*: choose another --out"):
            read(Path("runs.csv"))
    else:
        assert read(Path("runs.csv")) == {}


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n", "!!python/object/apply:os.mkdir [ran]\n"])
def test_settings_that_are_none_of_a_sweep(in_tmp: Path, text: str) -> None:
    Path("sweep.yaml").write_text(text)
    base: dict[str, Any] = {"model": {}, "data": {}, "trainer": {}}
    with pytest.raises(UserError, match=r"'sweep\.yaml' does not hold the settings of a sweep"):
        check_folder(Path(), base, ["model.entropy.init_args.beta"], {"run": "a", "seed": 0})
    assert not Path("ran").exists()
