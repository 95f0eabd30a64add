"""Any document in each of the three views: columns that go, names that are cut, words that are escaped."""

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_views import as_markdown, as_page, every_view, on_terminal

from calibrate.report.document import (
    FILES,
    PAGE,
    TERMINAL,
    Cell,
    Column,
    Document,
    Facts,
    Figure,
    Lines,
    Section,
    Table,
    Text,
    brief,
    figure,
    table,
)
from calibrate.report.terminal import NARROWEST
from roofline.units import shortened

HOSTILE = "<script>alert(1)</script>|[red]x[/]\x1b[31m\n`*"
ROWS = [(f"model.layers.*.mlp.{name}_proj", seconds) for name, seconds in (("up", 1e-3), ("down", 25e-6))]
COLUMNS: tuple[Column[tuple[str, float | None]], ...] = (
    Column("layer", lambda row: row[0], code=True),
    Column("time", lambda row: figure(row[1])),
    Column("first to go", lambda row: "0", drop=2),
    Column("next to go", lambda row: "1", drop=1),
    Column("nothing to say", lambda row: "–", optional=True),
)


def section_of_a_product() -> Section:
    """What a new product would write: it needs no renderer to be touched."""
    return Section(
        "Thermals",
        (
            Text("the device throttled", "warning"),
            Facts((("limit", "83 °C"),)),
            Lines(("fan at 90 %", "power at the cap")),
            table(COLUMNS, ROWS, ("total", 2e-3)),
            Section("Over time", (Figure("thermals", lambda: go.Figure(go.Scatter(x=[0, 1], y=[40, 83])), "A note."),)),
        ),
        name="heat",
    )


def test_a_new_section_is_shown_in_every_view() -> None:
    document = Document("llama on h200", (Text("4.65 ms wall", "strong"), section_of_a_product()))
    for view, text in every_view(document).items():
        for words in ("llama on h200", "4.65 ms wall", "Thermals", "the device throttled", "limit", "83 °C",
                      "power at the cap", "model.layers.*.mlp.up_proj", "25.0 µs", "total", "2.00 ms"):  # fmt: skip
            assert words in text, (view, words)
        assert "nothing to say" not in text, view
    page = as_page(document)
    assert {"heat", "thermals"} <= set(page.ids)
    assert page.plots == 1 and "A note." in page.words
    assert "Over time" not in on_terminal(document), "a section without a part is left out"


def test_columns_go_by_their_number_and_names_keep_room() -> None:
    def header(width: int) -> list[str]:
        text = on_terminal(Document("t", (table(COLUMNS, ROWS),)), width)
        return next(line for line in text.splitlines() if line.startswith("layer")).split("  ")

    shown = {width: [word for word in header(width) if word] for width in (80, 50, 36)}
    assert [word.strip() for word in shown[80]] == ["layer", "time", "first to go", "next to go"]
    assert [word.strip() for word in shown[50]] == ["layer", "time", "next to go"]
    assert [word.strip() for word in shown[36]] == ["layer", "time"]
    text = on_terminal(Document("t", (table(COLUMNS, ROWS),)), 36)
    assert "mlp.down_proj" in text and all(len(line.split("  ")[0]) >= NARROWEST - 8 for line in text.splitlines()[4:])


def test_bars_fill_the_room_that_is_left_or_go() -> None:
    spans = ((0.0, 0.5), (0.5, 1.0), (1.0, 0.75), (0.0, 0.0))
    columns = (
        Column("term", lambda span: "a" * 20, words=True),
        Column("", lambda span: Cell("", span=span), bar=True),
    )
    text = on_terminal(Document("t", (table(columns, spans),)), 40)
    bars = [line[22:] for line in text.splitlines() if line.startswith("aaa")]
    assert bars == ["█" * 9, " " * 9 + "█" * 9, " " * 14 + "░" * 4, ""]
    assert "█" not in on_terminal(Document("t", (table(columns, spans),)), 28)
    assert "| term |" in as_markdown(Document("t", (table(columns, spans),)))


