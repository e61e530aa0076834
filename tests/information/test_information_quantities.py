"""Every quantity is declared once: the report, the measurement and the page all come from that list."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from information_data import normal

import sslinfo
from sslinfo import information
from sslinfo.information import Moments, tables
from sslinfo.information.layer import Layer, Needs, shared
from sslinfo.information.measure import measure
from sslinfo.information.quantities import QUANTITIES, Ceiling, Specification

DOCS = Path(__file__).parents[2] / "docs"


def views(n: int, d: int, count: int = 2) -> list[torch.Tensor]:
    signal = normal(n, d, 1) * torch.linspace(1.5, 0.3, d)
    return [signal + 0.4 * normal(n, d, 10 + view) for view in range(count)]


# The page


def test_the_command_writes_the_page_that_is_committed() -> None:
    command = [sys.executable, "-W", "error", "-m", "sslinfo.information.tables"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (DOCS / "quantities.md").read_text(), (
        "run python -m sslinfo.information.tables > docs/quantities.md"
    )
    assert not done.stderr


def test_quantities_and_tables_import_torch_and_precision_alone() -> None:
    code = "import sys, sslinfo.information.tables, sslinfo.information.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    others = {"lightning", "matplotlib", "sklearn", "scipy", "timm", "torchvision", "jsonargparse", "torchmetrics"}
    assert not others & set(loaded)
    ours = {name for name in loaded if re.match(r"sslinfo\b(?!\.information)", name)}
    assert ours == {"sslinfo", "sslinfo.precision"}


def test_the_page_has_every_quantity_that_a_report_has() -> None:
    z = views(60, 12, count=3)
    found = measure(z, labels=torch.arange(60) % 3)
    assert {specification.name for specification in QUANTITIES} == set(found)
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "quantities.md").read_text(), re.M)
    assert rows == list(found)


def test_the_page_has_every_public_function() -> None:
    public = {name for name in information.__all__ if inspect.isfunction(getattr(information, name))}
    page = (DOCS / "quantities.md").read_text()
    rows = re.findall(r"^\| (\[`.*?) \|", page[page.index("## The estimators") :], re.M)
    assert Counter(re.findall(r"`(\w+)`", " ".join(rows))) == Counter(public)


def test_every_link_of_the_page_leads_to_a_file_that_defines_the_function() -> None:
    links = re.findall(r"\[`(\w+)`\]\((.*?)\)", (DOCS / "quantities.md").read_text())
    assert len(links) > 60
    for name, path in links:
        assert f"def {name}(" in (DOCS / path).read_text(), (name, path)


def test_rows_have_as_many_cells_as_their_head() -> None:
    """A bar within a cell is escaped."""
    for table in (tables.logged(), tables.estimators()):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


# What is declared


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.name)
def test_what_a_reader_asks_is_declared(quantity: Specification) -> None:
    assert quantity.meaning
    assert quantity.distrust
    assert quantity.function in {getattr(information, name) for name in information.__all__}
    # A paper that is named is the one of the function's docstring.
    for paper in re.findall(r"arXiv:\S+?(?=[;,]|\s|$)", quantity.source):
        assert paper in (quantity.function.__doc__ or "")
    assert quantity.ceiling is None or quantity.ceiling.words


def test_names_are_distinct() -> None:
    names = [specification.name for specification in QUANTITIES]
    assert len(names) == len(set(names))


def test_needs_decide_where_a_quantity_exists_and_what_it_counts() -> None:
    """60 samples of each of 3 views, moments of 200, 30 labels that are known."""
    many = views(200, 5)
    few = [z[:60] for z in views(200, 5, count=3)]
    labels = torch.arange(60) % 2
    labels[30:] = -1
    joint, single = Moments.of(*many), Moments.of(many[0])
    one, two = Needs.MOMENTS, Needs.JOINT_MOMENTS
    expected = {one: 200, two: 200, Needs.SAMPLES: 60, Needs.PAIRS: 60, Needs.THREE_VIEWS: 60, Needs.LABELS: 30}
    layer = Layer(few, joint, labels=labels)
    assert {needs: layer.count(needs) for needs in Needs if layer.has(needs)} == expected
    layer = Layer(few[:2], single)
    assert {needs: layer.count(needs) for needs in Needs if layer.has(needs)} == {
        one: 200,
        two: 60,  # joint moments are of the samples where they are not given
        Needs.SAMPLES: 60,
        Needs.PAIRS: 60,
    }
    layer = Layer(few[:1])
    assert {needs: layer.count(needs) for needs in Needs if layer.has(needs)} == {one: 60, Needs.SAMPLES: 60}


# A new quantity


def test_the_quantity_of_the_documentation_is_in_report_measurement_and_table() -> None:
    """One specification appended, by the page's own block."""
    text = (DOCS / "extending.md").read_text()
    section = text[text.index("## A new quantity") :]
    before = list(sslinfo.report(normal(50, 4)))
    exec(compile(re.findall(r"```python\n(.*?)```", section, re.S)[0], "extending.md", "exec"), {"__name__": "mine"})

    z = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    z = torch.cat([z, -z])  # variances 18/7, 2/7, 0, 0
    found = sslinfo.report(z)["largest_share"]
    assert found.value == pytest.approx(0.9)
    assert (found.ceiling, found.unit, found.n, found.d, found.settings) == (1.0, "share", 8, 4, "")
    assert "largest_share" in str(sslinfo.report(z))
    assert list(sslinfo.report(normal(50, 4))) == [*before, "largest_share"]

    moments = measure([z[:3]], Moments.of(z), window=2)["largest_share"]
    assert (moments.value, moments.n, moments.settings) == (pytest.approx(0.9), 8, "window of 2 steps")
    assert "one point" in measure([torch.ones(5, 2)]).reasons["largest_share"]

    row = next(line for line in tables.page().splitlines() if "largest_share" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "`largest_share`",
        "`largest_share`",
        "share of the variance that lies along one direction",
        "share",
        "second moments of one view",
        "1",
        "N near d: high by sampling",
        "derived",
    ]


