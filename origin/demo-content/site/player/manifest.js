// HLS and DASH manifests, read into one form:
//   {seconds, videos: [track], sound: track or null, captions: [{url, label, language}]}
// A track is {id, mime, bits, height, init, segments: [{url, start, length}]}; `bits` of a video track include the sound.

const text = async (load, url) => new TextDecoder().decode(await load(url));

export function readManifest(url, load) {
  return new URL(url).pathname.endsWith('.mpd') ? readDash(url, load) : readHls(url, load);
}

// HLS (RFC 8216): a multivariant playlist, and one media playlist for each track.

// `BANDWIDTH=1,CODECS="a,b"` as an object.
function attributes(line) {
  const found = {};
  for (const [, name, quoted, plain] of line.matchAll(/([A-Z0-9-]+)=(?:"([^"]*)"|([^,]*))/g)) found[name] = quoted ?? plain;
  return found;
}

async function readHls(url, load) {
  const lines = (await text(load, url)).split(/\r?\n/).filter(Boolean);
  if (lines[0] !== '#EXTM3U') throw new Error('the HLS playlist does not begin with #EXTM3U');
  const at = (uri) => new URL(uri, url).href;
  const media = lines.filter((l) => l.startsWith('#EXT-X-MEDIA:')).map(attributes);
  const variants = lines.flatMap((l, i) => (l.startsWith('#EXT-X-STREAM-INF:') ? [{ ...attributes(l), uri: lines[i + 1] }] : []));
  const audio = media.find((m) => m.TYPE === 'AUDIO' && m.URI);
  const codecs = variants.flatMap((v) => (v.CODECS || '').split(','));
  const ofSound = (codec) => /^(mp4a|ac-3|ec-3|opus|flac)/i.test(codec.trim());
  const tracks = await Promise.all(variants.map(async (v) => {
    const own = (v.CODECS || '').split(',').filter((c) => !audio || !ofSound(c));
    const height = Number((v.RESOLUTION || '').split('x')[1]);
    const id = height ? `${height}p` : v.uri.replace(/\.m3u8$/, '');
    return { id, mime: `video/mp4; codecs="${own.join(',')}"`, bits: Number(v.BANDWIDTH), height, ...await readHlsMedia(at(v.uri), load) };
  }));
  const sound = audio ? { id: 'sound', mime: `audio/mp4; codecs="${codecs.find(ofSound) || 'mp4a.40.2'}"`, bits: 0, ...await readHlsMedia(at(audio.URI), load) } : null;
  const captions = media.filter((m) => m.TYPE === 'SUBTITLES' && m.URI?.endsWith('.vtt'));
  return whole(tracks, sound, captions.map((m) => ({ url: at(m.URI), label: m.NAME, language: m.LANGUAGE })));
}

async function readHlsMedia(url, load) {
  const at = (uri) => new URL(uri, url).href;
  let start = 0, length = 0, init = null;
  const segments = [];
  for (const line of (await text(load, url)).split(/\r?\n/)) {
    if (line.startsWith('#EXT-X-MAP:')) init = at(attributes(line).URI);
    else if (line.startsWith('#EXTINF:')) length = parseFloat(line.slice(8));
    else if (line && !line.startsWith('#')) {
      segments.push({ url: at(line), start, length });
      start += length;
    }
  }
  return { init, segments };
}

// DASH (ISO/IEC 23009-1): one static period whose segments are named by a template.

const SECONDS = /^P(?:(\d+)D)?T?(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?$/;
function duration(written) {
  const [, d, h, m, s] = (SECONDS.exec(written || '') || []).map((n) => Number(n || 0));
  return ((d || 0) * 24 + (h || 0)) * 3600 + (m || 0) * 60 + (s || 0);
}

async function readDash(url, load) {
  const xml = new DOMParser().parseFromString(await text(load, url), 'application/xml');
  if (xml.querySelector('parsererror')) throw new Error('the DASH manifest is not XML');
  const seconds = duration(xml.documentElement.getAttribute('mediaPresentationDuration'));
  const own = (node, name) => [...node.children].find((c) => c.localName === name);
  const captions = [], videos = [], sounds = [];
  for (const set of xml.querySelectorAll('AdaptationSet')) {
    for (const r of set.querySelectorAll('Representation')) {
      const get = (name) => r.getAttribute(name) || set.getAttribute(name);
      const base = [xml.documentElement, set.parentNode, set, r].reduce((b, node) => new URL(own(node, 'BaseURL')?.textContent.trim() || '', b).href, url);
      const mime = get('mimeType') || '';
      if (mime === 'text/vtt') captions.push({ url: base, label: set.getAttribute('label') || get('lang') || 'Captions', language: get('lang') });
      const template = own(r, 'SegmentTemplate') || own(set, 'SegmentTemplate');
      if (!template) continue;
      const track = { id: r.id, mime: `${mime}; codecs="${get('codecs')}"`, bits: Number(r.getAttribute('bandwidth')), height: Number(get('height')), ...templated(template, r, base, seconds) };
      (mime.startsWith('video') ? videos : sounds).push(track);
    }
  }
  const [sound] = sounds.filter((t) => t.mime.startsWith('audio'));
  for (const track of videos) track.bits += sound?.bits || 0;
  return whole(videos, sound || null, captions);
}

function templated(template, r, base, seconds) {
  const get = (name, other) => Number(template.getAttribute(name) || other);
  const scale = get('timescale', 1), first = get('startNumber', 1);
  const fill = (pattern, values) => pattern.replace(/\$(\w*)(?:%0(\d+)d)?\$/g, (_, name, width) => (name ? String(values[name]).padStart(Number(width || 0), '0') : '$'));
  const name = (which, Number_, Time) => new URL(fill(template.getAttribute(which), { RepresentationID: r.id, Bandwidth: r.getAttribute('bandwidth'), Number: Number_, Time }), base).href;
  const runs = [...template.querySelectorAll('S')];
  const times = [];
  let time = 0;
  for (const s of runs) {
    time = Number(s.getAttribute('t') ?? time);
    for (let i = 0; i <= Number(s.getAttribute('r') || 0); i += 1, time += Number(s.getAttribute('d'))) times.push([time, Number(s.getAttribute('d'))]);
  }
  if (!runs.length) {
    const each = get('duration', 1);
    for (time = 0; time / scale < seconds - 0.01; time += each) times.push([time, each]);
  }
  const segments = times.map(([t, d], i) => ({ url: name('media', first + i, t), start: t / scale, length: d / scale }));
  return { init: name('initialization', 0, 0), segments };
}

function whole(videos, sound, captions) {
  if (!videos.length || videos.some((t) => !t.segments.length || !t.init)) throw new Error('the manifest lists no film that this player can read');
  videos.sort((a, b) => a.bits - b.bits);
  const last = videos[0].segments.at(-1);
  return { seconds: last.start + last.length, videos, sound, captions };
}
