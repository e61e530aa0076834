"""README and docs/: every block runs, every link leads somewhere, and what they name exists.

The blocks of a page run in their order, in one folder, on small generated data. A command of a shell block runs in this
process, where its imports are done, with a few options added that make it short; ``make`` only says what it would do.
A block after "Save this as `FILE`" becomes that file, which the blocks after it use.
"""

from __future__ import annotations

import importlib
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from fake import write_cifar, write_imagefolder

import sslinfo
from sslinfo import recipes
from sslinfo.__main__ import COMMANDS, console
from sslinfo.callbacks import RunSummary
from sslinfo.cli import Cli, main
from sslinfo.cli.sweep import sweep
from sslinfo.data import datasets
from sslinfo.information.quantities import QUANTITIES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
names_of_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SAVED = re.compile(r"[Ss]ave\s+(?:this|it)\s+as\s+`([\w.]+)`")
SHORT = shlex.split(
    "--trainer.accelerator cpu --trainer.devices 1 --trainer.num_nodes 1 --trainer.max_epochs 1 "
    "--trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.check_val_every_n_epoch 1 "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false --data.batch_size 8 --data.num_workers 0 "
    "--data.download false --model.projector [16,8] --model.optimizer.warmup_steps 1"
)
# README trains the networks of the recipes; elsewhere only a command that names one does.
SMALL = shlex.split("--model.backbone conv4 --model.stem default")


class Blocks:
    """What runs the blocks of a page.

    Attributes:
        folder: where they run.
        runs: what the command line made of each ``fit``, the last one last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[Cli] = []
        self.short = SHORT
        self.callbacks: dict[str, set[str]] = {}  # that a recipe of the page asks for, by its name
        self.commands: dict[str, Callable[[list[str]], Any]] = {
            "sslinfo": self.sslinfo,
            "srun": lambda words: self.commands[words[0]](words[1:]),
            "torchrun": self.torchrun,
            "make": lambda words: subprocess.run(["make", "-n", "-C", ROOT, *words], check=True, capture_output=True),
            "tensorboard": self.tensorboard,
        }

    def run(self, page: Path) -> None:
        text = page.read_text()
        self.short = SHORT if page == README else [*SHORT, *SMALL]
        end = 0
        for number, block in enumerate(FENCE.finditer(text)):
            paragraph = text[end : block.start()].strip().rpartition("\n\n")[2]
            end = block.end()
            kind, content = block.groups()
            saved = SAVED.search(paragraph)
            try:
                if saved:
                    self.save(saved[1], content)
                elif kind == "python":
                    exec(compile(content, f"{page.name}, block {number}", "exec"), {"__name__": "page"})
                elif kind == "bash":
                    self.shell(content)
                else:
                    assert kind == "bibtex", f"a {kind} block that is saved under no name"
            except BaseException as error:
                error.add_note(f"in block {number} of {page.name}:\n{content}")
                raise

    def save(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content)
        stem, _, ending = name.rpartition(".")
        if ending == "py":
            importlib.import_module(stem)
        else:
            trainer = yaml.safe_load(content).get("trainer", {})
            self.callbacks[stem] = {entry["class_path"] for entry in trainer.get("callbacks+", [])}

    def shell(self, script: str) -> None:
        for line in script.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                self.commands[words[0]](words[1:])
        if "#SBATCH" in script:
            said = dict(re.findall(r"--([\w.-]+)[= ](\d+)", script))
            assert said["nodes"] == said["trainer.num_nodes"]
            assert said["ntasks-per-node"] == said["gpus-per-node"] == said["trainer.devices"]

    def sslinfo(self, words: list[str]) -> None:
        if words[0] == "recipes":
            console(words)
        elif any(".help" in word or word.startswith("--print_config") for word in words):
            _ending(lambda: console(words))
        elif words[0] == "sweep":
            sweep([*words, *self.short])
        elif words[0] == "fit":
            self.runs.append(main([*words, *(SHORT if "backbone/" in " ".join(words) else self.short)]))
            callbacks = {type(callback).__name__ for callback in self.runs[-1].trainer.callbacks}  # type: ignore[attr-defined]
            for recipe in {*words} & {*self.callbacks}:
                assert self.callbacks[recipe] <= callbacks
        else:
            main([*words, "--trainer.accelerator", "cpu"])

    def torchrun(self, words: list[str]) -> None:
        """The launcher itself, with ranks that are copies of this process where that is safe."""
        from torch.distributed.launcher.api import elastic_launch
        from torch.distributed.run import config_from_args, parse_args

        config, _, command = config_from_args(parse_args(words))
        module = command.index("-m")
        assert command[module + 1] == "sslinfo"
        config.start_method = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
        with socket.create_server(("127.0.0.1", 0)) as free:
            config.rdzv_endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        devices = ["--trainer.devices", str(config.nproc_per_node)]
        try:
            found = elastic_launch(config, _rank)([*command[module + 2 :], *self.short, *devices])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert found == {rank: (rank, config.nproc_per_node) for rank in range(config.nproc_per_node)}

    def tensorboard(self, words: list[str]) -> None:
        from tensorboard import main as tensorboard

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tensorboard", *words])
            _ending(tensorboard.run_main)


def _rank(words: list[str]) -> tuple[int, int]:
    trainer = main(words).trainer
    return trainer.global_rank, trainer.world_size


def _ending(run: Callable[[], Any]) -> None:
    """A command that leaves the program, without an error."""
    with pytest.raises(SystemExit) as end:
        run()
    assert not end.value.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A page's own folder, with data in it; what the page changes of the process is undone."""
    write_cifar(tmp_path / "data", classes=10, per_batch=10)
    write_cifar(tmp_path / "data", classes=100, per_batch=100)
    write_imagefolder(tmp_path / "my_images", splits=("train", "val"), classes=3, per_class=4, size=(24, 24))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Its 100 draws of the labels of all digits take three quarters of the time of a short training.
    monkeypatch.setattr(RunSummary.__init__, "__defaults__", ((3, 10), 2, 200))
    monkeypatch.setattr(datasets, "TABLE", datasets.TABLE)
    quantities = list(QUANTITIES)
    yield tmp_path
    QUANTITIES[:] = quantities
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@names_of_pages
def test_blocks_run(page: Path, folder: Path) -> None:
    if "encoder.pt" in page.read_text():
        torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), "encoder.pt")
    blocks = Blocks(folder)
    blocks.run(page)
    if page.name == "extending.md":
        check_new_diagnostic(Path(blocks.runs[-1].trainer.log_dir))  # type: ignore[arg-type]


