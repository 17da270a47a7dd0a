//! Following against a control of a few lines, over real sockets, with a real journal.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;

use super::follower::{FollowError, ask, pause};
use super::position::{Position, advance, change_journal};
use super::*;
use crate::admin::{self, Readiness};
use crate::change::{Change, Purge, PurgeScope};
use crate::client::ClientError;
use crate::config::Secret;
use crate::file;
use crate::journal::Journal;
use crate::testing::FleetText;
use nearcast_net::shutdown;

/// Much longer than anything here takes, and shorter than control holds a request for which it has
/// nothing.
const SOON: Duration = Duration::from_secs(25);

const KEY: &str = "the key of this test";

struct Control {
    address: SocketAddr,
    journal: Arc<Mutex<Journal>>,
    server: tokio::task::JoinHandle<()>,
    _rest: (shutdown::ShutdownTrigger, watch::Sender<Readiness>),
}

impl Control {
    async fn start(address: SocketAddr, journal: &Path) -> Self {
        let journal = Arc::new(Mutex::new(Journal::open(journal).expect("opens")));
        let shared = journal.clone();
        let extra: admin::RolePaths = Arc::new(move |request| {
            let journal = shared.clone();
            Box::pin(async move { answer(&journal, &request).await })
        });
        let listener = admin::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (trigger, shutdown) = shutdown::channel();
        let (readiness, ready) = watch::channel(Readiness::Ready);
        let server = tokio::spawn(admin::serve(
            listener,
            crate::listener_tls::ListenerTls::none(),
            prometheus::Registry::new(),
            ready,
            Some(extra),
            Arc::new(|_| false),
            shutdown,
        ));
        Self {
            address,
            journal,
            server,
            _rest: (trigger, readiness),
        }
    }

    fn append(&self, change: Change) -> u64 {
        self.journal
            .lock()
            .append(change, 1)
            .expect("appends")
            .revision
    }

    async fn stop(self) -> SocketAddr {
        self.server.abort();
        let _ = self.server.await;
        self.address
    }
}

