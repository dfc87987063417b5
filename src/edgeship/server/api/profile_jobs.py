"""Profile jobs over REST: order one for a device, follow it, take it back."""

from __future__ import annotations

from litestar import get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, JSONBody

from edgeship.server.context import ServerContext
from edgeship.server.profile_jobs import JobRequest, ProfileJob


@post("/api/v1/devices/{device_id:str}/profile-jobs", sync_to_thread=True)
def order_job(
    device_id: FromPath[str], data: JSONBody[JobRequest], context: NamedDependency[ServerContext]
) -> ProfileJob:
    """Let a device measure what a plan names; plan and files were uploaded as blobs."""
    return context.profile_jobs.order(device_id, data)


@get("/api/v1/profile-jobs/{job_id:str}", sync_to_thread=True)
def show_job(job_id: FromPath[str], context: NamedDependency[ServerContext]) -> ProfileJob:
    """How far a job is."""
    return _known(context.profile_jobs.find(job_id), job_id)


@post("/api/v1/profile-jobs/{job_id:str}/cancel", sync_to_thread=True, status_code=200)
def cancel_job(job_id: FromPath[str], context: NamedDependency[ServerContext]) -> ProfileJob:
    """Take an order back; the job has ended when its state says so."""
    return _known(context.profile_jobs.cancel(job_id), job_id)


def _known(job: ProfileJob | None, job_id: str) -> ProfileJob:
    if job is None:
        raise NotFoundException(f"no profile job {job_id}; a server that was restarted knows none of before")
    return job


router = [order_job, show_job, cancel_job]
