'use strict';
// Tables sort, filter, fold and hide columns; plots are drawn once they come into view; a row or a mark opens its
// details. What the reader chose stands in the address, so that a copied link shows the same:
// "#metric=predicted&t2.sort=3-&t2.find=mlp&pick=pass-0/lm_head matmul".

const FIRST_ROWS = 100;     // rows of a table that are laid out at first: more make sorting slow
const MANY_POINTS = 2000;   // points from which WebGL draws faster than SVG
const FEW_TICKS = 6;        // named ticks of an axis of a narrow plot
const NARROW = 560;         // pixels of a plot below which long labels would leave it no room
const DARK = {              // colour of the light plots -> its counterpart on a dark page
  '#1f2733': '#dfe5ee', '#5b6675': '#9aa7b8', '#ffffff': '#1b212b', '#ffffffd8': '#1b212bd8', '#e6e9ef': '#2b3442',
  '#b8c0cc': '#55627a', '#33415c': '#b3c1de', '#c9d3e3': '#40506c', '#000000': '#e8edf5', '#393b79': '#9a9de6',
  '#9aa5b8': '#7e8ca5', '#1f77b4': '#5aa9e6', '#d62728': '#ff6b6b', '#2a7f62': '#4fb892', '#7f7f7f': '#a9a9a9',
  '#8c564b': '#c08a7e', '#d00000': '#ff7070', '#9467bd': '#b595d8',
};
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

const state = new URLSearchParams();
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const parsed = (text) => JSON.parse(text, (_, value) => typeof value === 'string' ? value.replace(CONTROL, '\ufffd') : value);
const brief = (text, most) => text.length <= most ? text : `${text.slice(0, most * 2 / 3)}…${text.slice(-most / 3)}`;

function keep(key, value) {
  if (value) state.set(key, value); else state.delete(key);
  history.replaceState(null, '', `#${state}`);
}

