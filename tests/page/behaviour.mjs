// The page's own decisions, with a clock and answers of this test: `node behaviour.mjs DIRECTORY-OF-THE-PAGE`.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import vm from 'node:vm';
import { Document, lines } from './dom.mjs';

const read = (name) => readFileSync(path.join(process.argv[2], name), 'utf8');
const html = read('index.html');

/** A page and its time. `answer(path)` gives a status and a body, an Error, or nothing at all: then none comes. */
class World {
  asked = [];
  flying = 0;
  #timers = [];
  #now = 0;

  constructor(answer, search = '') {
    this.answer = answer;
    this.document = new Document(html);
    const world = this;
    const timer = (every) => (act, ms) => {
      this.#timers.push({ at: this.#now + ms, act, every: every ? ms : null });
      return this.#timers[this.#timers.length - 1];
    };
    class Clock extends Date {
      static now() { return 1_700_000_000_000 + world.#now; }
    }
    this.context = vm.createContext({
      document: this.document, location: { search }, history: { replaceState: (...args) => { this.replaced = args; } }, URLSearchParams,
      AbortController, Date: Clock, performance: { now: () => this.#now }, fetch: (...args) => this.#fetch(...args),
      setTimeout: timer(false), setInterval: timer(true),
      clearTimeout: (one) => { this.#timers = this.#timers.filter((t) => t !== one); },
    });
    for (const [, src] of html.matchAll(/<script[^>]*\bsrc="([^"]+)"/g)) vm.runInContext(read(src), this.context, { filename: src });
  }

  #fetch(at, { signal }) {
    this.asked.push(at);
    this.flying += 1;
    return new Promise((resolve, reject) => {
      const end = (how, what) => { this.flying -= 1; how(what); };
      signal.addEventListener('abort', () => end(reject, new Error('aborted')));
      const found = this.answer(at);
      if (found instanceof Error) end(reject, found);
      else if (found !== undefined) end(resolve, { status: found[0], json: async () => found[1] });
    });
  }

  async pass(ms) {
    const to = this.#now + ms;
    for (;;) {
      await new Promise(setImmediate);
      const next = this.#timers.filter((t) => t.at <= to).sort((a, b) => a.at - b.at)[0];
      if (next === undefined) break;
      this.#now = Math.max(this.#now, next.at);
      if (next.every === null) this.#timers = this.#timers.filter((t) => t !== next);
      else next.at += next.every;
      next.act();
    }
    this.#now = to;
  }

  shows(...fragments) {
    const text = lines(this.document.getElementById('page')).join('\n');
    for (const fragment of fragments) assert.ok(text.includes(fragment), `${fragment} is missing:\n${text}`);
  }

  lacks(fragment) {
    const text = lines(this.document.getElementById('page')).join('\n');
    assert.ok(!text.includes(fragment), `${fragment} is there:\n${text}`);
  }

  /** The elements of a kind, in order. */
  all(tag, from = this.document.getElementById('page')) {
    return from.childNodes.flatMap((node) => [...(node.localName === tag ? [node] : []), ...this.all(tag, node)]);
  }

  get(expression) { return vm.runInContext(expression, this.context); }
}

const manager = { ready: true, waits_for: null, state: null };
function status(more) {
  return {
    cluster: 'demo', term: 7, phase: 'active', primary: 'n1', mode: 'strict', policy: null, suspended: null, paused: null, leading: true,
    leader: { id: 'a', admin: 'db1:7400' }, nodes: [], proxies: [], records_ms_ago: 10, verdict_text: ['nothing to do'], outdated_etcd: [],
    safe_to_lose_primary: { safe: true, as_promised: true, why: [] },
    process: { version: '1', pid: 2, clusters: ['demo'], roles: { manager } }, ...more,
  };
}
const standby = (node, more) => ({
  node, replay_lsn: '0/5', receive_lsn: '0/5', replay_lag_bytes: 0, replay_lag_ms: 0, sample_age_ms: 100, unknown: null, ...more,
});
const lag = (...standbys) => ({ term: 7, primary: { node: 'n1', insert_lsn: '0/5' }, standbys });
const none = [404, { error: 'no change of primary yet' }];
const healthy = (at) => {
  if (at.startsWith('status')) return [200, status()];
  return at.startsWith('lag') ? [200, lag(standby('n2'))] : none;
};

async function words() {
  const page = new World(() => undefined);
  const check = (expression, expected) => assert.deepEqual(JSON.parse(JSON.stringify(page.get(expression))), expected, expression);
  check('[0, 9999, 10000, 16 * 1024 * 1024, null].map(bytes)', ['0 B', '9999 B', '9 KiB', '16 MiB', 'unknown']);
  check('[0, 9999, 10000, 600000, 36e6, null].map(duration)', ['0 ms', '9999 ms', '10 s', '10 min', '10 h', 'unknown']);
  check('[known(0), known(null), ago(null, 5), ago(20, 5)]', ['0', 'unknown', 'unknown', '25 ms ago']);
  check("[['0/9', '0/10'], ['1/0', '0/FFFFFFFF'], ['0/A', '0/A']].map(([a, b]) => reaches(a, b))", [false, true, true]);
  check("['db1:7400', '[::1]:7400', 'javascript:alert(1)', 'a b:1', null].map(pageAt)", ['http://db1:7400/', 'http://[::1]:7400/', null, null, null]);
  // It ends now, is as high as the greatest lag, and has a gap where the lag was not known or nobody looked.
  const points = "[[0, 5], [1, 10], [2, null], [3, null], [4, 0], [60, 7]].map(([s, ms]) => ({ at: s * 1000, ms }))";
  check(`spark(${points}, 600000, 600, 22)`, { lines: ['0,11 1,1', '4,21', '60,7'], gaps: [{ from: 2, to: 4 }], top: 10, unknown: 2 });
  check('spark([], 600000, 600, 22)', { lines: [], gaps: [], top: null, unknown: 0 });
}

async function a_leader_that_answers_is_shown() {
  const page = new World(healthy);
  await page.pass(2500);
  page.shows('Losing the primary now: ✔ safe', 'n2 | 0 ms | 0 B', 'no change of primary yet', 'up to 0 ms');
  page.lacks('another version');
  assert.equal(page.document.title, 'demo: safe – pgtenure');
  assert.deepEqual(page.asked.slice(0, 4), ['status?local=1', 'lag', 'report', 'history']);
  assert.equal(page.document.getElementById('choice').hidden, true);
}

async function old_news_is_never_told_as_safe() {
  const page = new World(healthy);
  await page.pass(1000);
  page.shows('✔ safe');
  const tables = page.all('table');
  page.answer = () => new Error('connection refused');
  await page.pass(7000);
  page.lacks('✔ safe');
  page.shows('? not known', 'ago: safe', 'No answer from this process since 2023-11-14T22:13:2', 'connection refused', 'As it was 7');
  // Where somebody has scrolled to, and what is selected, stays.
  assert.ok(tables.length > 2 && page.all('table').every((table, i) => table === tables[i]));
  assert.equal(page.document.title, 'no answer – pgtenure');
  page.answer = healthy;
  await page.pass(1000);
  page.shows('✔ safe');
  page.lacks('No answer');
}

async function silence_is_told_and_one_request_waits_at_a_time() {
  const page = new World(() => undefined);
  await page.pass(2900);
  assert.deepEqual([page.asked.length, page.flying], [1, 1]);
  page.shows('waiting for the first answer');
  await page.pass(200);
  page.shows('nothing came for 3000 ms');
  assert.equal(page.flying, 1);
}

async function nobody_is_asked_for_a_page_out_of_sight() {
  const page = new World(healthy);
  await page.pass(1000);
  page.document.hidden = true;
  const before = page.asked.length;
  await page.pass(60_000);
  assert.equal(page.asked.length, before);
  page.answer = () => undefined;
  page.document.hidden = false;
  page.document.dispatch('visibilitychange');
  assert.ok(page.asked.length > before);
  page.shows('? not known', 'As it was 60 s ago');
}

async function what_is_not_known_is_not_zero_and_a_renamed_key_is_named() {
  const page = new World((at) => {
    const other = { ...standby('n2', { replay_lag_ms: null, replay_lag_bytes: null, sample_age_ms: null, unknown: 'unreachable' }) };
    return at === 'lag' ? [200, lag(other)] : healthy(at);
  });
  await page.pass(1500);
  page.shows('n2 | unknown | unknown | 0/5 | unknown | unknown | unreachable');
  const { phase, ...renamed } = status();
  page.answer = (at) => (at.startsWith('status') ? [200, { ...renamed, stage: phase }] : healthy(at));
  await page.pass(1500);
  page.shows('phase: unknown', 'another version', 'what it shows: phase');
}

async function who_does_not_lead_knows_nothing_of_safety_and_names_who_leads() {
  const page = new World((at) => (at.startsWith('status') ? [200, status({ leading: false })] : none));
  await page.pass(1500);
  page.shows('? not known here', 'leading manager: db1:7400 (a)');
  assert.equal(page.all('a')[0].getAttribute('href'), 'http://db1:7400/?cluster=demo');
  assert.ok(!page.asked.includes('lag'));
}

async function others_words_are_text() {
  const page = new World((at) => (at.startsWith('status') ? [200, status({ primary: '<img src=x onerror=alert(1)>' })] : none));
  await page.pass(1500);
  page.shows('primary: <img src=x onerror=alert(1)>');
}

async function one_of_several_clusters_is_chosen() {
  const named = (at) => new URLSearchParams(at.split('?')[1]).get('cluster');
  const process = { ...status().process, clusters: ['demo', 'a&b'] };
  const page = new World((at) => {
    if (named(at) === 'gone') return [404, { error: 'cluster gone is not looked after here', process }];
    return at.startsWith('status') ? [200, status({ cluster: named(at) ?? 'demo', process })] : none;
  });
  await page.pass(500);
  const chooser = page.document.getElementById('cluster');
  assert.deepEqual([page.document.getElementById('choice').hidden, chooser.value, lines(chooser)], [false, 'demo', ['demo', 'a&b']]);
  chooser.value = 'a&b';
  chooser.dispatch('change');
  await page.pass(1000);
  page.shows('Cluster a&b');
  assert.ok(page.asked.includes('report?cluster=a%26b') && page.replaced[2] === '?cluster=a%26b');
  chooser.value = 'gone';
  chooser.dispatch('change');
  await page.pass(1000);
  page.shows('This process answers: cluster gone is not looked after here');
  page.lacks('Losing the primary');
}

for (const test of [
  words, a_leader_that_answers_is_shown, old_news_is_never_told_as_safe, silence_is_told_and_one_request_waits_at_a_time,
  nobody_is_asked_for_a_page_out_of_sight, what_is_not_known_is_not_zero_and_a_renamed_key_is_named,
  who_does_not_lead_knows_nothing_of_safety_and_names_who_leads, others_words_are_text, one_of_several_clusters_is_chosen,
]) {
  try {
    await test();
  } catch (error) {
    console.error(`${test.name}: ${error.stack}`);
    process.exitCode = 1;
  }
}
