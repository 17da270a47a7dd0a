//! The failure of a command: one sentence and an exit code of the BSD `sysexits` family.

use std::fmt;

/// A failure that ends a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Class, which decides the exit code.
    pub kind: FailureKind,
    /// The problem and a hint, for people.
    pub message: String,
}

/// The class of a failure; its exit code follows BSD's `sysexits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Wrong arguments or a wrong fleet file: 64 (EX_USAGE).
    Usage,
    /// An input file, such as a database, has the wrong content: 65 (EX_DATAERR).
    BadData,
    /// An input file is missing or unreadable: 66 (EX_NOINPUT).
    NoInput,
    /// A required service does not answer, or a port is in use: 69 (EX_UNAVAILABLE).
    Unavailable,
    /// A defect of Nearcast: 70 (EX_SOFTWARE).
    Internal,
    /// The operating system refused a resource: 71 (EX_OSERR).
    System,
    /// An output file or directory cannot be created: 73 (EX_CANTCREAT).
    CannotCreate,
    /// Reading or writing failed, for example on a full disk: 74 (EX_IOERR).
    Io,
    /// A token or key was refused: 77 (EX_NOPERM).
    Refused,
}

impl FailureKind {
    /// The kind as one word, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::BadData => "bad_data",
            Self::NoInput => "no_input",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::System => "system",
            Self::CannotCreate => "cannot_create",
            Self::Io => "io",
            Self::Refused => "refused",
        }
    }

    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::BadData => 65,
            Self::NoInput => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::System => 71,
            Self::CannotCreate => 73,
            Self::Io => 74,
            Self::Refused => 77,
        }
    }
}

impl Failure {
    /// A failure of this kind with this message.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The failure to open a listener on `address`, with a hint.
    pub fn bind(what: &str, address: impl fmt::Display, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::AddrInUse => FailureKind::Unavailable,
            std::io::ErrorKind::PermissionDenied => FailureKind::Refused,
            _ => FailureKind::System,
        };
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program listens there; stop it or choose another address"
            }
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE: start it as root, which it gives up, or grant it with `setcap cap_net_bind_service=+ep` on the program or sysctl net.ipv4.ip_unprivileged_port_start=80; or choose a higher port"
            }
            std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
            _ => "the system refused it",
        };
        Self::new(
            kind,
            format!("cannot listen for {what} on {address}: {error} ({hint})"),
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
