// The console: polls control's API once a second and draws the answers. It holds no state of its own about the fleet.
'use strict';

const $ = (id) => document.getElementById(id);
const WINDOW = 30; // seconds over which current rates are means
const SERIES_SECONDS = 600;
const EVENTS_KEPT = 512;
const EVENTS_SHOWN = 200;
const OVERLAP = 5; // steps of a series that are asked for again, because late reports may still change them
const ARCS_MAX = 120;
const WHO_ROWS = 9;
const state = { status: null, fleet: null, plan: null, pushes: null, purges: null, certificates: null, series: {}, events: [], failing: 0, failure: '', answeredAt: 0 };

async function ask(path, options) {
  let response, text;
  try {
    response = await fetch('v1/' + path, { cache: 'no-store', signal: AbortSignal.timeout(5000), ...options });
    text = await response.text();
  } catch {
    throw new Error('Control does not answer.');
  }
  let body = null;
  try { body = JSON.parse(text); } catch { /* reported below */ }
  if (!response.ok) {
    const error = new Error(body?.error?.message || `control answered ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return body;
}

// A cluster has the same colour everywhere, by its position in the fleet file.
const colourOf = (cluster) => {
  const i = (state.status?.clusters || []).findIndex((c) => c.name === cluster);
  return i < 0 ? 'var(--faint)' : `var(--c${i % 8})`;
};
const swatch = (colour) => el('i', { class: 'swatch', style: { background: colour } });
const clusterKey = (name) => el('span', { class: 'key' }, swatch(colourOf(name)), name);
const STATE_CLASS = { up: 'good', degraded: 'warn', draining: 'warn', drained: 'warn', waiting: '', silent: 'warn', down: 'bad' };
const stateTag = (s) => el('span', { class: 'tag ' + (STATE_CLASS[s] ?? '') }, s);
const WHY = { geo: 'nearest place', rtt: 'least round trip', explore: 'tests the second best', weighted: 'by weight', 'round-robin': 'in turn', failover: 'the best is out of service or just back',
  spill: 'the best is full', 'all-full': 'all are full', 'no-place': 'place unknown', 'all-down': 'none is healthy', 'no-address': 'no such address' };
const REGIONS = typeof Intl.DisplayNames === 'function' ? new Intl.DisplayNames(['en'], { type: 'region' }) : null;
const country = (code) => { try { return code ? REGIONS?.of(code) || code : 'unknown place'; } catch { return code; } };

// Ratios over a moving span of a series, as sums over sums; null where nothing was counted. Unknown values stay null, and the
// chart has a gap there.
const ratio = (part, whole) => (whole > 0 ? part / whole : null);
const smooth = (top, bottom, reach) => bottom.map((_, i) => {
  let a = 0, b = 0;
  if (!Show.known(bottom[i])) return null;
  for (let k = Math.max(0, i - reach + 1); k <= i; k++) { a += top[k] ?? 0; b += bottom[k] ?? 0; }
  return ratio(a, b);
});
const less = (a, b) => a.map((v, i) => (Show.known(v) && Show.known(b[i]) ? v - b[i] : null));

function drawFigures() {
  const { status } = state, series = state.series[SERIES_SECONDS] && knownPart(state.series[SERIES_SECONDS]);
  const now = status.recent, all = status.since_start, t = series?.total;
  const edges = status.nodes.filter((n) => n.role === 'edge');
  const up = edges.filter((n) => n.state === 'up').length;
  const lately = (values) => values?.slice(-120) || [];
  const answers = status.selections.reduce((sum, s) => sum + s.recent, 0) / status.window_seconds;
  const saved = all.response_bytes - all.origin_bytes;
  const shares = () => el('div', { class: 'bar' }, status.clusters.map((c) => {
    const given = status.selections.filter((s) => s.cluster === c.name).reduce((sum, s) => sum + s.recent, 0);
    return el('i', { 'data-key': c.name, title: `${c.name}: ${given} answers`, style: { width: (given / (answers * status.window_seconds)) * 100 + '%', background: colourOf(c.name) } });
  }));
  const figures = [
    ['Requests', Show.number(now.requests_per_second), '/s', Show.bits(now.egress_bits_per_second) + ' to clients', lately(t?.counted)],
    ['Object hit ratio', Show.percent(now.object_hit_ratio), '', now.counted ? `${Show.number(now.hits)} of ${Show.number(now.counted)} requests` : 'no requests', t ? lately(smooth(t.hits, t.counted, 10)) : []],
    ['Byte hit ratio', Show.percent(now.byte_hit_ratio), '', now.response_bytes ? Show.bytes(now.response_bytes) + ' served' : 'no bytes',
      t ? lately(smooth(less(t.response_bytes, t.origin_bytes), t.response_bytes, 10).map((v) => (v === null ? v : Math.max(0, v)))) : []],
    ['Origin bytes saved', Show.bytes(Math.max(0, saved)), '', `of ${Show.bytes(all.response_bytes)} served`, t ? lately(less(t.response_bytes, t.origin_bytes).map((v) => (v === null ? v : Math.max(0, v)))) : []],
    ['Steered answers', isDnsSilent() ? Show.none : Show.number(answers), isDnsSilent() ? '' : '/s', isDnsSilent() ? 'no name server reports' : Show.count(new Set(status.selections.filter((s) => s.recent && s.country).map((s) => s.country)).size, 'country', 'countries'), answers ? shares() : null],
    ['Edges up', `${up}`, ` of ${edges.length}`, edges.length - up ? edges.filter((n) => n.state !== 'up').map((n) => `${n.name} ${n.state}`).join(', ') : 'all report', el('div', { class: 'dots' }, edges.map((n) => el('i', { 'data-key': n.name, class: STATE_CLASS[n.state] ?? '', title: `${n.name} ${n.state}` })))],
  ];
  morph($('figures'), figures.map(([name, value, unit, note, line]) =>
    el('div', { class: 'figure', 'data-key': name }, el('span', {}, name), el('b', {}, value, unit ? el('small', {}, unit) : null), el('em', { title: note }, note), Array.isArray(line) ? (line.length ? sparkline(line, name.endsWith('ratio') ? 1 : null) : null) : line)));
  $('figures-note').textContent = `Rates and ratios are means of the last ${status.window_seconds} s, curves show the last two minutes; bytes saved count since control started, ${Show.span((status.now_unix_ms - status.started_unix_ms) / 1000)} ago.`;
}

// The map's box, in its own units: the nearly empty far north and south are cut off.
const MAP = { left: 0, top: 4, right: World.width, bottom: World.top - World.bottom - 6 };
// The map's layers, made once: land, night, arcs, clients, clusters.
const layers = {};
function mapLayers() {
  if (layers.drawing) return;
  layers.drawing = svg('svg', { viewBox: `${MAP.left} ${MAP.top} ${MAP.right - MAP.left} ${MAP.bottom - MAP.top}`, role: 'img', 'aria-label': 'Map: clusters, where their clients are, and where it is night' });
  layers.drawing.append(svg('path', { class: 'land', d: World.path() }));
  for (const name of ['night', 'flows', 'clients', 'pins', 'names']) layers.drawing.append(layers[name] = svg('g', { class: name }));
  $('world').replaceChildren(layers.drawing);
}

// Answers of the window by place and cluster, most first.
function flowsOf(selections) {
  const flows = new Map();
  for (const s of selections) {
    if (!s.recent || (!s.country && !s.latitude && !s.longitude)) continue;
    const place = `${s.country} ${s.latitude} ${s.longitude}`, key = `${place} ${s.cluster}`;
    const flow = flows.get(key) || { ...s, key, place, recent: 0 };
    flow.recent += s.recent;
    flows.set(key, flow);
  }
  return [...flows.values()].sort((a, b) => b.recent - a.recent || (a.key < b.key ? -1 : 1));
}

function drawMap() {
  const { status } = state;
  mapLayers();
  const flows = flowsOf(status.selections), most = Math.max(1, flows[0]?.recent || 0);
  const places = new Map(status.clusters.map((c) => [c.name, World.project(c.latitude, c.longitude)]));
  const byKey = (a, b) => (a.key < b.key ? -1 : 1); // a stable order, so that arcs do not change places
  const clients = new Map();
  for (const f of flows) {
    const known = clients.get(f.place);
    if (known) known.recent += f.recent;
    else clients.set(f.place, { ...f, key: f.place });
  }
  const crowd = Math.max(0.45, Math.min(1, 14 / Math.sqrt(flows.length + 1) / 2));
  morph(layers.night, [0, -6, -12].map((altitude) => svg('path', { d: World.night(status.clock.fleet_unix_ms, altitude) })));
  morph(layers.flows, flows.slice(0, ARCS_MAX).sort(byKey).map((f) => {
    const from = World.project(f.latitude, f.longitude), to = places.get(f.cluster);
    const distance = to ? Math.hypot(to[0] - from[0], to[1] - from[1]) : 0;
    if (distance <= 1.5) return null;
    const bend = [(from[0] + to[0]) / 2, Math.max(MAP.top, (from[1] + to[1]) / 2 - Math.min(30, distance * 0.28))];
    // Answers of before its edges were out: no client is sent there any more.
    const isPast = status.clusters.some((c) => c.name === f.cluster && (c.state === 'down' || c.state === 'drained'));
    return svg('path', { 'data-key': f.key, class: isPast ? 'flow past' : 'flow', d: `M${from}Q${bend} ${to}`, stroke: colourOf(f.cluster), 'stroke-width': (crowd * (0.45 + 1.5 * Math.sqrt(f.recent / most))).toFixed(2) },
      svg('title', {}, `${country(f.country)} to ${f.cluster}: ${Show.count(f.recent, 'answer')} in ${status.window_seconds} s`));
  }));
  const busiest = Math.max(1, ...[...clients.values()].map((c) => c.recent));
  morph(layers.clients, [...clients.values()].sort(byKey).map((c) => {
    const [x, y] = World.project(c.latitude, c.longitude);
    return svg('circle', { 'data-key': c.key, class: 'client', cx: x, cy: y, r: (0.8 + 1.6 * Math.sqrt(c.recent / busiest)).toFixed(2), fill: colourOf(c.cluster) },
      svg('title', {}, `${country(c.country)}: ${Show.count(c.recent, 'answer')} in ${status.window_seconds} s, most to ${c.cluster}`));
  }));

  // Text keeps its size on the screen as far as the map has room for it.
  const scale = (layers.drawing.getBoundingClientRect().width || 700) / (MAP.right - MAP.left);
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const size = Math.max(4.6, Math.min(11, (0.95 * rem) / scale)), small = size * 0.8;
  const lines = (c) => {
    const rate = c.state === 'up' ? `${Show.number(c.recent.requests_per_second)}/s` : c.state === 'drained' ? 'drained' : `${c.nodes_up}/${c.nodes} up`;
    return [c.name, rate + (c.push_order ? ', filling' : c.off_peak_now ? ', window open' : '')];
  };
  // By the longest text that a label may have, so that labels do not move when their numbers change.
  const labels = status.clusters.map((c) => {
    const [x, y] = places.get(c.name), [name, about] = lines(c);
    return { x, y, width: Math.max(name.length * size * 0.66, Math.max(7, about.length) * small * 0.6), height: size + small * 1.15 };
  });
  const corners = World.labels(labels, [MAP.left + 2, MAP.top + 1, MAP.right - 2, MAP.bottom - 1], 5.5);
  morph(layers.pins, status.clusters.map((c) => {
    const [x, y] = places.get(c.name);
    const colour = c.state === 'down' ? 'var(--bad)' : c.state === 'waiting' || c.state === 'drained' ? 'var(--faint)' : colourOf(c.name);
    const push = c.push_order ? ', filled by a push now' : c.off_peak_now ? ', push window open' : '';
    return svg('g', { 'data-key': c.name }, svg('title', {}, `${c.label}: ${c.nodes_up} of ${c.nodes} edges up${push}`),
      c.off_peak_now || c.push_order ? svg('circle', { class: c.push_order ? 'window filling' : 'window', cx: x, cy: y, r: 8.2, stroke: colour }) : null,
      svg('circle', { class: 'halo', cx: x, cy: y, r: 6, fill: colour }), svg('circle', { class: 'pin', cx: x, cy: y, r: 3.1, fill: colour }),
      c.state === 'down' ? svg('path', { class: 'cross', d: `M${x - 2} ${y - 2}l4 4m0-4l-4 4` }) : null);
  }));
  morph(layers.names, status.clusters.map((c, i) => {
    const [x, y] = corners[i], late = x + labels[i].width / 2 < labels[i].x;
    const at = { x: late ? x + labels[i].width : x, 'text-anchor': late ? 'end' : 'start' };
    const [name, about] = lines(c);
    return svg('g', { 'data-key': c.name, class: 'label' }, svg('text', { class: 'pin-label', y: y + size * 0.85, 'font-size': size, ...at }, name),
      svg('text', { class: 'pin-label small', y: y + size * 0.85 + small * 1.15, 'font-size': small, ...at }, about));
  }));
  const sky = `fleet time ${status.clock.fleet_time.slice(11, 16)} UTC`;
  $('map-note').textContent = (flows.length ? `${Show.count(clients.size, 'place')} of clients, answers of the last ${status.window_seconds} s` : isDnsSilent() ? 'no name server reports' : `no steered answers in the last ${status.window_seconds} s`) + `, ${sky}`;

  const rows = [...status.selections].filter((s) => s.recent > 0).map((s) => ({ ...s, key: [s.country, s.latitude, s.longitude, s.site, s.cluster, s.reason].join(' ') })).sort((a, b) => b.recent - a.recent);
  const shown = settled(rows);
  const body = shown.map((s) => el('tr', { 'data-key': s.key }, el('td', {}, country(s.country), el('small', { class: 'narrow' }, s.site)), el('td', {}, s.site), el('td', {}, clusterKey(s.cluster)), el('td', {}, WHY[s.reason] || s.reason),
    el('td', { class: 'n' }, Show.number((s.recent * 60) / status.window_seconds))));
  if (!rows.length) body.push(el('tr', {}, el('td', { colspan: 5, class: 'empty' }, isDnsSilent() ? 'No name server reports, so its answers are unknown. Query one: ' : `No client was steered in the last ${status.window_seconds} s. Try `, el('code', { class: 'break' }, digExample()))));
  if (rows.length > shown.length) body.push(el('tr', {}, el('td', { colspan: 5, class: 'sub' }, `and ${rows.length - shown.length} more`)));
  morph($('who').tBodies[0], body);
}

// The rows with most answers, in an order that lasts: a row keeps its place while it is near the top, and a new one takes
// the place of one that left.
let rowOrder = [];
function settled(rows) {
  const near = new Map(rows.slice(0, WHO_ROWS * 2).map((r) => [r.key, r]));
  const kept = rowOrder.filter((key) => near.has(key));
  const fresh = rows.slice(0, WHO_ROWS).map((r) => r.key).filter((key) => !kept.includes(key));
  rowOrder = rowOrder.length ? rowOrder.map((key) => (near.has(key) ? key : fresh.shift())).filter(Boolean) : [];
  rowOrder = [...rowOrder, ...fresh].slice(0, WHO_ROWS);
  return rowOrder.map((key) => near.get(key));
}

function digExample() {
  const server = state.fleet?.name_servers?.[0]?.listen?.[0] || '127.0.0.1:53';
  const cut = server.lastIndexOf(':');
  const host = state.fleet?.sites?.[0]?.hosts?.find((h) => h !== '*') || state.fleet?.sites?.[0]?.steered_name || 'www.example';
  const at = server.slice(0, cut).replace('0.0.0.0', '127.0.0.1');
  return `dig @${at} -p ${server.slice(cut + 1)} ${host} +subnet=203.0.113.0/24`;
}

// The time that the charts show, in seconds.
const spanSeconds = () => Number($('span').value);

function drawCharts() {
  const whole = state.series[spanSeconds()] || state.series[SERIES_SECONDS];
  if (!whole) return;
  const series = knownPart(whole);
  const times = Array.from({ length: series.points }, (_, i) => series.start_unix_ms + i * series.step_ms);
  const t = series.total, style = getComputedStyle(document.documentElement);
  const colours = ['--c0', '--c1', '--c2', '--c3'].map((name) => style.getPropertyValue(name));
  const reach = series.step_ms > 1000 ? 1 : 15;
  const gaps = t.counted.map((v) => !Show.known(v));
  const lines = [
    { name: 'objects', colour: colours[0], area: true, values: smooth(t.hits, t.counted, reach) },
    { name: 'bytes', colour: colours[1], values: smooth(less(t.response_bytes, t.origin_bytes), t.response_bytes, reach).map((v) => (v === null ? v : Math.max(0, v))) },
    { name: 'from pushed content', colour: colours[2], values: smooth(t.pushed_hits, t.counted, reach) },
  ];
  const marks = marksOf(state.events);
  const legend = (id, of) => morph($(id), of.map((l) => el('span', {}, swatch(l.colour), l.name)));
  legend('ratio-legend', lines);
  chart($('ratio'), { times, lines, gaps, marks, ticks: [0, 0.25, 0.5, 0.75, 1], format: (v, exactly) => (exactly ? Show.percent(v) : Math.round(v * 100) + ' %') });
  const rate = (values) => values.map((value, i) => {
    if (!Show.known(value)) return null;
    const part = values.slice(Math.max(0, i - (series.step_ms > 1000 ? 0 : 4)), i + 1).filter(Show.known);
    return (part.reduce((a, b) => a + b, 0) / part.length) * 8000 / series.step_ms;
  });
  const traffic = [
    { name: 'to clients', colour: colours[0], area: true, values: rate(t.response_bytes) },
    { name: 'from the origin', colour: colours[2], area: true, values: rate(t.origin_bytes) },
    { name: 'pushes', colour: colours[1], values: rate(t.push_origin_bytes) },
  ];
  legend('bytes-legend', traffic);
  const quiet = !t.response_bytes.some((v) => v > 0);
  const seen = new Set(marks.filter((m) => m.at >= times[0]).map((m) => m.kind));
  morph($('marks'), Object.keys(MARKS).filter((kind) => seen.has(kind)).map((kind) => el('span', { 'data-key': kind }, markIcon(kind), MARKS[kind].name)));
  chart($('bytes'), { times, marks, gaps: quiet ? [] : gaps, lines: quiet ? traffic.map((l) => ({ ...l, values: [] })) : traffic, format: quiet ? () => '' : Show.bits });
}

// Events that the charts mark.
const MARKED = { purge_accepted: 'purge', push_started: 'push', node_out: 'out', node_silent: 'out', cluster_down: 'out', node_in: 'back', node_up: 'back', control_started: 'restart' };
const marksOf = (events) => events.filter((e) => MARKED[e.kind]).map((e) => ({ kind: MARKED[e.kind], at: e.at_unix_ms, text: e.message })).reverse();
// The fleet's time beside the real one, where they differ.
Hair.note = (unixMs) => {
  const clock = state.status?.clock;
  if (!clock || clock.speed === 1) return null;
  const fleet = clock.fleet_unix_ms + (unixMs - state.status.now_unix_ms) * clock.speed;
  return `fleet time ${new Date(fleet).toISOString().slice(11, 16)} UTC`;
};

function minutesOf(window) {
  const [from, to] = window.split('-').map((s) => { const [h, m] = s.split(':').map(Number); return h * 60 + m; });
  return [from, to];
}

function dayBar(cluster) {
  const [from, to] = minutesOf(cluster.off_peak);
  const local = cluster.local_time.slice(11, 16).split(':').map(Number);
  const now = local[0] * 60 + local[1];
  const part = (a, b) => el('i', { style: { left: (a / 14.4) + '%', width: ((b - a) / 14.4) + '%' } });
  return [el('div', { class: 'day', title: `off-peak ${cluster.off_peak}, local time` }, from <= to ? part(from, to) : [part(from, 1440), part(0, to)], el('u', { style: { left: (now / 14.4) + '%' } })),
    el('div', { class: 'hours' }, el('span', {}, `${Show.minute(now)} local`), el('span', {}, cluster.off_peak_now ? 'off-peak now' : `off-peak ${cluster.off_peak}`))];
}

// Whether the data of a node is out of date, because it does not report.
const isSilent = (node) => node.state === 'silent' || node.state === 'waiting' || (node.state === 'down' && !(node.age_ms <= 3 * state.status.report_interval_ms));

// Whether no name server reports, so that answers are unknown.
const isDnsSilent = () => state.status.nodes.filter((n) => n.role === 'gslb-dns').every(isSilent);

function nodeRow(node) {
  const silent = isSilent(node);
  const out = (node.health || []).filter((h) => !h.up && h.reason !== node.reason && !node.reason.startsWith(h.name_server)).map((h) => `${h.name_server}: ${h.reason}`);
  const why = [node.reason, ...out, node.behind ? `${Show.count(node.behind, 'change')} behind` : null].filter(Boolean);
  return el('div', { class: 'node', 'data-key': node.name },
    el('span', { class: 'name' }, node.name), stateTag(node.state),
    el('span', { class: 'n' }, silent ? Show.none : Show.number(node.requests_per_second) + '/s'), el('span', { class: 'n' }, silent ? Show.none : Show.percent(node.object_hit_ratio)),
    why.length ? el('span', { class: 'why' }, [...new Set(why)].join('; ')) : null,
    silent || node.memory_max_bytes === undefined ? null : el('div', { class: 'bars' }, level('memory', node.memory_bytes, node.memory_max_bytes),
      node.disk_max_bytes ? [level('disk', node.disk_bytes, node.disk_max_bytes), level('pushed', node.pushed_bytes, node.push_share_bytes, 'two')] : el('div', {}, 'no disk')));
}

// How full a tier is, as a number and as a bar.
const level = (name, bytes, most, kind = '') => el('div', { title: `${name}: ${Show.bytes(bytes)} of ${Show.bytes(most)}` }, el('span', {}, `${name} `, el('b', {}, Show.bytes(bytes))),
  el('div', { class: 'bar' }, el('i', { class: kind, style: { width: most ? Math.min(100, (bytes / most) * 100) + '%' : '0%' } })));

function drawClusters() {
  const { status } = state;
  const cards = status.clusters.map((c) => el('article', { 'data-key': c.name, class: 'card cluster', style: { '--mine': colourOf(c.name) } },
    el('div', { class: 'head' }, el('h3', {}, c.name, el('small', {}, c.label)), stateTag(c.state)),
    el('div', { class: 'stats' },
      [['requests', c.recent.counted ? Show.number(c.recent.requests_per_second) + '/s' : Show.none], ['object hits', Show.percent(c.recent.object_hit_ratio)], ['byte hits', Show.percent(c.recent.byte_hit_ratio)], ['to clients', Show.bits(c.recent.egress_bits_per_second)]]
        .map(([name, value]) => el('div', {}, el('b', {}, value), el('span', {}, name)))),
    dayBar(c), status.nodes.filter((n) => n.role === 'edge' && n.cluster === c.name).map(nodeRow)));
  const others = status.nodes.filter((n) => n.role !== 'edge');
  cards.push(el('article', { 'data-key': '', class: 'card cluster others' }, el('div', { class: 'head' }, el('h3', {}, 'Other roles', el('small', {}, 'steering, origin, control'))),
    others.map((n) => el('div', { class: 'node', 'data-key': n.name }, el('span', { class: 'name' }, n.name), stateTag(n.state),
      el('span', { class: 'n' }, isSilent(n) ? Show.none : n.role === 'gslb-dns' ? Show.number(n.queries_per_second) + ' q/s' : n.role === 'origin' ? Show.number(n.requests_per_second) + '/s' : ''),
      el('span', { class: 'n sub' }, { 'gslb-dns': 'name server', origin: 'origin', control: 'control' }[n.role] || n.role),
      el('span', { class: 'why' }, isSilent(n) ? [n.reason] : [n.reason, n.behind ? `${Show.count(n.behind, 'change')} behind` : null, n.geo_source ? `locations: ${n.geo_source}` : null, n.role === 'gslb-dns' ? `round trips to ${Show.count(n.rtt_prefixes || 0, 'prefix', 'prefixes')}` : null, Show.known(n.egress_bits_per_second) && n.role === 'origin' ? Show.bits(n.egress_bits_per_second) + ' to edges' : null].filter(Boolean).join('; '))))));
  morph($('clusters'), cards);
}

// Copies of URLs: each node of the cluster holds its own.
const filled = (t) => `${Show.number(t.already_warm)} copies were already there, ${Show.number(t.warmed)} filled, ${Show.number(t.failed)} failed`;
// Whether the benefit covers a whole day. Only then is its busiest time the peak of the day.
const isDay = (benefit) => benefit.hours.length >= 20;

function drawPush() {
  const { plan, pushes, status } = state;
  if (!plan || !pushes) return;
  if (!plan.enabled) { morph($('push'), el('p', { class: 'empty' }, 'The push job is turned off in the fleet file.')); return; }
  const rows = plan.clusters.map((p) => {
    const orders = pushes.orders.filter((o) => o.cluster === p.cluster);
    const running = orders.find((o) => o.state === 'running'), last = orders.find((o) => o.state !== 'running');
    const wait = p.window ? (p.window.start_unix_ms - status.now_unix_ms) / 1000 : null;
    const bits = [];
    const missed = status.clusters.find((c) => c.name === p.cluster)?.push_missed;
    if (missed) bits.push(el('p', {}, el('span', { class: 'tag warn' }, 'missed'), ' ' + missed));
    const share = (part, whole) => (whole ? (part / whole) * 100 : 0) + '%';
    if (running) {
      const t = running.total;
      bits.push(el('div', { class: 'bar' }, el('i', { class: 'two', style: { width: share(t.already_warm, t.items) } }), el('i', { style: { width: share(t.warmed, t.items) } })),
        el('p', {}, `Filling ${Show.count(running.items, 'URL')}, ${Show.bytes(running.bytes)} on each node: ${filled(t)}; ${Show.bytes(t.origin_bytes)} from the origin, ${Show.bytes(t.peer_bytes)} from other nodes.`));
    } else {
      bits.push(el('p', {}, p.items_total
        ? `Planned: ${Show.count(p.items_total, 'URL')}, ${Show.bytes(p.stored_bytes)} of ${Show.bytes(p.capacity_bytes)} on each node; ${p.gap < 0.0005 ? 'no better plan is possible' : `at most ${Show.percent(p.gap)} below the best possible`}.`
        : 'Planned: nothing is popular enough yet.'));
    }
    if (last) {
      const e = last.benefit, t = last.total;
      bits.push(el('p', {}, `Last push, ${Show.span((pushes.now_unix_ms - last.accepted_unix_ms) / 1000)} ago: ${filled(t)}${t.unfinished ? `, ${t.unfinished} unfinished when time ran out` : ''}.`));
      bits.push(el('p', {}, `${Show.percent(e.pushed_hit_ratio)} of the requests since ${last.accepted_unix_ms < status.started_unix_ms ? 'control started' : 'then'} were answered from pushed content (${Show.count(e.pushed_hits, 'hit')}, ${Show.bytes(e.pushed_hit_bytes)}).`));
    }
    const measured = orders.find((o) => o.state !== 'running' && o.benefit.peak && isDay(o.benefit)), peak = measured?.benefit.peak;
    if (peak) {
      const hours = `${Show.minute(peak.from_hour * 60)}–${Show.minute(peak.to_hour * 60)}`;
      bits.push(el('p', { class: 'peak' }, el('b', {}, Show.percent(peak.pushed_hit_ratio)), ` of requests were answered from pushed content at ${measured === last ? 'the' : 'the previous push’s'} peak, ${hours} local.`));
    }
    return el('div', { class: 'push-row', 'data-key': p.cluster }, el('div', { class: 'line1' }, clusterKey(p.cluster),
      running ? el('span', { class: 'tag good' }, 'filling') : p.window?.open ? el('span', { class: 'tag good' }, 'window open') : null,
      el('span', { class: 'sub r' }, p.window ? (p.window.open ? `window until ${p.window.end_local.slice(11, 16)} local` : `next window ${p.window.start_local.slice(11, 16)} local, in ${Show.span(wait)}`) : 'no window')), bits);
  });
  morph($('push'), el('div', { class: 'pushes' }, rows));
}

// A scope in words.
const scopeText = (scope) => (scope.by === 'all' ? 'everything' : scope.by === 'site_tag' ? `${scope.value.tag} of ${scope.value.site}` : scope.value);

function drawPurges() {
  const { purges, status } = state;
  if (!purges) return;
  const rows = purges.purges.slice(0, 8).map((p) => {
    const more = p.scopes_total > 1 ? ` and ${p.scopes_total - 1} more` : '';
    const all = p.scopes.map(scopeText).join(', ') + (p.scopes_total > p.scopes.length ? ', …' : '');
    const nodes = p.missing.length ? `${p.nodes.length} of ${p.nodes.length + p.missing.length}` : `${p.nodes.length}`;
    return el('tr', { 'data-key': p.revision }, el('td', { class: 'break', title: more ? all : '' }, el('span', { class: 'tag' }, p.scope.by.replace('_', ' ') + (p.soft ? ', soft' : '')), ' ', p.scope.by === 'all' ? '' : scopeText(p.scope), more),
      el('td', {}, Show.time(p.accepted_unix_ms)), el('td', { class: 'n' }, (p.at_least ? '≥ ' : '') + Show.number(p.responses)), el('td', { class: 'n', title: p.missing.length ? 'not confirmed: ' + p.missing.join(', ') : '' }, nodes),
      el('td', { class: 'n' }, p.complete ? Show.ms(p.completed_unix_ms - p.accepted_unix_ms) : el('span', { class: 'tag warn' }, `waits for ${p.missing.join(', ')}`)));
  });
  if (!rows.length) rows.push(el('tr', {}, el('td', { colspan: 5, class: 'empty' }, 'No purges yet.')));
  morph($('purges').tBodies[0], rows);
  const value = $('purge').elements.value;
  const host = state.fleet?.sites?.[0]?.hosts?.find((h) => h !== '*');
  if (host) value.placeholder = { url: `//${host}/`, prefix: `//${host}/news/`, host, site: state.fleet.sites[0].name, tag: 'news', all: '' }[$('purge').elements.by.value];
  value.disabled = $('purge').elements.by.value === 'all';
}

// What clients get of a certificate.
function certificateState(c, now) {
  if (c.ordering) return ['ordering', ''];
  if (c.not_after_unix_s === null) return c.failures ? ['failed', 'bad'] : ['waiting', ''];
  if (c.not_after_unix_s <= now) return ['expired', 'bad'];
  return c.failures ? ['not renewed', 'warn'] : ['valid', 'good'];
}

// A host that is broken only behind its dots.
const hostLabels = (host) => host.split(/(?<=\.)/).map((label) => el('span', { class: 'label' }, label));

function drawCertificates() {
  const { certificates, status } = state;
  $('certs').hidden = !certificates?.acme;
  if (!certificates?.acme) return;
  const now = status.now_unix_ms / 1000;
  const day = (s) => (s === null ? Show.none : new Date(s * 1000).toISOString().slice(0, 16).replace('T', ' '));
  const bad = (c) => (c.failures ? 0 : 1);
  const all = [...certificates.certificates].sort((a, b) => bad(a) - bad(b));
  const shown = all.slice(0, 200);
  const rows = shown.map((c) => {
    const [name, level] = certificateState(c, now), others = c.hosts.slice(1);
    const e = c.failures ? c.last_error : null;
    // Most reasons name the authority themselves.
    const error = e ? (e.authority && !e.reason.includes(e.authority) ? `${e.authority}: ` : '') + e.reason : '';
    const more = others.length ? el('details', {}, el('summary', {}, `and ${others.length} more`), others.map((host) => el('div', {}, hostLabels(host)))) : null;
    const cell = (label, ...content) => el('td', { 'data-label': label }, content);
    return [el('tr', { 'data-key': c.name, class: error ? 'fails' : null }, el('td', { class: 'hosts' }, hostLabels(c.name), more), cell('State', el('span', { class: 'tag ' + level }, name)), cell('Proven by', c.challenge.toUpperCase()),
      cell('Authority', c.authority ?? Show.none), cell('Valid until', day(c.not_after_unix_s)), cell('Next order', day(c.next_order_unix_s))),
    error ? el('tr', { 'data-key': c.name + ' fails', class: 'why' }, el('td', { colspan: 6, class: 'break' }, error)) : null].filter(Boolean);
  }).flat();
  if (all.length > shown.length) rows.push(el('tr', {}, el('td', { colspan: 6, class: 'sub' }, `and ${all.length - shown.length} more`)));
  if (!rows.length) rows.push(el('tr', {}, el('td', { colspan: 6, class: 'empty' }, 'No host of a site needs a certificate.')));
  morph($('certificates').tBodies[0], rows);
  $('certs-note').textContent = certificates.problem || 'Times in UTC';
}

function drawEvents() {
  const rows = state.events.slice(0, EVENTS_SHOWN).map((e) => el('li', { 'data-key': e.id }, el('time', {}, Show.time(e.at_unix_ms)), el('span', {}, el('span', { class: 'tag ' + ({ warn: 'warn', good: 'good', bad: 'bad' }[e.level] || '') }, e.kind.replace(/_/g, ' '))), el('span', { class: 'break' }, e.message)));
  morph($('events'), rows.length ? rows : el('li', {}, 'Nothing has happened yet.'));
}

const silence = (n) => {
  if (n.state === 'down') return `${n.reason ? n.reason + '. ' : ''}Clients are steered elsewhere.`;
  return { 'gslb-dns': 'It may still answer, but its answers are not shown here.', origin: 'It may still serve. Edges continue with stored responses.' }[n.role] || 'It may still serve, but its requests are missing from all figures here.';
};

function drawHead() {
  const { status } = state;
  $('zone').textContent = status.zone;
  const fast = status.clock.speed !== 1;
  $('clock').textContent = fast ? `fleet clock ${status.clock.fleet_time.slice(11, 16)} UTC, ×${Show.number(status.clock.speed)}` : '';
  $('clock').title = fast ? 'Push windows follow this clock. Freshness, health and rates follow the real one.' : '';
  $('foot').textContent = `Nearcast ${status.version}. Journal at revision ${status.revision}; fleet file ${status.fleet_revision ? `of revision ${status.fleet_revision}` : 'as on disk'}. Land: Natural Earth.`;
  const hosts = status.sites.flatMap((s) => s.hosts.filter((h) => h !== '*'));
  const select = $('explain').elements.host;
  if (select.options.length !== hosts.length) select.replaceChildren(...hosts.map((h) => el('option', {}, h)));
}

// One line on whether all is well. It is always there, so nothing moves when a node goes down.
function drawHealth() {
  const { status } = state, box = $('banner');
  const set = (level, about, ...text) => {
    box.className = 'banner ' + level;
    // The part that a screen reader announces changes only with its meaning, not each second.
    if (box.dataset.about !== about) morph($('banner-what'), text);
    box.dataset.about = about;
  };
  const ago = (text) => { if ($('banner-when').textContent !== text) $('banner-when').textContent = text; };
  if (isGone()) {
    const since = Show.moment(state.answeredAt || state.openedAt);
    set('bad', `gone ${since} ${state.failure}`, el('b', {}, state.failure || 'Control does not answer.'), state.answeredAt ? ` Everything below is as of ${since}.` : ` Nothing is known since this page was opened at ${since}.`,
      ' Edges and name servers work on without control. This page continues by itself when it is back.');
    ago(`for ${Show.span((Date.now() - (state.answeredAt || state.openedAt)) / 1000)}`);
    return;
  }
  if (!status) { set('', 'wait', 'Asking control…'); ago(''); return; }
  const bad = status.nodes.filter((n) => n.state === 'silent' || n.state === 'down');
  if (!bad.length) {
    const waiting = status.nodes.filter((n) => n.state === 'waiting').length;
    const counts = [['edge', 'edge'], ['gslb-dns', 'name server'], ['origin', 'origin']].map(([role, name]) => [status.nodes.filter((n) => n.role === role).length, name]).filter(([n]) => n);
    set(waiting ? '' : 'good', `well ${waiting} ${counts}`, waiting ? `Waiting for the first report of ${Show.count(waiting, 'node')}.` : `All nodes report: ${counts.map(([n, name]) => Show.count(n, name)).join(', ')}.`);
    ago('');
    return;
  }
  set('warn', bad.map((n) => `${n.name} ${n.state}`).join(), bad.slice(0, 3).map((n) => el('span', {}, el('b', {}, `${n.name} is ${n.state}. `), bad.length > 1 ? '' : silence(n), ' ')), bad.length > 3 ? `And ${bad.length - 3} more.` : '');
  const first = bad.find((n) => n.last_report_unix_ms);
  ago(first ? `last report ${Show.span(first.age_ms / 1000)} ago` : '');
}

// Whether control has missed more than one poll.
const isGone = () => state.failing > 1;

function drawLive() {
  const pill = $('live'), gone = isGone();
  const text = gone ? 'no connection' : state.answeredAt ? 'live' : 'connecting';
  if (pill.textContent !== text) pill.textContent = text;
  pill.className = 'pill ' + (gone ? 'bad' : state.answeredAt ? 'good' : '');
  document.body.classList.toggle('gone', gone);
}

function draw() {
  drawLive();
  drawHealth();
  if (!state.status) return;
  drawHead(); drawFigures(); drawMap(); drawCharts(); drawClusters(); drawPush(); drawPurges(); drawCertificates(); drawEvents();
}

// The series from a little before its first known step on, so that control's start is marked, but at least ninety steps.
function knownPart(series) {
  const first = series.total.counted.findIndex(Show.known);
  const kept = Math.min(series.points, Math.max(90, first < 0 ? 0 : series.points - first + 5));
  const cut = series.points - kept;
  const total = Object.fromEntries(Object.entries(series.total).map(([name, values]) => [name, values.slice(cut)]));
  return { ...series, points: kept, start_unix_ms: series.start_unix_ms + cut * series.step_ms, total };
}

// The fleet's series over a span: whole the first time, then only what came since, with the newest few steps again.
async function seriesOver(seconds) {
  const old = state.series[seconds], started = state.status?.started_unix_ms;
  const continues = old && (!old.started || old.started === started) && old.points > OVERLAP; // a new control may know more, or less
  const since = continues ? old.start_unix_ms + (old.points - OVERLAP) * old.step_ms : 0;
  const fresh = await ask(`series?seconds=${seconds}${since ? `&since=${since}` : ''}`);
  const total = fresh.total;
  const kept = continues && old.step_ms === fresh.step_ms ? Math.round((fresh.start_unix_ms - old.start_unix_ms) / old.step_ms) : -1;
  if (since && (kept < 0 || kept > old.points)) {
    // The parts do not meet, for example after a night's sleep of this machine: everything again.
    delete state.series[seconds];
    return seriesOver(seconds);
  }
  const points = since ? kept + fresh.points : fresh.points, most = Math.ceil((seconds * 1000) / fresh.step_ms), cut = Math.max(0, points - most);
  const joined = since ? Object.fromEntries(Object.entries(total).map(([name, values]) => [name, [...old.total[name].slice(0, kept), ...values].slice(cut)])) : total;
  const start = (since ? old.start_unix_ms : fresh.start_unix_ms) + cut * fresh.step_ms;
  state.series[seconds] = { step_ms: fresh.step_ms, points: points - cut, start_unix_ms: start, total: joined, started };
  return state.series[seconds];
}

async function refresh(round) {
  try {
    const slow = round % 3 === 0, span = spanSeconds();
    const longIsDue = span > SERIES_SECONDS && (!state.series[span] || round % 10 === 0);
    const [status, pushes, purges, certificates, plan, fleet] = await Promise.all([
      ask(`status?window=${WINDOW}`), ask('pushes'), slow ? ask('purges') : state.purges, slow ? ask('certificates') : state.certificates,
      slow ? ask('plan?items=1') : state.plan, round % 20 === 0 ? ask('fleet') : state.fleet, seriesOver(SERIES_SECONDS), longIsDue ? seriesOver(span) : null]);
    if (state.failing && stream.readyState === EventSource.CLOSED) follow();
    Object.assign(state, { status, pushes, purges, certificates, plan, fleet, failing: 0, failure: '', answeredAt: Date.now() });
  } catch (error) {
    state.failing += 1;
    state.failure = error.status ? `Control answers with an error: ${error.message}.` : error.message;
    if (state.failing === 1) console.warn('control does not answer: ' + error.message);
  }
  if (!document.hidden) draw();
  setTimeout(refresh, 1000, state.failing ? 0 : round + 1);
}

let stream = null;
function follow() {
  const newest = state.events[0]?.id;
  stream = new EventSource('v1/events' + (newest ? `?after=${newest}` : ''));
  stream.onmessage = (message) => {
    let event;
    try { event = JSON.parse(message.data); } catch { return; }
    if (state.events.some((e) => e.id === event.id)) return;
    state.events.unshift(event);
    state.events.sort((a, b) => b.id - a.id);
    state.events.length = Math.min(state.events.length, EVENTS_KEPT);
    if (event.kind.startsWith('purge')) ask('purges').then((p) => { state.purges = p; drawPurges(); }, () => {});
    // Events come in bursts; the list is drawn once for all of them.
    if (!follow.due) follow.due = setTimeout(() => { follow.due = null; drawEvents(); }, 50);
  };
}

// The events of the time before the stream's backlog, for the charts' marks.
ask('events/log').then((log) => {
  const known = new Set(state.events.map((e) => e.id));
  state.events = [...state.events, ...log.events.filter((e) => !known.has(e.id))].sort((a, b) => b.id - a.id).slice(0, EVENTS_KEPT);
}, () => { /* the stream brings the newest ones */ });

// Explain: how a name server decides for one client.
$('explain').addEventListener('submit', async (event) => {
  event.preventDefault();
  const form = event.target, box = $('explained');
  try {
    const x = await ask(`explain?host=${encodeURIComponent(form.elements.host.value)}&client=${encodeURIComponent(form.elements.client.value.trim())}`);
    morph(box, explained(x));
  } catch (error) {
    morph(box, el('p', { class: 'result bad' }, error.message));
  }
});

function explained(x) {
  // A name without steered addresses has only a summary.
  if (!x.site) return [el('p', {}, x.summary)];
  const place = x.place || {};
  const where = [place.country ? country(place.country) : null, place.source ? `from ${place.source}` : null].filter(Boolean).join(', ');
  return [
    el('p', {}, 'Steered to ', clusterKey(x.chosen?.cluster || '–'), ': ', WHY[x.reason ?? x.chosen?.reason] || x.reason || x.chosen?.reason || '', '. ', where ? `Location: ${where}. ` : '',
      `The answer is valid for a /${x.scope_prefix} prefix and for ${x.ttl} s.`),
    el('div', { class: 'scroll' }, el('table', {}, el('thead', {}, el('tr', {}, ['Cluster', 'Distance', 'Round trip', ''].map((t, i) => el('th', { class: i === 1 || i === 2 ? 'n' : '' }, t)))),
      el('tbody', {}, (x.candidates || []).map((c) => el('tr', {}, el('td', {}, clusterKey(c.cluster)), el('td', { class: 'n' }, Show.known(c.distance_km) ? Math.round(c.distance_km).toLocaleString('en') + ' km' : Show.none),
        el('td', { class: 'n' }, Show.known(c.rtt_ms) ? c.rtt_ms.toFixed(1) + ' ms' : 'not measured'), el('td', {}, c.cluster === x.chosen?.cluster ? el('span', { class: 'tag good' }, 'chosen') : c.rejected || '')))))),
  ];
}

// Asks for confirmation before everything is purged.
function confirmAll(soft) {
  const { status } = state;
  const edges = status?.nodes.filter((n) => n.role === 'edge') || [];
  const sum = (name) => edges.reduce((all, n) => all + (n[name] || 0), 0);
  const held = sum('disk_bytes') + sum('memory_bytes');
  const sites = (status?.sites || []).map((s) => s.name).join(', ');
  $('purge-ask-what').replaceChildren(
    el('p', {}, `Everything that ${Show.count(edges.length, 'edge')} of ${status?.zone || 'this fleet'} ${edges.length === 1 ? 'stores' : 'store'}${held ? ` (about ${Show.bytes(held)})` : ''}: ${sites ? `the sites ${sites}` : 'every site'}.`),
    el('p', {}, soft ? 'Every response is revalidated at the origin before it is served again.' : 'Every request goes to the origin until its response is stored again.'));
  const dialog = $('purge-ask');
  return new Promise((resolve) => {
    const answer = (yes) => () => { dialog.onclose = null; dialog.close(); resolve(yes); };
    $('purge-yes').onclick = answer(true);
    $('purge-no').onclick = answer(false);
    dialog.onclose = () => resolve(false);
    dialog.showModal();
  });
}

const purgeText = (p) => {
  const took = `complete after ${Show.ms(p.completed_unix_ms - p.accepted_unix_ms)}.`;
  const covered = p.responses || p.at_least;
  const notes = covered ? '' : p.notes.map((note) => ` Note: ${note}.`).join('');
  if (!p.complete) return `Accepted as revision ${p.revision}; ${p.missing.join(', ')} did not confirm yet.${notes}`;
  const edges = Show.count(p.nodes.length, 'edge');
  return (covered ? `${p.at_least ? 'At least ' : ''}${Show.count(p.responses, 'response')} on ${edges}; ${took}` : `No stored response matched on ${edges}; ${took}`) + notes;
};

$('purge').addEventListener('change', drawPurges);
$('purge').addEventListener('submit', async (event) => {
  event.preventDefault();
  const form = event.target, result = $('purge-result'), button = form.querySelector('button');
  const scope = { by: form.elements.by.value };
  if (scope.by !== 'all') scope.value = form.elements.value.value.trim();
  result.className = 'result';
  if (scope.by === 'all' && !await confirmAll(form.elements.soft.checked)) {
    result.textContent = 'Nothing was purged.';
    return;
  }
  button.disabled = true;
  result.textContent = 'purging…';
  try {
    const p = await ask('purges', { method: 'POST', headers: { Authorization: 'Bearer ' + form.elements.token.value.trim(), 'Content-Type': 'application/json' }, body: JSON.stringify({ scope, soft: form.elements.soft.checked, wait_ms: 5000 }) });
    result.textContent = purgeText(p);
    state.purges = await ask('purges');
    drawPurges();
  } catch (error) {
    result.className = 'result bad';
    result.textContent = error.status === 401 ? 'The token is wrong. It is in the file “token” in control\'s state directory.' : error.status ? error.message : `${error.message} Whether anything was purged shows in the list when it is back.`;
  }
  button.disabled = false;
});

// Light or dark: the system's choice, unless the button has set one.
const THEMES = { light: 'M12 7a5 5 0 1 0 0 10 5 5 0 0 0 0-10Zm-1-6h2v4h-2Zm0 18h2v4h-2ZM1 11h4v2H1Zm18 0h4v2h-4ZM4.2 5.6l1.4-1.4 2.8 2.8-1.4 1.4Zm11.4 11.4 1.4-1.4 2.8 2.8-1.4 1.4ZM4.2 18.4l2.8-2.8 1.4 1.4-2.8 2.8ZM15.6 7l2.8-2.8 1.4 1.4-2.8 2.8Z', dark: 'M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z' };
const isDark = () => { const set = document.documentElement.dataset.theme; return set ? set === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches; };
function drawTheme() { $('theme').replaceChildren(svg('svg', { viewBox: '0 0 24 24', 'aria-hidden': 'true' }, svg('path', { d: isDark() ? THEMES.light : THEMES.dark }))); }
try { const kept = localStorage.getItem('theme'); if (kept === 'light' || kept === 'dark') document.documentElement.dataset.theme = kept; } catch { /* no storage: the choice is not remembered */ }
$('theme').addEventListener('click', () => {
  const next = isDark() ? 'light' : 'dark';
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem('theme', next); } catch { /* as above */ }
  drawTheme();
  drawCharts();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { drawTheme(); drawCharts(); });
$('span').addEventListener('change', async () => {
  const span = spanSeconds();
  try {
    if (span > SERIES_SECONDS && !state.series[span]) {
      await seriesOver(span);
    }
  } catch { /* the next poll retries */ }
  drawCharts();
});
addEventListener('resize', () => draw());
document.addEventListener('visibilitychange', () => { if (!document.hidden) draw(); });
// The wall: everything at once, without scrolling, for a screen that nobody sits at. `#wall` keeps it over a reload.
function drawWall() {
  const on = location.hash === '#wall';
  document.documentElement.classList.toggle('wall', on);
  $('wall').setAttribute('aria-pressed', String(on));
  $('wall').title = on ? 'Leave the wall view' : 'Wall view: everything on one screen';
  draw();
}
$('wall').addEventListener('click', () => { if (location.hash === '#wall') { history.replaceState(null, '', './'); drawWall(); } else location.hash = 'wall'; });
addEventListener('hashchange', drawWall);
state.openedAt = Date.now();
drawTheme();
drawWall();
follow();
refresh(0);
