//! A real recursive resolver, started with the fleet's processes, walks from our own root to the
//! edges of each region. Its cache and the response codes are tested in gslb-dns/tests/resolver.rs.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::process::Process;
use crate::lab::tools::dig_addresses;
use crate::lab::wait;

/// A fleet whose name hierarchy is all ours: a root, the TLD `test`, and `ns1`, each on port 53 as
/// resolvers expect.
fn hierarchy() -> Plan {
    let mut plan = Plan::new();
    plan.nodes = 1;
    plan.fleet = "name_servers = [\"ns1\"]\n".to_owned();
    let (root, tld) = (plan.block.host(2), plan.block.host(3));
    plan.more = format!(
        "name_servers = [\"ns1\"]\n\
         [[zone]]\nname = \".\"\nname_servers = [\"root\"]\nrecords = [\"test NS ns.nic.test.\"]\n\
         [[zone]]\nname = \"test\"\nname_servers = [\"tld\"]\nrecords = [\"cdn NS ns1.cdn.test.\", \"demo NS ns1.cdn.test.\"]\n\
         [[name_server]]\nname = \"root\"\nhost = \"a.root-servers\"\nlisten = \"{root}:53\"\nadmin = \"{root}:9100\"\n\
         [[name_server]]\nname = \"tld\"\nhost = \"ns.nic.test\"\nlisten = \"{tld}:53\"\nadmin = \"{tld}:9100\"\n"
    );
    plan.dns_port = 53;
    plan
}

#[test]
fn unbound_walks_from_our_root_and_keeps_regions_apart() {
    let mut fleet = Fleet::start(hierarchy());
    let block = fleet.plan.block;
    for (name, last) in [("root", 2), ("tld", 3)] {
        fleet.start_node("gslb-dns", name);
        fleet.wait_ready(name, block.host(last));
    }
    let resolver = SocketAddr::from((block.host(54), 53));
    std::fs::write(
        fleet.path("root.hints"),
        format!(
            ". 3600000 NS a.root-servers.\na.root-servers. 3600000 A {}\n",
            block.host(2)
        ),
    )
    .expect("the hints can be written");
    let directory = fleet.path("");
    let conf = format!(
        "server:\n interface: {}\n port: 53\n do-ip6: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n directory: \"{dir}\"\n \
         use-syslog: no\n logfile: \"\"\n verbosity: 2\n access-control: 127.0.0.0/8 allow\n do-not-query-localhost: no\n \
         root-hints: \"{dir}/root.hints\"\n module-config: \"subnetcache iterator\"\n local-zone: \"test.\" nodefault\n \
         qname-minimisation: yes\n send-client-subnet: {}\n client-subnet-always-forward: yes\nremote-control:\n control-enable: no\n",
        resolver.ip(),
        block.host(53),
        dir = directory.display()
    );
    std::fs::write(fleet.path("unbound.conf"), conf).expect("the configuration can be written");
    let mut command = Command::new("/usr/sbin/unbound");
    command
        .args(["-d", "-p", "-c"])
        .arg(fleet.path("unbound.conf"));
    let _unbound = Process::start("unbound", &directory, command);
    wait::until("Unbound to resolve", Duration::from_secs(20), || {
        let output = Command::new("dig")
            .args([
                &format!("@{}", resolver.ip()),
                "demo.test",
                "MX",
                "+short",
                "+tries=1",
                "+time=2",
            ])
            .output()
            .expect("dig runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.trim() == "10 mail.demo.test." {
            Ok(())
        } else {
            Err(text)
        }
    });

    for (c, (place, subnet)) in CLIENTS.iter().enumerate() {
        let found = dig_addresses(resolver, "www.demo.test", subnet);
        assert_eq!(
            found,
            [fleet.plan.edge(c, 0).to_string()],
            "clients of {place} through Unbound"
        );
    }
}