class Rows {
  constructor(box) {
    this.name = box.dataset.name;
    this.table = box.querySelector('table');
    this.body = this.table.tBodies[0];
    this.limit = FIRST_ROWS;
    this.rows = [...this.body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
    this.groups = all('template', box).flatMap((inside) => all('tr[data-rows]', inside.content)).map((row, i) => (
      { row, i, members: new Set(row.dataset.rows.split(' ').map((place) => this.rows[place])) }));
    this.heads = [...this.table.tHead.rows[0].cells];
    this.heads.forEach((th, column) => {
      const button = make('button', { type: 'button', title: 'Sort by this column' }, ...th.childNodes);
      button.onclick = () => {
        const now = state.get(`${this.name}.sort`), up = `${column}`, down = `${column}-`;
        const first = th.classList.contains('words') ? up : down;
        this.set('sort', now === first ? (first === up ? down : up) : first);
      };
      th.replaceChildren(button);
    });
    this.style = make('style', {});
    this.more = make('button', { type: 'button', hidden: true });
    this.more.onclick = () => { this.limit = Infinity; this.show(); };
    box.append(this.style, this.more);
    if (box.dataset.tools !== undefined) box.prepend(this.tools());
    this.groups.forEach((group) => {
      group.row.querySelector('.pick').onclick = () => {
        const open = this.opened();
        if (!open.delete(`${group.i}`)) open.add(`${group.i}`);
        this.set('open', [...open].join('.'));
      };
    });
  }

  opened() { return new Set((state.get(`${this.name}.open`) ?? '').split('.').filter(Boolean)); }

  set(what, value) { keep(`${this.name}.${what}`, value); this.show(); }

  pale(left) {  // marks of the section's plots whose rows the filter leaves out
    const out = left && this.rows.flatMap(({ row }) => left.has(row) ? [] : [row.dataset.key]);
    if (`${out}` === `${this.out}`) return;
    this.out = out;
    const section = this.table.closest('section');
    if (section) { section.out = out && new Set(out); all('.plot.drawn', section).filter(hasRows).forEach(redraw); }
  }

  tools() {
    const label = 'Filter the rows of the table; points and bars of its rows that are left out turn pale';
    this.find = make('input', { type: 'search', placeholder: 'filter rows', title: label, ariaLabel: label });
    this.find.oninput = () => this.set('find', this.find.value);
    this.count = make('output', {});
    this.boxes = this.heads.map((th, column) => {
      const box = make('input', { type: 'checkbox' });
      box.onchange = () => this.set('hide', this.boxes.flatMap((one, i) => one.checked ? [] : [i]).join('.'));
      return box;
    });
    const columns = make('div', {}, ...this.heads.map((th, i) => make('label', {}, this.boxes[i], ` ${th.textContent}`)));
    const tools = make('div', { className: 'tools' }, this.find,
      make('details', {}, make('summary', {}, 'columns'), columns));
    if (this.groups.length) {
      this.fold = make('input', { type: 'checkbox' });
      this.fold.onchange = () => this.set('fold', this.fold.checked ? '1' : '');
      tools.append(make('label', {}, this.fold, ' fold by layer'));
    }
    tools.append(this.count);
    return tools;
  }

  show() {
    const get = (what) => state.get(`${this.name}.${what}`) ?? '';
    const words = get('find').toLowerCase(), fold = get('fold') === '1' && this.groups.length > 0, open = this.opened();
    const hidden = get('hide').split('.').filter(Boolean).map(Number), sort = get('sort');
    const column = parseInt(sort, 10), sign = sort.endsWith('-') ? -1 : 1;
    const number = (one) => one.row.cells[column]?.dataset.v;
    const isText = this.heads[column]?.classList.contains('words');
    const value = (one) => {
      const own = number(one);
      if (own === undefined) return isText ? one.row.cells[column].textContent : -Infinity;
      return isNaN(own) ? own : Number(own);
    };
    const sorted = (rows) => {
      if (!(column >= 0 && column < this.heads.length)) return rows;
      const keyed = rows.map((one) => [value(one), one]);
      return keyed.sort(([a], [b]) => sign * (a < b ? -1 : a > b ? 1 : 0)).map(([, one]) => one);
    };
    const found = sorted(this.rows.filter((one) => one.text.includes(words)));
    const shown = fold ? sorted(this.groups).flatMap((group) => {
      const members = found.filter((one) => group.members.has(one));
      const isOpen = open.has(`${group.i}`) || words !== '';
      group.row.setAttribute('aria-expanded', isOpen);
      return members.length ? [group, ...(isOpen ? members : [])] : [];
    }) : found;
    found.forEach((one) => one.row.classList.toggle('member', fold));
    this.pale(words && new Set(found.map((one) => one.row)));
    this.body.replaceChildren(...shown.slice(0, this.limit).map((one) => one.row));
    this.more.hidden = shown.length <= this.limit;
    this.more.textContent = `show all ${shown.length} rows`;
    this.heads.forEach((th, i) => {
      if (i === column) th.ariaSort = sign < 0 ? 'descending' : 'ascending'; else th.removeAttribute('aria-sort');
    });
    const rule = (i) => `[data-name=${this.name}] tr > :nth-child(${i + 1}) { display: none; }`;
    this.style.textContent = hidden.map(rule).join('\n');
    if (!this.count) return;
    this.count.textContent = `${found.length} of ${this.rows.length} rows`;
    if (this.find.value !== get('find')) this.find.value = get('find');
    this.boxes.forEach((box, i) => { box.checked = !hidden.includes(i); });
    if (this.fold) this.fold.checked = fold;
  }
}

// ---- details -----------------------------------------------------------------------------------------------------

const details = new Map();  // "SECTION/KEY" -> the detail and its row
const panel = document.getElementById('detail');
let opener = null;

function learn() {
  for (const box of all('.table')) {
    const source = box.querySelector('script[data-details]');
    if (!source) continue;
    const rows = all('tbody tr[data-key]', box), scope = box.closest('[id]')?.id ?? '';
    parsed(source.textContent).forEach(([key, title, facts, bars, names, command], i) => {
      const address = `${scope}/${key}`;
      details.set(address, { title, facts, bars, names, command, row: rows[i] });
      rows[i].querySelector('.pick').onclick = () => pick(address);
    });
  }
  for (const node of all('svg [data-key]')) {
    const address = addressOf(node, node.dataset.key);
    if (!address) continue;
    node.setAttribute('tabindex', '0');
    node.setAttribute('role', 'button');
    node.style.cursor = 'pointer';
    node.onclick = () => pick(address);
    node.onkeydown = (event) => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pick(address); } };
  }
}

function addressOf(element, key) {
  for (let at = element.closest('[id]'); at; at = at.parentElement?.closest('[id]')) {
    if (details.has(`${at.id}/${key}`)) return `${at.id}/${key}`;
  }
  return [...details.keys()].find((address) => address.endsWith(`/${key}`));  // of a table in another section
}

function pick(address) {
  opener = document.activeElement;
  keep('pick', address);
  open();
  panel.querySelector('button')?.focus();
}

function shut() {
  keep('pick', '');
  open();
  opener?.focus?.();
}