def test_what_is_bad_is_marked_in_every_view() -> None:
    cell = Column("holds", lambda ok: Cell("yes" if ok else "NO", bad=not ok), words=True)
    document = Document("t", (table((cell,), (True, False)), Text("it broke", "bad")))
    assert "| **NO** |" in as_markdown(document) and "> **it broke**" in as_markdown(document)
    page = as_page(document)
    assert 'class="words bad">NO' in page.text and '<p class="bad">it broke' in page.text


def test_a_terminal_has_fewer_rows_and_shorter_lists_than_files() -> None:
    rows = [(f"layer {i}", float(i)) for i in range(9)]
    tables = brief(COLUMNS, rows[:2], rows)
    document = Document("t", (*tables, Lines([f"p{i}" for i in range(9)], "parameters"), Text("here", views=TERMINAL)))
    shown, written = on_terminal(document), as_markdown(document)
    assert "layer 8" not in shown and "layer 8" in written
    assert "parameters: p0, p1, p2 and 6 more" in shown and "p8" in written
    assert "here" in shown and "here" not in written
    assert len(brief(COLUMNS, rows, rows)) == 1


def test_hostile_names_are_text_everywhere() -> None:
    document = Document(
        HOSTILE, (Text(HOSTILE, "warning"), Facts(((HOSTILE, HOSTILE),)), Lines((HOSTILE,), HOSTILE),
                  Section(HOSTILE, (table(COLUMNS, [(HOSTILE, None)]),))),
    )  # fmt: skip
    for width in (20, 120):
        assert "[red]" in on_terminal(document, width)
    assert "\\<script\\>" in as_markdown(document) and "\x1b" not in as_markdown(document)
    page = as_page(document)
    assert page.tags.count("script") == 2 and "<script>alert(1)</script>|[red]x[/]" in "".join(page.words)
    assert "\x1b" not in page.text


def test_a_figure_that_has_nothing_to_draw_is_left_out_with_its_section() -> None:
    page = as_page(Document("t", (Section("Empty", (Figure("f", lambda: None),)), Text("words"))))
    assert "Empty" not in page.words and "plotly.js v" not in page.text
    svg = as_page(Document("t", (Section("Drawn", (Figure("f", lambda: "<svg></svg>"),)),)))
    assert "svg" in svg.tags and "Drawn" in svg.words


def test_links_lead_to_sections_and_figures_sort_by_value() -> None:
    column = Column("pass", lambda row: Cell("p", value=1e-6, target="pass-0", hover="why", fill=0.25), words=True)
    page = as_page(Document("t", (table((column,), [0]), Section("P", (Text("x"),), name="pass-0"))))
    assert 'data-v="1e-06" title="why" style="--fill:25.0%"><a href="#pass-0">p</a>' in page.text
    assert {"markdown"} == FILES - PAGE


def test_a_row_without_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells, the table has 2 columns"):
        Table(COLUMNS[:2], [[Cell("a")]])


PATHS = st.lists(
    st.lists(
        st.sampled_from(["model", "layers", "*", "self_attn", "mlp", "q_proj", "k_proj", "experts"]),
        min_size=1,
        max_size=6,
    ).map(".".join),
    min_size=1,
    max_size=8,
)


@given(PATHS, st.integers(min_value=1, max_value=40))
def test_shortened_paths_fit(paths: list[str], width: int) -> None:
    short = shortened(paths, width)
    assert len(short) == len(paths)
    assert all(len(text) <= width for text in short)
    assert all(text == path for text, path in zip(short, paths, strict=True) if len(path) <= width)


def test_shortened_paths_lose_their_middle_and_stay_apart() -> None:
    assert shortened(["model.layers.*.self_attn.q_proj"], 23) == ["model…self_attn.q_proj"]
    paths = [f"model.{side}_stack.layers.*.attn.{name}_proj" for side in ("encoder", "decoder") for name in "qk"]
    for text, path in zip(shortened(paths, 24), paths, strict=True):
        start, end = text.split("…")
        assert [other for other in paths if other.startswith(start) and other.endswith(end)] == [path]
