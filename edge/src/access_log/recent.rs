//! The newest requests of one worker, by their ids.

use std::net::IpAddr;

use http::Version;
use nearcast_fleet::report::CacheStatus;
use nearcast_fleet::trace::{RECORDS_MAX, TraceRecord};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::status::ForwardReason;

use super::{Ending, Entry, protocol};
use crate::request_id::{RANDOM_BYTES, RequestId};

/// Requests that a worker keeps at least, whatever other workers keep: the 10,000 newest ones of a
/// node may all be one worker's.
const RECORDS_KEPT: usize = 10_000;
/// Bytes of text that are kept with [`RECORDS_KEPT`] requests; longer ones make them fewer.
const TEXT_BYTES_MAX: usize = 2 << 20;
/// Bytes that are kept of a path, and of a host.
const PATH_BYTES_MAX: usize = 1024;
const HOST_BYTES_MAX: usize = 255;
/// Bytes that are kept of a method.
const METHOD_BYTES_MAX: usize = 32;

/// Two generations of requests. The younger one fills; when it is full it becomes the older one,
/// and the older one is forgotten. So nothing moves, and the last [`RECORDS_KEPT`] are always there.
#[derive(Default)]
pub(super) struct Recent {
    younger: Generation,
    older: Generation,
}

#[derive(Default)]
struct Generation {
    records: Vec<Record>,
    /// Of each record its host, method and site, in this order, unless they are those of the record
    /// before; then its id, where that was given, and its path.
    text: Vec<u8>,
}

/// What is kept of a request beside its texts.
struct Record {
    /// Its id, if [`Self::id_bytes`] is 0.
    random: [u8; RANDOM_BYTES],
    /// Where its host begins, and where its id or path.
    host: u32,
    text: u32,
    id_bytes: u8,
    host_bytes: u8,
    method_bytes: u8,
    site_bytes: u8,
    path_bytes: u16,
    status: u16,
    version: Version,
    label: CacheStatus,
    forward: Option<ForwardReason>,
    not_stored: Option<NotStored>,
    ending: Ending,
    is_peer: bool,
    client: IpAddr,
    tls: Option<&'static str>,
    began_ms: u64,
    bytes: u64,
    first_byte_us: u64,
    total_us: u64,
    origin_us: Option<u64>,
}

impl Recent {
    pub(super) fn note(&mut self, entry: &Entry<'_>) {
        if self.younger.is_full() {
            std::mem::swap(&mut self.younger, &mut self.older);
            self.younger.records.clear();
            self.younger.text.clear();
        }
        self.younger.push(entry);
    }

    /// Adds the records of an id, newest first, up to the bound of an answer.
    pub(super) fn find(&self, id: &[u8], found: &mut Vec<TraceRecord>) {
        let Some(id) = RequestId::given(id) else {
            return;
        };
        for generation in [&self.younger, &self.older] {
            for record in generation.records.iter().rev() {
                if found.len() == RECORDS_MAX {
                    return;
                }
                if generation.has_id(record, &id) {
                    found.push(generation.show(record));
                }
            }
        }
    }
}

impl Generation {
    fn is_full(&self) -> bool {
        self.records.len() == RECORDS_KEPT || self.text.len() >= TEXT_BYTES_MAX
    }

