// The table of runs. A row is known by its run id: ticks, and the nodes themselves, stay with the run when others come
// or go. Text from outside goes into the page by textContent only. Asks /api/runs whether anything changed, and the
// page for rows only when something did; a tab out of sight asks nothing.

const SVG = 'http://www.w3.org/2000/svg';
const CURVE = { width: 104, height: 24 };

const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

function isDark(root) {
  const parts = getComputedStyle(root).getPropertyValue('--st-background-color').match(/[0-9a-f]{2}/gi) || ['ff', 'ff', 'ff'];
  return parts.slice(0, 3).reduce((sum, part) => sum + parseInt(part, 16), 0) < 384;
}

// As text.ago of the server.
function ago(then, now) {
  const passed = now - then;
  if (passed < 2) return 'just now';
  for (const [limit, size, unit] of [[100, 1, 's'], [5400, 60, 'min'], [129600, 3600, 'h']]) {
    if (passed < limit) return `${Math.round(passed / size)} ${unit} ago`;
  }
  return `${Math.round(passed / 86400)} d ago`;
}

function moment(S, then) {
  if (then === null) return '–';
  if (S.now() - then < 86400) return ago(then, S.now());
  const date = new Date(then * 1000), two = (n) => String(n).padStart(2, '0');
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

// ---- state ----------------------------------------------------------------------------------------------------------

function newState(root) {
  const S = {
    root, rows: new Map(), order: [], ticked: new Set(), lastTick: null, timer: 0, stopped: false, head: '', skew: 0, asking: false,
    now: () => Date.now() / 1000 + S.skew,
  };
  S.table = element('table');
  S.headRow = element('tr');
  S.body = element('tbody');
  const head = element('thead');
  head.append(S.headRow);
  S.table.append(head, S.body);
  const scroller = element('div', 'gm-runs-scroll');
  scroller.tabIndex = 0;
  scroller.setAttribute('role', 'region');
  scroller.setAttribute('aria-label', 'List of runs');
  scroller.append(S.table);
  root.replaceChildren(scroller);
  S.onVisibility = () => { if (document.hidden) clearTimeout(S.timer); else ask(S); };
  document.addEventListener('visibilitychange', S.onVisibility);
  S.clock = setInterval(() => { if (!document.hidden) sayTimes(S); }, 1000);
  return S;
}

// The page may be looked at from a machine whose clock is another.
async function readClock(S) {
  try {
    const answer = await fetch(`${S.data.base}/api/health`, { cache: 'no-store' });
    S.skew = (await answer.json()).time - Date.now() / 1000;
    if (Math.abs(S.skew) < 2) S.skew = 0;
    sayTimes(S);
  } catch { /* the server is asked again for rows anyway */ }
}

function schedule(S) {
  clearTimeout(S.timer);
  if (!S.stopped && !document.hidden) S.timer = setTimeout(() => ask(S), S.data.every * 1000);
}

async function ask(S) {
  clearTimeout(S.timer);
  if (S.stopped || S.asking) return;
  S.asking = true;
  try {
    const answer = await fetch(`${S.data.base}/api/runs?have=${encodeURIComponent(S.data.version)}`, { cache: 'no-store' });
    S.root.classList.toggle('gm-runs-away', !answer.ok);
    if (answer.ok && (answer.status !== 204 || S.data.pending)) whenAtRest(S.root, 'changed', () => { if (!S.stopped) S.api.setTriggerValue('changed', S.data.version); });
  } catch {
    S.root.classList.add('gm-runs-away');
  } finally {
    S.asking = false;
    schedule(S);
  }
}

// ---- drawing --------------------------------------------------------------------------------------------------------

function drawHead(S) {
  const wanted = JSON.stringify([S.data.columns, S.data.sort]);
  if (S.head === wanted) return;
  S.head = wanted;
  const focused = S.headRow.contains(document.activeElement) ? document.activeElement.dataset.column : null;
  const all = element('th', 'gm-runs-tick');
  S.all = element('input');
  S.all.type = 'checkbox';
  S.all.setAttribute('aria-label', 'Tick all runs of this page');
  S.all.onchange = () => tick(S, S.order, S.all.checked);
  all.append(S.all);
  const cells = [all];
  for (const column of S.data.columns) {
    const cell = element('th', column.later ? 'gm-runs-later' : '');
    if (column.number) cell.classList.add('gm-runs-number');
    cell.scope = 'col';
    if (column.sortable) {
      const down = S.data.sort === `-${column.id}`, up = S.data.sort === column.id;
      const button = element('button', '', column.title);
      button.type = 'button';
      button.dataset.column = column.id;
      button.append(element('span', 'gm-runs-arrow', down ? ' ↓' : up ? ' ↑' : ''));
      cell.setAttribute('aria-sort', down ? 'descending' : up ? 'ascending' : 'none');
      // Small values first, then large ones, then the newest again.
      button.onclick = () => S.api.setStateValue('sort', up ? `-${column.id}` : down ? '' : column.id);
      cell.append(button);
      if (focused === column.id) queueMicrotask(() => button.focus());
    } else cell.textContent = column.title;
    if (column.help) cell.title = column.help;
    cells.push(cell);
  }
  S.headRow.replaceChildren(...cells);
  for (const row of S.rows.values()) row.drawn = '';
}

function newRow(S, id) {
  const row = { node: element('tr'), box: element('input'), cells: new Map(), drawn: '', id };
  row.box.type = 'checkbox';
  row.box.onclick = (event) => {
    const from = event.shiftKey && S.lastTick !== null ? S.order.indexOf(S.lastTick) : -1, to = S.order.indexOf(id);
    tick(S, from < 0 ? [id] : S.order.slice(Math.min(from, to), Math.max(from, to) + 1), row.box.checked);
    S.lastTick = id;
  };
  row.node.dataset.run = id;
  row.node.onclick = (event) => {
    const own = event.target.closest('input, .gm-runs-tick, a');
    if (own && own.tagName !== 'A') return;
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;     // another tab: the link's own
    if (String(getSelection())) return;
    event.preventDefault();
    turnTo(addressOf(S, id));
  };
  return row;
}

function fill(S, row, data) {
  row.data = data;
  const wanted = JSON.stringify(data);
  if (row.drawn === wanted) return;
  row.drawn = wanted;
  row.box.setAttribute('aria-label', `Tick ${data.name}`);
  const tickCell = element('td', 'gm-runs-tick');
  tickCell.append(row.box);
  const cells = [tickCell];
  row.cells.clear();
  for (const column of S.data.columns) {
    const cell = element('td', column.later ? 'gm-runs-later' : '');
    if (column.number) cell.classList.add('gm-runs-number');
    cell.dataset.column = column.id;
    (DRAW[column.id] || drawText)(S, cell, data, column.id);
    row.cells.set(column.id, cell);
    cells.push(cell);
  }
  row.node.replaceChildren(...cells);
}

const drawText = (S, cell, data, id) => { cell.textContent = data[id]; if (data[id].length > 18) cell.title = data[id]; };

const DRAW = {
  health(S, cell, { health: [sign, word, colour] }) { cell.append(badge(sign, word, colour)); },
  state(S, cell, { state: [sign, word, colour, heard] }) {
    cell.append(badge(sign, word, colour));
    if (heard !== null) cell.append(element('div', 'gm-runs-small', `updated ${ago(heard, S.now())}`));
  },
  name(S, cell, data) {
    const link = element('a', '', data.name);
    link.href = addressOf(S, data.id);
    cell.append(link);
    if (data.sample) cell.append(element('span', 'gm-runs-tag', 'sample'));
    if (data.name !== data.id) cell.append(element('div', 'gm-runs-small', data.id));
  },
  curve(S, cell, data) { cell.append(curve(data.curve, data.name), ...(data.nonfinite ? [element('div', 'gm-runs-small gm-runs-bad', `✱ ${data.nonfinite} non-finite`)] : [])); },
  loss(S, cell, data) { cell.textContent = data.loss; if (/NaN|∞/.test(data.loss)) cell.classList.add('gm-runs-bad'); },
  incidents(S, cell, data) { cell.textContent = data.incidents; if (data.first.length) cell.title = data.first.join('\n'); },
  started(S, cell, data) { cell.textContent = moment(S, data.started); },
  tags(S, cell, data) { for (const tag of data.tags) cell.append(element('span', 'gm-runs-tag', tag), ' '); },
  notes(S, cell, data) {
    const node = element('div', data.problem ? 'gm-runs-notes gm-runs-bad' : 'gm-runs-notes', data.notes);
    node.title = data.notes;
    cell.append(node);
  },
};

function badge(sign, word, colour) {
  const node = element('span', `gm-runs-badge gm-runs-${colour}`);
  const mark = element('span', 'gm-runs-sign', sign);
  mark.setAttribute('aria-hidden', 'true');
  node.append(mark, ` ${word}`);
  return node;
}

function curve(values, name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', `0 0 ${CURVE.width} ${CURVE.height}`);
  svg.setAttribute('width', CURVE.width);
  svg.setAttribute('height', CURVE.height);
  if (values.length < 2) { svg.setAttribute('aria-hidden', 'true'); return svg; }
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `Training loss of ${name}`);
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const line = document.createElementNS(SVG, 'polyline');
  const points = values.map((value, at) => `${(1 + at / (values.length - 1) * (CURVE.width - 2)).toFixed(1)},${(CURVE.height - 2 - (value - low) / span * (CURVE.height - 4)).toFixed(1)}`);
  line.setAttribute('points', points.join(' '));
  svg.append(line);
  return svg;
}

