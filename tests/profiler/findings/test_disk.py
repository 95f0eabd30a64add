from profiler.findings.disk import disk_findings


def test_a_full_disk_is_a_finding() -> None:
    assert disk_findings(10 << 30, "results") == ()
    (finding,) = disk_findings(5 << 20, "results")
    assert finding.what == "5 MiB free for results under results"
