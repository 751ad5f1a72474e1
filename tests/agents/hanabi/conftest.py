"""Modules that tests share are found beside them; games need an engine, which may be missing."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent)]  # child processes import from there, too


@pytest.fixture(scope="session")
def engine():
    """OpenSpiel, or a skip."""
    return pytest.importorskip(
        "pyspiel", reason="games are played by open-spiel >= 2.0, which needs Python 3.11"
    )
