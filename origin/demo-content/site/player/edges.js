// Where segments come from: asks control which edges DNS gives to this viewer, and fetches from them, changing to the next edge
// when one fails, also in the middle of a body.

const ASK_MS = 3000; // for an answer of control
const TTL_MIN = 2, TTL_MAX = 300; // seconds between two questions
const SILENT_MS = 2500, SILENT_MIN_MS = 1500; // for the head of a response, and between two pieces of its body
const DEAD_MS = 8000; // an edge that failed is not asked again for this time, unless nothing else is left
const PAUSE_MS = 400; // between two rounds over all edges

const wait = (ms, signal) => new Promise((done) => {
  const timer = setTimeout(done, ms);
  signal?.addEventListener('abort', () => { clearTimeout(timer); done(); }, { once: true });
});
export const isLoopback = (url) => /^https?:\/\/(127\.|localhost[:/]|\[::1\])/.test(`${url}/`);

// `Cache-Status: ams-1; hit` or `ams-1; fwd=uri-miss; stored` (RFC 9211): the last member is the node that answered us.
export function readStatus(field) {
  const last = (field || '').split(',').pop().split(';').map((s) => s.trim());
  return { node: last[0] || 'origin', isHit: last.includes('hit'), why: (last.find((p) => p.startsWith('fwd=')) || '').slice(4) };
}

// A browser keeps 250 entries, fewer than the segments of an evening.
performance.addEventListener('resourcetimingbufferfull', () => performance.clearResourceTimings());

export class Edges extends EventTarget {
  // `steering` is what steering.json says; without a URL there is only the edge that sent this page.
  constructor(steering) {
    super();
    this.steering = steering?.url ? steering : null;
    this.client = null; // an address, or null for the viewer's own
    this.answer = null;
    this.isControlGone = false;
    this.isByHttp = false; // the page came by https, the segments do not
    this.dead = new Map(); // base URL -> until when
    this.current = null; // the edge in use
    this.edges = [{ node: null, bases: [location.origin] }];
    this.question = 0;
    addEventListener('online', () => { this.dead.clear(); this.ask(); });
  }

  changed() { this.dispatchEvent(new Event('change')); }

  watchAs(client) {
    this.client = client;
    this.dead.clear();
    this.current = null;
    return this.ask();
  }

  // Asks control, keeps the former answer when it fails, and asks again when the TTL has passed.
  async ask() {
    if (!this.steering) return;
    const question = ++this.question;
    this.asked = performance.now();
    clearTimeout(this.timer);
    const url = new URL(this.steering.url);
    url.searchParams.set('host', this.steering.host);
    if (this.client) url.searchParams.set('client', this.client);
    let ttl = TTL_MIN;
    try {
      const response = await fetch(url, { cache: 'no-store', signal: AbortSignal.timeout(ASK_MS) });
      const answer = await response.json();
      if (question !== this.question) return; // the place was changed meanwhile
      if (!response.ok) throw new Error(answer.error?.message);
      ttl = Math.min(Math.max(answer.ttl, TTL_MIN), TTL_MAX);
      this.isControlGone = false;
      this.take(answer);
    } catch {
      if (question !== this.question) return;
      this.isControlGone = true;
    }
    this.timer = setTimeout(() => this.ask(), ttl * 1000);
    this.changed();
  }

  take(answer) {
    const isTls = location.protocol === 'https:';
    // A browser that does not trust the demo's authority takes nothing by https from another edge. Over loopback it may use http.
    const bases = (edge) => (isTls ? [edge.https, edge.http && isLoopback(edge.http) ? edge.http : null] : [edge.http]).filter(Boolean);
    this.answer = answer;
    this.edges = answer.edges.map((edge) => ({ node: edge.node, bases: bases(edge) })).filter((edge) => edge.bases.length);
    // A viewer stays at an edge for as long as DNS gives it.
    const alive = this.edges.filter((edge) => !this.isEdgeDead(edge));
    this.current = alive.find((edge) => edge.node === this.current?.node) || alive[0] || this.edges[0] || null;
  }

  isDead(base) { return (this.dead.get(base) || 0) > performance.now(); }
  isEdgeDead(edge) { return edge.bases.every((base) => this.isDead(base)); }
  get areAllDead() { return this.edges.every((edge) => this.isEdgeDead(edge)); }

  // The base URLs to try, best first: the current edge's, then the others'; those that failed of late last.
  candidates() {
    const from = Math.max(this.edges.indexOf(this.current), 0);
    const all = this.edges.slice(from).concat(this.edges.slice(0, from))
      .flatMap((edge) => (this.isByHttp ? [...edge.bases].reverse() : edge.bases).map((base) => ({ edge, base })));
    return [...all.filter((c) => !this.isDead(c.base)), ...all.filter((c) => this.isDead(c.base)).sort((a, b) => this.dead.get(a.base) - this.dead.get(b.base))];
  }

