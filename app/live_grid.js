// The live charts of one view of one run. Pulls binary windows from /api/frame (see app/frame.py for the message),
// draws them in place with Plotly.react, and keeps one x range for all charts. Text from outside goes into the page by
// textContent only, and into Plotly only through plotlyText().

const CONFIG = {
  displayModeBar: false, displaylogo: false, doubleClick: false, responsive: false, scrollZoom: false,
  showSendToCloud: false, plotlyServerURL: '', staticPlot: false, showTips: false,
};
const VIRIDIS = [
  [0, '#440154'], [0.13, '#482878'], [0.25, '#3e4a89'], [0.38, '#31688e'], [0.5, '#26828e'],
  [0.63, '#1f9e89'], [0.75, '#35b779'], [0.88, '#6ece58'], [1, '#fde725'],
];
// Two hues of the same lightness on both sides of a grey that is neither of the two backgrounds: blank is not zero.
const DIVERGING = {
  light: [[0, '#08478f'], [0.25, '#5a94c8'], [0.5, '#ccd1d8'], [0.75, '#dd8a4b'], [1, '#9c3a03']],
  dark: [[0, '#7cc0ff'], [0.25, '#3f78b0'], [0.5, '#414954'], [0.75, '#b9672a'], [1, '#ffb079']],
};
const HEAT = { steps: 250, zero: 253, absent: 254, nonfinite: 255 };
const MARKS = {
  incident: { word: 'incident', sign: '▲', symbol: 'triangle-up', level: 3 },
  crash: { word: 'crash', sign: '✕', symbol: 'x', level: 3 },
  resume: { word: 'resume', sign: '◆', symbol: 'diamond', level: 2 },
  stop: { word: 'stop', sign: '■', symbol: 'square', level: 1 },
  nonfinite: { word: 'not finite', sign: '✱', symbol: 'asterisk-open', level: 1 },
  warning: { word: 'warning', sign: '▼', symbol: 'triangle-down', level: 2 },
  checkpoint: { word: 'checkpoint', sign: '□', symbol: 'square-open', level: 0 },
  eval: { word: 'evaluation', sign: '○', symbol: 'circle-open', level: 0 },
  lr_change: { word: 'learning rate change', sign: '◇', symbol: 'diamond-open', level: 1 },
  data_stage: { word: 'data stage', sign: '▷', symbol: 'triangle-right-open', level: 1 },
  note: { word: 'note', sign: '●', symbol: 'circle', level: 1 },
  request: { word: 'request', sign: '▽', symbol: 'triangle-down-open', level: 1 },
  cadence: { word: 'cadence changed', sign: '⊕', symbol: 'circle-cross-open', level: 0 },
  coverage: { word: 'layers measured', sign: '⊖', symbol: 'circle-x-open', level: 0 },
  thinning: { word: 'fewer steps kept', sign: '–', symbol: 'line-ew-open', level: 0 },
};
const SERIOUS = new Set(['incident', 'crash', 'nonfinite']);
const IDLE_S = 5;          // between questions about a run that has ended: it may be resumed
const REPORT_AFTER_MS = 400;
const NEWS_AFTER_MS = 2000;    // between two runs of the script for what stands beside the charts, when it was not known,
const STEPS_AFTER_MS = 10000;  // and when there are more steps: a table that Streamlit draws anew costs more than all charts

const loadPlotly = (url) => window.Plotly ? Promise.resolve(window.Plotly) : (window.__gmPlotly ??= new Promise((done, failed) => {
  const script = document.createElement('script');
  script.src = url;
  script.onload = () => done(window.Plotly);
  script.onerror = () => { window.__gmPlotly = undefined; script.remove(); failed(new Error('plotly')); };
  document.head.append(script);
}));

const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = plain(text);
  return node;
};

// Without control characters and those that turn the direction of what follows, as app/text.py.
const plain = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, '\ufffd');

// Plotly reads a little HTML and %{templates} in every text it is given.
const plotlyText = (text) => plain(text).slice(0, 300).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/%\{/g, '%&#123;');

const ARRAYS = { u1: Uint8Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };
const arrayAt = (body, [offset, length, type]) => new ARRAYS[type](body, offset, length);

const formatNumber = (v) => {
  if (v === undefined || v === null) return '–';
  if (typeof v === 'string') return v;
  if (Number.isNaN(v)) return 'NaN';
  if (!Number.isFinite(v)) return v > 0 ? '∞' : '−∞';
  if (v === 0) return '0';
  const size = Math.abs(v);
  const text = size >= 1e6 || size < 1e-3 ? v.toExponential(2).replace('e+', 'e') : size >= 1e4 ? formatCount(v) : String(Number(v.toPrecision(4)));
  return text.replace(/-/g, '−');
};
const COUNT = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const formatCount = (v) => COUNT.format(Math.round(v)).replace(/,/g, '\u202f');

// ---- state ----------------------------------------------------------------------------------------------------------

function newState(root) {
  const bar = element('div', 'gm-bar');
  const status = element('span', 'gm-status', 'loading charts');
  const cursor = element('span', 'gm-cursor');
  const span = element('span', 'gm-span');
  const reset = element('button', 'gm-reset', 'Reset zoom');
  const pause = element('button', 'gm-pause', 'Pause charts');
  for (const button of [reset, pause]) button.type = 'button';
  reset.hidden = true;
  pause.setAttribute('aria-pressed', 'false');
  bar.append(status, cursor, element('span', 'gm-space'), span, reset, pause);
  const charts = element('div', 'gm-charts');
  root.replaceChildren(bar, charts);
  const S = {
    root, status, cursor, spanText: span, resetButton: reset, pauseButton: pause, charts,
    slots: new Map(), versions: {}, extent: null, whole: null, marks: [], lines: '[]', state: null, range: null, layer: null, at: null, pins: [], logs: {}, stat: null,
    timer: 0, newsTimer: 0, newsAt: 0, newsTold: 0, reportTimer: 0, resizeTimer: 0, soonTimer: 0, busy: false, again: false, paused: false, updated: 0, failed: false, theme: '',
    bar: 0, given: -1, stopped: false, drawnOnce: false, open: new Set(),
  };
  reset.onclick = () => zoom(S, null);
  pause.onclick = () => {
    S.paused = !S.paused;
    pause.textContent = S.paused ? 'Resume charts' : 'Pause charts';
    pause.setAttribute('aria-pressed', String(S.paused));
    sayStatus(S);
    if (!S.paused) tick(S);
  };
  S.seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const slot = entry.target.__slot;
      slot.visible = entry.isIntersecting;
      if (slot.visible && slot.data && slot.dirty) draw(S, slot);
    }
    if (S.drawnOnce && entries.some((entry) => entry.isIntersecting)) soon(S);
  // The margin counts from the edge of the page's own scroller: from the window's it would be cut off there.
  }, { root: root.closest('[data-testid="stMain"]'), rootMargin: '350px 0px' });
  S.sized = new ResizeObserver(() => { clearTimeout(S.resizeTimer); S.resizeTimer = setTimeout(() => resized(S), 120); });
  S.sized.observe(root);
  S.onVisibility = () => { if (document.hidden) clearTimeout(S.timer); else tick(S); };
  document.addEventListener('visibilitychange', S.onVisibility);
  S.scheme = matchMedia('(prefers-color-scheme: dark)');
  S.onScheme = () => soon(S, 200);       // once Streamlit's own colours are there
  S.scheme.addEventListener('change', S.onScheme);
  S.onKey = (event) => pressedKey(S, event);
  document.addEventListener('keydown', S.onKey);
  S.clock = setInterval(() => sayStatus(S), 1000);
  return S;
}

// Colours and width are asked of the page once for all charts that are drawn in one go: each question after a drawing
// would have the browser lay the whole page out again.
function look(S) {
  if (!S.look) {
    S.look = { theme: readTheme(S), width: S.root.clientWidth };
    queueMicrotask(() => { S.look = null; });
  }
  return S.look;
}

const theme = (S) => look(S).theme;

