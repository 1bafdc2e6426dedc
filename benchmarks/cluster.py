"""Where runs are made: processes of this machine, or a cluster that joblib knows how to use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from joblib import parallel_config

BACKENDS = ("loky", "dask", "ray")


@dataclass(frozen=True)
class Cluster:
    """Processes that runs are handed to.

    Attributes:
        backend: "loky" for processes of this machine, "dask" or "ray".
        jobs: runs at the same time.
        address: of a cluster that is running; None begins one of ``jobs`` workers here.
    """

    backend: str = "loky"
    jobs: int = 2
    address: str | None = None

    @contextmanager
    def used(self) -> Iterator[str]:
        """Make joblib use it while the body runs.

        Yields:
            How joblib hands results back: one by one where the backend can.
        """
        if self.backend == "loky":
            yield "generator_unordered"
        elif self.backend == "dask":
            from distributed import Client, LocalCluster

            if self.address is None:
                own = LocalCluster(
                    n_workers=self.jobs, threads_per_worker=1, dashboard_address=None
                )
                with own, Client(own), parallel_config(backend="dask"):
                    yield "generator_unordered"
            else:
                with Client(self.address), parallel_config(backend="dask"):
                    yield "generator_unordered"
        else:
            import ray
            from ray.util.joblib import register_ray

            ray.init(self.address, num_cpus=None if self.address else self.jobs)
            register_ray()
            with parallel_config(backend="ray"):
                yield "list"  # its backend knows no generator
