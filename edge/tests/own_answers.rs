//! What one client's request brings about is nobody else's: fields outside the key, cookies,
//! errors, changes.

mod lab;

use std::io::{BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lab::{Answer, Edge, Gate, Origin, Plan, Reply, Seen, read_answer, wait_for};
use nearcast_fleet::config::{CachePolicy, OriginLimits, OriginPolicy};

/// An origin that reads fields as gateways in the manner of CGI do, and shows all of them in its
/// pages.
fn echo(seen: &Seen) -> Reply {
    let mut lines: Vec<String> = seen
        .fields
        .iter()
        .map(|(n, v)| format!("{}={v}", n.to_uppercase().replace(['-', '.'], "_")))
        .collect();
    lines.sort();
    Reply::ok(lines.join("\n"), "max-age=60")
}

#[test]
fn no_field_outside_the_key_changes_what_others_get() {
    let origin = Origin::start(echo);
    let edge = Plan::new(&origin).start();
    let dropped = [
        "X-Forwarded-Host",
        "X_Forwarded_Host",
        "x.forwarded_host",
        "X-Forwarded-Prefix",
        "X-Original-Host",
        "X-Rewrite-URL",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Real-IP",
        "X_Real_IP",
        "Forwarded",
        "X-HTTP-Method-Override",
        "X-Middleware-Subrequest",
        "Proxy",
        "If_None_Match",
        "User_Agent",
    ];
    let passed = [
        "RSC",
        "X-Api-Key",
        "X_Api_Key",
        "X-Requested-With",
        "Sec-Evil",
        "Content-Type",
        "Max-Forwards",
        "X-Unheard-Of",
        "Next-Url",
    ];
    for (number, name) in dropped.iter().chain(&passed).enumerate() {
        let path = format!("/home?{number}");
        let own = edge.ask("GET", &path, &[(name, "evil")]);
        assert_eq!(
            (own.status, own.text().contains("evil")),
            (200, passed.contains(name)),
            "{name}"
        );
        assert_eq!(
            own.cache()
                .contains(&format!("detail=request-field:{}", name.to_lowercase())),
            passed.contains(name),
            "{name}: {}",
            own.cache()
        );
        let other = edge.get(&path);
        assert!(
            other.status == 200 && !other.text().contains("evil"),
            "{name}: {}",
            other.text()
        );
        assert!(edge.get(&path).is_hit(), "{name}");
        assert!(
            edge.ask("GET", &path, &[(name, "evil")]).is_hit(),
            "{name}: hits are for all"
        );
    }
}

#[test]
fn vary_and_the_sites_lists_let_answers_be_stored() {
    let origin = Origin::start(|seen| {
        echo(seen).field(
            "Vary",
            if seen.target == "/varies" {
                "X-Kind, Accept"
            } else {
                "Accept"
            },
        )
    });
    let cache = CachePolicy {
        forward_fields: vec!["x-trace".into()],
        key_fields: vec!["x-tenant".into()],
        ..CachePolicy::default()
    };
    let edge = Plan {
        cache,
        ..Plan::new(&origin)
    }
    .start();
    for (path, name, is_apart) in [
        ("/varies", "X-Kind", true),
        ("/x", "X-Tenant", true),
        ("/x", "X-Trace", false),
    ] {
        let path = format!("{path}?{name}");
        let path = if name == "X-Kind" { "/varies" } else { &path };
        // A request id in the text may begin with an "a", too.
        let sent = format!("{}=a", name.to_uppercase().replace('-', "_"));
        let first = edge.ask("GET", path, &[(name, "a")]);
        assert!(first.text().contains(&sent), "{name}: {}", first.text());
        let again = edge.ask("GET", path, &[(name, "a")]);
        assert!(
            again.is_hit() && again.text().contains(&sent),
            "{name}: {}",
            again.cache()
        );
        for other in [&[(name, "b")][..], &[]] {
            let answer = edge.ask("GET", path, other);
            assert_eq!(
                (answer.is_hit(), answer.text().contains(&sent)),
                (!is_apart, !is_apart),
                "{name}: {}",
                answer.cache()
            );
            assert!(edge.ask("GET", path, other).is_hit(), "{name}");
        }
    }
}

#[test]
fn what_is_stored_is_validated_and_refilled_without_any_clients_own_fields() {
    let origin = Origin::start(|seen| {
        let reply = Reply::ok(
            lab::pattern(600_000),
            "max-age=0, stale-while-revalidate=600",
        )
        .field("ETag", "\"a\"")
        .field("Vary", "X-Kind");
        match seen.fields.contains_key("if-none-match") {
            true => Reply {
                status: 304,
                body: vec![],
                ..reply
            },
            false => reply.ranged(seen),
        }
    });
    let edge = Plan::new(&origin).start();
    let own = [
        ("X-Kind", "k"),
        ("X-Own", "o"),
        ("Cookie", "c=1"),
        ("Authorization", "a"),
        ("User-Agent", "u"),
    ];
    assert_eq!(edge.ask("GET", "/swr", &[("X-Kind", "k")]).status, 200);
    assert_eq!(edge.ask("GET", "/swr", &own).body.len(), 600_000);
    wait_for("the validation behind it", || origin.count("/swr") == 2);
    // A part comes from a client with nothing of its own; the rest is fetched for one who has.
    let range = |fields: &[(&'static str, &'static str)]| edge.ask("GET", "/part", fields).status;
    assert_eq!(range(&[("X-Kind", "k"), ("Range", "bytes=0-9")]), 206);
    assert_eq!(
        range(&[&own[..], &[("Range", "bytes=300000-300009")]].concat()),
        206
    );
    for seen in &origin.seen()[1..] {
        for name in ["x-own", "cookie", "authorization"] {
            assert!(!seen.fields.contains_key(name), "{name} in {seen:?}");
        }
        assert_eq!(
            seen.fields.get("x-kind").map(String::as_str),
            Some("k"),
            "what it varies on is asked for"
        );
    }
    assert!(
        origin.seen().iter().any(|seen| seen
            .fields
            .get("user-agent")
            .is_some_and(|agent| agent == "u")),
        "ordinary ones pass"
    );
    assert!(origin.count("/part") >= 2);
}

#[test]
fn a_stale_response_is_asked_for_anew_by_a_client_with_fields_of_its_own_and_not_replaced() {
    let origin = Origin::start(|seen| {
        let own = seen.fields.get("x-api-key").cloned();
        let reply = Reply::ok(own.clone().unwrap_or("all".into()), "max-age=5")
            .field("Age", "5")
            .field("ETag", if own.is_some() { "\"own\"" } else { "\"all\"" });
        let reply = if seen.target == "/304" && own.is_some() {
            reply.field("X-Echo", "evil")
        } else {
            reply
        };
        match seen.fields.contains_key("if-none-match") && (seen.target == "/304" || own.is_none())
        {
            true => Reply {
                status: 304,
                body: vec![],
                fields: reply
                    .fields
                    .into_iter()
                    .filter(|(n, _)| n != "ETag")
                    .collect(),
                ..reply
            },
            false => reply,
        }
    });
    let edge = Plan::new(&origin).start();
    for (path, expected) in [("/200", "mine"), ("/304", "all")] {
        assert_eq!(edge.get(path).text(), "all");
        let own = edge.ask("GET", path, &[("X-Api-Key", "mine")]);
        assert_eq!(own.text(), expected, "{path}");
        let other = edge.get(path);
        assert_eq!(
            (other.text().as_str(), other.field("x-echo")),
            ("all", ""),
            "{path}"
        );
        let seen = origin.seen();
        assert!(
            seen.iter()
                .any(|s| s.target == path && s.fields.contains_key("x-api-key")),
            "the field goes on"
        );
    }
}

#[test]
fn what_varies_by_the_clients_address_is_nobody_elses() {
    let origin = Origin::start(|seen| {
        let vary = if seen.target == "/via" {
            "Via"
        } else {
            "X-Forwarded-For"
        };
        Reply::ok(seen.fields["x-forwarded-for"].clone(), "max-age=60").field("Vary", vary)
    });
    let edge = Plan::new(&origin).start();
    edge.get("/for");
    assert!(!edge.get("/for").is_hit());
    // Of this one the origin sees the client's members before ours, so that they tell requests
    // apart.
    edge.get("/via");
    assert!(edge.get("/via").is_hit());
    assert!(!edge.ask("GET", "/via", &[("Via", "1.1 other")]).is_hit());
}

#[test]
fn a_cookie_is_for_the_client_whose_request_brought_it() {
    let script = |seen: &Seen| {
        let who = seen.fields.get("cookie").cloned().unwrap_or_default();
        let control = if seen.target == "/stale" {
            "public, max-age=5"
        } else {
            "public, max-age=60"
        };
        let reply = Reply::ok("logo", control)
            .field("ETag", "\"l\"")
            .field("Set-Cookie", &format!("s={who}"))
            .field("Set-Cookie2", "old=1");
        let reply = if seen.target == "/stale" {
            reply.field("Age", "5")
        } else {
            reply
        };
        match seen.fields.contains_key("if-none-match") {
            true => Reply {
                status: 304,
                body: vec![],
                ..reply
            },
            false => reply,
        }
    };
    let origin = Origin::start(script);
    let edge = Plan::new(&origin).start();
    for path in ["/logo", "/stale"] {
        for client in ["alice", "bob", ""] {
            let fields = [("Cookie", client)];
            let answer = edge.ask("GET", path, if client.is_empty() { &[] } else { &fields });
            assert_eq!(answer.text(), "logo");
            let own = format!("s={client}");
            let is_own = !answer.is_hit();
            assert_eq!(
                answer.field("set-cookie"),
                if is_own { own.as_str() } else { "" },
                "{path} {client}: {answer:?}"
            );
            assert_eq!(
                is_own,
                client == "alice" || path == "/stale",
                "{path} {client}"
            );
        }
    }
    let shares = Plan {
        cache: CachePolicy {
            store_set_cookie: true,
            ..CachePolicy::default()
        },
        ..Plan::new(&origin)
    }
    .start();
    shares.ask("GET", "/logo", &[("Cookie", "alice")]);
    let other = shares.get("/logo");
    assert_eq!(
        (other.is_hit(), other.field("set-cookie")),
        (true, "s=alice")
    );
}

#[test]
fn a_page_for_a_cookie_or_credentials_is_not_stored_by_a_guess() {
    let origin = Origin::start(|seen| {
        let who = seen
            .fields
            .get("cookie")
            .or(seen.fields.get("authorization"))
            .cloned()
            .unwrap_or("anybody".into());
        Reply::ok(who, "").field("Last-Modified", "Fri, 01 Jan 2021 00:00:00 GMT")
    });
    for (listed, is_shared) in [(vec![], false), (vec!["cookie".to_owned()], true)] {
        let cache = CachePolicy {
            default_ttl: Some(Duration::from_secs(60)),
            forward_fields: listed,
            ..CachePolicy::default()
        };
        let edge = Plan {
            cache,
            ..Plan::new(&origin)
        }
        .start();
        for (path, name) in [("/a", "Cookie"), ("/b", "Authorization")] {
            assert_eq!(edge.ask("GET", path, &[(name, "alice")]).text(), "alice");
            let expected = if is_shared && name == "Cookie" {
                "alice"
            } else {
                "anybody"
            };
            assert_eq!(edge.get(path).text(), expected, "{name}");
            assert!(
                edge.ask("GET", path, &[("Cookie", "bob")]).is_hit(),
                "hits are for all"
            );
        }
    }
}

#[test]
fn an_error_that_a_long_or_odd_field_brought_about_is_not_stored_and_ends_no_sharing() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |seen| {
        let longest = seen.fields.values().map(String::len).max().unwrap_or(0);
        if longest > 4000 || seen.fields.contains_key("x-bad") {
            return Reply {
                status: 400,
                ..Reply::ok("too long", "max-age=600")
            };
        }
        held.wait();
        Reply::ok("fine", "max-age=60")
    });
    let edge = Plan::new(&origin).start();
    let long = "x".repeat(5000);
    for field in [
        ("User-Agent", long.as_str()),
        ("Cookie", &long),
        ("Referer", &long),
        ("X-Bad", "1"),
        ("X-Long", &long),
    ] {
        assert_eq!(edge.ask("GET", "/x", &[field]).status, 400, "{}", field.0);
    }
    let asked = origin.count("/x");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..20).map(|_| scope.spawn(|| edge.get("/x"))).collect();
        wait_for("all but one to wait", || {
            edge.metric("nearcast_edge_forwards_waiting") == 19.0
        });
        gate.open();
        asks.into_iter()
            .map(|a| a.join().expect("no panic"))
            .collect()
    });
    assert!(answers.iter().all(|a| a.text() == "fine"));
    assert_eq!(origin.count("/x"), asked + 1);
}

