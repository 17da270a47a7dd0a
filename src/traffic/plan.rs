//! The sessions of synthetic clients, with their requests and times, as a pure function of a seed.
//!
//! Knows no sockets and no clock: times are seconds after the start, the fleet's clock is a value.

use std::net::Ipv4Addr;

use nearcast_fleet::clock::FleetClock;
use nearcast_fleet::random::Random;

use super::catalogue::Catalogue;
use super::zipf::Zipf;

/// Clients in each place: few, since they take turns, and each keeps its own answers of DNS.
pub(super) const CLIENTS_PER_PLACE: usize = 4;
/// How unequal titles are (the exponent of Zipf's law).
const POPULARITY_EXPONENT: f64 = 0.9;
/// How far, in ranks, a taste may move a title.
const TASTE_RANKS: f64 = 6.0;
/// Share of sessions that watch a video; the others look at pages.
const WATCHING: f64 = 0.55;
/// Seconds between two segments of a session: viewers watch in fast motion.
const SEGMENT_EVERY: f64 = 0.25;
/// Seconds between two requests of one page.
const PAGE_EVERY: f64 = 0.02;
/// Probability that a viewer stops after a segment.
const STOPS: f64 = 0.04;
/// Probability, at each segment, of a better and of a worse connection.
const BETTER: f64 = 0.12;
const WORSE: f64 = 0.08;

/// Requests in each local hour in proportion to the day's mean: least before dawn, most in the
/// evening.
const DAY: [f64; 24] = [
    0.82, 0.52, 0.34, 0.25, 0.22, 0.25, 0.36, 0.52, 0.66, 0.76, 0.84, 0.90, 0.98, 1.00, 1.00, 1.04,
    1.14, 1.30, 1.54, 1.86, 2.14, 2.18, 1.82, 1.28,
];

/// A place with clients.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// Its name.
    pub(super) city: &'static str,
    /// The network of its clients, a /24.
    pub(super) network: Ipv4Addr,
    /// How many people live there, in proportion to other places.
    pub(super) people: f64,
    /// Places with the same number like the same titles.
    pub(super) taste: u64,
    /// Local time minus UTC, in seconds.
    pub(super) utc_offset: f64,
}

/// One session of one client.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Session {
    /// When it begins, in seconds after the start.
    pub(super) at: f64,
    /// Index of the place.
    pub(super) place: usize,
    /// Index of the client in its place.
    pub(super) client: usize,
    /// Its requests, in order.
    pub(super) steps: Vec<Step>,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    /// Seconds after the previous request was due.
    pub(super) after: f64,
    /// Whether it goes to the video site; else to the site with the pages.
    pub(super) video: bool,
    /// Path and query.
    pub(super) path: String,
}

/// An endless sequence of sessions in the order in which they begin.
#[derive(Debug)]
pub(super) struct Planner {
    lanes: Vec<Lane>,
    catalogue: Catalogue,
    zipf: Zipf,
    clock: FleetClock,
    start_unix: f64,
}

/// One place's own sequence.
#[derive(Debug)]
struct Lane {
    place: Place,
    /// Sessions a second at the day's mean.
    session_rate: f64,
    random: Random,
    /// Titles by popularity here.
    taste: Vec<usize>,
    next_at: f64,
}

/// The address of a client.
pub(super) fn client_address(network: Ipv4Addr, client: usize) -> Ipv4Addr {
    let [a, b, c, _] = network.octets();
    // 4 apart and never .0 or .255.
    Ipv4Addr::new(a, b, c, (1 + client * 4 % 253) as u8)
}

/// Requests at that local hour (0..24) in proportion to the day's mean.
pub(super) fn day_curve(hour: f64) -> f64 {
    let hour = hour.rem_euclid(24.0);
    let (from, share) = (hour.floor(), hour.fract());
    let at = |h: f64| DAY[h as usize % 24];
    at(from) * (1.0 - share) + at(from + 1.0) * share
}