function readTheme(S) {
  const css = getComputedStyle(S.root);
  const get = (name, other) => (css.getPropertyValue(name) || other).trim();
  const background = get('--st-background-color', '#ffffff');
  const probe = background.match(/[0-9a-f]{2}/gi) || ['ff', 'ff', 'ff'];
  const dark = probe.slice(0, 3).reduce((sum, part) => sum + parseInt(part, 16), 0) < 384;
  S.root.classList.toggle('gm-dark', dark);
  const colours = get('--st-chart-categorical-colors', '').split(/,(?![^(]*\))/).map((part) => part.trim()).filter(Boolean);
  return {
    dark, background, text: get('--gm-text', '#1c2430'), muted: dark ? '#a9b4c0' : '#55606d', line: dark ? '#2b333e' : '#e4e8ed',
    font: get('--st-font', 'sans-serif'), critical: get('--gm-critical', '#c2261c'), warning: get('--gm-warning', '#a35f00'),
    info: get('--gm-info', '#0b62a3'), resume: get('--gm-resume', '#6a43b5'), nonfinite: get('--gm-nonfinite', '#c4006f'),
    zero: get('--gm-zero', '#7b8794'), colours: colours.length ? colours : ['#0072b2', '#d55e00', '#009e73', '#b0589a', '#c98a00'],
    key: `${background}|${colours.join()}`,
  };
}

const markColour = (T, mark) => {
  if (mark.kind === 'incident' || mark.kind === 'crash') return T[mark.severity] || T.critical;
  if (mark.kind === 'resume') return T.resume;
  if (mark.kind === 'nonfinite') return T.nonfinite;
  return mark.kind === 'warning' ? T.warning : T.muted;
};

// ---- asking ---------------------------------------------------------------------------------------------------------

const wide = (S) => look(S).width >= 720;
const margins = (S) => ({ l: wide(S) ? 118 : 54, r: 14, t: 6, b: 24 });
const buckets = (S) => {
  const pixels = Math.max(120, look(S).width - margins(S).l - 14);
  return [150, 250, 400, 600, 900, 1200].find((size) => size * 1.7 >= pixels) || 1200;
};

function address(S) {
  const query = new URLSearchParams({ view: S.data.view, px: buckets(S), ...S.data.query });
  for (const id of [S.data.run].flat()) query.append('run', id);
  if (S.range) { query.set('x0', S.range[0]); query.set('x1', S.range[1]); }
  if (S.stat) query.set('stat', S.stat);
  if (S.layer) query.set('layer', S.layer);
  if (S.at !== null && (S.layer || S.data.view === 'layers')) query.set('at', S.at);
  if (S.pins.length) query.set('pins', S.pins.join(','));
  const have = Object.entries(S.versions).map(([name, version]) => `${name}:${version}`);
  if (have.length) query.set('have', have.join(','));
  if (!S.drawnOnce) query.set('screen', document.documentElement.clientHeight + 350);   // those below come when they are in sight
  else query.set('want', [...S.slots.values()].filter((slot) => slot.visible).map((slot) => slot.id).join(','));
  return `${S.data.base}/api/frame?${query}`;
}

async function tick(S) {
  clearTimeout(S.timer);
  if (S.stopped || document.hidden) return;     // looked at again, it asks by itself
  if (S.busy) { S.again = true; return; }
  S.busy = true;
  try {
    do {
      S.again = false;
      if (S.theme && theme(S).key !== S.theme) redrawAll(S);
      await pull(S);
    } while (S.again && !S.stopped);
  } finally {
    S.busy = false;
    schedule(S);
  }
}

function schedule(S) {
  clearTimeout(S.timer);
  const live = S.failed || S.state === null || S.state.live;
  if (!S.stopped && !document.hidden) S.timer = setTimeout(() => (S.paused ? schedule(S) : tick(S)), (live ? S.data.every : IDLE_S) * 1000);
}

const soon = (S, ms = 40) => { clearTimeout(S.soonTimer); S.soonTimer = setTimeout(() => tick(S), ms); };

async function pull(S) {
  let answer;
  const asked = S.range;
  try {
    const plotly = loadPlotly(`${S.data.base}/assets/plotly.min.js?v=${S.data.plotly}`);
    [answer] = await Promise.all([fetch(address(S), { cache: 'no-store' }), plotly]);
  } catch {
    return failed(S, 'waiting for the server; it will go on by itself');
  }
  if (S.stopped) return;
  if (answer.status === 204) return arrived(S);
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    return failed(S, problem.error || `the server answered ${answer.status}; it will be asked again`);
  }
  const buffer = await answer.arrayBuffer();
  if (S.stopped) return;
  if (asked !== S.range) { S.again = true; return; }     // zoomed while the answer was on its way
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const body = buffer.slice(4 + length);
  apply(S, header, body);
  arrived(S);
}

function failed(S, words) {
  S.failed = words;
  sayStatus(S);
}

function arrived(S) {
  S.failed = false;
  S.updated = Date.now();
  sayStatus(S);
}

// ---- taking in ------------------------------------------------------------------------------------------------------

function apply(S, header, body) {
  const changed = header.versions;
  if ('status' in changed) {
    const before = S.state;
    S.state = header.status;
    if (S.state.news && S.state.news !== before?.news) tellNews(S, NEWS_AFTER_MS);
    else if (S.state.news && S.state.last_step !== before.last_step) tellNews(S, STEPS_AFTER_MS);
  }
  if ('layout' in changed) layOut(S, header.layout);
  const before = xRange(S).join();
  if ('extent' in changed) { S.extent = header.extent; setWhole(S); }
  if ('marks' in changed) S.marks = header.marks;
  if ('incidents' in changed) S.incidents = header.incidents;
  Object.assign(S.versions, changed);
  for (const chart of header.charts) {
    const slot = S.slots.get(chart.id);
    if (!slot) continue;
    slot.data = readChart(chart, body);
    slot.dirty = true;
    S.versions[chart.id] = chart.version;
  }
  // Incidents are found later than the values are drawn: they come alone, as a list a curve.
  for (const [id, curves] of Object.entries(header.curves)) {
    const slot = S.slots.get(id);
    if (!slot?.data?.traces) continue;
    const where = signsOf(slot);
    slot.data.traces.forEach((trace, i) => { trace.incidents = curves[i]; });
    if (signsOf(slot) === where) slot.worded = true;
    else slot.dirty = true;
  }
  const lines = 'marks' in changed ? linesOf(S) : S.lines;
  const all = lines !== S.lines || before !== xRange(S).join() || !S.drawnOnce;
  S.lines = lines;
  for (const slot of S.slots.values()) {
    if (all || ('marks' in changed && slot.spec.kind === 'events')) slot.dirty = true;
    if (slot.dirty && slot.data && (slot.visible || !S.drawnOnce)) draw(S, slot);
  }
  S.drawnOnce = S.drawnOnce || header.charts.length > 0;
}

// Where the signs on the curves of a chart are. Their words are drawn when the pointer comes, which is who reads them: an
// incident that goes on has others with every diagnosis.
const signsOf = (slot) => JSON.stringify(slot.data.traces.map((trace) => trace.incidents?.map((mark) => [mark.x, mark.y, mark.severity])));

// What is drawn of the marks across every chart, to the pixel.
function linesOf(S) {
  const [low, high] = xRange(S), pixel = (x) => (x === null ? x : Math.round((x - low) / (high - low) * buckets(S)));
  return JSON.stringify(S.marks.filter((mark) => mark.line).map((mark) => [mark.x, pixel(mark.last), mark.kind, mark.severity]));
}

// To what stands beside the charts and may be older than they, once in so many milliseconds.
function tellNews(S, pause) {
  const at = Math.max(Date.now(), S.newsTold + pause);
  if (S.newsTimer && S.newsAt <= at) return;
  clearTimeout(S.newsTimer);
  S.newsAt = at;
  S.newsTimer = setTimeout(() => {
    S.newsTimer = 0;
    S.newsTold = Date.now();
    whenAtRest(S.root, 'news', () => { if (!S.stopped) S.api.setTriggerValue('news', S.newsTold); });
  }, at - Date.now());
}

function readChart(chart, body) {
  if (chart.cells) return { ...chart, edges: arrayAt(body, chart.edges), cells: arrayAt(body, chart.cells), at: chart.at && arrayAt(body, chart.at), steps: chart.step_edges ? arrayAt(body, chart.step_edges) : arrayAt(body, chart.edges) };
  return {
    ...chart,
    traces: chart.traces.map((trace) => ({
      ...trace, x: arrayAt(body, trace.x), y: arrayAt(body, trace.y),
      marks: trace.marks && { x: arrayAt(body, trace.marks.x), kind: arrayAt(body, trace.marks.kind), count: arrayAt(body, trace.marks.count) },
    })),
  };
}

