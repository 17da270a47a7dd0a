//! Errors of a client's frames for which the HTTP library has one code, PROTOCOL_ERROR, and RFC 9113
//! another. Each ends the connection, also where RFC 9113 would let the stream alone end (section
//! 5.4): no client makes them that is in order.

use super::frames::{
    ACK, Closed, DATA, END_STREAM, FrameHead, GOAWAY, HAS_PRIORITY, HEADERS, PADDED, PING,
    PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};

/// SETTINGS_MAX_FRAME_SIZE of this node, which is the least (RFC 9113 section 6.5.2).
const FRAME_BYTES_MAX: u32 = 16_384;
/// Bytes of one setting.
const SETTING_BYTES: u32 = 6;
/// Most streams that are known as not ended.
const UNENDED_MAX: usize = 1024;
/// Most rows of streams that are known as passed over.
const SKIPPED_MAX: usize = 16;

/// Whether a frame has a size that its kind may have (RFC 9113 sections 4.2 and 6).
///
/// # Errors
/// FRAME_SIZE_ERROR.
pub(super) fn check_size(head: FrameHead) -> Result<(), Closed> {
    let length = head.length;
    let is_good = match head.kind {
        SETTINGS if head.has(ACK) => length == 0,
        SETTINGS => length <= FRAME_BYTES_MAX && length.is_multiple_of(SETTING_BYTES),
        PRIORITY => length == 5,
        RST_STREAM | WINDOW_UPDATE => length == 4,
        PING => length == 8,
        GOAWAY => (8..=FRAME_BYTES_MAX).contains(&length),
        // The length of the padding, and the fields of a priority.
        DATA | HEADERS => {
            let has_priority = head.kind == HEADERS && head.has(HAS_PRIORITY);
            let least = u32::from(head.has(PADDED)) + if has_priority { 5 } else { 0 };
            (least..=FRAME_BYTES_MAX).contains(&length)
        }
        _ => length <= FRAME_BYTES_MAX,
    };
    if is_good {
        Ok(())
    } else {
        Err(Closed::FrameSize)
    }
}

/// The streams that the client has begun and not ended: those of requests with a body. What this
/// node does with a stream changes nothing: a client may send on until it learns of it.
#[derive(Debug, Default)]
pub(super) struct Unended {
    streams: Vec<u32>,
    /// Streams that the client has passed over, from the first to the last of a row.
    skipped: Vec<(u32, u32)>,
    /// There were too many, so that it is not known of a stream whether it has ended.
    has_lost_some: bool,
}

impl Unended {
    /// Follows a frame that is not within a header block. `newest` is the newest stream that the
    /// client has begun before.
    ///
    /// # Errors
    /// STREAM_CLOSED: the client has ended the stream already (RFC 9113 section 5.1).
    /// PROTOCOL_ERROR: it has begun a later one before (section 5.1.1).
    pub(super) fn check(&mut self, head: FrameHead, newest: u32) -> Result<(), Closed> {
        let is_end = match head.kind {
            DATA | HEADERS => head.has(END_STREAM),
            RST_STREAM => true,
            _ => return Ok(()),
        };
        if head.kind == HEADERS && head.stream > newest {
            let next = newest + 1 + newest % 2;
            if head.stream > next {
                self.skip(next, head.stream - 1);
            }
            if !is_end {
                self.begin(head.stream);
            }
            return Ok(());
        }
        // Many have one stream with a body at a time, so the newest is looked at first.
        let at = self.streams.iter().rposition(|open| *open == head.stream);
        match at {
            Some(at) if is_end => drop(self.streams.swap_remove(at)),
            Some(_) => {}
            // The library says what is wrong with frames on streams that no client has.
            None if head.kind == RST_STREAM
                || head.stream.is_multiple_of(2)
                || head.stream > newest => {}
            None if head.kind == HEADERS && self.is_skipped(head.stream) => {
                return Err(Closed::Protocol);
            }
            None if self.has_lost_some => {}
            None => return Err(Closed::EndedStream),
        }
        if self.streams.is_empty() {
            self.streams = Vec::new();
        }
        Ok(())
    }

    /// Of a client that passes over streams again and again, the last rows are known.
    fn skip(&mut self, first: u32, last: u32) {
        if self.skipped.len() == SKIPPED_MAX {
            self.skipped.remove(0);
        }
        self.skipped.push((first, last));
    }

    fn is_skipped(&self, stream: u32) -> bool {
        let mut rows = self.skipped.iter();
        rows.any(|(first, last)| (*first..=*last).contains(&stream))
    }