impl Planner {
    /// Sessions that make `rate` requests a second on the day's average, from `start_unix` on. Each
    /// place has its people's share of them, and more in its evening than in its night.
    pub(super) fn new(
        seed: u64,
        places: &[Place],
        catalogue: Catalogue,
        rate: f64,
        clock: FleetClock,
        start_unix: f64,
    ) -> Self {
        let titles = catalogue.titles.len();
        let zipf = Zipf::new(titles, POPULARITY_EXPONENT);
        let people: f64 = places.iter().map(|p| p.people).sum();
        let lanes = places.iter().enumerate().map(|(i, place)| Lane {
            place: place.clone(),
            session_rate: place.people / people.max(f64::MIN_POSITIVE),
            random: Random::new(seed.wrapping_mul(1009).wrapping_add(i as u64)),
            taste: taste(
                titles,
                &mut Random::new(seed.wrapping_mul(31).wrapping_add(place.taste)),
            ),
            next_at: 0.0,
        });
        let mut planner = Self {
            lanes: lanes.collect(),
            catalogue,
            zipf,
            clock,
            start_unix,
        };
        let sessions = rate / planner.steps_mean(seed);
        for lane in 0..planner.lanes.len() {
            planner.lanes[lane].session_rate *= sessions;
            planner.lanes[lane].next_at = planner.arrival_after(lane, 0.0);
        }
        planner
    }

    /// The next session.
    pub(super) fn next(&mut self) -> Option<Session> {
        let lane = (0..self.lanes.len())
            .min_by(|a, b| self.lanes[*a].next_at.total_cmp(&self.lanes[*b].next_at))?;
        let at = self.lanes[lane].next_at;
        let mut random = self.lanes[lane].random.clone();
        let client = random.below(CLIENTS_PER_PLACE);
        let steps = self.steps(lane, &mut random);
        self.lanes[lane].random = random;
        self.lanes[lane].next_at = self.arrival_after(lane, at);
        Some(Session {
            at,
            place: lane,
            client,
            steps,
        })
    }

    /// Local hour in a place, that long after the start.
    pub(super) fn local_hour(&self, lane: usize, at: f64) -> f64 {
        let fleet =
            self.clock.fleet_seconds(self.start_unix + at) + self.lanes[lane].place.utc_offset;
        (fleet / 3600.0).rem_euclid(24.0)
    }

    /// The next arrival: arrivals at the rate of the busiest hour, thinned to the rate of the hour.
    fn arrival_after(&mut self, lane: usize, mut at: f64) -> f64 {
        let peak = DAY.iter().copied().fold(0.0, f64::max);
        loop {
            let busiest = self.lanes[lane].session_rate * peak;
            at += self.lanes[lane].random.until_next(busiest);
            let share = day_curve(self.local_hour(lane, at)) / peak;
            if self.lanes[lane].random.chance(share) {
                return at;
            }
        }
    }

    fn steps(&self, lane: usize, random: &mut Random) -> Vec<Step> {
        let title = &self.catalogue.titles[self.lanes[lane].taste[self.zipf.draw(random)]];
        if random.chance(WATCHING) {
            self.watch(title, random)
        } else {
            self.browse(lane, random)
        }
    }

    /// The player's page, manifests, then segment after segment with the quality that the
    /// connection allows.
    fn watch(&self, title: &super::catalogue::Title, random: &mut Random) -> Vec<Step> {
        let ladder = &self.catalogue.ladder;
        let mut steps = vec![page(title.page.clone()), media(&title.hls, "", PAGE_EVERY)];
        let mut quality = random.below(ladder.qualities.len());
        let mut started = vec![false; ladder.qualities.len()];
        let mut sound_started = false;
        for segment in 0..ladder.qualities[0].segments.len() {
            let (better, worse) = (random.chance(BETTER), random.chance(WORSE));
            quality = (quality + usize::from(better))
                .min(ladder.qualities.len() - 1)
                .saturating_sub(usize::from(worse));
            let rendition = &ladder.qualities[quality];
            if !std::mem::replace(&mut started[quality], true) {
                steps.push(media(&title.hls, &rendition.playlist, PAGE_EVERY));
                steps.extend(
                    rendition
                        .init
                        .iter()
                        .map(|init| media(&title.hls, init, PAGE_EVERY)),
                );
            }
            if let Some(name) = rendition.segments.get(segment) {
                steps.push(media(&title.hls, name, SEGMENT_EVERY));
            }
            if let Some(sound) = &ladder.sound {
                if !std::mem::replace(&mut sound_started, true) {
                    steps.push(media(&title.hls, &sound.playlist, PAGE_EVERY));
                    steps.extend(
                        sound
                            .init
                            .iter()
                            .map(|init| media(&title.hls, init, PAGE_EVERY)),
                    );
                }
                steps.extend(
                    sound
                        .segments
                        .get(segment)
                        .map(|name| media(&title.hls, name, PAGE_EVERY)),
                );
            }
            if random.chance(STOPS) {
                break;
            }
        }
        steps
    }