function layOut(S, layout) {
  const keep = new Set(layout.map((spec) => spec.id));
  for (const [id, slot] of S.slots) {
    if (keep.has(id)) continue;
    S.seen.unobserve(slot.node);
    if (slot.drawn) window.Plotly.purge(slot.plot);
    slot.node.remove();
    S.slots.delete(id);
    delete S.versions[id];
  }
  S.charts.querySelector('.gm-empty')?.remove();
  for (const node of S.charts.querySelectorAll('.gm-section')) {
    if (!layout.some((spec) => spec.section === node.__section)) node.remove();
  }
  if (!layout.length) S.charts.append(element('div', 'gm-empty', EMPTY[S.data.view] || EMPTY.story));
  let previous = null;
  for (const spec of layout) {
    let slot = S.slots.get(spec.id);
    if (!slot) { slot = newSlot(S, spec); S.slots.set(spec.id, slot); S.again ||= S.drawnOnce; }   // its data at once
    setHead(slot, spec);
    if (spec.section && spec.section !== previous?.__slot?.spec.section) previous = putAfter(S, previous, sectionHead(S, spec, layout));
    slot.node.hidden = Boolean(spec.section) && !S.open.has(spec.section);
    slot.pinButton.setAttribute('aria-pressed', String(S.pins.includes(spec.id)));
    previous = putAfter(S, previous, slot.node);
  }
  layout.forEach((spec, index) => {
    const slot = S.slots.get(spec.id), last = index === layout.length - 1 || (layout[index + 1].section || '') !== (spec.section || '');
    if (slot.last !== last) slot.dirty = true;
    slot.last = last;
  });
}

function putAfter(S, previous, node) {
  const next = previous ? previous.nextSibling : S.charts.firstChild;
  if (next !== node) S.charts.insertBefore(node, next);
  return node;
}

// Charts of a folded section have no place in the page: they are not in sight, so nothing is asked or drawn for them.
function sectionHead(S, spec, layout) {
  const name = spec.section;
  let node = [...S.charts.querySelectorAll('.gm-section')].find((one) => one.__section === name);
  if (!node) {
    node = element('button', 'gm-section');
    const arrow = element('span', 'gm-arrow');
    arrow.setAttribute('aria-hidden', 'true');
    const count = element('span', 'gm-count');
    count.setAttribute('aria-hidden', 'true');
    node.append(arrow, element('span', '', name), count);
    node.type = 'button';
    node.__section = name;
    node.onclick = () => unfold(S, node, !S.open.has(name));
  }
  // Open from the start, or opened by a search; what a person folds stays folded until then.
  if (node.__open !== spec.open) { node.__open = spec.open; if (spec.open) S.open.add(name); else S.open.delete(name); }
  node.setAttribute('aria-expanded', String(S.open.has(name)));
  node.querySelector('.gm-count').textContent = formatCount(layout.filter((one) => one.section === name).length);
  return node;
}

function unfold(S, node, open) {
  const name = node.__section;
  if (open) S.open.add(name); else S.open.delete(name);
  node.setAttribute('aria-expanded', String(open));
  for (const slot of S.slots.values()) if (slot.spec.section === name) { slot.node.hidden = !open; slot.dirty = true; }
}

const EMPTY = {
  story: 'No points yet. They appear here as soon as the training has made its first step.',
  landscape: 'No landscape samples in this run. They are taken every monitor.landscape_every steps.',
  recorder: 'No statistic of layers was recorded round this incident.',
  speed: 'No step time was recorded in this run.',
  checkpoints: 'No loss was recorded in this run.',
  layers: 'No statistic of layers or modules was recorded in this run.',
  compare: 'None of these metrics was recorded by any of these runs.',
  ranks: 'None of the signals that tell ranks apart was recorded by two of them.',
  system: 'No machine samples yet. They are taken every two seconds while the training runs.',
};

function newSlot(S, spec) {
  const node = element('div', 'gm-chart');
  node.dataset.id = spec.id;
  node.setAttribute('role', 'figure');
  const head = element('div', 'gm-head');
  const title = element('span', 'gm-title');
  const unit = element('span', 'gm-unit');
  const legend = element('span', 'gm-legend');
  const note = element('span', 'gm-note');
  const tools = element('span', 'gm-tools');
  const titled = element('span');
  titled.append(title, unit);
  head.append(titled, legend, note, tools);
  const plot = element('div', 'gm-plot');
  const cross = element('div', 'gm-cross');
  const tip = element('div', 'gm-tip');
  const wrap = element('div', 'gm-plot');
  wrap.append(plot, cross, tip);
  node.append(head, wrap);
  const slot = { id: spec.id, spec, node, plot, wrap, cross, tip, title, unit, legend, note, tools, visible: !spec.section || spec.open, dirty: false, worded: false, drawn: false, data: null, log: S.logs[spec.id] ?? null, own: 0 };
  node.__slot = slot;
  S.seen.observe(node);
  wrap.addEventListener('mouseenter', () => { if (slot.worded && slot.drawn) draw(S, slot); });
  wrap.addEventListener('mousemove', (event) => hover(S, slot, event));
  wrap.addEventListener('mouseleave', () => hover(S, null, null));
  if (spec.kind === 'heat' || spec.kind === 'profile') wrap.addEventListener('pointerdown', (event) => pressed(S, slot, event), true);
  if (spec.kind === 'lines') {
    const button = element('button', '', 'log');
    button.type = 'button';
    button.title = 'Logarithmic value axis';
    button.onclick = () => setLog(S, slot, !isLog(slot));
    slot.logButton = button;
    tools.append(button);
  }
  slot.pinButton = element('button', '', 'pin');
  slot.pinButton.type = 'button';
  slot.pinButton.title = 'Show this chart before the others';
  slot.pinButton.hidden = S.data.view !== 'story' || spec.kind === 'events';
  slot.pinButton.onclick = () => pin(S, slot.id);
  tools.append(slot.pinButton, saveMenu(S, slot));
  return slot;
}

// ---- taking away ----------------------------------------------------------------------------------------------------

const FORMATS = { PNG: 'png', SVG: 'svg' };

function saveMenu(S, slot) {
  const menu = element('span', 'gm-menu');
  const open = element('button', '', 'save');
  open.type = 'button';
  open.title = 'Save this chart';
  open.setAttribute('aria-expanded', 'false');
  const list = element('span', 'gm-menu-list');
  list.hidden = true;
  const close = () => { list.hidden = true; open.setAttribute('aria-expanded', 'false'); };
  open.onclick = () => { list.hidden = !list.hidden; open.setAttribute('aria-expanded', String(!list.hidden)); };
  menu.addEventListener('focusout', (event) => { if (!menu.contains(event.relatedTarget)) close(); });
  menu.addEventListener('keydown', (event) => { if (event.key === 'Escape') { close(); open.focus(); } });
  const entries = slot.spec.kind === 'events' ? Object.keys(FORMATS) : [...Object.keys(FORMATS), 'CSV'];
  for (const word of entries) {
    const entry = element('button', '', word);
    entry.type = 'button';
    entry.onclick = () => { close(); open.focus(); save(S, slot, word).catch(() => failed(S, 'the chart could not be saved')); };
    list.append(entry);
  }
  menu.append(open, list);
  return menu;
}

async function save(S, slot, word) {
  if (word === 'CSV') return fetchCsv(S, slot);
  const image = await window.Plotly.toImage(pictureOf(S, slot), { format: FORMATS[word], width: Math.max(700, slot.plot.clientWidth), height: slot.plot.clientHeight + 74, scale: word === 'PNG' ? 2 : 1 });
  download(image, `${fileName(S, slot)}.${FORMATS[word]}`);
}

// What the head of a chart says in the page stands in the picture: title, unit, what was reduced, and a legend.
function pictureOf(S, slot) {
  const T = theme(S), note = slot.note.textContent;
  const title = plotlyText(`${slot.spec.title}${slot.unit.textContent ? ` ${slot.unit.textContent}` : ''}`);
  const heat = slot.spec.kind === 'heat';
  const data = slot.plot.data.map((trace, i) => ({ ...trace, showscale: heat && i === 0, showlegend: !heat && Boolean(trace.name), legendrank: i }));
  const layout = {
    ...slot.plot.layout, font: { ...slot.plot.layout.font, family: 'sans-serif' }, paper_bgcolor: T.background, plot_bgcolor: T.background, showlegend: !heat, height: undefined, width: undefined,
    legend: { orientation: 'h', x: 0, y: 1.01, yanchor: 'bottom', font: { size: 11 } }, margin: { ...slot.plot.layout.margin, t: 74, r: heat ? 70 : 20 },
    title: { text: `${title}${note ? ` <span style="font-size:11px">${plotlyText(note)}</span>` : ''}`, x: 0.01, xanchor: 'left', y: 0.98, yanchor: 'top', font: { size: 14 } },
  };
  return { data, layout };
}

