use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn rules() -> HealthCheck {
    HealthCheck {
        path: "/.nearcast/health".into(),
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(10),
        timeout_min: Duration::from_millis(250),
        fall: 2,
        rise: 2,
        jitter: 0.1,
    }
}

/// How a connection is dealt with: how many requests it answers, after what delay, with what.
#[derive(Clone, Copy)]
struct Manner {
    answers: usize,
    delay: Duration,
    bytes: &'static [u8],
}

const LASTING: Manner = Manner {
    answers: usize::MAX,
    delay: Duration::ZERO,
    bytes: OK,
};

async fn serve(mut stream: TcpStream, manner: Manner) {
    let mut head = [0; 1024];
    for _ in 0..manner.answers {
        let n = stream.read(&mut head).await.unwrap_or(0);
        if n == 0 {
            return;
        }
        assert!(head[..n].starts_with(b"GET /.nearcast/health HTTP/1.1\r\n"));
        tokio::time::sleep(manner.delay).await;
        let _ = stream.write_all(manner.bytes).await;
    }
}

/// A server that deals with each connection in that manner, but accepts no more than
/// `accepted_max`, and counts them.
async fn server(manner: Manner, accepted_max: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while count.load(Ordering::Relaxed) < accepted_max {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, manner));
        }
        // The listener stays open: the system completes connections that nobody accepts.
        std::future::pending::<()>().await;
        drop(listener);
    });
    (address, accepted)
}

async fn once(manner: Manner) -> CheckOutcome {
    Checker::new(server(manner, usize::MAX).await.0, rules())
        .check()
        .await
}

