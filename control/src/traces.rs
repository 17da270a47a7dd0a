//! Questions about single requests: control has no address of an edge's own, so edges ask for the
//! questions by long poll, and send their answers.
//!
//! Everything is in memory and bounded: a question lives as long as the request that asks it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nearcast_fleet::trace::{RECORDS_MAX, TraceQuestion, TraceQuestions, TraceRecord};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Questions that may wait for answers at a time.
pub(crate) const QUESTIONS_MAX: usize = 64;
/// Time for all edges to answer. An edge that has not answered by then is named as silent.
pub(crate) const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// Longest wait of an edge's poll for questions.
pub(crate) const POLL_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long after its poll an edge counts as connected: the next one is on its way.
const RETURN_TIME_MAX: Duration = Duration::from_secs(5);

/// The questions and the edges that answer them.
#[derive(Debug)]
pub(crate) struct Traces {
    inner: Mutex<Inner>,
    /// Number of the newest question.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Questions that wait, by their numbers.
    waiting: BTreeMap<u64, Waiting>,
    /// Edges by name, with when each stops to count as connected.
    connected: BTreeMap<String, Instant>,
}

#[derive(Debug)]
struct Waiting {
    id: String,
    /// Edges that have not answered yet.
    missing: BTreeSet<String>,
    answered: BTreeSet<String>,
    records: Vec<TraceRecord>,
    complete: std::sync::Arc<Notify>,
}

/// What the edges know of a request.
#[derive(Debug, PartialEq)]
pub(crate) struct Trace {
    /// In the order of time.
    pub(crate) records: Vec<TraceRecord>,
    /// Edges that have answered.
    pub(crate) answered: Vec<String>,
    /// Edges of the fleet that have not.
    pub(crate) silent: Vec<String>,
}

/// Too many questions wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Traces {
    /// No questions. Numbers begin after `now_unix_ms`, so that they rise over restarts.
    pub(crate) fn new(now_unix_ms: u64) -> Self {
        Self {
            inner: Mutex::default(),
            newest: watch::channel(now_unix_ms).0,
        }
    }

    /// Asks all connected edges for a request, and waits until all have answered or the time is
    /// over. `edges` are those of the fleet.
    pub(crate) async fn ask(&self, id: &str, edges: &BTreeSet<String>) -> Result<Trace, TooMany> {
        let complete = std::sync::Arc::new(Notify::new());
        let asked = self.begin(id, edges, complete.clone())?;
        if !asked.is_answered() {
            // A permit is kept, so that an answer before this line is not missed.
            let _ = tokio::time::timeout(ANSWER_TIME_MAX, complete.notified()).await;
        }
        Ok(asked.end(edges))
    }

    fn begin(
        &self,
        id: &str,
        edges: &BTreeSet<String>,
        complete: std::sync::Arc<Notify>,
    ) -> Result<Asked<'_>, TooMany> {
        let mut inner = self.inner.lock();
        if inner.waiting.len() >= QUESTIONS_MAX {
            return Err(TooMany);
        }
        let now = Instant::now();
        inner
            .connected
            .retain(|name, until| *until > now && edges.contains(name));
        let waiting = Waiting {
            id: id.to_owned(),
            missing: inner.connected.keys().cloned().collect(),
            answered: BTreeSet::new(),
            records: Vec::new(),
            complete,
        };
        let number = *self.newest.borrow() + 1;
        inner.waiting.insert(number, waiting);
        self.newest.send_replace(number);
        Ok(Asked {
            traces: self,
            number,
        })
    }

    /// The questions after a number, for one edge; waits for the next one if there is none.
    pub(crate) async fn poll(&self, edge: &str, after: u64, wait: Duration) -> TraceQuestions {
        let wait = wait.min(POLL_WAIT_MAX);
        self.inner
            .lock()
            .connected
            .insert(edge.to_owned(), Instant::now() + wait + RETURN_TIME_MAX);
        let mut newest = self.newest.subscribe();
        // A number of another control process is beyond all of this one's.
        let _ = tokio::time::timeout(wait, newest.wait_for(|newest| *newest != after)).await;
        let inner = self.inner.lock();
        TraceQuestions {
            newest: *self.newest.borrow(),
            questions: inner
                .waiting
                .iter()
                .filter(|(number, waiting)| **number > after && !waiting.answered.contains(edge))
                .map(|(number, waiting)| TraceQuestion {
                    number: *number,
                    id: waiting.id.clone(),
                })
                .collect(),
        }
    }

    /// Takes an edge's answer; `false` where nobody waits for it any more, or it came before.
    pub(crate) fn answer(&self, edge: &str, number: u64, records: Vec<TraceRecord>) -> bool {
        let mut inner = self.inner.lock();
        let Some(waiting) = inner.waiting.get_mut(&number) else {
            return false;
        };
        if !waiting.answered.insert(edge.to_owned()) {
            return false;
        }
        waiting.missing.remove(edge);
        waiting
            .records
            .extend(records.into_iter().take(RECORDS_MAX));
        if waiting.missing.is_empty() {
            waiting.complete.notify_one();
        }
        true
    }
}

/// One question that waits; it ends when this is dropped, also when its client leaves.
struct Asked<'a> {
    traces: &'a Traces,
    number: u64,
}

