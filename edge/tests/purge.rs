//! Purges of every scope, also across a restart; the disk tier under them.

mod lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lab::{Edge, Origin, Plan, Reply, pattern, wait_for};
use nearcast_fleet::change::{Change, Purge, PurgeScope};
use nearcast_fleet::config::{PurgePolicy, Secret};
use nearcast_fleet::follow::FollowState;
use nearcast_fleet::scope;
use nearcast_fleet::testing::NODE_KEY;

fn versions() -> (Origin, Arc<AtomicUsize>) {
    let version = Arc::new(AtomicUsize::new(1));
    let published = version.clone();
    let origin = Origin::start(move |seen| {
        let v = published.load(Ordering::SeqCst);
        let reply = Reply::ok(format!("version {v}"), "max-age=3600")
            .field("ETag", &format!("\"{v}\""))
            .field("Cache-Tag", "pages, news");
        match seen
            .fields
            .get("if-none-match")
            .is_some_and(|tag| *tag == format!("\"{v}\""))
        {
            true => Reply {
                status: 304,
                body: vec![],
                ..reply
            },
            false => reply,
        }
    });
    (origin, version)
}

#[test]
fn a_purge_of_any_scope_makes_what_it_covers_not_exist() {
    let (origin, version) = versions();
    let mut edge = Plan::new(&origin).start();
    let s = |text: &str| text.to_owned();
    let scopes = [
        PurgeScope::Url(s("http://www.test/news/today")),
        PurgeScope::Url(s("http://WWW.test:8080/news/today")),
        PurgeScope::Prefix(s("http://www.test/news/")),
        PurgeScope::Host(s("www.test")),
        PurgeScope::Site(s("www")),
        PurgeScope::Tag(s("news")),
        PurgeScope::All,
    ];
    for scope in scopes {
        let before = edge.get("/news/today").text();
        version.fetch_add(1, Ordering::SeqCst);
        assert_eq!(
            edge.get("/news/today").text(),
            before,
            "still stored before {scope:?}"
        );
        for other in [
            PurgeScope::Url(s("http://www.test/news/other")),
            PurgeScope::Tag(s("sport")),
            PurgeScope::Site(s("video")),
        ] {
            edge.purge(other, false);
        }
        assert!(
            edge.get("/news/today").is_hit(),
            "not covered by another scope"
        );
        edge.purge(scope.clone(), false);
        let after = edge.get("/news/today");
        assert_eq!(
            after.text(),
            format!("version {}", version.load(Ordering::SeqCst)),
            "{scope:?}"
        );
        assert!(after.cache().contains("fwd=uri-miss"), "{}", after.cache());
    }
}

fn fresh() -> Origin {
    Origin::start(|seen| Reply::ok(seen.target.clone(), "max-age=3600"))
}

/// A scope as control would put it into the journal.
fn named(scope: PurgeScope) -> PurgeScope {
    scope::canonical(&scope).expect("control would take it")
}

#[test]
fn a_purge_of_a_url_covers_every_spelling_that_is_stored() {
    let origin = fresh();
    let mut edge = Plan::new(&origin).start();
    let table: [(&[&str], &str); 6] = [
        (
            &["/%E5%81%A5/i", "/%e5%81%a5/i", "/%E5%81%a5/%69"],
            "http://www.test/健/i",
        ),
        (&["/caf%c3%a9"], "http://www.test/caf%C3%A9"),
        (&["/a%20b"], "http://www.test/a b"),
        (&["/%7Eu", "/~u"], "HTTP://WWW.Test:8443/~u#part"),
        (&["/q?a=1&b=100%"], "http://www.test/q?a=1&b=100%25"),
        (&["/"], "http://www.test"),
    ];
    for (paths, url) in table {
        for path in paths.iter().chain(&["/other", "/other?u=a%2Fb"]) {
            edge.get(path);
            assert!(edge.get(path).is_hit(), "{path} is stored");
        }
        edge.purge(named(PurgeScope::Url(url.into())), false);
        for path in paths {
            assert!(!edge.get(path).is_hit(), "{path} after the purge of {url}");
        }
        assert!(edge.get("/other").is_hit() && edge.get("/other?u=a%2Fb").is_hit());
    }
}