def test_a_quantity_of_a_test_is_gone_after_it() -> None:
    assert "largest_share" not in sslinfo.report(normal(50, 4))


def test_words_beside_a_value_stand_between_settings_and_window() -> None:
    quantity = Specification(
        name="mine",
        function=measure,
        meaning="",
        distrust="",
        source="",
        needs=Needs.MOMENTS,
        compute=lambda layer: (2.0, "of two"),
        settings=lambda layer: f"beta {layer.scales.beta:g}",
        ceiling=Ceiling("d", lambda layer: layer.d),
    )
    QUANTITIES[:] = [quantity]
    z = normal(30, 3)
    found = measure([z[:10]], Moments.of(z), window=4)
    assert found.quantities == {"mine": (2.0, 3, "", 30, 3, "beta 10, of two, window of 4 steps")}


def test_what_is_shared_is_computed_once_a_layer_and_argument() -> None:
    asked: list[tuple[int, int]] = []

    @shared
    def power(layer: Layer, exponent: int) -> int:
        asked.append((layer.d, exponent))
        return layer.d**exponent

    layer, other = Layer([normal(4, 3)]), Layer([normal(4, 2)])
    assert [power(layer, 2), power(layer, 2), power(layer, 3), power(other, 2), power(layer, 2)] == [9, 9, 27, 4, 9]
    assert asked == [(3, 2), (3, 3), (2, 2)]


# What a report costs


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many matrices were factorized, by routine."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        routine = getattr(torch.linalg, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return routine(*args, **kwargs)

        return call

    for name in ("eigvalsh", "eigh", "svdvals", "svd", "cholesky", "cholesky_ex"):
        monkeypatch.setattr(torch.linalg, name, counted(name))
    return counts


def test_a_report_solves_three_eigenproblems_and_nine_cholesky_factors(solved: Counter[str]) -> None:
    """Eigenvalues of the covariance, of the second moment (RankMe) and of the kernel (von Neumann).

    Cholesky factors of the log-det entropy at two scales, the Gaussian entropy, the Hadamard gap, the two views of the
    split, and three of the Gaussian information: both views and what one leaves of the other.
    """
    z1, z2 = views(60, 12)
    sslinfo.report(z1, z2, torch.arange(60) % 3)
    assert solved == {"eigvalsh": 3, "cholesky_ex": 9}


def test_samples_without_moments_solve_an_eigenproblem_for_each_function(solved: Counter[str]) -> None:
    """Effective rank, stable rank, spectral decay, which of the eigenvalues are rounding (once), von Neumann."""
    measure(views(60, 12))
    assert solved == {"eigvalsh": 5, "svdvals": 1, "cholesky_ex": 9}


def test_pairwise_entropies_are_computed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower and upper of the first view, and the split's of both views."""
    from sslinfo.information import entropy

    calls = []
    kernel = entropy.kernel_logsumexp
    monkeypatch.setattr(entropy, "kernel_logsumexp", lambda *args: calls.append(args) or kernel(*args))
    sslinfo.report(*views(60, 12))
    assert len(calls) == 4


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_samples_give_reasons(n: int) -> None:
    found = measure([z[:n] for z in views(5, 4, count=3)])
    assert not found.quantities
    assert set(found.reasons) == {q.name for q in QUANTITIES if q.needs is not Needs.LABELS}