async function fetchCsv(S, slot) {
  const asked = new URL(address(S), location.href);
  for (const name of ['have', 'want', 'px']) asked.searchParams.delete(name);
  asked.searchParams.set('chart', slot.id);
  const answer = await fetch(`${S.data.base}/api/csv?${asked.searchParams}`, { cache: 'no-store' });
  if (!answer.ok) return failed(S, (await answer.json().catch(() => ({}))).error || 'the values could not be saved');
  const url = URL.createObjectURL(await answer.blob());
  download(url, `${fileName(S, slot)}.csv`);
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  return undefined;
}

const fileName = (S, slot) => `${[S.data.run].flat().join('-')}-${slot.spec.title}`.replace(/[^A-Za-z0-9._-]+/g, '-').slice(0, 120);

function download(url, name) {
  const link = element('a');
  link.href = url;
  link.download = name;
  link.click();
}

function pin(S, id) {
  S.pins = S.pins.includes(id) ? S.pins.filter((other) => other !== id) : [...S.pins, id];
  S.api.setStateValue('pins', S.pins);
  tick(S);
}

function setLog(S, slot, log) {
  S.logs = { ...S.logs, [slot.id]: log };
  slot.log = log;
  slot.dirty = true;
  draw(S, slot);
  S.api.setStateValue('logs', Object.entries(S.logs).map(([id, on]) => `${id}:${on ? 1 : 0}`));
}

const isLog = (slot) => (slot.log === null ? slot.spec.log || exploded(slot) : slot.log);

// A linear axis that reaches a thousand times beyond the usual values shows nothing but the peak.
function exploded(slot) {
  if (!slot.data?.traces || slot.spec.zero) return false;
  return slot.data.traces.some((trace) => {
    const values = trace.y.filter(Number.isFinite);
    let low = Infinity, high = 0;
    for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
    if (values.length <= 20 || !(low > 0) || high <= 1000 * low) return false;
    return high > 1000 * values.sort()[values.length >> 1];
  });
}

function setHead(slot, spec) {
  slot.wrap.style.minHeight = `${spec.height}px`;   // its place is kept before there is anything to draw
  slot.spec = spec;
  slot.title.textContent = plain(spec.title);
  slot.title.title = spec.help || '';
  slot.unit.textContent = spec.unit && spec.unit !== '1' ? `(${spec.unit})` : '';
  slot.node.setAttribute('aria-label', plain(spec.title));
}

// ---- drawing --------------------------------------------------------------------------------------------------------

const MARGIN = 0.004;       // of the run, to the left and the right of it

function xRange(S) {
  return S.range || S.whole || [0, 1];
}

// The range of the whole run. Another one is another drawing of every chart, so that it stays while what has come since
// fits into its margin.
function setWhole(S) {
  if (!S.extent) { S.whole = null; return; }
  const [first, last] = S.extent, [low, high] = S.whole || [NaN, NaN];
  if (low <= first && last <= high && high - low <= (last - first) * (1 + 4 * MARGIN)) return;
  const pad = Math.max((last - first) * MARGIN, first === last ? 0.5 : 0);
  S.whole = [first - pad, last + pad];
}

function baseLayout(S, T, slot) {
  const axis = { gridcolor: T.line, linecolor: T.line, zerolinecolor: T.line, tickfont: { size: 11, color: T.muted }, zeroline: false };
  return {
    height: slot.spec.height + (slot.last ? 16 : 0), margin: { ...margins(S), b: slot.last ? 40 : 24 }, autosize: true, showlegend: false, dragmode: 'zoom', hovermode: 'closest', hoverdistance: 12,
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { family: T.font, color: T.text, size: 12 },
    hoverlabel: { bgcolor: T.background, bordercolor: T.line, font: { family: T.font, size: 12, color: T.text }, align: 'left' },
    xaxis: { ...axis, range: xRange(S).slice(), type: 'linear', fixedrange: false, tickformat: ',~f', separatethousands: true, nticks: wide(S) ? 12 : 5, showgrid: true, ...timeTicks(S, slot.spec.x_kind), ...(slot.last ? { title: { text: slot.spec.x_title, font: { size: 12, color: T.muted }, standoff: 8 } } : {}) },
    yaxis: { ...axis, fixedrange: true, ticklabeloverflow: 'allow', nticks: Math.max(3, Math.round(slot.spec.height / 38)), exponentformat: 'power', automargin: false },
    shapes: [], uirevision: 'constant', separators: '.\u202f',
  };
}

// Whole seconds, minutes, hours or days; Plotly's date axis would speak of UTC, and its ranges are texts.
const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];
function timeTicks(S, kind) {
  if (kind !== 'seconds' && kind !== 'clock') return {};
  const [first, last] = xRange(S), most = wide(S) ? 9 : 4;
  const step = TIME_STEPS.find((size) => (last - first) / size <= most) || Math.ceil((last - first) / most / 31536000) * 31536000;
  if (last - first < 2) return kind === 'seconds' ? {} : { nticks: most, tickformat: ',.1f' };
  const shift = kind === 'clock' ? new Date(first * 1000).getTimezoneOffset() * -60 : 0;
  const tickvals = [];
  for (let at = Math.ceil((first + shift) / step) * step - shift; at <= last && tickvals.length < 40; at += step) tickvals.push(at);
  return { tickmode: 'array', tickvals, ticktext: tickvals.map((at) => timeText(at, kind, step)) };
}

const two = (n) => String(n).padStart(2, '0');
function timeText(at, kind, step) {
  if (kind === 'clock') {
    const date = new Date(at * 1000), day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
    if (step >= 86400) return day;
    const clock = `${two(date.getHours())}:${two(date.getMinutes())}${step < 60 ? `:${two(date.getSeconds())}` : ''}`;
    return step > 1800 || !step ? `${day.slice(5)} ${clock}` : clock;
  }
  const sign = at < 0 ? '−' : '', s = Math.abs(Math.round(at)), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  if (s < 60) return `${sign}${s} s`;
  return `${sign}${h ? `${h} h ` : ''}${h && !m ? '' : `${m} min`}${s % 60 ? ` ${s % 60} s` : ''}`.trim();
}

// Where the pointer is, or where a zoom ends, in the words of the axis.
function xText(S, x) {
  const kind = [...S.slots.values()][0]?.spec.x_kind;
  if (kind === 'clock' || kind === 'seconds') return timeText(x, kind, kind === 'clock' ? 0 : 1);
  return formatCount(x);
}

function xWord(S, several) {
  if (S.data.view === 'system') return several ? 'seconds ' : 'second ';
  if (S.data.view === 'layers') return '';
  const axis = S.data.query?.axis;
  if (axis === 'tokens') return 'tokens ';
  return axis && axis !== 'step' ? '' : several ? 'steps ' : 'step ';
}

function draw(S, slot) {
  const P = window.Plotly;
  if (!P || S.stopped || !slot.data) return;
  const T = theme(S);
  S.theme = T.key;
  slot.dirty = slot.worded = false;
  const drawer = { heat: heatFigure, events: eventsFigure, parts: partsFigure, profile: profileFigure }[slot.spec.kind] || linesFigure;
  const { traces, layout } = drawer(S, T, slot);
  layout.shapes.push(...markShapes(S, T, slot));
  slot.own += 1;
  const first = !slot.drawn;
  slot.drawn = true;
  Promise.resolve(P.react(slot.plot, traces, layout, CONFIG)).finally(() => { slot.own -= 1; });
  if (first) {
    slot.plot.on('plotly_relayout', (change) => relaid(S, slot, change));
    slot.plot.on('plotly_doubleclick', () => zoom(S, null));
    slot.plot.on('plotly_click', (event) => clicked(S, slot, event));
  }
}

function redrawAll(S) {
  for (const slot of S.slots.values()) { slot.dirty = true; if (slot.visible) draw(S, slot); }
}

