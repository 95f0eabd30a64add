// Puts drawings into their places, names dropdowns by their labels, and sorts a table by a click on a header.
new MutationObserver(function () {
  document.querySelectorAll('[data-svg]').forEach(function (place) {
    place.innerHTML = place.dataset.svg;
    delete place.dataset.svg;
  });
  document.querySelectorAll('.field label').forEach(function (label) {
    var names = document.getElementById(label.htmlFor)?.getAttribute('aria-labelledby');
    if (names && !names.includes(label.id)) {
      document.getElementById(label.htmlFor).setAttribute('aria-labelledby', label.id + ' ' + names);
    }
  });
}).observe(document, { childList: true, subtree: true });

document.addEventListener('click', function (event) {
  var th = event.target.closest('th');
  if (!th) return;
  var table = th.closest('table'), body = table.tBodies[0], column = th.cellIndex;
  var down = th.getAttribute('aria-sort') !== 'descending';
  table.querySelectorAll('th').forEach(function (other) { other.removeAttribute('aria-sort'); });
  th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  function key(row) {
    var cell = row.cells[column], value = cell.dataset.v;
    if (value === undefined) return th.className === 'words' ? cell.textContent : -Infinity;
    return isNaN(value) ? value : Number(value);
  }
  Array.from(body.rows).sort(function (a, b) {
    var x = key(a), y = key(b), order = x < y ? -1 : x > y ? 1 : 0;
    return down ? -order : order;
  }).forEach(function (row) { body.appendChild(row); });
});
