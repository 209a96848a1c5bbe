// Stands in a part of a page and has it run again every so many seconds, while somebody can see the page: what changed in
// a tab behind others is drawn when it is looked at. With the bell on, which rings in such a tab too, it goes on slowly.

const HIDDEN_S = 10;
const belled = () => { try { return (localStorage.getItem('gradiometer-bell') ?? 'off') !== 'off'; } catch { return false; } };

export default function ({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector('.gm-followed');
  if (!root) return undefined;
  let last = Date.now(), missed = false, ended = false;
  const due = () => !document.hidden || (data.bell && belled() && Date.now() - last >= HIDDEN_S * 1000);
  const beat = () => {
    missed = !due();
    if (missed || !root.isConnected) return;
    last = Date.now();
    whenAtRest(root, 'beat', () => { if (root.isConnected && !ended) setTriggerValue('beat', last); });
  };
  const shown = () => { if (missed && !document.hidden) beat(); };
  const timer = setInterval(beat, data.every * 1000);
  document.addEventListener('visibilitychange', shown);
  return () => { ended = true; clearInterval(timer); document.removeEventListener('visibilitychange', shown); };
}
