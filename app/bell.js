// A bell on a run's page: off until a person turns it on; then each new incident is a notification of the desktop where
// the browser allows it, and in any case a mark in the title of the tab until it is looked at. Text only, never markup.

const LEVELS = ['off', 'critical', 'warning'];
const WORDS = { off: 'Bell off', critical: 'Bell: critical', warning: 'Bell: warnings' };
const KEY = 'gradiometer-bell';
const MARK = '▲ ';

const read = () => { try { const kept = localStorage.getItem(KEY); return LEVELS.includes(kept) ? kept : 'off'; } catch { return 'off'; } };
const keep = (level) => { try { localStorage.setItem(KEY, level); } catch { /* private mode: for this page only */ } };
const able = () => 'Notification' in window && window.isSecureContext;
const wanted = (incident, level) => level !== 'off' && (incident.severity === 'critical' || level === incident.severity);

function mark() {
  if (!document.title.startsWith(MARK)) document.title = MARK + document.title;
}

function unmark() {
  if (document.title.startsWith(MARK)) document.title = document.title.slice(MARK.length);
}

function notify(S, incident) {
  if (document.hidden || !document.hasFocus()) mark();
  S.said.textContent = `${incident.severity}: ${incident.summary}`;
  if (!able() || Notification.permission !== 'granted') return;
  const told = new Notification(`${S.data.name}: ${incident.severity}`, { body: incident.summary, tag: `${S.data.run}/${incident.key}` });
  told.onclick = () => { window.focus(); told.close(); };
}

function draw(S) {
  S.button.textContent = WORDS[S.level];
  S.button.setAttribute('aria-pressed', String(S.level !== 'off'));
  S.button.title = able()
    ? 'Notify this desktop of new incidents while the page is open: off, critical ones, or warnings too.'
    : 'Mark this tab when there is a new incident; notifications need a secure address, such as 127.0.0.1.';
}

async function turn(S) {
  S.level = LEVELS[(LEVELS.indexOf(S.level) + 1) % LEVELS.length];
  keep(S.level);
  draw(S);
  if (S.level !== 'off' && able() && Notification.permission === 'default') await Notification.requestPermission();
}

export default function (component) {
  const root = component.parentElement.querySelector('.gm-bell');
  if (!root) return undefined;
  const S = (root.__gm ??= { level: read(), seen: null, run: null });
  S.data = component.data;
  if (!S.button) {
    S.button = root.querySelector('button');
    S.said = root.querySelector('[role="status"]');
    S.button.addEventListener('click', () => turn(S));
  }
  window.addEventListener('focus', unmark);   // again after each clean-up; the same function twice is once
  if (S.run !== S.data.run) { S.run = S.data.run; S.seen = null; }
  if (S.data.incidents) {
    // What was there when the page was opened is no news; an incident that got worse is.
    const now = new Map(S.data.incidents.map((incident) => [`${incident.key}/${incident.severity}`, incident]));
    for (const [key, incident] of now) {
      if (S.seen !== null && !S.seen.has(key) && wanted(incident, S.level)) notify(S, incident);
    }
    S.seen = new Set([...(S.seen ?? []), ...now.keys()]);
  }
  draw(S);
  return () => window.removeEventListener('focus', unmark);
}
