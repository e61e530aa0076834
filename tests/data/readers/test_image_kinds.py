"""Every kind of file and folder entry does what its own definition says, in both modes."""

import pytest
from image_kinds import KINDS, Kind, tried


@pytest.mark.parametrize("mode", ["error", "skip"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind(kind: Kind, mode):
    outcome = tried(kind, mode)
    assert outcome.right, f"{outcome.word}: {outcome.text}"
