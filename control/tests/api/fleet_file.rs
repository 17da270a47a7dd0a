//! Fleet files and their revisions.

use http::Method;
use http::StatusCode;
use nearcast_fleet::failure::FailureKind;
use serde_json::json;
use std::sync::Arc;
use tokio::net::TcpStream;

use crate::lab::{KEY, Lab, address, body, fleet_text, spawn};

#[tokio::test]
async fn fleet_files_are_checked_recorded_and_taken_on() {
    let mut lab = Lab::start().await;
    let token = lab.token.0.clone();
    let put = async |lab: &Lab, path: &str, text: &str| {
        lab.ask(
            Method::PUT,
            path,
            Some(&token),
            "text/plain",
            text.to_owned(),
        )
        .await
    };
    let shown = lab.get_with("/v1/fleet-file", &token).await;
    assert_eq!(
        (
            shown.headers()["nearcast-revision"].to_str().unwrap(),
            shown.body().as_ref()
        ),
        ("0", lab.text.as_bytes())
    );

    let wrong = put(
        &lab,
        "/v1/fleet-file",
        &lab.text
            .replace("zone = \"cdn.test\"", "zoen = \"cdn.test\"\nhostmaster = 7"),
    )
    .await;
    assert_eq!(wrong.status(), 422);
    let mistakes = body(&wrong)["error"]["mistakes"]
        .as_array()
        .unwrap()
        .clone();
    assert!(
        mistakes.len() >= 2
            && mistakes
                .iter()
                .all(|m| m["line"].as_u64() > Some(0) && m["hint"].is_string()),
        "{mistakes:?}"
    );
    let moved = put(
        &lab,
        "/v1/fleet-file",
        &lab.text
            .replace("127.0.10.2:8080", "127.0.10.2:8081")
            .replace("cdn.test", "cdn.example"),
    )
    .await;
    assert_eq!(moved.status(), 409);
    let elsewhere = lab.text.replace("127.0.10.2:8080", "127.0.10.2:8081");
    let refused = put(&lab, "/v1/fleet-file?check=true", &elsewhere).await;
    let message = body(&refused)["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        refused.status() == 409
            && message.contains("--restart-needed")
            && message.contains("ams-2"),
        "{message}"
    );
    let checked = put(
        &lab,
        "/v1/fleet-file?check=true&restart_needed=true",
        &elsewhere,
    )
    .await;
    assert_eq!(
        body(&checked),
        json!({"revision": 0, "changed": false, "restart": ["ams-2"]})
    );
    let message = body(&moved)["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("fleet.zone") && message.contains("start control again"),
        "{message}"
    );
    let same = put(&lab, "/v1/fleet-file", &lab.text).await;
    assert_eq!(body(&same), json!({"revision": 0, "changed": false}));
    let new_text = lab
        .text
        .replace("label = \"Amsterdam\"", "label = \"Mokum\"");
    let checked = put(&lab, "/v1/fleet-file?check=true", &new_text).await;
    assert_eq!(
        (checked.status(), body(&checked)["changed"].clone()),
        (StatusCode::OK, json!(false))
    );
    assert!(!lab.fleet.has_changed().unwrap());

    assert_eq!(
        body(&put(&lab, "/v1/fleet-file", &new_text).await),
        json!({"revision": 1, "changed": true})
    );
    assert_eq!(lab.fleet.borrow_and_update().clusters[0].label, "Mokum");
    let page = body(&lab.get_with("/v1/journal?after=0", KEY).await);
    assert_eq!(
        page["entries"][0]["change"],
        json!({"kind": "fleet_file", "text": new_text})
    );
    lab.event("fleet_file").await;
    let status = lab.get("/v1/status").await;
    assert_eq!(
        (&status["fleet_revision"], &status["clusters"][0]["label"]),
        (&json!(1), &json!("Mokum"))
    );

    // The file on disk has not changed: the journal's revision is in force.
    let mut lab = lab.restart().await;
    assert_eq!(lab.get("/v1/fleet").await["clusters"][0]["label"], "Mokum");
    // The file on disk was edited since: it becomes a revision.
    lab.text = lab
        .text
        .replace("label = \"Amsterdam\"", "label = \"Damsko\"");
    let lab = lab.restart().await;
    let fleet = lab.get("/v1/fleet").await;
    assert_eq!(
        (&fleet["revision"], &fleet["clusters"][0]["label"]),
        (&json!(2), &json!("Damsko"))
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_fleet_file_that_is_read_again_is_shown_and_recorded() {
    let mut lab = Lab::start().await;
    let token = lab.token.0.clone();
    let labelled = |lab: &Lab, label: &str| {
        lab.text
            .replace("label = \"Amsterdam\"", &format!("label = {label:?}"))
    };
    let shown = async |lab: &Lab| {
        let answer = lab.get_with("/v1/fleet-file", &token).await;
        (
            answer.headers()["nearcast-revision"]
                .to_str()
                .unwrap()
                .to_owned(),
            String::from_utf8(answer.body().to_vec()).unwrap(),
        )
    };
    // The journal has no revision yet: the file on disk is in force.
    lab.read_again(&labelled(&lab, "Mokum")).await;
    assert_eq!(shown(&lab).await, ("0".to_owned(), labelled(&lab, "Mokum")));
    assert_eq!(lab.get("/v1/fleet").await["clusters"][0]["label"], "Mokum");

    // A file with mistakes, or with impossible changes, is an event and changes nothing.
    let wrongs = [
        (
            labelled(&lab, "x").replace("[fleet]", "[fleet]\nzoen = 1"),
            "zoen",
        ),
        (lab.text.replace("cdn.test", "cdn.example"), "fleet.zone"),
        (format!("{}\n# nonsense", lab.text), "make sense"),
    ];
    for (wrong, words) in wrongs {
        lab.disk.send_replace(wrong);
        assert_eq!(lab.message(words).await["kind"], "fleet_file_refused");
    }
    assert_eq!(shown(&lab).await, ("0".to_owned(), labelled(&lab, "Mokum")));

    // A revision of the journal stays in force when the same file is read again. An edited file
    // becomes another revision.
    let put = lab
        .ask(
            Method::PUT,
            "/v1/fleet-file",
            Some(&token),
            "text/plain",
            labelled(&lab, "Damsko"),
        )
        .await;
    assert_eq!(body(&put), json!({"revision": 1, "changed": true}));
    lab.disk.send_replace(labelled(&lab, "Mokum"));
    lab.message("has not changed; revision 1 stays in force")
        .await;
    assert_eq!(
        shown(&lab).await,
        ("1".to_owned(), labelled(&lab, "Damsko"))
    );
    lab.read_again(&labelled(&lab, "Amsterdam-Zuid")).await;
    assert_eq!(
        shown(&lab).await,
        ("2".to_owned(), labelled(&lab, "Amsterdam-Zuid"))
    );
    assert_eq!(lab.get("/v1/status").await["fleet_revision"], 2);
    // A restart with the same file on disk does not count as an edit.
    lab.text = labelled(&lab, "Amsterdam-Zuid");
    let lab = lab.restart().await;
    assert_eq!(lab.get("/v1/status").await["revision"], 2);
    lab.stop().await;
}

#[tokio::test]
async fn a_file_on_disk_that_was_seen_is_no_edit_after_a_later_apply() {
    let mut lab = Lab::start().await;
    let token = lab.token.0.clone();
    let labelled = |lab: &Lab, label: &str| {
        lab.text
            .replace("label = \"Amsterdam\"", &format!("label = {label:?}"))
    };
    let put = async |lab: &Lab, text: String| {
        body(
            &lab.ask(
                Method::PUT,
                "/v1/fleet-file",
                Some(&token),
                "text/plain",
                text,
            )
            .await,
        )
    };
    // A text is applied, then saved on control's disk and read again: nothing changes.
    assert_eq!(put(&lab, labelled(&lab, "Mokum")).await["revision"], 1);
    lab.disk.send_replace(labelled(&lab, "Mokum"));
    lab.message("revision 1 stays in force").await;
    // Another text is applied, and the unchanged file on disk is read again.
    assert_eq!(put(&lab, labelled(&lab, "Damsko")).await["revision"], 2);
    lab.disk.send_replace(labelled(&lab, "Mokum"));
    lab.message("revision 2 stays in force").await;
    // The same at a start.
    lab.text = labelled(&lab, "Mokum");
    let lab = lab.restart().await;
    let fleet = lab.get("/v1/fleet").await;
    assert_eq!(
        (&fleet["revision"], &fleet["clusters"][0]["label"]),
        (&json!(2), &json!("Damsko"))
    );
    lab.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let lab = Lab::start().await;
    let other = tempfile::tempdir().unwrap();
    // The port is in use.
    let second = spawn(other.path(), &lab.text);
    assert_eq!(
        second.role.await.unwrap().unwrap_err().kind,
        FailureKind::Unavailable
    );
    assert!(!other.path().join("state").exists(), "half started");
    // The directory is in use.
    let ip = address();
    let second = spawn(lab.dir.path(), &fleet_text(&ip, ""));
    let failure = second.role.await.unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.message.contains("in use"), "{failure}");
    let (dir, ip, text) = lab.stop().await;
    // The journal is damaged.
    let journal = dir.path().join("state/control/journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[..4].fill(0);
    bytes.extend([1; 64]);
    std::fs::write(&journal, bytes).unwrap();
    let second = spawn(dir.path(), &text);
    let failure = second.role.await.unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::BadData, "{failure}");
    // Nothing listens.
    assert!(TcpStream::connect((ip.as_str(), 7700)).await.is_err());
}

#[tokio::test]
async fn a_fleet_file_that_only_another_role_finds_wrong_is_refused() {
    let lab = Lab::start().await;
    let wrong = format!("{}# nonsense", lab.text);
    for path in ["/v1/fleet-file?check=true", "/v1/fleet-file"] {
        let answer = lab
            .ask(
                Method::PUT,
                path,
                Some(&lab.token.0),
                "text/plain",
                wrong.clone(),
            )
            .await;
        assert_eq!(answer.status(), 422);
        let mistake = json!({"line": wrong.lines().count(), "column": 3, "problem": "nonsense", "hint": "make sense"});
        assert_eq!(body(&answer)["error"]["mistakes"], json!([mistake]));
    }
    assert_eq!(lab.get("/v1/status").await["revision"], 0);
    lab.stop().await;
}

#[tokio::test]
async fn the_key_of_the_machine_counts_whatever_the_journal_says() {
    let (ip, dir) = (address(), Arc::new(tempfile::tempdir().unwrap()));
    std::fs::write(dir.path().join("fleet.key"), format!("{KEY}\n")).unwrap();
    let text = fleet_text(&ip, "").replace(
        &format!("node_key = \"{KEY}\""),
        "node_key_file = \"fleet.key\"",
    );
    let lab = Lab::start_with(dir, ip, text.clone()).await;
    let changed = text.replace("label = \"Amsterdam\"", "label = \"A\"");
    let taken = lab
        .ask(
            Method::PUT,
            "/v1/fleet-file",
            Some(&lab.token.0),
            "text/plain",
            changed,
        )
        .await;
    assert_eq!(taken.status(), StatusCode::OK, "{taken:?}");
    let (dir, ip, _) = lab.stop().await;
    // The fleet gets another key, without a change of a fleet file.
    let other = "a wholly different key of the fleet";
    std::fs::write(dir.path().join("fleet.key"), format!("{other}\n")).unwrap();
    let lab = Lab::start_with(dir, ip, text).await;
    assert_eq!(
        lab.get_with("/v1/journal?after=0&node=ams-1", KEY)
            .await
            .status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        lab.get_with("/v1/journal?after=0&node=ams-1", other)
            .await
            .status(),
        StatusCode::OK
    );
    lab.stop().await;
}