    fn push(&mut self, entry: &Entry<'_>) {
        let host = cut(entry.host, HOST_BYTES_MAX);
        let method = cut(entry.method.as_bytes(), METHOD_BYTES_MAX);
        let site = cut(entry.site.as_bytes(), usize::from(u8::MAX));
        let path = cut(entry.path.as_bytes(), PATH_BYTES_MAX);
        let is_same = |last: &&Record| {
            let shared = self.shared_texts(last);
            shared[0] == host && shared[1] == method && shared[2] == site
        };
        let host_at = match self.records.last().filter(is_same) {
            Some(last) => last.host,
            None => {
                let begin = self.text.len() as u32;
                for part in [host, method, site] {
                    self.text.extend_from_slice(part);
                }
                begin
            }
        };
        let text = self.text.len() as u32;
        let (random, id_bytes) = match entry.id {
            RequestId::Random(bytes) => (*bytes, 0),
            RequestId::Given(id) => {
                self.text.extend_from_slice(id.as_bytes());
                ([0; RANDOM_BYTES], id.as_bytes().len() as u8)
            }
        };
        self.text.extend_from_slice(path);
        self.records.push(Record {
            random,
            host: host_at,
            text,
            id_bytes,
            host_bytes: host.len() as u8,
            method_bytes: method.len() as u8,
            site_bytes: site.len() as u8,
            path_bytes: path.len() as u16,
            status: entry.status,
            version: entry.version,
            label: entry.outcome.label,
            forward: entry.outcome.forward,
            not_stored: entry.outcome.not_stored,
            ending: entry.ending,
            is_peer: entry.is_peer,
            client: entry.client,
            tls: entry.tls,
            began_ms: entry.began_ms,
            bytes: entry.bytes,
            first_byte_us: entry.first_byte.as_micros() as u64,
            total_us: entry.total.as_micros() as u64,
            origin_us: entry.origin.map(|time| time.as_micros() as u64),
        });
    }

    fn has_id(&self, record: &Record, id: &RequestId) -> bool {
        match id {
            RequestId::Random(bytes) => record.id_bytes == 0 && record.random == *bytes,
            RequestId::Given(id) => {
                let begin = record.text as usize;
                self.text[begin..begin + usize::from(record.id_bytes)] == *id.as_bytes()
            }
        }
    }

    /// Host, method and site.
    fn shared_texts(&self, record: &Record) -> [&[u8]; 3] {
        let mut rest = &self.text[record.host as usize..];
        [record.host_bytes, record.method_bytes, record.site_bytes].map(|bytes| {
            let (part, more) = rest.split_at(bytes.into());
            rest = more;
            part
        })
    }

    fn path(&self, record: &Record) -> &[u8] {
        let begin = record.text as usize + usize::from(record.id_bytes);
        &self.text[begin..begin + usize::from(record.path_bytes)]
    }

    fn show(&self, record: &Record) -> TraceRecord {
        let word = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let [host, method, site] = self.shared_texts(record).map(word);
        let path = word(self.path(record));
        TraceRecord {
            time_unix_ms: record.began_ms,
            node: String::new(),
            cluster: String::new(),
            site,
            client: record.client.to_string(),
            host,
            method,
            path,
            status: record.status,
            bytes: record.bytes,
            cache: record.label.as_str().to_owned(),
            forward: record.forward.map(|reason| reason.as_str().to_owned()),
            not_stored: record.not_stored.map(|cause| cause.as_str().to_owned()),
            protocol: protocol(record.version).to_owned(),
            tls: record.tls.map(str::to_owned),
            first_byte_us: record.first_byte_us,
            total_us: record.total_us,
            origin_us: record.origin_us,
            ended: record.ending.word().map(str::to_owned),
            is_peer: record.is_peer,
        }
    }
}

fn cut(text: &[u8], most: usize) -> &[u8] {
    &text[..text.len().min(most)]
}

#[cfg(test)]
mod tests {
    use nearcast_http_rules::status::Outcome;

    use super::super::testing::entry;
    use super::*;
    use crate::request_id::RequestIds;

    fn found(recent: &Recent, id: &RequestId) -> Vec<TraceRecord> {
        let mut found = Vec::new();
        recent.find(id.text().as_bytes(), &mut found);
        found
    }

