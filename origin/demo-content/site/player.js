// The player's page: films one after another, who serves them, and sentences for what goes wrong. Manifests, the choice of
// quality, edges and the media source have files of their own in player/.

import { Edges, isLoopback } from '/player/edges.js';
import { Film, Source } from '/player/film.js';
import { readManifest } from '/player/manifest.js';
import { Rate } from '/player/rate.js';

const $ = (id) => document.getElementById(id);
const COLOURS = ['#1c8a6b', '#7048d6', '#d0630a', '#1d6fd1', '#b8266f', '#7c8f12', '#0b7fa5', '#8c5a2b'];
const PROTOCOLS = { h3: 'HTTP/3', h2: 'HTTP/2', 'http/1.1': 'HTTP/1.1' };
const OWN = 'My own place';
const video = $('video');

const state = { titles: [], title: null, film: null, edges: null, rate: new Rate(), choice: 'auto', format: 'dash', place: null, nodes: [], served: [], run: 0, fatal: '' };

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Changes a text only where it differs, so that a screen reader does not say it again.
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
  $(id).hidden = !text;
}

const colourOf = (node) => {
  if (!state.nodes.includes(node)) state.nodes.push(node);
  return COLOURS[state.nodes.indexOf(node) % COLOURS.length];
};

function buttons(id, label, names, chosen, choose) {
  $(id).replaceChildren(element('span', { class: 'label' }, label), ...names.map(([value, name]) => {
    const button = element('button', { type: 'button', 'aria-pressed': String(value === chosen) }, name);
    button.addEventListener('click', () => {
      choose(value);
      const at = names.findIndex(([other]) => other === value);
      $(id).querySelectorAll('button')[at]?.focus();
    });
    return button;
  }));
}

function showPlaces() {
  const { steering } = state.edges;
  $('places').hidden = !steering;
  if (!steering) return;
  const names = [...steering.places.map((p) => p.name), OWN];
  buttons('places', 'Watch as', names.map((n) => [n, n]), state.place, (name) => { watchAs(name); });
}

async function watchAs(name) {
  const { steering } = state.edges;
  state.place = name;
  showPlaces();
  await state.edges.watchAs(steering.places.find((p) => p.name === name)?.client || null);
  state.film?.again();
}

function showFormats() {
  buttons('formats', 'Format', [['hls', 'HLS'], ['dash', 'DASH']], state.format, (format) => {
    state.format = format;
    showFormats();
    start(state.title, video.currentTime);
  });
}

function showQualities() {
  const videos = state.film?.manifest.videos || [];
  $('choose').hidden = !videos.length;
  buttons('choose', 'Quality', [['auto', 'Automatic'], ...videos.map((v) => [v.id, v.id])], state.choice, (choice) => {
    state.choice = state.film.choice = choice;
    showQualities();
    state.film.again();
  });
}

// The answer of DNS: the place, and its edges, of which one is in use.
function showAnswer() {
  const { answer, edges, current } = state.edges;
  $('answer').hidden = !answer;
  if (!answer) return;
  const chips = edges.map((edge) => {
    const isDead = state.edges.isEdgeDead(edge), isUsed = edge === current && !isDead;
    const chip = element('li', { class: isDead ? 'dead' : isUsed ? 'used' : '' }, edge.node, element('span', {}, isDead ? 'does not answer' : isUsed ? 'in use' : 'ready'));
    chip.style.setProperty('--of', colourOf(edge.node));
    return chip;
  });
  const words = `DNS sends ${state.place === OWN ? 'you' : `a viewer in ${state.place}`} to `;
  const answered = element('p', {}, words, element('b', {}, answer.label || answer.cluster), ` (${answer.reason}), for ${answer.ttl} s`);
  const list = element('ul', {}, ...chips);
  const shown = `${answered.outerHTML}${list.outerHTML}`;
  if ($('answer').dataset.shown !== shown) $('answer').replaceChildren(answered, list);
  $('answer').dataset.shown = shown;
}

// Sentences for the state of the network. `problem` is for what stops the film, `note` for what does not.
function showNetwork() {
  const { edges } = state;
  const place = edges.answer?.label || edges.answer?.cluster;
  const isShort = !video.ended && (state.film ? state.film.ahead < 1 : true);
  let problem = '', note = '';
  // Of edges on this machine it says nothing that the device has no network.
  if (!navigator.onLine && edges.areAllDead && !isLoopback(location.origin)) problem = 'This device has no network. The film goes on by itself when it is back.';
  else if (edges.areAllDead && edges.isControlGone && isShort) problem = 'Neither the edges nor control answer. The film goes on by itself when one of them is back.';
  else if (edges.areAllDead && isShort) problem = `No edge of ${place || 'this place'} answers. The film goes on by itself as soon as DNS names another place, or one of them is back.`;
  else if (edges.areAllDead) note = `No edge of ${place || 'this place'} answers; the buffer plays on while the player asks again.`;
  else if (edges.isControlGone) note = 'Control does not answer, so the player keeps the addresses that it had.';
  else if (edges.isByHttp) note = 'This browser does not trust the demo\'s root certificate, so segments come by http from the other edges.';
  else if (edges.current && edges.edges.some((e) => edges.isEdgeDead(e))) note = `${edges.edges.filter((e) => edges.isEdgeDead(e)).map((e) => e.node).join(' and ')} does not answer; ${edges.current.node} has taken over.`;
  say('problem', state.fatal || problem);
  say('note', state.fatal || problem ? '' : note);
}