function draw(S) {
  drawHead(S);
  const rows = S.data.rows, there = new Set(rows.map((data) => data.id));
  for (const [id, row] of S.rows) if (!there.has(id)) { row.node.remove(); S.rows.delete(id); }
  S.order = rows.map((data) => data.id);
  let previous = null;
  for (const data of rows) {
    let row = S.rows.get(data.id);
    if (!row) S.rows.set(data.id, row = newRow(S, data.id));
    fill(S, row, data);
    const next = previous ? previous.nextSibling : S.body.firstChild;
    if (next !== row.node) S.body.insertBefore(row.node, next);
    previous = row.node;
  }
  S.root.hidden = rows.length === 0;
  showTicks(S);
}

function sayTimes(S) {
  for (const row of S.rows.values()) {
    const heard = row.data.state[3], small = row.cells.get('state')?.querySelector('.gm-runs-small');
    if (small && heard !== null) say(small, `updated ${ago(heard, S.now())}`);
    const started = row.cells.get('started');
    if (started) say(started, moment(S, row.data.started));
  }
}

const addressOf = (S, id) => `${S.data.base}/run?run=${encodeURIComponent(id)}`;

// As the browser's back and forward buttons: one entry of the history, without a way through the server and without
// loading the page anew. A switch by the script would leave two, the first of them this list.
function turnTo(address) {
  history.pushState({}, '', address);
  dispatchEvent(new PopStateEvent('popstate'));
}

