//! A circuit breaker for one origin, as a state machine without tasks.
//!
//! The breaker opens when connecting, or waiting for a first byte, has failed for several URLs
//! without a response in between: one slow URL alone never opens it. While it is open requests fail
//! at once, except for a probe at intervals. A probe is a client's request, which may take long for
//! reasons of its own (a long poll): it never delays the next probe.

use std::time::Duration;

use tokio::time::Instant;

use super::OriginError;

/// How many different URLs have to fail in a row. URLs that differ in the query alone count once.
const URLS_TO_OPEN: usize = 3;
/// Failures longer ago than this, and than four times the longest wait for a response, do not count.
const FAILURES_AGE_MAX: Duration = Duration::from_secs(300);
/// Time to the first probe. It doubles with each probe that fails, up to the maximum.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long after a probe was due a request with a body may become the probe. Such a request takes as
/// long as its client, and may be lost; but an origin that receives uploads only has to be probed.
const UPLOAD_PROBE_AFTER: Duration = Duration::from_secs(30);

/// Whether a request may go to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    Granted,
    /// Sent to find out whether the origin answers again.
    Probe,
    Refused {
        /// Time to the next probe.
        wait: Duration,
    },
}

/// What the outcome of a request shows about the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It answers, or at least accepts connections.
    Alive,
    /// It accepted no connection, or sent no first byte in time.
    Dead,
    /// Nothing.
    None,
}

impl Sign {
    pub(super) fn of(error: OriginError) -> Self {
        match error {
            OriginError::Dns
            | OriginError::Refused
            | OriginError::Unreachable
            | OriginError::ConnectTimeout
            | OriginError::Tls(_)
            | OriginError::FirstByteTimeout => Self::Dead,
            OriginError::NoSocket
            | OriginError::ConnectionLimit
            | OriginError::Unavailable { .. }
            | OriginError::Forbidden => Self::None,
            other if other.is_of_client() => Self::None,
            _ => Self::Alive,
        }
    }
}

/// A change of the breaker, for gauges and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Opened,
    Closed,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open {
        /// Time of the next probe.
        until: Instant,
        pause: Duration,
    },
    Probing {
        /// When the last probe began.
        since: Instant,
        /// Time from then to the next one.
        pause: Duration,
    },
}

impl State {
    /// Time of the next probe, and the pause before it; `None` while the breaker is closed.
    fn next_probe(self) -> Option<(Instant, Duration)> {
        match self {
            Self::Closed => None,
            Self::Open { until, pause } => Some((until, pause)),
            Self::Probing { since, pause } => Some((since + pause, pause)),
        }
    }
}

