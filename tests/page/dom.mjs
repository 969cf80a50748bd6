// The least of a document that the operators' page needs. Whatever would read text as markup fails.

class Node {
  childNodes = [];

  get lastChild() { return this.childNodes[this.childNodes.length - 1] ?? null; }

  get textContent() { return this.childNodes.map((node) => node.textContent).join(''); }

  appendChild(node) {
    this.childNodes.push(node);
    return node;
  }

  replaceChild(node, old) { this.childNodes[this.#place(old)] = node; }

  removeChild(node) { this.childNodes.splice(this.#place(node), 1); }

  #place(node) {
    const at = this.childNodes.indexOf(node);
    if (at < 0) throw new Error('not a child');
    return at;
  }
}

class Text extends Node {
  nodeType = 3;

  constructor(data) {
    super();
    if (typeof data !== 'string') throw new Error(`no text: ${data}`);
    this.data = data;
  }

  get textContent() { return this.data; }
}

class Element extends Node {
  nodeType = 1;
  #attributes = new Map();
  #listeners = new Map();

  constructor(localName, namespaceURI = 'http://www.w3.org/1999/xhtml') {
    super();
    Object.assign(this, { localName, namespaceURI, hidden: false, value: '' });
  }

  getAttributeNames() { return [...this.#attributes.keys()]; }

  getAttribute(name) { return this.#attributes.get(name) ?? null; }

  setAttribute(name, value) {
    if (name === 'style' || name.startsWith('on')) throw new Error(`the policy of the page forbids ${name}`);
    this.#attributes.set(name, String(value));
  }

  removeAttribute(name) { this.#attributes.delete(name); }

  addEventListener(name, listener) { this.#listeners.set(name, listener); }

  dispatch(name) { this.#listeners.get(name)?.(); }
}

for (const name of ['innerHTML', 'outerHTML', 'insertAdjacentHTML', 'append', 'prepend']) {
  Object.defineProperty(Element.prototype, name, { get() { throw new Error(`${name} is not for this page`); }, set() { throw new Error(name); } });
}

/** With the elements of `html` that have an id. */
export class Document extends Element {
  hidden = false;
  title = '';
  #byId = new Map();

  constructor(html) {
    super('#document');
    for (const [, tag, id] of html.matchAll(/<(\w+)[^>]*\bid="([^"]+)"/g)) this.#byId.set(id, new Element(tag));
  }

  getElementById(id) { return this.#byId.get(id) ?? null; }

  createElement(tag) { return new Element(tag); }

  createElementNS(space, tag) { return new Element(tag, space); }

  createTextNode(data) { return new Text(data); }
}

/** What somebody reads: a line for each paragraph, item, heading, fact and row. */
export function lines(node) {
  const joined = { tr: ' | ', div: ': ' }[node.localName];
  const whole = ['p', 'li', 'h2', 'caption', 'option', 'tr'].includes(node.localName) || node.childNodes[0]?.localName === 'dt';
  if (node.nodeType === 3 || whole) {
    return [joined === undefined ? node.textContent : node.childNodes.map((cell) => cell.textContent).join(joined)];
  }
  return node.childNodes.flatMap(lines).filter((line) => line !== '');
}
