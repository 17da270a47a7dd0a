// Small drawing helpers: elements, numbers for people, line charts. No state.
'use strict';
const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'style') for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Makes the children of `box` equal to `nodes` and keeps every element that is there already: by its `data-key`, or else
// the next one of the same kind. So a selection, a tooltip, the focus and a running animation survive an update, and
// rows do not jump.
const keyOf = (node) => (node.nodeType === 1 ? node.getAttribute('data-key') : null);
const kindOf = (node) => (node.nodeType === 1 ? `${node.nodeName}.${node.getAttribute('class') || ''}` : node.nodeName);
function morph(box, ...nodes) {
  const wanted = nodes.flat(Infinity).filter((n) => n !== null && n !== undefined && n !== false)
    .map((n) => (typeof n === 'object' ? n : document.createTextNode(String(n))));
  const wantedKeys = new Set(wanted.map(keyOf));
  const kept = new Map();
  for (const child of [...box.childNodes]) {
    const key = keyOf(child);
    if (key === null) continue;
    if (wantedKeys.has(key)) kept.set(key, child);
    else child.remove();
  }
  let at = box.firstChild;
  for (const node of wanted) {
    const key = keyOf(node);
    const old = key === null ? unkeyed(at, node) : kept.get(key)?.nodeName === node.nodeName ? kept.get(key) : null;
    if (!old) { box.insertBefore(node, at); continue; }
    if (key === null) while (at !== old) { const next = at.nextSibling; at.remove(); at = next; }
    if (old === at) at = at.nextSibling;
    else box.insertBefore(old, at);
    update(old, node);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

// The element without a key that `node` updates: the next of its very kind, or the next one if only the class differs.
function unkeyed(at, node) {
  for (let n = at; n && keyOf(n) === null; n = n.nextSibling) if (kindOf(n) === kindOf(node)) return n;
  return at && keyOf(at) === null && at.nodeName === node.nodeName ? at : null;
}

function update(old, node) {
  if (node.nodeType !== 1) { if (old.data !== node.data) old.data = node.data; return; }
  for (const { name, value } of [...node.attributes]) if (name !== 'style' && old.getAttribute(name) !== value) old.setAttribute(name, value);
  // What somebody has opened stays open.
  for (const { name } of [...old.attributes]) if (name !== 'style' && name !== 'open' && !node.hasAttribute(name)) old.removeAttribute(name);
  // The page's policy permits styles that scripts set property by property, but no style attributes.
  if (old.style.cssText !== node.style.cssText) old.style.cssText = node.style.cssText;
  morph(old, [...node.childNodes]);
}

// Numbers and times for people. An unknown value is a dash, never a zero.
const Show = {
  none: '–',
  known: (x) => x !== null && x !== undefined && Number.isFinite(x),
  number(x) {
    if (!Show.known(x)) return Show.none;
    const a = Math.abs(x);
    if (a >= 1e9) return (x / 1e9).toFixed(1) + ' G';
    if (a >= 1e6) return (x / 1e6).toFixed(1) + ' M';
    if (a >= 1e5) return (x / 1e3).toFixed(0) + ' k';
    return a >= 100 || Number.isInteger(x) ? Math.round(x).toLocaleString('en') : x.toFixed(1);
  },
  count: (n, one, many = one + 's') => `${Show.number(n)} ${n === 1 ? one : many}`,
  percent: (x) => (Show.known(x) ? (x * 100).toFixed(1) + ' %' : Show.none),
  bytes(x) {
    if (!Show.known(x)) return Show.none;
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
    let u = 0;
    while (Math.abs(x) >= 1024 && u < units.length - 1) { x /= 1024; u++; }
    return (u === 0 || x >= 100 ? Math.round(x) : x.toFixed(1)) + ' ' + units[u];
  },
  bits(x) {
    if (!Show.known(x)) return Show.none;
    const units = ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s', 'Tbit/s'];
    let u = 0;
    while (x >= 1000 && u < units.length - 1) { x /= 1000; u++; }
    return (u === 0 || x >= 100 ? Math.round(x) : x.toFixed(1)) + ' ' + units[u];
  },
  ms(x) {
    if (!Show.known(x)) return Show.none;
    return x < 1000 ? Math.round(x) + ' ms' : (x / 1000).toFixed(x < 10000 ? 2 : 1) + ' s';
  },
  span(seconds) {
    if (!Show.known(seconds)) return Show.none;
    const s = Math.max(0, Math.round(seconds));
    if (s < 90) return s + ' s';
    if (s < 5400) return Math.round(s / 60) + ' min';
    if (s < 172800) return (s / 3600).toFixed(1) + ' h';
    return Math.round(s / 86400) + ' days';
  },
  time: (unixMs) => (unixMs ? new Date(unixMs).toLocaleTimeString('en-GB') : Show.none),
  // A time of another day has its date.
  moment: (unixMs) => (new Date(unixMs).toDateString() === new Date().toDateString() ? '' : new Date(unixMs).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' }) + ' ') + Show.time(unixMs),
  minute: (m) => String(Math.floor(m / 60)).padStart(2, '0') + ':' + String(Math.floor(m) % 60).padStart(2, '0'),
};

// A line without axes for a figure's card; gaps where nothing is known.
function sparkline(values, most) {
  const known = values.filter(Show.known);
  if (known.length < 2) return svg('svg', { viewBox: '0 0 100 24', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  const top = most ?? Math.max(...known, 1e-9);
  const at = values.map((v, i) => (Show.known(v) ? [(i / (values.length - 1)) * 100, 23 - (v / top) * 22] : null));
  const runs = [];
  let run = [];
  for (const p of at) { if (p) run.push(p); else if (run.length) { runs.push(run); run = []; } }
  if (run.length) runs.push(run);
  const text = (r) => r.map((p) => p[0].toFixed(1) + ' ' + p[1].toFixed(1)).join('L');
  return svg('svg', { viewBox: '0 0 100 24', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    runs.map((r) => svg('path', { class: 'spark-fill', d: 'M' + r[0][0].toFixed(1) + ' 24L' + text(r) + 'L' + r[r.length - 1][0].toFixed(1) + ' 24Z' })),
    runs.map((r) => svg('path', { class: 'spark', d: 'M' + text(r) })));
}

// Round values from 0 to `max` or a little above, for an axis.
function roundTicks(max) {
  const rough = max / 4, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * ten).find((s) => s >= rough * 0.999);
  return Array.from({ length: Math.ceil(max / step - 0.001) + 1 }, (_, k) => k * step);
}
const TIME_STEPS = [5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 432000]; // seconds between marks of a time axis
const agoText = (s) => (s % 60 ? `${s} s` : s < 3600 || s % 3600 ? `${s / 60} min` : s < 172800 && s % 86400 ? `${s / 3600} h` : `${s / 86400} d`);

// What an event's mark looks like: a path around 0,0 and a name for the legend.
const MARKS = {
  purge: { d: 'M0-4.5 4.5 0 0 4.5-4.5 0Z', name: 'purge' },
  push: { d: 'M0-4.5 4.5 4H-4.5Z', name: 'push' },
  out: { d: 'M-4-4 4 4M4-4-4 4', name: 'node out' },
  back: { d: 'M4 0A4 4 0 1 1-4 0 4 4 0 1 1 4 0Z', name: 'node back' },
  restart: { d: 'M-4-4H4V4H-4Z', name: 'control started' },
};
const markIcon = (kind) => svg('svg', { class: 'mark-icon', viewBox: '-6 -6 12 12', 'aria-hidden': 'true' }, svg('path', { class: `mark ${kind}`, d: MARKS[kind].d }));

// A chart over time in the size of its box. `lines`: [{name, colour, values, area}], `times` in Unix ms; `ticks` of the
// values' axis where they do not depend on the values; `gaps` are true where nothing is known, and shown as such;
// `marks`: [{kind, at, text}], events on the time axis.
function chart(box, { times, lines, ticks, format, note, gaps = [], marks = [] }) {
  const width = Math.max(200, box.clientWidth), height = Math.max(60, box.clientHeight);
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const left = 4.2 * rem, right = 0.5 * rem, above = 1.2 * rem, below = 1.7 * rem;
  const all = lines.flatMap((l) => l.values).filter(Show.known);
  const levels = ticks || roundTicks(Math.max(...all, 1));
  const max = levels[levels.length - 1];
  const x = (i) => left + (times.length < 2 ? 0 : (i / (times.length - 1)) * (width - left - right));
  const y = (v) => above + (1 - Math.min(v, max) / max) * (height - above - below);
  const drawing = svg('svg', { 'data-key': 'plot', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': lines.map((l) => l.name).join(', ') });
  const layer = (key) => { const g = svg('g', { 'data-key': key }); drawing.append(g); return g; };
  const [axes, unknown, curves, events] = ['axes', 'unknown', 'curves', 'events'].map(layer);
  for (const v of levels) {
    axes.append(svg('line', { class: 'axis', x1: left, x2: width - right, y1: y(v), y2: y(v) }),
      svg('text', { x: left - 0.5 * rem, y: y(v) + 0.27 * rem, 'text-anchor': 'end' }, format(v).replace('.0 ', ' ')));
  }
  const end = times.length - 1;
  if (times.length > 1) {
    const seconds = (times[end] - times[0]) / 1000;
    const most = Math.max(2, Math.min(6, Math.floor((width - left) / (6 * rem))));
    const step = TIME_STEPS.find((s) => s >= seconds / most) || TIME_STEPS[TIME_STEPS.length - 1];
    for (let ago = 0; ago <= seconds; ago += step) {
      const at = x(end * (1 - ago / seconds));
      axes.append(svg('text', { x: at, y: height - 0.2 * rem, 'text-anchor': ago === 0 ? 'end' : at < left + 2 * rem ? 'start' : 'middle' }, ago ? `−${agoText(ago)}` : 'now'));
    }
  }
  for (let from = 0; from < gaps.length; from++) {
    if (!gaps[from]) continue;
    let to = from;
    while (to + 1 < gaps.length && gaps[to + 1]) to++;
    // Skip the time before the first known value and the newest, still incomplete steps.
    if (from > 0 && to < gaps.length - 1) {
      const at = x(from - 1), wide = x(to + 1) - at;
      unknown.append(svg('rect', { class: 'gap', x: at, y: above, width: wide, height: height - above - below }, svg('title', {}, 'unknown')));
      if (wide > 5 * rem) unknown.append(svg('text', { x: at + wide / 2, y: above + 1.1 * rem, 'text-anchor': 'middle' }, 'unknown'));
    }
    from = to;
  }
  for (const line of lines) {
    let d = '', area = '', open = false, last = 0;
    line.values.forEach((v, i) => {
      if (!Show.known(v)) { if (open) area += `L${x(last).toFixed(1)} ${y(0)}Z`; open = false; return; }
      const p = `${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
      d += (open ? 'L' : 'M') + p;
      area += open ? 'L' + p : `M${x(i).toFixed(1)} ${y(0)}L${p}`;
      open = true; last = i;
    });
    if (open) area += `L${x(last).toFixed(1)} ${y(0)}Z`;
    if (line.area && area) curves.append(svg('path', { class: 'area', d: area, fill: line.colour }));
    if (d) curves.append(svg('path', { class: 'line', d, stroke: line.colour }));
  }
  if (!all.length) curves.append(svg('text', { x: left + (width - left) / 2, y: height / 2, 'text-anchor': 'middle' }, note || 'no traffic yet'));
  // Marks of one kind that would cover one another are one mark. Events later than the newest step are at its right end.
  const placed = [];
  if (times.length > 1) {
    for (const m of marks) {
      if (m.at < times[0]) continue;
      const at = Math.min(width - right, left + ((m.at - times[0]) / (times[end] - times[0])) * (width - left - right));
      const near = placed.find((p) => p.kind === m.kind && Math.abs(p.x - at) < 0.8 * rem);
      if (near) near.events.push(m);
      else placed.push({ kind: m.kind, x: at, events: [m] });
    }
  }
  for (const p of placed) {
    events.append(svg('g', { 'data-key': `${p.kind} ${p.events[p.events.length - 1].at}`, transform: `translate(${p.x.toFixed(1)} 0)` },
      svg('title', {}, p.events.slice(0, 6).map((e) => `${Show.moment(e.at)} ${e.text}`).join('\n') + (p.events.length > 6 ? `\nand ${p.events.length - 6} more` : '')),
      svg('line', { class: `mark-line ${p.kind}`, y1: 0.9 * rem, y2: height - below }),
      svg('path', { class: `mark ${p.kind}`, d: MARKS[p.kind].d, transform: `translate(0 ${0.55 * rem}) scale(${rem / 15})` })));
  }
  if (!box.hair) { box.hair = el('div', { 'data-key': 'hair', class: 'hair', hidden: true }, el('i', {}), el('div', { class: 'reading' })); box.append(box.hair); listenTo(box); }
  box.plot = { times, lines, format, placed, left, right, width, x };
  box.hair.style.setProperty('--above', `${above}px`);
  box.hair.style.setProperty('--below', `${below}px`);
  if (box.firstChild === box.hair) box.prepend(drawing);
  else update(box.firstChild, drawing);
  read(box);
}

// The cross-hair: one time in all charts, by pointer, or by arrow keys where a chart has the focus.
const Hair = { share: null, charts: [] };
function listenTo(box) {
  Hair.charts.push(box);
  const move = (share) => {
    Hair.share = share === null ? null : Math.max(0, Math.min(1, share));
    Hair.charts.forEach(read);
  };
  const at = (event) => { const { left, right, width } = box.plot; move((event.clientX - box.getBoundingClientRect().left - left) / (width - left - right)); };
  box.addEventListener('pointermove', at);
  box.addEventListener('pointerdown', at);
  box.addEventListener('pointerleave', () => move(null));
  box.addEventListener('blur', () => move(null));
  box.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (event.key === 'Escape') return move(null);
    if (event.key !== 'Home' && event.key !== 'End' && !step) return undefined;
    event.preventDefault();
    const cells = Math.max(1, box.plot.times.length - 1);
    return move(event.key === 'Home' ? 0 : event.key === 'End' ? 1 : (Hair.share ?? 1) + step / cells);
  });
}

// Shows values, absolute time and events at the cross-hair.
function read(box) {
  const { times, lines, format, placed, left, right, width, x } = box.plot;
  box.hair.hidden = Hair.share === null || times.length < 2;
  if (box.hair.hidden) return;
  const i = Math.round(Hair.share * (times.length - 1)), at = x(i);
  box.hair.style.setProperty('--x', `${at}px`);
  box.hair.classList.toggle('left', at > left + (width - left - right) * 0.55);
  const near = placed.filter((p) => Math.abs(p.x - at) < 8).flatMap((p) => p.events.map((e) => ({ ...e, kind: p.kind })));
  morph(box.hair.lastChild, el('b', {}, Show.moment(times[i])), Hair.note ? el('small', {}, Hair.note(times[i])) : null,
    lines.map((l) => el('span', {}, el('i', { class: 'swatch', style: { background: l.colour } }), `${l.name} `, el('b', {}, Show.known(l.values[i]) ? format(l.values[i], true) : 'unknown'))),
    near.slice(0, 3).map((e) => el('span', { class: 'event' }, markIcon(e.kind), e.text)), near.length > 3 ? el('span', {}, `and ${near.length - 3} more`) : null);
}
