//! `nearcast traffic`: synthetic clients in the large cities of the world that resolve through the fleet's name
//! servers and fetch from the edges they are given.
//!
//! `plan` makes the sessions; `dns` and `fetch` carry out a client's requests; `tally` counts.

mod catalogue;
pub(crate) mod dns;
mod fetch;
mod plan;
mod tally;
mod zipf;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressStyle};
use nearcast_fleet::clock::unix_seconds;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_gslb_dns::places::DEMO_PLACES;
use nearcast_net::shutdown::{self, Shutdown};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::catalogue::{Catalogue, Ladder, Title};
use self::fetch::{ClientState, Fetcher};
use self::plan::{CLIENTS_PER_PLACE, Place, Planner, Session};
use self::tally::Tally;
use crate::cli::TrafficArgs;
use crate::{find, signals};

/// Sessions under way at once; more are turned away and counted.
const SESSIONS_MAX: usize = 400;
/// How long the fleet may take until it serves its catalogue.
const CATALOGUE_WAIT: Duration = Duration::from_secs(20);
/// Time between two tries at it.
const CATALOGUE_EVERY: Duration = Duration::from_millis(250);
/// How long requests under way may go on at the end.
const FINISH_MAX: Duration = Duration::from_secs(3);

/// The state that sessions share.
struct World {
    fetcher: Fetcher,
    clients: Vec<Vec<ClientState>>,
    page_host: String,
    video_host: String,
    cluster_of: BTreeMap<Ipv4Addr, String>,
    tally: Mutex<Tally>,
    /// Set when no request begins any more.
    closed: AtomicBool,
}

/// Runs clients until the time is over or a signal ends it; fails when every request failed.
pub(crate) async fn run(arguments: TrafficArgs, with_parent: bool) -> Result<(), Failure> {
    let fleet = find::fleet(arguments.fleet.fleet.as_deref())?;
    let (trigger, shutdown) = shutdown::channel();
    signals::end_on(trigger, with_parent)?;
    let world = Arc::new(World::of(&fleet, arguments.dns.clone())?);
    let catalogue = tokio::select! {
        catalogue = world.read_catalogue() => catalogue?,
        () = asked(shutdown.clone()) => return Ok(()),
    };
    let start = SystemTime::now();
    let fleet_now = fleet.clock.at(start);
    let places: Vec<Place> = (DEMO_PLACES.iter())
        .map(|place| Place {
            city: place.city,
            network: place.network,
            people: f64::from(place.million_people),
            taste: place.region as u64,
            utc_offset: utc_offset(place.time_zone, fleet_now),
        })
        .collect();
    let planner = Planner::new(
        arguments.seed,
        &places,
        catalogue,
        arguments.rate,
        fleet.clock,
        unix_seconds(start),
    );
    let begun = Instant::now();
    let showing = tokio::spawn(show(world.clone(), arguments.progress, arguments.json));
    drive(&world, planner, arguments.duration, shutdown).await;
    showing.abort();
    let took = begun.elapsed();
    let tally = world.tally.lock();
    if arguments.json {
        outln!("{}", tally.summary(took, arguments.seed));
    } else {
        out!("{}", tally.words(took));
    }
    match tally.all_failed() {
        Some(error) => Err(Failure::new(
            FailureKind::Unavailable,
            format!("every request failed, the last one: {error}; is the fleet running?"),
        )),
        None => Ok(()),
    }
}

/// Starts each session when it is due.
async fn drive(
    world: &Arc<World>,
    mut planner: Planner,
    duration: Option<Duration>,
    shutdown: Shutdown,
) {
    let room = Arc::new(Semaphore::new(SESSIONS_MAX));
    let begun = tokio::time::Instant::now();
    let mut sessions = tokio::task::JoinSet::new();
    while let Some(session) = planner.next() {
        let due = Duration::from_secs_f64(session.at);
        let is_last = duration.filter(|d| due > *d);
        tokio::select! {
            () = tokio::time::sleep_until(begun + is_last.unwrap_or(due)) => {}
            () = asked(shutdown.clone()) => return,
        }
        if is_last.is_some() {
            break;
        }
        while sessions.try_join_next().is_some() {}
        match room.clone().try_acquire_owned() {
            Ok(permit) => {
                world.count(Tally::session);
                let world = world.clone();
                sessions.spawn(async move {
                    world.play(session).await;
                    drop(permit);
                });
            }
            Err(_) => world.count(Tally::turned_away),
        }
    }
    world.closed.store(true, Ordering::Relaxed);
    let rest = async { while sessions.join_next().await.is_some() {} };
    tokio::select! {
        _ = tokio::time::timeout(FINISH_MAX, rest) => {}
        () = asked(shutdown) => {}
    }
}