async fn answer(journal: &Mutex<Journal>, request: &Request<Bytes>) -> Response<Bytes> {
    if !admin::is_bearer(request, KEY) {
        let mut response = Response::new(Bytes::from_static(b"another key"));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return response;
    }
    let query = request.uri().query().unwrap_or_default();
    let value = |key: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    };
    assert_eq!(
        (request.uri().path(), value("node")),
        ("/v1/journal", Some("ams-1"))
    );
    let after: u64 = value("after")
        .expect("always there")
        .parse()
        .expect("a number");
    let wait = Duration::from_millis(
        value("wait_ms")
            .expect("always there")
            .parse()
            .expect("a number"),
    );
    let until = Instant::now() + wait;
    loop {
        {
            let mut journal = journal.lock();
            journal
                .reconcile(value("journal"), after, 1)
                .expect("works");
            let entries = journal.after(after, 256);
            if !entries.is_empty() || Instant::now() >= until {
                let answer = JournalAnswer {
                    journal: journal.id(),
                    revision: journal.revision(),
                    entries,
                };
                return Response::new(serde_json::to_vec(&answer).expect("JSON").into());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn fleet_text(control: SocketAddr, more: &str) -> String {
    FleetText::new()
        .set("node_key", &format!("\"{KEY}\""))
        .text_in_fleet(more)
        .control(&control.to_string())
        .cluster("ams", &["192.0.2.1"])
        .text()
}

/// A check that knows more than the parser.
fn no_mail(_: &Fleet, text: &str) -> Vec<file::Mistake> {
    let mistake = |line| file::Mistake {
        line,
        column: 1,
        problem: "mail".into(),
        hint: "none".into(),
    };
    text.lines()
        .position(|l| l.contains("mail"))
        .map(|n| mistake(n + 1))
        .into_iter()
        .collect()
}

struct Node {
    context: NodeContext,
    fleet_tx: watch::Sender<Arc<Fleet>>,
    _trigger: shutdown::ShutdownTrigger,
}

impl Node {
    async fn start(dir: &Path, control: SocketAddr) -> Self {
        let fleet = file::parse(&fleet_text(control, ""), dir).expect("a good file");
        let (fleet_tx, _) = watch::channel(Arc::new(fleet));
        let (trigger, shutdown) = shutdown::channel();
        let mut context = prepare(
            "ams-1".into(),
            fleet_tx.clone(),
            dir.join("ams-1"),
            no_mail,
            shutdown,
        )
        .await;
        std::mem::take(&mut context.following)
            .begin()
            .await
            .expect("begins");
        Self {
            context,
            fleet_tx,
            _trigger: trigger,
        }
    }

    async fn next(&mut self) -> Entry {
        let entry = tokio::time::timeout(SOON, self.context.entries.recv()).await;
        entry
            .expect("an entry comes soon")
            .expect("the follower runs")
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&FollowState) -> bool) -> FollowState {
        let found = tokio::time::timeout(SOON, self.context.state.wait_for(|s| holds(s))).await;
        *found
            .unwrap_or_else(|_| panic!("not {what} in time"))
            .expect("the follower runs")
    }

    /// Ends this node's task before another one takes its directory.
    async fn stop(self) {
        drop(self._trigger);
        // It follows for as long as the role is there.
        let NodeContext {
            mut entries, state, ..
        } = self.context;
        drop(state);
        while entries.recv().await.is_some() {}
    }
}

fn purge(url: &str) -> Change {
    Change::Purge(Purge {
        scope: PurgeScope::Url(url.into()),
        soft: false,
    })
}

fn everything() -> Change {
    Change::Purge(Purge {
        scope: PurgeScope::All,
        soft: false,
    })
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[tokio::test]
async fn entries_come_in_order_live_and_again_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    control.append(purge("a"));
    control.append(purge("a"));
    let mut node = Node::start(dir.path(), control.address).await;
    assert_eq!(
        (node.next().await.revision, node.next().await.revision),
        (1, 2)
    );
    let state = node.until("caught up", |s| s.caught_up).await;
    assert_eq!(
        state,
        FollowState {
            revision: 2,
            caught_up: true,
            control_reachable: true,
            recalled: true,
            asked: true
        }
    );
    assert_eq!(control.append(purge("b")), 3);
    assert_eq!(node.next().await.change, purge("b"));
    node.stop().await;

    // Control is away at the restart: what matters is replayed, folded, and the node knows that it
    // may lag.
    let address = control.stop().await;
    let mut node = Node::start(dir.path(), address).await;
    assert_eq!(
        (node.next().await.revision, node.next().await.revision),
        (2, 3)
    );
    let state = node.until("replayed", |s| s.revision == 3).await;
    assert_eq!((state.caught_up, state.control_reachable), (false, false));

    // It returns with one more.
    let control = Control::start(address, &dir.path().join("journal")).await;
    control.append(purge("c"));
    let entry = node.next().await;
    assert_eq!((entry.revision, entry.change), (4, purge("c")));
    node.until("caught up", |s| s.caught_up && s.control_reachable)
        .await;
}

#[tokio::test]
async fn a_fleet_file_takes_effect_before_it_is_handed_out_and_survives() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    let mut node = Node::start(dir.path(), control.address).await;
    node.until("caught up", |s| s.caught_up).await;
    control.append(Change::FleetFile {
        text: "no [fleet".into(),
    });
    node.next().await;
    assert_eq!(
        node.context.fleet.borrow().report_interval,
        Duration::from_secs(2),
        "a wrong file changes nothing"
    );
    control.append(Change::FleetFile {
        text: fleet_text(control.address, "report_interval = \"7s\""),
    });
    node.next().await;
    assert_eq!(
        node.context.fleet.borrow().report_interval,
        Duration::from_secs(7)
    );
    assert_eq!(node.context.fleet.borrow().base, dir.path());
    node.stop().await;
    let address = control.stop().await;
    let node = Node::start(dir.path(), address).await;
    assert_eq!(
        node.context.fleet.borrow().report_interval,
        Duration::from_secs(7),
        "in force when start returns"
    );
}

#[tokio::test]
async fn a_fleet_file_of_the_journal_that_the_role_cannot_use_leaves_the_one_on_disk_in_force() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    control.append(Change::FleetFile {
        text: fleet_text(control.address, "report_interval = \"7s\" # mail"),
    });
    let mut node = Node::start(dir.path(), control.address).await;
    node.next().await;
    assert_eq!(
        node.context.fleet.borrow().report_interval,
        Duration::from_secs(2),
        "live"
    );
    node.until("caught up", |s| s.caught_up).await;
    node.stop().await;
    let node = Node::start(dir.path(), control.stop().await).await;
    assert_eq!(
        node.context.fleet.borrow().report_interval,
        Duration::from_secs(2),
        "at the next start"
    );
}