function showSegment({ number, start, length, quality, result }) {
  state.served[number] = result;
  const { manifest } = state.film;
  const kind = result.isCached ? 'browser' : result.isHit ? 'hit' : 'miss';
  const resumed = result.resumed ? ', resumed' : '';
  const tile = element('li', {}, element('b', {}, result.node, element('span', { class: kind }, kind)), `#${number + 1} ${quality.id}`, element('br', {}), `${(result.bytes.byteLength / 1024).toFixed(0)} KiB, ${result.ms.toFixed(0)} ms${resumed}`);
  const cell = element('li', { 'aria-label': `segment ${number + 1}: ${result.node}, ${kind}` });
  for (const node of [tile, cell]) {
    node.style.setProperty('--of', colourOf(result.node));
    node.dataset.number = number;
    node.dataset.node = result.node;
    node.dataset.quality = quality.id;
    node.dataset.kind = kind;
  }
  cell.style.left = `${(start / manifest.seconds) * 100}%`;
  cell.style.width = `${(length / manifest.seconds) * 100}%`;
  tile.title = { hit: 'served from the cache', browser: 'from this browser\'s own cache' }[kind] || `forwarded: ${result.why || 'not from a cache'}`;
  for (const [id, node] of [['tiles', tile], ['strip', cell]]) {
    const old = $(id).querySelector(`[data-number="${number}"]`);
    if (old) old.replaceWith(node);
    else $(id).insertBefore(node, [...$(id).children].find((other) => Number(other.dataset.number) > number) || null);
  }
  const seen = state.nodes.filter((n) => state.served.some((s) => s?.node === n));
  $('key').replaceChildren(...seen.map((n) => {
    const swatch = element('i', {});
    swatch.style.background = colourOf(n);
    return element('span', {}, swatch, n);
  }));
  const served = state.served.filter(Boolean);
  $('hits').textContent = `${served.filter((s) => s.isHit).length} of ${served.length}`;
  if (result.protocol) $('protocol').textContent = PROTOCOLS[result.protocol] || result.protocol;
}

function showFigures() {
  const { film, rate } = state;
  // What plays, which is seldom what is being fetched.
  if (film?.playing) $('quality').textContent = film.playing.id;
  if (film) $('buffer').textContent = `${film.ahead.toFixed(1)} s`;
  if (rate.isMeasured) $('throughput').textContent = `${(rate.bits / 1e6).toFixed(rate.bits < 1e6 ? 2 : 1)} Mbit/s`;
  const playing = film?.shown.findIndex((s) => s && s.start <= video.currentTime && s.start + s.length > video.currentTime);
  for (const tile of $('tiles').children) tile.classList.toggle('now', Number(tile.dataset.number) === playing);
  $('strip').style.setProperty('--at', `${(video.currentTime / (video.duration || 1)) * 100}%`);
  $('over').hidden = !video.ended;
  showAnswer();
  showNetwork();
}

// Captions are fetched as segments are, so that they too survive their edge.
let captionLanguage;
async function showCaptions(found, isCurrent) {
  for (const track of video.querySelectorAll('track')) track.remove();
  captionLanguage = (found.find((c) => c.isDefault) || found[0])?.language;
  for (const { url, label, language, isDefault } of found) {
    const { bytes } = await state.edges.fetch(url).catch(() => ({}));
    if (!bytes || !isCurrent()) continue;
    const src = URL.createObjectURL(new Blob([bytes], { type: 'text/vtt' }));
    const track = element('track', { kind: 'captions', src, label: label || 'Captions', srclang: language || 'en' });
    video.append(track);
    // Who chose a title with captions of another language than the film's wants to see them.
    if (isDefault && language !== 'en') track.track.mode = 'showing';
  }
}

const captionsOf = (title) => [title.captions || []].flat().map((c) => (typeof c === 'string' ? { url: c } : { url: c.url || c.src, label: c.label, language: c.language || c.lang, isDefault: c.default === true }));

