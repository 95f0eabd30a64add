"""The viewer's page: controls, one callback that answers them, files to export, and what a foreign page may not do.

The page works offline: Dash serves all of it. One callback reads either the address or the controls, whichever changed,
and writes the other, so that the address always shows what the page shows.

Example: ``application(Answers(Path("results"))).server`` is a WSGI application
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from mimetypes import guess_type
from typing import Any

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component
from flask import Response, abort, request, send_file

from calibrate.report.html import HERE, STYLE, render
from calibrate.report.json import prediction_json, write_csv
from calibrate.report.titles import workload_title
from profiler.cli.viewer import page
from profiler.cli.viewer.answers import Answers
from profiler.cli.viewer.seen import document
from profiler.cli.viewer.state import CHOICES, SIZES, Setting, View, query, read
from profiler.models.catalogue import catalogue
from roofline.hardware.load import device_names
from roofline.predict.passes import Prediction
from roofline.reading import one_line
from roofline.units import dtype as short

SIDES = ("A", "B")
HOSTS = ("127.0.0.1", "localhost")
"""Names of this machine that a request may be sent to: a page of another name that resolves to it is refused."""
FIELDS = tuple(field.name for field in fields(Setting))
LABELS = {
    "model": "Model", "hardware": "Device", "peaks": "Prices", "phase": "Phase", "batch": "Batch",
    "prompt": "Prompt, tokens", "context": "Context, tokens", "output": "Output, tokens", "dtype": "Dtype",
    "form": "Graph", "what_if": "What-ifs",
}  # fmt: skip
HINTS = {
    "model": "Type a name of the catalogue, or a folder with config.json",
    "what_if": "Choose, or type one, as quantise:weights=4",
}
WHAT_IFS = (
    "quantise:preset=awq", "quantise:preset=fp8_block", "quantise:weights=8", "quantise:weights=4", "quantise:kv=8",
    "quantise:weights=8,activations=8", "tensor_parallel:degree=2", "tensor_parallel:degree=4",
    "tensor_parallel:degree=8", "expert_parallel:degree=8", "sparsify_2_4", "unfuse_attention",
)  # fmt: skip
"""What-ifs to choose from; any other can be typed."""
EXPORTS = {"report.html": "Report (HTML)", "prediction.csv": "CSV", "prediction.json": "JSON"}
"""Name of each file that can be exported, and its link."""
POLICY = (
    "default-src 'self'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Content that the page may load and run: its own files and the inline scripts of Dash; plotly writes inline styles."""


def application(answers: Answers) -> Dash:
    """The whole application."""
    app = Dash("roofcal", assets_folder=str(page.ASSETS), title="roofcal", update_title="roofcal …", enable_mcp=False,
               external_stylesheets=[f"/{STYLE}"], serve_locally=True, suppress_callback_exceptions=True,
               add_log_handler=False)  # fmt: skip
    app.layout = lambda: _layout(answers)
    for side in SIDES:
        for name in HINTS:
            _let_type(app, side, name)
    values = [(f"{side}-{name}", "value") for side in SIDES for name in FIELDS]

    @app.callback(
        output={
            "seen": Output("seen", "children"), "search": Output("url", "search"), "second": Output("B", "hidden"),
            "compare": Output("compare", "value"), "exports": Output("exports", "children"),
            "values": [Output(*value) for value in values],
            "options": [Output(f"{side}-{name}", "options") for side in SIDES for name in HINTS],
        },
        inputs={
            "search": Input("url", "search"), "compare": Input("compare", "value"),
            "values": [Input(*value) for value in values],
        },
    )  # fmt: skip
    def update(search: str | None, compare: list[str], values: Sequence[Any]) -> dict[str, Any]:
        same: dict[str, Any] = dict.fromkeys(("search", "second", "compare", "exports"), no_update)
        same |= {"values": [no_update] * len(values), "options": [no_update] * len(SIDES) * len(HINTS)}
        try:
            from_address = ctx.triggered_id in (None, "url")
            view = read(search or "") if from_address else _chosen(values, bool(compare))
            seen = [*_elsewhere(answers, view), *page.components(document([answers.answer(each) for each in view]))]
        except ValueError as error:
            return same | {"seen": [html.P(one_line(error), className="bad", role="alert")]}
        if from_address:
            both = view[0], view[-1]
            same["values"] = [_value(setting, name) for setting in both for name in FIELDS]
            same["options"] = [
                options
                for each in both
                for options in (_suggestions("model", [each.model]), _suggestions("what_if", each.what_if))
            ]
        is_two = len(view) > 1
        return same | {
            "seen": seen, "search": query(view), "second": not is_two, "compare": ["on"] if is_two else [],
            "exports": _exports(answers, view),
        }  # fmt: skip

    @app.server.route(f"/{STYLE}")
    def style() -> Response:
        return send_file(HERE / STYLE)

    _guard(app)
    _export(app, answers)
    return app


def _layout(answers: Answers) -> Component:
    """The page before anything is chosen; made anew whenever it is loaded, with the runs that are there by then."""
    answers.refresh()
    devices = [{"label": title, "value": name} for name, title in answers.specs.items()]
    devices += [{"label": name, "value": name} for name in device_names()]
    options = {
        "hardware": devices,
        **{name: _suggestions(name) for name in HINTS},
        **{name: [{"label": short(word), "value": word} for word in words] for name, words in CHOICES.items()},
    }
    unread = [html.P(f"a run that cannot be read: {line}", className="warning") for line in answers.unreadable]
    switch = dcc.Checklist(id="compare", options=[{"label": "Compare two settings", "value": "on"}], value=[])
    return html.Main([
        dcc.Location(id="url", refresh=False),
        html.Div([html.Strong("roofcal"), switch, html.Nav(id="exports", **{"aria-label": "Export"})], className="bar"),
        *[_controls(side, options) for side in SIDES],
        *unread,
        dcc.Loading(html.Div(id="seen", **{"aria-live": "polite"}), delay_show=400, type="dot",
                    overlay_style={"visibility": "visible", "opacity": 0.5}),
    ])  # fmt: skip


