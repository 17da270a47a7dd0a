//! Compiles the registries' IPv4 allocations into runs of one country, so that a name server need
//! not walk sixteen million prefixes each time it starts.
//!
//! `countries_v4.bin`: for each run its first address (four bytes, least significant first) and two
//! letters, zeros where nobody holds it; ascending, the first run begins at 0. The country of a /24
//! is that of its first address.
#![allow(
    clippy::print_stdout,
    reason = "this is how a build script speaks to Cargo"
)]

use std::net::Ipv4Addr;

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let out =
        std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("Cargo sets OUT_DIR"))?;
    let mut runs = Vec::with_capacity(1 << 20);
    // The codes come out of one table, so the same country is the same pointer.
    let mut before = None;
    let mut first = 0_u32;
    loop {
        let code = iptocc::country_code(Ipv4Addr::from(first));
        if first == 0 || code.map(str::as_ptr) != before {
            let letters = code
                .and_then(|c| <[u8; 2]>::try_from(c.as_bytes()).ok())
                .unwrap_or_default();
            runs.extend(first.to_le_bytes());
            runs.extend(letters);
            before = code.map(str::as_ptr);
        }
        match first.checked_add(1 << 8) {
            Some(next) => first = next,
            None => break,
        }
    }
    std::fs::write(std::path::Path::new(&out).join("countries_v4.bin"), runs)
}
