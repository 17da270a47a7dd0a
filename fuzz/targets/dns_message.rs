//! Any bytes as a DNS message: whether they are answered follows a rule, and every answer is well
//! formed, to the point and no larger than it may be.
#![no_main]

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use nearcast_gslb_dns::cookie::{CookieKey, CookieSecrets};
use nearcast_gslb_dns::handler::{Handler, Worker};
use nearcast_gslb_dns::message::{HEADER_BYTES, Query, UDP_BYTES_MAX, UDP_BYTES_PLAIN};
use nearcast_gslb_dns::metrics::Transport;
use nearcast_gslb_dns::steer::{Revision, Steering};
use nearcast_gslb_dns::zone::Zones;

/// One site, one customer's zone with a record of every kind that is treated in a way of its own.
const FLEET: &str = include_str!("../seeds/fleet_file/zones.toml");

static HANDLER: LazyLock<Handler> = LazyLock::new(|| {
    let fleet = nearcast_fleet::file::parse(FLEET, std::path::Path::new("/"))
        .expect("the fleet file is good");
    let zones = Zones::compile(&fleet, "ns1", 1).expect("its zones are good");
    // Nobody drives this runtime, so no health check runs and answers depend on the message alone.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (trigger, shutdown) = nearcast_net::shutdown::channel();
    let (served_tx, served) = tokio::sync::watch::channel(Revision {
        fleet: Arc::new(fleet),
        zones: Arc::new(zones),
    });
    let steering = {
        let _inside = runtime.enter();
        Steering::start(served, &prometheus::Registry::new(), shutdown)
    };
    std::mem::forget((runtime, trigger, served_tx));
    let secrets = CookieSecrets::new(CookieKey::of_bytes([7; 32]), None, 0);
    let cookies = ArcSwap::from_pointee(secrets);
    Handler {
        steering,
        server_id: "ns1".to_owned(),
        cookies,
    }
});

fuzz_target!(|message: &[u8]| {
    for transport in [Transport::Udp, Transport::Tcp] {
        let snapshot = HANDLER.steering.snapshot();
        let mut worker = Worker::new(transport, 1, 1_800_000_000);
        // Something may stand before the answer.
        let mut out = vec![0xff; 3];
        let is_answered = HANDLER.answer(
            &snapshot,
            &mut worker,
            message,
            IpAddr::from([192, 0, 2, 7]),
            &mut out,
        );
        let is_query = message.len() >= HEADER_BYTES && message[2] & 0x80 == 0;
        assert_eq!(is_answered, is_query);
        let answer = &out[3..];
        if !is_answered {
            assert!(answer.is_empty());
            continue;
        }
        let query = Query::parse(message).expect("a query");
        assert_eq!(answer[..2], message[..2], "id");
        assert_eq!(
            answer[2] & 0xf9,
            0x80 | message[2] & 0x79,
            "QR set, opcode and RD copied"
        );
        assert_eq!(
            answer[3] & 0xf0,
            message[3] & 0x10,
            "RA, Z and AD clear, CD copied"
        );
        if let Some(question) = &query.question {
            assert_eq!(
                answer[HEADER_BYTES..question.end],
                message[HEADER_BYTES..question.end]
            );
        }
        if transport == Transport::Udp {
            let limit = query.edns.map_or(UDP_BYTES_PLAIN, |e| {
                usize::from(e.udp_bytes).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX)
            });
            assert!(answer.len() <= limit, "{} of {limit}", answer.len());
        } else {
            assert_eq!(answer[2] & 2, 0, "nothing is cut over TCP");
        }
        let subnet = query.edns.and_then(|e| e.subnet);
        // The library refuses family 0, which a resolver that withholds the subnet may send.
        if subnet.is_none_or(|s| s.family != 0) {
            let parsed = Message::from_vec(answer).unwrap_or_else(|e| panic!("{e}: {answer:02x?}"));
            assert_eq!(
                parsed.edns.is_some(),
                query.edns.is_some(),
                "OPT comes with OPT"
            );
            assert!(parsed.queries.len() <= 1);
        }
    }
});
