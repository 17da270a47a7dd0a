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

// A chart over time in the size of its box. `lines`: [{name, colour, values, area}], `times` in Unix ms; `ticks` of the
// values' axis where they do not depend on the values; `gaps` are true where nothing is known, and shown as such.
function chart(box, { times, lines, ticks, format, note, gaps = [] }) {
  const width = Math.max(280, box.clientWidth), height = Math.max(150, box.clientHeight);
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const left = 4.2 * rem, right = 0.4 * rem, above = 0.6 * rem, below = 1.7 * rem;
  const all = lines.flatMap((l) => l.values).filter(Show.known);
  const levels = ticks || roundTicks(Math.max(...all, 1));
  const max = levels[levels.length - 1];
  const x = (i) => left + (times.length < 2 ? 0 : (i / (times.length - 1)) * (width - left - right));
  const y = (v) => above + (1 - Math.min(v, max) / max) * (height - above - below);
  const drawing = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': lines.map((l) => l.name).join(', ') });
  for (const v of levels) {
    drawing.append(svg('line', { class: 'axis', x1: left, x2: width - right, y1: y(v), y2: y(v) }),
      svg('text', { x: left - 0.5 * rem, y: y(v) + 0.27 * rem, 'text-anchor': 'end' }, format(v).replace('.0 ', ' ')));
  }
  if (times.length > 1) {
    const end = times.length - 1, seconds = (times[end] - times[0]) / 1000;
    const marks = Math.max(2, Math.min(6, Math.floor((width - left) / (6 * rem))));
    const step = TIME_STEPS.find((s) => s >= seconds / marks) || TIME_STEPS[TIME_STEPS.length - 1];
    for (let ago = 0; ago <= seconds; ago += step) {
      const at = x(end * (1 - ago / seconds));
      drawing.append(svg('text', { x: at, y: height - 0.2 * rem, 'text-anchor': ago === 0 ? 'end' : at < left + 2 * rem ? 'start' : 'middle' }, ago ? `−${agoText(ago)}` : 'now'));
    }
  }
  for (let from = 0; from < gaps.length; from++) {
    if (!gaps[from]) continue;
    let to = from;
    while (to + 1 < gaps.length && gaps[to + 1]) to++;
    // Skip the time before the first known value and the newest, still incomplete steps.
    if (from > 0 && to < gaps.length - 1) {
      const at = x(from - 1), wide = x(to + 1) - at;
      drawing.append(svg('rect', { class: 'gap', x: at, y: above, width: wide, height: height - above - below }, svg('title', {}, 'unknown')));
      if (wide > 5 * rem) drawing.append(svg('text', { x: at + wide / 2, y: above + 1.1 * rem, 'text-anchor': 'middle' }, 'unknown'));
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
    if (line.area && area) drawing.append(svg('path', { class: 'area', d: area, fill: line.colour }));
    if (d) drawing.append(svg('path', { class: 'line', d, stroke: line.colour }));
  }
  if (!all.length) drawing.append(svg('text', { x: left + (width - left) / 2, y: height / 2, 'text-anchor': 'middle' }, note || 'no traffic yet'));
  box.replaceChildren(drawing);
}