  failed({ edge, base }) {
    this.dead.set(base, performance.now() + DEAD_MS);
    if (this.current === edge) this.current = this.edges.find((other) => !this.isEdgeDead(other)) || edge;
    // Name servers see a dead edge after their own checks, so this is asked now and, by the short TTL of a failure, soon again.
    if (performance.now() - (this.asked || 0) > 1000) this.ask();
    this.changed();
  }

  // The bytes of a URL from whichever edge gives them. `onProgress(bytes, all, ms)` may abort `signal`; `ahead()` is how long a
  // viewer can wait. Returns {bytes, ms, node, isHit, why, protocol, isCached, resumed}; throws only for `signal` and for 4xx.
  async fetch(url, { signal, onProgress, ahead = () => 6, isMedia = false } = {}) {
    const own = new URL(url, location.href);
    const isSteered = own.origin === location.origin;
    const got = { chunks: [], bytes: 0, all: 0, from: [] };
    for (;;) {
      const tried = isSteered ? this.candidates() : [{ edge: null, base: own.origin }];
      for (const candidate of tried) {
        try {
          const result = await this.fetchFrom(candidate.base + own.pathname + own.search, got, { signal, onProgress, ahead });
          this.dead.delete(candidate.base);
          if (candidate.edge) {
            const isByHttp = location.protocol === 'https:' && candidate.base.startsWith('http:');
            if (this.current !== candidate.edge || this.isByHttp !== isByHttp) {
              this.current = candidate.edge;
              this.isByHttp = isByHttp;
            }
            candidate.edge.node ||= result.node;
            this.changed();
          }
          return result;
        } catch (error) {
          if (signal?.aborted || error.isFinal) throw error;
          // Only media have one form everywhere; text may come in several codings, whose parts do not fit together.
          if (!isMedia || !got.all) Object.assign(got, { chunks: [], bytes: 0 });
          if (candidate.edge) this.failed(candidate);
          if (this.edges.length && isSteered && !this.edges.includes(candidate.edge)) break; // DNS has another answer by now
        }
      }
      await wait(PAUSE_MS, signal);
      if (signal?.aborted) throw new DOMException('given up', 'AbortError');
    }
  }

  // One attempt at one edge. What has arrived stays in `got`, so that the next attempt continues there.
  async fetchFrom(url, got, { signal, onProgress, ahead }) {
    const attempt = new AbortController();
    const give = () => attempt.abort();
    signal?.addEventListener('abort', give, { once: true });
    let timer;
    const expect = (ms) => { clearTimeout(timer); timer = setTimeout(give, ms); };
    const patience = () => Math.min(Math.max((ahead() * 1000) / 3, SILENT_MIN_MS), SILENT_MS);
    const begun = performance.now();
    try {
      expect(patience());
      const headers = got.bytes ? { Range: `bytes=${got.bytes}-` } : {};
      const response = await fetch(url, { signal: attempt.signal, headers });
      if (!response.ok) {
        const error = new Error(`${response.status} for ${new URL(url).pathname}`);
        error.isFinal = response.status < 500 && response.status !== 429 && response.status !== 416;
        throw error;
      }
      const [, first, all] = /^bytes (\d+)-\d+\/(\d+)$/.exec(response.headers.get('content-range') || '') || [];
      if (got.bytes && (response.status !== 206 || Number(first) !== got.bytes || (got.all && Number(all) !== got.all))) {
        Object.assign(got, { chunks: [], bytes: 0 });
        if (response.status === 206) throw new Error('not the part that was asked for');
      }
      const resumed = got.bytes;
      got.all = Number(all || response.headers.get('content-length') || 0);
      const status = readStatus(response.headers.get('cache-status'));
      for (const reader = response.body.getReader(); ;) {
        expect(SILENT_MS);
        const { done, value } = await reader.read();
        if (done) break;
        got.chunks.push(value);
        got.bytes += value.byteLength;
        onProgress?.(got.bytes - resumed, got.all - resumed, performance.now() - begun);
      }
      if (got.all && got.bytes < got.all) throw new Error('the response ended early');
      const entry = performance.getEntriesByName(url).at(-1);
      const bytes = new Uint8Array(got.bytes);
      got.chunks.reduce((at, chunk) => { bytes.set(chunk, at); return at + chunk.byteLength; }, 0);
      return {
        bytes, ms: performance.now() - begun, arrived: got.bytes - resumed, resumed: resumed > 0, protocol: entry?.nextHopProtocol || '',
        isCached: entry?.transferSize === 0 && entry?.encodedBodySize > 0, ...status,
      };
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', give);
    }
  }
}