#[test]
fn a_purge_by_prefix_covers_what_begins_so_and_nothing_else() {
    let origin = fresh();
    let mut edge = Plan::new(&origin).start();
    let table: [(&str, &[&str], &[&str]); 5] = [
        (
            "http://www.test/img/",
            &["/img/a", "/img/b/c?d"],
            &["/imgx", "/img"],
        ),
        (
            "http://www.test/img/2024-",
            &["/img/2024-01.jpg", "/img/2024-02/x"],
            &["/img/2023-12.jpg"],
        ),
        (
            "http://www.test/search?q=",
            &["/search?q=a", "/search?q=b&p=2"],
            &["/search?page=1", "/search"],
        ),
        (
            "http://www.test/v/720*",
            &["/v/720/s1.ts", "/v/720p.m3u8"],
            &["/v/480/s1.ts"],
        ),
        (
            "http://www.test/健*",
            &["/%e5%81%a5/x", "/%E5%81%A5%E5%BA%B7"],
            &["/%E5%81"],
        ),
    ];
    for (prefix, covered, spared) in table {
        for path in covered.iter().chain(spared) {
            edge.get(path);
            assert!(edge.get(path).is_hit(), "{path} is stored");
        }
        edge.purge(named(PurgeScope::Prefix(prefix.into())), false);
        covered
            .iter()
            .for_each(|path| assert!(!edge.get(path).is_hit(), "{path} begins with {prefix}"));
        spared.iter().for_each(|path| {
            assert!(
                edge.get(path).is_hit(),
                "{path} does not begin with {prefix}"
            )
        });
    }
}

#[test]
fn several_scopes_in_one_purge_hold_together() {
    let origin = fresh();
    let mut edge = Plan::new(&origin).start();
    let paths = ["/a", "/b/1", "/c", "/d"];
    paths.iter().for_each(|path| drop(edge.get(path)));
    let s = |text: &str| text.to_owned();
    let scopes = [
        PurgeScope::Url(s("http://www.test/a")),
        PurgeScope::Prefix(s("http://www.test/b/")),
        PurgeScope::Tag(s("none")),
    ];
    edge.purge(scope::any_of(&scopes).expect("good"), false);
    assert_eq!(
        paths.map(|path| edge.get(path).is_hit()),
        [false, false, true, true]
    );
    // A tag of one site is not another's.
    edge.purge(
        named(PurgeScope::SiteTag {
            site: s("video"),
            tag: s("x"),
        }),
        false,
    );
    assert!(edge.get("/d").is_hit());
}

#[test]
fn a_storm_of_purges_touches_nothing_that_it_does_not_name() {
    const STORM: usize = 66_000;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = fresh();
    let kept: Vec<String> = (0..20).map(|n| format!("/keep/{n}")).collect();
    let edge = on_disk(&origin, &directory).start();
    kept.iter().for_each(|path| drop(edge.get(path)));
    edge.get("/article/7");
    edge.stop().expect("a good end");
    // What an earlier run stored, and what is stored between purges.
    let mut edge = Plan {
        caught_up: false,
        ..on_disk(&origin, &directory)
    }
    .start();
    let purge = |n: usize| {
        let scope = PurgeScope::Url(format!("http://www.test/article/{n}"));
        Change::Purge(Purge {
            scope,
            soft: n.is_multiple_of(2),
        })
    };
    // What is only on disk when purges are forgotten counts as covered by them.
    kept.iter().for_each(|path| drop(edge.get(path)));
    edge.entries_at_once((0..10).map(purge));
    edge.get("/early");
    edge.entries_at_once((10..STORM).map(purge));
    edge.state.send_modify(|s| {
        *s = FollowState {
            caught_up: true,
            ..*s
        }
    });
    wait_for("the node to know that it has caught up", || {
        edge.metric("nearcast_edge_caught_up") == 1.0
    });
    let lost = kept.iter().filter(|path| !edge.get(path).is_hit()).count();
    assert_eq!(
        (lost, edge.get("/early").is_hit()),
        (0, true),
        "no purge names them"
    );
    assert!(
        !edge.get("/article/7").is_hit(),
        "its purge is among those that are forgotten"
    );
}