function open() {
  const address = state.get('pick'), of = details.get(address);
  for (const { row } of details.values()) row.removeAttribute('aria-selected');
  panel.hidden = !of;
  if (!of) return;
  of.row.setAttribute('aria-selected', 'true');
  const close = make('button', { className: 'close', type: 'button' }, 'Close');
  close.onclick = shut;
  panel.replaceChildren(close, make('h3', { title: of.title }, brief(of.title, 120)));
  if (of.facts.length) {
    panel.append(make('dl', {}, ...of.facts.flatMap(([name, words]) => [make('dt', {}, name), make('dd', {}, brief(words, 1500))])));
  }
  if (of.bars.length) panel.append(make('h4', {}, 'Where its time goes'), fall(of.bars));
  if (of.names.length) {
    const items = of.names.map((name) => make('li', { title: name }, make('code', {}, brief(name, 240))));
    panel.append(make('h4', {}, 'Its operations and kernels'), make('ol', {}, ...items));
  }
  if (of.command) {
    const copy = make('button', { type: 'button' }, 'Copy');
    copy.onclick = async () => {
      await navigator.clipboard?.writeText(of.command);
      copy.textContent = 'Copied';
    };
    panel.append(make('h4', {}, 'Measure it again'), make('pre', {}, of.command), copy);
  }
}

function fall(bars) {
  let end = 0;
  const spans = bars.map(([, length]) => [end, end += length].sort((a, b) => a - b));
  const low = Math.min(0, ...spans.map(([start]) => start)), high = Math.max(...spans.map(([, stop]) => stop));
  const share = (length) => `${100 * length / (high - low || 1)}%`;
  return make('div', { className: 'fall' }, ...bars.flatMap(([name, length, text], i) => {
    const bar = make('b', { className: length < 0 ? 'down' : '' });
    Object.assign(bar.style, { left: share(spans[i][0] - low), width: share(spans[i][1] - spans[i][0]) });
    return [make('span', {}, name), make('i', {}, bar), make('span', {}, text)];
  }));
}

// ---- plots -------------------------------------------------------------------------------------------------------

const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
const hasGl = (() => { try { return !!document.createElement('canvas').getContext('webgl'); } catch { return false; } })();

function figureOf(box) {
  const theme = isDark() ? 'dark' : 'light', size = box.clientWidth < NARROW ? 'narrow' : 'wide';
  if (box.figure?.theme === theme && box.figure.size === size) return box.figure;
  const text = box.nextElementSibling.textContent;
  const figure = parsed(theme === 'dark' ? text.replace(/"(#[0-9a-f]{6,8})"/gi, (whole, hex) => `"${DARK[hex.toLowerCase()] ?? hex}"`) : text);
  const points = figure.data.reduce((sum, trace) => sum + (trace.customdata?.length ?? 0), 0);
  for (const trace of figure.data) {
    if (hasGl && points > MANY_POINTS && trace.type === 'scatter') trace.type = 'scattergl';
  }
  if (size === 'narrow') narrow(figure);
  return box.figure = { ...figure, theme, size, metrics: [...new Set(figure.data.map((trace) => trace.meta?.metric).filter(Boolean))] };
}

const hasRows = (box) => box.figure?.data.some((trace) => trace.ids);

function narrow({ data, layout }) {
  const margin = { ...layout.template?.layout?.margin, ...layout.margin };
  layout.margin = { ...margin, l: Math.min(margin.l ?? 50, 50), r: Math.min(margin.r ?? 12, 12) };
  const isRight = (note) => note.xref === 'paper' && note.x > 1;
  if (layout.annotations?.some(isRight)) {  // a roofline: its roofs are named inside, without their rates
    for (const note of layout.annotations) {
      if (isRight(note)) Object.assign(note, { x: 1, xanchor: 'right', yanchor: 'bottom', bgcolor: 'transparent' });
      note.text = note.text.replace(/ [\d.,]+ [^\s<]+/g, '');
    }
    const [low, high] = layout.xaxis.range;
    layout.xaxis.range = [low, high + (high - low) / 5];
  }
  for (const axis of Object.keys(layout).filter((one) => /^xaxis/.test(one)).map((one) => layout[one])) {
    const every = Math.ceil((axis.tickvals?.length ?? 0) / FEW_TICKS);
    if (every > 1) for (const of of ['tickvals', 'ticktext']) axis[of] = axis[of]?.filter((_, i) => i % every === 0);
  }
  for (const name of Object.keys(layout).filter((one) => /^[xy]axis/.test(one) && layout[one].title)) {
    layout[name].title.font = { ...layout[name].title.font, size: 11 };
  }
  const axes = Object.keys(layout).filter((name) => /^xaxis/.test(name));
  if (axes.length > 1 && (layout.legend?.y ?? 0) < 0) {  // several plots in a row: their labels stand upright
    axes.forEach((name) => { layout[name] = { ...layout[name], tickangle: -90, tickfont: { size: 10 } }; });
    Object.keys(layout).filter((name) => /^yaxis\d/.test(name)).forEach((name) => { layout[name].showticklabels = false; });
    layout.legend = { ...layout.legend, y: -0.3 };
    layout.margin.b = 130;
    for (const trace of data) if (trace.marker?.symbol === 'line-ew') trace.marker.size = 18;
  }
  for (const trace of data) {  // beside a bar there is room for its time alone
    if (trace.type === 'bar' && trace.orientation === 'h') trace.text = trace.text?.map((words) => words.split('  (')[0]);
  }
  const names = [...new Set(data.flatMap((trace) => typeof trace.y?.[0] === 'string' ? trace.y : []))];
  if (names.some((name) => name.length > 18)) {
    const short = names.map((name) => name.length > 24 ? `…${name.slice(-23)}` : name);
    layout.yaxis = { ...layout.yaxis, tickvals: names, ticktext: short, tickfont: { ...layout.yaxis?.tickfont, size: 10 } };
  }
}

