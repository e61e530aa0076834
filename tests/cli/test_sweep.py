"""`sslinfo sweep`: its figures are those of separate trainings, and it goes on where it stopped."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from sslinfo.__main__ import console
from sslinfo.cli import main
from sslinfo.cli.sweep import sweep
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
    reason = "LogDet needs beta > 0, got -1.0"
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


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for args, expected in ((["sweep", "--help"], "--beta B [B ...]"), (["--help"], "sslinfo sweep -c RECIPE")):
        monkeypatch.setattr(sys, "argv", ["sslinfo", *args])
        with pytest.raises(SystemExit) as stopped:
            console()
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out


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