#[test]
fn a_response_is_found_by_each_of_its_tags_or_not_stored() {
    let list = |count: usize, separator: &str| {
        (0..count)
            .map(|n| format!("p_{n}"))
            .collect::<Vec<_>>()
            .join(separator)
    };
    let long = "x".repeat(scope::TAG_BYTES_MAX);
    let tagged = [
        ("/comma", "Cache-Tag", list(400, ",")),
        ("/space", "Surrogate-Key", list(400, " ")),
        ("/long", "Cache-Tag", long.clone()),
        ("/utf8", "Cache-Tag", "produit-été".to_owned()),
        ("/group", "Cache-Groups", "\"a, b\"".to_owned()),
        ("/longer", "Cache-Tag", format!("{long}x")),
        ("/many", "Surrogate-Key", list(5000, " ")),
        ("/tab", "Cache-Tag", "a\tb".to_owned()),
    ];
    let fields = tagged.clone();
    let origin = Origin::start(move |seen| {
        let (_, name, value) = fields
            .iter()
            .find(|(path, ..)| *path == seen.target)
            .expect("a path of the table");
        Reply::ok("page", "max-age=600").field(name, value)
    });
    let mut edge = Plan::new(&origin).start();
    for (path, tag) in [
        ("/comma", "p_256"),
        ("/comma", "p_399"),
        ("/space", "p_399"),
        ("/long", &long),
        ("/utf8", "produit-été"),
        ("/group", "a, b"),
    ] {
        edge.get(path);
        assert!(edge.get(path).is_hit(), "{path} is stored");
        edge.purge(named(PurgeScope::Tag(tag.into())), false);
        assert!(!edge.get(path).is_hit(), "{path} by {tag}");
    }
    for path in ["/longer", "/many", "/tab"] {
        for _ in 0..2 {
            let answer = edge.get(path);
            assert!(
                !answer.is_hit() && answer.text() == "page",
                "{path}: {}",
                answer.cache()
            );
            assert!(
                answer.cache().contains("detail=tags"),
                "{path}: {}",
                answer.cache()
            );
        }
    }
}

/// A stand for control that says yes to every purge.
fn control() -> Origin {
    Origin::start(|seen| match seen.target.as_str() {
        "/v1/site-purges" => Reply::ok(
            r#"{"revision":12,"complete":true,"responses":3,"missing":[],"silent":[],"more":1}"#,
            "",
        ),
        _ => Reply::status(404),
    })
}

fn purges_at(control: &Origin) -> Vec<serde_json::Value> {
    let seen = control
        .seen()
        .into_iter()
        .filter(|seen| seen.target == "/v1/site-purges");
    seen.map(|seen| serde_json::from_slice(&seen.body).expect("JSON"))
        .collect()
}