def check_new_diagnostic(run: Path) -> None:
    """A text, a picture, and both in TensorBoard, of the callback that the page adds."""
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = (run / "lengths.txt").read_text()
    assert re.fullmatch(r"8 images, length \d+\.\d\d with a standard deviation of \d+\.\d\d\n", text)
    assert Image.open(run / "lengths.png").size == (500, 300)
    logged = EventAccumulator(str(run)).Reload()
    assert "info/lengths/histogram" in logged.Tags()["images"]
    assert "info/lengths/text_summary" in logged.Tags()["tensors"]
    assert len(logged.Scalars("info/representation/length")) == 1


def test_the_pages_have_blocks_of_each_kind() -> None:
    blocks = [block for page in PAGES for block in FENCE.findall(page.read_text())]
    assert {kind for kind, _ in blocks} == {"bash", "python", "yaml", "bibtex"}
    assert sum(text.count("sslinfo fit") for kind, text in blocks if kind == "bash") >= 20


def test_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 1500


def test_the_objective_takes_30_lines() -> None:
    (objective,) = (text for _, text in FENCE.findall(README.read_text()) if "class Decorrelate" in text)
    assert len(objective.strip().splitlines()) <= 30


def test_one_version(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text()
    assert re.findall(r"version (?:= \{)?(\d[\w.]*\w)", text) == [sslinfo.__version__] * 2
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == sslinfo.__version__
    _ending(lambda: console(["--version"]))
    assert capsys.readouterr().out.split()[-1] == sslinfo.__version__


# What the pages point to


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        before = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{before}" if before else slug)
    return set(found)


def test_anchors_are_githubs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# From A to `b_c`\n## What's new, in 2.0?\n```bash\n# no heading\n```\n" + "## Last - one\n" * 2)
    assert anchors(page) == {"from-a-to-b_c", "whats-new-in-20", "last---one", "last---one-1"}


@names_of_pages
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert ROOT in file.parents, target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_linked_from_readme() -> None:
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", README.read_text()))
    assert linked == {page.relative_to(ROOT).as_posix() for page in PAGES[1:]}


@names_of_pages
def test_no_page_names_a_path_of_a_machine(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"(?<![\w.}])(?:~|/(?:home|root|tmp|work|mnt|opt|usr|var|Users))/\S*", text)
    assert str(ROOT) not in text


@names_of_pages
def test_commands_in_the_text_exist(page: Path) -> None:
    """Of ``make``, ``sslinfo`` and scripts that stand within a sentence and are not run."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())):
        words = code.split()
        if words[0] == "make":
            assert words[1] in targets, code
        elif words[0] == "sslinfo" and len(words) > 1 and words[1] != "COMMAND":
            assert words[1] in COMMANDS or words[1] == "--version", code
        elif words[0] == "python" and words[1].endswith(".py"):
            script = (ROOT / words[1]).read_text()
            assert all(f'"{option}"' in script for option in words if option.startswith("--")), code


def test_every_recipe_and_overlay_is_named() -> None:
    named = set(re.findall(r"`([\w/]+)`", (ROOT / "docs/objectives.md").read_text()))
    named |= set(re.findall(r"`([\w/]+)`", (ROOT / "docs/commands.md").read_text()))
    assert {name for name in recipes.names() if not name.startswith("shared/")} - named == {"quickstart"}


def test_the_table_of_data_sets_is_whole() -> None:
    rows = re.findall(r"^\| (`.*`) \| .* \| (yes)? ?\|$", (ROOT / "docs/images.md").read_text(), re.MULTILINE)
    downloads = {name: bool(yes) for names, yes in rows for name in re.findall(r"`(\w+)`", names)}
    assert downloads == {row.name: row.download is not None for row in datasets.TABLE}
