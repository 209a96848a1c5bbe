// What a component asks of the page by the clock waits while a person may have asked for another page. A fragment that is
// asked for while that page is on its way is gone when its turn comes, and Streamlit (1.67) then tells the browser that
// the page's own run was cut short: the page stays white for good. Its script state alone does not tell, which changes only
// when the server has answered; and what is asked for leaves the browser a moment later, so that a click may yet come
// first: a page that is white at rest is asked for again. Stands before the source of each component that asks.

const ANSWERED_MS = 700;       // between what a person does and the server's first answer to it (our judgement)
const LOOK_MS = 500, LOOKS = 20;

const scriptRests = () => (document.querySelector('[data-testid="stApp"]')?.dataset.testScriptState ?? 'notRunning') === 'notRunning';
const pageIsWhite = () => document.querySelector('[data-testid="stMainBlockContainer"] [data-testid="stVerticalBlock"]')?.childElementCount === 0;

// One for all components, which outlives them.
const acted = (globalThis.gradiometerActed ??= (() => {
  const last = { at: 0 };
  let timer = 0;
  const look = (left, white) => {
    const still = pageIsWhite() && scriptRests();
    if (white && still) dispatchEvent(new PopStateEvent('popstate'));      // as the back button asks for a page
    else if (left) timer = setTimeout(() => look(left - 1, still), LOOK_MS);
  };
  const note = () => {
    last.at = Date.now();
    clearTimeout(timer);
    timer = setTimeout(() => look(LOOKS, false), LOOK_MS);
  };
  for (const kind of ['click', 'keydown', 'change', 'popstate']) addEventListener(kind, note, true);
  return last;
})());

// Once for each ``kind`` of question of a component's node, however often it is asked for meanwhile.
function whenAtRest(root, kind, act) {
  const waiting = (root.__gmWaiting ??= new Set());
  if (waiting.has(kind)) return;
  waiting.add(kind);
  const look = () => {
    if (!scriptRests() || Date.now() - acted.at <= ANSWERED_MS) return setTimeout(look, 100);
    waiting.delete(kind);
    return act();
  };
  look();
}