#[test]
fn purge_requests_go_to_control_and_never_to_the_origin() {
    let (origin, control) = (fresh(), control());
    let purge = PurgePolicy {
        from: vec![],
        token: Some(Secret("a token of this site".into())),
    };
    let edge = Plan {
        purge,
        control: Some(control.address),
        ..Plan::new(&origin)
    }
    .start();
    let bearer = ("Authorization", "Bearer a token of this site");
    edge.get("/caf%c3%a9?x");
    let answer = edge.ask("PURGE", "/caf%c3%a9?x", &[bearer]);
    assert_eq!(
        (answer.status, answer.field("content-type")),
        (200, "application/json")
    );
    assert_eq!(
        answer.text().trim(),
        r#"{"complete":true,"missing":[],"responses":3,"revision":12}"#
    );
    assert!(
        edge.get("/caf%c3%a9?x").is_hit(),
        "no node purges alone: it follows the journal"
    );
    let key = control
        .seen()
        .iter()
        .find(|seen| seen.target == "/v1/site-purges")
        .map(|seen| seen.fields["authorization"].clone());
    assert_eq!(key.as_deref(), Some(&*format!("Bearer {NODE_KEY}")));
    // By tags, softly, and with a body, which another part of the server reads.
    edge.ask(
        "PURGE",
        "/",
        &[bearer, ("Surrogate-Key", "a b"), ("Nearcast-Purge", "soft")],
    );
    let with_body = edge.raw(
        b"PURGE /b HTTP/1.1\r\nHost: WWW.test:8080\r\nAuthorization: Bearer a token of this site\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
    );
    assert_eq!(with_body.status, 200);
    let seen = purges_at(&control);
    let scopes = |scopes: serde_json::Value, soft: bool| serde_json::json!({"node": "ams-1", "site": "www", "scopes": scopes, "soft": soft, "wait_ms": 1000});
    assert_eq!(
        seen,
        [
            scopes(
                serde_json::json!([{"by": "url", "value": "*://www.test/caf%C3%A9?x"}]),
                false
            ),
            scopes(
                serde_json::json!([{"by": "tag", "value": "a"}, {"by": "tag", "value": "b"}]),
                true
            ),
            scopes(
                serde_json::json!([{"by": "url", "value": "*://www.test/b"}]),
                false
            ),
        ]
    );
    for (fields, status, words) in [
        (vec![], 403, "purge_from"),
        (
            vec![("Authorization", "Bearer another token of 20")],
            403,
            "purge_from",
        ),
        (vec![bearer, ("Cache-Tag", "")], 400, "names none"),
    ] {
        let answer = edge.ask("PURGE", "/caf%c3%a9?x", &fields);
        assert_eq!(answer.status, status, "{fields:?}");
        assert!(
            answer.text().contains(words)
                && answer.field("proxy-status").starts_with("ams-1; error="),
            "{}",
            answer.text()
        );
    }
    assert_eq!(
        edge.ask("PURGE", "/x", &[bearer, ("Host", "other.test")])
            .status,
        421,
        "no site of this network"
    );
    assert_eq!(
        purges_at(&control).len(),
        3,
        "what is refused is not passed on"
    );
    assert!(
        origin.seen().iter().all(|seen| seen.method == "GET"),
        "nothing of it goes to the origin"
    );
}

#[test]
fn nobody_purges_a_site_that_allows_nobody() {
    let (origin, control) = (fresh(), control());
    let edge = Plan {
        control: Some(control.address),
        ..Plan::new(&origin)
    }
    .start();
    edge.get("/a");
    let answer = edge.ask("PURGE", "/a", &[("Authorization", "Bearer x")]);
    assert_eq!(
        (answer.status, answer.field("allow").is_empty()),
        (405, false)
    );
    assert_eq!(answer.error(), "ams-1; error=http_request_denied");
    assert!(edge.get("/a").is_hit() && purges_at(&control).is_empty());
    assert!(origin.seen().iter().all(|seen| seen.method == "GET"));
}

#[test]
fn a_purge_that_control_does_not_take_is_none() {
    let origin = fresh();
    let purge = PurgePolicy {
        from: vec!["127.0.0.0/8".parse().expect("a prefix")],
        token: None,
    };
    let plan = || Plan {
        purge: purge.clone(),
        ..Plan::new(&origin)
    };
    let full = Origin::start(|_| Reply {
        status: 507,
        ..Reply::ok(
            r#"{"error":{"code":"storage","message":"the disk is full"}}"#,
            "",
        )
    });
    for (control, status, words) in [
        (None, 503, "no control role"),
        (Some(lab::free_address()), 503, "does not answer"),
        (Some(full.address), 507, "the disk is full"),
    ] {
        let edge = Plan { control, ..plan() }.start();
        edge.get("/a");
        let answer = edge.ask("PURGE", "/a", &[]);
        assert_eq!(answer.status, status, "{control:?}");
        assert!(answer.text().contains(words), "{}", answer.text());
        assert!(edge.get("/a").is_hit(), "never a purge of one node alone");
    }
}

