//! A real player plays the demo's video through an edge: HLS and DASH, to the end.

use std::collections::BTreeSet;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::run;
use crate::lab::tools::curl;

/// One edge in front of the demo's content, reachable without a resolver.
fn fleet() -> (Fleet, String) {
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        demo_content: true,
        ..Plan::new()
    };
    plan.hosts = vec!["www.demo.test", "*"];
    let fleet = Fleet::start(plan);
    let base = format!("http://{}:8080", fleet.plan.edge(0, 0));
    (fleet, base)
}

/// The titles of the catalogue.
fn titles(base: &str) -> Vec<serde_json::Value> {
    let catalogue: serde_json::Value =
        serde_json::from_str(&curl(&[&format!("{base}/catalogue.json")]))
            .expect("the catalogue is JSON");
    let titles = catalogue
        .as_array()
        .or_else(|| catalogue["titles"].as_array())
        .expect("the catalogue lists titles")
        .clone();
    assert!(
        titles.len() >= 12,
        "a catalogue that a person wants to look at: {}",
        titles.len()
    );
    titles
}

/// Plays every variant to its end and gives the seconds of video decoded from each.
fn play(url: &str) -> Vec<f64> {
    let probe = run(
        "ffprobe",
        [
            "-v",
            "error",
            "-show_entries",
            "stream=index,codec_type",
            "-of",
            "csv=p=0",
            url,
        ],
    );
    let videos: Vec<&str> = probe
        .lines()
        .filter_map(|l| l.trim().split_once(','))
        .filter(|(_, kind)| kind.starts_with("video"))
        .map(|(i, _)| i)
        .collect();
    videos
        .iter()
        .map(|index| {
            // Decoding to nowhere: every segment is fetched, parsed and decoded; -xerror makes any
            // damage a failure.
            let map = format!("0:{index}");
            let report = run(
                "ffmpeg",
                [
                    "-v",
                    "error",
                    "-xerror",
                    "-i",
                    url,
                    "-map",
                    &map,
                    "-progress",
                    "-",
                    "-nostats",
                    "-f",
                    "null",
                    "-",
                ],
            );
            let micros = report
                .lines()
                .filter_map(|l| l.strip_prefix("out_time_us=")?.parse::<f64>().ok())
                .next_back();
            micros.unwrap_or_else(|| panic!("ffmpeg reported no time:\n{report}")) / 1e6
        })
        .collect()
}

#[test]
fn ffmpeg_plays_hls_and_dash_to_the_end() {
    let (fleet, base) = fleet();
    let titles = titles(&base);
    let films: BTreeSet<&str> = titles.iter().filter_map(|t| t["film"].as_str()).collect();
    assert!(films.len() >= 3, "films that differ: {films:?}");
    let title = &titles[0];
    let slug = title["slug"].as_str().expect("a title has a slug");
    let seconds = title["duration"]
        .as_f64()
        .or_else(|| title["seconds"].as_f64())
        .expect("a title has a duration in seconds");
    for manifest in ["master.m3u8", "manifest.mpd"] {
        let played = play(&format!("{base}/v/{slug}/{manifest}"));
        assert!(
            played.len() >= 3,
            "{manifest} offers {} qualities",
            played.len()
        );
        for length in played {
            assert!(length >= 40.0, "{manifest}: {length} s");
            assert!(
                (length - seconds).abs() < 0.5,
                "{manifest}: {length} s of {seconds} s were played"
            );
        }
    }
    // The second manifest shares the first one's segments, so all of its media were hits.
    let head = fleet
        .curl(
            fleet.plan.edge(0, 0),
            &["-D", "-", "-o", "/dev/null"],
            &format!("/v/{slug}/manifest.mpd"),
        )
        .to_lowercase();
    assert!(
        head.contains("content-type: application/dash+xml"),
        "{head}"
    );
    let metrics = curl(&[&format!("http://{}:9100/metrics", fleet.plan.edge(0, 0))]);
    let count = |status: &str| -> f64 {
        let label = format!("cache_status=\"{status}\"");
        metrics
            .lines()
            .filter(|l| l.starts_with("nearcast_edge_requests_total") && l.contains(&label))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    assert!(
        count("hit") > count("miss"),
        "hits {} misses {}",
        count("hit"),
        count("miss")
    );
}

#[test]
fn every_film_lasts_long_enough_in_both_manifests() {
    let (_fleet, base) = fleet();
    let mut seen = BTreeSet::new();
    for title in titles(&base) {
        let film = title["film"]
            .as_str()
            .expect("a title has a film")
            .to_owned();
        if !seen.insert(film) {
            continue;
        }
        for manifest in ["hls", "dash"] {
            let path = title[manifest].as_str().expect("a path");
            let entries = ["-v", "error", "-show_entries", "format=duration"];
            let url = format!("{base}{path}");
            let found = run(
                "ffprobe",
                entries.into_iter().chain(["-of", "csv=p=0", url.as_str()]),
            );
            let seconds: f64 = found
                .trim()
                .parse()
                .unwrap_or_else(|_| panic!("{path}: {found}"));
            assert!(seconds >= 40.0, "{path} lasts {seconds} s");
        }
    }
}