function linesFigure(S, T, slot) {
  const layout = baseLayout(S, T, slot);
  const log = isLog(slot);
  slot.logButton?.setAttribute('aria-pressed', String(log));
  Object.assign(layout.yaxis, log ? logAxis(slot) : linearAxis(slot));
  const traces = slot.data.traces.map((trace) => lineTrace(T, trace));
  for (const trace of slot.data.traces) traces.push(...lonely(T, trace));
  traces.push(...nonfiniteTraces(T, slot, layout), ...incidentTraces(T, slot, log));
  setLegend(S, T, slot);
  setNote(slot, log);
  return { traces, layout };
}

// The layers of one step side by side: a place per layer, an axis of its own that is neither zoomed nor linked.
function profileFigure(S, T, slot) {
  const { traces, layout } = linesFigure(S, T, slot);
  const { names } = slot.data, room = Math.max(1, Math.floor((look(S).width - margins(S).l - 14) / 14));
  const every = Math.ceil(names.length / room), shown = names.map((_, i) => i).filter((i) => i % every === 0);
  layout.height = slot.spec.height + 92;
  layout.margin.b = 108;
  Object.assign(layout.xaxis, {
    range: [-0.5, Math.max(0, names.length - 1) + 0.5], fixedrange: true, tickmode: 'array', tickvals: shown, tickangle: -60, showgrid: names.length <= room,
    ticktext: shown.map((i) => plotlyText(shorten(names[i], 20))), tickfont: { size: 10, color: T.muted }, title: undefined,
  });
  layout.dragmode = false;
  for (const trace of traces) if (trace.hoverinfo === 'skip') { trace.mode = 'lines+markers'; trace.marker = { ...trace.marker, size: 4 }; }
  return { traces, layout };
}

// What happened to one of several runs is shown on its curve: the sign tells how bad it is, its rim whose it is.
function incidentTraces(T, slot, log) {
  return slot.data.traces.filter((trace) => trace.incidents?.length).map((trace) => {
    const shown = trace.incidents.map((mark) => ({ ...mark, y: mark.y !== null && (!log || mark.y > 0) ? mark.y : lastFinite(trace, mark.x, log) })).filter((mark) => mark.y !== undefined);
    return {
      type: 'scatter', mode: 'markers', name: `incidents of ${plotlyText(trace.name)}`, x: shown.map((mark) => mark.x), y: shown.map((mark) => mark.y), hoverinfo: 'text', cliponaxis: false,
      text: shown.map((mark) => `step ${formatCount(mark.step)}: ${plotlyText(mark.text)}`),
      marker: { symbol: 'triangle-up', size: 12, color: shown.map((mark) => T[mark.severity] || T.critical), line: { color: colourOf(T, trace), width: 2 } },
    };
  });
}

// The height of the curve where it was last seen before x.
function lastFinite(trace, x, log) {
  for (let i = trace.x.length - 1; i >= 0; i -= 1) if (trace.x[i] <= x && Number.isFinite(trace.y[i]) && (!log || trace.y[i] > 0)) return trace.y[i];
  return undefined;
}

const colourOf = (T, trace) => trace.role === 'faded' ? T.muted : T.colours[trace.colour % T.colours.length];

function linearAxis(slot) {
  return { type: 'linear', autorange: true, rangemode: slot.spec.zero ? 'tozero' : 'normal', tickformat: slot.spec.unit === 'tokens/s' ? '~s' : '~g' };
}

// Own ticks: Plotly labels the 2 and the 5 between powers of ten in other sizes, and puts a constant on two decades.
function logAxis(slot) {
  let low = Infinity, high = 0;
  for (const trace of slot.data.traces) for (const v of trace.y) if (v > 0 && v < Infinity) { low = Math.min(low, v); high = Math.max(high, v); }
  if (!(high > 0)) return { type: 'log', range: [-1, 1], autorange: false, showticklabels: false, dtick: 1 };
  let bottom = Math.log10(low), top = Math.log10(high);
  const pad = Math.max((top - bottom) * 0.06, 0.02);
  bottom -= pad; top += pad;
  const decades = top - bottom;
  const axis = { type: 'log', range: [bottom, top], autorange: false };
  if (decades < 0.7) return { ...axis, tickformat: '~g' };
  const every = Math.max(1, Math.ceil(decades / Math.max(2, slot.spec.height / 40)));
  const steps = decades < 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let k = Math.floor(bottom); k <= Math.ceil(top); k += 1) if (k % every === 0) for (const m of steps) ticks.push(Number(`${m}e${k}`));
  return { ...axis, tickmode: 'array', tickvals: ticks, ticktext: ticks.map((v) => (v >= 1e5 || v < 1e-4 ? v.toExponential(0).replace('e+', 'e').replace('-', '−') : String(v))) };
}

const OPACITY = { faded: 0.45, raw: 0.45, parent: 0.75 };
const DASHES = { limit: 'dash', faded: 'dot', parent: 'dot' };

// One pixel is drawn by a way of its own, several times as fast as any other width; of a curve this long it is no less to
// see, since most of it are steep lines.
const MANY_POINTS = 600;
const lineWidth = (trace) => (trace.role === 'points' || trace.role === 'raw' ? 1 : trace.every ? 1.9 : trace.x.length > MANY_POINTS ? 1 : 1.4);

function lineTrace(T, trace) {
  const few = trace.x.length <= 40;
  const colour = colourOf(T, trace);
  return {
    type: 'scatter', name: plotlyText(trace.name), x: trace.x, y: trace.y, connectgaps: false, hoverinfo: 'skip',
    mode: ['limit', 'faded', 'parent'].includes(trace.role) ? 'lines' : trace.role === 'points' || few ? 'lines+markers' : 'lines',
    opacity: OPACITY[trace.role] || 1,
    line: { color: colour, width: lineWidth(trace), dash: DASHES[trace.role] || 'solid', simplify: false },
    marker: { color: colour, size: trace.role === 'points' ? 5 : 3.5 },
  };
}

// A finite sample between two gaps is no line; it gets a dot so that it is not lost.
function lonely(T, trace) {
  if (!trace.marks || trace.x.length <= 40) return [];
  const x = [], y = [];
  for (let i = 0; i < trace.y.length; i += 1) {
    if (Number.isFinite(trace.y[i]) && !Number.isFinite(trace.y[i - 1]) && !Number.isFinite(trace.y[i + 1])) { x.push(trace.x[i]); y.push(trace.y[i]); }
  }
  return x.length ? [{ type: 'scatter', mode: 'markers', x, y, hoverinfo: 'skip', marker: { color: colourOf(T, trace), size: 3.5 } }] : [];
}

const NONFINITE = [
  { word: 'NaN', symbol: 'triangle-down', y: 0.93 },
  { word: '∞', symbol: 'triangle-up', y: 0.93 },
  { word: '−∞', symbol: 'triangle-down', y: 0.07 },
];

function nonfiniteTraces(T, slot, layout) {
  const made = [];
  let row = 0;
  for (const trace of slot.data.traces) {
    if (!trace.marks) continue;
    NONFINITE.forEach((kind, code) => {
      const x = [], text = [];
      trace.marks.kind.forEach((mark, i) => {
        if (mark !== code) return;
        x.push(trace.marks.x[i]);
        const count = trace.marks.count[i];
        text.push(`${plotlyText(trace.name)}: ${kind.word} at ${formatCount(trace.marks.x[i])}${count > 1 ? ` and ${formatCount(count - 1)} more here` : ''}`);
      });
      if (!x.length) return;
      const y = kind.y > 0.5 ? kind.y - 0.1 * Math.min(row, 4) : kind.y + 0.1 * Math.min(row, 4);
      made.push({
        type: 'scatter', mode: 'markers', name: `non-finite ${kind.word}`, x, y: x.map(() => y), yaxis: 'y2', text, hoverinfo: 'text', cliponaxis: false,
        marker: { color: T.nonfinite, size: 9, symbol: kind.symbol, line: { color: colourOf(T, trace), width: x.length > 30 ? 0 : 1 } },   // of many, the rims would be all one sees
      });
    });
    row += 1;
  }
  if (made.length) layout.yaxis2 = { overlaying: 'y', range: [0, 1], fixedrange: true, visible: false };
  return made;
}

function partsFigure(S, T, slot) {
  const layout = baseLayout(S, T, slot);
  Object.assign(layout.yaxis, linearAxis(slot));
  const traces = [];
  for (const trace of slot.data.traces.slice(1)) {
    const colour = colourOf(T, trace);
    traces.push({
      type: 'scatter', mode: 'lines', name: plotlyText(trace.name), x: trace.x, y: trace.y, stackgroup: 'parts', hoverinfo: 'skip',
      line: { width: 0.5, color: colour }, fillcolor: translucent(colour, 0.62),
    });
  }
  const whole = slot.data.traces[0];
  if (whole) traces.push({ ...lineTrace(T, whole), line: { color: T.text, width: 1, simplify: false }, mode: 'lines' }, ...nonfiniteTraces(T, slot, layout));
  setLegend(S, T, slot);
  setNote(slot, false);
  return { traces, layout };
}