    /// The front page and its pictures, and at times a second page.
    fn browse(&self, lane: usize, random: &mut Random) -> Vec<Step> {
        let mut steps: Vec<Step> = self
            .catalogue
            .pages
            .iter()
            .take(1)
            .chain(&self.catalogue.assets)
            .map(|p| page(p.clone()))
            .collect();
        for _ in 0..3 + random.below(4) {
            let title = &self.catalogue.titles[self.lanes[lane].taste[self.zipf.draw(random)]];
            if !title.poster.is_empty() && !steps.iter().any(|s| s.path == title.poster) {
                steps.push(page(title.poster.clone()));
            }
        }
        if self.catalogue.pages.len() > 1 && random.chance(0.2) {
            let other = 1 + random.below(self.catalogue.pages.len() - 1);
            steps.push(Step {
                after: 0.5,
                ..page(self.catalogue.pages[other].clone())
            });
        }
        steps
    }

    /// Requests of a session on average, from a sample.
    fn steps_mean(&self, seed: u64) -> f64 {
        let mut random = Random::new(seed);
        let sample = 2000;
        let all: usize = (0..sample)
            .map(|i| self.steps(i % self.lanes.len(), &mut random).len())
            .sum();
        (all as f64 / sample as f64).max(1.0)
    }
}

fn page(path: String) -> Step {
    Step {
        after: PAGE_EVERY,
        video: false,
        path,
    }
}

/// A file beside a title's manifest; the manifest itself when `name` is empty.
fn media(manifest: &str, name: &str, after: f64) -> Step {
    let path = match manifest.rsplit_once('/') {
        Some((directory, _)) if !name.is_empty() => format!("{directory}/{name}"),
        _ => manifest.to_owned(),
    };
    Step {
        after,
        video: true,
        path,
    }
}