def _controls(side: str, options: dict[str, Any]) -> Component:
    """The fields of one setting."""
    rows = []
    for name in FIELDS:
        about: dict[str, Any] = {"id": f"{side}-{name}"}
        if name in SIZES:
            field = dcc.Input(**about, type="number", min=1, step=1, debounce=True)
        else:
            field = dcc.Dropdown(options[name], **about, multi=name == "what_if", clearable=name == "what_if",
                                 searchable=True, placeholder=HINTS.get(name))  # fmt: skip
        label = html.Label(LABELS[name], htmlFor=f"{side}-{name}", id=f"{side}-{name}-label")
        rows.append(html.Div([label, field], className=f"field {name}"))
    return html.Fieldset([html.Legend(side), *rows], id=side, hidden=side != SIDES[0])


def _let_type(app: Dash, side: str, name: str) -> None:
    """Let what is typed into a list of suggestions be chosen, as a path or a what-if that is not among them."""
    place = f"{side}-{name}"

    @app.callback(
        Output(place, "options", allow_duplicate=True), Input(place, "search_value"), State(place, "value"),
        prevent_initial_call=True,
    )  # fmt: skip
    def offer(typed: str | None, value: str | list[str] | None) -> list[str]:
        chosen = value if isinstance(value, list) else [value] if value else []
        return _suggestions(name, (*chosen, *filter(None, [(typed or "").strip()])))


def _suggestions(name: str, more: Iterable[str] = ()) -> list[str]:
    """Return what a list offers: a dropdown forgets a value that is not among its options."""
    return list(dict.fromkeys([*more, *(catalogue() if name == "model" else WHAT_IFS)]))


def _value(setting: Setting, name: str) -> Any:
    """The value of a control."""
    value = getattr(setting, name)
    return int(value) if name in SIZES and value.isdecimal() else list(value) if name == "what_if" else value


def _chosen(values: Sequence[Any], is_two: bool) -> View:
    """The settings of the controls, in the order of `SIDES` and `FIELDS`; an empty one has its default."""
    view = []
    for i in range(2 if is_two else 1):
        given = dict(zip(FIELDS, values[i * len(FIELDS) : (i + 1) * len(FIELDS)], strict=True))
        texts: dict[str, Any] = {
            name: tuple(value) if name == "what_if" else str(value) for name, value in given.items() if value
        }
        view.append(Setting(**texts))
    return tuple(view)


def _elsewhere(answers: Answers, view: View) -> list[Component]:
    """Links to the other workloads at which the model was measured on the device of the first setting."""
    links = [
        html.Li(dcc.Link(workload_title(setting.workload), href=query((setting, *view[1:])), refresh=False))
        for setting in answers.answer(view[0]).elsewhere
    ]
    return [html.Details([html.Summary(f"measured at {len(links)} other workloads"), html.Ul(links)])] if links else []


def _exports(answers: Answers, view: View) -> list[Component]:
    """Links to files of what is seen, and the equal commands."""
    files = [html.A(label, href=f"/export/{name}{query(view)}", download=name) for name, label in EXPORTS.items()]
    commands = [html.Pre(setting.command(answers.results)) for setting in view]
    return [*files, html.Details([html.Summary("Command"), *commands], id="command")]


def _export(app: Dash, answers: Answers) -> None:
    """Give the files: the report of what is seen, and the numbers of the equal `predict`."""

    @app.server.route("/export/<name>")
    def export(name: str) -> Response:
        if name not in EXPORTS:
            abort(404)
        try:
            view = read(request.query_string.decode("utf-8", "replace"))
            if name == "report.html":
                text = render(document([answers.answer(setting) for setting in view]))
            else:
                text = _numbers(name, [answers.exact(setting) for setting in view])
        except ValueError as error:
            return Response(f"{one_line(error)}\n", status=400, mimetype="text/plain")
        return Response(text, mimetype=guess_type(name)[0])


def _numbers(name: str, predictions: Sequence[Prediction]) -> str:
    """What `predict` with --csv or --json writes."""
    if name.endswith(".json"):
        whole = [prediction_json(prediction) for prediction in predictions]
        return json.dumps(whole[0] if len(whole) == 1 else {"predictions": whole, "failed": {}}, indent=1) + "\n"
    file = io.StringIO(newline="")
    write_csv(predictions, file, by="op" if len(predictions) == 1 else "workload")
    return file.getvalue()


def _guard(app: Dash) -> None:
    """Refuse requests that a page of another site makes, and let this page load nothing from elsewhere."""
    policy = POLICY.format(hashes=" ".join(f"'{value.strip(chr(39))}'" for value in app.csp_hashes()))

    @app.server.before_request
    def refuse_others() -> None:
        host = request.host.rpartition(":")[0] if ":" in request.host else request.host
        if host not in HOSTS or request.headers.get("Origin", f"http://{request.host}") != f"http://{request.host}":
            abort(403, "this page is for the machine that it runs on: open it as http://127.0.0.1")

    @app.server.after_request
    def protect(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response
