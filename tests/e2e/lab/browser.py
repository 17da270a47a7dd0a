"""Opens a page in headless Chromium, waits for a condition, checks what a person would trip over, prints one JSON object.

    browser.py URL CONDITION [--shots DIRECTORY] [--scheme light|dark] [--axe] [--allow-host=HOST:PORT ...] [--chromium=ARGUMENT ...]

CONDITION is a JavaScript expression that must become true within 60 s, on a wide and on a narrow screen. The page fails
when it logs an error, asks anything of a host that is neither its own nor allowed, gets an answer of 400 or more, or is
wider than its screen; with --axe, also when axe-core finds a violation of its rules for accessibility.
"""
import argparse, json, pathlib, sys, time
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

SCREENS = {"wide": (1440, 900), "narrow": (390, 844)}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("condition")
    parser.add_argument("--shots")
    parser.add_argument("--scheme", default="light")
    parser.add_argument("--axe", action="store_true")
    parser.add_argument("--allow-status", type=int, action="append", default=[])
    parser.add_argument("--allow-host", action="append", default=[])
    parser.add_argument("--chromium", action="append", default=[])
    options = parser.parse_args()
    host = urlsplit(options.url).netloc
    problems, texts = [], {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS + options.chromium)
        for name, (width, height) in SCREENS.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=options.scheme)
            page = context.new_page()
            page.on("console", lambda m, n=name: m.type == "error" and problems.append(f"{n}: console: {m.text}"))
            page.on("pageerror", lambda e, n=name: problems.append(f"{n}: script: {e}"))

            def asked(request, n=name):
                parts = urlsplit(request.url)
                if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc not in [host, *options.allow_host]:
                    problems.append(f"{n}: asks another host: {request.url}")

            def answered(response, n=name):
                if response.status >= 400 and response.status not in options.allow_status:
                    problems.append(f"{n}: {response.status} for {response.url}")

            page.on("request", asked)
            page.on("response", answered)
            page.goto(options.url, wait_until="domcontentloaded")
            # Asked from outside the page: its content security policy forbids what waiting inside it would need.
            until = time.monotonic() + 60
            while not (held := page.evaluate(f"() => Boolean({options.condition})")) and time.monotonic() < until:
                page.wait_for_timeout(200)
            if not held:
                problems.append(f"{name}: never became true: {options.condition}")
            overflow = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            if overflow > 0:
                problems.append(f"{name}: {overflow} px wider than the screen")
            if options.axe:
                for found in Axe().run(page).response["violations"]:
                    problems += [f"{name}: axe: {found['id']}: {found['help']}: {node['html'][:200]}" for node in found["nodes"]]
            texts[name] = page.inner_text("body")
            if options.shots:
                shot = pathlib.Path(options.shots) / f"{urlsplit(options.url).path.strip('/').replace('/', '-') or 'index'}-{name}-{options.scheme}.png"
                page.screenshot(path=str(shot), full_page=True)
            context.close()
        browser.close()
    json.dump({"problems": problems, "text": texts}, sys.stdout)


if __name__ == "__main__":
    main()
