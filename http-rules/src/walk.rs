//! Simulated requests through all rules, checked against an oracle that knows the intent of the
//! origin.
//!
//! A minimal cache follows the rules, an origin sends random directives and changes its content,
//! and each response is checked against the uses that the origin allowed. A seed determines a run,
//! and a failure names its seed.

use http::header::{DATE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Method, StatusCode};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::random::Random;

use crate::freshness::{Exchange, Freshness};
use crate::key::Key;
use crate::reuse::{Reuse, evaluate};
use crate::storing::{RequestFacts, assess};
use crate::testing::{NOW_MS, map};
use crate::{conditional, dates, invalidate, vary};

const WALKS: u64 = 400;
const STEPS: u32 = 80;

/// The intent of the origin with one of its responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meaning {
    /// Number of the change that made this content.
    content: u64,
    lifetime: u64,
    stale_use: u64,
    /// Whether a shared cache may store it.
    is_storable: bool,
    /// Whether it may be used without validation while fresh.
    is_reusable: bool,
    /// Whether it may be used when stale.
    may_be_stale: bool,
    /// Whether it depends on `foo`.
    varies: bool,
}

/// An origin with one page, whose content changes.
struct Origin {
    content: u64,
}

impl Origin {
    /// The intent of a response, and fields that express it in one of several ways.
    fn answer(&self, random: &mut Random) -> (Meaning, HeaderMap) {
        let lifetime = random.below(8) as u64;
        let stale_use = random.below(8) as u64;
        let mut meaning = Meaning {
            content: self.content,
            lifetime,
            stale_use,
            is_storable: true,
            is_reusable: true,
            may_be_stale: true,
            varies: random.below(2) == 0,
        };
        let mut said = vec![if random.below(2) == 0 {
            format!("max-age={lifetime}")
        } else {
            format!("MAX-AGE=\"{lifetime}\"")
        }];
        said.push(format!("stale-while-revalidate={stale_use}"));
        match random.below(8) {
            0 => {
                meaning.is_storable = false;
                said.push(
                    ["no-store", "private", "Private=\"x, y\"", "No-Store=\"\""][random.below(4)]
                        .to_owned(),
                );
            }
            1 => {
                meaning.is_reusable = false;
                said.push(["no-cache", "no-cache=\"set-cookie\""][random.below(2)].to_owned());
            }
            2 => {
                meaning.may_be_stale = false;
                said.push(["must-revalidate", "proxy-revalidate"][random.below(2)].to_owned());
            }
            3 => said.push("x=\"no-store, private\", unknown".to_owned()),
            _ => {}
        }
        if random.below(2) == 0 {
            said.reverse();
        }
        let mut lines = vec![format!("etag: \"{}\"", self.content)];
        match random.below(3) {
            0 => lines.push(format!("cache-control: {}", said.join(" ,\t"))),
            1 => lines.extend(
                said.iter()
                    .map(|directive| format!("cache-control: {directive}")),
            ),
            _ => lines.push(format!(
                "cache-control: {}, {},",
                said.join(","),
                said.join(", ")
            )),
        }
        if meaning.varies {
            lines.push(
                ["vary: foo", "vary: Foo,, bar", "vary: bar, FOO"][random.below(3)].to_owned(),
            );
        }
        (
            meaning,
            map(&lines.iter().map(String::as_str).collect::<Vec<_>>()),
        )
    }
}

struct Stored {
    meaning: Meaning,
    foo: String,
    fields: HeaderMap,
    selecting: HeaderMap,
    freshness: Freshness,
}

struct Walk {
    random: Random,
    now_ms: u64,
    origin: Origin,
    policy: CachePolicy,
    stored: Vec<Stored>,
    hits: u32,
    validated: u32,
}

impl Walk {
    fn step(&mut self) {
        self.now_ms += self.random.below(3000) as u64;
        if self.random.below(4) == 0 {
            self.origin.content += 1;
        }
        match self.random.below(12) {
            0 => self.change(),
            _ => self.read(),
        }
    }

    /// An unsafe request that succeeds invalidates all stored responses.
    fn change(&mut self) {
        let key = Key::new("http", "A.test:80", "/x").expect("valid");
        let dropped =
            invalidate::invalidated(&Method::POST, &key.url, StatusCode::OK, &HeaderMap::new());
        if dropped.urls.iter().any(|url| **url == *key.url) {
            self.stored.clear();
        }
        assert!(self.stored.is_empty());
        self.origin.content += 1;
    }

