"""The Triton kernels run on a GPU, or on the CPU in Triton's interpreter: TRITON_INTERPRET=1."""

import os
from pathlib import Path

import pytest
import torch

from fox.kernels.flash import tuning

HERE = Path(__file__).parent
RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a CUDA device, or TRITON_INTERPRET=1 set before pytest")
    for item in items:
        if not RUNS and HERE in item.path.parents and "compiler" not in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiles that were measured on this machine are not those of the tests."""
    monkeypatch.setattr(tuning, "MEMORY", tmp_path / "tiles.json")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
