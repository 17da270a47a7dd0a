//! Keys are read, derived, checked and revoked; weak secrets are found.

use std::collections::BTreeSet;

use http::HeaderValue;

use super::strength::strength_bits;
use super::*;
use crate::testing::FleetText;

const ROOT: &str = "zmeTmqW0rsUuA4mGJ8J3ZkSb0hWcYyTt";

fn fleet(more: &str, nodes: &str) -> Fleet {
    FleetText::new()
        .set("node_key", &format!("\"{ROOT}\""))
        .text_in_fleet(more)
        .text_after("[control]")
        .name_server("ns1", "127.0.0.1:5300")
        .cluster_head("ams", "")
        .node("ams-1", "192.0.2.1", nodes)
        .node("ams-2", "192.0.2.2", "")
        .fleet()
}

fn own_only(mut fleet: Fleet) -> Fleet {
    fleet.keys.own_only = true;
    fleet
}

fn key(fleet: &Fleet, node: &str) -> OwnKey {
    OwnKey::derive(&Secret(ROOT.into()), fleet, node).expect("a node of the fleet")
}

fn with(shown: &str) -> HeaderMap {
    HeaderMap::from_iter([(
        AUTHORIZATION,
        HeaderValue::try_from(format!("Bearer {shown}")).expect("a field"),
    )])
}

#[test]
fn a_key_is_read_as_it_was_written_and_nothing_else_is_one() {
    let fleet = fleet("", "");
    let edge = key(&fleet, "ams-1");
    assert_eq!(OwnKey::parse(&edge.line().0), Some(edge.clone()));
    let dns = key(&fleet, "ns1");
    assert!(
        dns.line().0.ends_with(".-"),
        "no edge, no secret of a cluster"
    );
    assert_eq!(OwnKey::parse(&dns.line().0), Some(dns));
    assert!(
        !edge
            .shown()
            .0
            .contains(edge.peer.as_deref().expect("an edge")),
        "control never sees the secret of the cluster"
    );
    assert_eq!(OwnKey::derive(&Secret(ROOT.into()), &fleet, "lon-1"), None);
    for bad in [
        "",
        "nck1.",
        "nck1.a.1.b",
        "nck1.a.x.y.z",
        "nck2.ams-1.1",
        ROOT,
        &edge.line().0[..90],
        &format!("{}.x", edge.line().0),
    ] {
        assert_eq!(OwnKey::parse(bad), None, "{bad}");
    }
}

