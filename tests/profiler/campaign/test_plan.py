"""Plans: the ones that are shipped name what there is, and one that cannot be is refused in one line."""

from pathlib import Path

import pytest
from campaigns import plan, suite
from each import each

from calibrate.exchange import formats
from profiler.campaign.plan import EXPORTS, PLANS, SUITES, assigned, read_plan
from profiler.record.run import RequestError


def test_the_headline_comes_first_and_names_are_unique() -> None:
    parts = [part.name for part in read_plan("gpu")[1].measured()]
    assert parts[:3] == ["doctor", "hardware", "llama-3.1-8b-decode-cuda-graph"]
    assert len(set(parts)) == len(parts) and {"transfers", "hardware-in-full", "kernels", "held-out"} <= set(parts)


def test_ten_minutes_hold_the_device_and_the_first_model() -> None:
    first = read_plan("gpu")[1].measured()[:4]
    assert sum(part.estimate_s for part in first[:3]) < 10 * 60 - 15 and "8b-decode-cuda" in first[2].name


def test_every_model_is_in_the_catalogue_and_no_length_is_beyond_it() -> None:
    from profiler.models.build import context_limit
    from profiler.models.catalogue import config_of

    for name in ("gpu", "cpu"):
        _, found = read_plan(name)
        for model in found.models:
            limit = context_limit(config_of(model.name))
            longest = model.longest or 16384
            assert limit is None or longest < limit, model.name


@each("name", [path.stem for path in PLANS.glob("*.yaml")])
def test_every_command_is_one_that_the_cli_has(name: str) -> None:
    import typer

    from profiler.cli.app import build
    from profiler.microbench import suite as microbench

    group = typer.main.get_command(build())
    for part in read_plan(name)[1].measured():
        command = group.commands[part.arguments[0]]  # type: ignore[attr-defined]
        kept = ["--out", "x", "--name", part.name] if part.keeps_run else []
        if "--only" in part.arguments:
            only = part.arguments[part.arguments.index("--only") + 1].split(",")
            assert set(only) <= {found.name for found in microbench.parts("cuda")}
        command.make_context(part.arguments[0], [*part.arguments[1:], *kept, "--json"])


def test_the_suites_of_the_table_are_commands_of_the_cli() -> None:
    import typer

    from profiler.cli.app import build

    group = typer.main.get_command(build())
    for part in (part for parts in SUITES.values() for part in parts):
        group.commands[part.arguments[0]].make_context(part.arguments[0], list(part.arguments[1:]))  # type: ignore[attr-defined]


def test_the_spec_is_exported_to_formats_that_there_are() -> None:
    known = {form.name: form.folder for form in formats.EXPORTS}
    assert {form: not suffix for form, suffix in EXPORTS.items()} == {
        name: folder for name, folder in known.items() if name != "vidur"
    }


def test_lengths_are_cut_at_the_model_s_longest_and_options_reach_the_command() -> None:
    asked = plan(
        {"phase": "decode", "context": [64, 512, 1024], "batch": [1, 4], "cache": "static", "mode": "cuda-graph",
         "options": "--attn eager"},
        {"phase": "prefill", "prompt": 32, "models": "m"},
        models=[{"name": "m", "longest": 100}, {"name": "x/n", "layers": 2}],
    )  # fmt: skip
    parts = {part.name: part for part in asked.measured()}
    assert list(parts) == ["m-decode-cuda-graph-static", "n-decode-cuda-graph-static", "m-prefill-eager"]
    words = parts["m-decode-cuda-graph-static"].arguments
    assert words[words.index("--context") + 1] == "64,100" and words[words.index("--batch") + 1] == "1,4"
    assert words[-5:] == ("--cache", "static", "--cuda-graph", "--attn", "eager")
    assert parts["n-decode-cuda-graph-static"].arguments[-7:-5] == ("--layers", "2")
    four, six = (parts[f"{name}-decode-cuda-graph-static"].estimate_s for name in ("m", "n"))
    assert six - four == 2 * (six - 40) / 6, "two cells fewer of six"


def test_equal_names_get_numbers() -> None:
    passes = {"phase": "decode"}
    names = [part.name for part in plan(passes, passes, "doctor", "doctor", models=["m"]).measured()]
    assert names == ["m-decode-eager", "m-decode-eager-2", "doctor", "doctor-2"]


@each("shards", [1, 2, 3, 7])
def test_every_part_has_one_shard_and_shards_have_alike_much_to_do(shards: int) -> None:
    parts = plan("doctor", *(suite(f"s{i}", 10.0 + 37 * i % 50) for i in range(40))).measured()
    owners = assigned(parts, shards)
    assert owners[0] is None and set(owners[1:]) == set(range(1, shards + 1))
    loads = [sum(p.estimate_s for p, at in zip(parts, owners, strict=True) if at == i + 1) for i in range(shards)]
    assert max(loads) - min(loads) <= max(part.estimate_s for part in parts), "Graham's bound"


def test_the_checksum_is_of_what_is_measured(tmp_path: Path) -> None:
    text = "device: cpu\nminutes: 5\nparts: [doctor]\n"
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.json").write_text('{"parts": ["doctor"], "minutes": 7, "device": "cpu"}')
    (tmp_path / "c.yaml").write_text(text.replace("cpu", "cuda"))
    a, b, c = (read_plan(str(tmp_path / name))[1].sha256 for name in ("a.yaml", "b.json", "c.yaml"))
    assert a == b != c


@each(
    ("text", "problem"),
    [
        ("parts: [doctor]", "minutes: Field required"),
        ("minutes: 0\nparts: [doctor]", "greater than 0"),
        ("minutes: 1\nparts: []", "a list of at least one"),
        ("minutes: 1\nparts: [nothing]", "no suite 'nothing'; give its command, or one of doctor, hardware"),
        ("minutes: 1\nparts: [{suite: x, command: doctor}]", "say its estimate_s too"),
        ("minutes: 1\nparts: [{phase: decode}]", "parts have a row of decode passes; list models"),
        ("minutes: 1\nmodels: [m]\nparts: [{phase: decode, models: n}]", "'n', which models does not list"),
        ("minutes: 1\nmodels: [m]\nparts: [{phase: decode, batch: [0]}]", "whole numbers from 1"),
        ("minutes: 1\nmodels: [m]\nparts: [{phase: sleep}]", "prefill"),
        ("minutes: 1\ndevice: cuda:1\nparts: [doctor]", "a shard has one GPU, by its UUID"),
        ("minutes: 1\nparts: *x", "is not valid YAML"),
        ("[1]", "holds list, not fields by name"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(RequestError) as refused:
        read_plan(str(path))
    assert problem in str(refused.value) and "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_a_plan_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RequestError, match="no plan 'gpuu'; name a YAML file, or one of cpu, gpu"):
        read_plan("gpuu")