    fn begin(&mut self, stream: u32) {
        match self.streams.len() < UNENDED_MAX {
            true => self.streams.push(stream),
            false => self.has_lost_some = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: u8, flags: u8, stream: u32, length: u32) -> FrameHead {
        FrameHead {
            length,
            kind,
            flags,
            stream,
        }
    }

    #[test]
    fn each_kind_of_frame_has_its_size() {
        let table = [
            (SETTINGS, 0, 0, true),
            (SETTINGS, 0, 12, true),
            (SETTINGS, 0, 7, false),
            (SETTINGS, ACK, 0, true),
            (SETTINGS, ACK, 6, false),
            (PRIORITY, 0, 5, true),
            (PRIORITY, 0, 4, false),
            (RST_STREAM, 0, 4, true),
            (RST_STREAM, 0, 3, false),
            (WINDOW_UPDATE, 0, 4, true),
            (WINDOW_UPDATE, 0, 5, false),
            (PING, 0, 8, true),
            (PING, ACK, 6, false),
            (DATA, 0, 16_384, true),
            (DATA, 0, 16_385, false),
            (HEADERS, 0, 16_385, false),
            (DATA, PADDED, 0, false),
            (DATA, PADDED, 1, true),
            (HEADERS, HAS_PRIORITY, 4, false),
            (HEADERS, PADDED | HAS_PRIORITY, 5, false),
            (HEADERS, PADDED | HAS_PRIORITY, 6, true),
            (GOAWAY, 0, 7, false),
            (GOAWAY, 0, 8, true),
            (0x77, 0, 16_384, true),
            (0x77, 0, 16_385, false),
        ];
        for (kind, flags, length, is_good) in table {
            let found = check_size(head(kind, flags, 1, length));
            assert_eq!(found.is_ok(), is_good, "{kind} {flags} {length}");
        }
    }

    #[test]
    fn nothing_follows_the_end_of_a_stream() {
        const END: u8 = END_STREAM;
        let closed = Err(Closed::EndedStream);
        // Frames, and what comes of the last one.
        type Case = (&'static [(u8, u8, u32)], Result<(), Closed>);
        let table: &[Case] = &[
            (&[(HEADERS, 0, 1), (DATA, 0, 1), (DATA, END, 1)], Ok(())),
            (&[(HEADERS, 0, 1), (HEADERS, END, 1)], Ok(())),
            (&[(HEADERS, END, 1), (DATA, 0, 1)], closed),
            (&[(HEADERS, END, 1), (HEADERS, END, 1)], closed),
            (&[(HEADERS, 0, 1), (DATA, END, 1), (DATA, 0, 1)], closed),
            (&[(HEADERS, 0, 1), (RST_STREAM, 0, 1), (DATA, 0, 1)], closed),
            (&[(HEADERS, 0, 1), (HEADERS, 0, 3), (DATA, 0, 1)], Ok(())),
            (&[(HEADERS, END, 1), (RST_STREAM, 0, 1)], Ok(())),
            (&[(HEADERS, END, 1), (PRIORITY, 0, 1)], Ok(())),
            (&[(HEADERS, END, 1), (WINDOW_UPDATE, 0, 1)], Ok(())),
            (
                &[(HEADERS, END, 5), (HEADERS, END, 3)],
                Err(Closed::Protocol),
            ),
            (&[(HEADERS, END, 5), (DATA, END, 3)], closed),
            (
                &[(HEADERS, END, 1), (HEADERS, END, 3), (HEADERS, END, 1)],
                closed,
            ),
            // For the library.
            (&[(HEADERS, END, 1), (DATA, 0, 3)], Ok(())),
            (&[(HEADERS, END, 3), (DATA, 0, 0)], Ok(())),
            (&[(HEADERS, END, 3), (DATA, 0, 2)], Ok(())),
        ];
        for (frames, expected) in table {
            let (mut unended, mut newest, mut found) = (Unended::default(), 0, Ok(()));
            for (kind, flags, stream) in *frames {
                assert_eq!(found, Ok(()), "{frames:?}");
                found = unended.check(head(*kind, *flags, *stream, 0), newest);
                newest = newest.max(*stream);
            }
            assert_eq!(found, *expected, "{frames:?}");
        }
    }

    #[test]
    fn not_more_streams_are_kept_than_the_limit() {
        let mut unended = Unended::default();
        let limit = 2 * UNENDED_MAX as u32;
        for stream in (1..2 * limit).step_by(2) {
            let begin = head(HEADERS, 0, stream, 0);
            assert_eq!(unended.check(begin, stream.saturating_sub(2)), Ok(()));
        }
        assert_eq!(unended.streams.len(), UNENDED_MAX);
        // It is not known whether the last one has ended.
        let data = head(DATA, END_STREAM, 2 * limit - 1, 0);
        assert_eq!(unended.check(data, 2 * limit - 1), Ok(()));
    }
}
