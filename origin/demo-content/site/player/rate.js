// Which quality is fetched next, and when a segment is given up for a lower one. Pure: measurements go in, a choice comes out.

const FAST = 3, SLOW = 9; // half-lives of the two means, in seconds of transfer
const FIRST = 600e3; // bit/s that are assumed before anything was measured
const SHARE = 0.8, SHARE_UP = 0.7; // of the throughput that a quality may need: to keep it, to change up to it
const SMALL_BYTES = 16384, SMALL_MS = 250; // smaller and shorter transfers measure the round trip, not the throughput
const RESERVE = 0.5; // seconds of film that must be left when a segment arrives

// An exponentially weighted mean, corrected for its start from nothing.
class Mean {
  constructor(halfLife) { this.keep = 0.5 ** (1 / halfLife); this.sum = 0; this.weight = 0; }
  add(value, seconds) {
    const kept = this.keep ** seconds;
    this.sum = kept * this.sum + (1 - kept) * value;
    this.weight += seconds;
  }
  get value() { return this.sum / (1 - this.keep ** this.weight); }
}

export class Rate {
  constructor() { this.fast = new Mean(FAST); this.slow = new Mean(SLOW); }

  measured(bytes, ms) {
    if (bytes < SMALL_BYTES && ms < SMALL_MS) return;
    const seconds = Math.max(ms, 5) / 1000;
    for (const mean of [this.fast, this.slow]) mean.add(bytes * 8 / seconds, seconds);
  }

  get isMeasured() { return this.fast.weight > 0; }
  // The lesser of the two: falls at once, rises late.
  get bits() { return this.isMeasured ? Math.min(this.fast.value, this.slow.value) : FIRST; }

  // The quality for the next segment. `current` is the one before (or null), `ahead` the seconds in the buffer, `length` those of a segment.
  choose(videos, current, ahead, length) {
    const now = current ? videos.indexOf(current) : -1;
    let best = 0;
    videos.forEach((video, i) => {
      const fits = video.bits <= this.bits * (i > now ? SHARE_UP : SHARE);
      // Also the buffer decides: what arrives after the film has stopped is of no use.
      const inTime = ahead < length ? i <= now || now < 0 : (video.bits * length) / this.bits < ahead - RESERVE;
      if (fits && (inTime || now < 0)) best = i;
    });
    // With little in the buffer the quality does not rise, and with a full one it rises by one step at a time.
    if (now >= 0 && best > now) best = ahead < 2 * length ? now : now + 1;
    return videos[best];
  }

  // The lower quality for which a running transfer should be given up, or null. `got` of `all` bytes have arrived in `ms`.
  instead(videos, current, got, all, ms, ahead, length) {
    const now = videos.indexOf(current);
    if (now <= 0 || ms < 400 || !all || got >= all) return null;
    const bits = Math.max((got * 8000) / ms, 1);
    const left = ((all - got) * 8) / bits;
    if (left < Math.max(ahead - RESERVE, 0.5)) return null;
    // The best of the lower ones that arrives in time; the lowest, if that is sooner than to wait.
    const after = (video) => (video.bits * length) / bits;
    const better = videos.slice(0, now).reverse().find((video) => after(video) < ahead - RESERVE) || videos[0];
    return after(better) < left ? better : null;
  }
}