/// Sends a GET whose answer the origin holds back, then `change`; opens the gate; gives what is
/// served afterwards.
fn changed_while_under_way(
    edge: &Edge,
    origin: &Origin,
    gate: &Gate,
    path: &str,
    change: impl FnOnce(),
) -> Answer {
    let mut stream = edge.connect();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: www.test\r\n\r\n").as_bytes())
        .expect("sent");
    wait_for("the GET to be under way", || origin.count(path) == 1);
    change();
    gate.open();
    assert_eq!(
        read_answer(&mut BufReader::new(&stream), false)
            .expect("an answer")
            .text(),
        "v1",
        "it was asked for before"
    );
    edge.get(path)
}

#[test]
fn a_get_under_way_does_not_survive_the_request_that_changed_it() {
    type Change = (&'static str, &'static str, fn(&Edge));
    let changes: [Change; 5] = [
        ("its own URL", "/item", |edge| {
            assert_eq!(edge.ask("POST", "/item", &[]).status, 200)
        }),
        ("a Location", "/made", |edge| {
            assert_eq!(edge.ask("POST", "/all?location=/made", &[]).status, 200)
        }),
        ("a group", "/member", |edge| {
            assert_eq!(edge.ask("DELETE", "/all?group=1", &[]).status, 200)
        }),
        ("an answer that is lost", "/lost", |edge| {
            assert_eq!(edge.ask("PUT", "/lost", &[]).status, 502)
        }),
        ("a method nobody knows", "/odd", |edge| {
            assert_eq!(edge.ask("FROB", "/odd", &[]).status, 200)
        }),
    ];
    for (what, path, change) in changes {
        let gate = Gate::default();
        let (held, version) = (gate.clone(), Arc::new(AtomicUsize::new(1)));
        let origin = Origin::start(move |seen: &Seen| {
            if seen.method != "GET" {
                version.store(2, Ordering::SeqCst);
                let reply = Reply::ok("changed", "");
                return match seen.target.as_str() {
                    "/all?location=/made" => reply.field("Location", "/made"),
                    "/all?group=1" => reply.field("Cache-Group-Invalidation", "\"g\""),
                    "/lost" => Reply::ok("x".repeat(100), "")
                        .field("Content-Length", "5")
                        .cut_after(0),
                    _ => reply,
                };
            }
            let now = version.load(Ordering::SeqCst);
            if now == 1 {
                held.wait();
            }
            Reply::ok(format!("v{now}"), "max-age=60").field("Cache-Groups", "\"g\"")
        });
        let edge = Plan::new(&origin).start();
        let after = changed_while_under_way(&edge, &origin, &gate, path, || change(&edge));
        assert_eq!(after.text(), "v2", "{what}: {}", after.cache());
        assert!(edge.get(path).is_hit(), "{what}: and it is stored again");
    }
}

