"""What several workers have counted, added up."""

import logging
import os
import shutil
from pathlib import Path

import pytest

from llmproxy import metrics_board
from llmproxy.errors import Outcome
from llmproxy.metrics import Metrics
from llmproxy.metrics_board import Board, retire
from tests.support.rig import sample

REQUESTS = "llmproxy_requests_total"
SUM = "llmproxy_overhead_seconds_sum"


class Counter:
    """A worker, as far as it counts."""

    def __init__(self, directory: Path, name: str) -> None:
        self.metrics = Metrics()
        self.board = Board(str(directory), name, self.metrics)
        self.metrics.others = self.board.others

    def count(self, requests: int = 1, *, overhead: float = 0.1) -> None:
        """Count requests that were answered."""
        for _ in range(requests):
            self.metrics.request(
                model="m",
                upstream="gpu1",
                status=200,
                outcome=Outcome.COMPLETED,
                duration=1.0,
                overhead=overhead,
            )

    def shows(self, name: str = REQUESTS, **labels: str) -> float:
        """Return what a scrape of this worker tells."""
        if name == REQUESTS:
            labels = {"model": "m", "upstream": "gpu1", "status": "200", "outcome": "completed"}
        return sample(self.metrics.render(), name, **labels) or 0.0


@pytest.fixture
def workers(tmp_path: Path) -> list[Counter]:
    """Three workers of one supervisor."""
    return [Counter(tmp_path, f"worker-{number}") for number in (1, 2, 3)]


def test_every_worker_tells_of_all(workers: list[Counter]) -> None:
    """Whichever of them is scraped."""
    for number, worker in enumerate(workers, start=1):
        worker.count(number)
        worker.board.publish()

    assert [worker.shows() for worker in workers] == [6, 6, 6]


def test_distributions_are_added_bucket_by_bucket(workers: list[Counter]) -> None:
    """Counts and sums alike."""
    first, second, _ = workers
    first.count(2, overhead=0.02)
    second.count(1, overhead=0.0004)
    second.board.publish()

    bucket = "llmproxy_overhead_seconds_bucket"
    assert first.shows(bucket, le="0.0005") == 1
    assert first.shows(bucket, le="0.05") == 3
    assert first.shows(SUM) == pytest.approx(0.0404)
    assert first.shows("llmproxy_request_duration_seconds_count", upstream="gpu1") == 3


def test_states_are_added_over_those_who_live(workers: list[Counter]) -> None:
    """Requests under way are; an upstream is up when one of us has reached it."""
    first, second, _ = workers
    for worker in (first, second):
        worker.metrics.inflight(+2)
        worker.metrics.asking("gpu1", +1)
    first.metrics.probed("gpu1", False)
    second.metrics.probed("gpu1", True)
    second.board.publish()

    assert first.shows("llmproxy_inflight_requests") == 4
    assert first.shows("llmproxy_upstream_inflight", upstream="gpu1") == 2
    assert first.shows("llmproxy_upstream_up", upstream="gpu1") == 1


def test_what_one_has_shown_the_next_does_not_fall_behind(workers: list[Counter]) -> None:
    """Not even within the second that lies between two publications."""
    first, second, _ = workers
    first.count(5)

    shown = first.shows()

    assert second.shows() == shown == 5


def test_sums_are_the_same_whoever_adds_them(workers: list[Counter]) -> None:
    """A sum that comes out a little smaller looks like a counter that began anew."""
    for worker, overhead in zip(workers, (1 / 7, 7 / 11, 13 / 13), strict=True):
        worker.count(overhead=overhead)
        worker.board.publish()

    assert len({worker.shows(SUM) for worker in workers}) == 1


def test_what_the_ended_have_counted_stays(workers: list[Counter], tmp_path: Path) -> None:
    """Through any number of them, and their files do not pile up."""
    last, *others = workers
    for number in range(4, 100):
        others.append(Counter(tmp_path, f"worker-{number}"))
    for worker in others:
        worker.count(2)
        worker.board.publish()
        retire(str(tmp_path), worker.board._own.stem)

    assert last.shows() == 2 * len(others)
    assert last.shows(SUM) == pytest.approx(0.2 * len(others))
    assert sorted(os.listdir(tmp_path)) == ["retired.json", "worker-1.json"]