async fn asked(mut shutdown: Shutdown) {
    shutdown.requested().await;
}

impl World {
    fn of(fleet: &Fleet, name_servers: Vec<SocketAddr>) -> Result<Self, Failure> {
        let usage = |message: &str| Failure::new(FailureKind::Usage, message);
        // Name servers of a parent zone would only refer to these.
        let from_file = || {
            let steering = fleet
                .zone_name_servers
                .iter()
                .filter_map(|i| fleet.name_servers.get(*i));
            steering.flat_map(|s| {
                s.addresses
                    .iter()
                    .flat_map(|a| s.listen.iter().map(|l| SocketAddr::new(*a, l.port())))
            })
        };
        let name_servers: Vec<SocketAddr> = if name_servers.is_empty() {
            from_file().collect()
        } else {
            name_servers
        };
        if name_servers.is_empty() {
            return Err(usage(
                "the fleet file has no [[name_server]]; name one with --dns",
            ));
        }
        let first_host = |name: &str| {
            let named = fleet.sites.iter().find(|s| s.name == name)?;
            named.hosts.iter().find(|h| *h != "*").cloned()
        };
        let any_host = || {
            fleet
                .sites
                .iter()
                .flat_map(|s| s.hosts.iter())
                .find(|h| *h != "*")
                .cloned()
        };
        let page_host = first_host("www").or_else(any_host).ok_or_else(|| {
            usage("no site of the fleet file has a host that clients could ask for")
        })?;
        let video_host = first_host("video").unwrap_or_else(|| page_host.clone());
        let mut ports = BTreeMap::new();
        let mut cluster_of = BTreeMap::new();
        for (cluster, node) in fleet
            .clusters
            .iter()
            .flat_map(|c| c.nodes.iter().map(move |n| (c, n)))
        {
            let port = node.listen.first().map_or(80, SocketAddr::port);
            for address in &node.addresses {
                if let IpAddr::V4(address) = address {
                    ports.insert(*address, port);
                    cluster_of.insert(*address, cluster.name.clone());
                }
            }
        }
        let clients = (DEMO_PLACES.iter())
            .map(|place| {
                (0..CLIENTS_PER_PLACE)
                    .map(|c| ClientState::new(plan::client_address(place.network, c)))
                    .collect()
            })
            .collect();
        let fetcher = Fetcher::new(name_servers, ports);
        Ok(Self {
            fetcher,
            clients,
            page_host,
            video_host,
            cluster_of,
            tally: Mutex::new(Tally::default()),
            closed: AtomicBool::new(false),
        })
    }

    fn count(&self, with: impl FnOnce(&mut Tally)) {
        with(&mut self.tally.lock());
    }

    /// One session, request after request; each waits for the one before.
    async fn play(&self, session: Session) {
        let Some(client) = self
            .clients
            .get(session.place)
            .and_then(|clients| clients.get(session.client))
        else {
            return;
        };
        let mut due = tokio::time::Instant::now();
        for step in session.steps {
            due += Duration::from_secs_f64(step.after);
            tokio::time::sleep_until(due).await;
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            let host = if step.video {
                &self.video_host
            } else {
                &self.page_host
            };
            let outcome = self.fetcher.fetch(client, host, &step.path, false).await;
            self.count(|tally| tally.request(&outcome, &self.cluster_of));
        }
    }

