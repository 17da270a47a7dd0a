//! Stored, reused, validated, varied: what a shared cache does, over real sockets.

mod lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lab::{Origin, Plan, Reply, Seen, pattern, wait_for};

#[test]
fn a_miss_then_a_hit_then_a_head_from_the_same_bytes() {
    let origin = Origin::start(|_| Reply::ok("hello", "max-age=60").field("ETag", "\"1\""));
    let edge = Plan::new(&origin).start();
    let first = edge.get("/page");
    assert_eq!((first.status, first.text().as_str()), (200, "hello"));
    assert!(
        first
            .cache()
            .starts_with("ams-1; fwd=uri-miss; fwd-status=200")
            && first.cache().contains("; stored"),
        "{first:?}"
    );
    assert_eq!(
        first.field("age"),
        "",
        "what comes from the origin has no age of ours"
    );
    let second = edge.get("/page");
    assert!(
        second.cache().starts_with("ams-1; hit; ttl=") && !second.field("age").is_empty(),
        "{second:?}"
    );
    assert_eq!(
        (
            second.field("content-length"),
            second.field("via"),
            second.text().as_str()
        ),
        ("5", "1.1 ams-1", "hello")
    );
    let head = edge.ask("HEAD", "/page", &[]);
    assert!(
        head.is_hit() && head.field("content-length") == "5" && head.body.is_empty(),
        "{head:?}"
    );
    assert_eq!(origin.count("/page"), 1);
    let metrics = edge.metrics();
    assert!(
        metrics.contains(
            "nearcast_edge_requests_total{cache_status=\"hit\",site=\"www\",status_class=\"2xx\"} 2"
        ),
        "{metrics}"
    );
    edge.stop().expect("a good end");
}

#[test]
fn large_bodies_come_whole_first_and_second_hand() {
    let body = pattern(3_000_000);
    for chunked in [false, true] {
        let sent = body.clone();
        let origin = Origin::start(move |_| Reply {
            chunked,
            ..Reply::ok(sent.clone(), "max-age=60")
        });
        let edge = Plan::new(&origin).start();
        for _ in 0..2 {
            let answer = edge.get("/big");
            assert!(
                answer.whole && answer.body == body,
                "chunked {chunked}: {} bytes",
                answer.body.len()
            );
        }
        assert_eq!(origin.count("/big"), 1);
    }
}

#[test]
fn what_may_be_stored_is_and_what_may_not_is_not() {
    // Path, request field, response fields, whether the second request is a hit.
    type Row = (
        &'static str,
        (&'static str, &'static str),
        &'static [(&'static str, &'static str)],
        bool,
    );
    let table: [Row; 14] = [
        (
            "/plain",
            ("Accept", "y"),
            &[("Cache-Control", "max-age=60")],
            true,
        ),
        ("/bare", ("Accept", "y"), &[], false),
        (
            "/no-store",
            ("Accept", "y"),
            &[("Cache-Control", "max-age=60, no-store")],
            false,
        ),
        (
            "/private",
            ("Accept", "y"),
            &[("Cache-Control", "max-age=60, private")],
            false,
        ),
        (
            "/private-field",
            ("Accept", "y"),
            &[("Cache-Control", "max-age=60, private=\"set-cookie\"")],
            false,
        ),
        (
            "/auth",
            ("Authorization", "Basic eDp5"),
            &[("Cache-Control", "max-age=60")],
            false,
        ),
        (
            "/auth-public",
            ("Authorization", "Basic eDp5"),
            &[("Cache-Control", "max-age=60, public")],
            true,
        ),
        (
            "/auth-shared",
            ("Authorization", "Basic eDp5"),
            &[("Cache-Control", "s-maxage=60")],
            true,
        ),
        (
            "/cookie",
            ("Accept", "y"),
            &[("Cache-Control", "max-age=60"), ("Set-Cookie", "a=b")],
            false,
        ),
        (
            "/vary-all",
            ("Accept", "y"),
            &[("Cache-Control", "max-age=60"), ("Vary", "*")],
            false,
        ),
        (
            "/targeted",
            ("Accept", "y"),
            &[
                ("Cache-Control", "no-store"),
                ("CDN-Cache-Control", "max-age=60"),
            ],
            true,
        ),
        (
            "/targeted-no",
            ("Accept", "y"),
            &[
                ("Cache-Control", "max-age=60"),
                ("CDN-Cache-Control", "no-store"),
            ],
            false,
        ),
        (
            "/expires",
            ("Accept", "y"),
            &[("Expires", "Fri, 01 Jan 2100 00:00:00 GMT")],
            true,
        ),
        ("/expires-0", ("Accept", "y"), &[("Expires", "0")], false),
    ];
    let origin = Origin::start(move |seen| {
        let (_, _, fields, _) = table
            .iter()
            .find(|row| row.0 == seen.target)
            .expect("a row");
        fields
            .iter()
            .fold(Reply::ok("x", ""), |reply, (n, v)| reply.field(n, v))
    });
    let edge = Plan::new(&origin).start();
    for (path, field, _, hit) in table {
        assert!(
            !edge.ask("GET", path, &[field]).is_hit(),
            "{path}: nothing can be stored yet"
        );
        let second = edge.ask("GET", path, &[field]);
        assert_eq!(second.is_hit(), hit, "{path}: {}", second.cache());
    }
}