function translucent(colour, alpha) {
  const parts = colour.match(/^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i);
  return parts ? `rgba(${parts.slice(1).map((part) => parseInt(part, 16)).join(',')},${alpha})` : colour;
}

function heatFigure(S, T, slot) {
  const layout = baseLayout(S, T, slot);
  const { names, edges, cells, scale: [bottom, top], scale_kind: kind } = slot.data;
  const rows = names.length, columns = Math.max(0, edges.length - 1);
  const z = [], special = [];
  let anySpecial = false;
  for (let r = 0; r < rows; r += 1) {
    const line = new Float32Array(columns), other = new Float32Array(columns);
    for (let c = 0; c < columns; c += 1) {
      const code = cells[r * columns + c];
      line[c] = code <= HEAT.steps ? bottom + (code / HEAT.steps) * (top - bottom) : NaN;
      other[c] = code === HEAT.nonfinite ? 1 : code === HEAT.zero ? 0 : NaN;
      anySpecial ||= code >= HEAT.zero && code !== HEAT.absent;
    }
    z.push(line); special.push(other);
  }
  const y = Array.from({ length: rows + 1 }, (_, r) => r - 0.5);
  const common = { type: 'heatmap', x: edges, y, showscale: false, hoverinfo: 'skip', zsmooth: false, xgap: 0, ygap: rows <= 40 ? 1 : 0 };
  const traces = [{ ...common, z, zmin: bottom, zmax: top, colorscale: ramp(T, kind) }];
  if (anySpecial) traces.push({ ...common, z: special, zmin: 0, zmax: 1, colorscale: [[0, T.zero], [0.49, T.zero], [0.5, T.nonfinite], [1, T.nonfinite]] });
  const most = Math.max(1, Math.floor((slot.spec.height - 30) / 13));
  const every = Math.ceil(rows / most);
  const shown = names.map((_, r) => r).filter((r) => r % every === 0);
  const room = Math.floor((margins(S).l - 10) / 5.6);
  Object.assign(layout.yaxis, {
    type: 'linear', range: [rows - 0.5, -0.5], autorange: false, showgrid: false, tickvals: shown, tickmode: 'array', ticks: '',
    ticktext: shown.map((r) => plotlyText(shorten(names[r], room))), tickfont: { size: 10, color: T.muted },
  });
  layout.xaxis.showgrid = false;
  setScale(S, T, slot);
  return { traces, layout };
}

const ramp = (T, kind) => kind === 'signed' ? DIVERGING[T.dark ? 'dark' : 'light'] : VIRIDIS;
const onScale = (data, share) => {
  const [bottom, top] = data.scale, value = bottom + share * (top - bottom);
  return data.scale_kind === 'log' ? 10 ** value : value;
};

const shorten = (name, room) => {
  const short = name.endsWith('.weight') ? name.slice(0, -7) : name;
  return short.length <= room ? short : `…${short.slice(short.length - room + 1).replace(/^\.+/, '')}`;
};

function eventsFigure(S, T, slot) {
  const layout = baseLayout(S, T, slot);
  const traces = Object.entries(MARKS).map(([kind, look]) => {
    const marks = S.marks.filter((mark) => mark.kind === kind);
    return {
      type: 'scatter', mode: 'markers', name: look.word, x: marks.map((mark) => mark.x), y: marks.map(() => look.level), hoverinfo: 'text', cliponaxis: false,
      text: marks.map((mark) => `step ${formatCount(mark.step)}: ${plotlyText(mark.text)}${mark.count > 1 ? `, and ${mark.count - 1} more here` : ''}`),
      customdata: marks.map((mark) => mark.key), marker: { symbol: look.symbol, size: SERIOUS.has(kind) ? 11 : 8, color: marks.map((mark) => markColour(T, mark)) },
    };
  }).filter((trace) => trace.x.length);
  Object.assign(layout.yaxis, { range: [-0.9, 3.9], showgrid: false, showticklabels: false, autorange: false });
  slot.legend.replaceChildren(...Object.entries(MARKS).flatMap(([kind, look]) => {
    const count = S.marks.filter((mark) => mark.kind === kind).reduce((sum, mark) => sum + mark.count, 0);
    if (!count) return [];
    const chip = element('span', 'gm-chip');
    const sign = element('span', '', look.sign);
    sign.style.color = markColour(T, S.marks.find((mark) => mark.kind === kind));
    chip.append(sign, element('span', 'gm-name', `${look.word}${count > 1 ? ` × ${formatCount(count)}` : ''}`));
    return [chip];
  }));
  slot.note.textContent = traces.length ? '' : 'none in sight';
  return { traces, layout };
}

function markShapes(S, T, slot) {
  const shapes = [];
  if (S.data.view === 'system' || slot.spec.kind === 'profile') return shapes;
  for (const mark of S.marks) {
    const serious = SERIOUS.has(mark.kind);
    if (!mark.line || (slot.spec.kind === 'events' && !serious)) continue;
    const colour = markColour(T, mark);
    if (serious && mark.last !== null && mark.last > mark.x) {
      shapes.push({ type: 'rect', xref: 'x', yref: 'paper', x0: mark.x, x1: mark.last, y0: 0, y1: 1, line: { width: 0 }, fillcolor: colour, opacity: 0.05, layer: 'below' });
    }
    shapes.push({
      type: 'line', xref: 'x', yref: 'paper', x0: mark.x, x1: mark.x, y0: 0, y1: 1, layer: serious ? 'above' : 'below',
      opacity: serious || mark.kind === 'resume' ? 0.9 : mark.kind === 'eval' ? 0.22 : 0.4,
      line: { color: colour, width: serious ? 1.3 : 1, dash: mark.kind === 'resume' ? 'dash' : serious ? 'solid' : 'dot' },
    });
  }
  return shapes;
}

// ---- heads ----------------------------------------------------------------------------------------------------------

const BENEATH = new Set(['faded', 'raw', 'parent']);

function setLegend(S, T, slot) {
  const grouped = slot.data.traces.filter((trace) => !BENEATH.has(trace.role));
  const entries = grouped.map((trace) => ({ trace, raw: slot.data.traces.find((other) => other.role === 'raw' && other.colour === trace.colour) }));
  const faded = slot.data.traces.some((trace) => trace.role === 'faded');
  const looks = JSON.stringify([T.key, faded, entries.map(({ trace, raw }) => [trace.name, trace.role, trace.colour, Boolean(raw)])]);
  if (slot.looks === looks) {          // the same curves with other values
    slot.chips = entries.map((entry, i) => ({ ...slot.chips[i], ...entry }));
    for (const entry of slot.chips) sayValue(S, entry, null);
    return;
  }
  slot.looks = looks;
  slot.chips = entries.map((entry) => {
    const { trace, raw } = entry;
    const chip = element('span', 'gm-chip');
    const key = element('span', `gm-key${trace.role === 'part' ? ' gm-area' : ''}${trace.role === 'limit' ? ' gm-dash' : ''}`);
    key.style.color = slot.spec.kind === 'parts' && trace.role === 'line' ? T.text : colourOf(T, trace);
    const value = element('span', 'gm-value', chipText(S, entry, null));
    chip.append(key, element('span', 'gm-name', trace.name), value);
    if (raw) value.title = 'smoothed (as recorded)';
    return { chip, value, ...entry };
  });
  const nodes = slot.chips.map((entry) => entry.chip);
  if (faded) {
    const chip = element('span', 'gm-chip');
    const key = element('span', 'gm-key gm-dash');
    key.style.color = T.muted;
    chip.append(key, element('span', 'gm-name', S.data.query?.attempt ? 'the run as it stands' : 'superseded by a later attempt'));
    nodes.push(chip);
  }
  slot.legend.replaceChildren(...nodes);
}

function sayValue(S, entry, at) {
  const text = chipText(S, entry, at);
  if (entry.value.textContent !== text) entry.value.textContent = text;
}

