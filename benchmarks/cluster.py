"""Where runs are made: processes of this machine, or a cluster of Dask's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from joblib import parallel_config

BACKENDS = ("loky", "dask")


@dataclass(frozen=True)
class Cluster:
    """Processes that runs are handed to.

    Attributes:
        backend: "loky" for processes of this machine, or "dask".
        jobs: runs at the same time.
        address: of a cluster that is running; None begins one of ``jobs`` workers here.
    """

    backend: str = "loky"
    jobs: int = 2
    address: str | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Make joblib use it while the body runs."""
        if self.backend == "loky":
            yield
            return
        from distributed import Client, LocalCluster

        if self.address is not None:
            with Client(self.address), parallel_config(backend="dask"):
                yield
            return
        own = LocalCluster(n_workers=self.jobs, threads_per_worker=1, dashboard_address=None)
        with own, Client(own), parallel_config(backend="dask"):
            yield