#[test]
fn keys_differ_by_node_generation_root_and_use() {
    let (one, two) = (fleet("", ""), fleet("", "key_generation = 2"));
    let other = Secret("another key of the fleet, long enough".into());
    let all = [
        key(&one, "ams-1").secret,
        key(&one, "ams-2").secret,
        key(&one, "ns1").secret,
        key(&two, "ams-1").secret,
        OwnKey::derive(&other, &one, "ams-1")
            .expect("a node")
            .secret,
        key(&one, "ams-1").peer.expect("an edge"),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(
        key(&one, "ams-1").peer,
        key(&two, "ams-2").peer,
        "one secret a cluster"
    );
}

#[test]
fn each_key_speaks_for_whom_it_is_of() {
    let shared = fleet("", "key_generation = 2");
    let own = own_only(shared.clone());
    let before = key(&fleet("", ""), "ams-1").shown().0;
    let now = key(&shared, "ams-1").shown().0;
    let gone = {
        let mut with_more = shared.clone();
        with_more.clusters[0].nodes[1].name = "lon-1".into();
        key(&with_more, "lon-1").shown().0
    };
    let revoked = KeyRefused::Revoked {
        node: "ams-1".into(),
        shown: 1,
        current: 2,
    };
    let forged = format!("{}0", &now[..now.len() - 1]);
    let forged = if forged == now {
        format!("{}1", &now[..now.len() - 1])
    } else {
        forged
    };
    let table = [
        (&shared, ROOT, Ok(Caller::Shared)),
        (&own, ROOT, Err(KeyRefused::Shared)),
        (&shared, now.as_str(), Ok(Caller::Node("ams-1".into()))),
        (&own, now.as_str(), Ok(Caller::Node("ams-1".into()))),
        (&own, before.as_str(), Err(revoked.clone())),
        (&shared, before.as_str(), Err(revoked)),
        (&own, gone.as_str(), Err(KeyRefused::Gone("lon-1".into()))),
        (
            &own,
            forged.as_str(),
            Err(KeyRefused::Wrong(Some("ams-1".into()))),
        ),
        (&shared, "another", Err(KeyRefused::Wrong(None))),
        (&own, "another", Err(KeyRefused::Wrong(None))),
    ];
    for (fleet, shown, expected) in table {
        assert_eq!(caller(fleet, &with(shown)), expected, "{shown}");
    }
    assert_eq!(caller(&own, &HeaderMap::new()), Err(KeyRefused::Missing));
    let mut twice = with(&now);
    twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    assert_eq!(caller(&own, &twice), Err(KeyRefused::Missing));
    let mut holder = own.clone();
    holder.node_key = key(&own, "ams-2").line();
    assert_eq!(caller(&holder, &with(&now)), Err(KeyRefused::CannotCheck));
    holder.node_key = Secret(String::new());
    assert_eq!(
        caller(&holder, &with("")),
        Err(KeyRefused::Wrong(None)),
        "a fleet without a key trusts nobody"
    );
    let caller = Caller::Node("ams-1".into());
    assert_eq!(caller.speaks_for("ams-1"), Ok(()));
    let refused = caller.speaks_for("ams-2").expect_err("another node");
    assert_eq!(
        (refused.status(), refused.node()),
        (StatusCode::FORBIDDEN, Some("ams-1"))
    );
    assert_eq!(Caller::Shared.speaks_for("ams-2"), Ok(()));
}

#[test]
fn a_node_shows_what_is_checked() {
    for fleet in [fleet("", ""), own_only(fleet("", "key_generation = 7"))] {
        for node in nodes(&fleet) {
            let shown = shown_by(&fleet, node).expect("a key");
            caller(&fleet, &with(&shown.0))
                .expect("good")
                .speaks_for(node)
                .expect("its own");
            let mut holder = fleet.clone();
            holder.node_key = key(&fleet, node).line();
            let shown = shown_by(&holder, node).expect("a key");
            assert_eq!(
                caller(&fleet, &with(&shown.0)),
                Ok(Caller::Node(node.to_owned()))
            );
        }
    }
}

#[test]
fn edges_of_a_cluster_know_one_another_by_its_secret() {
    let root = fleet("", "");
    let (mut one, mut two) = (root.clone(), root.clone());
    one.node_key = key(&root, "ams-1").line();
    two.node_key = key(&root, "ams-2").line();
    let is_peer = |fleet: &Fleet, cluster: &str, shown: &[u8]| {
        is_one_of(shown, &accepted_from_peers(fleet, cluster))
    };
    let shown = shown_to_peers(&one, "ams").expect("an edge");
    for fleet in [&two, &root, &own_only(root.clone())] {
        assert!(is_peer(fleet, "ams", shown.0.as_bytes()));
        assert!(!is_peer(fleet, "ams", b"x") && !is_peer(fleet, "ams", b""));
    }
    assert!(
        is_peer(&root, "ams", ROOT.as_bytes()),
        "an edge of an earlier version"
    );
    assert!(!is_peer(&own_only(root.clone()), "ams", ROOT.as_bytes()));
    assert!(!is_peer(&two, "ams", two.node_key.0.as_bytes()));
    let mut renewed = root.clone();
    renewed.keys.cluster_generations.insert("ams".into(), 2);
    assert!(!is_peer(&renewed, "ams", shown.0.as_bytes()));
    let mut none = root;
    none.node_key = Secret(String::new());
    assert!(!is_peer(&none, "ams", b""));
}

#[test]
fn secrets_that_are_guessed_first_are_known() {
    let made = (0..64_u32).map(|n| derived(&Secret(n.to_string()), &["x"])[..32].to_owned());
    for good in made.chain([
        ROOT.to_owned(),
        "a key that only this test knows".to_owned(),
    ]) {
        assert_eq!(strength(&good), Strength::Good, "{good}");
    }
    for weak in [
        "sixteen characters",
        "a key for one benchmark",
        "the key of this test",
        "kqzjxwvbmtrplfgh",
        "0123456789abcdef0123",
    ] {
        assert!(
            matches!(strength(weak), Strength::Weak(_)),
            "{weak}: {:?} {}",
            strength(weak),
            strength_bits(weak)
        );
    }
    for worthless in [
        "at least sixteen characters, kept secret",
        "A long secret that the nodes share",
        "aaaaaaaaaaaaaaaa",
        "abababababababab",
        "1234567890123456",
        "0123456789abcdef",
        "0123456789abcdef0123456789abcdef",
        "abcdefghijklmnopqrstuvwxyz",
        "abcdefghijklmnop",
        "01234567890123456789",
        "password0123456789abcdef",
        "passwordpassword",
        "P4ssw0rdP4ssw0rd",
        "secret-node-key-1",
        "changemechangeme!",
        "nearcastnearcast",
        "qwertyqwerty1234",
        "testtesttesttest",
        "<your secret here>",
        "example-node-key-123",
        "CHANGE-ME-PLEASE-NOW",
        "replace-this-key-please",
    ] {
        assert!(
            matches!(strength(worthless), Strength::Worthless(_)),
            "{worthless}: {}",
            strength_bits(worthless)
        );
    }
}

#[test]
fn a_shared_key_is_warned_of() {
    let shared = fleet("", "");
    assert_eq!(warnings(&shared), [SHARED_WARNING]);
    assert_eq!(warnings(&own_only(shared.clone())), Vec::<String>::new());
    let mut weak = own_only(shared);
    weak.node_key = Secret("sixteen characters".into());
    assert!(
        warnings(&weak)[0].starts_with("fleet.node_key is made of few words"),
        "{:?}",
        warnings(&weak)
    );
}
