"""Ray: that which is connected, or one that is started here, quietly."""

import logging
import os
from typing import Any

OBJECT_STORE = 128 << 20  # bytes, of a Ray that is started here


def import_ray() -> Any:
    """The module.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "workers on other hosts need Ray: pip install 'fox-transformer[ray]'"
        ) from error
    return ray


def start_ray(workers: int) -> bool:
    """Starts a Ray on this host, without dashboard, unless one is connected.

    Args:
        workers: of one CPU each that it shall have room for.

    Returns:
        whether it was started: then ray.shutdown() is due.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=max(workers, os.cpu_count() or 1),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=OBJECT_STORE,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return True
