'use strict';
// Words and trees that the operators' page is made of: JSON in, plain objects out, no document and no clock.
//
// What an answer does not know (null) is shown as unknown, never as 0. A key that an answer lacks is named on the page: a field
// that was renamed must not look like one that has nothing to tell.

/** Between two looks. */
const POLL_MS = 1000;
/** What is older is not taken for the present. */
const STALE_MS = 5000;
/** What a line shows, as long as lagmon remembers. */
const SPAN_MS = 600000;
/** Rows shown of a long list; the JSON has more. */
const SHOWN = 20;
const UNKNOWN = 'unknown', NONE = '–';

// ---- Reading answers

/** Keys that answers should have and have not. */
const lacking = new Set();

/** Values of keys that every such object has; null is unknown or none. */
function pick(of, ...keys) {
  return keys.map((key) => {
    if (of === null || of === undefined) return null;
    if (typeof of !== 'object' || !(key in of)) lacking.add(key);
    return of[key] ?? null;
  });
}

/** The value of a key that is left out where there is nothing to say. */
function maybe(of, key) {
  return of?.[key] ?? null;
}

function list(of, key) {
  const [found] = pick(of, key);
  if (found !== null && !Array.isArray(found)) lacking.add(`${key} (a list)`);
  return Array.isArray(found) ? found : [];
}

// ---- Words

const known = (value) => (value === null || value === undefined ? UNKNOWN : String(value));
const orNone = (value) => (value === null || value === undefined ? NONE : String(value));

/** Bytes with a binary unit, as the commands print them. */
function bytes(n) {
  if (typeof n !== 'number') return UNKNOWN;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (n >= 10000 && unit + 1 < units.length) [n, unit] = [Math.floor(n / 1024), unit + 1];
  return `${n} ${units[unit]}`;
}

function duration(ms) {
  if (typeof ms !== 'number') return UNKNOWN;
  const units = [[1e4, 1, 'ms'], [6e5, 1e3, 's'], [36e6, 6e4, 'min'], [Infinity, 36e5, 'h']];
  const [, one, unit] = units.find(([below]) => ms < below);
  return `${Math.floor(ms / one)} ${unit}`;
}

/** How long ago that was, by an answer that is itself so old. */
const ago = (ms, age) => (typeof ms === 'number' ? `${duration(ms + age)} ago` : UNKNOWN);

function utc(ms) {
  return typeof ms === 'number' ? new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z') : UNKNOWN;
}

const because = (why) => (why ? `: ${why}` : '');
const until = (ms) => (ms === null ? '' : `, until ${utc(ms)}`);

const last = (items) => items[items.length - 1];

/** Is the position `a` at or past `b`? */
function reaches(a, b) {
  const [[aHigh, aLow], [bHigh, bLow]] = [a, b].map((lsn) => lsn.split('/').map((part) => parseInt(part, 16)));
  return aHigh > bHigh || (aHigh === bHigh && aLow >= bLow);
}

// ---- Trees

const h = (tag, props, ...kids) => ({ tag, props: props ?? {}, kids });
const p = (...kids) => h('p', null, ...kids);
const alarm = (...kids) => h('p', { class: 'alarm' }, ...kids);
const bullets = (lines) => lines.length > 0 && h('ul', null, ...lines.map((line) => h('li', null, line)));
const facts = (pairs) => h('dl', null, ...pairs.filter(Boolean).map(([k, v]) => h('div', null, h('dt', null, k), h('dd', null, v))));

/** The first cell of a row names it. */
function table(caption, heads, rows) {
  const row = ([first, ...rest]) => h('tr', null, h('th', { scope: 'row' }, first), ...rest.map((cell) => h('td', null, cell)));
  const head = h('thead', null, h('tr', null, ...heads.map((text) => h('th', { scope: 'col' }, text))));
  const body = h('tbody', null, ...rows.map(row));
  // Wider than a telephone: it scrolls by itself, by keys too.
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    h('table', null, h('caption', null, caption), head, body));
}

/** A part of the page, marked with the age of its answer where that is not of now. */
function section(title, answer, ...kids) {
  const old = answer.age !== null && answer.age > answer.fresh;
  const failed = answer.refused ? answer.error : `No new answer for ${duration(answer.failing)}: ${answer.error}`;
  return h('section', old ? { class: 'stale' } : null, h('h2', null, title), answer.error !== null && p(h('strong', null, failed)),
    old && p(`As it was ${duration(answer.age)} ago:`), ...kids);
}

/** The same of an answer that may not have come yet. */
function awaited(title, answer, kids) {
  if (answer.body !== null) return section(title, answer, ...kids(answer.body));
  return section(title, answer, answer.error === null && p('waiting for the first answer …'));
}

/** Points `{at, ms}`, oldest first, as lines of a picture that ends now; `ms` is null where it was not known. */
function spark(points, now, width, height) {
  const shown = points.filter((point) => now - point.at <= SPAN_MS);
  const top = shown.reduce((most, point) => Math.max(most, point.ms ?? 0), 0);
  const x = (at) => Math.round(Math.min(width - ((now - at) / SPAN_MS) * width, width) * 10) / 10;
  const y = (ms) => Math.round((height - 1 - (ms / Math.max(top, 1)) * (height - 2)) * 10) / 10;
  const lines = [], gaps = [];
  let before = null;
  for (const point of shown) {
    const apart = before === null || point.at - before.at > STALE_MS;
    if (point.ms !== null) {
      if (apart || before.ms === null) lines.push([]);
      last(lines).push(`${x(point.at)},${y(point.ms)}`);
    } else if (apart || before.ms !== null) {
      gaps.push({ from: x(point.at), to: x(point.at + POLL_MS) });
    } else {
      last(gaps).to = x(point.at + POLL_MS);
    }
    before = point;
  }
  const unknown = shown.filter((point) => point.ms === null).length;
  return { lines: lines.map((line) => line.join(' ')), gaps, top: unknown < shown.length ? top : null, unknown };
}

function sparkTree(node, points, now) {
  const [width, height] = [240, 32];
  const { lines, gaps, top, unknown } = spark(points, now, width, height);
  const most = top === null ? UNKNOWN : `up to ${top} ms`;
  const words = `${most}${top !== null && unknown > 0 ? `, unknown ${unknown} times` : ''}`;
  // A line of one point would not be seen.
  const drawn = lines.map((line) => h('polyline', { points: line.includes(' ') ? line : `${line} ${line}` }));
  const wide = ({ from, to }) => Math.max(to - from, 1).toFixed(1);
  const boxes = gaps.map((gap) => h('rect', { x: gap.from, y: 1, width: wide(gap), height: height - 2 }));
  const props = { class: 'spark', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `replay lag of ${node}: ${words}` };
  return [h('svg', props, ...boxes, ...drawn), words];
}
