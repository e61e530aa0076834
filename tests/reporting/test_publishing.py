"""One function gives a diagnostic's text and pictures to files and loggers, on one rank, and in no dry run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sslinfo.reporting.publishing import Publication, note_once, publish, step_of

PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def a_trainer(folder: Path, loggers: list[Any], **more: Any) -> Any:
    module = SimpleNamespace(global_rank=0, loaded_step=3)
    return SimpleNamespace(
        log_dir=str(folder),
        default_root_dir=str(folder / "root"),
        loggers=loggers,
        lightning_module=module,
        global_step=7,
        is_global_zero=True,
        fast_dev_run=False,
        **more,
    )


def publication(text: str = "a  b\n1  2\n") -> Publication:
    return Publication(
        "made",
        tag="made/text",
        text=text,
        files={"made_here": PICTURE},
        panels={"made/picture": PICTURE},
        histograms={"made/histogram": torch.arange(5.0)},
    )


def test_files_and_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    folder = publish(a_trainer(tmp_path, [logger]), publication)
    assert folder == tmp_path
    assert (tmp_path / "made.txt").read_text() == "a  b\n1  2\n"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "made_here.png")), PICTURE)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0, "histograms": 0}).Reload()
    assert [(image.step, image.width, image.height) for image in events.Images("made/picture")] == [(7, 5, 4)]
    assert [histogram.step for histogram in events.Histograms("made/histogram")] == [7]
    (text,) = events.Tensors("made/text/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "```\na  b\n1  2\n\n```"  # columns stay columns


def test_one_line_is_prose(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    publish(a_trainer(tmp_path, [logger]), lambda: publication("one line"))
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (text,) = events.Tensors("made/text/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "one line"


def test_loggers_that_take_less_are_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Pictures:
        experiment = None

        def __init__(self) -> None:
            self.taken: list[tuple[str, int]] = []

        def log_image(self, key: str, images: list[Any], step: int) -> None:
            np.testing.assert_array_equal(images[0], PICTURE)
            self.taken.append((key, step))

    pictures = Pictures()
    trainer = a_trainer(tmp_path, [pictures, CSVLogger(tmp_path, name="csv")])
    for _ in range(2):
        publish(trainer, publication)
    assert pictures.taken == [("made/picture", 7)] * 2
    notes = capsys.readouterr().out.splitlines()
    assert len(notes) == 2
    assert "Pictures takes the pictures" in notes[0]
    assert "CSVLogger takes no pictures" in notes[1]


@pytest.mark.parametrize("more", [{"fast_dev_run": True}, {"is_global_zero": False}])
def test_nothing_is_made_where_nothing_is_written(tmp_path: Path, more: dict[str, bool]) -> None:
    trainer = a_trainer(tmp_path, [])
    for name, value in more.items():
        setattr(trainer, name, value)

    def never() -> Publication:
        raise AssertionError("made for nobody")

    assert publish(trainer, never) is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_of_a_logger(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path, [])
    trainer.log_dir = None
    assert publish(trainer, publication) == tmp_path / "root"
    assert (tmp_path / "root" / "made.txt").exists()


def test_the_step_is_that_of_the_weights() -> None:
    module = SimpleNamespace(loaded_step=3)
    assert step_of(SimpleNamespace(global_step=7, lightning_module=module)) == 7  # type: ignore[arg-type]
    assert step_of(SimpleNamespace(global_step=0, lightning_module=module)) == 3  # type: ignore[arg-type]


def test_a_note_is_of_rank_0_and_of_one_module(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 0, 1):
        note_once(SimpleNamespace(global_rank=rank), f"of rank {rank}")  # type: ignore[arg-type]
    assert capsys.readouterr().out == "note: of rank 0\n" * 2
