//! Roles that are started as root: they open their listeners, low ports among them, and run as
//! another user. Needs root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::lab::certificates::{ECDSA, Pair};
use crate::lab::fleet::Plan;
use crate::lab::process::{Process, nearcast, run};
use crate::lab::{tools, wait};

const SOON: Duration = Duration::from_secs(30);
/// A user that no system has a name for.
const STRANGER: u32 = 54_321;

/// User and group that a role runs as where none is named.
fn default_user() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").expect("this system has users");
    let find = |name: &str| {
        let line = passwd
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line
            .split(':')
            .skip(2)
            .map(|field| field.parse::<u32>().expect("a number"));
        Some((fields.next()?, fields.next()?))
    };
    find("nearcast")
        .or_else(|| find("nobody"))
        .expect("every system has nobody")
}

/// A directory that everybody may enter, with the plan's fleet file, which everybody may read, and
/// its content.
fn open_directory(text: &str) -> TempDir {
    assert_eq!(
        run("id", ["-u"]).trim(),
        "0",
        "this test starts roles as root, so it needs root"
    );
    let directory =
        TempDir::with_prefix("nearcast-e2e-").expect("a temporary directory can be made");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("nearcast.toml"), text).expect("the file can be written");
    fs::create_dir(path("content")).expect("content can be made");
    fs::write(path("content/index.html"), "<h1>hello</h1>\n").expect("a page can be written");
    for (name, mode) in [
        ("", 0o755),
        ("nearcast.toml", 0o644),
        ("content", 0o755),
        ("content/index.html", 0o644),
    ] {
        fs::set_permissions(path(name), Permissions::from_mode(mode)).expect("it is ours");
    }
    directory
}

fn start(directory: &Path, role: &str, node: &str) -> Process {
    let mut command = nearcast();
    command
        .args([role, "--node", node, "--fleet"])
        .arg(directory.join("nearcast.toml"))
        .env_remove("NEARCAST_USER");
    Process::start(node, directory, command)
}

fn wait_ready(process: &mut Process, admin: &str) {
    wait::until(&format!("{admin} to be ready"), SOON, || {
        if let Some(status) = process.ended() {
            panic!("it ended with {status}:\n{}", process.output());
        }
        let answer = nearcast()
            .args(["health", &format!("http://{admin}/ready")])
            .output()
            .expect("the binary runs");
        if answer.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&answer.stderr).into_owned())
        }
    });
}

/// A field of the kernel's account of each thread of a process.
fn of_threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("it runs")
        .flatten();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let value = |status: String| {
        status.lines().find_map(|l| {
            l.strip_prefix(&format!("{field}:"))
                .map(|v| v.trim().to_owned())
        })
    };
    statuses
        .map(|status| value(status).expect("the field is there"))
        .collect()
}

