// What belongs to a page as a whole: its keys, their help, and the page as one file that needs no server. Text from
// outside goes into a page by textContent only; the saved file is the page's own nodes without anything that acts.

const KEYS = [
  ['1 … 9', 'section'], ['+  −', 'zoom in, out'], ['←  →', 'move'], ['0', 'whole run'], ['n  b', 'next incident, the one before'],
  ['p', 'pause or resume live charts'], ['m', 'search metrics'], ['s', 'save this page'], ['?', 'these keys'],
];
const FIELDS = 'input, textarea, select, [contenteditable], [role=slider], [role=listbox], [role=grid]';
const POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

// ---- keys -----------------------------------------------------------------------------------------------------------

function pressed(S, event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !S.root.isConnected) return;
  if (event.key === 'Escape' && S.help.open) return S.help.close();
  if (event.target.closest?.(FIELDS)) return;
  if (/^[1-9]$/.test(event.key)) {
    const choice = document.querySelectorAll('.st-key-section [role=radio], .st-key-section [data-testid="stButtonGroup"] button')[Number(event.key) - 1];
    if (!choice) return;
    choice.click();
  } else if (event.key === 'm') {
    const field = document.querySelector('.st-key-metrics input');
    if (!field) return;
    field.focus();
  } else if (event.key === 's') savePage(S);
  else if (event.key === '?') toggleHelp(S);
  else return;
  event.preventDefault();
}

function toggleHelp(S) {
  if (S.help.open) S.help.close(); else S.help.showModal();
}

function newHelp() {
  const help = element('dialog', 'gm-keys');
  help.append(element('h2', '', 'Keys'));
  const list = element('dl');
  for (const [keys, what] of KEYS) list.append(element('dt', '', keys), element('dd', '', what));
  const close = element('button', '', 'Close');
  close.type = 'button';
  close.onclick = () => help.close();
  help.append(list, close);
  help.addEventListener('click', (event) => { if (event.target === help) help.close(); });
  return help;
}

// ---- the page as one file -------------------------------------------------------------------------------------------

async function savePage(S) {
  S.say.textContent = 'saving';
  try {
    const text = await pageText(S.data.title);
    const url = URL.createObjectURL(new Blob([text], { type: 'text/html' }));
    const link = element('a');
    link.href = url;
    link.download = `${S.data.title.replace(/[^A-Za-z0-9._-]+/g, '-').slice(0, 120)}.html`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    S.say.textContent = '';
  } catch {
    S.say.textContent = 'the page could not be saved';
  }
}

async function pageText(title) {
  for (const grid of document.querySelectorAll('.gm-grid')) {
    for (let round = 0; round < 100 && grid.__gm && !(await grid.__gm.drawAll()); round += 1) await new Promise((done) => setTimeout(done, 100));
  }
  const main = document.querySelector('[data-testid="stMain"]');
  const copy = main.cloneNode(true);
  const canvases = [...main.querySelectorAll('canvas')], copies = [...copy.querySelectorAll('canvas')];
  copies.forEach((node, i) => node.replaceWith(pictureOf(canvases[i])));
  const fields = [...main.querySelectorAll('input, textarea')], values = [...copy.querySelectorAll('input, textarea')];
  values.forEach((node, i) => node.replaceWith(element('span', '', fields[i].value)));
  for (const node of copy.querySelectorAll('script, iframe, object, embed, link, meta, dialog, .gm-tools, .gm-page-tools, [hidden]')) node.remove();
  for (const node of copy.querySelectorAll('img')) if (!/^data:image\//.test(node.src)) node.remove();
  for (const node of copy.querySelectorAll('*')) {
    for (const { name, value } of [...node.attributes]) {
      const picture = node.tagName.toLowerCase() === 'image' && value.startsWith('data:image/');    // a heatmap's cells
      if (/^on|^(xlink:)?href$|^srcdoc$|^action$|^formaction$/i.test(name) && !picture) node.removeAttribute(name);
    }
  }
  const page = document.implementation.createHTMLDocument(title);
  const head = (tag, attributes, text) => { const node = page.createElement(tag); Object.entries(attributes).forEach(([k, v]) => node.setAttribute(k, v)); if (text) node.textContent = text; page.head.append(node); };
  page.head.querySelectorAll('meta').forEach((node) => node.remove());
  head('meta', { 'http-equiv': 'Content-Security-Policy', content: POLICY });
  head('meta', { charset: 'utf-8' });
  head('meta', { name: 'viewport', content: 'width=device-width' });
  head('style', {}, styles());
  page.body.style.cssText = bodyStyle();
  page.body.append(page.importNode(copy, true));
  return `<!doctype html>\n${page.documentElement.outerHTML}`;
}

function pictureOf(canvas) {
  const image = element('img');
  image.src = canvas.toDataURL('image/png');
  image.style.cssText = `width:${canvas.clientWidth}px;height:${canvas.clientHeight}px`;
  image.alt = 'table';
  return image;
}

// All rules that the page has, without fonts and whatever else would be fetched.
function styles() {
  const rules = [];
  for (const sheet of document.styleSheets) {
    try {
      for (const rule of sheet.cssRules) if (!(rule instanceof CSSFontFaceRule) && !(rule instanceof CSSImportRule)) rules.push(rule.cssText);
    } catch { /* a sheet of another place is not ours */ }
  }
  const own = 'body{margin:0;overflow:auto}[data-testid="stMain"]{position:static!important;overflow:visible!important;height:auto!important;display:block!important}';
  return `${rules.join('\n')}\n${own}`.replace(/url\((?!["']?#)[^)]*\)/g, 'none').replace(/<\//g, '<\\/');
}

function bodyStyle() {
  const css = getComputedStyle(document.querySelector('[data-testid="stApp"]'));
  const variables = [...document.querySelectorAll('.gm-grid, .gm-page-tools')].slice(0, 1).flatMap((node) => {
    const own = getComputedStyle(node);
    return ['--st-text-color', '--st-background-color', '--st-border-color', '--st-secondary-background-color', '--st-primary-color', '--st-font'].map((name) => `${name}:${own.getPropertyValue(name)}`);
  });
  return `background:${css.backgroundColor};color:${css.color};font-family:${css.fontFamily};${variables.join(';')}`;
}

// ---- entry ----------------------------------------------------------------------------------------------------------

function newState(root) {
  const S = { root, say: element('span', 'gm-say'), help: newHelp() };
  S.say.setAttribute('role', 'status');
  const button = (words, title, act) => {
    const node = element('button', '', words);
    node.type = 'button';
    node.title = title;
    node.onclick = act;
    return node;
  };
  root.replaceChildren(S.say, button('Save page', 'As one HTML file that needs no server', () => savePage(S)), button('Keys', 'Keys of this page (?)', () => toggleHelp(S)), S.help);
  S.onKey = (event) => pressed(S, event);
  document.addEventListener('keydown', S.onKey);
  return S;
}

export default function (component) {
  const root = component.parentElement.querySelector('.gm-page-tools');
  if (!root) return undefined;
  const S = (root.__gm ??= newState(root));
  S.data = component.data;
  return () => setTimeout(() => { if (!root.isConnected) document.removeEventListener('keydown', S.onKey); }, 0);
}