    #[test]
    fn the_last_ten_thousand_requests_are_found_and_memory_is_bounded() {
        let (mut recent, mut ids) = (Recent::default(), RequestIds::default());
        let outcome = Outcome::hit(5);
        let noted: Vec<RequestId> = (0..35_000)
            .map(|_| {
                let id = ids.next();
                recent.note(&entry(&id, &outcome));
                id
            })
            .collect();
        assert!(
            noted[25_000..]
                .iter()
                .step_by(97)
                .chain([&noted[25_000], &noted[34_999]])
                .all(|id| found(&recent, id).len() == 1)
        );
        assert!(found(&recent, &noted[0]).is_empty(), "it is forgotten");
        for generation in [&recent.younger, &recent.older] {
            assert!(generation.records.len() <= RECORDS_KEPT);
        }
    }

    #[test]
    fn long_requests_are_cut_and_bounded_by_bytes() {
        let (mut recent, mut ids) = (Recent::default(), RequestIds::default());
        let (path, host) = (format!("/{}", "x".repeat(60_000)), vec![0xff; 400]);
        let outcome = Outcome::hit(5);
        let mut last = ids.next();
        for _ in 0..10_000 {
            last = ids.next();
            recent.note(&Entry {
                path: &path,
                host: &host,
                ..entry(&last, &outcome)
            });
        }
        for generation in [&recent.younger, &recent.older] {
            assert!(generation.text.len() <= TEXT_BYTES_MAX + 2048);
        }
        let record = &found(&recent, &last)[0];
        assert_eq!(record.path.len(), PATH_BYTES_MAX);
        assert_eq!(record.site, "www", "what follows the cut text is whole");
    }

    #[test]
    fn an_id_that_several_requests_have_shows_all_newest_first_up_to_a_bound() {
        let mut recent = Recent::default();
        let id = RequestId::given(b"chosen").expect("a token");
        let outcome = Outcome::hit(5);
        for status in 100..100 + 2 * RECORDS_MAX as u16 {
            recent.note(&Entry {
                status,
                ..entry(&id, &outcome)
            });
        }
        let found = found(&recent, &id);
        assert_eq!(found.len(), RECORDS_MAX);
        assert_eq!(found[0].status, 99 + 2 * RECORDS_MAX as u16);
        let first = &found[0];
        assert_eq!(
            (&*first.client, &*first.host, &*first.path, &*first.cache),
            ("192.0.2.77", "www.example.org", "/a?b=c", "hit")
        );
        assert_eq!((first.total_us, first.origin_us), (17, None));
    }

    #[test]
    fn texts_that_records_share_are_kept_once_and_shown_by_each() {
        let (mut recent, mut ids) = (Recent::default(), RequestIds::default());
        let outcome = Outcome::hit(5);
        let requests: [(&[u8], &str, &str, &str); 7] = [
            (b"a.test", "GET", "www", "/1"),
            (b"a.test", "GET", "www", "/2"),
            (b"a.test", "HEAD", "www", "/3"),
            (b"a.testG", "ET", "www", "/4"),
            (b"", "", "", ""),
            (b"", "", "", "/5"),
            (b"a.test", "GET", "www", "/6"),
        ];
        let given = RequestId::given(b"chosen").expect("a token");
        let noted = requests.map(|(host, method, site, path)| {
            let id = ids.next();
            for id in [&id, &given] {
                recent.note(&Entry {
                    host,
                    method,
                    site,
                    path,
                    ..entry(id, &outcome)
                });
            }
            (id, host, method, site, path)
        });
        for (id, host, method, site, path) in noted {
            let [record] = &found(&recent, &id)[..] else {
                panic!("{path}: not found once");
            };
            let shown = (record.host.as_bytes(), &*record.method, &*record.site);
            assert_eq!(shown, (host, method, site));
            assert_eq!(record.path, path);
        }
        assert_eq!(found(&recent, &given).len(), requests.len());
        let shared = "a.testGETwww".len() * 2 + "a.testHEADwww".len() + "a.testGETwww".len();
        let own = 2 * "/1/2/3/4/5/6".len() + requests.len() * "chosen".len();
        assert_eq!(recent.younger.text.len(), shared + own);
    }
}
