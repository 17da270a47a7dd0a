"""Uses the console in headless Chromium as an operator would, and checks what one would trip over.

    console.py URL

Prints `stop control` when control is to be ended and `start control` when it is to run again, and ends with 0 when
nothing was wrong. Waits for conditions only, each for a minute at most.
"""
import re, sys, time

from playwright.sync_api import sync_playwright

from browser import ARGUMENTS

URL = sys.argv[1]
# Bytes that one update of a tab may cost on the wire, fields included, as a mean over some updates.
UPDATE_BYTES_MAX = 16_000
LAYOUT_SHIFT_MAX = 0.05
CONTRAST_MIN = 3
problems = []


def check(holds, what):
    if not holds:
        problems.append(what)


def wait(page, expression, what):
    """Asked from outside the page, whose content security policy forbids what waiting inside it would need."""
    until = time.monotonic() + 60
    while not page.evaluate(f"() => Boolean({expression})"):
        if time.monotonic() > until:
            sys.exit(f"waited a minute for {what}: {page.inner_text('body')[:2000]}")
        page.wait_for_timeout(100)


def open_page(browser, width, height, path="", **options):
    page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.updates = 0

    def answered(response):
        page.updates += "/v1/status" in response.url and response.ok

    page.on("response", answered)
    page.goto(URL + path, wait_until="domcontentloaded")
    wait(page, "document.querySelectorAll('#clusters .node').length > 6 && document.querySelector('.chart svg')", "the fleet")
    return page


def wait_updates(page, count):
    target, until = page.updates + count, time.monotonic() + 60
    while page.updates < target and time.monotonic() < until:
        page.wait_for_timeout(100)
    check(page.updates >= target, f"{count} updates did not come within a minute")


def fits(browser):
    for width in (320, 390, 768):
        page = open_page(browser, width, 900)
        check(page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"scrolls sideways at {width} px")
        apart = """() => { const box = document.querySelector('#world svg').getBoundingClientRect();
            const all = [...document.querySelectorAll('#world .label')].map((l) => l.getBoundingClientRect());
            const out = all.filter((l) => l.left < box.left - 1 || l.right > box.right + 1 || l.top < box.top - 1 || l.bottom > box.bottom + 1);
            const over = all.filter((a, i) => all.some((b, k) => k < i && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
            return [all.length, out.length, over.length]; }"""
        count, clipped, covered = page.evaluate(apart)
        check(count == 3 and clipped == 0 and covered == 0, f"map labels at {width} px: {count}, {clipped} clipped, {covered} on another")
        page.context.close()
    for width, height in ((1920, 1080), (2560, 1440)):
        page = open_page(browser, width, height, "#wall")
        scrolls = page.evaluate("[document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight - innerHeight]")
        check(max(scrolls) <= 0, f"the wall scrolls at {width}x{height}: {scrolls}")
        outside = page.evaluate("""() => [...document.querySelectorAll('main > *')].filter((e) => e.offsetParent).filter((e) => {
            const b = e.getBoundingClientRect(); return b.bottom > innerHeight + 1 || b.right > innerWidth + 1 || b.height < 20; }).map((e) => e.className)""")
        check(not outside, f"the wall cuts off {outside} at {width}x{height}")
        page.context.close()


def updates_in_place(page):
    wait_updates(page, 3)
    page.evaluate("""() => { window.kept = [...document.querySelectorAll('#clusters .node, #events li, .figure, #world .pins g')];
        window.shift = 0;
        new PerformanceObserver((list) => { for (const e of list.getEntries()) if (!e.hadRecentInput) window.shift += e.value; }).observe({ type: 'layout-shift' });
        getSelection().selectAllChildren(document.querySelector('#clusters .node .name')); }""")
    selected = page.evaluate("getSelection().toString()")
    wire = page.context.new_cdp_session(page)
    sizes = []
    wire.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    wire.send("Network.enable")
    before = page.updates
    wait_updates(page, 8)
    each = sum(sizes) / max(1, page.updates - before)
    print(f"{each:.0f} bytes an update", flush=True)
    check(0 < each < UPDATE_BYTES_MAX, f"an update costs {each:.0f} bytes")
    check(selected and page.evaluate("getSelection().toString()") == selected, "an update drops the selection")
    lost = page.evaluate("kept.filter((e) => !e.isConnected).map((e) => e.textContent)")
    check(not lost, f"updates replace elements: {lost}")
    shift = page.evaluate("shift")
    print(f"{shift:.4f} layout shift", flush=True)
    check(shift < LAYOUT_SHIFT_MAX, f"the layout shifts by {shift}")


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def can_be_used(page):
    page.locator("#ratio").scroll_into_view_if_needed()
    box = page.locator("#ratio").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5)
    reading = page.locator("#ratio .reading").inner_text()
    check(re.search(r"\d\d:\d\d:\d\d", reading) and "objects" in reading, f"the cross-hair shows a time and values: {reading!r}")
    check(page.locator("#bytes .reading").is_visible(), "the cross-hair is in both charts")
    check(page.locator("#ratio .mark.restart, #ratio .mark.back").count() > 0, "events are marked on the charts")
    check(page.locator("#world .night path").first.get_attribute("d"), "night is on the map")
    border, card = page.evaluate("""() => { const s = getComputedStyle(document.querySelector('#explain input'));
        return [s.borderTopColor, getComputedStyle(document.querySelector('.card')).backgroundColor]; }""")
    check(contrast(border, card) >= CONTRAST_MIN, f"an input's border has a contrast of {contrast(border, card):.1f}")
    check(page.locator("h1").count() == 1, "one h1")

    page.locator(".act summary").click()
    page.locator("#purge select").select_option("all")
    page.locator("#purge input[name=token]").fill("not needed to be asked")
    page.locator("#purge button").click()
    check(page.locator("#purge-ask").is_visible(), "a purge of everything asks first")
    page.locator("#purge-no").click()
    check("Nothing was purged" in page.locator("#purge-result").inner_text(), "the answer no purges nothing")


def keeps_colours(browser):
    page = open_page(browser, 1440, 900, forced_colors="active")
    same = page.evaluate("""() => ['.swatch', '.dots i', '.legend .swatch'].filter((s) => {
        const e = document.querySelector(s); return !e || getComputedStyle(e).backgroundColor === getComputedStyle(document.body).backgroundColor; })""")
    check(not same, f"forced colours hide {same}")
    page.context.close()


def survives_control(page):
    print("stop control", flush=True)
    wait(page, "document.body.classList.contains('gone') && /does not answer.*as of .*continues by itself/.test(document.getElementById('banner').innerText.replace(/\\n/g, ' '))", "the sentence about control")
    check(page.evaluate("getComputedStyle(document.querySelector('.figures').parentElement).filter.includes('grayscale')"), "old data is grey")
    check(page.locator("#clusters .node").count() > 6, "old data is still there")
    print("start control", flush=True)
    wait(page, "!document.body.classList.contains('gone') && document.getElementById('live').textContent === 'live'", "control to be back")
    wait(page, "[...document.querySelectorAll('#events li')].filter((e) => e.textContent.includes('control started')).length > 1", "the event of control's start")


def main():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        fits(browser)
        keeps_colours(browser)
        page = open_page(browser, 1440, 900)
        updates_in_place(page)
        can_be_used(page)
        survives_control(page)
        browser.close()
    if problems:
        sys.exit("\n".join(problems))


main()
