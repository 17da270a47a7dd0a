// A small adaptive player on Media Source Extensions: reads the DASH manifest, fetches segments, shows where each came from.
'use strict';

const $ = (id) => document.getElementById(id);
const AHEAD_SECONDS = 12; // how much is fetched ahead of what is shown
const HEADROOM = 0.75; // share of the measured throughput that a quality may need
const COLOURS = ['#1c8a6b', '#7048d6', '#d0630a', '#1d6fd1', '#b8266f', '#7c8f12', '#0b7fa5', '#8c5a2b'];
const state = { nodes: [], served: [], rate: null, choice: 'auto', hits: 0, restart: null };

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function problem(text) {
  $('problem').hidden = !text;
  $('problem').textContent = text || '';
}

// The manifest as far as this player needs it: a list of video qualities and one sound, all cut at the same places.
function readManifest(text, base) {
  const xml = new DOMParser().parseFromString(text, 'application/xml');
  const seconds = Number(/PT([\d.]+)S/.exec(xml.documentElement.getAttribute('mediaPresentationDuration'))[1]);
  const tracks = [...xml.querySelectorAll('Representation')].map((r) => {
    const t = r.querySelector('SegmentTemplate'), id = r.id;
    const run = t.querySelector('S'); // all segments have one length
    const length = Number(run.getAttribute('d')) / Number(t.getAttribute('timescale'));
    const url = (pattern, n) => new URL(pattern.replace('$RepresentationID$', id).replace('$Number$', n), base).href;
    return {
      id, mime: `${r.getAttribute('mimeType')}; codecs="${r.getAttribute('codecs')}"`, isVideo: r.getAttribute('mimeType').startsWith('video'), bits: Number(r.getAttribute('bandwidth')),
      height: Number(r.getAttribute('height')), length, count: Number(run.getAttribute('r')) + 1, init: url(t.getAttribute('initialization'), 0), segment: (n) => url(t.getAttribute('media'), n + Number(t.getAttribute('startNumber'))),
    };
  });
  return { seconds, qualities: tracks.filter((t) => t.isVideo).sort((a, b) => a.bits - b.bits), sound: tracks.find((t) => !t.isVideo) };
}

// `Cache-Status: ams-1; hit` or `ams-1; fwd=uri-miss; stored`: the last member is the node that answered us.
function readStatus(field) {
  const last = (field || '').split(',').pop().split(';').map((s) => s.trim());
  return { node: last[0] || 'origin', isHit: last.includes('hit'), why: (last.find((p) => p.startsWith('fwd=')) || '').slice(4) };
}

// The protocol of the last request for a URL, by its registered name (RFC 7301): `h2`, `http/1.1`.
const protocolOf = (url) => performance.getEntriesByName(url).at(-1)?.nextHopProtocol;
const PROTOCOLS = { 'h3': 'HTTP/3', 'h2': 'HTTP/2', 'http/1.1': 'HTTP/1.1' };

async function fetchBytes(url) {
  const begun = performance.now();
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${response.status} for ${new URL(url).pathname}`);
  const bytes = await response.arrayBuffer();
  const ms = performance.now() - begun;
  return { bytes, ms, protocol: protocolOf(url), ...readStatus(response.headers.get('cache-status')) };
}

const append = (buffer, bytes) => new Promise((done, failed) => {
  buffer.addEventListener('updateend', done, { once: true });
  buffer.addEventListener('error', () => failed(new Error('the browser cannot play this segment')), { once: true });
  buffer.appendBuffer(bytes);
});

function measured(bytes, ms) {
  // Weighted to the recent past; very short fetches say little and are left out.
  const bits = (bytes * 8000) / Math.max(ms, 1);
  if (bytes > 8000) state.rate = state.rate === null ? bits : 0.6 * state.rate + 0.4 * bits;
}

function pick(qualities) {
  const chosen = qualities.find((q) => q.id === state.choice);
  if (chosen) return chosen;
  if (state.rate === null) return qualities[0];
  return [...qualities].reverse().find((q) => q.bits < state.rate * HEADROOM) || qualities[0];
}

const ahead = (video) => {
  for (let i = 0; i < video.buffered.length; i++) if (video.buffered.start(i) <= video.currentTime + 0.3 && video.buffered.end(i) > video.currentTime) return video.buffered.end(i) - video.currentTime;
  return 0;
};

const colourOf = (node) => {
  if (!state.nodes.includes(node)) state.nodes.push(node);
  return COLOURS[state.nodes.indexOf(node) % COLOURS.length];
};

function showSegment(number, quality, got) {
  state.served.push(got);
  const size = got.bytes.byteLength;
  const tile = element('li', {}, element('b', {}, got.node, element('span', { class: got.isHit ? 'hit' : 'miss' }, got.isHit ? 'hit' : 'miss')), `#${number + 1} ${quality.id}`, element('br', {}), `${(size / 1024).toFixed(0)} KiB, ${got.ms.toFixed(0)} ms`);
  tile.style.setProperty('--of', colourOf(got.node));
  tile.title = got.isHit ? 'served from the cache' : `forwarded: ${got.why || 'not from a cache'}`;
  $('tiles').append(tile);
  $('key').replaceChildren(...state.nodes.map((n) => {
    const swatch = element('i', {});
    swatch.style.background = colourOf(n);
    return element('span', {}, swatch, n);
  }));
  $('quality').textContent = `${quality.height}p`;
  $('hits').textContent = `${state.served.filter((s) => s.isHit).length} of ${state.served.length}`;
  if (got.protocol) $('protocol').textContent = PROTOCOLS[got.protocol] || got.protocol;
  $('throughput').textContent = state.rate ? `${(state.rate / 1e6).toFixed(1)} Mbit/s` : '–';
}