function setNote(slot, log) {
  const traces = slot.data.traces;
  const sum = (name) => traces.reduce((total, trace) => total + (trace[name] || 0), 0);
  const ratio = Math.max(1, ...traces.map((trace) => trace.ratio || 1));
  const words = [];
  if (ratio >= 1.05) words.push([`reduced ${ratio >= 10 ? Math.round(ratio) : ratio.toFixed(1)}:1, extremes kept`, false]);
  for (const [name, word] of [['nan', 'NaN'], ['posinf', '∞'], ['neginf', '−∞']]) if (sum(name)) words.push([`${formatCount(sum(name))} ${word}`, true]);
  const least = traces.some((trace) => trace.at_least) ? 'at least ' : '';
  if (log && sum('nonpositive')) words.push([`${least}${formatCount(sum('nonpositive'))} values ≤ 0 are not on the log axis`, true]);
  const every = Math.max(1, ...traces.map((trace) => trace.every || 1));
  if (every > 1) words.push([`smoothed over every ${formatCount(every)}th value`, false]);
  if (traces.length && !traces.some((trace) => trace.count)) words.push(['no points in sight', false]);
  else if (traces.length && !traces.some((trace) => trace.y.some(Number.isFinite))) words.push(['no finite value in sight', true]);
  slot.note.replaceChildren(...words.flatMap(([text, bad], i) => [i ? ', ' : '', element('span', bad ? 'gm-bad' : '', text)]));
}

const KEPT = { largest: 'largest', smallest: 'smallest', farthest: 'farthest from zero' };

function setScale(S, T, slot) {
  const { ratio, nonfinite, cells, keep, measured } = slot.data;
  const box = element('span', 'gm-scale');
  const bar = element('span', 'gm-ramp');
  bar.style.background = `linear-gradient(to right, ${ramp(T, slot.data.scale_kind).map(([at, colour]) => `${colour} ${at * 100}%`).join(',')})`;
  const clipped = slot.data.scale_kind !== 'linear';
  const above = clipped && cells.includes(HEAT.steps), below = clipped && cells.includes(0);
  box.append(element('span', '', `${below ? '≤ ' : ''}${formatNumber(onScale(slot.data, 0))}`), bar, element('span', '', `${above ? '≥ ' : ''}${formatNumber(onScale(slot.data, 1))}`));
  const swatch = (colour, words) => { const s = element('span', 'gm-swatch'); s.style.background = colour; box.append(s, element('span', '', words)); };
  if (cells.includes(HEAT.zero)) swatch(T.zero, 'zero');
  if (cells.includes(HEAT.nonfinite)) swatch(T.nonfinite, 'non-finite');
  slot.legend.replaceChildren(box);
  const words = [];
  if (ratio >= 1.05) words.push([`reduced ${ratio >= 10 ? Math.round(ratio) : ratio.toFixed(1)}:1, ${KEPT[keep] || KEPT.largest} kept`, false]);
  if (measured) words.push([`measured at ${formatCount(measured[0])} of ${formatCount(measured[1])} steps${cells.includes(HEAT.absent) ? ', blank where not' : ''}`, false]);
  if (nonfinite) words.push([`${formatCount(nonfinite)} non-finite`, true]);
  slot.note.replaceChildren(...words.flatMap(([text, bad], i) => [i ? ', ' : '', element('span', bad ? 'gm-bad' : '', text)]));
}

function sayStatus(S) {
  let words = 'loading charts';
  if (S.failed) words = S.failed;
  else if (S.updated) {
    const seconds = Math.round((Date.now() - S.updated) / 1000);
    const step = S.state && S.state.last_step !== null ? `, step ${formatCount(S.state.last_step)}` : '';
    if (S.paused) words = 'charts paused';
    else if (S.state && S.state.live) words = `live${step}${seconds > 4 ? `, last asked ${seconds} s ago` : ''}`;
    else words = S.range ? '' : 'drag over a chart to zoom, double-click to go back';   // how it ended is in the header
  }
  if (S.status.textContent !== words) S.status.textContent = words;
  S.status.classList.toggle('gm-warn', Boolean(S.failed));
  S.pauseButton.hidden = !(S.paused || !S.state || S.state.live);
  S.resetButton.hidden = !S.range;
  S.spanText.textContent = S.range ? `${xWord(S, true)}${xText(S, S.range[0])} to ${xText(S, S.range[1])}` : '';
}

// ---- hands ----------------------------------------------------------------------------------------------------------

function relaid(S, slot, change) {
  if (slot.own > 0) return;
  const range = change['xaxis.range'] || (change['xaxis.range[0]'] !== undefined ? [change['xaxis.range[0]'], change['xaxis.range[1]']] : null);
  if (range) zoom(S, [Number(range[0]), Number(range[1])]);
}

function zoom(S, range, report = true) {
  if (range && !(Number.isFinite(range[0]) && range[1] > range[0])) return;
  S.range = range && range.map((end) => Number(end.toPrecision(10)));
  sayStatus(S);
  for (const slot of S.slots.values()) {
    delete S.versions[slot.id];
    slot.dirty = true;
    if (slot.visible && slot.drawn) draw(S, slot);      // the new range at once, finer data when it has come
  }
  tick(S);
  clearTimeout(S.reportTimer);
  // [] and not null for no zoom: null is what a new session has, so that it would be no change and no callback.
  if (report) S.reportTimer = setTimeout(() => whenAtRest(S.root, 'range', () => { if (!S.stopped) S.api.setStateValue('range', S.range || []); }), REPORT_AFTER_MS);
}

// Keys that no field and no button has taken; those of the page itself are in page_tools.js.
function pressedKey(S, event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !S.root.isConnected || !S.extent) return;
  if (event.target.closest?.('input, textarea, select, [contenteditable], [role=slider], [role=radio], [role=radiogroup], [role=grid], [role=listbox], canvas')) return;
  const [low, high] = xRange(S), width = high - low, middle = (low + high) / 2;
  const act = {
    '+': () => zoom(S, within(S, middle - width / 4, middle + width / 4)), '=': () => act['+'](),
    '-': () => zoom(S, within(S, middle - width, middle + width)),
    ArrowLeft: () => S.range && zoom(S, within(S, low - width / 4, high - width / 4)),
    ArrowRight: () => S.range && zoom(S, within(S, low + width / 4, high + width / 4)),
    0: () => zoom(S, null), p: () => S.pauseButton.hidden || S.pauseButton.click(),
    n: () => toIncident(S, 1), b: () => toIncident(S, -1),
  }[event.key];
  if (!act) return;
  act();
  event.preventDefault();
}

// A range that stays where there is something to see; null for all of it.
function within(S, low, high) {
  const [first, last] = S.extent, width = high - low;
  if (width >= last - first) return null;
  const from = Math.min(Math.max(low, first), last - width);
  return [from, from + width];
}

// The next incident to the right (1) or left (-1) of the middle of what is in sight, and what is round it.
function toIncident(S, way) {
  const [first, last] = S.extent, [low, high] = xRange(S), middle = S.range ? (low + high) / 2 : way > 0 ? -Infinity : Infinity;
  const found = (S.incidents || []).filter((x) => (x - middle) * way > (last - first) * 1e-6).sort((a, b) => (a - b) * way)[0];
  if (found === undefined) return;
  const half = Math.max((last - first) / 40, 1e-9);
  zoom(S, [found - half, found + half]);
}

function place(slot, event) {
  const axis = slot.plot._fullLayout?.xaxis, y = slot.plot._fullLayout?.yaxis;
  if (!axis || !y) return null;
  const box = slot.plot.getBoundingClientRect();
  const px = event.clientX - box.left - axis._offset, py = event.clientY - box.top - y._offset;
  if (px < 0 || px > axis._length) return null;
  return { px, py, x: axis.p2d(px), left: px + axis._offset, top: event.clientY - box.top, inside: py >= 0 && py <= y._length };
}

function hover(S, slot, event) {
  const at = slot && slot.drawn ? place(slot, event) : null;
  cancelAnimationFrame(S.frame);
  S.frame = requestAnimationFrame(() => {
    const own = slot?.spec.kind === 'profile';
    S.cursor.textContent = !at ? '' : own ? plain(slot.data.names[Math.round(at.x)] || '') : `${xWord(S, false)}${xText(S, at.x)}`;
    for (const other of S.slots.values()) {
      const shares = at && (other === slot || (!own && other.spec.kind !== 'profile'));
      other.cross.style.display = shares && other.drawn ? 'block' : 'none';
      if (at) other.cross.style.left = `${at.left}px`;
      for (const entry of other.chips || []) sayValue(S, entry, shares ? at : null);
      if (other !== slot || !at || !at.inside) other.tip.style.display = 'none';
    }
    if (at && at.inside && slot.spec.kind === 'heat') heatTip(S, slot, at);
    if (at && at.inside && own) profileTip(S, slot, at);
  });
}

