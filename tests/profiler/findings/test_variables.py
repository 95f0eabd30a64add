import pytest

from profiler.findings.variables import VARIABLES, Variable, variable_findings


@pytest.mark.parametrize("row", VARIABLES, ids=lambda row: row.name)
def test_each_variable_is_one_finding_on_its_device(row: Variable) -> None:
    for device in ("cpu", "cuda"):
        found = variable_findings({row.name: "7"}, device)
        assert [f.severity for f in found] == ([row.severity] if row.device in (device, "both") else [])
        assert all(f.what.startswith(f"{row.name}=7: ") and row.name in f.mend for f in found)


@pytest.mark.parametrize("row", VARIABLES, ids=lambda row: row.name)
def test_a_value_that_changes_nothing_is_no_finding(row: Variable) -> None:
    for value in ("", " ", *row.harmless, *(value.upper() for value in row.harmless)):
        assert variable_findings({row.name: value}, "cpu") == variable_findings({row.name: value}, "cuda") == ()


def test_no_variable_is_listed_twice() -> None:
    assert len({row.name for row in VARIABLES}) == len(VARIABLES)


def test_the_usual_variables_are_found() -> None:
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "NVIDIA_TF32_OVERRIDE": "0", "OMP_NUM_THREADS": "4", "PATH": "/bin"}
    assert [f.what.partition(":")[0] for f in variable_findings(environ, "cuda")] == [
        "CUDA_LAUNCH_BLOCKING=1", "NVIDIA_TF32_OVERRIDE=0",
    ]  # fmt: skip
    assert variable_findings(environ, "cpu") == ()


def test_two_numbers_of_threads_are_found() -> None:
    environ = {"MKL_NUM_THREADS": "1"}
    assert [f.severity for f in variable_findings(environ, "cpu", threads=2)] == ["warns"]
    assert variable_findings(environ, "cpu", threads=1) == variable_findings(environ, "cuda", threads=2) == ()
