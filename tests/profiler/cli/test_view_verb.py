"""`view` in a browser, as a user sees it; and how it starts, refuses and stops."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.run import Run

if TYPE_CHECKING:
    from browser import Browser


@contextmanager
def viewer(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The product in a process of its own, and the address that it says."""
    command = [sys.executable, "-m", "profiler", "view", *arguments, "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        try:
            assert run.stdout is not None and run.stderr is not None
            line = run.stdout.readline()
            address = re.search(r'http://127\.0\.0\.1:\d+/[^;"]*', line)
            assert address, line + run.stderr.read()
            yield run, address[0]
        finally:
            run.kill()


def ended(run: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    return run.returncode, out, err


@pytest.mark.starts_product
def test_a_browser_chooses_compares_shares_exports_and_leaves(llama: str, tmp_path: Path, browser: "Browser") -> None:
    from playwright.sync_api import expect

    hostile = tmp_path / '"><img src=x onerror=alert(1)>'
    shutil.copytree(llama, hostile)
    told: list[str] = []
    expect.set_options(timeout=60_000)
    with viewer(str(tmp_path)) as (run, address):
        context = browser.new_context(accept_downloads=True)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(f"a name ran as code: {dialog.message}"))
        page.on("request", lambda request: told.append(request.url) if not at_home(request.url) else None)

        page.goto(f"{address}?model={llama}&context=64")
        result, plot = page.locator("#result"), page.locator(".js-plotly-plot .main-svg").first
        expect(result).to_contain_text("decode b1 q1 ctx 64 bf16")
        expect(plot).to_be_visible()
        expect(page.locator("svg.block")).to_be_visible()

        page.get_by_label("Batch").first.fill("8")
        page.get_by_label("Batch").first.press("Enter")
        expect(result).to_contain_text("decode b8 q1 ctx 64 bf16")
        assert "batch=8" in page.url

        page.get_by_label("What-ifs").first.click()
        page.keyboard.type("quantise:kv=4")
        page.get_by_role("option", name="quantise:kv=4").click()
        page.keyboard.press("Escape")
        expect(result).to_contain_text("kv 4 bit")

        page.get_by_label("Compare two settings").check()
        page.get_by_label("Batch").nth(1).fill("2")
        page.get_by_label("Batch").nth(1).press("Enter")
        expect(result).to_contain_text("decode b2 q1 ctx 64 bf16")
        expect(page.locator("#layers")).to_be_visible()

        first = page.locator("#layers tbody td").first
        before = first.inner_text()
        page.locator("#layers th button").first.click()
        expect(page.locator("#layers th").first).to_have_attribute("aria-sort", "descending")
        assert (
            sorted(page.locator("#layers tbody td:first-child").all_inner_texts(), reverse=True)[0]
            == first.inner_text()
        )
        assert before

        shared = browser.new_page()
        shared.goto(page.url)
        expect(shared.locator("#result")).to_have_text(result.inner_text(), use_inner_text=True)
        assert shared.get_by_label("Batch").nth(1).input_value() == "2"
        shared.close()

        with page.expect_download() as download:
            page.get_by_role("link", name="JSON").click()
        document = json.loads(download.value.path().read_text())
        assert [each["workloads"][0]["batch"] for each in document["predictions"]] == [8, 2]

        page.goto(f"{address}?batch=1,2")
        expect(page.get_by_role("alert")).to_contain_text("one value at a time")
        page.goto(f"{address}?context=64&model={hostile}".replace("#", "%23"))
        expect(result).to_contain_text("<img src=x onerror=alert(1)>")
        assert page.locator("#seen img").count() == 0
        context.close()
        code, out, err = ended(run, signal.SIGTERM)
    assert told == []
    assert (code, out, err) == (0, "", "stopped\n")


def at_home(url: str) -> bool:
    return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).hostname == "127.0.0.1"


@pytest.mark.starts_product
def test_ctrl_c_stops_it(tmp_path: Path) -> None:
    with viewer(str(tmp_path), "--json") as (run, _):
        assert ended(run, signal.SIGINT) == (0, "", "stopped\n")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which `view` refuses."""
    assert main(["view", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_without_dash_a_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert "'.[view]'" in refused(capsys)


def test_no_folder_a_port_in_use_and_a_newer_run_are_refused(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", file):
        assert f"no folder at {path}" in refused(capsys, str(path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} cannot be used (Address already in use)" in refused(capsys, str(tmp_path), "--port", port)
    with RunFolder.create(tmp_path, run) as folder:
        assert "has no spec yet" in refused(capsys, str(folder.path))
        content = json.loads((folder.path / "run.json").read_text())
        (folder.path / "run.json").write_text(json.dumps(content | {"schema_version": 99}))
        assert "newer roofcal" in refused(capsys, str(folder.path))