function showChoices(qualities) {
  const names = ['auto', ...qualities.map((q) => q.id)];
  $('choose').replaceChildren(...names.map((name) => {
    const button = element('button', { type: 'button', 'aria-pressed': String(state.choice === name) }, name === 'auto' ? 'Automatic' : name);
    button.addEventListener('click', () => { state.choice = name; showChoices(qualities); });
    return button;
  }));
}

async function play(title) {
  const video = $('video');
  const base = new URL(title.dash, location.href);
  const manifest = await fetch(base);
  if (!manifest.ok) throw new Error(`${manifest.status} for the manifest`);
  const { seconds, qualities, sound } = readManifest(await manifest.text(), base);
  showChoices(qualities);
  if (!('MediaSource' in window)) {
    // Players without Media Source Extensions often play HLS by themselves.
    video.src = title.hls;
    problem('This browser plays the film by itself, so what served each segment cannot be shown.');
    return;
  }
  const source = new MediaSource();
  video.src = URL.createObjectURL(source);
  await new Promise((opened) => source.addEventListener('sourceopen', opened, { once: true }));
  source.duration = seconds;
  const pictures = source.addSourceBuffer(qualities[0].mime);
  const sounds = sound ? source.addSourceBuffer(sound.mime) : null;
  if (sound) await append(sounds, (await fetchBytes(sound.init)).bytes);
  const inits = new Map();
  let next = 0, shown = null;
  video.addEventListener('seeking', () => { if (ahead(video) === 0) next = Math.max(0, Math.floor(video.currentTime / qualities[0].length)); });
  for (;;) {
    if (next >= qualities[0].count) {
      if (source.readyState === 'open' && !pictures.updating) source.endOfStream();
      await new Promise((wake) => setTimeout(wake, 300));
      continue;
    }
    if (ahead(video) > AHEAD_SECONDS) {
      await new Promise((wake) => setTimeout(wake, 150));
      continue;
    }
    const number = next, quality = pick(qualities);
    try {
      if (!inits.has(quality.id)) inits.set(quality.id, (await fetchBytes(quality.init)).bytes);
      const [got, heard] = await Promise.all([fetchBytes(quality.segment(number)), sound ? fetchBytes(sound.segment(number)) : null]);
      measured(got.bytes.byteLength, got.ms);
      if (shown !== quality.id) {
        pictures.changeType?.(quality.mime);
        await append(pictures, inits.get(quality.id));
        shown = quality.id;
      }
      await append(pictures, got.bytes);
      if (heard) await append(sounds, heard.bytes);
      showSegment(number, quality, got);
      problem('');
      if (next === number) next += 1;
    } catch (error) {
      problem(`Trying again: ${error.message}`);
      await new Promise((wake) => setTimeout(wake, 1000));
    }
  }
}

async function start() {
  const answer = await fetch('/catalogue.json');
  if (!answer.ok) throw new Error(`${answer.status} for the catalogue`);
  const { titles } = await answer.json();
  const wanted = new URLSearchParams(location.search).get('v');
  const at = Math.max(0, titles.findIndex((t) => t.slug === wanted));
  const title = titles[at];
  document.title = `${title.title}: Meadow`;
  $('title').textContent = title.title;
  $('tagline').textContent = title.tagline;
  $('video').poster = title.poster;
  $('queue').replaceChildren(...titles.slice(at + 1).concat(titles.slice(0, at)).map((t) => element('li', {},
    element('a', { href: t.url }, element('img', { src: t.poster, alt: '', width: 480, height: 270, loading: 'lazy' }), element('div', {}, element('b', {}, t.title), element('span', {}, t.tagline))))));
  setInterval(() => { $('buffer').textContent = `${ahead($('video')).toFixed(1)} s`; }, 250);
  await play(title);
}

start().catch((error) => problem(`The film cannot be played: ${error.message}`));