#[test]
fn each_variant_is_stored_for_the_requests_it_answers() {
    let origin = Origin::start(|seen: &Seen| {
        let language = seen
            .fields
            .get("accept-language")
            .cloned()
            .unwrap_or_default();
        Reply::ok(language, "max-age=60").field("Vary", "Accept-Language, X-Other")
    });
    let edge = Plan::new(&origin).start();
    let ask = |language: &str| edge.ask("GET", "/", &[("Accept-Language", language)]);
    for language in ["en", "de", "fr"] {
        assert_eq!(ask(language).text(), language);
    }
    for language in ["en", "de", "fr"] {
        let again = ask(language);
        assert!(again.is_hit() && again.text() == language, "{again:?}");
    }
    assert!(
        ask("it").cache().contains("fwd=vary-miss"),
        "a key with variants, none of which fits"
    );
    assert!(
        edge.get("/").cache().contains("fwd=vary-miss"),
        "no field is not the same as any field"
    );
    assert_eq!(origin.count("/"), 5);
}

#[test]
fn a_stale_response_is_validated_with_stored_validators_and_freshened() {
    let origin = Origin::start(|seen| {
        let reply = Reply::ok("same", "max-age=0")
            .field("ETag", "\"one\"")
            .field("X-Count", "new");
        match seen.fields.get("if-none-match").map(String::as_str) {
            Some("\"one\"") => Reply {
                status: 304,
                body: vec![],
                ..reply
            },
            Some(other) => panic!("the client's validator went to the origin: {other}"),
            None => reply,
        }
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(edge.get("/page").text(), "same");
    let second = edge.ask("GET", "/page", &[("If-None-Match", "\"other\"")]);
    assert_eq!((second.status, second.text().as_str()), (200, "same"));
    assert!(
        second.cache().contains("fwd=stale; fwd-status=304"),
        "{}",
        second.cache()
    );
    let third = edge.ask("GET", "/page", &[("If-None-Match", "\"x\", W/\"one\"")]);
    assert_eq!(
        (
            third.status,
            third.field("etag"),
            third.field("content-length")
        ),
        (304, "\"one\"", "")
    );
    assert!(edge.metrics().contains("cache_status=\"revalidated\""));
}

#[test]
fn a_304_that_fits_nothing_is_never_an_answer() {
    // Of another representation than the one asked about, and to a request without a condition.
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    let origin = Origin::start(move |seen| {
        match (
            seen.target.as_str(),
            counting.fetch_add(1, Ordering::SeqCst),
        ) {
            ("/other", _) if seen.fields.contains_key("if-none-match") => Reply {
                status: 304,
                ..Reply::ok("", "max-age=60")
            }
            .field("ETag", "\"other\""),
            ("/other", n) => {
                Reply::ok(format!("whole {n}"), "max-age=0").field("ETag", &format!("\"{n}\""))
            }
            _ => Reply {
                status: 304,
                ..Reply::ok("", "max-age=60")
            }
            .field("ETag", "\"never\""),
        }
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(edge.get("/other").text(), "whole 0");
    let second = edge.get("/other");
    assert_eq!(
        (second.status, second.text().as_str()),
        (200, "whole 2"),
        "asked for whole after the 304"
    );
    for fields in [&[][..], &[("If-None-Match", "\"never\"")]] {
        let answer = edge.ask("GET", "/bare", fields);
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_eq!(answer.error(), "ams-1; error=http_protocol_error");
    }
}

#[test]
fn another_protocol_is_never_switched_to() {
    let origin = Origin::start(|_| {
        Reply::status(101)
            .field("Upgrade", "raw")
            .field("Connection", "upgrade")
    });
    let edge = Plan::new(&origin).start();
    for method in ["GET", "POST"] {
        let fields = [
            ("Upgrade", "raw"),
            ("Connection", "upgrade"),
            ("Content-Length", "0"),
        ];
        let answer = edge.ask(method, "/", &fields);
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (502, "ams-1; error=http_protocol_error"),
            "{method}"
        );
    }
    assert!(
        origin
            .seen()
            .iter()
            .all(|s| !s.fields.contains_key("upgrade"))
    );
}

#[test]
fn a_transfer_coding_that_is_not_understood_is_an_error_and_never_stored() {
    let origin = Origin::start(|seen| {
        let coding = seen.target.trim_start_matches('/').replace("%20", " ");
        match coding.as_str() {
            "" => Reply::ok("abc", "max-age=60").chunked(),
            // The lab's `chunked` is the last of them.
            two if two.ends_with("then") => Reply::ok("abc", "max-age=60")
                .chunked()
                .field("Transfer-Encoding", two.trim_end_matches("then")),
            _ => Reply::ok("abc", "max-age=60").field("Transfer-Encoding", &coding),
        }
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(edge.get("/").text(), "abc");
    for coding in [
        "gzip",
        "GZIP",
        "identity",
        "xchunked",
        "chunked,",
        "gzip,%20chunked",
        "chunked,%20chunked",
        "gzipthen",
        "chunkedthen",
        "br,x;q=1then",
    ] {
        for ask in 1..=2 {
            let answer = edge.get(&format!("/{coding}"));
            assert_eq!(
                (answer.status, answer.error().as_str()),
                (502, "ams-1; error=http_response_transfer_coding"),
                "{coding}"
            );
            assert_eq!(
                origin.count(&format!("/{coding}")),
                ask,
                "{coding}: nothing is stored"
            );
        }
        assert_eq!(
            edge.ask("POST", &format!("/{coding}"), &[("Content-Length", "0")])
                .status,
            502,
            "{coding}"
        );
        assert_eq!(
            edge.ask("HEAD", &format!("/{coding}"), &[]).status,
            200,
            "{coding}: there is no body"
        );
        assert_eq!(edge.get("/").text(), "abc", "behind {coding}");
    }
}

#[test]
fn interim_responses_are_neither_stored_nor_taken_for_the_answer() {
    const INTERIM: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nCache-Control: max-age=9999\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
    let origin = Origin::start(|_| Reply {
        interim: INTERIM,
        ..Reply::ok("final", "max-age=60")
    });
    let edge = Plan::new(&origin).start();
    for is_hit in [false, true] {
        let answer = edge.get("/");
        assert_eq!(
            (answer.status, answer.text().as_str(), answer.is_hit()),
            (200, "final", is_hit),
            "{answer:?}"
        );
        assert_eq!(
            (answer.field("cache-control"), answer.field("link")),
            ("max-age=60", ""),
            "{answer:?}"
        );
        // The one for whom the origin was asked gets them as well, the 100 apart.
        let interim: Vec<u16> = answer
            .interim
            .iter()
            .map(|interim| interim.status)
            .collect();
        assert_eq!(
            interim,
            if is_hit { vec![] } else { vec![103, 102] },
            "{answer:?}"
        );
    }
}

#[test]
fn redirects_are_for_clients_to_follow() {
    let origin = Origin::start(|_| {
        Reply {
            status: 302,
            ..Reply::ok("", "max-age=60")
        }
        .field("Location", "http://169.254.169.254/latest")
    });
    let edge = Plan::new(&origin).start();
    for is_hit in [false, true] {
        let answer = edge.get("/");
        assert_eq!(
            (answer.status, answer.field("location"), answer.is_hit()),
            (302, "http://169.254.169.254/latest", is_hit)
        );
    }
    assert_eq!(origin.seen().len(), 1);
}

#[test]
fn ranges_and_conditions_of_what_is_not_shared_are_the_origins_to_answer() {
    let origin = Origin::start(|seen| {
        let reply = Reply::ok("0123456789", "private").field("ETag", "\"e\"");
        match seen.fields.get("if-none-match").map(String::as_str) {
            Some("\"e\"") => Reply {
                status: 304,
                body: vec![],
                ..reply
            },
            _ => reply.ranged(seen),
        }
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(edge.get("/me").text(), "0123456789");
    let part = edge.ask("GET", "/me", &[("Range", "bytes=5-7")]);
    assert_eq!(
        (
            part.status,
            part.text().as_str(),
            part.field("content-range")
        ),
        (206, "567", "bytes 5-7/10")
    );
    assert_eq!(
        origin.seen()[1].fields["range"],
        "bytes=5-7",
        "not a byte more is asked for"
    );
    let same = edge.ask("GET", "/me", &[("If-None-Match", "\"e\"")]);
    assert_eq!((same.status, same.body.len()), (304, 0));
    assert!(
        same.cache()
            .starts_with("ams-1; fwd=uri-miss; fwd-status=304"),
        "{}",
        same.cache()
    );
    assert_eq!(edge.get("/me").text(), "0123456789");
}

#[test]
fn a_304_may_change_what_a_response_varies_on_and_forbid_its_use() {
    let origin = Origin::start(|seen| {
        let reply = Reply::ok(
            format!(
                "for {}",
                seen.fields.get("x-who").map_or("all", String::as_str)
            ),
            "max-age=0",
        )
        .field("ETag", "\"e\"");
        match (
            seen.target.as_str(),
            seen.fields.contains_key("if-none-match"),
        ) {
            (_, false) => reply,
            ("/vary", true) => Reply {
                status: 304,
                ..Reply::ok("", "max-age=60")
            }
            .field("ETag", "\"e\"")
            .field("Vary", "X-Who"),
            (_, true) => Reply {
                status: 304,
                ..Reply::ok("", "no-store")
            }
            .field("ETag", "\"e\""),
        }
    });
    let edge = Plan::new(&origin).start();
    for path in ["/vary", "/no-store"] {
        assert_eq!(edge.get(path).text(), "for all");
        assert_eq!(edge.get(path).text(), "for all", "{path} is confirmed");
    }
    assert!(edge.get("/vary").is_hit());
    let other = edge.ask("GET", "/vary", &[("X-Who", "me")]);
    assert!(
        other.text() == "for me" && other.cache().contains("fwd=vary-miss"),
        "{other:?}"
    );
    let gone = edge.get("/no-store");
    assert!(gone.cache().contains("fwd=uri-miss"), "{gone:?}");
}

#[test]
fn an_answer_invalidates_groups_of_its_own_origin() {
    let origin = Origin::start(|seen| {
        let reply = Reply::ok(seen.method.clone(), "max-age=600");
        match seen.method.as_str() {
            "POST" => reply.field("Cache-Group-Invalidation", "\"news\", \"none\""),
            _ if seen.target == "/sport" => reply.field("Cache-Groups", "\"sport\""),
            _ => reply.field("Cache-Groups", "\"front\", \"news\""),
        }
    });
    let edge = Plan {
        hosts: vec!["*".into()],
        ..Plan::new(&origin)
    }
    .start();
    let get = |host: &str, path: &str| edge.ask("GET", path, &[("Host", host)]);
    for (host, path) in [
        ("a.test", "/one"),
        ("a.test", "/two"),
        ("a.test", "/sport"),
        ("b.test", "/one"),
    ] {
        assert!(!get(host, path).is_hit() && get(host, path).is_hit());
    }
    edge.ask(
        "POST",
        "/publish",
        &[("Host", "a.test"), ("Content-Length", "0")],
    );
    wait_for("the group to go", || !get("a.test", "/one").is_hit());
    wait_for("others of it to go", || !get("a.test", "/two").is_hit());
    assert!(
        get("a.test", "/sport").is_hit() && get("b.test", "/one").is_hit(),
        "of another group, and of another origin"
    );
}

#[test]
fn a_changed_response_replaces_the_stale_one() {
    let version = Arc::new(AtomicUsize::new(0));
    let counting = version.clone();
    let origin = Origin::start(move |_| {
        let v = counting.fetch_add(1, Ordering::SeqCst);
        Reply::ok(
            format!("v{v}"),
            if v == 0 { "max-age=0" } else { "max-age=60" },
        )
        .field("ETag", &format!("\"{v}\""))
    });
    let edge = Plan::new(&origin).start();
    let bodies: Vec<String> = (0..3).map(|_| edge.get("/").text()).collect();
    assert_eq!(bodies, ["v0", "v1", "v1"]);
}

#[test]
fn one_validation_runs_behind_however_many_ask() {
    let origin = Origin::start(|seen| match seen.fields.contains_key("if-none-match") {
        true => {
            std::thread::park_timeout(Duration::from_millis(400));
            Reply {
                status: 304,
                ..Reply::ok("", "max-age=60")
            }
        }
        false => Reply::ok("kept", "max-age=0, stale-while-revalidate=600").field("ETag", "\"k\""),
    });
    let edge = Plan::new(&origin).start();
    edge.get("/page");
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(edge.get("/page").text(), "kept"));
        }
    });
    assert!(
        edge.metrics().contains("cache_status=\"stale\""),
        "they were answered at once"
    );
    wait_for("the validation to be folded in", || {
        edge.get("/page").cache().starts_with("ams-1; hit; ttl=5")
    });
    assert_eq!(origin.count("/page"), 2, "one fetch, one validation");
}

#[test]
fn a_hanging_origin_is_waited_for_once() {
    let origin = Origin::start(|_| Reply::ok("kept", "max-age=0, stale-if-error=600"));
    let address = origin.address;
    let edge = Plan::new(&origin).start();
    assert_eq!(edge.get("/x").text(), "kept");
    // In its place a listener whose queue is full: connecting takes for ever.
    drop(origin);
    let hanging = lab::hanging_listener(address);
    let first = edge.get("/x");
    assert_eq!(
        (first.status, first.text().as_str()),
        (200, "kept"),
        "{first:?}"
    );
    assert!(
        first.cache().contains("fwd=stale")
            && first.cache().contains("detail=\"connection_timeout\""),
        "{}",
        first.cache()
    );
    for _ in 0..3 {
        let next = edge.get("/x");
        assert_eq!(
            (next.status, next.text().as_str()),
            (200, "kept"),
            "{next:?}"
        );
        assert!(
            next.cache().contains("; hit; ttl=")
                && next.cache().contains("detail=\"origin-timed-out\""),
            "{}",
            next.cache()
        );
    }
    // It is asked all the same, and well again in time.
    drop(hanging);
    let well = Origin::start_at(address, |_| Reply::ok("new", "max-age=60"));
    wait_for("the new content", || edge.get("/x").text() == "new");
    assert!(edge.get("/x").cache().contains("; hit; ttl=") && well.count("/x") == 1);
}

#[test]
fn a_dead_origin_is_bridged_by_stale_content_where_that_is_allowed() {
    let failing = Arc::new(AtomicUsize::new(0));
    let fails = failing.clone();
    let origin =
        Origin::start(
            move |seen| match (fails.load(Ordering::SeqCst), seen.target.as_str()) {
                (0, "/kept" | "/kept-too") => Reply::ok("kept", "max-age=0, stale-if-error=600"),
                (0, "/must") => Reply::ok("must", "max-age=0, must-revalidate, stale-if-error=600")
                    .field("ETag", "\"m\""),
                (0, _) => Reply::ok("plain", "max-age=0, no-cache").field("ETag", "\"p\""),
                (status, _) => Reply {
                    status: status as u16,
                    ..Reply::ok("broken", "max-age=60")
                },
            },
        );
    let edge = Plan::new(&origin).start();
    for path in ["/kept", "/must", "/plain"] {
        edge.get(path);
    }
    for status in [500, 502, 503, 504] {
        failing.store(status, Ordering::SeqCst);
        let kept = edge.get("/kept");
        assert_eq!((kept.status, kept.text().as_str()), (200, "kept"));
        assert!(
            kept.cache().contains("fwd=stale")
                && kept.cache().contains(&format!("fwd-status={status}")),
            "{}",
            kept.cache()
        );
        assert_eq!(
            edge.get("/must").status,
            status as u16,
            "what must be validated is not served stale"
        );
    }
    failing.store(404, Ordering::SeqCst);
    assert_eq!(edge.get("/kept").status, 404, "a 404 is an answer");
    failing.store(0, Ordering::SeqCst);
    assert_eq!(edge.get("/kept-too").text(), "kept", "well again");
    drop(origin);
    let kept = edge.get("/kept-too");
    assert_eq!(
        (kept.status, kept.text().as_str()),
        (200, "kept"),
        "no connection, no answer: {kept:?}"
    );
    assert!(
        kept.cache().contains("fwd=stale") && kept.cache().contains("detail=\"connection_"),
        "{}",
        kept.cache()
    );
    for path in ["/must", "/plain"] {
        let answer = edge.get(path);
        assert!(matches!(answer.status, 502 | 504), "{path}: {answer:?}");
        assert!(
            answer.field("proxy-status").starts_with("ams-1; error="),
            "{answer:?}"
        );
    }
}

#[test]
fn unsafe_methods_pass_with_their_bodies_and_invalidate() {
    let origin = Origin::start(|seen| {
        let reply = Reply::ok(
            [seen.method.as_bytes(), b" ", &seen.body].concat(),
            "max-age=600",
        );
        match seen.target.as_str() {
            "/error" if seen.method == "POST" => Reply {
                status: 500,
                ..reply
            },
            "/elsewhere" => reply
                .field("Location", "/thing")
                .field("Content-Location", "http://other.test/other"),
            _ => reply,
        }
    });
    let edge = Plan::new(&origin).start();
    let post = |path: &str, body: &str| {
        edge.raw(
            format!(
                "POST {path} HTTP/1.1\r\nHost: www.test\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )
    };
    for path in ["/thing", "/error", "/thing"] {
        edge.get(path);
    }
    assert_eq!(origin.count("/thing"), 1);
    let posted = post("/thing", "data");
    assert!(
        posted.text() == "POST data" && posted.cache().contains("fwd=method"),
        "{posted:?}"
    );
    assert_eq!(edge.get("/thing").text(), "GET ");
    assert_eq!(
        origin.count("/thing"),
        3,
        "the POST dropped what was stored"
    );
    post("/elsewhere", "");
    edge.get("/thing");
    assert_eq!(
        origin.count("/thing"),
        4,
        "and so did another one's Location"
    );
    post("/error", "");
    assert!(
        edge.get("/error").is_hit(),
        "one that failed changed nothing"
    );
    let chunked = edge.raw(b"PUT /thing HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\n\r\n");
    assert_eq!(chunked.text(), "PUT wiki");
    let large = "x".repeat(1 << 20);
    assert_eq!(post("/large", &large).body.len(), large.len() + 5);
}

#[test]
fn an_edge_for_any_host_keeps_hosts_apart_and_ports_together() {
    let origin = Origin::start(|seen| Reply::ok(seen.fields["host"].clone(), "max-age=60"));
    let edge = Plan {
        hosts: vec!["*".into()],
        ..Plan::new(&origin)
    }
    .start();
    for host in ["one.example", "two.example"] {
        let ask = |host: &str| edge.ask("GET", "/page", &[("Host", host)]);
        assert_eq!(ask(host).text(), host);
        let again = ask(&format!("{}:8080", host.to_uppercase()));
        assert!(again.is_hit() && again.text() == host, "{again:?}");
    }
    assert_eq!(origin.count("/page"), 2);
}

#[test]
fn only_what_asks_for_it_gets_a_response_that_is_only_stored() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let mut plan = Plan::new(&origin);
    plan.cache.obey_client = true;
    let edge = plan.start();
    let only = || edge.ask("GET", "/x", &[("Cache-Control", "only-if-cached")]);
    assert_eq!(only().status, 504);
    edge.get("/x");
    assert!(only().is_hit());
    let reload = edge.ask("GET", "/x", &[("Cache-Control", "no-cache")]);
    assert!(!reload.is_hit(), "{reload:?}");
    assert_eq!(origin.count("/x"), 2);
}

#[test]
fn encoded_paths_are_stored_each_under_its_own_spelling() {
    let origin = Origin::start(|seen| Reply::ok(seen.target.clone(), "max-age=600"));
    let edge = Plan::new(&origin).start();
    let stored = [
        "/@scope%2fname",
        "/@scope%2Fname",
        "/@scope/name",
        "/api/projects/group%2Fproject/packages?page=1",
        "/wiki/Who%3F",
        "/wiki/Who",
        "/wiki/C%23",
        "/wiki/%5C",
        "/a;v=1/b.css",
        "/a%3bv=1/b.css",
        "/a/b.css",
        "/100%25done",
        "/x%252fy",
        "/x%2fy",
    ];
    for path in stored {
        let (first, second) = (edge.get(path), edge.get(path));
        assert!(
            !first.is_hit() && first.text() == path,
            "another spelling's, or not as it came: {path}: {first:?}"
        );
        assert!(
            second.is_hit() && second.text() == path,
            "{path}: {second:?}"
        );
        assert!(edge.ask("HEAD", path, &[]).is_hit(), "{path}");
        let range = edge.ask("GET", path, &[("Range", "bytes=1-2")]);
        assert!(
            range.is_hit() && range.text() == path[1..3],
            "{path}: {range:?}"
        );
        assert_eq!(origin.count(path), 1, "{path}");
    }
    for path in [
        "/static/..%2faccount",
        "/a/../b",
        "/a/..;/b",
        "/%2e%2e/b",
        "/a\\b",
        "/a%00.css",
        "/a%zz",
    ] {
        for _ in 0..2 {
            let answer = edge.get(path);
            assert!(
                answer.text() == path && answer.cache().contains("fwd=bypass"),
                "{path}: {answer:?}"
            );
        }
        assert_eq!(origin.count(path), 2, "{path}");
    }
    let posted =
        edge.raw(b"POST /@scope%2fname HTTP/1.1\r\nHost: www.test\r\nContent-Length: 0\r\n\r\n");
    assert!(
        posted.status == 200 && !edge.get("/@scope%2fname").is_hit(),
        "an unsafe request drops what is stored"
    );
    assert!(edge.get("/@scope%2Fname").is_hit(), "of its own spelling");
}

/// An origin that codes as clients accept, and varies on that.
fn coding_origin() -> Origin {
    Origin::start(|seen| {
        let accepted = seen
            .fields
            .get("accept-encoding")
            .map_or("absent", String::as_str)
            .to_owned();
        let reply = Reply::ok(accepted.clone(), "max-age=600").field("Vary", "Accept-Encoding");
        let coding = ["br", "gzip"]
            .into_iter()
            .find(|coding| accepted.split(", ").any(|member| member == *coding));
        coding.into_iter().fold(reply, |reply, coding| {
            reply.field("Content-Encoding", coding)
        })
    })
}

#[test]
fn accept_encoding_counts_as_far_as_codings_are_known() {
    let origin = coding_origin();
    let edge = Plan::new(&origin).start();
    let ask = |path: &str, said: &str| edge.ask("GET", path, &[("Accept-Encoding", said)]);
    for (n, (same, reduced)) in [
        (
            &[
                "gzip, deflate, br, zstd",
                "br;q=0.9,zstd,gzip, deflate;q=0.1",
                "zstd, junk, gzip, br, deflate",
            ][..],
            "gzip, deflate, br, zstd",
        ),
        (
            &[
                "gzip",
                "x-gzip;q=0.5, br;q=0",
                "gzip, junk-1",
                "gzip, compress;q=1.0",
            ],
            "gzip",
        ),
        (
            &[
                "identity",
                "junk-1",
                "junk-2;q=0.5",
                "gzip;q=0",
                "identity;q=1, *;q=0",
            ],
            "identity",
        ),
        (
            &["gzip, identity;q=0", "gzip;q=0.3, *;q=0"],
            "gzip, identity;q=0",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/same/{n}");
        let first = ask(&path, same[0]);
        assert!(
            !first.is_hit() && first.text() == reduced,
            "{same:?}: {first:?}"
        );
        for said in same {
            let answer = ask(&path, said);
            assert!(
                answer.is_hit() && answer.text() == reduced,
                "{said}: {answer:?}"
            );
        }
        assert_eq!(origin.count(&path), 1, "{same:?}");
        // A client without the field, or with other codings, is another one.
        let absent = edge.get(&path);
        assert!(
            !absent.is_hit() && absent.text() == "absent" && edge.get(&path).is_hit(),
            "{absent:?}"
        );
        let refuses = ask(&path, "br, gzip;q=0");
        assert!(
            !refuses.is_hit()
                && refuses.field("content-encoding") == "br"
                && ask(&path, same[0]).text() == reduced,
            "{refuses:?}"
        );
    }
}

#[test]
fn values_that_nobody_repeats_push_out_no_variant_that_is_used() {
    let origin = coding_origin();
    let edge = Plan::new(&origin).start();
    let browser = || {
        edge.ask(
            "GET",
            "/x",
            &[("Accept-Encoding", "gzip, deflate, br, zstd")],
        )
    };
    assert!(!browser().is_hit() && browser().is_hit());
    for n in 0..100 {
        edge.ask(
            "GET",
            "/x",
            &[("Accept-Encoding", &format!("junk-{n}, gzip;q=0.{n:03}1"))],
        );
    }
    assert!(browser().is_hit());
    assert_eq!(
        origin.count("/x"),
        2,
        "the browsers', and one for all the others"
    );
    let origin = Origin::start(|seen| {
        Reply::ok(
            seen.fields.get("origin").cloned().unwrap_or_default(),
            "max-age=600",
        )
        .field("Vary", "Origin")
    });
    let edge = Plan::new(&origin).start();
    let ask = |name: &str| edge.ask("GET", "/x", &[("Origin", &format!("https://{name}.test"))]);
    let names: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    names.iter().for_each(|name| assert!(!ask(name).is_hit()));
    names
        .iter()
        .for_each(|name| assert!(ask(name).is_hit(), "{name}"));
    for n in 0..300 {
        ask(&format!("junk-{n}"));
    }
    for name in &names {
        let answer = ask(name);
        assert!(
            answer.is_hit() && answer.text() == format!("https://{name}.test"),
            "{answer:?}"
        );
    }
}
