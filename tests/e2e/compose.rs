//! The compose demo: in each region a client asks a real resolver that walks from our own root, and
//! is served by its region.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::lab::compose::Compose;
use crate::lab::process::run;
use crate::lab::wait;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const REGIONS: [(&str, &str); 3] = [("europe", "ams"), ("americas", "nyc"), ("asia", "sin")];
const DASHBOARDS: [&str; 5] = ["fleet", "site", "edge", "dns", "push"];

#[test]
fn the_dashboards_are_what_their_script_writes_and_fit_grafanas_schema() {
    run(
        &format!("{ROOT}/deploy/grafana/make-dashboards"),
        ["--check"],
    );
    let files = DASHBOARDS.map(|name| format!("{ROOT}/deploy/grafana/dashboards/{name}.json"));
    let script = format!("{ROOT}/tests/e2e/lab/dashboards.py");
    let arguments: Vec<&str> = [script.as_str(), "schema"]
        .into_iter()
        .chain(files.iter().map(String::as_str))
        .collect();
    run(&format!("{ROOT}/target/test-venv/bin/python"), arguments);
}

#[test]
fn the_image_is_built_from_every_crate() {
    let manifest = include_str!("../../Cargo.toml");
    let dockerfile = include_str!("../../deploy/Dockerfile");
    let members = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("the workspace has members");
    for member in members.split('"').skip(1).step_by(2) {
        assert!(
            dockerfile.contains(&format!("COPY {member} {member}\n")),
            "{member} is compiled into the image"
        );
    }
}

