"""Hit ratios of both tiers' policies on seeded traces, beside those of other policies. Run by `tests/bench/run traces`.

This file writes the traces, runs the policies of the judge (libcachesim, from PyPI) and prints the tables. The program
store/examples/policies.rs runs the edge's own policies on the same files, and LRU, S3-FIFO and SIEVE of its own, which must
agree with the judge's request by request. Needs numpy and libcachesim, which `tests/bench/run` installs in target/test-venv.
"""
import json, os, pathlib, subprocess, sys, tempfile

import libcachesim
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLICIES = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/policies"
MIB = 1 << 20
SLICE = 256 * 1024
SEED = 15
# One request: key, bytes that it needs, whether it counts in the column "marked", bytes of the whole body.
RECORD = np.dtype([("key", "<u8"), ("bytes", "<u4"), ("marked", "<u4"), ("body", "<u8")])


# The traces.

def zipf(random, count, items, alpha):
    """Ranks of `count` requests for `items` items."""
    weights = np.arange(1, items + 1) ** -alpha
    return np.searchsorted(np.cumsum(weights / weights.sum()), random.random(count)).clip(0, items - 1)


def lognormal(random, count, median, sigma, least, most):
    return np.exp(random.normal(np.log(median), sigma, count)).clip(least, most).astype(np.uint32)


def records(keys, sizes, marked=None, bodies=None):
    out = np.zeros(len(keys), RECORD)
    out["key"], out["bytes"] = keys, sizes
    out["marked"] = 1 if marked is None else marked
    out["body"] = sizes if bodies is None else bodies
    return out


def drifting(random, count, items, alpha, one_hit, swap_each):
    """Keys of requests for `items` items whose popularity drifts (two of them swap ranks each `swap_each` requests), and of one-hit wonders,
    numbered from `items`."""
    ranks, is_one_hit = zipf(random, count, items, alpha), random.random(count) < one_hit
    swaps = random.integers(0, items, (count, 2))
    item_of, keys, wonders = np.arange(items), np.empty(count, np.uint64), items
    for at in range(count):
        if is_one_hit[at]:
            keys[at] = wonders
            wonders += 1
        else:
            keys[at] = item_of[ranks[at]]
        if swap_each and at % swap_each == 0:
            a, b = swaps[at]
            item_of[a], item_of[b] = item_of[b], item_of[a]
    return keys


def cdn(seed, count=150_000):
    """Zipf 0.85 with drift, one request in five for a key that comes once."""
    random = np.random.default_rng(seed)
    keys = drifting(random, count, 27_500, 0.85, 0.2, 4)
    sizes = lognormal(random, int(keys.max()) + 1, 8_500, 1.25, 256, 8 * MIB)
    return records(keys, sizes[keys])


def web(seed, count=600_000):
    """Many small responses, few large ones: sizes from 300 bytes to 32 MiB with a heavy tail, Zipf 0.95, slow drift."""
    random = np.random.default_rng(seed)
    keys = drifting(random, count, 120_000, 0.95, 0.1, 20)
    most = int(keys.max()) + 1
    sizes = np.where(random.random(most) < 0.97, lognormal(random, most, 6_000, 1.4, 300, 4 * MIB), lognormal(random, most, 600_000, 1.2, 1000, 32 * MIB))
    return records(keys, sizes[keys].astype(np.uint32))


def video(seed, sessions=4_000, titles=1_000):
    """Viewers of titles of 8 to 120 slices, who read slice after slice and often leave early; titles change their ranks."""
    random = np.random.default_rng(seed)
    return sessions_of(random, drifting(random, sessions, titles, 0.9, 0, 10).astype(np.int64), titles)


def sessions_of(random, chosen, titles, abreast=150):
    """Requests for slices by sessions that watch the chosen titles, `abreast` at a time."""
    lengths = lognormal(random, titles, 32, 0.7, 8, 120)
    keys, bodies, watching, following = [], [], [], 0
    while following < len(chosen) or watching:
        while following < len(chosen) and len(watching) < abreast:
            title = int(chosen[following])
            watched = int(lengths[title]) if random.random() < 0.4 else 1 + int(random.random() ** 2 * lengths[title])
            watching.append([title, 0, watched])
            following += 1
        at = int(random.integers(0, len(watching)))
        session = watching[at]
        keys.append(session[0] * 1000 + session[1])
        bodies.append(int(lengths[session[0]]) * SLICE)
        session[1] += 1
        if session[1] == session[2]:
            watching[at] = watching[-1]
            watching.pop()
    return records(np.array(keys, np.uint64), np.full(len(keys), SLICE), bodies=np.array(bodies))


