//! The command line of Nearcast: parses arguments, wires roles to their parts, prints.
//!
//! `cli` defines commands and flags; `roles` runs one node; `operate` talks to a running fleet;
//! `demo` runs a whole fleet; `traffic` simulates its clients. This program contains no rule of
//! caching, DNS or planning.

/// Prints to stdout as `print!` does. A closed pipe (`| head`) is no failure; any other is the
/// command's, at its end. Colours reach a terminal only, and none where `NO_COLOR` is set.
macro_rules! out {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        crate::text::note_printed(write!(anstream::stdout(), $($words)*));
    }};
}

/// Prints a line to stdout as `println!` does; see `out!`.
macro_rules! outln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        crate::text::note_printed(writeln!(anstream::stdout(), $($words)*));
    }};
}

/// Prints a line to stderr as `eprintln!` does, and goes on where nobody reads it.
macro_rules! errln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod cli;
mod demo;
mod find;
mod kernel;
mod operate;
mod privileges;
mod roles;
mod signals;
mod text;
mod traffic;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use nearcast_fleet::failure::{Failure, FailureKind};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

/// Threads of an origin and of control.
const WORKERS_MAX: usize = 4;

fn main() -> ExitCode {
    let matches = match cli::grouped(Cli::command()).try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return refused_arguments(&error),
    };
    let is_json = is_json(&matches);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return refused_arguments(&error),
    };
    if let Err(failure) = start_log(cli.log.as_deref(), cli.command.is_role()) {
        return failed(&failure, is_json);
    }
    // Fails only when a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli).and_then(|()| text::all_printed()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure, is_json),
    }
}

fn run(mut cli: Cli) -> Result<(), Failure> {
    roles::name_state_dir(&mut cli.command)?;
    // Before any thread starts, so that all threads lose the privileges.
    let privileges = privileges::Privileges::confine(&cli.command)?;
    let when_open = privileges.when_open();
    let runtime = match cli.command {
        // They have worker threads of their own, one a core; this runtime has little to do.
        Command::Edge(_) | Command::GslbDns(_) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build(),
        // They wait for disk and network more than they compute: more threads would be idle.
        Command::Origin(_) | Command::Control(_) => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(cores.min(WORKERS_MAX))
                .enable_all()
                .build()
        }
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build(),
    };
    let runtime = runtime
        .map_err(|e| Failure::new(FailureKind::System, format!("cannot start threads: {e}")))?;
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Demo(arguments) => demo::run(arguments, cli.log.as_deref()).await,
            Command::Traffic(arguments) => traffic::run(arguments, cli.end_with_parent).await,
            Command::GslbDns(arguments) => {
                roles::gslb_dns(arguments, cli.end_with_parent, when_open).await
            }
            Command::Edge(arguments) => {
                roles::edge(arguments, cli.end_with_parent, when_open).await
            }
            Command::Origin(arguments) => {
                roles::origin(arguments, cli.end_with_parent, when_open).await
            }
            Command::Control(arguments) => {
                roles::control(arguments, cli.end_with_parent, when_open).await
            }
            Command::Check(arguments) => operate::check::run(&arguments).await,
            Command::Explain(arguments) => operate::explain::run(arguments).await,
            Command::Purge(arguments) => operate::purge::run(arguments).await,
            Command::Drain(arguments) => operate::drain::drain(arguments).await,
            Command::Undrain(arguments) => operate::drain::undrain(arguments.target).await,
            Command::Plan(arguments) => operate::plan::run(arguments).await,
            Command::Push(arguments) => operate::push::run(arguments).await,
            Command::Trace(arguments) => operate::trace::run(arguments).await,
            Command::Certificates(arguments) => operate::certificates::run(arguments).await,
            Command::Status(arguments) => operate::status::run(arguments).await,
            Command::Apply(arguments) => operate::apply::run(arguments).await,
            Command::Health(arguments) => operate::health::run(arguments).await,
            Command::Key(arguments) => operate::key::run(&arguments),
        }
    });
    // Background work (a slow disk, a stuck resolver) does not delay the end.
    runtime.shutdown_background();
    if outcome.is_err() {
        privileges.take_back();
    }
    outcome
}

/// Logs go to stderr: `--log`, else `RUST_LOG`, else what the command needs. The library of HTTP/2
/// warns of what its clients do, which would let them fill the log: that is counted instead.
fn start_log(asked: Option<&str>, is_role: bool) -> Result<(), Failure> {
    let from_environment = std::env::var("RUST_LOG").ok();
    let directives = asked.or(from_environment.as_deref()).unwrap_or(if is_role {
        "info,h2=error"
    } else {
        "warn"
    });
    let filter = EnvFilter::try_new(directives).map_err(|e| {
        let hint =
            "write a level (error, warn, info, debug, trace) or module=level, with commas between";
        Failure::new(
            FailureKind::Usage,
            format!("the log filter {directives:?} is wrong: {e}; {hint}"),
        )
    })?;
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .init();
    Ok(())
}

/// Whether the command was asked to print JSON.
fn is_json(matches: &clap::ArgMatches) -> bool {
    matches.subcommand().is_some_and(|(_, command)| {
        command.try_get_one::<bool>("json").ok().flatten() == Some(&true)
    })
}

/// Says on stderr what went wrong; as JSON to who asked for JSON, so that what stdout has stays one
/// document.
fn failed(failure: &Failure, is_json: bool) -> ExitCode {
    if is_json {
        let error = serde_json::json!({
            "code": failure.kind.as_str(),
            "message": failure.message,
            "exit_code": failure.kind.exit_code(),
        });
        errln!("{}", serde_json::json!({ "error": error }));
        return ExitCode::from(failure.kind.exit_code());
    }
    // Mistakes in a file come one a line, as FILE:LINE:COLUMN, which editors know how to follow.
    let prefix = if failure.message.contains('\n') {
        ""
    } else {
        "nearcast: "
    };
    let words = format!("{prefix}{}", failure.message);
    let told = text::wrapped(&words, text::terminal_width_of(std::io::stderr()));
    errln!("{}", told.trim_end());
    ExitCode::from(failure.kind.exit_code())
}

fn refused_arguments(error: &clap::Error) -> ExitCode {
    let asked_for_it = !error.use_stderr();
    if !asked_for_it && std::env::args_os().any(|argument| argument == "--json") {
        let message = error.to_string();
        let message = message.trim_start_matches("error: ").trim_end();
        return failed(&Failure::new(FailureKind::Usage, message), true);
    }
    // Nothing can be done when the terminal is gone.
    let _ = error.print();
    if asked_for_it {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FailureKind::Usage.exit_code())
    }
}