#[test]
fn a_soft_purge_validates_instead_of_forgetting() {
    let (origin, version) = versions();
    let mut edge = Plan::new(&origin).start();
    edge.get("/soft");
    edge.purge(PurgeScope::Site("www".into()), true);
    let validated = edge.get("/soft");
    assert!(
        validated.cache().contains("fwd=stale; fwd-status=304"),
        "{}",
        validated.cache()
    );
    assert!(edge.get("/soft").is_hit(), "once is enough");
    version.fetch_add(1, Ordering::SeqCst);
    edge.purge(PurgeScope::Tag("pages".into()), true);
    assert_eq!(edge.get("/soft").text(), "version 2");
}

#[test]
fn a_fill_under_way_is_covered_by_a_purge_that_comes_meanwhile() {
    let version = Arc::new(AtomicUsize::new(1));
    let published = version.clone();
    let origin = Origin::start(move |_| {
        let v = published.load(Ordering::SeqCst);
        Reply::ok(vec![v as u8; 100_000], "max-age=3600").slow(10, 60)
    });
    let mut edge = Plan::new(&origin).start();
    let mut early = edge.connect();
    std::io::Write::write_all(&mut early, b"GET /slow HTTP/1.1\r\nHost: www.test\r\n\r\n")
        .expect("sent");
    wait_for("the fill to begin", || origin.count("/slow") == 1);
    version.store(2, Ordering::SeqCst);
    edge.purge(PurgeScope::All, false);
    assert_eq!(edge.get("/slow").body[0], 2);
    assert_eq!(edge.get("/slow").body[0], 2);
    assert_eq!(origin.count("/slow"), 2);
}

fn on_disk(origin: &Origin, directory: &tempfile::TempDir) -> Plan {
    Plan {
        disk: 64 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(origin)
    }
}

#[test]
fn what_is_on_disk_survives_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/big" => Reply::ok(pattern(3_000_000), "max-age=600"),
        "/part" => Reply::ok(pattern(3_000_000), "max-age=600")
            .field("ETag", "\"p\"")
            .ranged(seen),
        _ => Reply::ok("small", "max-age=600").field("Vary", "Accept-Language"),
    });
    let edge = on_disk(&origin, &directory).start();
    edge.get("/big");
    edge.ask("GET", "/small", &[("Accept-Language", "en")]);
    edge.ask("GET", "/part", &[("Range", "bytes=1000000-1000009")]);
    edge.stop().expect("a good end");
    let asked = origin.seen().len();
    let edge = on_disk(&origin, &directory).start();
    let big = edge.get("/big");
    assert!(
        big.is_hit() && big.body == pattern(3_000_000),
        "{}",
        big.cache()
    );
    assert!(
        edge.ask("GET", "/small", &[("Accept-Language", "en")])
            .is_hit()
    );
    let part = edge.ask("GET", "/part", &[("Range", "bytes=1000000-1000009")]);
    assert!(
        part.is_hit() && part.body == pattern(3_000_000)[1_000_000..1_000_010],
        "{}",
        part.cache()
    );
    assert_eq!(origin.seen().len(), asked);
}

#[test]
fn a_purge_also_covers_what_a_restart_brings_back() {
    for stored_again in [false, true] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (origin, version) = versions();
        let mut edge = on_disk(&origin, &directory).start();
        edge.get("/page");
        edge.purge(PurgeScope::Site("www".into()), false);
        if stored_again {
            edge.get("/page");
        }
        edge.stop().expect("a good end");
        version.fetch_add(1, Ordering::SeqCst);
        // The journal's copy is handed out again from its begin.
        let mut edge = on_disk(&origin, &directory).start();
        edge.purge(PurgeScope::Site("www".into()), false);
        let expected = if stored_again {
            "version 1"
        } else {
            "version 2"
        };
        assert_eq!(
            edge.get("/page").text(),
            expected,
            "stored after the purge: {stored_again}"
        );
    }
}

