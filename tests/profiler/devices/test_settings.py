from profiler.devices.findings import (
    COMMON_VARIABLES,
    CPU_VARIABLES,
    CUDA_VARIABLES,
    disk_findings,
    variable_findings,
    version_findings,
)


def test_each_variable_is_one_finding_on_its_device() -> None:
    for own, others in ((CPU_VARIABLES, CUDA_VARIABLES), (CUDA_VARIABLES, CPU_VARIABLES)):
        for row in (*own, *COMMON_VARIABLES):
            (finding,) = variable_findings({row.name: "7"}, own)
            assert (finding.severity, finding.what, finding.why) == (row.severity, f"{row.name}=7 is set", row.does)
            assert row.name in finding.mend
            assert bool(variable_findings({row.name: "7"}, others)) == (row in COMMON_VARIABLES), row.name


def test_a_value_that_changes_nothing_is_no_finding() -> None:
    for row in (*CPU_VARIABLES, *CUDA_VARIABLES, *COMMON_VARIABLES):
        for value in ("", " ", *row.harmless, *(value.upper() for value in row.harmless)):
            assert variable_findings({row.name: value}, (row,)) == (), (row.name, value)


def test_no_variable_is_listed_twice() -> None:
    names = [row.name for row in (*CPU_VARIABLES, *CUDA_VARIABLES, *COMMON_VARIABLES)]
    assert len(set(names)) == len(names)


def test_the_usual_variables_are_found() -> None:
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "NVIDIA_TF32_OVERRIDE": "0", "OMP_NUM_THREADS": "4", "PATH": "/bin"}
    assert [f.what for f in variable_findings(environ, CUDA_VARIABLES)] == [
        "CUDA_LAUNCH_BLOCKING=1 is set", "NVIDIA_TF32_OVERRIDE=0 is set",
    ]  # fmt: skip
    assert variable_findings(environ, CPU_VARIABLES) == ()


def test_two_numbers_of_threads_are_found() -> None:
    environ = {"MKL_NUM_THREADS": "1"}
    assert [f.severity for f in variable_findings(environ, CPU_VARIABLES, threads=2)] == ["warns"]
    assert variable_findings(environ, CPU_VARIABLES, threads=1) == variable_findings(environ, CUDA_VARIABLES) == ()


def test_a_full_disk_is_a_finding() -> None:
    assert disk_findings(10 << 30, "results") == ()
    (finding,) = disk_findings(5 << 20, "results")
    assert finding.what == "5 MiB are free for results under results"


def test_older_versions_than_supported_are_found() -> None:
    requirements = ["torch>=2.11", "numpy>=1.26", "scipy>=1.13", "pytest>=8; extra == 'test'"]
    found = version_findings(requirements, {"torch": "2.10.1+cpu", "numpy": "2.4.6", "scipy": None})
    assert [f.what for f in found] == [
        "torch 2.10.1+cpu; roofcal needs >=2.11",
        "scipy is missing; roofcal needs >=1.13",
    ]
    assert version_findings(["torch>=2.11"], {"torch": "2.13.0+cpu"}) == ()
    assert version_findings(["torch>=2.11"], {"torch": "2.14.0.dev20260101"}) == ()
    assert [f.severity for f in version_findings([], {})] == ["note"]
