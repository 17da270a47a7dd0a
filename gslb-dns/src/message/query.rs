//! The bounded parser of queries: header, question and the frames of the records behind it. It
//! allocates nothing and reads each byte at most once.

use super::HEADER_BYTES;
use super::edns::Edns;
use super::name::{QName, skip_name};
use super::registry::{flag, rtype};
use super::tsig::TsigAt;

/// Longest message that is read as a query. A longer one holds nothing that is served here: it is
/// read up to this length and is a format error.
pub const QUERY_BYTES_MAX: usize = 4095;

/// A query, as much of it as could be parsed.
#[derive(Debug, Clone)]
pub struct Query<'m> {
    /// Its bytes.
    pub message: &'m [u8],
    /// Message ID.
    pub id: u16,
    /// The flags word as sent.
    pub flags: u16,
    /// Number of questions in the header.
    pub question_count: u16,
    /// The question, when there is exactly one and it is well formed.
    pub question: Option<Question>,
    /// The first OPT record, when there is one.
    pub edns: Option<Edns>,
    /// The TSIG record that ends the message.
    pub tsig: Option<TsigAt>,
    /// Whether the message breaks a rule of the format.
    pub is_malformed: bool,
}

/// A well-formed question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Name in lower case.
    pub qname: QName,
    /// Type.
    pub qtype: u16,
    /// Class.
    pub qclass: u16,
    /// End of the question in the query: bytes 12 to this are sent back unchanged.
    pub end: usize,
}

impl<'m> Query<'m> {
    /// The operation code.
    pub fn opcode(&self) -> u16 {
        (self.flags & flag::OPCODE) >> 11
    }

    /// Parses a message, of which the first [`QUERY_BYTES_MAX`] bytes and one more suffice. `None`
    /// for a message that must not be answered: shorter than a header, or a response.
    pub fn parse(message: &'m [u8]) -> Option<Self> {
        let header = message.get(..HEADER_BYTES)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let mut query = Self {
            message,
            id: word(0),
            flags: word(2),
            question_count: word(4),
            question: None,
            edns: None,
            tsig: None,
            is_malformed: false,
        };
        if query.flags & flag::QR != 0 {
            return None;
        }
        query.is_malformed = query.parse_body([word(6), word(8), word(10)]).is_none()
            || message.len() > QUERY_BYTES_MAX;
        Some(query)
    }

    /// Reads the sections; `None` at the first fault.
    fn parse_body(&mut self, counts: [u16; 3]) -> Option<()> {
        let message = self.message;
        let mut at = HEADER_BYTES;
        match self.question_count {
            0 => {}
            1 => {
                let question = Question::parse(message)?;
                at = question.end;
                self.question = Some(question);
            }
            // RFC 9619: a query has at most one question.
            _ => return None,
        }

        let mut faults = 0;
        for (section, &count) in counts.iter().enumerate() {
            for index in 0..count {
                let record = RecordHead::parse(message, at)?;
                let start = std::mem::replace(&mut at, record.end);
                match record.rtype {
                    rtype::OPT => {
                        // RFC 6891 section 6.1.1: one OPT, in the additional section, owned by the
                        // root.
                        if section != 2 || self.edns.is_some() || !record.is_root_owned {
                            faults += 1;
                            continue;
                        }
                        let mut edns = Edns {
                            udp_bytes: record.class,
                            version: (record.ttl >> 16) as u8,
                            dnssec_ok: record.ttl & 0x8000 != 0,
                            ..Edns::default()
                        };
                        // Options of an unknown EDNS version are not read.
                        let understood = edns.version != 0
                            || edns
                                .parse_options(&message[record.data_at..record.end])
                                .is_some();
                        faults += usize::from(!understood);
                        self.edns = Some(edns);
                    }
                    rtype::TSIG => {
                        // RFC 8945 section 5.1: the last record of the additional section.
                        let place = TsigAt {
                            start: start as u16,
                            data: record.data_at as u16,
                            end: record.end as u16,
                        };
                        if section != 2 || index + 1 != count {
                            faults += 1;
                        }
                        self.tsig = Some(place);
                    }
                    _ => {}
                }
            }
        }

        (faults == 0 && at == message.len()).then_some(())
    }
}

impl Question {
    /// Reads the only question, right after the header.
    fn parse(message: &[u8]) -> Option<Self> {
        let (qname, at) = QName::read_first(message)?;
        let fixed = message.get(at..at + 4)?;
        Some(Self {
            qname,
            qtype: u16::from_be_bytes([fixed[0], fixed[1]]),
            qclass: u16::from_be_bytes([fixed[2], fixed[3]]),
            end: at + 4,
        })
    }
}

/// The frame of a record.
struct RecordHead {
    rtype: u16,
    class: u16,
    ttl: u32,
    data_at: usize,
    end: usize,
    is_root_owned: bool,
}

impl RecordHead {
    fn parse(message: &[u8], start: usize) -> Option<Self> {
        let at = skip_name(message, start)?;
        let f = message.get(at..at + 10)?;
        let data_at = at + 10;
        let end = data_at + usize::from(u16::from_be_bytes([f[8], f[9]]));
        if end > message.len() {
            return None;
        }
        Some(Self {
            rtype: u16::from_be_bytes([f[0], f[1]]),
            class: u16::from_be_bytes([f[2], f[3]]),
            ttl: u32::from_be_bytes([f[4], f[5], f[6], f[7]]),
            data_at,
            end,
            is_root_owned: message[start] == 0,
        })
    }
}
