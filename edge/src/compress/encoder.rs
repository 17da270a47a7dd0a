//! One body in one coding: gzip (RFC 1952), brotli (RFC 7932) or zstd (RFC 8878).

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::GzEncoder;
use nearcast_fleet::config::Coding;
use zstd::zstd_safe::CParameter;

/// Effort of each coding for the levels 1 to 9 of the fleet file. Brotli's 10 and 11 and zstd's
/// levels over 12 take many times longer for a few percent.
const ZSTD_LEVELS: [i32; 9] = [1, 2, 3, 4, 5, 6, 8, 10, 12];
const BROTLI_QUALITIES: [u32; 9] = [1, 2, 3, 4, 5, 5, 6, 7, 9];
/// Largest window in bits. It bounds the memory of an encoder, and is far below what every decoder
/// must accept (RFC 9659: 23 bits of zstd).
const ZSTD_WINDOW_BITS: u32 = 20;
const BROTLI_WINDOW_BITS: u32 = 19;
const BROTLI_WINDOW_BITS_MIN: u32 = 10;
/// Bytes that brotli's writer collects before it writes them.
const BROTLI_BUFFER_BYTES: usize = 16 * 1024;

/// Encodes one body.
pub(super) enum Encoder {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    /// An encoder for a body, whose length is stated where it is known.
    ///
    /// # Errors
    /// Memory that cannot be reserved.
    pub(super) fn new(coding: Coding, level: u32, length: Option<u64>) -> io::Result<Self> {
        let step = (level.clamp(1, 9) - 1) as usize;
        Ok(match coding {
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVELS[step])?;
                // Short bodies take small tables.
                encoder.set_pledged_src_size(length)?;
                let bits = length.map_or(ZSTD_WINDOW_BITS, window_bits);
                encoder.set_parameter(CParameter::WindowLog(bits.clamp(10, ZSTD_WINDOW_BITS)))?;
                Self::Zstd(encoder)
            }
            Coding::Brotli => {
                let bits = length.map_or(BROTLI_WINDOW_BITS, window_bits);
                Self::Brotli(Box::new(brotli::CompressorWriter::new(
                    Vec::new(),
                    BROTLI_BUFFER_BYTES,
                    BROTLI_QUALITIES[step],
                    bits.clamp(BROTLI_WINDOW_BITS_MIN, BROTLI_WINDOW_BITS),
                )))
            }
            Coding::Gzip => Self::Gzip(GzEncoder::new(
                Vec::new(),
                flate2::Compression::new(level.clamp(1, 9)),
            )),
        })
    }

    /// Takes bytes, and gives the coded bytes that are ready.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<Bytes> {
        self.writer().write_all(bytes)?;
        Ok(self.take())
    }

    /// Gives coded bytes from which a decoder gets all that was pushed.
    pub(super) fn flush(&mut self) -> io::Result<Bytes> {
        self.writer().flush()?;
        Ok(self.take())
    }

    /// Ends the body and gives the rest.
    pub(super) fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Zstd(encoder) => encoder.finish()?,
            Self::Brotli(encoder) => encoder.into_inner(),
            Self::Gzip(encoder) => encoder.finish()?,
        }
        .into())
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Zstd(encoder) => encoder,
            Self::Brotli(encoder) => encoder,
            Self::Gzip(encoder) => encoder,
        }
    }

    fn take(&mut self) -> Bytes {
        let output = match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        };
        std::mem::take(output).into()
    }
}

/// Bits of the least window that holds a body of that length.
fn window_bits(length: u64) -> u32 {
    u64::BITS - length.leading_zeros()
}