const say = (node, words) => { if (node.textContent !== words) node.textContent = words; };

// ---- ticks ----------------------------------------------------------------------------------------------------------

function tick(S, ids, on) {
  for (const id of ids) if (on) S.ticked.add(id); else S.ticked.delete(id);
  showTicks(S);
  // With the number: the same ticks again, after the page took them off, are news.
  S.api.setStateValue('ticked', { ids: [...S.ticked], given: S.given });
}

function showTicks(S) {
  let count = 0;
  for (const row of S.rows.values()) {
    const on = S.ticked.has(row.id);
    row.box.checked = on;
    row.node.classList.toggle('gm-runs-on', on);
    count += on;
  }
  S.all.checked = count > 0 && count === S.rows.size;
  S.all.indeterminate = count > 0 && count < S.rows.size;
}

function finish(S) {
  S.stopped = true;
  clearTimeout(S.timer);
  clearInterval(S.clock);
  document.removeEventListener('visibilitychange', S.onVisibility);
}

export default function (component) {
  const root = component.parentElement.querySelector('.gm-runs');
  if (!root) return undefined;
  const fresh = !root.__gm || root.__gm.stopped;
  const S = fresh ? (root.__gm = newState(root)) : root.__gm;
  S.api = component;
  S.data = component.data;
  // Only what the page itself changed: an answer that was made before a click must not undo it.
  if (S.given !== S.data.ticked_given) { S.given = S.data.ticked_given; S.ticked = new Set(S.data.ticked); }
  root.classList.toggle('gm-runs-dark', isDark(root));
  draw(S);
  if (fresh) readClock(S);
  schedule(S);
  // The clean-up may be called before a mere update; only a node that has left the page is given up.
  return () => setTimeout(() => { if (!root.isConnected) finish(S); }, 0);
}
