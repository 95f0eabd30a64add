"""The look and the one behaviour of the HTML report: its style sheet, and sorting a table by a click.

Both are put into the page as they are; neither names another file, so the report opens offline.
"""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: #f3f5f9; color: #1f2733;
       font: 14px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 20px 24px 60px; }
header p { margin: 0; color: #5b6675; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 20px; margin: 40px 0 4px; padding-top: 12px; border-top: 2px solid #c9d3e3; }
h3 { font-size: 14px; margin: 0 0 8px; }
.headline { font-size: 16px; margin: 4px 0 8px; }
.verdict { margin: 4px 0; padding: 8px 12px; background: #fde7e5; border-left: 4px solid #b3261e;
           font-size: 16px; font-weight: 600; }
.small { font-size: 12px; color: #5b6675; margin: 4px 0; }
.warning { margin: 4px 0; padding: 6px 10px; background: #fff4d6; border-left: 4px solid #e3b23c; }
section > ul { margin: 6px 0 0; padding-left: 18px; color: #3b4656; }
.card { background: #fff; border: 1px solid #dde3ec; border-radius: 8px; padding: 14px 16px; margin: 14px 0;
        min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
@media (max-width: 1000px) { .pair { grid-template-columns: minmax(0, 1fr); } }
.scroll { overflow-x: auto; margin-bottom: 12px; }
.tall { max-height: 780px; overflow-y: auto; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 12.5px;
        font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 8px; border-bottom: 1px solid #e9edf3; white-space: nowrap; }
td.words, th.words { text-align: left; }
td.words { white-space: normal; overflow-wrap: break-word; }
th { position: sticky; top: 0; background: #f7f9fc; font-weight: 600; cursor: pointer; user-select: none; }
tfoot td { position: sticky; bottom: 0; background: #f7f9fc; font-weight: 600; border-top: 1px solid #c9d3e3; }
tbody tr:hover td { background-color: #f3f7fd; }
td.kernels { min-width: 90px; max-width: 130px; white-space: normal; overflow-wrap: anywhere; font-size: 11px;
             color: #5b6675; }
td.bad { color: #b3261e; font-weight: 600; }
td code { overflow-wrap: anywhere; }
.tall td:first-child { min-width: 135px; }
@media (max-width: 1200px) { .tall td.repeat { white-space: normal; min-width: 56px; }
                             .tall table { font-size: 11px; } .tall th, .tall td { padding: 3px 4px; }
                             .tall td code { font-size: 11px; } .tall td.kernels { font-size: 10px; min-width: 75px; } }
code { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 0; }
dt { font-weight: 600; }
dd { margin: 0; }
@media print { .tall { max-height: none; } body { background: #fff; } }
"""

SCRIPT = """
document.querySelectorAll('th').forEach(function (th) {
  th.addEventListener('click', function () {
    var column = th.cellIndex, body = th.closest('table').tBodies[0];
    var down = th.dataset.down !== '1';
    th.dataset.down = down ? '1' : '';
    function key(row) {
      var cell = row.cells[column], value = cell.dataset.v;
      if (value === undefined) return cell.textContent;
      return value === '' ? -Infinity : Number(value);
    }
    Array.from(body.rows).sort(function (a, b) {
      var x = key(a), y = key(b), order = x < y ? -1 : x > y ? 1 : 0;
      return down ? -order : order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
"""