/// The breaker of one origin.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// URLs, without their queries, that have failed since the last response, and when they did.
    failed: Vec<(u64, Instant)>,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            failed: Vec::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed)
    }

    /// Whether the next request would be a probe.
    pub(super) fn is_probe_due(&self, now: Instant) -> bool {
        self.state.next_probe().is_some_and(|(at, _)| at <= now)
    }

    pub(super) fn ask(&mut self, has_body: bool, now: Instant) -> Permission {
        let Some((at, pause)) = self.state.next_probe() else {
            return Permission::Granted;
        };
        if now < at || has_body && now < at + UPLOAD_PROBE_AFTER {
            return Permission::Refused {
                wait: at.saturating_duration_since(now),
            };
        }
        // Probes that do not end become rarer, like probes that fail.
        let is_second = matches!(self.state, State::Probing { .. });
        let pause = if is_second {
            (pause * 2).min(PAUSE_MAX)
        } else {
            pause
        };
        self.state = State::Probing { since: now, pause };
        Permission::Probe
    }

    /// Notes the end of a request for a URL. `patience` is the longest time that a request may wait
    /// for a response.
    pub(super) fn end(
        &mut self,
        is_probe: bool,
        sign: Sign,
        url: u64,
        patience: Duration,
        now: Instant,
    ) -> Option<Change> {
        match (self.state, sign) {
            (State::Closed, Sign::Dead) => {
                let age_max = FAILURES_AGE_MAX.max(patience * 4);
                self.failed
                    .retain(|(other, at)| *other != url && now - *at <= age_max);
                self.failed.push((url, now));
                if self.failed.len() < URLS_TO_OPEN {
                    return None;
                }
                self.failed.clear();
                self.state = State::Open {
                    until: now + PAUSE_MIN,
                    pause: PAUSE_MIN,
                };
                Some(Change::Opened)
            }
            (State::Closed, Sign::Alive) => {
                self.failed.clear();
                None
            }
            // A request that was sent before the breaker opened closes it as well.
            (_, Sign::Alive) => {
                self.state = State::Closed;
                Some(Change::Closed)
            }
            (State::Probing { pause, .. }, sign) if is_probe => {
                let pause = if sign == Sign::Dead {
                    (pause * 2).min(PAUSE_MAX)
                } else {
                    pause
                };
                self.state = State::Open {
                    until: now + pause,
                    pause,
                };
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Sign::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_opens_for_several_urls_in_a_row_and_for_nothing_less() {
        let start = Instant::now();
        // Each: seconds after the start, the URL, what it says; whether it is open after all of
        // them.
        type Signs = &'static [(u64, u64, Sign)];
        let table: [(Signs, bool); 7] = [
            (&[(0, 1, Dead), (1, 2, Dead), (2, 3, Dead)], true),
            (&[(0, 1, Dead), (60, 2, Dead), (120, 3, Dead)], true),
            (
                &[
                    (0, 1, Dead),
                    (1, 1, Dead),
                    (2, 1, Dead),
                    (3, 2, Dead),
                    (4, 1, Dead),
                    (5, 2, Dead),
                ],
                false,
            ),
            (
                &[
                    (0, 1, Dead),
                    (1, 2, Dead),
                    (2, 9, Alive),
                    (3, 3, Dead),
                    (4, 4, Dead),
                ],
                false,
            ),
            (
                &[(0, 1, Dead), (1, 2, Dead), (2, 9, None), (3, 3, Dead)],
                true,
            ),
            (&[(0, 1, Dead), (301, 2, Dead), (302, 3, Dead)], false),
            (
                &[(0, 1, None), (1, 2, None), (2, 3, None), (3, 4, None)],
                false,
            ),
        ];
        for (signs, is_open) in table {
            let mut breaker = Breaker::new();
            for (at, url, sign) in signs {
                assert_eq!(breaker.ask(false, start + secs(*at)), Permission::Granted);
                breaker.end(false, *sign, *url, PATIENCE, start + secs(*at));
            }
            assert_eq!(breaker.is_open(), is_open, "{signs:?}");
        }
        let (mut breaker, patience) = (Breaker::new(), secs(600));
        for url in 0..3 {
            breaker.end(false, Dead, url, patience, start + patience * url as u32);
        }
        assert!(
            breaker.is_open(),
            "failures that take long are remembered longer"
        );
    }

    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        let changes: Vec<_> = (0..3)
            .map(|url| breaker.end(false, Dead, url, PATIENCE, now))
            .collect();
        assert_eq!(changes, [Option::None, Option::None, Some(Change::Opened)]);
        breaker
    }

    #[test]
    fn probes_go_through_one_at_a_time_and_ever_more_rarely() {
        let mut now = Instant::now();
        let mut breaker = open(now);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            let almost = now + secs(pause) - Duration::from_millis(1);
            assert_eq!(
                breaker.ask(false, almost),
                Permission::Refused {
                    wait: Duration::from_millis(1)
                }
            );
            assert!(!breaker.is_probe_due(almost) && breaker.is_probe_due(now + secs(pause)));
            now += secs(pause);
            assert_eq!(breaker.ask(false, now), Permission::Probe);
            assert_eq!(
                breaker.ask(false, now),
                Permission::Refused { wait: secs(pause) },
                "one at a time"
            );
            // Of a request that was sent before it opened.
            assert_eq!(breaker.end(false, Dead, 7, PATIENCE, now), Option::None);
            assert!(breaker.is_open() && !breaker.is_probe_due(almost + secs(pause)));
            assert_eq!(
                breaker.end(true, Dead, 8, PATIENCE, now),
                Option::None,
                "the change is reported once"
            );
        }
        now += secs(30);
        assert_eq!(breaker.ask(false, now), Permission::Probe);
        assert_eq!(
            breaker.end(true, None, 8, PATIENCE, now),
            Option::None,
            "a probe that was given up"
        );
        assert_eq!(breaker.ask(false, now + secs(30)), Permission::Probe);
        assert_eq!(
            breaker.end(true, Alive, 8, PATIENCE, now),
            Some(Change::Closed)
        );
        assert_eq!(
            (breaker.ask(false, now), breaker.ask(true, now)),
            (Permission::Granted, Permission::Granted)
        );
    }

    #[test]
    fn a_probe_that_does_not_end_makes_way_for_the_next() {
        let mut now = Instant::now();
        let mut breaker = open(now);
        now += secs(1);
        assert_eq!(breaker.ask(false, now), Permission::Probe);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(
                breaker.ask(false, now),
                Permission::Refused { wait: secs(pause) }
            );
            now += secs(pause);
            assert!(breaker.is_probe_due(now));
            assert_eq!(breaker.ask(false, now), Permission::Probe);
        }
        assert_eq!(
            breaker.end(true, Alive, 1, PATIENCE, now),
            Some(Change::Closed),
            "whichever of them is answered"
        );
        assert_eq!(
            breaker.end(true, None, 2, PATIENCE, now),
            Option::None,
            "the others say nothing then"
        );
        assert!(!breaker.is_open());
    }

    #[test]
    fn an_upload_is_a_probe_only_where_nothing_else_comes() {
        let now = Instant::now();
        let mut breaker = open(now);
        for after in [0, 1, 2, 30] {
            assert!(
                matches!(
                    breaker.ask(true, now + secs(after)),
                    Permission::Refused { .. }
                ),
                "after {after} s"
            );
        }
        assert_eq!(
            breaker.ask(false, now + secs(30)),
            Permission::Probe,
            "it has used up no probe"
        );
        // Nothing but uploads from here on.
        assert!(matches!(
            breaker.ask(true, now + secs(60)),
            Permission::Refused { .. }
        ));
        assert_eq!(breaker.ask(true, now + secs(61)), Permission::Probe);
        assert_eq!(
            breaker.end(true, Alive, 1, PATIENCE, now + secs(62)),
            Some(Change::Closed)
        );
    }

    #[test]
    fn a_late_response_closes_it() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert_eq!(
            breaker.end(false, Alive, 9, PATIENCE, now),
            Some(Change::Closed)
        );
        assert!(!breaker.is_open());
    }

    #[test]
    fn only_connecting_and_the_first_byte_say_that_an_origin_is_dead() {
        for (error, sign) in [
            (OriginError::Refused, Dead),
            (OriginError::Dns, Dead),
            (OriginError::ConnectTimeout, Dead),
            (OriginError::FirstByteTimeout, Dead),
            (OriginError::Terminated, Alive),
            (OriginError::Protocol, Alive),
            (OriginError::ConnectionLimit, None),
            (OriginError::NoSocket, None),
            (OriginError::RequestPause, None),
        ] {
            assert_eq!(Sign::of(error), sign, "{error}");
        }
    }
}