#[test]
fn until_every_missed_purge_is_known_nothing_of_an_earlier_run_is_used_unvalidated() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (origin, version) = versions();
    let edge = on_disk(&origin, &directory).start();
    for path in ["/one", "/two", "/three"] {
        edge.get(path);
    }
    edge.stop().expect("a good end");
    let mut edge = Plan {
        caught_up: false,
        ..on_disk(&origin, &directory)
    }
    .start();
    let same = edge.get("/one");
    assert!(
        same.cache().contains("fwd=stale; fwd-status=304"),
        "{}",
        same.cache()
    );
    assert!(edge.get("/one").is_hit(), "it is of this run now");
    version.fetch_add(1, Ordering::SeqCst);
    assert_eq!(edge.get("/two").text(), "version 2");
    edge.purge(PurgeScope::Url("http://www.test/other".into()), false);
    edge.state.send_modify(|s| {
        *s = FollowState {
            caught_up: true,
            ..*s
        }
    });
    wait_for("the node to know that it has caught up", || {
        edge.metric("nearcast_edge_caught_up") == 1.0
    });
    let three = edge.get("/three");
    assert!(
        three.is_hit() && three.text() == "version 1",
        "no purge covers it: {}",
        three.cache()
    );
}

/// What the edge reported of its newest purge: responses, and whether there may be more.
fn counted(control: &Origin, revision: u64) -> (u64, bool) {
    let mut found = None;
    wait_for("the report of a purge", || {
        let reports = control.seen();
        let purges = reports
            .iter()
            .filter(|seen| seen.target == "/v1/reports/edge")
            .filter_map(|seen| serde_json::from_slice::<serde_json::Value>(&seen.body).ok())
            .flat_map(|report| report["purges"].as_array().cloned().unwrap_or_default());
        found = purges
            .into_iter()
            .find(|purge| purge["revision"] == revision);
        found.is_some()
    });
    let purge = found.expect("waited for");
    let responses = purge["responses"].as_u64().expect("a number");
    (responses, purge["at_least"] == true)
}

#[test]
fn what_lies_on_disk_only_is_purged_and_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (origin, version) = versions();
    let control = Origin::start(|_| Reply::ok("{}", ""));
    let plan = || Plan {
        control: Some(control.address),
        ..on_disk(&origin, &directory)
    };
    let edge = plan().start();
    for number in 0..30 {
        edge.get(&format!("/{number}"));
    }
    edge.get("/%7euser");
    edge.stop().expect("a good end");

    // From here on the responses are on disk, and one of them in memory too.
    let mut edge = plan().start();
    wait_for("a response from disk", || edge.get("/0").is_hit());
    version.store(2, Ordering::SeqCst);
    let url = |text: &str| PurgeScope::Url(text.into());
    let site = || PurgeScope::Site("www".into());
    // What is purged, whether softly, the count.
    let table = [
        (url("http://www.test/1"), false, (1, false)),
        (url("http://www.test/~user"), false, (1, false)),
        (url("http://www.test/never"), false, (0, false)),
        (url("http://www.test/0"), false, (1, false)),
        (site(), true, (28, false)),
        (site(), false, (28, false)),
        (site(), false, (0, false)),
    ];
    for (revision, (scope, soft, expected)) in (1..).zip(table) {
        edge.purge(scope.clone(), soft);
        assert_eq!(counted(&control, revision), expected, "{scope:?} {soft}");
    }
    for path in ["/0", "/1", "/2", "/29", "/%7euser"] {
        assert_eq!(edge.get(path).text(), "version 2", "{path}");
    }

    edge.purge(PurgeScope::Tag("news".into()), false);
    assert_eq!(counted(&control, 8), (5, false), "none was on disk only");
    edge.get("/2");
    edge.get("/9");
    edge.stop().expect("a good end");

    // What a tag covers on disk is not read, and later purges cannot tell it from others.
    let control = Origin::start(|_| Reply::ok("{}", ""));
    let mut edge = Plan {
        control: Some(control.address),
        ..on_disk(&origin, &directory)
    }
    .start();
    wait_for("a response from disk", || edge.get("/9").is_hit());
    version.store(3, Ordering::SeqCst);
    // The journal goes on where it was.
    (0..8).for_each(|_| edge.purge(url("http://www.test/never"), false));
    edge.purge(PurgeScope::Tag("news".into()), false);
    assert_eq!(counted(&control, 9), (1, true));
    edge.get("/new");
    edge.purge(site(), false);
    assert_eq!(counted(&control, 10), (1, true), "what was stored since");
    edge.purge(PurgeScope::All, false);
    assert_eq!(
        counted(&control, 11),
        (0, false),
        "nothing is on disk any more"
    );
    assert_eq!(edge.get("/2").text(), "version 3");
}

