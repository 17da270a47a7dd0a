"""Starts a demo and takes the README's pictures of it: the console in light and dark, and a loop in which all
edges of a place are killed while a film plays.

    pictures.py BINARY DIRECTORY

`tests/pictures` runs it. Every wait is for a condition and has a limit, so that it ends in any case.
"""
import os, pathlib, signal, subprocess, sys, tempfile, time

from playwright.sync_api import sync_playwright

from browser import ARGUMENTS

BINARY, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
CONSOLE, PLAYER = "http://127.0.0.1:7700/", "http://127.0.10.1:8080/watch"
VICTIMS = ("ams-1", "ams-2") # all edges of a place, the one that the player's page comes from among them
STILL = {"width": 1440, "height": 960}
LOOP = {"width": 1120, "height": 630}
FILM = (208, 117, 32, 210) # width, height, and distances from the left and from the bottom
WARM_SECONDS = 75 # of traffic before the pictures: less shows nearly empty charts
BEFORE_SECONDS, AFTER_SECONDS, FRAMES_A_SECOND = 3, 10, 4
BYTES_MAX = 1_500_000


def wait(page, expression, seconds, what, must=True):
    until = time.monotonic() + seconds
    while not page.evaluate(f"() => Boolean({expression})"):
        if time.monotonic() > until:
            if must:
                sys.exit(f"pictures: waited {seconds} s for {what}")
            print(f"pictures: waited {seconds} s for {what}; going on", file=sys.stderr)
            return
        page.wait_for_timeout(100)


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def still(page, name, directory):
    shot = directory / "still.png"
    page.screenshot(path=str(shot))
    ffmpeg("-i", shot, "-c:v", "libwebp", "-quality", 88, "-preset", "drawing", OUT / f"console-{name}.webp")


def film_of(page):
    """The box of the film in the player's page, or nothing while none plays."""
    return page.evaluate("""() => { const v = document.querySelector('video'), b = v && v.getBoundingClientRect();
        return v && v.currentTime > 0 && b.width > 0 ? { x: b.x, y: b.y, width: b.width, height: b.height } : null; }""")


def loop(page, player, kill, directory):
    """Screenshots at their own pace; each is shown as long as it took until the next."""
    frames, killed, begun, film = [], False, time.monotonic(), film_of(player)
    while (now := time.monotonic()) - begun < BEFORE_SECONDS + AFTER_SECONDS:
        if not killed and now - begun >= BEFORE_SECONDS:
            kill()
            killed = True
        file = directory / f"{len(frames):04}.jpeg"
        page.screenshot(path=str(file), type="jpeg", quality=92)
        if film:
            player.screenshot(path=str(file.with_suffix(".film.jpeg")), type="jpeg", quality=92, clip=film)
        frames.append((file, now))
        page.wait_for_timeout(max(0, (1 / FRAMES_A_SECOND - (time.monotonic() - now)) * 1000))
    ends = [at for _, at in frames[1:]] + [frames[-1][1] + 1.5]

    def listing(suffix):
        text = "".join(f"file '{file.with_suffix(suffix)}'\nduration {end - at:.3f}\n" for (file, at), end in zip(frames, ends))
        path = directory / f"frames{suffix}.txt"
        path.write_text(f"{text}file '{frames[-1][0].with_suffix(suffix)}'\n")
        return ["-f", "concat", "-safe", 0, "-i", path]

    inputs, filters = listing(".jpeg"), f"[0]fps={FRAMES_A_SECOND}"
    if film:
        width, height, left, bottom = FILM
        inputs += listing(".film.jpeg")
        filters = f"[1]scale={width}:{height},pad=iw+4:ih+4:2:2:white[film];[0][film]overlay={left}:H-h-{bottom},fps={FRAMES_A_SECOND}"
    target = OUT / "failover.webp"
    for quality in (70, 55, 40, 25):
        ffmpeg(*inputs, "-filter_complex", filters, "-c:v", "libwebp_anim", "-quality", quality, "-compression_level", 5, "-loop", 0, target)
        if target.stat().st_size < BYTES_MAX:
            return
    sys.exit(f"pictures: {target} has {target.stat().st_size} bytes")


def pids_of(demo, nodes):
    """The demo's own children that are these nodes."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            parent = entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (entry / "cmdline").read_text().split("\0") if parent == demo else []
        except OSError:
            continue # it has ended since
        if "--node" in words and words[words.index("--node") + 1] in nodes:
            found[words[words.index("--node") + 1]] = int(entry.name)
    if set(found) != set(nodes):
        sys.exit(f"pictures: of {nodes} only {found} run")
    return list(found.values())


def take(demo, directory):
    pids = pids_of(demo.pid, VICTIMS)
    healthy = "/All nodes report/.test(document.getElementById('banner').innerText)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        pages = {}
        for scheme in ("light", "dark"):
            pages[scheme] = browser.new_context(viewport=STILL, color_scheme=scheme).new_page()
            pages[scheme].goto(CONSOLE, wait_until="domcontentloaded")
        wall = browser.new_context(viewport=LOOP, color_scheme="dark").new_page()
        wall.goto(CONSOLE + "#wall", wait_until="domcontentloaded")

        print(f"pictures: {WARM_SECONDS} s of traffic first", file=sys.stderr)
        for page in pages.values():
            wait(page, "document.querySelectorAll('#world .flow').length > 1", 60, "arcs on the map")
        wait(wall, f"performance.now() > {WARM_SECONDS * 1000}", WARM_SECONDS + 30, "traffic")
        # An open push window and a healthy fleet make the better picture; without them it is still one.
        wait(pages["light"], f"document.querySelector('#world .window') && {healthy}", 45, "an open push window", must=False)
        for scheme, page in pages.items():
            still(page, scheme, directory)
            page.context.close()

        player = browser.new_context(viewport={"width": 800, "height": 900}, color_scheme="dark").new_page()
        player.goto(PLAYER, wait_until="domcontentloaded")
        wait(player, "(v => v && v.currentTime > 2)(document.querySelector('video'))", 30, "the film to play", must=False)
        wait(wall, healthy, 30, "all nodes to report", must=False)
        loop(wall, player, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids], directory)
        browser.close()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nearcast-pictures-") as name:
        directory = pathlib.Path(name)
        output = directory / "demo.log"
        with output.open("w") as out:
            demo = subprocess.Popen([BINARY, "demo", "--traffic-rate", "60", "--state-dir", str(directory / "demo")], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 90
            while "Files:" not in output.read_text(): # its last line when everything is ready
                if demo.poll() is not None or time.monotonic() > until:
                    sys.exit(f"pictures: the demo did not start:\n{output.read_text()}")
                time.sleep(0.2)
            take(demo, directory)
        finally:
            demo.send_signal(signal.SIGINT)
            try:
                demo.wait(30)
            except subprocess.TimeoutExpired:
                demo.kill()
    for file in sorted(OUT.glob("*.webp")):
        print(f"{file}: {file.stat().st_size // 1024} KiB")


main()
