//! Writes responses, with name compression (RFC 1035 section 4.1.4).

use super::edns::OptRecord;
use super::name::name_bytes;
use super::registry::{class, option, rtype};
use super::service::{ServiceParam, write_service};
use super::tsig::Tsig;
use super::{HEADER_BYTES, UDP_BYTES_MAX};

/// Most labels that the writer remembers as targets of compression pointers.
const TARGETS_MAX: usize = 64;

/// The sections after the question, by the position of their count in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Answer.
    Answer = 6,
    /// Authority.
    Authority = 8,
    /// Additional.
    Additional = 10,
}

/// The owner of a record.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'n> {
    /// The question's name, in the letter case of the query.
    Question,
    /// Another name, uncompressed.
    Name(&'n [u8]),
}

/// Writes one message at the end of a buffer, after what the buffer already holds.
pub struct Writer<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    targets: [u16; TARGETS_MAX],
    target_count: usize,
}

/// A position to return to when the records after it do not fit.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    len: usize,
    counts: [u8; 6],
    target_count: usize,
}

impl<'b> Writer<'b> {
    /// Begins a message: the header and, when there is one, the question's bytes as they were sent.
    pub fn new(out: &'b mut Vec<u8>, id: u16, flags: u16, question: Option<&[u8]>) -> Self {
        let start = out.len();
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
        let mut writer = Self {
            out,
            start,
            targets: [0; TARGETS_MAX],
            target_count: 0,
        };
        if let Some(bytes) = question {
            writer.out.extend_from_slice(bytes);
            writer.remember(HEADER_BYTES);
        }
        writer
    }

    /// Bytes of this message so far.
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Always `false`: a message has a header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets flag bits.
    pub fn set_flags(&mut self, bits: u16) {
        let [hi, lo] = bits.to_be_bytes();
        self.out[self.start + 2] |= hi;
        self.out[self.start + 3] |= lo;
    }

    /// Sets the lower four bits of the response code.
    pub fn set_rcode(&mut self, code: u16) {
        let at = self.start + 3;
        self.out[at] = self.out[at] & 0xf0 | (code & 0x0f) as u8;
    }

    /// The current position.
    pub fn mark(&self) -> Mark {
        let mut counts = [0; 6];
        counts.copy_from_slice(&self.out[self.start + 6..self.start + 12]);
        Mark {
            len: self.len(),
            counts,
            target_count: self.target_count,
        }
    }

    /// Removes everything written since the mark.
    pub fn rewind(&mut self, mark: Mark) {
        self.out.truncate(self.start + mark.len);
        self.out[self.start + 6..self.start + 12].copy_from_slice(&mark.counts);
        self.target_count = mark.target_count;
    }

    /// Remembers the labels of the name at `at` as targets of pointers.
    fn remember(&mut self, mut at: usize) {
        let message = &self.out[self.start..];
        while let Some(&len) = message.get(at) {
            // Pointers have 14 bits.
            if len == 0 || len >= 0xc0 || at >= 0x4000 || self.target_count == TARGETS_MAX {
                return;
            }
            self.targets[self.target_count] = at as u16;
            self.target_count += 1;
            at += 1 + usize::from(len);
        }
    }

    /// Whether the name at `at` in the message equals `name` (uncompressed), ignoring letter case.
    fn is_name_at(&self, mut at: usize, mut name: &[u8]) -> bool {
        let message = &self.out[self.start..];
        loop {
            let Some(&len) = message.get(at) else {
                return false;
            };
            if len >= 0xc0 {
                // Every pointer here was written by this writer and leads backwards.
                let Some(&low) = message.get(at + 1) else {
                    return false;
                };
                at = usize::from(len & 0x3f) << 8 | usize::from(low);
                continue;
            }
            let label = 1 + usize::from(len);
            let (Some(here), Some(there)) = (message.get(at..at + label), name.get(..label)) else {
                return false;
            };
            if !here.eq_ignore_ascii_case(there) {
                return false;
            }
            if len == 0 {
                return true;
            }
            at += label;
            name = &name[label..];
        }
    }

    /// Writes a name; a suffix that the message already holds becomes a pointer (RFC 1035 section
    /// 4.1.4).
    pub fn name(&mut self, name: &[u8]) {
        let mut rest = name;
        let at = self.len();
        while rest.first().is_some_and(|&len| len != 0) {
            let known = self.targets[..self.target_count]
                .iter()
                .copied()
                .find(|&t| self.is_name_at(usize::from(t), rest));
            if let Some(target) = known {
                self.out.extend_from_slice(&(0xc000 | target).to_be_bytes());
                self.remember(at);
                return;
            }
            let label = (1 + usize::from(rest[0])).min(rest.len());
            self.out.extend_from_slice(&rest[..label]);
            rest = &rest[label..];
        }
        self.out.push(0);
        self.remember(at);
    }

    /// Writes a record's owner: a pointer to the question where the names are equal.
    fn owner(&mut self, owner: Owner<'_>) {
        match owner {
            // A pointer to the root would be longer than the root.
            Owner::Question if self.out.get(self.start + HEADER_BYTES) == Some(&0) => {
                self.out.push(0)
            }
            Owner::Question => self.out.extend_from_slice(&[0xc0, HEADER_BYTES as u8]),
            Owner::Name(name) => self.name(name),
        }
    }

