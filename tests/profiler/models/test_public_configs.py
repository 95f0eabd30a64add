"""Configurations of the kinds that public checkpoints have: all are read, and some are traced at full width. The page
docs/configs.md has what came of all of them (`scripts/public_configs.py`)."""

from pathlib import Path

import pytest

from profiler.models.quantisation import read_bits
from profiler.models.resolve import resolve
from profiler.record.run import RequestError
from scripts import public_configs
from scripts.public_configs import MODELS, Public, is_right, outcome, table

SAMPLE = ("qwen3.5-27b", "kimi-vl, unknown wrapper", "gpt-oss-120b", "codestral-mamba, bare infinity", "pythia-12b",
          "llama-3.1-8b hf_quant_config.json", "t5, decoder")  # fmt: skip


def said(public: Public, folder: Path) -> str:
    public.write(folder)
    try:
        model = resolve(str(folder), with_encoder=True)
        if model.quantisation is not None:
            read_bits(public.name, model.quantisation)
    except RequestError as error:
        return str(error)
    return ""


def test_nearly_all_are_read_and_the_others_are_refused_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    assert len({public.name for public in MODELS}) == len(MODELS) >= 94
    refused = {public.name: said(public, tmp_path / str(i)) for i, public in enumerate(MODELS)}
    assert not {name: line for name, line in refused.items() if "\n" in line}
    for public in MODELS:
        assert public.refused in refused[public.name] and bool(public.refused) == bool(refused[public.name]), (
            public.name, refused[public.name])  # fmt: skip
    assert sum(not line for line in refused.values()) >= 85 / 94 * len(MODELS)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_priced_at_full_width(name: str, tmp_path: Path) -> None:
    (public,) = (one for one in MODELS if one.name == name)
    found = outcome(public, tmp_path)
    assert is_right(public, found), found
    assert found.endswith(" layers")


def test_the_page_counts_what_is_priced_and_the_script_fails_where_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (Public("good", "gpt2"), Public("none", edits={"model_type": "step9"}, refused="update transformers"))
    monkeypatch.setattr(public_configs, "MODELS", rows)
    assert public_configs.main(["--out", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "Of 2 configurations" in page and "1 are priced" in page and str(tmp_path) not in page
    monkeypatch.setattr(public_configs, "MODELS", (*rows, Public("bad", "bert")))
    assert public_configs.main([]) == 1 and "bad: refused: " in capsys.readouterr().err
    assert "| none | step9 | refused: " in "\n".join(table([(rows[1], "refused: x")]))
