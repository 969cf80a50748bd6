// What an operator sees: `node browser.mjs http://HOST:PORT/ [?cluster=NAME]` loads the page of a process that runs, with its
// scripts and its answers, and prints as JSON
//   title, lines   the window's title and what stands on the page once all that was asked for has been answered
//   lacking        keys that the page shows and the answers had not
//   silent         keys that answers leave out where there is nothing to say, and that none had
//   paths          what was asked for

import vm from 'node:vm';
import { Document, lines } from './dom.mjs';

const [origin, search = ''] = process.argv.slice(2);
setTimeout(() => {
  console.error('the page did not come to rest');
  process.exit(1);
}, 60_000);

async function text(path, accept) {
  const answer = await fetch(new URL(path, origin), { headers: { accept } });
  if (answer.status !== 200) throw new Error(`${path}: ${answer.status}`);
  return answer.text();
}

const html = await text(`/${search}`, 'text/html,*/*;q=0.8');
const document = new Document(html);
const [paths, asked, found] = [[], new Set(), new Set()];
let flying = 0;

async function page(path, options) {
  if (Object.keys(options).some((key) => !['signal', 'cache'].includes(key))) throw new Error(`not a plain GET: ${JSON.stringify(options)}`);
  paths.push(path);
  flying += 1;
  try {
    const answer = await fetch(new URL(path, origin), options);
    const body = await answer.json();
    return { status: answer.status, json: async () => body };
  } finally {
    flying -= 1;
    // Its next questions follow at once.
    setTimeout(() => flying === 0 && finish(), 50);
  }
}

const context = vm.createContext({
  document, location: { search }, history: { replaceState() {} }, fetch: page,
  URLSearchParams, AbortController, performance, setTimeout, clearTimeout, setInterval,
});
for (const [, src] of html.matchAll(/<script[^>]*\bsrc="([^"]+)"/g)) {
  vm.runInContext(await text(src, '*/*'), context, { filename: src });
}
const { maybe } = context;
context.maybe = (of, key) => {
  const value = maybe(of, key);
  if (of !== null && of !== undefined) asked.add(key);
  if (value !== null) found.add(key);
  return value;
};

function finish() {
  const seen = {
    title: document.title, lines: lines(document.getElementById('page')), lacking: [...vm.runInContext('lacking', context)],
    silent: [...asked].filter((key) => !found.has(key)), paths,
  };
  process.stdout.write(`${JSON.stringify(seen)}\n`, () => process.exit(0));
}