async function start(title, from = 0) {
  const run = ++state.run;
  const isCurrent = () => run === state.run;
  state.film?.stop();
  Object.assign(state, { title, film: null, served: [], fatal: '' });
  for (const id of ['tiles', 'strip', 'key', 'choose']) $(id).replaceChildren();
  $('over').hidden = true;
  document.title = `${title.title}: Meadow`;
  $('title').textContent = title.title;
  $('tagline').textContent = title.tagline;
  video.poster = title.poster;
  showQueue();
  try {
    const url = new URL(state.format === 'hls' ? title.hls : title.dash, location.href).href;
    if (!Source) return await playNatively(title, from, isCurrent);
    const manifest = await readManifest(url, (u) => state.edges.fetch(u).then((r) => r.bytes));
    if (!isCurrent()) return;
    const film = state.film = new Film(video, manifest, state.edges, { rate: state.rate, choice: manifest.videos.some((v) => v.id === state.choice) ? state.choice : 'auto' });
    state.choice = film.choice;
    film.addEventListener('segment', ({ detail }) => isCurrent() && showSegment(detail));
    showQualities();
    showCaptions([...captionsOf(title), ...manifest.captions].filter((c, i, all) => all.findIndex((o) => new URL(o.url, location.href).href === new URL(c.url, location.href).href) === i), isCurrent);
    video.play().catch(() => {}); // a browser may want a click first; the controls are there
    await film.play(from);
  } catch (error) {
    if (isCurrent()) state.fatal = `The film cannot be played: ${error.message}.`;
    if (isCurrent()) console.warn(error);
  }
}

// Without Media Source Extensions a browser may play HLS by itself; then only whole edges can be exchanged.
function playNatively(title, from, isCurrent) {
  if (!video.canPlayType('application/vnd.apple.mpegurl')) {
    state.fatal = 'This browser has no Media Source Extensions and does not play HLS by itself, so it cannot show the film. A current Chrome, Edge, Firefox or Safari can.';
    return;
  }
  say('note', 'This browser plays HLS by itself, so the nodes of single segments cannot be shown.');
  let at = from;
  const load = () => {
    if (!isCurrent()) return;
    const [candidate] = state.edges.candidates();
    video.onerror = () => { at = video.currentTime || at; state.edges.failed(candidate); setTimeout(load, 400); };
    video.src = candidate.base + title.hls;
    video.onloadedmetadata = () => { if (at) video.currentTime = at; };
    video.play().catch(() => {});
  };
  load();
}

const following = () => state.titles[(state.titles.indexOf(state.title) + 1) % state.titles.length];

// Another film without another page: the page's own edge may be gone.
function open(title) {
  history.pushState({}, '', title.url);
  start(title);
}

function showQueue() {
  const at = state.titles.indexOf(state.title);
  $('following').textContent = `Next: ${following().title}`;
  $('queue').replaceChildren(...state.titles.slice(at + 1).concat(state.titles.slice(0, at)).map((title) => {
    const link = element('a', { href: title.url }, element('img', { src: title.poster, alt: '', width: 480, height: 270, loading: 'lazy' }), element('div', {}, element('b', {}, title.title), element('span', {}, title.tagline)));
    link.addEventListener('click', (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      open(title);
      scrollTo({ top: 0 });
    });
    return element('li', {}, link);
  }));
}

function toggleCaptions() {
  // One that the viewer chose from the film's own menu, else the title's.
  const tracks = [...video.textTracks];
  const shown = tracks.find((t) => t.mode === 'showing');
  const track = shown || tracks.find((t) => t.language === captionLanguage) || tracks[0];
  if (track) track.mode = shown ? 'disabled' : 'showing';
}

function toggleFullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else (video.requestFullscreen || video.webkitEnterFullscreen)?.call(video);
}

const KEYS = {
  ' ': () => (video.paused ? video.play().catch(() => {}) : video.pause()),
  ArrowLeft: () => { video.currentTime = Math.max(0, video.currentTime - 5); },
  ArrowRight: () => { video.currentTime = Math.min(video.duration || 0, video.currentTime + 5); },
  f: toggleFullScreen,
  m: () => { video.muted = !video.muted; },
  c: toggleCaptions,
  n: () => open(following()),
};

// Before the video's own controls see them; a button or link keeps the space that presses it.
document.addEventListener('keydown', (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[key] || !state.title) return;
  if (key === ' ' && event.target.closest('button, a')) return;
  event.preventDefault();
  event.stopPropagation();
  KEYS[key]();
}, { capture: true });

async function json(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${response.status} for ${path}`);
  return response.json();
}

async function begin() {
  const [{ titles }, steering] = await Promise.all([json('/catalogue.json'), json('/steering.json').catch(() => null)]);
  const query = new URLSearchParams(location.search);
  state.titles = titles;
  const edges = state.edges = new Edges(steering);
  if (edges.steering) {
    const { places } = edges.steering;
    const wanted = query.get('as');
    const place = places.find((p) => p.name === wanted) || (wanted === OWN ? null : places[0]);
    state.place = place?.name || OWN;
    edges.client = place?.client || null;
    showPlaces();
    await edges.ask();
  }
  if (query.get('format') === 'hls') state.format = 'hls';
  showFormats();
  const chosen = () => titles.find((t) => t.slug === new URLSearchParams(location.search).get('v')) || titles[0];
  $('replay').addEventListener('click', () => { video.currentTime = 0; video.play().catch(() => {}); });
  $('following').addEventListener('click', () => open(following()));
  addEventListener('popstate', () => start(chosen()));
  setInterval(showFigures, 200);
  await start(chosen());
}

begin().catch((error) => say('problem', navigator.onLine ? `The page cannot begin: ${error.message}. Load it again.` : 'This device has no network. Load the page again when it is back.'));
