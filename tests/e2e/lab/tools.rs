//! Real clients: dig, kdig, curl.

use std::net::SocketAddr;

use super::process::run;

/// The Python of the tests, with the packages that `tests/run` installs into it.
pub const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-venv/bin/python");

/// `dig` against one server; `arguments` as on its command line.
pub fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    let at = format!("@{}", server.ip());
    let port = server.port().to_string();
    run(
        "dig",
        [
            &[at.as_str(), "-p", &port, "+tries=1", "+time=3"],
            arguments,
        ]
        .concat(),
    )
}

/// The addresses that `dig +short` gives for a name and a client network, CNAMEs left out.
pub fn dig_addresses(server: SocketAddr, name: &str, subnet: &str) -> Vec<String> {
    let subnet = format!("+subnet={subnet}");
    let text = dig(server, &[name, "A", "+short", &subnet]);
    text.lines()
        .filter(|line| line.parse::<std::net::IpAddr>().is_ok())
        .map(str::to_owned)
        .collect()
}

/// `kdig` against one server.
pub fn kdig(server: SocketAddr, arguments: &[&str]) -> String {
    let at = format!("@{}", server.ip());
    let port = server.port().to_string();
    run(
        "kdig",
        [
            &[at.as_str(), "-p", &port, "+retry=0", "+timeout=3"],
            arguments,
        ]
        .concat(),
    )
}

/// `curl -s` with a time limit; gives its standard output.
pub fn curl(arguments: &[&str]) -> String {
    run("curl", [&["-sS", "--max-time", "20"], arguments].concat())
}