#[tokio::test]
async fn a_long_journal_that_the_role_does_not_read_yet_does_not_keep_a_revision_from_it() {
    const KEPT: u64 = 3000;
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    for n in 1..=KEPT {
        control.append(purge(&n.to_string()));
    }
    let mut node = Node::start(dir.path(), control.address).await;
    node.until("caught up, nothing being read", |s| {
        s.caught_up && s.revision == KEPT
    })
    .await;
    node.stop().await;

    let mut node = Node::start(dir.path(), control.address).await;
    control.append(Change::FleetFile {
        text: fleet_text(control.address, "report_interval = \"7s\""),
    });
    let make = |fleet: &Arc<Fleet>| match fleet.report_interval.as_secs() {
        7 => Ok(()),
        _ => Err(Failure::new(FailureKind::NoInput, "it is not there")),
    };
    let started = start_from(
        node.context.fleet.clone(),
        node.context.shutdown.clone(),
        make,
    )
    .await;
    started.expect("control's revision heals the start");
    for revision in 1..=KEPT + 1 {
        assert_eq!(
            node.next().await.revision,
            revision,
            "all of them, in order"
        );
    }
}

#[tokio::test]
async fn a_role_that_drops_its_entries_still_gets_fleet_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    let node = Node::start(dir.path(), control.address).await;
    let NodeContext {
        entries, mut fleet, ..
    } = node.context;
    drop(entries);
    control.append(Change::FleetFile {
        text: fleet_text(control.address, "report_interval = \"7s\""),
    });
    let changed = fleet.wait_for(|f| f.report_interval == Duration::from_secs(7));
    tokio::time::timeout(SOON, changed)
        .await
        .expect("soon")
        .expect("the sender is there");
}

#[tokio::test]
async fn a_lost_journal_purges_everything_and_later_purges_hold() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    for n in 1..=5 {
        assert_eq!(control.append(purge(&n.to_string())), n);
    }
    let mut node = Node::start(dir.path(), control.address).await;
    for revision in 1..=5 {
        assert_eq!(node.next().await.revision, revision);
    }
    node.until("caught up", |s| s.caught_up).await;

    let address = control.stop().await;
    std::fs::remove_file(dir.path().join("journal")).expect("there");
    let control = Control::start(address, &dir.path().join("journal")).await;
    let wiped = node.next().await;
    assert_eq!((wiped.revision, &wiped.change), (6, &everything()));
    node.until("caught up", |s| s.caught_up && s.revision == 6)
        .await;
    let accepted = control.append(purge("later"));
    let later = node.next().await;
    assert_eq!((later.revision, &later.change), (7, &purge("later")));
    assert_eq!(accepted, later.revision, "both sides count alike again");
    node.stop().await;

    // A restart finds the same, whatever control is at.
    let mut node = Node::start(dir.path(), any_port()).await;
    assert_eq!(
        [node.next().await.change, node.next().await.change],
        [everything(), purge("later")]
    );
}