function redraw(box) {
  const { data, layout, metrics } = figureOf(box);
  const metric = metrics.includes(state.get('metric')) ? state.get('metric') : metrics[0];
  for (const trace of data) if (trace.meta?.metric) trace.visible = trace.meta.metric === metric;
  const out = box.closest('section')?.out;
  for (const trace of data) if (trace.ids) trace.selectedpoints = out ? [...trace.ids.keys()].filter((i) => !out.has(trace.ids[i])) : null;
  if (metrics.length > 1 && !box.chooser) {
    box.chooser = make('select', {}, ...metrics.map((name) => make('option', { value: name }, name)));
    box.chooser.onchange = () => { keep('metric', box.chooser.value); all('.plot.drawn').forEach(redraw); };
    box.before(make('label', { className: 'tools' }, 'metric', box.chooser));
  }
  if (box.chooser) box.chooser.value = metric;
  const drawn = Plotly.react(box, data, layout, { displaylogo: false, responsive: true, displayModeBar: false });
  if (box.classList.contains('drawn')) return drawn;
  box.classList.add('drawn');
  box.on('plotly_click', ({ points: [point] }) => {
    const place = [point.pointNumber].flat()[0], key = point.data.ids?.[place] ?? point.data.meta?.keys?.[place];
    const address = key && addressOf(box, key);
    if (address) pick(address);
  });
  return drawn;
}

// ---- the page ----------------------------------------------------------------------------------------------------

const tables = [];

function restore() {
  const given = new URLSearchParams(location.hash.slice(1));
  [...state.keys()].forEach((key) => state.delete(key));
  for (const [key, value] of given) {  // "#pass-0" is a plain link to a section
    if (value === '' && document.getElementById(key)) state.set('at', key); else state.set(key, value);
  }
  tables.forEach((table) => table.show());
  all('.plot.drawn').forEach(redraw);
  open();
  const at = document.getElementById(state.get('at'));
  if (at?.tagName === 'DETAILS') at.open = true;
  at?.scrollIntoView();
}

function themed() {
  const button = document.getElementById('theme'), root = document.documentElement;
  try { if (localStorage.roofcalTheme) root.dataset.theme = localStorage.roofcalTheme; } catch { /* no storage here */ }
  const name = () => { button.textContent = isDark() ? 'Light' : 'Dark'; button.ariaLabel = `${button.textContent} colours`; };
  const change = () => { name(); all('.plot.drawn').forEach(redraw); };
  button.hidden = false;
  button.onclick = () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    try { localStorage.roofcalTheme = root.dataset.theme; } catch { /* it lasts as long as the page */ }
    change();
  };
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', change);
  name();
}

themed();
learn();
tables.push(...all('.table').map((box) => new Rows(box)));
restore();
addEventListener('hashchange', restore);
addEventListener('keydown', (event) => { if (event.key === 'Escape' && !panel.hidden) shut(); });
addEventListener('beforeprint', () => all('.plot:not(.drawn)').forEach(redraw));
document.addEventListener('click', (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  keep('at', link.hash.slice(1));
  restore();
});
const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
  seen.unobserve(target);
  redraw(target);
}), { rootMargin: '400px' });
all('.plot').forEach((box) => seen.observe(box));