    /// Writes a record. `data` is uncompressed; names in it are compressed where the type allows it
    /// (RFC 3597 section 4).
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        class: u16,
        ttl: u32,
        data: &[u8],
    ) {
        self.owner(owner);
        let mut head = [0; 10];
        head[..2].copy_from_slice(&rtype.to_be_bytes());
        head[2..4].copy_from_slice(&class.to_be_bytes());
        head[4..8].copy_from_slice(&ttl.to_be_bytes());
        head[8..].copy_from_slice(&(data.len() as u16).to_be_bytes());
        self.out.extend_from_slice(&head);
        let data_at = self.out.len();

        match rtype {
            rtype::NS | rtype::CNAME | rtype::PTR => self.name(data),
            rtype::MX if data.len() > 2 => {
                self.out.extend_from_slice(&data[..2]);
                self.name(&data[2..]);
            }
            rtype::SOA => {
                let mname = name_bytes(data);
                let rname = name_bytes(&data[mname..]);
                self.name(&data[..mname]);
                self.name(&data[mname..mname + rname]);
                self.out.extend_from_slice(&data[mname + rname..]);
            }
            _ => self.out.extend_from_slice(data),
        }

        let written = (self.out.len() - data_at) as u16;
        self.out[data_at - 2..data_at].copy_from_slice(&written.to_be_bytes());
        self.count(section);
    }

    /// Writes a record of class IN whose data has a fixed length and no names, with one copy into
    /// the message.
    pub fn small_record<const N: usize>(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        ttl: u32,
        data: &[u8; N],
    ) {
        self.owner(owner);
        let mut record = [0; 10 + 16];
        record[..2].copy_from_slice(&rtype.to_be_bytes());
        record[3] = class::IN as u8;
        record[4..8].copy_from_slice(&ttl.to_be_bytes());
        record[9] = N as u8;
        record[10..10 + N].copy_from_slice(data);
        self.out.extend_from_slice(&record[..10 + N]);
        self.count(section);
    }

    /// Writes an HTTPS record of class IN whose target is its owner ([`write_service`]).
    pub fn https_record(
        &mut self,
        owner: Owner<'_>,
        ttl: u32,
        priority: u16,
        params: &[ServiceParam<'_>],
    ) {
        self.owner(owner);
        let mut head = [0; 10];
        head[..2].copy_from_slice(&rtype::HTTPS.to_be_bytes());
        head[2..4].copy_from_slice(&class::IN.to_be_bytes());
        head[4..8].copy_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&head);
        let data_at = self.out.len();
        write_service(self.out, priority, params);
        let written = (self.out.len() - data_at) as u16;
        self.out[data_at - 2..data_at].copy_from_slice(&written.to_be_bytes());
        self.count(Section::Answer);
    }

    fn count(&mut self, section: Section) {
        let at = self.start + section as usize;
        let count = u16::from_be_bytes([self.out[at], self.out[at + 1]]) + 1;
        self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    /// Writes the TSIG record of an unsigned response with its error (RFC 8945 section 5.3.2):
    /// always the last record.
    pub fn tsig(&mut self, asked: &Tsig<'_>, original_id: u16, error: u16) {
        self.out.extend_from_slice(asked.key.as_bytes());
        self.out.extend_from_slice(&rtype::TSIG.to_be_bytes());
        self.out.extend_from_slice(&class::ANY.to_be_bytes());
        self.out.extend_from_slice(&[0; 4]);
        self.out
            .extend_from_slice(&(asked.fixed.len() as u16 + 8).to_be_bytes());
        self.out.extend_from_slice(asked.fixed);
        // No MAC; no other data after the error.
        for word in [0, original_id, error, 0] {
            self.out.extend_from_slice(&word.to_be_bytes());
        }
        self.count(Section::Additional);
    }

    /// Writes the OPT record: the last one, except for TSIG.
    pub fn opt(&mut self, opt: &OptRecord<'_>) {
        let ttl = u32::from(opt.rcode >> 4) << 24 | if opt.dnssec_ok { 0x8000 } else { 0 };
        self.out.push(0);
        self.out.extend_from_slice(&rtype::OPT.to_be_bytes());
        self.out
            .extend_from_slice(&(UDP_BYTES_MAX as u16).to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&[0, 0]);
        let data_at = self.out.len();

        if let Some((subnet, scope_prefix)) = opt.subnet {
            let at = self.option_head(option::ECS);
            subnet.write(self.out, scope_prefix);
            self.option_end(at);
        }

        if let Some(cookie) = opt.cookie {
            let at = self.option_head(option::COOKIE);
            self.out.extend_from_slice(&cookie);
            self.option_end(at);
        }

        if let Some(nsid) = opt.nsid {
            let at = self.option_head(option::NSID);
            self.out.extend_from_slice(nsid.as_bytes());
            self.option_end(at);
        }

        if let Some(tenths) = opt.keepalive {
            let at = self.option_head(option::KEEPALIVE);
            self.out.extend_from_slice(&tenths.to_be_bytes());
            self.option_end(at);
        }

        if let Some((apex_labels, serial)) = opt.zone_version {
            let at = self.option_head(option::ZONEVERSION);
            // RFC 9660 section 2: label count, type 0 (SOA serial), serial.
            self.out.extend_from_slice(&[apex_labels, 0]);
            self.out.extend_from_slice(&serial.to_be_bytes());
            self.option_end(at);
        }

        if let Some(code) = opt.extended_error {
            let at = self.option_head(option::EDE);
            self.out.extend_from_slice(&code.to_be_bytes());
            self.option_end(at);
        }

        let len = (self.out.len() - data_at) as u16;
        self.out[data_at - 2..data_at].copy_from_slice(&len.to_be_bytes());
        self.count(Section::Additional);
    }

    fn option_head(&mut self, code: u16) -> usize {
        self.out.extend_from_slice(&code.to_be_bytes());
        self.out.extend_from_slice(&[0, 0]);
        self.out.len()
    }

    fn option_end(&mut self, at: usize) {
        let len = (self.out.len() - at) as u16;
        self.out[at - 2..at].copy_from_slice(&len.to_be_bytes());
    }
}