def releases(seed, sessions=4_000, titles=1_000):
    """As `video`, with an audience that moves on: each 100 sessions the 10 most popular titles are never asked for again. Nothing but use of late
    counts here."""
    random = np.random.default_rng(seed)
    ranks = zipf(random, sessions, titles // 2, 0.9)
    return sessions_of(random, (ranks + np.arange(sessions) // 100 * 10).astype(np.int64), titles)


def phases(seed, count=200_000):
    """The audience moves to other content at once. Marked: the second half of the second phase."""
    random = np.random.default_rng(seed)
    keys = zipf(random, count, 20_000, 0.9) + np.where(np.arange(count) < count // 2, 0, 20_000)
    sizes = lognormal(random, 40_000, 8_500, 1.25, 256, 8 * MIB)
    return records(keys, sizes[keys], marked=np.arange(count) >= count * 3 // 4)


def scan(seed, hot=500_000, hot_mib=50, scanned=1_000_000):
    """Hot content of `hot_mib`, and a crawl of `scanned` keys in the second half. Marked: requests for hot content in that half."""
    random = np.random.default_rng(seed)
    items = 60 * hot_mib
    sizes = lognormal(random, items, 12_000, 1.0, 500, MIB)
    sizes = (sizes * (hot_mib * MIB / sizes.sum())).astype(np.uint32)
    keys = zipf(random, hot, items, 0.8)
    warm = records(keys[: hot // 2], sizes[keys[: hot // 2]], marked=0)
    kept = records(keys[hot // 2:], sizes[keys[hot // 2:]])
    crawl = records(np.arange(scanned) + 10_000_000, lognormal(random, scanned, 6_000, 1.2, 300, MIB), marked=0)
    both = np.concatenate([kept, crawl])
    order = np.argsort(np.concatenate([random.random(len(kept)), random.random(len(crawl))]), kind="stable")
    # Only the crawl is shuffled in; hot requests keep their order, so the trace without the crawl is the same one.
    both = both[order]
    both[both["marked"] == 1] = kept
    return np.concatenate([warm, both])


# The policies.

JUDGED = {"LRU": "LRU", "S3-FIFO": "S3FIFO", "SIEVE": "Sieve", "W-TinyLFU": "WTinyLFU", "GDSF": "GDSF", "LHD": "LHD", "ARC": "ARC",
          "Belady": "Belady", "Belady by size": "BeladySize"}
# Those that know the future are no bar.
CLAIRVOYANT = ("Belady", "Belady by size")
# Our own implementations of the judge's policies.
SAME = {"LRU": "lru", "S3-FIFO": "s3fifo", "SIEVE": "sieve"}
NEVER = 1 << 62


def next_uses(keys):
    following, last = np.full(len(keys), NEVER, np.int64), {}
    for at in range(len(keys) - 1, -1, -1):
        following[at] = last.get(keys[at], NEVER)
        last[keys[at]] = at
    return following.tolist()


def judge(name, trace, following, capacity):
    """Which requests are hits, by the judge."""
    cache, request = getattr(libcachesim, JUDGED[name])(capacity), libcachesim.Request()
    hits = np.zeros(len(trace), bool)
    for at, (key, size, after) in enumerate(zip(trace["key"].tolist(), trace["bytes"].tolist(), following)):
        request.obj_id, request.obj_size, request.next_access_vtime, request.clock_time = key, size, after, at // 100
        hits[at] = cache.get(request)
    return hits


def ours(policy, trace, capacity, work, hits=False):
    """Figures of a policy of store/examples/policies.rs, and which requests are hits if asked for."""
    trace.tofile(work / "trace")
    arguments = ["--hits", str(work / "hits")] if hits else []
    out = subprocess.run([POLICIES, *arguments, work / "trace", str(capacity), policy], check=True, capture_output=True, text=True).stdout
    return json.loads(out), np.fromfile(work / "hits", np.uint8) == 1 if hits else None


def figures(trace, hits):
    marked = trace["marked"] == 1
    return {"misses": int((~hits).sum()), "missed_bytes": int(trace["bytes"][~hits].sum(dtype=np.int64)), "marked_misses": int((marked & ~hits).sum())}


def compare(title, trace, mib, work, judged=JUDGED, tiers=("memory", "disk")):
    """Prints one table, and returns the figures of all policies."""
    capacity, rows, following = mib * MIB, {}, next_uses(trace["key"].tolist())
    differing = []
    for name in judged:
        if name == "Belady by size" and len(trace) > 200_000:
            continue
        hits = judge(name, trace, following, capacity)
        rows[name] = figures(trace, hits)
        if name in SAME:
            own = ours(SAME[name], trace, capacity, work, hits=True)[1]
            differing.append(f"{name} {int((own != hits).sum())}")
    for tier in tiers:
        rows[f"Nearcast, {tier}"] = ours(tier, trace, capacity, work)[0]
    marked, lru = int((trace["marked"] == 1).sum()), rows["LRU"]
    size = trace["bytes"][np.unique(trace["key"], return_index=True)[1]].sum(dtype=np.int64)
    print(f"\n## {title}: {len(trace):,} requests, {size // MIB:,} MiB of content, {mib} MiB held\n")
    print(f"{'':20} {'hit ratio':>10} {'misses/LRU':>11} {'bytes missed/LRU':>17}" + (f" {'marked hits':>12}" if marked < len(trace) else ""))
    for name, row in rows.items():
        print(f"{name:20} {1 - row['misses'] / len(trace):10.3f} {row['misses'] / lru['misses']:11.3f} {row['missed_bytes'] / lru['missed_bytes']:17.3f}"
              + (f" {1 - row['marked_misses'] / marked:12.4f}" if marked < len(trace) else "")
              + (f"   written again: {row['rewritten_bytes'] / (row['written_bytes'] - row['rewritten_bytes']):.2f} bytes a byte stored"
                 if "rewritten_bytes" in row else ""))
    print(f"Requests that our own implementation decides otherwise than the judge: {', '.join(differing)}", flush=True)
    return rows


def verdict(what, value, bar):
    print(f"{'holds ' if value <= bar else 'MISSED'}  {what}: {value:.3f}, bar {bar:.3f}")


def best(rows, figure):
    return min(row[figure] for name, row in rows.items() if name not in CLAIRVOYANT and not name.startswith("Nearcast"))


def main():
    with tempfile.TemporaryDirectory(prefix="nearcast-traces-") as work:
        run(pathlib.Path(work))


def run(work):
    print(f"Hit ratios on seeded traces (seed {SEED}); judge: libcachesim")
    trace = cdn(SEED)
    tables = {("cdn", mib): compare("cdn", trace, mib, work) for mib in (64, 256)}
    trace = web(SEED)
    tables |= {("web", mib): compare("web", trace, mib, work) for mib in (128, 1024)}
    trace = video(SEED)
    tables |= {("video", mib): compare("video", trace, mib, work) for mib in (512, 1536)}
    trace = releases(SEED)
    tables |= {("releases", mib): compare("releases", trace, mib, work) for mib in (1536,)}
    tables["phases", 64] = compare("phases", phases(SEED), 64, work)
    some = ("LRU", "S3-FIFO", "GDSF", "W-TinyLFU")
    scans = {mib: [compare(f"scan of {scanned:,} keys beside hot content of {mib} MiB", scan(SEED, hot_mib=mib, scanned=scanned), 64, work, some)
                   for scanned in (0, 1_000_000)] for mib in (50, 128)}
    print("\n## Bars\n")
    for (name, mib), rows in tables.items():
        verdict(f"{name} {mib} MiB, memory: object misses against LRU's", rows["Nearcast, memory"]["misses"] / rows["LRU"]["misses"], 0.80)
        missed = rows["Nearcast, disk"]["missed_bytes"]
        verdict(f"{name} {mib} MiB, disk: bytes missed against LRU's", missed / rows["LRU"]["missed_bytes"], 0.88)
        verdict(f"{name} {mib} MiB, disk: bytes missed against the best of the list", missed / best(rows, "missed_bytes"), 1.01)
    for mib, (without, beside) in scans.items():
        for tier in ("memory", "disk"):
            marked = 250_000
            lost = (beside[f"Nearcast, {tier}"]["marked_misses"] - without[f"Nearcast, {tier}"]["marked_misses"]) / marked * 100
            verdict(f"scan beside hot content of {mib} MiB, {tier}: points of hit ratio lost", lost, 1.0)


if __name__ == "__main__":
    main()