#[tokio::test]
async fn before_it_begins_nothing_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    let prepared = async || {
        let fleet = file::parse(&fleet_text(control.address, ""), dir.path()).expect("a good file");
        let (trigger, shutdown) = shutdown::channel();
        (
            prepare(
                "ams-1".into(),
                watch::channel(Arc::new(fleet)).0,
                dir.path().join("ams-1"),
                no_mail,
                shutdown,
            )
            .await,
            trigger,
        )
    };
    drop(prepared().await);
    assert!(!dir.path().join("ams-1").exists());
    let mut node = Node::start(dir.path(), control.address).await;
    for revision in 1..=2 {
        control.append(Change::FleetFile {
            text: fleet_text(control.address, "report_interval = \"7s\""),
        });
        assert_eq!(node.next().await.revision, revision);
    }
    node.until("caught up", |s| s.caught_up).await;
    // The copy has more than one record, which an opening would fold, under the process that has it
    // open.
    let copy = dir.path().join("ams-1/journal.copy");
    let before = std::fs::read(&copy).expect("there");
    let (context, _trigger) = prepared().await;
    assert_eq!(
        context.fleet.borrow().report_interval,
        Duration::from_secs(7),
        "in force all the same"
    );
    assert_eq!(std::fs::read(&copy).expect("there"), before);
}

#[tokio::test]
async fn a_copy_that_was_damaged_is_fetched_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    let mut node = Node::start(dir.path(), control.address).await;
    for n in 1..=2 {
        control.append(purge(&n.to_string()));
        assert_eq!(node.next().await.revision, n);
    }
    node.until("caught up", |s| s.caught_up && s.revision == 2)
        .await;
    let copy = dir.path().join("ams-1/journal.copy");
    let mut bytes = std::fs::read(&copy).expect("there");
    bytes[60] ^= 1;
    std::fs::write(&copy, bytes).expect("writable");
    // Large enough for the copy to be folded.
    control.append(Change::FleetFile {
        text: "#".repeat(9 << 20),
    });
    for revision in [3, 1, 2, 3] {
        assert_eq!(node.next().await.revision, revision);
    }
    node.until("caught up", |s| s.caught_up && s.control_reachable)
        .await;
    node.stop().await;
    let mut node = Node::start(dir.path(), control.stop().await).await;
    for revision in 1..=3 {
        assert_eq!(
            node.next().await.revision,
            revision,
            "the next start has it all"
        );
    }
}

#[tokio::test]
async fn without_control_there_is_nothing_to_wait_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let fleet = file::standalone_origin(dir.path().into(), any_port()).expect("a directory");
    let (fleet_tx, _) = watch::channel(Arc::new(fleet));
    let (_trigger, shutdown) = shutdown::channel();
    let mut context = prepare(
        "origin".into(),
        fleet_tx,
        dir.path().join("origin"),
        no_mail,
        shutdown,
    )
    .await;
    std::mem::take(&mut context.following)
        .begin()
        .await
        .expect("begins");
    assert!(context.state.borrow().caught_up);
    assert_eq!(context.entries.recv().await, None);
    assert!(!dir.path().join("origin").exists(), "nothing is written");
}

#[tokio::test]
async fn a_control_that_refuses_is_reachable_and_one_that_is_away_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    let with_key = |key: &str| {
        let text = fleet_text(control.address, "").replace(KEY, key);
        Arc::new(file::parse(&text, dir.path()).expect("a good file"))
    };
    let (trigger, shutdown) = shutdown::channel();
    let fleet_tx = watch::channel(with_key("another key, which is wrong")).0;
    let mut context = prepare(
        "ams-1".into(),
        fleet_tx.clone(),
        dir.path().join("ams-1"),
        no_mail,
        shutdown,
    )
    .await;
    std::mem::take(&mut context.following)
        .begin()
        .await
        .expect("begins");
    let mut node = Node {
        context,
        fleet_tx,
        _trigger: trigger,
    };
    let refused = node.until("asked", |s| s.asked).await;
    assert_eq!(
        (refused.control_reachable, refused.caught_up),
        (true, false),
        "it is there, and what it has is not known"
    );
    node.fleet_tx.send_replace(with_key(KEY));
    node.until("caught up, a new key being taken at once", |s| s.caught_up)
        .await;
    control.stop().await;
    // Asks at once, not when its long request has been cut off.
    node.fleet_tx.send_modify(|fleet| {
        *fleet = Arc::new(Fleet {
            report_interval: Duration::from_secs(5),
            ..Fleet::clone(fleet)
        })
    });
    node.until("away", |s| !s.control_reachable).await;
}

