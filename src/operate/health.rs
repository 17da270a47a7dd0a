//! `nearcast health`.

use nearcast_fleet::client::Client;
use nearcast_fleet::failure::Failure;

use crate::cli::HealthArgs;

/// Sends one request. Container runtimes expect exit code 1 from a check that fails.
pub(crate) async fn run(arguments: HealthArgs) -> Result<(), Failure> {
    let outcome = Client::new(arguments.ca.ca)
        .get(&arguments.url, arguments.timeout)
        .await;
    let reason = match outcome {
        Ok(response) if response.status().is_success() => return Ok(()),
        Ok(response) => {
            let said = String::from_utf8_lossy(response.body())
                .trim()
                .chars()
                .take(200)
                .collect::<String>();
            format!("{} answers {}: {said}", arguments.url, response.status())
        }
        Err(error) => error.to_string(),
    };
    errln!("nearcast: {reason}");
    std::process::exit(1);
}
