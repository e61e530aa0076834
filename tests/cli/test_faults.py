"""What the command line says of an exception, whatever raised it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, Dataset

from sslinfo.__main__ import console
from sslinfo.cli.errors import explain
from sslinfo.cli.faults import told
from sslinfo.errors import UserError


def raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


class Broken(Dataset):
    """Raises in the process that reads it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("root='x' is no folder"), "root='x' is no folder"),
        (PermissionError(13, "Permission denied", "a.png"), "Permission denied: 'a.png'"),
        (OSError(28, "No space left on device", "z.npz"), "No space left on device: 'z.npz'"),
    ],
)
def test_what_a_worker_process_raised_is_told_in_its_own_words(error: Exception, message: str) -> None:
    loader = DataLoader(Broken(error), num_workers=1)
    fault = told(raised(lambda: next(iter(loader))))
    assert fault.of_user
    assert message in fault.message
    assert "Traceback" not in fault.message
    assert told(error).message == message


def test_a_fault_in_a_file_of_the_users_names_its_line(in_tmp: Path) -> None:
    Path("mine.py").write_text("def broken():\n    return {}['views']\n")
    scope: dict[str, Callable[[], object]] = {}
    exec(compile(Path("mine.py").read_text(), os.path.abspath("mine.py"), "exec"), scope)
    fault = told(raised(scope["broken"]))
    assert (fault.message, fault.of_user, fault.understood) == ("mine.py, line 2: KeyError: 'views'", True, False)


def test_what_nobody_expected_is_no_mistake_of_the_users(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(args: list[str]) -> None:
        (lambda numbers: torch.empty(numbers))(None)

    monkeypatch.setattr("sslinfo.cli.main", fails)
    monkeypatch.setattr("sslinfo.cli.faults.PACKAGE", Path(__file__).parents[2])  # this file stands for one of ours
    with pytest.raises(SystemExit) as ended:
        console(["fit"])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("sslinfo: unexpected: TypeError: empty()")
    assert said.endswith("(the traceback: runs/traceback.txt)\n")
    assert "in fails" in Path("runs/traceback.txt").read_text()
    with pytest.raises(TypeError):
        console(["fit", "--debug"])


def test_what_lightning_says_of_arguments_is_the_users_to_mend() -> None:
    from lightning.pytorch import Trainer

    stopping = EarlyStopping("val_loss")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.callback_metrics["val/loss"] = torch.tensor(1.0)
    fault = told(raised(lambda: stopping._run_early_stopping_check(trainer)))
    assert fault.of_user
    assert "`val_loss` which is not available" in fault.message
    assert "`val/loss`" in fault.message


def test_an_object_is_named_by_its_class() -> None:
    assert told(UserError(f"logger={object()} is refused")).message == "logger=object is refused"


UNION = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'sslinfo.data.datamodule.TwoViewDataModule'>, <class 'NoneType'>]
  Errors:
    - Parser key "views":
        Does not validate against any of the Union subtypes
        Subtypes: [<class 'str'>, list[sslinfo.data.views.view.View], <class 'NoneType'>]
        Errors:
          - Expected a <class 'str'>
          - {reason}
          - Expected a <class 'NoneType'>
        Given value type: <class 'list'>
        Given value: [{{'flip': 7}}]
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='views', val=[{{'flip': 7}}])"""


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("flip must be in [0, 1], got 7", "data.views: flip must be in [0, 1], got 7"),
        ("Option 'flop' is not accepted", "there is no option flop: did you mean flip?"),
        ("Expected a <class 'list'>", "data.views: expected str or list, got \"[{'flip': 7}]\""),
        (
            "Parser key \"flip\":\n              Expected a <class 'float'>. Got value: a",
            "data.views.flip: expected float, got 'a'",
        ),
        ("Expected a dot import path string: Vieww", "data.views: there is no class Vieww: did you mean View?"),
    ],
)
def test_the_innermost_reason_is_the_one_that_is_said(reason: str, message: str) -> None:
    assert explain(UNION.format(reason=reason)) == message


def test_an_empty_word_is_no_class() -> None:
    # As the parser writes it of an empty value: bullets are indented by less, and nothing follows "Given value:".
    message = """Parser key "model":

  - Expected a path but  either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [<class 'sslinfo.objectives.base.JointEmbedding'>, <class 'NoneType'>]
  Errors:
   - Expected a dot import path string: END
   - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: END""".replace("END", "")
    assert explain(message) == "model: expected the name of a class, got an empty word"


@pytest.mark.parametrize("text", ["root='a b' is no folder", "two\n  lines\nare kept", "1 of [2] {3}: 'x'"])
def test_a_message_of_ours_stays_as_it_is(text: str) -> None:
    assert explain(text) == text