impl Asked<'_> {
    fn is_answered(&self) -> bool {
        let inner = self.traces.inner.lock();
        inner
            .waiting
            .get(&self.number)
            .is_none_or(|waiting| waiting.missing.is_empty())
    }

    fn end(self, edges: &BTreeSet<String>) -> Trace {
        let taken = self.traces.inner.lock().waiting.remove(&self.number);
        let (mut records, answered) =
            taken.map_or_else(Default::default, |w| (w.records, w.answered));
        records.sort_by_key(|record| record.time_unix_ms);
        Trace {
            records,
            silent: edges.difference(&answered).cloned().collect(),
            answered: answered.into_iter().collect(),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.traces.inner.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn edges() -> BTreeSet<String> {
        ["ams-1", "nyc-1", "sin-1"].map(str::to_owned).into()
    }

    fn record(node: &str, time_unix_ms: u64) -> TraceRecord {
        TraceRecord {
            node: node.to_owned(),
            time_unix_ms,
            ..TraceRecord::default()
        }
    }

    /// An edge that polls and answers for ever.
    fn start_edge(traces: &Arc<Traces>, name: &'static str, knows: &'static str) {
        let traces = traces.clone();
        tokio::spawn(async move {
            let mut after = 0;
            loop {
                let asked = traces.poll(name, after, POLL_WAIT_MAX).await;
                after = asked.newest;
                for question in asked.questions {
                    let known = (question.id == knows).then(|| record(name, 7));
                    traces.answer(name, question.number, known.into_iter().collect());
                }
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn all_connected_edges_are_asked_and_the_others_are_silent() {
        let traces = Arc::new(Traces::new(1000));
        start_edge(&traces, "ams-1", "x");
        start_edge(&traces, "nyc-1", "y");
        tokio::task::yield_now().await;
        let began = Instant::now();
        for (id, nodes) in [("x", vec!["ams-1"]), ("y", vec!["nyc-1"]), ("z", vec![])] {
            let trace = traces.ask(id, &edges()).await.expect("few questions");
            let found: Vec<_> = trace.records.iter().map(|r| r.node.as_str()).collect();
            assert_eq!(found, nodes);
            assert_eq!(trace.answered, ["ams-1", "nyc-1"]);
            assert_eq!(trace.silent, ["sin-1"]);
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody is waited for");
        assert!(traces.inner.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_edge_that_does_not_answer_delays_for_a_bounded_time() {
        let traces = Arc::new(Traces::new(1000));
        start_edge(&traces, "ams-1", "x");
        tokio::task::yield_now().await;
        // It polls once and is gone.
        traces.poll("nyc-1", 1000, Duration::ZERO).await;
        let began = Instant::now();
        let trace = traces.ask("x", &edges()).await.expect("few questions");
        assert_eq!(began.elapsed(), ANSWER_TIME_MAX);
        assert_eq!((trace.records.len(), trace.silent.len()), (1, 2));

        tokio::time::sleep(POLL_WAIT_MAX).await;
        let began = Instant::now();
        traces.ask("x", &edges()).await.expect("few questions");
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "it is not connected any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_bounded_and_end_with_their_clients() {
        let traces = Arc::new(Traces::new(1000));
        traces.poll("ams-1", 1000, Duration::ZERO).await;
        let asking: Vec<_> = (0..QUESTIONS_MAX)
            .map(|_| {
                let traces = traces.clone();
                tokio::spawn(async move { traces.ask("x", &edges()).await })
            })
            .collect();
        while traces.inner.lock().waiting.len() < QUESTIONS_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(traces.ask("x", &edges()).await, Err(TooMany));
        asking.iter().for_each(|asked| asked.abort());
        for asked in asking {
            assert!(asked.await.is_err());
        }
        assert!(traces.inner.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_count_once_are_cut_and_late_ones_are_dropped() {
        let traces = Arc::new(Traces::new(1000));
        traces.poll("ams-1", 1000, Duration::ZERO).await;
        let asking = {
            let traces = traces.clone();
            tokio::spawn(async move { traces.ask("x", &edges()).await })
        };
        let asked = traces.poll("nyc-1", 1000, POLL_WAIT_MAX).await;
        let number = asked.questions[0].number;
        let many: Vec<_> = (0..100).map(|at| record("nyc-1", 100 - at)).collect();
        assert!(traces.answer("nyc-1", number, many));
        assert!(!traces.answer("nyc-1", number, vec![record("nyc-1", 0)]));
        let again = traces.poll("nyc-1", 1000, Duration::ZERO).await;
        assert!(again.questions.is_empty(), "it has answered");
        let trace = asking.await.expect("no panic").expect("few questions");
        assert_eq!(trace.records.len(), RECORDS_MAX);
        assert!(trace.records.is_sorted_by_key(|r| r.time_unix_ms));
        assert!(
            !traces.answer("ams-1", number, Vec::new()),
            "it is too late"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_of_another_process_does_not_wait() {
        let traces = Traces::new(1000);
        let began = Instant::now();
        let asked = traces.poll("ams-1", 5000, POLL_WAIT_MAX).await;
        assert_eq!((asked.newest, began.elapsed()), (1000, Duration::ZERO));
    }
}