#[test]
fn those_who_wait_share_a_response_that_is_stale_when_it_comes() {
    for (what, age, tag) in [("without a validator", "1", ""), ("with one", "1", "\"a\"")] {
        let gates = [Gate::default(), Gate::default()];
        let (held, asked) = (gates.clone(), AtomicUsize::new(0));
        let origin = Origin::start(move |seen| {
            held[asked.fetch_add(1, Ordering::SeqCst).min(1)].wait();
            let reply = Reply::ok("now", "max-age=1").field("Age", age);
            let reply = if tag.is_empty() {
                reply
            } else {
                reply.field("ETag", tag)
            };
            match seen.fields.contains_key("if-none-match") {
                true => Reply {
                    status: 304,
                    body: vec![],
                    ..reply
                },
                false => reply,
            }
        });
        let edge = Plan::new(&origin).start();
        for (round, gate) in gates.iter().enumerate() {
            std::thread::scope(|scope| {
                let asks: Vec<_> = (0..25)
                    .map(|_| scope.spawn(|| edge.get("/live.m3u8")))
                    .collect();
                wait_for("all but one to wait", || {
                    edge.metric("nearcast_edge_forwards_waiting") == 24.0
                });
                gate.open();
                assert!(
                    asks.into_iter()
                        .all(|a| a.join().expect("no panic").text() == "now"),
                    "{what}"
                );
            });
            assert_eq!(origin.count("/live.m3u8"), round + 1, "{what}");
        }
    }
}