#[test]
fn answers_that_are_of_no_use_come_from_a_control_that_is_there() {
    let text = |text: &str| serde_json::from_str::<JournalAnswer>(text).expect_err("no answer");
    let authority = || "control.test:80".to_owned();
    for (error, is_there) in [
        (FollowError::Status(401, String::new()), true),
        (FollowError::Status(503, String::new()), true),
        (FollowError::Answer(text("<html>")), true),
        (
            ClientError::TooLarge {
                authority: authority(),
                limit: 1,
            }
            .into(),
            true,
        ),
        (
            ClientError::Connect {
                authority: authority(),
                reason: String::new(),
            }
            .into(),
            false,
        ),
        (
            ClientError::Timeout {
                authority: authority(),
                after: SOON,
            }
            .into(),
            false,
        ),
        (
            ClientError::Exchange {
                authority: authority(),
                reason: String::new(),
            }
            .into(),
            false,
        ),
    ] {
        assert_eq!(error.is_of_control(), is_there, "{error}");
    }
}

#[test]
fn pauses_double_to_a_limit_and_differ() {
    for (failures, most) in [(0, 100), (1, 200), (3, 800), (5, 2000), (1000, 2000)] {
        let most = Duration::from_millis(most);
        assert_eq!(pause(failures, 0), most / 2);
        let longest = pause(failures, u64::MAX);
        assert!(
            longest <= most && longest > most.mul_f64(0.99),
            "{longest:?}"
        );
    }
}

#[test]
fn a_position_follows_what_is_taken() {
    let entry = |revision, change| Entry {
        revision,
        accepted_unix_ms: 0,
        change,
    };
    let answer = |revision, entries| JournalAnswer {
        journal: "new".into(),
        revision,
        entries,
    };
    let file = Change::FleetFile {
        text: String::new(),
    };
    // A node that has had 57 of another journal meets one with 3.
    let before = Position {
        journal: Some("old".into()),
        cursor: 57,
        handed_out: 57,
        joined_at: 0,
    };
    let (joined, entries) = change_journal(&before, &answer(3, vec![]), 9);
    assert_eq!(
        entries,
        [Entry {
            revision: 58,
            accepted_unix_ms: 9,
            change: everything()
        }]
    );
    assert_eq!(
        joined,
        Position {
            journal: Some("new".into()),
            cursor: 0,
            handed_out: 58,
            joined_at: 3
        }
    );
    // Of those three, the purges are covered; what is later gets a higher number than anything
    // before.
    let (at, entries) = advance(
        &joined,
        &answer(
            4,
            vec![
                entry(1, purge("a")),
                entry(2, file.clone()),
                entry(4, purge("b")),
            ],
        ),
    );
    assert_eq!(entries, [entry(2, file), entry(59, purge("b"))]);
    assert_eq!((at.cursor, at.handed_out), (4, 59));
    // Entries that it has had are not taken twice.
    assert_eq!(
        advance(&at, &answer(4, vec![entry(4, purge("b"))])),
        (at.clone(), vec![])
    );
    // Once the journal's own numbers are higher, they are used.
    let (_, entries) = advance(&at, &answer(100, vec![entry(100, purge("c"))]));
    assert_eq!(entries[0].revision, 100);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Control::start(any_port(), &dir.path().join("journal")).await;
    let fleet = file::parse(&fleet_text(server.address, ""), dir.path()).expect("a good file");
    let control = fleet.control.as_ref().expect("it has one");
    let wrong = Secret("wrong".into());
    let refused = ask(
        &Client::new(None),
        control,
        &wrong,
        "ams-1",
        &Position::default(),
        Duration::ZERO,
    )
    .await
    .expect_err("refused");
    assert_eq!(
        refused.to_string(),
        "control answered with status 401: another key"
    );
}