/// A taste's order of titles: the common one with each title moved by up to some ranks.
fn taste(titles: usize, random: &mut Random) -> Vec<usize> {
    let mut scored: Vec<(f64, usize)> = (0..titles)
        .map(|t| (t as f64 + random.unit() * TASTE_RANKS, t))
        .collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    scored.into_iter().map(|(_, title)| title).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::traffic::catalogue::tests::example;

    const PLACES: [Place; 3] = [
        Place {
            city: "Amsterdam",
            network: Ipv4Addr::new(198, 51, 100, 0),
            people: 2.0,
            taste: 0,
            utc_offset: 3600.0,
        },
        Place {
            city: "New York",
            network: Ipv4Addr::new(203, 0, 113, 0),
            people: 3.0,
            taste: 1,
            utc_offset: -18_000.0,
        },
        Place {
            city: "Singapore",
            network: Ipv4Addr::new(192, 0, 2, 0),
            people: 1.0,
            taste: 2,
            utc_offset: 28_800.0,
        },
    ];
    const FAST: FleetClock = FleetClock {
        anchor_real: 0.0,
        anchor_fleet: 0.0,
        speed: 360.0,
    };

    fn sessions(seed: u64, rate: f64, seconds: f64) -> Vec<Session> {
        let mut planner = Planner::new(seed, &PLACES, example(), rate, FAST, 0.0);
        std::iter::from_fn(|| planner.next())
            .take_while(|s| s.at < seconds)
            .collect()
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        assert_eq!(sessions(1, 50.0, 20.0), sessions(1, 50.0, 20.0));
        assert_ne!(sessions(1, 50.0, 20.0), sessions(2, 50.0, 20.0));
    }

    #[test]
    fn a_day_has_the_rate_that_was_asked_for_and_follows_the_sun() {
        let day = 240.0; // real seconds
        let sessions = sessions(3, 60.0, day);
        let requests: usize = sessions.iter().map(|s| s.steps.len()).sum();
        let rate = requests as f64 / day;
        assert!((rate - 60.0).abs() < 6.0, "{rate}");
        assert!(sessions.windows(2).all(|w| w[0].at <= w[1].at), "in order");
        let planner = Planner::new(3, &PLACES, example(), 60.0, FAST, 0.0);
        for (lane, place) in PLACES.iter().enumerate() {
            let between = |from: f64, to: f64| {
                let here = sessions.iter().filter(|s| s.place == lane);
                here.filter(|s| (from..to).contains(&planner.local_hour(lane, s.at)))
                    .count()
            };
            assert!(
                between(19.0, 22.0) > 4 * between(3.0, 6.0),
                "{}: {} {}",
                place.city,
                between(19.0, 22.0),
                between(3.0, 6.0)
            );
        }
    }

    #[test]
    fn each_place_has_its_people_s_share_of_the_sessions() {
        let sessions = sessions(4, 200.0, 240.0);
        let people: f64 = PLACES.iter().map(|p| p.people).sum();
        for (lane, place) in PLACES.iter().enumerate() {
            let here = sessions.iter().filter(|s| s.place == lane).count() as f64;
            let expected = sessions.len() as f64 * place.people / people;
            assert!(
                (here - expected).abs() < 5.0 * expected.sqrt(),
                "{}: {here} of {expected}",
                place.city
            );
        }
    }

    #[test]
    fn at_each_hour_the_evening_s_places_are_busier_than_the_night_s() {
        // Equal people, one place in each hour of the day, and a clock that stands still.
        let still = FleetClock { speed: 0.0, ..FAST };
        let places: Vec<Place> = (0..24)
            .map(|hour| Place {
                utc_offset: f64::from(hour) * 3600.0,
                people: 1.0,
                ..PLACES[0].clone()
            })
            .collect();
        let mut planner = Planner::new(6, &places, example(), 400.0, still, 0.0);
        let mut counts = [0.0; 24];
        for session in std::iter::from_fn(|| planner.next()).take_while(|s| s.at < 200.0) {
            counts[session.place] += 1.0;
        }
        let mean = counts.iter().sum::<f64>() / 24.0;
        for (hour, count) in counts.iter().enumerate() {
            let expected = mean * day_curve(hour as f64);
            assert!(
                (count - expected).abs() < 5.0 * expected.sqrt() + 1.0,
                "hour {hour}: {count} of {expected}"
            );
        }
    }

    #[test]
    fn the_day_is_as_long_as_its_mean() {
        let mean = DAY.iter().sum::<f64>() / 24.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert_eq!(day_curve(24.0), day_curve(0.0));
        assert_eq!(day_curve(-1.0), day_curve(23.0));
        assert!((day_curve(20.5) - (DAY[20] + DAY[21]) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn popular_titles_are_asked_for_most_and_tastes_differ() {
        let mut by_place: [BTreeMap<String, usize>; 3] = Default::default();
        for session in sessions(5, 200.0, 240.0) {
            for step in session
                .steps
                .iter()
                .filter(|s| s.path.ends_with("master.m3u8"))
            {
                *by_place[session.place]
                    .entry(step.path.clone())
                    .or_default() += 1;
            }
        }
        let orders: BTreeSet<Vec<String>> = by_place
            .iter()
            .map(|counts| {
                let mut order: Vec<_> = counts.iter().collect();
                order.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
                assert!(*order[0].1 > 4 * order[order.len() - 1].1, "{order:?}");
                order.into_iter().map(|(path, _)| path.clone()).collect()
            })
            .collect();
        assert_eq!(orders.len(), 3);
    }

    #[test]
    fn a_viewer_takes_segments_in_order_and_each_quality_from_its_start() {
        let mut switches = 0;
        for session in sessions(9, 200.0, 60.0) {
            let paths: Vec<&str> = session
                .steps
                .iter()
                .filter(|s| s.video)
                .map(|s| s.path.as_str())
                .collect();
            let mut next = 1;
            let mut last = None;
            for (i, path) in paths.iter().enumerate() {
                let parts: Vec<&str> = path.split('/').collect();
                if let Some(number) = path
                    .rsplit_once("seg-")
                    .and_then(|(_, n)| n.strip_suffix(".m4s"))
                    .and_then(|n| n.parse::<u32>().ok())
                {
                    let quality = parts[3];
                    assert!(
                        paths[..i]
                            .iter()
                            .any(|p| p.contains(&format!("{quality}/init"))),
                        "{paths:?}"
                    );
                    if quality != "audio" {
                        assert_eq!(number, next, "{paths:?}");
                        next += 1;
                        switches += usize::from(last.is_some_and(|l| l != quality));
                        last = Some(quality);
                    }
                }
            }
        }
        assert!(switches > 50, "{switches}");
    }

    #[test]
    fn clients_have_addresses_of_their_place() {
        let all: BTreeSet<Ipv4Addr> = (0..CLIENTS_PER_PLACE)
            .map(|c| client_address(PLACES[1].network, c))
            .collect();
        assert_eq!(all.len(), CLIENTS_PER_PLACE);
        assert!(
            all.iter()
                .all(|a| a.octets()[..3] == [203, 0, 113] && !matches!(a.octets()[3], 0 | 255))
        );
    }
}
