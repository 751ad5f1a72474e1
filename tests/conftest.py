"""Settings for every test: a fixed seed, and GPU tests skipped where there is no GPU."""

import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are so small that threads would only wait


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same random state, in whatever order tests run."""
    torch.manual_seed(0)
