//! `nearcast apply`.

use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, KeySource};

use super::api::Api;
use super::{check, print_json};
use crate::cli::ApplyArgs;
use crate::find;

/// Checks the file here, then gives it to control, which writes it to the journal that all nodes follow.
pub(crate) async fn run(arguments: ApplyArgs) -> Result<(), Failure> {
    let path = &arguments.file;
    let new = check::load(path)?;
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(FailureKind::NoInput, format!("cannot read the fleet file {}: {e}", path.display())))?;
    let running = match &arguments.fleet {
        Some(other) => file::load_with(other, KeySource::Unneeded)?,
        None => new.clone(),
    };
    let token = find::token(arguments.token.token, &running)?;
    let target = if arguments.check { "/v1/fleet-file?check=true" } else { "/v1/fleet-file" };
    let answer = Api::of(&running)?.put_text(target, &token, text).await?;
    if arguments.json {
        print_json(&answer);
        return Ok(());
    }
    let summary = check::summary(&new);
    match (arguments.check, answer["changed"].as_bool()) {
        (true, _) => outln!("OK, nothing was changed: {summary}"),
        (false, Some(false)) => outln!("the fleet has this file already (revision {})", answer["revision"]),
        (false, _) => outln!("revision {}: {summary}; `nearcast status` shows who is behind", answer["revision"]),
    }
    Ok(())
}
