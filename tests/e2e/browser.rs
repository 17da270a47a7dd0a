//! Headless Chromium opens the player and the console.

use std::process::Command;
use std::time::Duration;

use crate::lab::browser::open;
use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::process::Process;
use crate::lab::tools::{PYTHON, curl, dig_addresses};
use crate::lab::wait;

/// Time for the browser to do its part between two words to us.
const BROWSER_TIME_MAX: Duration = Duration::from_secs(300);

#[test]
fn the_player_page_plays_and_names_the_node_of_each_segment() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        demo_content: true,
        ..Plan::new()
    };
    plan.hosts = vec!["www.demo.test", "*"];
    let fleet = Fleet::start(plan);
    let url = format!("http://{}:8080/watch", fleet.plan.edge(0, 0));
    let playing = "(v => v && v.currentTime > 2 && v.videoWidth > 0 && document.body.innerText.includes('ams-1'))(document.querySelector('video'))";
    for text in open(&url, playing, &[]) {
        let text = text.to_lowercase();
        for word in ["quality", "buffer", "ams-1", "big buck bunny"] {
            assert!(text.contains(word), "the page shows {word:?}:\n{text}");
        }
    }
}

#[test]
fn the_front_page_and_every_link_on_it_open() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        demo_content: true,
        ..Plan::new()
    };
    plan.hosts = vec!["www.demo.test", "*"];
    let fleet = Fleet::start(plan);
    let base = format!("http://{}:8080", fleet.plan.edge(0, 0));
    let loaded = "document.images.length > 3 && [...document.images].every(i => i.loading === 'lazy' || (i.complete && i.naturalWidth > 0))";
    open(&format!("{base}/"), loaded, &[]);
    let page = curl(&[&format!("{base}/")]);
    let links: Vec<&str> = page
        .split("href=\"/")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(links.len() > 5, "the front page leads somewhere: {links:?}");
    for link in links {
        let code = curl(&[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("{base}/{}", link.replace("&amp;", "&")),
        ]);
        assert_eq!(code, "200", "/{link}");
    }
}

#[test]
fn the_console_shows_the_fleet_with_and_without_traffic() {
    let mut fleet = Fleet::start(Plan::new());
    let url = format!("http://{}/", fleet.plan.control());
    let ready = "document.body.innerText.includes('sin-2') && document.querySelectorAll('svg path').length > 0";
    for text in open(&url, ready, &["--axe"]) {
        assert!(
            !text.contains("NaN") && !text.contains("undefined") && !text.contains("null"),
            "useful at zero traffic:\n{text}"
        );
    }
    for (i, (_, subnet)) in CLIENTS.iter().enumerate() {
        dig_addresses(fleet.plan.dns(), "www.demo.test", subnet);
        for _ in 0..4 {
            fleet.head(fleet.plan.edge(i, 0), "/");
        }
    }
    fleet.operate(&["purge", "--url", "http://www.demo.test/"]);
    fleet.node("nyc-2").kill();
    // The killed node is called silent, the purge is listed.
    let told = "/silent|down/i.test(document.body.innerText) && document.body.innerText.includes('http://www.demo.test/')";
    for scheme in ["light", "dark"] {
        open(&url, told, &["--axe", "--scheme", scheme]);
    }
}

#[test]
fn the_console_updates_in_place_fits_every_screen_and_survives_its_control() {
    let mut fleet = Fleet::start(Plan::new());
    for (i, (_, subnet)) in CLIENTS.iter().enumerate() {
        dig_addresses(fleet.plan.dns(), "www.demo.test", subnet);
        fleet.head(fleet.plan.edge(i, 0), "/");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/lab/console.py");
    let mut command = Command::new(PYTHON);
    command.args([script, &format!("http://{}/", fleet.plan.control())]);
    let mut browser = Process::start("browser", &fleet.path(""), command);

    wait_for(&mut browser, "stop control");
    fleet.node("control").kill();
    wait_for(&mut browser, "start control");
    fleet.start_node("control", "control");

    let status = browser.wait(BROWSER_TIME_MAX);
    assert!(status.success(), "{}", browser.output());
}

/// Waits until the browser asks for something; fails at once when it has ended instead.
fn wait_for(browser: &mut Process, word: &str) {
    wait::until(
        &format!("the browser to ask: {word}"),
        BROWSER_TIME_MAX,
        || {
            if browser.output().contains(word) {
                return Ok(());
            }
            if let Some(status) = browser.ended() {
                panic!("the browser ended with {status}:\n{}", browser.output());
            }
            Err("it has not yet")
        },
    );
}