    fn read(&mut self) {
        let foo = self.random.below(3).to_string();
        let request = if foo == "0" {
            map(&["accept: x"])
        } else {
            map(&["accept: x", &format!("foo: {foo}")])
        };
        let selected = self
            .stored
            .iter()
            .enumerate()
            .filter(|(_, s)| vary::is_selected(&s.fields, &s.selecting, &request));
        let chosen = vary::newest(selected.map(|(at, s)| {
            let date = dates::date(&s.fields, DATE);
            (at, date, s.freshness.received_ms)
        }));
        let Some(at) = chosen else {
            return self.fetch(&request, &foo, None);
        };
        let is_soft = self.random.below(8) == 0;
        let found = evaluate(
            &self.stored[at].freshness,
            None,
            is_soft,
            &self.policy,
            self.now_ms,
        );
        if found.reuse.may_serve_now() {
            self.check_use(&self.stored[at], &foo, found.reuse);
            assert!(
                !is_soft || found.reuse != Reuse::Fresh,
                "a soft purge makes stale"
            );
            self.hits += 1;
        } else {
            self.fetch(&request, &foo, Some(at));
        }
    }

    /// Whether the origin would have allowed this use.
    fn check_use(&self, stored: &Stored, foo: &str, reuse: Reuse) {
        let meaning = stored.meaning;
        let age = (self.now_ms - stored.freshness.received_ms) / 1000;
        let is_fresh = age < meaning.lifetime;
        let is_within = age <= meaning.lifetime + meaning.stale_use && meaning.stale_use > 0;
        assert!(meaning.is_storable && meaning.is_reusable, "{meaning:?}");
        assert!(
            is_fresh || (meaning.may_be_stale && is_within),
            "{meaning:?} at {age}"
        );
        assert!(
            !meaning.varies || stored.foo == foo,
            "{meaning:?} for {foo}"
        );
        assert!(reuse != Reuse::Fresh || is_fresh, "{meaning:?} at {age}");
    }

    fn fetch(&mut self, request: &HeaderMap, foo: &str, stale: Option<usize>) {
        let (meaning, fields) = self.origin.answer(&mut self.random);
        let mut forward = request.clone();
        forward.insert(
            IF_NONE_MATCH,
            "\"the client's own\"".parse().expect("valid"),
        );
        conditional::set_validation(
            &mut forward,
            stale.iter().map(|at| &self.stored[*at].fields),
        );
        let is_not_modified = forward
            .get(IF_NONE_MATCH)
            .is_some_and(|tag| Some(tag) == fields.get(ETAG));
        let exchange = Exchange {
            requested_ms: self.now_ms,
            received_ms: self.now_ms,
        };
        let mut fields = conditional::stored_fields(&fields, self.now_ms);
        if let Some(at) = stale {
            let old = self.stored.remove(at);
            assert_eq!(
                is_not_modified,
                old.meaning.content == meaning.content,
                "confirmed what is there, and nothing else"
            );
            assert_eq!(
                conditional::is_confirmed(&old.fields, &fields, true),
                is_not_modified
            );
            if is_not_modified {
                self.validated += 1;
                fields = conditional::freshened(&old.fields, &fields, self.now_ms);
            }
        }
        // A field that a 304 leaves out stays as it was.
        let varies = meaning.varies || (fields.contains_key(VARY) && stale.is_some());
        let meaning = Meaning { varies, ..meaning };
        let facts = RequestFacts {
            method: &Method::GET,
            fields: request,
        };
        let found = assess(facts, StatusCode::OK, &fields, &self.policy, exchange);
        if found.not_stored.is_some() {
            return;
        }
        let freshness = found.freshness;
        assert!(meaning.is_storable, "{meaning:?}");
        assert_eq!(freshness.lifetime, meaning.lifetime, "{fields:?}");
        let selecting = vary::selecting(request, &fields);
        self.stored
            .retain(|s| !vary::is_selected(&s.fields, &s.selecting, request));
        self.stored.push(Stored {
            meaning,
            foo: foo.to_owned(),
            fields,
            selecting,
            freshness,
        });
    }
}

#[test]
fn no_walk_uses_what_the_origin_did_not_allow() {
    let (mut hits, mut validated) = (0, 0);
    for seed in 1..=WALKS {
        let walked = std::panic::catch_unwind(|| {
            let policy = CachePolicy::default();
            let origin = Origin { content: 1 };
            let mut walk = Walk {
                random: Random::new(seed),
                now_ms: NOW_MS,
                origin,
                policy,
                stored: Vec::new(),
                hits: 0,
                validated: 0,
            };
            (0..STEPS).for_each(|_| walk.step());
            (walk.hits, walk.validated)
        });
        let Ok(counts) = walked else {
            panic!("walk with seed {seed} failed, see above")
        };
        hits += counts.0;
        validated += counts.1;
    }
    // A cache that never uses a stored response would pass all checks above.
    assert!(
        hits > 2000 && validated > 500,
        "{hits} hits, {validated} validated"
    );
}