#[test]
fn each_regions_client_walks_from_the_root_to_its_own_cluster() {
    let compose = Compose::new();
    run(
        &format!("{ROOT}/deploy/stand-in-images"),
        ["--prefix", "nearcast-e2e/"],
    );
    run(
        &format!("{ROOT}/deploy/build-image"),
        ["--profile", "dev", "--tag", &compose.image()],
    );
    // Every service but Grafana, whose image no stand-in can replace.
    let services = compose.run(&["config", "--services"]);
    let services: Vec<&str> = services.lines().filter(|s| *s != "grafana").collect();
    compose.run(&[&["up", "--detach", "--no-build"], services.as_slice()].concat());
    wait::until(
        "every container to be healthy",
        Duration::from_secs(120),
        || {
            let listed = compose.containers();
            let waiting: Vec<&str> = listed
                .lines()
                .filter(|l| {
                    l.contains("starting") || l.contains("unhealthy") || l.contains("Restarting")
                })
                .collect();
            // `image`, `fleet-key`, `keys` and `certificates` have done their work and ended.
            if listed.lines().count() + 4 >= services.len() && waiting.is_empty() {
                Ok(())
            } else {
                Err(listed)
            }
        },
    );

    for (region, cluster) in REGIONS {
        let client = format!("client-{region}");
        let head = || {
            compose
                .exec(
                    &client,
                    &[
                        "curl",
                        "-sS",
                        "-m",
                        "10",
                        "--retry",
                        "3",
                        "-D",
                        "-",
                        "-o",
                        "/dev/null",
                        "http://www.demo.test/",
                    ],
                )
                .to_lowercase()
        };
        head();
        let head = wait::until(
            &format!("a hit for {region}"),
            Duration::from_secs(20),
            || {
                let head = head();
                if head.contains("; hit") {
                    Ok(head)
                } else {
                    Err(head)
                }
            },
        );
        assert!(head.starts_with("http/1.1 200"), "{region}: {head}");
        assert!(
            head.contains(&format!("cache-status: {cluster}-")),
            "{region} is served by its own cluster: {head}"
        );
        let page = compose.exec(
            &client,
            &["curl", "-sS", "-m", "10", "http://www.demo.test/"],
        );
        assert!(
            page.contains("<html") && page.len() > 1000,
            "{region}: {page}"
        );
    }
    for (region, cluster) in REGIONS {
        // Curl there trusts the demo's authority alone.
        let about = "%{http_code} %{http_version}\n";
        let url = "https://www.demo.test/";
        let arguments = [
            "-sS",
            "-m",
            "10",
            "--retry",
            "3",
            "-D",
            "-",
            "-o",
            "/dev/null",
        ];
        let arguments = [&["curl"], &arguments[..], &["-w", about, url]].concat();
        let told = compose
            .exec(&format!("client-{region}"), &arguments)
            .to_lowercase();
        assert!(
            told.ends_with("200 2\n") && told.contains(&format!("cache-status: {cluster}-")),
            "{region} over HTTPS: {told}"
        );
    }
    // The resolvers came by way of our root and TLD.
    for address in ["172.30.53.2", "172.30.53.3"].map(|address| compose.address(address)) {
        let metrics = crate::lab::tools::curl(&[&format!("http://{address}:9100/metrics")]);
        assert!(
            metrics
                .lines()
                .any(|l| l.starts_with("nearcast_dns_queries_total{") && !l.ends_with(" 0")),
            "{address} was asked:\n{metrics}"
        );
    }
    let user = run(
        "docker",
        [
            "image",
            "inspect",
            &compose.image(),
            "--format",
            "{{.Config.User}} {{.Size}}",
        ],
    );
    let (user, bytes) = user.trim().split_once(' ').expect("two words");
    assert!(user.starts_with("65532"), "the image runs as {user}");
    assert!(
        bytes.parse::<u64>().expect("a size") < 200_000_000,
        "one small image, even with the test profile: {bytes}"
    );

    // A video plays in each region, by way of the resolver and the edges.
    let catalogue = compose.exec(
        "client-europe",
        &[
            "curl",
            "-sS",
            "-m",
            "10",
            "http://video.demo.test/catalogue.json",
        ],
    );
    let catalogue: serde_json::Value =
        serde_json::from_str(&catalogue).expect("the catalogue is JSON");
    let slug = catalogue["titles"][0]["slug"].as_str().expect("a slug");
    let master = format!("http://video.demo.test/v/{slug}/master.m3u8");
    for (region, _) in REGIONS {
        compose.exec(
            &format!("client-{region}"),
            &[
                "ffmpeg", "-v", "error", "-i", &master, "-map", "0:v:0", "-f", "null", "-",
            ],
        );
    }

    // The synthetic clients are served in all three regions.
    wait::until("traffic in every region", Duration::from_secs(60), || {
        let told = compose.run(&["logs", "--no-color", "--tail", "1", "traffic"]);
        let told_all = REGIONS
            .iter()
            .all(|(_, cluster)| told.contains(&format!("{cluster} ")));
        if told_all && !told.contains("hit ratio 0.0") {
            Ok(())
        } else {
            Err(told)
        }
    });

    // A push that is asked for, and those that the fast clock brings about, end with all they were
    // to bring.
    compose.exec(
        "control",
        &["/nearcast", "push", "--now", "--fleet", "/fleet.toml"],
    );
    let mut whole = BTreeSet::new();
    wait::until(
        "a whole push to each cluster, and one by itself",
        Duration::from_secs(240),
        || {
            let pushes = crate::lab::tools::curl(&[&format!(
                "http://{}:7700/v1/pushes",
                compose.address("172.30.53.5")
            )]);
            let pushes: serde_json::Value = serde_json::from_str(&pushes).expect("pushes are JSON");
            for order in pushes["orders"].as_array().expect("orders") {
                if order["progress"] == 1.0 && order["total"]["failed"] == 0 {
                    whole.extend([order["cluster"].to_string(), order["trigger"].to_string()]);
                }
            }
            let wanted = ["ams", "nyc", "sin", "scheduled"];
            if wanted.iter().all(|w| whole.contains(&format!("\"{w}\""))) {
                Ok(())
            } else {
                Err(pushes)
            }
        },
    );

    // Something that is not stored, so that every panel has something to show.
    compose.exec(
        "client-europe",
        &[
            "curl",
            "-sS",
            "-m",
            "10",
            "-o",
            "/dev/null",
            "-H",
            "X-Trial: 1",
            "http://www.demo.test/?not-stored",
        ],
    );
    let files = DASHBOARDS.map(|name| format!("{ROOT}/deploy/grafana/dashboards/{name}.json"));
    let script = format!("{ROOT}/tests/e2e/lab/dashboards.py");
    let prometheus = format!("http://{}:9090", compose.address("172.30.53.7"));
    let arguments: Vec<&str> = [script.as_str(), "queries", &prometheus]
        .into_iter()
        .chain(files.iter().map(String::as_str))
        .collect();
    run(&format!("{ROOT}/target/test-venv/bin/python"), arguments);

    // Its clients hardly notice that an edge dies: the other one's address is in the same answer,
    // and soon alone.
    compose.run(&["kill", "ams-1"]);
    let head = compose.exec(
        "client-europe",
        &[
            "curl",
            "-sS",
            "-m",
            "10",
            "--retry",
            "1",
            "--retry-all-errors",
            "-D",
            "-",
            "-o",
            "/dev/null",
            "http://www.demo.test/",
        ],
    );
    assert!(
        head.contains("200 OK") && head.to_lowercase().contains("cache-status: ams-2"),
        "{head}"
    );
    wait::until(
        "the resolver to know the one that is left",
        Duration::from_secs(40),
        || {
            let addresses = compose.exec("client-europe", &["dig", "+short", "www.demo.test"]);
            let [left, dead] =
                ["198.51.100.12", "198.51.100.11"].map(|address| compose.address(address));
            if addresses.trim_end().ends_with(&left) && !addresses.contains(&dead) {
                Ok(())
            } else {
                Err(addresses)
            }
        },
    );
}