#[test]
fn every_role_keeps_nothing_of_root() {
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        dns_port: 53,
        ..Plan::new()
    };
    let text = plan
        .text()
        .replace(":8080\"", ":80\"")
        .replace(":8000", ":81")
        .replace(":7700", ":82");
    let directory = open_directory(&text);
    // What an earlier version left: root's own, with a link to what is nobody's business.
    let old = directory.path().join("state/ams-1/store");
    let outside = directory.path().join("outside");
    fs::create_dir_all(&old).expect("state can be made");
    fs::write(&outside, "not state").expect("a file can be written");
    fs::write(old.join("left"), "x").expect("a file can be written");
    std::os::unix::fs::symlink(&outside, old.join("link")).expect("a link can be made");

    let (uid, gid) = default_user();
    let at = |host: u8, port: u16| format!("{}:{port}", plan.block.host(host));
    let roles = [
        ("control", "control", 70, 82),
        ("origin", "origin", 80, 81),
        ("edge", "ams-1", 11, 80),
        ("gslb-dns", "ns1", 53, 53),
    ];
    let mut processes = Vec::new();
    for (role, node, host, _) in roles {
        let mut process = start(directory.path(), role, node);
        wait_ready(&mut process, &at(host, 9100));
        processes.push(process);
    }
    for ((role, node, ..), process) in roles.iter().zip(&processes) {
        for (field, expected) in [
            ("Uid", format!("{uid}\t{uid}\t{uid}\t{uid}")),
            ("Gid", format!("{gid}\t{gid}\t{gid}\t{gid}")),
            ("CapEff", format!("{:016x}", 0)),
            ("CapPrm", format!("{:016x}", 0)),
            ("CapInh", format!("{:016x}", 0)),
            ("CapAmb", format!("{:016x}", 0)),
            ("NoNewPrivs", "1".to_owned()),
        ] {
            let found = of_threads(process.pid(), field);
            assert!(
                !found.is_empty() && found.iter().all(|value| *value == expected),
                "{role}: {field} is {found:?}, not {expected}"
            );
        }
        let groups = of_threads(process.pid(), "Groups");
        assert!(
            groups
                .iter()
                .all(|list| list.split_whitespace().all(|group| group != "0")),
            "{role}: {groups:?}"
        );
        let state =
            fs::metadata(directory.path().join("state").join(node)).expect("it keeps state");
        assert_eq!(
            (state.uid(), state.gid(), state.mode() & 0o777),
            (uid, gid, 0o700),
            "{role}"
        );
    }
    let handed_over = fs::symlink_metadata(old.join("left")).expect("it is still there");
    assert_eq!(
        (
            handed_over.uid(),
            fs::metadata(&outside).expect("there").uid()
        ),
        (uid, 0),
        "links are not followed"
    );

    // It serves, and so it does after a change on disk, which is read again.
    wait::until("the edge in the answers", SOON, || {
        let found = tools::dig_addresses(plan.dns(), "www.cdn.test", "198.51.100.0/24");
        if found == [plan.edge(0, 0).to_string()] {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    let page = tools::curl(&[
        "-H",
        "Host: www.demo.test",
        &format!("http://{}/", at(11, 80)),
    ]);
    assert!(page.contains("hello"), "{page}");
    let purge = nearcast()
        .args(["purge", "--site", "www", "--fleet"])
        .arg(directory.path().join("nearcast.toml"))
        .output();
    let purge = purge.expect("the binary runs");
    assert!(
        purge.status.success(),
        "root may read the token: {}",
        String::from_utf8_lossy(&purge.stderr)
    );
    fs::write(
        directory.path().join("nearcast.toml"),
        text.replace("ttl = \"5s\"", "ttl = \"6s\""),
    )
    .expect("the file can be written");
    for process in &mut processes[1..] {
        process.signal("HUP");
        process.wait_for_output("the fleet file was read again", SOON);
    }
    // The second start finds everything its user's own.
    let mut edge = processes.remove(2);
    edge.signal("TERM");
    edge.wait(SOON);
    wait_ready(&mut start(directory.path(), "edge", "ams-1"), &at(11, 9100));
}

#[test]
fn what_that_user_cannot_read_again_fails_the_start() {
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let key = "node_key = \"a key that only this test knows\"";
    let secure = plan.text().replace(
        "origin = \"http://",
        "origin_ca = \"ca.pem\"\norigin = \"https://",
    );
    let geo = format!("{}\n[steering]\ngeo_db = \"places.mmdb\"\n", plan.text());
    let plain = plan.text();
    let in_file = plain.replace(key, "node_key_file = \"node.key\"");
    let table: [(&str, &str, &str, &str, &str); 8] = [
        // role, node, file, what is closed to the user, contents
        ("edge", "ams-1", &plain, "nearcast.toml", ""),
        (
            "control",
            "control",
            &in_file,
            "node.key",
            "a key that only this test knows",
        ),
        (
            "edge",
            "ams-1",
            &in_file,
            "node.key",
            "a key that only this test knows",
        ),
        ("edge", "ams-1", &secure, "ca.pem", ""),
        ("gslb-dns", "ns1", &geo, "places.mmdb", ""),
        ("origin", "origin", &plain, "content", ""),
        ("edge", "ams-1", &plain, "state/ams-1", ""),
        ("control", "control", &plain, "state/control", ""),
    ];
    for (role, node, text, closed, contents) in table {
        let directory = open_directory(text);
        let path = directory.path().join(closed);
        if closed.starts_with("state/") {
            fs::create_dir_all(&path).expect("state can be made");
            std::os::unix::fs::chown(&path, Some(STRANGER), None).expect("root may");
        } else if !path.exists() {
            fs::write(&path, contents).expect("the file can be written");
        }
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("root may");
        let mut process = start(directory.path(), role, node);
        let status = process.wait(SOON);
        let words = process.output();
        assert!(
            !status.success() && words.contains(path.to_str().expect("a plain path")),
            "{role}, {closed}: {status}\n{words}"
        );
        assert!(
            words.contains("nearcast") || words.contains("nobody"),
            "the user is named: {words}"
        );
        assert!(
            closed.starts_with("state/") || !directory.path().join("state").exists(),
            "{role}, {closed}: something was left behind"
        );
    }
}

#[test]
fn a_user_is_chosen_by_the_file_and_root_stays_root_only_when_told_to() {
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let admin = format!("{}:9100", plan.edge(0, 0));
    let named = |user: &str| {
        plan.text()
            .replace("[fleet]\n", &format!("[fleet]\nuser = \"{user}\"\n"))
    };
    for (user, uid) in [(STRANGER.to_string(), STRANGER), ("root".to_owned(), 0)] {
        let directory = open_directory(&named(&user));
        let mut edge = start(directory.path(), "edge", "ams-1");
        wait_ready(&mut edge, &admin);
        let found = of_threads(edge.pid(), "Uid");
        assert!(
            found
                .iter()
                .all(|ids| *ids == [uid; 4].map(|id| id.to_string()).join("\t")),
            "{user}: {found:?}"
        );
        assert_eq!(
            edge.output().contains("keeps running as root"),
            uid == 0,
            "{}",
            edge.output()
        );
    }
    let directory = open_directory(&named("no-such-user"));
    let mut edge = start(directory.path(), "edge", "ams-1");
    assert_eq!(edge.wait(SOON).code(), Some(64));
    assert!(
        edge.output().contains("there is no user \"no-such-user\""),
        "{}",
        edge.output()
    );

    // A file that only root can reach, in the temporary directory: a trial, which stays root and
    // says so.
    let directory = open_directory(&plan.text());
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("it is ours");
    let mut edge = start(directory.path(), "edge", "ams-1");
    wait_ready(&mut edge, &admin);
    assert!(
        edge.output()
            .contains("a temporary directory that only root may enter"),
        "{}",
        edge.output()
    );
}

#[test]
fn an_edge_without_a_file_gives_root_up_too_and_a_start_that_fails_leaves_nothing() {
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let directory = open_directory(&plan.text());
    let listen = format!("{}:80", plan.edge(0, 0));
    let edge = |state: &str, listen: &str| {
        let mut command = nearcast();
        command.args([
            "edge",
            "--listen",
            listen,
            "--origin",
            "http://127.0.0.1:1",
            "--disk",
            "8MiB",
            "--state-dir",
        ]);
        command
            .arg(directory.path().join(state))
            .env_remove("NEARCAST_USER");
        Process::start(state, directory.path(), command)
    };
    let first = edge("first", &listen);
    wait::until("the edge to listen", SOON, || {
        std::net::TcpStream::connect(&listen).map(drop)
    });
    let (uid, gid) = default_user();
    let found = of_threads(first.pid(), "Uid");
    assert!(
        found.iter().all(|ids| ids.starts_with(&format!("{uid}\t"))),
        "{found:?}"
    );
    let state = fs::metadata(directory.path().join("first/edge")).expect("it keeps state");
    assert_eq!(
        (state.uid(), state.gid(), state.mode() & 0o777),
        (uid, gid, 0o700)
    );

    // Content goes where root says, also where that is root's own.
    for (name, exists) in [("own", true), ("fresh", false)] {
        let root = directory.path().join(name);
        if exists {
            fs::create_dir(&root).expect("content can be made");
            fs::set_permissions(&root, Permissions::from_mode(0o755)).expect("it is ours");
        }
        let at = format!("{}:8000", plan.block.host(80));
        let mut command = nearcast();
        command
            .args(["origin", "--demo-content", "--listen", &at, "--root"])
            .arg(&root)
            .env_remove("NEARCAST_USER");
        let origin = Process::start(name, directory.path(), command);
        wait::until("the origin to listen", SOON, || {
            std::net::TcpStream::connect(&at).map(drop)
        });
        assert!(
            of_threads(origin.pid(), "Uid")
                .iter()
                .all(|ids| ids.starts_with(&format!("{uid}\t"))),
            "{}",
            origin.output()
        );
        assert!(tools::curl(&[&format!("http://{at}/about.html")]).contains("<html"));
        assert_eq!(
            fs::metadata(&root).expect("there").uid(),
            if exists { 0 } else { uid }
        );
    }

    let mut second = edge("second", &listen);
    assert_eq!(second.wait(SOON).code(), Some(69), "{}", second.output());
    assert!(!directory.path().join("second").exists());
}

/// Keys are often root's alone (certbot's are): the start and `check` say what to do, and a renewal
/// that forgets it changes nothing.
#[test]
fn a_key_that_only_root_may_read_is_found_before_it_hurts() {
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let directory = open_directory(&plan.text());
    let pair = Pair::make(directory.path(), "www", &ECDSA, "DNS:www.demo.test");
    let file = directory.path().join("nearcast.toml");
    fs::write(&file, plan.text() + &pair.section()).expect("the file can be written");
    let set = |mode, gid| {
        std::os::unix::fs::chown(&pair.key, Some(0), Some(gid)).expect("root may");
        fs::set_permissions(&pair.key, Permissions::from_mode(mode)).expect("root may");
    };
    let check = || {
        let output = nearcast()
            .arg("check")
            .arg(&file)
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (_, gid) = default_user();
    let key = pair.key.display().to_string();

    set(0o600, 0);
    let warned = check();
    assert!(
        warned.contains(&format!("cannot read {key}; ")) && warned.contains("chmod 640"),
        "{warned}"
    );
    let mut edge = start(directory.path(), "edge", "ams-1");
    assert_eq!(edge.wait(SOON).code(), Some(65), "{}", edge.output());
    let words = edge.output();
    assert!(
        words.contains(&format!("cannot read {key}: Permission denied"))
            && words.contains("chgrp GROUP FILE, chmod 640 FILE"),
        "{words}"
    );

    set(0o640, gid);
    assert!(!check().contains(&key), "{}", check());
    let mut edge = start(directory.path(), "edge", "ams-1");
    wait_ready(&mut edge, &format!("{}:9100", plan.edge(0, 0)));
    let serves = || {
        let resolve = format!("www.demo.test:443:{}", plan.edge(0, 0));
        let url = "https://www.demo.test/";
        let code = ["-o", "/dev/null", "-w", "%{ssl_verify_result}"];
        let rest = ["--resolve", &resolve, "--cacert", pair.cert(), url];
        assert_eq!(tools::curl(&[&code[..], &rest].concat()), "0");
    };
    serves();
    set(0o600, 0);
    edge.signal("HUP");
    edge.wait_for_output("the former one stays in force", SOON);
    assert!(edge.output().contains("chmod 640"), "{}", edge.output());
    serves();
}
