//! A new fleet while queries come: every answer is of one revision, whole.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nearcast_fleet::config::Site;
use support::{Server, count, fleet, query, site};

/// A site that only one cluster serves.
fn site_in(name: &str, cluster: usize) -> Site {
    Site {
        clusters: vec![cluster],
        ..site(name, &[])
    }
}

#[test]
fn sites_that_change_places_in_the_file_are_never_taken_for_one_another() {
    let (here, there) = (site_in("here", 0), site_in("there", 2));
    let server = Server::start_with(vec![here.clone(), there.clone()], vec![]);
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = [("here.cdn.test", 10), ("there.cdn.test", 30)]
        .into_iter()
        .map(|(name, net)| {
            let (done, address) = (done.clone(), server.address);
            std::thread::spawn(move || {
                let message = query(1, name, 1);
                let mut whole = 0;
                while !done.load(Ordering::Relaxed) {
                    let answer =
                        support::udp_within(address, &message, std::time::Duration::from_secs(3))
                            .expect("an answer");
                    // On a quick machine this may be more than one network is given without a
                    // cookie.
                    if answer[2] & 0x02 != 0 {
                        continue;
                    }
                    whole += 1;
                    assert_eq!(
                        count(&answer, 6),
                        2,
                        "{name} has two addresses at all times"
                    );
                    assert_eq!(
                        answer[answer.len() - 4..answer.len() - 1],
                        [127, 0, net],
                        "{name} is given another site's cluster"
                    );
                }
                whole
            })
        })
        .collect();
    let orders = [vec![there.clone(), here.clone()], vec![here, there]];
    let serial = || {
        server
            .dig(&["cdn.test", "SOA", "+short"])
            .split(' ')
            .nth(2)
            .map(str::to_owned)
    };
    for turn in 0..8 {
        let before = serial();
        server.fleet.send_replace(Arc::new(fleet(
            vec![server.address],
            orders[turn % 2].clone(),
            vec![],
        )));
        // The next one only once this one is served, so that none is left out.
        while serial() == before && !clients.iter().any(std::thread::JoinHandle::is_finished) {}
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.join().expect("every answer was right") > 100);
    }
}

#[test]
fn what_is_new_in_the_soa_alone_is_served() {
    let server = Server::start();
    let soa = || server.dig(&["cdn.test", "SOA", "+short"]);
    let first = soa();
    let mut other = fleet(
        vec![server.address],
        vec![site("www", &["www.demo.test"])],
        vec![support::demo_zone()],
    );
    other.hostmaster = "other@cdn.test".to_owned();
    server.fleet.send_replace(Arc::new(other));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !soa().contains("other.cdn.test.") {
        assert!(std::time::Instant::now() < deadline, "still {}", soa());
    }
    let serial = |soa: &str| -> u32 {
        soa.split(' ')
            .nth(2)
            .and_then(|s| s.parse().ok())
            .expect("a serial")
    };
    assert!(
        nearcast_gslb_dns::zone::is_newer(serial(&soa()), serial(&first)),
        "{first} then {}",
        soa()
    );
}