/// The same fleet with a site whose authority is a file.
fn with_authority(control: SocketAddr, file: &str) -> String {
    let site = format!(
        "[[site]]\nname = \"www\"\nhosts = [\"www.test\"]\norigin = \"https://o.test\"\norigin_ca = \"{file}\"\n"
    );
    fleet_text(control, "report_interval = \"9s\"") + &site
}

#[tokio::test]
async fn a_revision_that_a_node_cannot_start_with_leaves_it_the_file_on_its_machine() {
    for (what, text) in [
        (
            "a file that is not here",
            with_authority as fn(SocketAddr, &str) -> String,
        ),
        ("no such node", |control, _| {
            fleet_text(control, "report_interval = \"9s\"").replace("ams-1", "ams-9")
        }),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let control = Control::start(any_port(), &dir.path().join("journal")).await;
        // The second revision, so that its second is not the one of the file on this machine.
        control.append(Change::FleetFile {
            text: fleet_text(control.address, "report_interval = \"8s\""),
        });
        control.append(Change::FleetFile {
            text: text(control.address, "ca.pem"),
        });
        let mut node = Node::start(dir.path(), control.address).await;
        node.until("caught up", |s| s.caught_up).await;
        assert_eq!(
            node.context.fleet.borrow().report_interval,
            Duration::from_secs(9),
            "{what}: a running node takes it"
        );
        node.stop().await;

        let address = control.stop().await;
        let start = async || {
            let fleet = file::parse(&fleet_text(address, ""), dir.path()).expect("a good file");
            let (_trigger, shutdown) = shutdown::channel();
            let fleet = watch::channel(Arc::new(fleet)).0;
            let context = prepare(
                "ams-1".into(),
                fleet,
                dir.path().join("ams-1"),
                no_mail,
                shutdown,
            )
            .await;
            Arc::clone(&context.fleet.borrow())
        };
        assert_eq!(
            start().await.report_interval,
            Duration::from_secs(2),
            "{what}: the file on this machine"
        );
        // Nor is it put in force while the role starts: handing it out is all that is done with it.
        let mut node = Node::start(dir.path(), address).await;
        assert!(
            matches!(node.next().await.change, Change::FleetFile { .. }),
            "{what}"
        );
        node.until("recalled", |s| s.recalled).await;
        let make = |fleet: &Arc<Fleet>| match fleet.report_interval.as_secs() {
            2 => Ok(()),
            _ => Err(Failure::new(FailureKind::NoInput, "the refused revision")),
        };
        let started = start_from(
            node.context.fleet.clone(),
            node.context.shutdown.clone(),
            make,
        )
        .await;
        started.unwrap_or_else(|failure| panic!("{what}: {failure}"));
        node.stop().await;
        if what.starts_with("a file") {
            std::fs::write(dir.path().join("ca.pem"), "").expect("written");
            assert_eq!(
                start().await.report_interval,
                Duration::from_secs(9),
                "once it is there the revision is in force again"
            );
        }

        // With control back, its next revision heals the node.
        let control = Control::start(address, &dir.path().join("journal")).await;
        let mut node = Node::start(dir.path(), control.address).await;
        node.until("caught up", |s| s.caught_up).await;
        control.append(Change::FleetFile {
            text: fleet_text(control.address, "report_interval = \"11s\""),
        });
        let mut fleet = node.context.fleet.clone();
        let healed = tokio::time::timeout(
            SOON,
            fleet.wait_for(|f| f.report_interval == Duration::from_secs(11)),
        )
        .await;
        healed
            .unwrap_or_else(|_| panic!("{what}: not healed in time"))
            .expect("the follower runs");
    }
}

