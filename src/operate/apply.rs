//! `nearcast apply`.

use nearcast_fleet::failure::Failure;
use nearcast_fleet::file::{self, KeySource};

use super::api::{Api, list, string};
use super::{check, print_json};
use crate::cli::ApplyArgs;
use crate::find;

/// Checks the file, then sends it to control, which writes it to the journal that all nodes follow.
pub(crate) async fn run(arguments: ApplyArgs) -> Result<(), Failure> {
    let path = &arguments.file;
    let new = check::load(path)?;
    check::print_warnings(path, &new);
    let text = file::read(path)?;
    let running = match &arguments.fleet {
        Some(other) => file::load_with(other, KeySource::Unneeded)?,
        None => new.clone(),
    };
    let running = find::trusting(running, &arguments.ca);
    let token = find::token(arguments.token.token, &running)?;
    let target = format!(
        "/v1/fleet-file?check={}&restart_needed={}",
        arguments.check, arguments.restart_needed
    );
    let answer = Api::of(&running)?.put_text(&target, &token, text).await?;
    if arguments.json {
        print_json(&answer);
        return Ok(());
    }
    let summary = check::summary(&new);
    let restart: Vec<String> = list(&answer["restart"]).iter().map(string).collect();
    match (arguments.check, answer["changed"].as_bool()) {
        (true, _) => outln!("OK, nothing was changed: {summary}"),
        (false, Some(false)) => outln!(
            "the fleet has this file already (revision {})",
            answer["revision"]
        ),
        (false, _) => outln!(
            "revision {}: {summary}; `nearcast status` shows which nodes are behind",
            answer["revision"]
        ),
    }
    if !restart.is_empty() && !arguments.check {
        outln!(
            "start these nodes again, which opens their new listeners: {}",
            restart.join(", ")
        );
    }
    Ok(())
}
