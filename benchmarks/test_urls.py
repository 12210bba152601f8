"""Files behind URLs, beside the line that users write: ``cat`` of a batch, as the pages of fsspec and s3fs have it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import CASES, Case
from benchmarks.contest import Plan
from benchmarks.report import Ratio
from benchmarks.storage import ANSWER_MS, storage
from benchmarks.test_sources import epochs, in_turn, note
from shmgen import Npy, Remote

FILES = 2048

KEYS = {"key": "a", "secret": "b"}


@pytest.fixture(scope="module")
def served(plan: Plan) -> Iterator[tuple[Case, str]]:
    """A data set, and the URL of a server of its files that answers `ANSWER_MS` late."""
    case = replace(CASES["volume-32"], files=FILES // plan.cut, root=plan.root)
    case.make()
    bucket = case.folder / "bucket"
    if not bucket.is_symlink():
        bucket.symlink_to(".")
    with storage("server", case) as url:
        yield case, url


def users_line(case: Case, system: object, folder: str) -> Callable[[], int]:
    """Epochs of whole batches in random order, each by one call that has all requests in flight at once."""
    rng = np.random.default_rng(0)

    def epoch() -> int:
        count = 0
        for ids in rng.permutation(case.ids).reshape(-1, case.batch_size):
            paths = [f"{folder}/{id}.npy" for id in ids]
            batch = np.stack([np.load(io.BytesIO(data)) for data in system.cat(paths).values()])  # type: ignore[attr-defined]
            count += len(batch)
        return count

    return epoch


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_batch_of_files(
    benchmark: BenchmarkFixture, served: tuple[Case, str], plan: Plan, ratios: list[Ratio], scheme: str
) -> None:
    """2 workers against that line. The server takes any signature for S3's: a whole S3 in Python would be what is measured."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs" if scheme == "s3" else "aiohttp")
    case, url = served
    if scheme == "s3":
        bucket, options = "bucket", {"endpoint_url": url, **KEYS}
        system, folder = fsspec.filesystem("s3", skip_instance_cache=True, **options), bucket
        remote = Remote(f"s3://{bucket}", options=options)
    else:
        system, folder, remote = fsspec.filesystem("http", skip_instance_cache=True), url, Remote(url)
    theirs = users_line(case, system, folder)
    ours = epochs(list_IDs=case.ids, source=Npy(remote), batch_size=case.batch_size, workers=2)
    for _ in range(3):
        ours()  # until it has found how many requests should be in flight
    seconds = list(in_turn(plan, theirs, ours))
    name = f"{scheme}, {ANSWER_MS} ms a request: "
    line = "s3fs" if scheme == "s3" else "fsspec"
    for who, values in ((f"{line}'s cat", [one for one, _ in seconds]), ("shmgen", [one for _, one in seconds])):
        ratios.append(Ratio(f"{name}{who}, samples/s", "", [1 / value for value in values]))
    note(benchmark, ratios, f"{name}shmgen / {line}'s cat", "x", [one / other for one, other in seconds])
