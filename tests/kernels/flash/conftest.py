"""The Triton kernels run on a GPU, or on the CPU in Triton's interpreter: TRITON_INTERPRET=1."""

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a CUDA device, or TRITON_INTERPRET=1 set before pytest")
    for item in items:
        if not RUNS and HERE in item.path.parents and "compiler" not in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
