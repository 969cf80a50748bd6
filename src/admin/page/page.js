'use strict';
// Asks the process that serves the page, with GET only, and puts what view.js makes of the answers into the document: as text, never
// as markup.

/** How long an answer may take. */
const DEADLINE_MS = 3000;

const SVG = new Set(['svg', 'polyline', 'rect']);

/** Make an element's children these, changing only what differs: a selection, a focus and a scrolled table stay. */
function patch(parent, kids) {
  // What is not there keeps its place, so that what follows is not made anew when it comes.
  const all = kids.flat(Infinity).map((kid) => (kid === null || kid === undefined || kid === false ? '' : kid));
  all.forEach((kid, i) => {
    const have = parent.childNodes[i];
    const place = (node) => (have === undefined ? parent.appendChild(node) : parent.replaceChild(node, have));
    if (typeof kid !== 'object') {
      if (have?.nodeType !== 3) place(document.createTextNode(String(kid)));
      else if (have.data !== String(kid)) have.data = String(kid);
      return;
    }
    let node = have;
    if (have?.localName !== kid.tag) {
      node = SVG.has(kid.tag) ? document.createElementNS('http://www.w3.org/2000/svg', kid.tag) : document.createElement(kid.tag);
      place(node);
    }
    for (const name of node.getAttributeNames()) if (!(name in kid.props)) node.removeAttribute(name);
    for (const [name, value] of Object.entries(kid.props)) {
      if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
    }
    patch(node, kid.kids);
  });
  while (parent.childNodes.length > all.length) parent.removeChild(parent.lastChild);
}

function start() {
  /** What was asked for, by path. */
  const slots = new Map();
  const chooser = document.getElementById('cluster');
  let cluster = new URLSearchParams(location.search).get('cluster');
  let clusters = [];

  function slotOf(path) {
    const empty = { flying: false, due: 0, body: null, refused: false, at: null, error: null, since: null, past: new Map() };
    if (!slots.has(path)) slots.set(path, empty);
    return slots.get(path);
  }

  function paths() {
    const [first] = wanted(null, cluster);
    return wanted(slotOf(first.path).body, cluster);
  }

  // One clock may be set, the other may stand still while the machine sleeps.
  const stamp = () => ({ wall: Date.now(), run: performance.now() });
  const since = (at) => Math.max(Date.now() - at.wall, performance.now() - at.run, 0);

  async function ask({ key, path, every }) {
    const slot = slotOf(path);
    if (slot.flying || performance.now() < slot.due) return;
    // Ticks are not exact.
    [slot.flying, slot.due] = [true, performance.now() + every - POLL_MS / 2];
    const stop = new AbortController();
    const deadline = setTimeout(() => stop.abort(), DEADLINE_MS);
    // An answer may be on its way for a while.
    const sent = stamp();
    try {
      const answer = await fetch(path, { signal: stop.signal, cache: 'no-store' });
      took(slot, key, answer.status, await answer.json(), sent);
    } catch (error) {
      slot.error = stop.signal.aborted ? `nothing came for ${duration(DEADLINE_MS)}` : String(error?.message ?? error);
      [slot.since, slot.refused] = [slot.since ?? stamp(), false];
    } finally {
      clearTimeout(deadline);
      slot.flying = false;
    }
    tick();
  }

  function took(slot, key, code, body, sent) {
    const good = code === 200;
    // A status that is refused tells of the process all the same.
    if (good || key === 'status') [slot.body, slot.at] = [body, sent];
    slot.refused = !good;
    slot.error = good ? null : String(body?.error ?? `HTTP status ${code}`);
    slot.since = good ? null : slot.since ?? stamp();
    if (good && key === 'lag') slot.past = remember(slot.past, body, Date.now());
    const lag = key === 'past' && paths().find((path) => path.key === 'lag');
    if (good && lag) slotOf(lag.path).past = recalled(body, Date.now());
  }

  function render() {
    const view = { now: Date.now(), lag: null, report: null, terms: null };
    for (const { key, path, every } of paths()) {
      const slot = slotOf(path);
      const [age, failing] = [slot.at, slot.since].map((at) => (at === null ? null : since(at)));
      view[key] = { ...slot, age, failing, since: slot.since?.wall ?? null, fresh: every + STALE_MS };
    }
    patch(document.getElementById('page'), pageOf(view));
    document.title = titleOf(view.status);
    // The choice stays while the answer for another one is waited for.
    const named = clustersOf(view.status.body);
    if (named.length > 0) clusters = named;
    document.getElementById('choice').hidden = clusters.length < 2;
    patch(chooser, clusters.map((name) => h('option', { value: name }, name)));
    const chosen = cluster ?? clusters[0] ?? '';
    if (chooser.value !== chosen) chooser.value = chosen;
  }

  function tick() {
    if (document.hidden) return;
    for (const path of paths()) ask(path);
    render();
  }

  chooser.addEventListener('change', () => {
    cluster = chooser.value;
    history.replaceState(null, '', `?cluster=${encodeURIComponent(cluster)}`);
    tick();
  });
  document.addEventListener('visibilitychange', tick);
  setInterval(tick, POLL_MS);
  tick();
}

start();
