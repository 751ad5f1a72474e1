"""Settings for every test: a fixed seed, and GPU tests skipped where there is no GPU."""

import json
import os
import subprocess
import sys
import time

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


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory):
    """Runs `script RANK RANKS FOLDER` once per rank; returns what each left in RANK.json."""

    def run(script, ranks):
        folder = tmp_path_factory.mktemp("ranks")
        command = [sys.executable, script]
        logs = [folder / f"{rank}.log" for rank in range(ranks)]
        processes, env = [], os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process
        for rank, log in enumerate(logs):
            with log.open("w") as out:
                arguments = [*command, str(rank), str(ranks), str(folder)]
                processes.append(subprocess.Popen(arguments, env=env, stdout=out, stderr=out))
        codes, until = [None], time.monotonic() + 300
        try:
            while None in codes and not any(codes) and time.monotonic() < until:
                codes = [process.poll() for process in processes]
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()  # where one has failed, the others wait for it
                process.wait()
        assert codes == [0] * ranks, "\n".join(log.read_text() for log in logs)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]

    return run