#[tokio::test]
async fn a_role_that_cannot_start_waits_for_a_revision_with_which_it_can() {
    let failure = || Failure::new(FailureKind::NoInput, "it is not there");
    let make = move |fleet: &Arc<Fleet>| {
        if fleet.report_interval == Duration::from_secs(7) {
            Ok(7)
        } else {
            Err(failure())
        }
    };
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    let node = Node::start(dir.path(), control.address).await;
    let waiting = tokio::spawn(start_from(
        node.context.fleet.clone(),
        node.context.shutdown.clone(),
        make,
    ));
    for seconds in [8, 7] {
        control.append(Change::FleetFile {
            text: fleet_text(
                control.address,
                &format!("report_interval = \"{seconds}s\""),
            ),
        });
    }
    let made = tokio::time::timeout(SOON, waiting)
        .await
        .expect("in time")
        .expect("no panic");
    assert_eq!(made.expect("it starts"), 7);
    // Without control, the fleet file cannot be corrected while the node runs.
    let alone = Fleet {
        control: None,
        ..Fleet::clone(&node.context.fleet.borrow())
    };
    let alone = Fleet {
        report_interval: Duration::from_secs(3),
        ..alone
    };
    let (_alone, fleet) = watch::channel(Arc::new(alone));
    assert_eq!(
        start_from(fleet, node.context.shutdown.clone(), make)
            .await
            .expect_err("at once")
            .kind,
        FailureKind::NoInput
    );
}

#[tokio::test]
async fn a_revision_has_the_second_in_which_control_accepted_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    // Its clock stands still: each revision has a second of its own all the same.
    for _ in 0..3 {
        control.append(Change::FleetFile {
            text: fleet_text(control.address, ""),
        });
        control.append(purge("a"));
    }
    let accepted: Vec<u64> = control
        .journal
        .lock()
        .after(0, 9)
        .iter()
        .map(|e| e.accepted_unix_ms)
        .collect();
    assert_eq!(accepted, [1, 1, 1_000, 1, 2_000, 1]);
    let mut node = Node::start(dir.path(), control.address).await;
    node.until("caught up", |s| s.caught_up).await;
    assert_eq!(node.context.fleet.borrow().changed_unix_s, 2);
    node.stop().await;
    let address = control.stop().await;
    let node = Node::start(dir.path(), address).await;
    assert_eq!(
        node.context.fleet.borrow().changed_unix_s,
        2,
        "at the next start, too"
    );
    let reopened = Journal::open(&dir.path().join("journal"))
        .expect("opens")
        .append(
            Change::FleetFile {
                text: String::new(),
            },
            1,
        );
    assert_eq!(reopened.expect("appends").accepted_unix_ms, 3_000);
}

#[tokio::test]
async fn the_key_on_this_machine_counts_before_the_one_in_an_old_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(any_port(), &dir.path().join("journal")).await;
    control.append(Change::FleetFile {
        text: fleet_text(control.address, "report_interval = \"7s\"")
            .replace(KEY, "a key that was in force before"),
    });
    let mut node = Node::start(dir.path(), control.address).await;
    node.next().await;
    let state = node.until("caught up", |s| s.caught_up).await;
    assert_eq!(state.revision, 1);
    {
        let fleet = node.fleet_tx.borrow();
        assert_eq!(
            (fleet.report_interval, &fleet.node_key),
            (Duration::from_secs(7), &Secret(KEY.into()))
        );
    }
    node.stop().await;
    // Started again with that copy in its directory, it reaches control by its own key.
    let mut node = Node::start(dir.path(), control.address).await;
    assert_eq!(
        node.fleet_tx.borrow().report_interval,
        Duration::from_secs(7),
        "the copy's file is in force"
    );
    node.until("reachable", |s| s.control_reachable).await;
    assert_eq!(node.fleet_tx.borrow().node_key, Secret(KEY.into()));
}