    /// Fetches the catalogue from the fleet; waits until the fleet serves it.
    async fn read_catalogue(&self) -> Result<Catalogue, Failure> {
        let begun = tokio::time::Instant::now();
        loop {
            match self.try_catalogue().await {
                Ok(catalogue) => return Ok(catalogue),
                Err(why) if begun.elapsed() > CATALOGUE_WAIT => {
                    let hint = "traffic needs the demo's content (`nearcast origin --demo-content`) or a site with such a catalogue";
                    return Err(Failure::new(
                        FailureKind::Unavailable,
                        format!(
                            "no catalogue at http://{}/catalogue.json: {why}; {hint}",
                            self.page_host
                        ),
                    ));
                }
                Err(_) => tokio::time::sleep(CATALOGUE_EVERY).await,
            }
        }
    }

    async fn try_catalogue(&self) -> Result<Catalogue, String> {
        let titles = catalogue::titles(&self.body(&self.page_host, "/catalogue.json").await?);
        let first: &Title = titles.first().ok_or("it lists no titles")?;
        let directory = first.hls.rsplit_once('/').map_or("", |(d, _)| d).to_owned();
        let (video, sound) = catalogue::playlists(&self.text(&first.hls).await?);
        let mut qualities = Vec::new();
        for name in video {
            let found =
                catalogue::rendition(&name, &self.text(&format!("{directory}/{name}")).await?);
            if !found.segments.is_empty() {
                qualities.push(found);
            }
        }
        if qualities.is_empty() {
            return Err(format!("{} names no playlist with segments", first.hls));
        }
        let sound = match sound {
            Some(name) => Some(catalogue::rendition(
                &name,
                &self.text(&format!("{directory}/{name}")).await?,
            )),
            None => None,
        };
        let pages = ["/", "/about.html"].map(str::to_owned).to_vec();
        Ok(Catalogue {
            titles,
            ladder: Ladder { qualities, sound },
            pages,
            assets: vec!["/style.css".to_owned()],
        })
    }

    async fn text(&self, path: &str) -> Result<String, String> {
        Ok(String::from_utf8_lossy(&self.body(&self.video_host, path).await?).into_owned())
    }

    async fn body(&self, host: &str, path: &str) -> Result<Vec<u8>, String> {
        Ok(self
            .fetcher
            .fetch(&self.clients[0][0], host, path, true)
            .await
            .result?
            .body)
    }
}

/// The progress line: redrawn on a terminal, elsewhere a new line at each interval.
async fn show(world: Arc<World>, every: Duration, quiet: bool) {
    let bar = (std::io::stderr().is_terminal() && !quiet).then(|| {
        let style =
            ProgressStyle::with_template("{spinner} {wide_msg}").expect("the template is right");
        ProgressBar::new_spinner().with_style(style)
    });
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    let mut printed = Instant::now();
    loop {
        second.tick().await;
        let line = {
            let mut tally = world.tally.lock();
            tally.tick();
            tally.line()
        };
        match &bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            // A little less than the interval, or the clock's jitter would leave out every second
            // one.
            None if !quiet && printed.elapsed() + Duration::from_millis(500) > every => {
                errln!("{line}");
                printed = Instant::now();
            }
            None => {}
        }
    }
}

/// Local time minus UTC in that zone at that moment, seconds.
fn utc_offset(zone: &str, unix: f64) -> f64 {
    let moment = jiff::Timestamp::from_second(unix as i64).ok();
    let zoned = moment.and_then(|m| m.in_tz(zone).ok());
    zoned.map_or(0.0, |z| f64::from(z.offset().seconds()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_their_own_time() {
        // 2026-06-01 and 2026-01-08, both at midnight UTC.
        let table = [
            ("Europe/Amsterdam", 2.0, 1.0),
            ("America/New_York", -4.0, -5.0),
            ("Asia/Singapore", 8.0, 8.0),
        ];
        for (zone, summer, winter) in table {
            assert_eq!(utc_offset(zone, 1_780_272_000.0), summer * 3600.0, "{zone}");
            assert_eq!(utc_offset(zone, 1_767_830_400.0), winter * 3600.0, "{zone}");
        }
    }
}
