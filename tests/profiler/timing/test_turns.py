"""Visits on an injected clock with recorded and pretended conditions: which count, which are repeated, what is said."""

from pathlib import Path

import pytest
from nvml_sequences import quiet_host, sequence
from watches import BUSY, QUIET, Plays

from calibrate.passes.verdict import MOST_OTHER_WORK
from profiler.devices.watch import GpuState, GpuWatch
from profiler.record.measurement import Window
from profiler.timing.turns import BUSY_SHARE, FEWEST_VISITS, TRIES, Turns, Watched, take_turns


class Machine:
    """Numbers its visits; each takes a second of its clock."""

    def __init__(self, fails: dict[str, int] | None = None) -> None:
        self.now_s = 0.0
        self.order: list[str] = []
        self.fails = fails or {}

    def take(self, name: str, watched: Watched) -> int:
        self.order.append(name)
        if self.order.count(name) == self.fails.get(name):
            raise RuntimeError("CUDA error: unspecified launch failure")

        def run() -> int:
            self.now_s += 1
            return len(self.order)

        return watched(run)

    def visit(
        self, windows: list[Window], names: str = "ab", visits: int = 3, seconds: float = 1e9, on_cpu: bool = True
    ) -> Turns[int]:
        return take_turns(
            list(names),
            self.take,
            visits=visits,
            seconds=seconds,
            on_cpu=on_cpu,
            watch=Plays(windows),
            now=lambda: self.now_s,
        )


def results(turns: Turns[int], name: str) -> list[int]:
    return [visit.result for visit in turns.counted(name)]


def test_visits_alternate_and_a_quiet_machine_has_nothing_to_say() -> None:
    machine = Machine()
    turns = machine.visit([])
    assert machine.order == list("ababab")
    assert (results(turns, "a"), results(turns, "b")) == ([1, 3, 5], [2, 4, 6])
    assert turns.labels() == () and turns.warning() is None


def test_a_busy_visit_is_repeated_after_its_round_and_left_out() -> None:
    machine = Machine()
    turns = machine.visit([BUSY])
    assert machine.order == list("abababa") and results(turns, "a") == [3, 5, 7]
    (label,) = turns.labels()
    assert (label.severity, label.share) == ("note", pytest.approx(1 / 7))
    assert label.what == "1 of 7 visits do not count: other work took 1.10 of 2 cores"
    assert turns.warning() == (
        "1 of 7 visits to the calibration's kernels were disturbed, all left out: other work took 1.10 of 2 cores; "
        "for a better calibration stop other work on this machine and run again"
    )


def test_a_host_that_is_always_busy_is_labelled_and_ends() -> None:
    machine = Machine()
    turns = machine.visit([BUSY] * 99)
    assert len(machine.order) == TRIES * 3 * 2
    assert len(results(turns, "a")) == TRIES * 3  # all of them count, as there are no better ones
    assert [label.severity for label in turns.labels()] == ["invalidates"]
    warning = turns.warning()
    assert warning is not None and "12 of them used, since too few others remain" in warning


def test_one_sound_visit_is_too_few_to_leave_the_others_out() -> None:
    turns = Machine().visit([BUSY, QUIET], names="a", visits=2, seconds=0.0)
    assert FEWEST_VISITS == 2 and len(results(turns, "a")) == 2


def test_time_ends_visits_but_not_before_there_are_two() -> None:
    machine = Machine()
    machine.visit([BUSY] * 99, seconds=2.5)
    assert machine.order == list("abab")
    late = Machine()
    late.visit([], names="abc", seconds=0.0)
    assert late.order == list("abcabc")


def test_work_on_the_host_does_not_matter_to_a_gpu() -> None:
    turns = Machine().visit([BUSY] * 6, on_cpu=False)
    assert len(results(turns, "a")) == 3 and turns.warning() is None


def test_a_failure_ends_the_visits_of_its_own_and_keeps_those_before() -> None:
    machine = Machine(fails={"b": 2})
    turns = machine.visit([])
    assert machine.order == list("ababa") and results(turns, "b") == [2]
    assert "launch failure" in str(turns.failed["b"])


@pytest.mark.parametrize(
    ("name", "why", "remedy"),
    [
        ("thermal_slowdown", "hardware slowdown (heat, power brake or supply) in", "check cooling"),
        ("foreign_process", "other processes on the GPU (pid 4242) in", "stop the other processes on the GPU"),
    ],
)
def test_a_recorded_throttled_or_shared_gpu_has_its_visits_repeated_or_refused(
    name: str, why: str, remedy: str, tmp_path: Path
) -> None:
    played = sequence(name)
    machine = Machine()

    def read() -> GpuState:
        """A state for each visit, and the first one after them."""
        visit = len(machine.order)
        return played.states[visit if visit < len(played.states) else 0]

    watch = GpuWatch(read, quiet_host(tmp_path, lambda: machine.now_s))
    turns = take_turns(
        ["a"],
        machine.take,
        visits=len(played.states),
        on_cpu=False,
        watch=watch,
        read=lambda: played.before,
        now=lambda: machine.now_s,
    )
    invalid = [visit for visit in turns.visits["a"] if visit.verdict.status == "invalid"]
    assert invalid and not {id(visit) for visit in invalid} & {id(visit) for visit in turns.counted("a")}
    warning = turns.warning()
    assert warning is not None and why in warning and remedy in warning and "\n" not in warning


def test_a_gpu_that_is_throttled_in_every_visit_gives_no_result() -> None:
    throttled = QUIET.model_copy(update={"event_reasons": 0x20, "foreign": (), "sm_clock_hz": 9e8})
    turns = Machine().visit([throttled] * 99, on_cpu=False)
    assert results(turns, "a") == [] and len(turns.visits["a"]) == TRIES * 3
    assert str(turns.visits["a"][-1].verdict.reason).startswith("the driver slows the clock for heat in 100 %")
    warning = turns.warning()
    assert warning is not None and "check the cooling, and let the device cool down and run again" in warning


def test_a_visit_is_called_busy_where_a_pass_is() -> None:
    assert BUSY_SHARE == MOST_OTHER_WORK
    share = BUSY_SHARE * 2
    for other_cores, is_sound in ((share - 0.01, True), (share + 0.01, False)):
        turns = Machine().visit([QUIET.model_copy(update={"other_cores": other_cores})], names="a", visits=1)
        assert turns.visits["a"][0].is_sound is is_sound


def test_on_a_machine_that_is_far_too_slow_the_time_still_ends_and_what_was_visited_counts() -> None:
    clock = [0.0]

    def take(name: str, watched: Watched) -> str:
        clock[0] += 100.0
        return name

    turns = take_turns(
        ["a", "b", "c", "d"], take, visits=3, seconds=50, longest_s=250, on_cpu=False, watch=Plays(),
        now=lambda: clock[0],
    )  # fmt: skip
    assert clock[0] == 300, "the visit that is under way ends"
    assert [len(turns.counted(name)) for name in "abcd"] == [1, 1, 1, 0]
    assert str(turns.failed["d"]) == "not reached within 250 s" and len(turns.failed) == 1