#[test]
fn requests_for_what_is_validated_each_time_stand_in_no_line() {
    let gate = Gate::default();
    let (held, asked) = (gate.clone(), AtomicUsize::new(0));
    let origin = Origin::start(move |seen| {
        if asked.fetch_add(1, Ordering::SeqCst) > 0 {
            held.wait();
        }
        let reply = Reply::ok("api", "no-cache").field("ETag", "\"n\"");
        match seen.fields.contains_key("if-none-match") {
            true => Reply {
                status: 304,
                body: vec![],
                ..reply
            },
            false => reply,
        }
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(edge.get("/api").text(), "api");
    std::thread::scope(|scope| {
        let asks: Vec<_> = (0..20).map(|_| scope.spawn(|| edge.get("/api"))).collect();
        // None of them is answered before all have come to the origin.
        wait_for("all to be at the origin at once", || {
            origin.count("/api") == 21
        });
        gate.open();
        assert!(
            asks.into_iter()
                .all(|a| a.join().expect("no panic").text() == "api")
        );
    });
}

#[test]
fn one_clients_own_answer_does_not_end_the_sharing_of_others() {
    for (name, own) in [
        ("X-Me", "private"),
        ("Cookie", "private"),
        ("X-Me", "no-store"),
        ("Cookie", ""),
    ] {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::start(move |seen| {
            if seen.fields.contains_key(&name.to_lowercase()) {
                return Reply::ok("mine", own);
            }
            held.wait();
            Reply::ok("all", "max-age=60")
        });
        let edge = Plan::new(&origin).start();
        assert_eq!(edge.ask("GET", "/p", &[(name, "1")]).text(), "mine");
        std::thread::scope(|scope| {
            let asks: Vec<_> = (0..25).map(|_| scope.spawn(|| edge.get("/p"))).collect();
            wait_for("all but one to wait", || {
                edge.metric("nearcast_edge_forwards_waiting") == 24.0
            });
            gate.open();
            assert!(
                asks.into_iter()
                    .all(|a| a.join().expect("no panic").text() == "all"),
                "{name} {own}"
            );
        });
        assert_eq!(origin.count("/p"), 2, "{name} {own}");
    }
}

#[test]
fn errors_that_one_client_brings_about_hold_no_others_back() {
    let origin = Origin::start(|seen| {
        let version = if seen.fields.contains_key("if-none-match") {
            "new"
        } else {
            "old"
        };
        match seen.fields.contains_key("x-bad")
            || seen.fields.get("cookie").is_some_and(|c| c == "bad")
        {
            true => Reply::status(500),
            false => Reply::ok(version, "max-age=5, stale-if-error=600")
                .field("Age", "5")
                .field("ETag", "\"v\""),
        }
    });
    let edge = Plan::new(&origin).start();
    for (path, field) in [("/field", ("X-Bad", "1")), ("/cookie", ("Cookie", "bad"))] {
        assert_eq!(edge.get(path).text(), "old");
        for _ in 0..10 {
            assert_eq!(
                edge.ask("GET", path, &[field]).status,
                200,
                "stale content, or what the validation behind brought"
            );
        }
        let other = edge.get(path);
        assert!(
            other.status == 200 && !other.cache().contains("detail"),
            "the origin is asked all the same: {}",
            other.cache()
        );
    }
}

#[test]
fn what_a_client_takes_away_behind_the_edge_is_no_part_of_the_key() {
    let origin = Origin::start(|seen| {
        Reply::ok(
            seen.fields
                .get("x-tenant")
                .cloned()
                .unwrap_or("nobody".into()),
            "max-age=60",
        )
    });
    let cache = CachePolicy {
        key_fields: vec!["x-tenant".into()],
        ..CachePolicy::default()
    };
    let edge = Plan {
        cache,
        ..Plan::new(&origin)
    }
    .start();
    assert_eq!(
        edge.ask("GET", "/", &[("X-Tenant", "b"), ("Connection", "x-tenant")])
            .text(),
        "nobody"
    );
    assert_eq!(edge.ask("GET", "/", &[("X-Tenant", "b")]).text(), "b");
    assert!(edge.get("/").is_hit());
}

#[test]
fn an_error_that_an_overlong_field_brought_about_is_nobody_elses_who_waits() {
    let long = "x".repeat(5000);
    for hangs_up in [false, true] {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::start(move |seen| {
            held.wait();
            match seen
                .fields
                .get("referer")
                .is_some_and(|referer| referer.len() > 4000)
            {
                true if hangs_up => Reply::ok("x".repeat(100), "")
                    .field("Content-Length", "5")
                    .cut_after(0),
                true => Reply {
                    status: 500,
                    ..Reply::ok("too long", "")
                },
                false => Reply::ok("fine", "max-age=60"),
            }
        });
        let edge = Plan::new(&origin).start();
        std::thread::scope(|scope| {
            let own = scope.spawn(|| edge.ask("GET", "/x", &[("Referer", &long)]).status);
            wait_for("the first to be asked for", || origin.count("/x") == 1);
            let others: Vec<_> = (0..10)
                .map(|_| scope.spawn(|| edge.get("/x").text()))
                .collect();
            wait_for("the others to wait", || {
                edge.metric("nearcast_edge_forwards_waiting") == 10.0
            });
            gate.open();
            assert_eq!(
                own.join().expect("no panic"),
                if hangs_up { 502 } else { 500 }
            );
            assert!(
                others
                    .into_iter()
                    .all(|other| other.join().expect("no panic") == "fine")
            );
        });
    }
}

#[test]
fn a_head_request_with_fields_of_its_own_drops_nothing_that_all_share() {
    let origin = Origin::start(|seen| {
        let tag = if seen.fields.contains_key("x-evil") {
            "\"evil\""
        } else {
            "\"good\""
        };
        Reply::ok("page", "max-age=60").field("ETag", tag)
    });
    let edge = Plan::new(&origin).start();
    edge.get("/x");
    let mut stream = edge.connect();
    stream.write_all(b"HEAD /x HTTP/1.1\r\nHost: www.test\r\nX-Evil: 1\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx").expect("sent");
    assert_eq!(
        read_answer(&mut BufReader::new(&stream), true)
            .expect("an answer")
            .field("etag"),
        "\"evil\""
    );
    assert!(edge.get("/x").is_hit());
}

#[test]
fn parts_that_one_clients_field_made_unjoinable_are_joined_for_others() {
    let origin = Origin::start(|seen| {
        let tag = if seen.fields.contains_key("x-evil") {
            "W/\"t\""
        } else {
            "\"t\""
        };
        Reply::ok(lab::pattern(700_000), "max-age=60")
            .field("ETag", tag)
            .ranged(seen)
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(
        edge.ask("GET", "/x", &[("X-Evil", "1"), ("Range", "bytes=0-9")])
            .status,
        206
    );
    assert_eq!(edge.ask("GET", "/x", &[("Range", "bytes=0-9")]).status, 206);
    // Once its slices have come.
    wait_for("a part to be a hit", || {
        edge.ask("GET", "/x", &[("Range", "bytes=10-19")]).is_hit()
    });
}

#[test]
fn a_304_for_credentials_or_a_guess_with_a_cookie_is_its_clients_own() {
    // Lifetime, the field of the client that has it validated, and whether what its 304 says is
    // stored.
    for (control, name, is_stored) in [
        ("max-age=5", "Authorization", false),
        ("public, max-age=5", "Authorization", true),
        ("max-age=5", "Cookie", true),
        ("", "Cookie", false),
        ("max-age=5", "X-Own", false),
    ] {
        let origin = Origin::start(move |seen| {
            let own = seen.fields.get(&name.to_lowercase()).cloned();
            // Stale when it comes for nobody in particular, and fresh when it comes for one.
            let age = if own.is_some() { "0" } else { "86400" };
            let reply = Reply::ok("page", control)
                .field("Age", age)
                .field("ETag", "\"v\"")
                .field("X-Who", &own.unwrap_or("all".into()));
            match seen.fields.contains_key("if-none-match") {
                true => Reply {
                    status: 304,
                    body: vec![],
                    ..reply
                },
                false => reply,
            }
        });
        let cache = CachePolicy {
            default_ttl: Some(Duration::from_secs(60)),
            ..CachePolicy::default()
        };
        let edge = Plan {
            cache,
            ..Plan::new(&origin)
        }
        .start();
        assert_eq!(edge.get("/p").field("x-who"), "all");
        let own = edge.ask("GET", "/p", &[(name, "bob")]);
        assert_eq!(
            (own.field("x-who"), own.cache().ends_with("; stored")),
            ("bob", is_stored),
            "{control} {name}: {}",
            own.cache()
        );
        let other = edge.get("/p");
        assert_eq!(
            (other.is_hit(), other.field("x-who")),
            (is_stored, if is_stored { "bob" } else { "all" }),
            "{control} {name}"
        );
    }
}

#[test]
fn an_upload_that_is_refused_or_incomplete_changes_nothing() {
    let origin = Origin::start(|seen| Reply::ok(seen.method.clone(), "max-age=60"));
    let limits = OriginLimits {
        request_bytes_max: Some(nearcast_fleet::units::Bytes(10)),
        ..OriginLimits::default()
    };
    let edge = Plan {
        origin_policy: OriginPolicy {
            limits,
            ..OriginPolicy::default()
        },
        ..Plan::new(&origin)
    }
    .start();
    edge.get("/x");
    let head = "POST /x HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let refused = edge.raw(format!("{head}14\r\n{}\r\n0\r\n\r\n", "x".repeat(20)).as_bytes());
    assert_eq!(refused.status, 413);
    assert!(edge.get("/x").is_hit(), "not all of it was sent");
    let whole = edge.raw(format!("{head}5\r\nxxxxx\r\n0\r\n\r\n").as_bytes());
    assert_eq!((whole.status, edge.get("/x").is_hit()), (200, false));
}

#[test]
fn the_rest_of_a_stored_body_is_asked_for_without_the_cookie_of_the_client_that_began_it() {
    let origin = Origin::start(|seen| {
        let reply = Reply::ok(lab::pattern(900_000), "max-age=60")
            .field("ETag", "\"t\"")
            .ranged(seen);
        if seen.fields.contains_key("range") {
            reply
        } else {
            reply.cut_after(600_000)
        }
    });
    let edge = Plan::new(&origin).start();
    let answer = edge.ask("GET", "/film", &[("Cookie", "c=1"), ("User-Agent", "u")]);
    assert!(answer.whole && answer.body == lab::pattern(900_000));
    let [first, rest] = &origin.seen()[..] else {
        panic!("two requests: {:?}", origin.seen().len())
    };
    assert!(first.fields.contains_key("cookie") && !rest.fields.contains_key("cookie"));
    assert_eq!(rest.fields["user-agent"], "u");
}

#[test]
fn a_304_for_one_client_takes_nothing_away_from_others() {
    for name in ["X-Evil", "Authorization"] {
        let origin = Origin::start(move |seen| {
            let control = if seen.fields.contains_key(&name.to_lowercase()) {
                "no-store"
            } else {
                "max-age=5, stale-if-error=600"
            };
            let reply = Reply::ok("page", control)
                .field("Age", "5")
                .field("ETag", "\"v\"");
            match seen.fields.contains_key("if-none-match") {
                true => Reply {
                    status: 304,
                    body: vec![],
                    ..reply
                },
                false => reply,
            }
        });
        let edge = Plan::new(&origin).start();
        assert_eq!(edge.get("/p").status, 200);
        assert_eq!(edge.ask("GET", "/p", &[(name, "1")]).text(), "page");
        assert_eq!(origin.count("/p"), 2);
        origin.stop();
        assert_eq!(
            edge.get("/p").text(),
            "page",
            "{name}: what is stored still bridges the origin"
        );
    }
}

#[test]
fn an_open_challenge_is_answered_here_and_all_others_by_the_origin() {
    use nearcast_fleet::change::{Challenges, Change, HttpChallenge};
    let origin = Origin::start(|seen: &Seen| {
        Reply::ok(format!("origin {}", seen.fields["host"]), "max-age=60")
    });
    let plan = Plan {
        hosts: vec!["www.test".into(), "other.test".into()],
        ..Plan::new(&origin)
    };
    let mut edge = plan.start();
    let open = |token: &str| HttpChallenge {
        host: "www.test".to_owned(),
        token: token.to_owned(),
        key_authorization: format!("{token}.thumbprint"),
    };
    let challenge = "/.well-known/acme-challenge/one";
    // The origin's own client had this file, and it is stored here.
    assert_eq!(edge.get(challenge).text(), "origin www.test");
    assert!(edge.get(challenge).is_hit());

    edge.entry(Change::Challenges(Challenges {
        dns: Vec::new(),
        http: vec![open("one"), open("two")],
    }));
    let answer = edge.get(challenge);
    assert_eq!(
        (answer.status, answer.text()),
        (200, "one.thumbprint".to_owned())
    );
    assert_eq!(answer.field("cache-control"), "no-store");
    assert_eq!(answer.field("content-type"), "text/plain; charset=utf-8");
    let hosted = |host: &str, method: &str, path: &str| edge.ask(method, path, &[("Host", host)]);
    for (host, method, path, expected) in [
        ("WWW.test:80", "GET", challenge, "one.thumbprint"),
        (
            "www.test",
            "GET",
            "/.well-known/acme-challenge/two",
            "two.thumbprint",
        ),
        (
            "www.test",
            "GET",
            "/.well-known/acme-challenge/three",
            "origin www.test",
        ),
        (
            "www.test",
            "GET",
            "/.well-known/acme-challenge/one/",
            "origin www.test",
        ),
        (
            "www.test",
            "GET",
            "/.well-known/acme-challenge/",
            "origin www.test",
        ),
        ("www.test", "POST", challenge, "origin www.test"),
        ("other.test", "GET", challenge, "origin other.test"),
    ] {
        let answer = hosted(host, method, path);
        assert_eq!(answer.text(), expected, "{method} {path} at {host}");
    }

    edge.entry(Change::Challenges(Challenges::default()));
    assert_eq!(edge.get(challenge).text(), "origin www.test");
}
