"""Batches: a file of requests, worked off by one or many servers into a folder, and taken up again after any end.

from krea_client import batch

report = asyncio.run(batch.run("jobs.jsonl", "pictures", batch.servers(["http://127.0.0.1:8188"])))

For many machines `krea_client.batch.ray_pool.workers(...)` takes the place of `batch.servers(...)`.
"""

from .dispatch import run
from .report import Failure, JobOver, Report, WorkerNotice
from .servers import servers
from .worker import Worker

__all__ = ["Failure", "JobOver", "Report", "Worker", "WorkerNotice", "run", "servers"]