#[test]
fn memory_that_is_too_small_is_helped_by_the_disk() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|_| Reply::ok(pattern(2 << 20), "max-age=600"));
    let edge = Plan {
        memory: 2 << 20,
        ..on_disk(&origin, &directory)
    }
    .start();
    let paths: Vec<String> = (0..10).map(|n| format!("/{n}")).collect();
    paths.iter().for_each(|p| assert!(edge.get(p).whole));
    for path in &paths {
        let answer = edge.get(path);
        assert!(
            answer.is_hit() && answer.body == pattern(2 << 20),
            "{path}: {}",
            answer.cache()
        );
    }
    assert_eq!(origin.seen().len(), 10);
    assert!(edge.metric("nearcast_edge_disk_bytes") > (20 << 20) as f64);
}

#[test]
fn more_than_the_disk_holds_evicts_and_breaks_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|seen| {
        Reply::ok(pattern(500_000), "max-age=600")
            .field("ETag", "\"v\"")
            .ranged(seen)
    });
    let plan = || Plan {
        disk: 8 << 20,
        memory: 2 << 20,
        ..on_disk(&origin, &directory)
    };
    let edge = plan().start();
    for round in 0..2 {
        for n in 0..40 {
            let answer = edge.get(&format!("/{n}"));
            assert!(
                answer.whole && answer.body == pattern(500_000),
                "round {round}, {n}: {}",
                answer.cache()
            );
        }
    }
    wait_for("evictions", || {
        edge.metric("nearcast_edge_disk_evictions_total") > 0.0
    });
    assert!(edge.metric("nearcast_edge_disk_bytes") <= (8 << 20) as f64);
    edge.stop().expect("a good end");
    let edge = plan().start();
    for n in 0..40 {
        let answer = edge.get(&format!("/{n}"));
        assert!(
            answer.whole && answer.body == pattern(500_000),
            "after a restart, {n}: {}",
            answer.cache()
        );
    }
}

#[test]
fn a_disk_that_fails_never_shows_to_a_client() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|_| Reply::ok(pattern(500_000), "max-age=600"));
    let edge: Edge = on_disk(&origin, &directory).start();
    // The pool's directory cannot be made any more: every write fails.
    let store = directory.path().join("ams-1").join("store");
    std::fs::remove_dir_all(&store).expect("it was made");
    std::fs::write(&store, b"in the way").expect("writable");
    for _ in 0..2 {
        for n in 0..5 {
            let answer = edge.get(&format!("/{n}"));
            assert!(answer.whole && answer.body == pattern(500_000));
        }
    }
    assert_eq!(origin.seen().len(), 5, "memory serves on");
    wait_for("the failure to be counted", || {
        edge.metric("nearcast_edge_disk_errors_total") >= 1.0
    });
    assert_eq!(edge.metric("nearcast_edge_disk_enabled"), 0.0);
}

#[test]
fn a_state_directory_that_cannot_be_written_to_is_a_clear_failure() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("ams-1"), b"in the way").expect("writable");
    let (origin, _version) = versions();
    let failure = on_disk(&origin, &directory)
        .try_start()
        .err()
        .expect("it cannot start");
    assert_eq!(failure.kind.exit_code(), 73, "{failure}");
    assert!(failure.message.contains("state_dir"), "{failure}");
}
