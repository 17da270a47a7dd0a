"""Plays the demo's film in headless Chromium while something happens to its fleet; prints one JSON object.

    player.py URL SCENARIO PIDS

PIDS is a JSON object of process ids by node. The scenarios:
    kill      kills the edge that serves the film
    silent    stops it, so that connections stay open and nothing answers
    all       stops all edges until the page says so, and lets them go on
    control   kills control until the page says so
    place     watches as Singapore
    slow      3 Mbit/s, then 250 kbit/s

A stall is a time of more than 0.25 s in which the film should play, does not, and has nothing left to play: a film that a busy
machine does not decode in time has something left.
"""
import json, os, signal, sys, time

from playwright.sync_api import sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
WATCH = """() => {
  const video = document.querySelector('video'), seen = window.seen = {stalls: [], wrong: 0, wrongFor: null, qualities: []};
  let last = null, left = 0;
  setInterval(() => {
    const now = performance.now(), at = video.currentTime;
    const runs = at > 0 && !video.paused && !video.ended && !video.seeking;
    const ranges = video.buffered;
    let ahead = 0;
    for (let i = 0; i < ranges.length; i += 1) if (ranges.start(i) <= at + 0.25 && ranges.end(i) > at) ahead = ranges.end(i) - at;
    if (!runs || !last || at !== last.at) {
      if (last && runs && now - last.now > 250 && left < 0.5) seen.stalls.push(Math.round(now - last.now));
      last = {now, at};
      left = ahead;
    }
    if (runs) {
      const shown = document.getElementById('quality').textContent, is = `${video.videoHeight}p`;
      if (seen.qualities.at(-1) !== shown) seen.qualities.push(shown);
      seen.wrongFor = shown === is ? null : seen.wrongFor ?? now;
      if (seen.wrongFor) seen.wrong = Math.max(seen.wrong, Math.round(now - seen.wrongFor));
    }
  }, 20);
}"""
STATE = """() => ({
  at: document.querySelector('video').currentTime, ended: document.querySelector('video').ended, duration: document.querySelector('video').duration,
  tiles: [...document.querySelectorAll('#tiles li')].map((t) => ({number: Number(t.dataset.number), node: t.dataset.node, quality: t.dataset.quality})),
  problem: document.getElementById('problem').textContent, note: document.getElementById('note').textContent,
  used: document.querySelector('#answer .used')?.firstChild.textContent, answer: document.querySelector('#answer p')?.textContent,
})"""
LIMIT = 60


def rate(session, bits):
    session.send("Network.emulateNetworkConditions", {"offline": False, "latency": 20, "downloadThroughput": bits / 8, "uploadThroughput": bits / 8})


def main():
    url, scenario, pids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    edges = {node: pid for node, pid in pids.items() if node[-2] == "-"}
    result = {"errors": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("pageerror", lambda e: result["errors"].append(str(e)))
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        if scenario == "slow":
            rate(session, 3e6)

        def until(what, holds):
            begun = time.monotonic()
            while not holds(state := page.evaluate(STATE)):
                if time.monotonic() - begun > LIMIT:
                    sys.exit(f"never {what}: {json.dumps(state)} {json.dumps(page.evaluate('() => window.seen'))}")
                page.wait_for_timeout(50)
            return state

        def plays_on(state, seconds):
            until(f"{seconds} s more", lambda s: s["at"] > state["at"] + seconds or s["ended"])

        page.goto(url, wait_until="domcontentloaded")
        page.evaluate(WATCH)
        before = result["before"] = until("the film plays", lambda s: s["at"] > (5 if scenario == "slow" else 1) and s["tiles"])
        serving = before["used"]
        if scenario == "kill":
            os.kill(edges[serving], signal.SIGKILL)
            until("another node", lambda s: s["tiles"][-1]["node"] != serving)
        elif scenario == "silent":
            os.kill(edges[serving], signal.SIGSTOP)
            until("another node", lambda s: s["tiles"][-1]["node"] != serving)
        elif scenario == "all":
            for pid in edges.values():
                os.kill(pid, signal.SIGSTOP)
            result["during"] = until("the page says it", lambda s: s["problem"])
            for pid in edges.values():
                os.kill(pid, signal.SIGCONT)
            before = until("the sentence goes", lambda s: not s["problem"])
        elif scenario == "control":
            os.kill(pids["control"], signal.SIGKILL)
            result["during"] = until("the page says it", lambda s: s["note"])
        elif scenario == "place":
            page.get_by_role("button", name="Singapore").click()
            until("a node of Singapore", lambda s: any(t["node"].startswith("sin-") for t in s["tiles"]))
        elif scenario == "slow":
            rate(session, 250e3)
        plays_on(before, 25 if scenario == "slow" else 10)
        result["after"] = page.evaluate(STATE)
        result["seen"] = page.evaluate("() => window.seen")
        browser.close()
    json.dump(result, sys.stdout)


main()