// The value below the pointer, else the last one; of one of several runs nothing beyond its own ends.
function chipText(S, { trace, raw }, at) {
  if (!at && trace.last === undefined) return '';
  const beyond = at && S.data.view === 'compare' && !(at.x >= trace.x[0] && at.x <= trace.x[trace.x.length - 1]);
  const shown = (one) => formatNumber(beyond ? undefined : at ? valueAt(one, at.x) : one.last);
  return raw ? `${shown(trace)} (${shown(raw)})` : shown(trace);
}

function valueAt(trace, x) {
  const n = trace.x.length;
  if (!n) return undefined;
  let low = 0, high = n;
  while (low < high) { const middle = (low + high) >> 1; if (trace.x[middle] < x) low = middle + 1; else high = middle; }
  if (low === n || (low > 0 && x - trace.x[low - 1] < trace.x[low] - x)) low -= 1;
  return trace.y[low];
}

function cellAt(slot, at) {
  const { names, edges, cells, at: steps, steps: bounds } = slot.data;
  const columns = edges.length - 1;
  const row = Math.round(slot.plot._fullLayout.yaxis.p2d(at.py));
  let column = -1;
  for (let c = 0; c < columns; c += 1) if (edges[c] <= at.x && at.x < edges[c + 1]) { column = c; break; }
  if (row < 0 || row >= names.length || column < 0) return null;
  const code = cells[row * columns + column], only = steps ? steps[column] : -1;
  if (only >= 0) return { name: names[row], first: only, last: only, code };
  return { name: names[row], first: Math.ceil(bounds[column]), last: Math.max(Math.ceil(bounds[column]), Math.ceil(bounds[column + 1]) - 1), code };
}

function heatTip(S, slot, at) {
  const cell = cellAt(slot, at);
  if (!cell) { slot.tip.style.display = 'none'; return; }
  const clipped = slot.data.scale_kind !== 'linear';
  const value = { [HEAT.zero]: 'zero', [HEAT.absent]: 'not measured', [HEAT.nonfinite]: 'non-finite' }[cell.code] || `${clipped && cell.code === 0 ? 'at most' : clipped && cell.code === HEAT.steps ? 'at least' : 'about'} ${formatNumber(Number(onScale(slot.data, cell.code / HEAT.steps).toPrecision(2)))}`;
  const steps = cell.last > cell.first ? `steps ${formatCount(cell.first)} to ${formatCount(cell.last)}` : `step ${formatCount(cell.first)}`;
  showTip(slot, at, `${cell.name}, ${steps}: ${value}`);
}

function profileTip(S, slot, at) {
  const place = Math.round(at.x), name = slot.data.names[place];
  if (name === undefined) { slot.tip.style.display = 'none'; return; }
  const said = slot.data.traces.map((trace) => `${trace.name} ${formatNumber(valueOf(trace, place))}`);
  showTip(slot, at, `${name}: ${said.join(', ')}`);
}

// The value at one place of a profile, non-finite ones included; undefined where none was measured.
function valueOf(trace, place) {
  const kind = trace.marks ? trace.marks.kind[trace.marks.x.indexOf(place)] : undefined;
  if (kind !== undefined) return NONFINITE[kind].word;
  const at = trace.x.indexOf(place);
  return at < 0 ? undefined : trace.y[at];
}

function showTip(slot, at, words) {
  slot.tip.textContent = plain(words);
  slot.tip.style.display = 'block';
  const right = at.left > slot.wrap.clientWidth / 2;
  slot.tip.style.left = right ? '' : `${at.left + 14}px`;
  slot.tip.style.right = right ? `${slot.wrap.clientWidth - at.left + 14}px` : '';
  slot.tip.style.top = `${Math.max(0, Math.min(at.top + 10, slot.spec.height - 46))}px`;
}

// Plotly puts a cover over the page while the button is down, so a click is told from a drag by where it was let go.
function pressed(S, slot, down) {
  if (down.button !== 0) return;
  document.addEventListener('pointerup', (up) => {
    if (Math.hypot(up.clientX - down.clientX, up.clientY - down.clientY) > 4 || !slot.drawn) return;
    const at = place(slot, up);
    if (!at || !at.inside) return;
    if (slot.spec.kind === 'profile') { choose(S, slot.data.names[Math.round(at.x)], S.at); return; }
    const cell = cellAt(slot, at);
    if (cell) choose(S, cell.name, cell.last > cell.first ? `${cell.first}-${cell.last}` : String(cell.first));
  }, { once: true, capture: true });
}

// The layer whose curve is shown, and the step whose profile is; the same once more chooses none.
function choose(S, layer, at) {
  if (!layer) return;
  const again = S.layer === layer && S.at === at;
  S.layer = again ? null : layer;
  S.at = again ? null : at;
  S.api.setStateValue('cell', { layer: S.layer, at: S.at });
  tick(S);
}

function clicked(S, slot, event) {
  const point = event.points && event.points[0];
  if (slot.spec.kind === 'events' && point && point.customdata) S.api.setTriggerValue('incident', point.customdata);
}

function resized(S) {
  if (S.stopped || !window.Plotly || !S.root.clientWidth) return;     // without a width it has just left the page
  for (const slot of S.slots.values()) if (slot.drawn) { slot.dirty = true; if (slot.visible) draw(S, slot); }
  for (const slot of S.slots.values()) if (slot.drawn && slot.visible) window.Plotly.Plots.resize(slot.plot);
  tick(S);
}

// For a page that is saved: everything that is not folded away, in sight or not; true when it is all drawn.
async function drawAll(S) {
  for (const slot of S.slots.values()) slot.visible = !slot.node.hidden;
  await tick(S);
  for (const slot of S.slots.values()) if (slot.visible && slot.data && (slot.dirty || !slot.drawn)) draw(S, slot);
  return [...S.slots.values()].every((slot) => !slot.visible || slot.drawn);
}

function finish(S) {
  S.stopped = true;
  for (const timer of [S.timer, S.newsTimer, S.reportTimer, S.resizeTimer, S.soonTimer]) clearTimeout(timer);
  clearInterval(S.clock);
  S.seen.disconnect();
  S.sized.disconnect();
  document.removeEventListener('visibilitychange', S.onVisibility);
  S.scheme.removeEventListener('change', S.onScheme);
  document.removeEventListener('keydown', S.onKey);
  for (const slot of S.slots.values()) if (slot.drawn && window.Plotly) window.Plotly.purge(slot.plot);
}

// ---- entry ----------------------------------------------------------------------------------------------------------

export default function (component) {
  const root = component.parentElement.querySelector('.gm-grid');
  if (!root) return undefined;
  const S = (root.__gm && !root.__gm.stopped) ? root.__gm : (root.__gm = newState(root));
  S.api = component;
  S.drawAll = () => drawAll(S);
  S.data = component.data;
  if (S.given !== S.data.span_given) { S.given = S.data.span_given; if (S.drawnOnce) zoom(S, S.data.span, false); else S.range = S.data.span; }
  S.stat = S.data.stat;
  // Only what changed: a script run that began before a click must not undo it.
  if (S.layerGiven !== S.data.layer) { S.layerGiven = S.data.layer; S.layer = S.data.layer; }
  if (S.atGiven !== S.data.at) { S.atGiven = S.data.at; S.at = S.data.at; }
  if (S.pinsGiven !== S.data.pins.join()) { S.pinsGiven = S.data.pins.join(); S.pins = S.data.pins; }
  if (S.logsGiven !== S.data.logs.join()) {
    S.logsGiven = S.data.logs.join();
    S.logs = Object.fromEntries(S.data.logs.map((one) => [one.slice(0, -2), one.endsWith('1')]));
    for (const slot of S.slots.values()) if (slot.log !== (S.logs[slot.id] ?? null)) { slot.log = S.logs[slot.id] ?? null; slot.dirty = true; if (slot.visible) draw(S, slot); }
  }
  if (S.asked && S.asked !== JSON.stringify(S.data.query)) S.versions = {};    // another look: nothing of it is here
  S.asked = JSON.stringify(S.data.query);
  tick(S);
  // The clean-up may be called before a mere update; only a node that has left the page is given up.
  return () => setTimeout(() => { if (!root.isConnected) finish(S); }, 0);
}
