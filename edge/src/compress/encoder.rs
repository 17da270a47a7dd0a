//! One body in one coding: gzip (RFC 1952), brotli (RFC 7932) or zstd (RFC 8878).

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::GzEncoder;
use nearcast_fleet::config::Coding;
use zstd::zstd_safe::CParameter;

/// Effort of each coding for the levels 1 to 9 of the fleet file. Zstd's levels over 12 and brotli's
/// qualities over 9 take many times longer for a few percent.
const ZSTD_LEVELS: [i32; 9] = [1, 2, 3, 4, 5, 6, 8, 10, 12];
/// Quality 7 has tables of 8 MiB and 9 of 32 MiB, which every body, however short, has to clear.
const BROTLI_QUALITIES: [u32; 9] = [1, 2, 3, 4, 5, 5, 6, 6, 6];
/// Largest window in bits. It bounds the memory of an encoder, and is far below what every decoder
/// must accept (RFC 9659: 23 bits of zstd).
const ZSTD_WINDOW_BITS: u32 = 20;
/// Largest tables of zstd in bits of entries, 4 bytes each. The levels over 6 would take up to
/// 42 MiB for them.
const ZSTD_TABLE_BITS: u32 = 19;
/// From this quality on brotli compares contexts and has larger tables.
const BROTLI_THOROUGH: u32 = 5;
/// Windows in bits of the qualities below that, and from it on, where a smaller window compresses
/// worse than less effort with it.
const BROTLI_WINDOW_BITS: std::ops::RangeInclusive<u32> = 10..=18;
/// With 16 bits or less the encoder takes tables of 32 MiB, whatever the body's length.
const BROTLI_THOROUGH_WINDOW_BITS: std::ops::RangeInclusive<u32> = 17..=19;
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
                for parameter in zstd_bounds(ZSTD_LEVELS[step], length) {
                    encoder.set_parameter(parameter)?;
                }
                Self::Zstd(encoder)
            }
            Coding::Brotli => {
                let quality = BROTLI_QUALITIES[step];
                Self::Brotli(Box::new(brotli::CompressorWriter::new(
                    Vec::new(),
                    BROTLI_BUFFER_BYTES,
                    quality,
                    brotli_window_bits(quality, length),
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

/// What bounds the memory of a zstd encoder: 4.5 MiB at most.
fn zstd_bounds(level: i32, length: Option<u64>) -> Vec<CParameter> {
    let bits = length.map_or(ZSTD_WINDOW_BITS, window_bits);
    let mut bounds = vec![CParameter::WindowLog(bits.clamp(10, ZSTD_WINDOW_BITS))];
    // The lower levels have smaller tables by themselves.
    if level > 6 {
        bounds.push(CParameter::HashLog(ZSTD_TABLE_BITS));
        bounds.push(CParameter::ChainLog(ZSTD_TABLE_BITS));
    }
    bounds
}

/// The window of a brotli encoder. With the buffers of its window and of one block of commands it
/// takes up to 5 MiB at the qualities below [`BROTLI_THOROUGH`], and up to 10 MiB from there on.
fn brotli_window_bits(quality: u32, length: Option<u64>) -> u32 {
    let allowed = match quality < BROTLI_THOROUGH {
        true => BROTLI_WINDOW_BITS,
        false => BROTLI_THOROUGH_WINDOW_BITS,
    };
    let bits = length.map_or(*allowed.end(), window_bits);
    bits.clamp(*allowed.start(), *allowed.end())
}

/// Bits of the least window that holds a body of that length.
fn window_bits(length: u64) -> u32 {
    u64::BITS - length.leading_zeros()
}

#[cfg(test)]
mod tests {
    use zstd::zstd_safe::{CCtx, InBuffer, OutBuffer};

    use super::*;

    const LENGTHS: [Option<u64>; 7] = [
        None,
        Some(0),
        Some(300),
        Some(60_000),
        Some(70_000),
        Some(5 << 20),
        Some(1 << 30),
    ];

    #[test]
    fn the_memory_of_zstd_is_bounded_at_every_level() {
        let body = b"slice origin edge ".repeat(100_000);
        for level in ZSTD_LEVELS {
            for length in LENGTHS {
                let mut context = CCtx::create();
                let mut set = |parameter| context.set_parameter(parameter).expect("in its bounds");
                set(CParameter::CompressionLevel(level));
                for parameter in zstd_bounds(level, length) {
                    set(parameter);
                }
                context.set_pledged_src_size(length).expect("a length");
                let used = length.map_or(body.len(), |length| body.len().min(length as usize));
                let mut output = vec![0; 2 << 20];
                let mut output = OutBuffer::around(&mut output[..]);
                context
                    .compress_stream(&mut output, &mut InBuffer::around(&body[..used]))
                    .expect("it has room");
                let bytes = context.sizeof();
                assert!(bytes < 9 << 19, "{level} {length:?}: {bytes}");
            }
        }
    }

    #[test]
    fn brotli_never_takes_its_large_tables() {
        for quality in BROTLI_QUALITIES {
            // Over 6 its tables have 8 MiB and more.
            assert!(quality <= 6, "{quality}");
            for length in LENGTHS {
                let bits = brotli_window_bits(quality, length);
                // With 16 bits and less they have 32 MiB from quality 5 on.
                let expected = match quality {
                    0..5 => 10..=18,
                    _ => 17..=19,
                };
                assert!(expected.contains(&bits), "{quality} {length:?}: {bits}");
            }
        }
        assert_eq!(
            brotli_window_bits(4, Some(60_000)),
            16,
            "no more than needed"
        );
    }
}
