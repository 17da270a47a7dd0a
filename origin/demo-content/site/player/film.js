// One film in a video element, by Media Source Extensions: fetches sound and picture a segment at a time, whichever is shorter
// in the buffer, and appends them.

import { Rate } from './rate.js';

const AHEAD = 14; // seconds that are fetched ahead of what is shown
const BEHIND = 60; // seconds that are kept behind it
const SEAM = 0.25; // gaps that browsers play over

export const Source = window.ManagedMediaSource || window.MediaSource;

const settled = (buffer) => new Promise((done, failed) => {
  buffer.addEventListener('updateend', done, { once: true });
  buffer.addEventListener('error', () => failed(new Error('this browser cannot play a segment of the film')), { once: true });
});

// Seconds of a buffer after a time.
function bufferedAfter(ranges, time) {
  let end = time;
  for (let i = 0; i < ranges.length; i += 1) if (ranges.start(i) <= end + SEAM && ranges.end(i) > end) end = ranges.end(i);
  return end - time;
}

export class Film extends EventTarget {
  constructor(video, manifest, edges, { rate = new Rate(), choice = 'auto' } = {}) {
    super();
    Object.assign(this, { video, manifest, edges, rate, choice, inits: new Map(), shown: [], ended: new AbortController() });
  }

  get ahead() { return this.tracks ? Math.min(...this.tracks.map((t) => bufferedAfter(t.buffer.buffered, this.video.currentTime))) : 0; }

  // The quality at the playing position, by what was appended there.
  get playing() {
    const at = this.video.currentTime, last = this.shown.length - 1;
    return this.shown[Math.min(Math.max(this.shown.findIndex((s) => s && s.start + s.length > at), 0), last)]?.quality || null;
  }

  stop() {
    this.ended.abort();
    this.transfer?.abort();
    if (this.url) URL.revokeObjectURL(this.url);
  }

  // Runs until stop(); throws when the film cannot be played.
  async play(from = 0) {
    const { video, manifest } = this;
    const source = new Source();
    video.disableRemotePlayback = true; // a ManagedMediaSource needs it
    this.url = video.src = URL.createObjectURL(source);
    await new Promise((opened) => source.addEventListener('sourceopen', opened, { once: true }));
    source.duration = manifest.seconds;
    this.tracks = [{ isVideo: true, list: manifest.videos[0].segments, buffer: source.addSourceBuffer(manifest.videos[0].mime), current: null }];
    if (manifest.sound) this.tracks.push({ list: manifest.sound.segments, buffer: source.addSourceBuffer(manifest.sound.mime), current: null });
    for (const track of this.tracks) track.next = 0;
    this.seekTo(from);
    if (from) video.currentTime = from;
    video.addEventListener('seeking', () => this.seeked(), { signal: this.ended.signal });
    while (!this.ended.signal.aborted) {
      const track = this.tracks.filter((t) => t.next < t.list.length).sort((a, b) => this.end(a) - this.end(b))[0];
      if (!track) {
        if (source.readyState === 'open' && !this.tracks.some((t) => t.buffer.updating)) source.endOfStream();
        await this.pause();
      } else if (this.end(track) - video.currentTime > AHEAD) {
        await this.pause();
      } else {
        await this.step(track).catch((error) => { if (error.name !== 'AbortError') throw error; });
      }
    }
  }

  pause() { return new Promise((wake) => { this.wake = wake; setTimeout(wake, 120); }); }

  end(track) { return track.list[track.next]?.start ?? Infinity; }

  seekTo(time) {
    for (const track of this.tracks) track.next = Math.max(0, track.list.findIndex((s) => s.start + s.length > time + 0.01));
  }

  seeked() {
    if (this.ahead > 0.5) return;
    this.seekTo(this.video.currentTime);
    this.transfer?.abort();
  }

  // Fetches again what is not shown soon, so that a new place or quality is seen at once.
  again() {
    if (!this.tracks) return;
    const [pictures] = this.tracks;
    const keep = pictures.list.findIndex((s) => s.start > this.video.currentTime + 3);
    if (keep >= 0 && keep < pictures.next) pictures.next = keep;
    this.transfer?.abort();
    this.wake?.();
  }

  async step(track) {
    const number = track.next, { start, length } = track.list[number];
    const { videos, sound } = this.manifest;
    const ahead = () => start - this.video.currentTime;
    let quality = sound;
    if (track.isVideo) quality = videos.find((v) => v.id === this.choice) || this.rate.choose(videos, track.current, ahead(), length);
    let result = null;
    while (!result) {
      const transfer = this.transfer = new AbortController();
      let lower = null, last = [0, 0];
      const onProgress = (got, all, ms) => {
        last = [got, ms];
        if (track.isVideo && this.choice === 'auto' && !this.video.paused) lower ||= this.rate.instead(videos, quality, got, all, ms, ahead(), length);
        if (lower) transfer.abort();
      };
      try {
        if (!this.inits.has(quality)) this.inits.set(quality, await this.edges.fetch(quality.init, { signal: transfer.signal, ahead, isMedia: true }).then((r) => r.bytes));
        result = await this.edges.fetch(quality.segments[number].url, { signal: transfer.signal, onProgress, ahead, isMedia: true });
      } catch (error) {
        if (!lower || this.ended.signal.aborted) throw error;
        this.rate.measured(...last);
        this.dispatchEvent(new CustomEvent('abandoned', { detail: { number, quality, lower } }));
        quality = lower;
      }
    }
    if (!result.isCached) this.rate.measured(result.arrived, result.ms);
    if (this.ended.signal.aborted || track.next !== number) return;
    await this.append(track, quality, result.bytes);
    track.next += track.next === number ? 1 : 0;
    if (track.isVideo) {
      this.shown[number] = { start, length, quality };
      this.dispatchEvent(new CustomEvent('segment', { detail: { number, start, length, quality, result } }));
    }
  }

  async append(track, quality, bytes) {
    const { buffer } = track, { video } = this;
    if (track.current !== quality) {
      buffer.changeType?.(quality.mime);
      buffer.appendBuffer(this.inits.get(quality));
      await settled(buffer);
      track.current = quality;
    }
    for (;;) {
      try {
        buffer.appendBuffer(bytes);
        break;
      } catch (error) {
        if (error.name !== 'QuotaExceededError' || this.ended.signal.aborted) throw error;
        await this.pause();
        await this.forget(buffer, video.currentTime - 5);
      }
    }
    await settled(buffer);
    await this.forget(buffer, video.currentTime - BEHIND);
  }

  async forget(buffer, until) {
    if (!buffer.buffered.length || buffer.buffered.start(0) >= until - 5) return;
    buffer.remove(0, until);
    await settled(buffer);
  }
}