def test_what_the_ended_were_doing_does_not_stay(workers: list[Counter], tmp_path: Path) -> None:
    """A request that was under way when its worker was killed is under way no more."""
    first, second, _ = workers
    second.metrics.inflight(+1)
    second.metrics.asking("gpu1", +1)
    second.metrics.probed("gpu1", True)
    second.board.publish()

    retire(str(tmp_path), "worker-2")

    assert first.shows("llmproxy_inflight_requests") == 0
    assert first.shows("llmproxy_upstream_inflight", upstream="gpu1") == 0
    assert first.shows("llmproxy_upstream_up", upstream="gpu1") == 0


def test_one_who_ends_during_a_scrape_is_counted_once(
    workers: list[Counter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two of the files that are read."""
    first = workers[0]
    read = metrics_board._read
    for worker in workers:
        worker.count(1)
        worker.board.publish()

    for name in ("worker-2", "worker-3"):

        def read_late(path: Path, ends: str = name) -> object:
            state = read(path)
            if path.parent == tmp_path and (tmp_path / f"{ends}.json").exists():
                monkeypatch.setattr(metrics_board, "_read", read)
                retire(str(tmp_path), ends)
            return state

        monkeypatch.setattr(metrics_board, "_read", read_late)
        assert first.shows() == 3
        assert first.shows() == 3


def test_one_who_is_half_retired_is_counted_once(
    workers: list[Counter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sum is kept, its own file is not gone yet."""
    first, second, _ = workers
    second.count(4)
    second.board.publish()
    monkeypatch.setattr(Path, "unlink", lambda self: None)

    retire(str(tmp_path), "worker-2")

    assert first.shows() == 4


def test_one_who_was_killed_before_it_told_anything_is_nobody(
    workers: list[Counter], tmp_path: Path
) -> None:
    """There is nothing to keep of it."""
    retire(str(tmp_path), "worker-2")

    assert os.listdir(tmp_path) == []
    assert workers[0].shows() == 0


def test_half_a_file_is_no_table(workers: list[Counter], tmp_path: Path) -> None:
    """Whoever was killed while writing has left the one before."""
    first, second, _ = workers
    first.count()
    second.count()
    second.board.publish()
    (tmp_path / "worker-2.4711").write_bytes(b'{"llmproxy_req')
    (tmp_path / "worker-9.json").write_bytes(b'{"llmproxy_req')

    assert first.shows() == 2


def test_other_buckets_than_ours_are_left_out(workers: list[Counter], tmp_path: Path) -> None:
    """A replacement may be a newer version than its supervisor."""
    first, second, _ = workers
    second.count()
    second.metrics._overhead.counts.append(1)
    second.board.publish()

    retire(str(tmp_path), "worker-2")

    assert first.shows() == 1
    assert first.shows("llmproxy_overhead_seconds_count") == 0


def test_a_worker_that_cannot_write_says_so_once(
    workers: list[Counter], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on counting for itself."""
    first = workers[0]
    first.count()
    shutil.rmtree(tmp_path)

    with caplog.at_level(logging.WARNING):
        first.board.publish()
        first.board.publish()
        shown = first.shows()

    assert shown == 1
    assert len(caplog.records) == 1


def test_what_cannot_be_added_up_stays_as_it_is(
    workers: list[Counter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not end the one process that looks after all others."""
    first, second, _ = workers
    second.count(3)
    second.board.publish()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    retire(str(tmp_path), "worker-2")

    assert first.shows() == 3


def test_the_last_one_to_leave_takes_the_directory_along(
    workers: list[Counter], tmp_path: Path
) -> None:
    """Where no supervisor is left to do so."""
    directory = tmp_path / "board"
    directory.mkdir()
    first, second = (Counter(directory, f"worker-{number}") for number in (1, 2))
    first.board.publish()
    second.board.publish()

    first.board.leave()
    assert os.listdir(directory) == ["worker-2.json"]

    second.board.leave()
    assert not directory.exists()
