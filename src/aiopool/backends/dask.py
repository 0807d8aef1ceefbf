"""A pool on a cluster of Dask: ``AioPool(backend=DaskBackend(...))``. Needs the extra ``dask``.

There is no network code here. Calls are tasks of `distributed`, whose scheduler decides where and when they run. What
a pool promises beyond that is kept by the `Desk` and the sites that it has in the cluster, see `dask_site`, and by the
`Ledger`, which knows where each call stands.
"""

from __future__ import annotations

from types import MappingProxyType

import cloudpickle
from distributed import Client, Security

from ..arguments import truth
from ..cpus import usable_cpus
from ..pickling import Pickler
from .base import Backend, Elsewhere, Wanted
from .dask_calls import ClusterBackend
from .dask_connection import Cluster, Connection

__all__ = ["DaskBackend"]

NOT_THERE = MappingProxyType(
    {
        "maxtasksperchild": "Dask's workers are not replaced after some calls",
        "context": "how workers are started is the cluster's affair",
        "cancel_grace": "a call that runs in Dask cannot be interrupted; see DaskBackend(restart_cancelled=True)",
        "concurrency": "a worker of the cluster runs as many coroutines at once as it has threads (--nthreads)",
        "loop_factory": "each coroutine has a loop of asyncio for itself",
        "max_memory_per_child": "give the cluster's workers a memory_limit",
        "max_age": "start the cluster's workers with --lifetime",
        "recycle_jitter": "start the cluster's workers with --lifetime-stagger",
        "idle_timeout": "have the cluster adapt: cluster.adapt(minimum=..., maximum=...)",
        "min_processes": "have the cluster adapt: cluster.adapt(minimum=..., maximum=...)",
        "thread_limit": "the cluster's workers have a limit of their own, in distributed.nanny.pre-spawn-environ",
    }
)
"""Arguments of a pool that mean nothing here, and what to do instead."""


class DaskBackend(Elsewhere):
    """A backend of a pool that runs its calls in a cluster of Dask.

    Args:
        cluster: the address of its scheduler, such as ``"tcp://10.0.0.1:8786"``; a cluster object; or a
            `distributed.Client`, which is used if it belongs to the pool's own loop, and else tells where the scheduler
            is. None starts a `distributed.LocalCluster` on this machine, with as many workers as the pool is to have
            processes, and closes it with the pool; it listens on 127.0.0.1, without certificates.
        security: certificates and keys for an address, as a `distributed.Client` takes them.
        restart_cancelled: whether the worker of a call is restarted that is cancelled, over its time limit or abandoned
            while it runs, with all else that runs in it; needs workers with a nanny. Otherwise, as always in Dask,
            nobody waits for such a call any more, but its work goes on.

    Raises:
        TypeError: ``cluster`` is none of these, or ``restart_cancelled`` neither True nor False.
        ValueError: ``security`` is given where there is no address that it could be for.
    """

    pickler: Pickler | None = cloudpickle

    def __init__(
        self,
        cluster: str | Client | Cluster | None = None,
        *,
        security: Security | None = None,
        restart_cancelled: bool = False,
    ) -> None:
        if not (cluster is None or isinstance(cluster, (str, Client)) or hasattr(cluster, "scheduler_address")):
            raise TypeError(f"cluster must be an address, a distributed.Client or a cluster object, not {cluster!r}")
        if security is not None and not isinstance(cluster, str):
            raise ValueError(f"security is for an address; {cluster!r} is none, and has its own")
        self.cluster = cluster
        self.security = security
        self.restart_cancelled: bool = truth("restart_cancelled", restart_cancelled)

    def __repr__(self) -> str:
        return f"DaskBackend({self.cluster!r})"

    def make(self, wanted: Wanted) -> Backend:
        """See `Elsewhere`."""
        for name, value in wanted.others.items():
            raise ValueError(f"{name} cannot be had on Dask, and is {value!r}: {NOT_THERE[name]}")
        if self.cluster is not None and wanted.processes is not None:
            raise ValueError(
                f"processes must be None for a cluster that is there already, not {wanted.processes}: "
                "it has as many as it has; scale the cluster"
            )
        workers = usable_cpus() if wanted.processes is None else wanted.processes
        connection = Connection(self.cluster, self.security, workers, wanted.start_timeout)
        return ClusterBackend(connection, wanted, restart_cancelled=self.restart_cancelled)