#[tokio::test]
async fn the_status_decides() {
    let passed = once(LASTING).await;
    assert!(
        matches!(passed, CheckOutcome::Passed(us) if us > 0),
        "{passed:?}"
    );
    let table: [(&'static [u8], CheckOutcome); 5] = [
        (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            CheckOutcome::Refusing("status 503".into()),
        ),
        (
            b"HTTP/1.1 503 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            CheckOutcome::Refusing("status 503".into()),
        ),
        (
            b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
            CheckOutcome::Failed("status 500".into()),
        ),
        (
            b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            CheckOutcome::Failed("status 302".into()),
        ),
        (b"", CheckOutcome::Failed("closed without an answer".into())),
    ];
    for (bytes, expected) in table {
        assert_eq!(
            once(Manner {
                answers: 1,
                bytes,
                ..LASTING
            })
            .await,
            expected
        );
    }
    let CheckOutcome::Failed(reason) = once(Manner {
        bytes: b"SSH-2.0-x\r\n",
        ..LASTING
    })
    .await
    else {
        panic!()
    };
    assert!(reason.starts_with("not an HTTP answer"), "{reason}");
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    assert_eq!(
        Checker::new(gone, rules()).check().await,
        CheckOutcome::Failed("connection refused".into())
    );
    // No packet ever goes there from a socket like ours.
    assert_eq!(
        Checker::new("255.255.255.255:80".parse().unwrap(), rules())
            .check()
            .await,
        CheckOutcome::NoRoute
    );
}

#[tokio::test]
async fn a_silent_server_fails_after_the_time_out() {
    let (address, _) = server(LASTING, 0).await;
    let quick = HealthCheck {
        timeout: Duration::from_millis(30),
        ..rules()
    };
    assert_eq!(
        Checker::new(address, quick).check().await,
        CheckOutcome::Failed("no answer within 30 ms".into())
    );
}

async fn passes(checker: &mut Checker, count: usize) {
    for i in 0..count {
        let outcome = checker.check().await;
        assert!(
            matches!(outcome, CheckOutcome::Passed(_)),
            "check {i}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn every_tenth_check_is_on_a_new_connection() {
    let (address, accepted) = server(LASTING, usize::MAX).await;
    let mut checker = Checker::new(address, rules());
    for (checks, connections) in [(10, 1), (1, 2), (9, 2), (1, 3)] {
        passes(&mut checker, checks).await;
        assert_eq!(accepted.load(Ordering::Relaxed), connections);
    }
}

#[tokio::test]
async fn a_listener_that_accepts_nothing_more_fails_while_its_old_connection_answers() {
    let (address, _) = server(LASTING, 1).await;
    let mut checker = Checker::new(
        address,
        HealthCheck {
            timeout: Duration::from_millis(500),
            ..rules()
        },
    );
    passes(&mut checker, 10).await;
    for _ in 0..2 {
        let outcome = checker.check().await;
        assert!(
            matches!(&outcome, CheckOutcome::Failed(reason) if reason.starts_with("no answer within")),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_no_failure() {
    for answers in [1, 2, 3] {
        let (address, accepted) = server(Manner { answers, ..LASTING }, usize::MAX).await;
        let mut checker = Checker::new(address, rules());
        passes(&mut checker, 12).await;
        assert_eq!(
            accepted.load(Ordering::Relaxed),
            12 / answers,
            "{answers} answers a connection"
        );
    }
    let saying: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let (address, accepted) = server(
        Manner {
            answers: 1,
            bytes: saying,
            ..LASTING
        },
        usize::MAX,
    )
    .await;
    passes(&mut Checker::new(address, rules()), 3).await;
    assert_eq!(accepted.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_long_body_is_not_read() {
    let body: &'static [u8] = Box::leak(
        [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"[..],
            &[b'x'; 1_000_000],
        ]
        .concat()
        .into(),
    );
    let (address, accepted) = server(
        Manner {
            bytes: body,
            ..LASTING
        },
        usize::MAX,
    )
    .await;
    passes(&mut Checker::new(address, rules()), 3).await;
    assert_eq!(
        accepted.load(Ordering::Relaxed),
        3,
        "such a connection is not kept"
    );
    let head: &'static [u8] = Box::leak(
        [&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'x'; 1_000_000]]
            .concat()
            .into(),
    );
    let outcome = once(Manner {
        bytes: head,
        ..LASTING
    })
    .await;
    assert!(
        matches!(outcome, CheckOutcome::Failed(_)),
        "nor a head: {outcome:?}"
    );
}

#[tokio::test]
async fn a_far_edge_passes_from_its_first_check_on() {
    let far = Manner {
        delay: Duration::from_millis(460),
        ..LASTING
    };
    let (address, _) = server(far, usize::MAX).await;
    let mut checker = Checker::new(address, rules());
    passes(&mut checker, 3).await;
    let limit = checker.limit(&[checker.answering]);
    assert!(limit >= Duration::from_millis(460 * 3 / 2), "{limit:?}");
}

#[tokio::test]
async fn a_kept_connection_that_closes_brings_the_next_check_forward() {
    let (address, _) = server(
        Manner {
            answers: 2,
            ..LASTING
        },
        usize::MAX,
    )
    .await;
    let mut checker = Checker::new(
        address,
        HealthCheck {
            interval: Duration::from_secs(300),
            ..rules()
        },
    );
    passes(&mut checker, 2).await;
    // Begun so long ago that the least pause has passed and the interval has not.
    let begun = Instant::now() - Duration::from_secs(60);
    let rested = tokio::time::timeout(
        Duration::from_secs(30),
        checker.rest(begun, &mut Random::new(1)),
    )
    .await;
    assert!(rested.is_ok(), "it waited for the interval");
}

#[tokio::test]
async fn the_check_after_a_failure_comes_soon_until_the_endpoint_is_down() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut checker = Checker::new(gone, HealthCheck { fall: 3, ..rules() });
    for failing in [true, true, false, false] {
        assert!(matches!(checker.check().await, CheckOutcome::Failed(_)));
        assert_eq!(checker.is_failing(), failing);
    }
}

#[test]
fn the_time_to_wait_is_learned_within_its_bounds() {
    let mut checker = Checker::new(
        "192.0.2.1:80".parse().unwrap(),
        HealthCheck {
            timeout: Duration::from_secs(2),
            ..rules()
        },
    );
    let kept = |checker: &Checker| checker.limit(&[checker.answering]).as_millis();
    let new = |checker: &Checker| {
        checker
            .limit(&[checker.connecting, checker.answering])
            .as_millis()
    };
    assert_eq!(
        (kept(&checker), new(&checker)),
        (2_000, 2_000),
        "nothing is known"
    );
    for _ in 0..50 {
        checker
            .connecting
            .observe(Duration::from_millis(1), checker.rules.timeout_min);
        checker
            .answering
            .observe(Duration::from_millis(2), checker.rules.timeout_min);
    }
    assert_eq!((kept(&checker), new(&checker)), (250, 250), "near");
    for _ in 0..100 {
        checker
            .connecting
            .observe(Duration::from_millis(460), checker.rules.timeout_min);
        checker
            .answering
            .observe(Duration::from_millis(460), checker.rules.timeout_min);
    }
    assert!(
        (689..=691).contains(&kept(&checker)),
        "far: {}",
        kept(&checker)
    );
    assert!(
        (1_378..=1_382).contains(&new(&checker)),
        "a new connection costs two round trips: {}",
        new(&checker)
    );
    checker.failures = 1;
    assert!(kept(&checker) <= 691, "a first failure changes nothing");
    checker.failures = 2;
    assert_eq!(
        new(&checker),
        2_000,
        "an endpoint that is down gets all the time there is"
    );
    checker.failures = 0;
    for spread in [300, 600, 300, 600, 300, 600] {
        checker
            .answering
            .observe(Duration::from_millis(spread), checker.rules.timeout_min);
    }
    assert!(
        (800..1_500).contains(&kept(&checker)),
        "times that vary: {}",
        kept(&checker)
    );
    checker.rules.timeout = Duration::from_millis(100);
    assert_eq!(kept(&checker), 100, "never more than the longest");
}

#[test]
fn an_edge_that_stood_still_once_is_waited_for_no_longer() {
    let least = Duration::from_millis(250);
    let ms = Duration::from_millis;
    let near = || {
        let mut near = RoundTrip::default();
        (0..50).for_each(|_| near.observe(ms(1), least));
        near
    };
    let mut stood_still = near();
    for _ in 0..20 {
        stood_still.observe(ms(1_700), least);
        assert_eq!(
            stood_still.limit(),
            None,
            "the next check has all the time, as the way may have become longer"
        );
        (0..2).for_each(|_| stood_still.observe(ms(1), least));
        assert!(
            stood_still.limit().is_some_and(|limit| limit < least),
            "{stood_still:?}"
        );
    }
    let mut moved_away = near();
    moved_away.observe(ms(480), least);
    moved_away.observe(ms(460), least);
    assert!(
        moved_away.limit().is_some_and(|limit| limit > ms(690)),
        "{moved_away:?}"
    );
}
