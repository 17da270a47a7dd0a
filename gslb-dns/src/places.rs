//! The demonstration's clients: large cities of the world, each with a network that no one uses.
//!
//! The networks are the documentation's (RFC 5737) and parts of the block for benchmarks (RFC 2544),
//! so that nobody's addresses are claimed. Positions, people and time zones are common knowledge,
//! rounded; people are those of the urban area.

use std::net::Ipv4Addr;

/// A city whose inhabitants are clients of the demonstration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DemoPlace {
    /// The city.
    pub city: &'static str,
    /// Code of its country (ISO 3166).
    pub country: [u8; 2],
    /// Network address of its clients, a /24.
    pub network: Ipv4Addr,
    /// Degrees north.
    pub latitude: f32,
    /// Degrees east.
    pub longitude: f32,
    /// Millions of people.
    pub million_people: f32,
    /// Name in the time zone database.
    pub time_zone: &'static str,
    /// Part of the world whose taste it shares.
    pub region: DemoRegion,
}

/// A part of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DemoRegion {
    /// Europe, Africa and the Middle East.
    Europe,
    /// North and South America.
    Americas,
    /// Asia and Oceania.
    Asia,
}

use DemoRegion::{Americas, Asia, Europe};

const fn place(
    network: [u8; 3],
    city: &'static str,
    country: &[u8; 2],
    (latitude, longitude): (f32, f32),
    million_people: f32,
    time_zone: &'static str,
    region: DemoRegion,
) -> DemoPlace {
    DemoPlace {
        city,
        country: *country,
        network: Ipv4Addr::new(network[0], network[1], network[2], 0),
        latitude,
        longitude,
        million_people,
        time_zone,
        region,
    }
}

/// All places, by their networks.
#[rustfmt::skip]
pub const DEMO_PLACES: &[DemoPlace] = &[
    place([192, 0, 2], "Singapore", b"SG", (1.352, 103.820), 5.9, "Asia/Singapore", Asia),
    place([198, 18, 1], "London", b"GB", (51.51, -0.13), 9.6, "Europe/London", Europe),
    place([198, 18, 2], "Paris", b"FR", (48.86, 2.35), 11.2, "Europe/Paris", Europe),
    place([198, 18, 3], "Berlin", b"DE", (52.52, 13.41), 3.6, "Europe/Berlin", Europe),
    place([198, 18, 4], "Madrid", b"ES", (40.42, -3.70), 6.7, "Europe/Madrid", Europe),
    place([198, 18, 5], "Rome", b"IT", (41.90, 12.50), 4.3, "Europe/Rome", Europe),
    place([198, 18, 6], "Lisbon", b"PT", (38.72, -9.14), 3.0, "Europe/Lisbon", Europe),
    place([198, 18, 7], "Dublin", b"IE", (53.35, -6.26), 1.3, "Europe/Dublin", Europe),
    place([198, 18, 8], "Brussels", b"BE", (50.85, 4.35), 2.1, "Europe/Brussels", Europe),
    place([198, 18, 9], "Zurich", b"CH", (47.37, 8.54), 1.4, "Europe/Zurich", Europe),
    place([198, 18, 10], "Vienna", b"AT", (48.21, 16.37), 2.0, "Europe/Vienna", Europe),
    place([198, 18, 11], "Prague", b"CZ", (50.08, 14.44), 1.3, "Europe/Prague", Europe),
    place([198, 18, 12], "Warsaw", b"PL", (52.23, 21.01), 1.8, "Europe/Warsaw", Europe),
    place([198, 18, 13], "Copenhagen", b"DK", (55.68, 12.57), 1.4, "Europe/Copenhagen", Europe),
    place([198, 18, 14], "Oslo", b"NO", (59.91, 10.75), 1.1, "Europe/Oslo", Europe),
    place([198, 18, 15], "Stockholm", b"SE", (59.33, 18.07), 1.7, "Europe/Stockholm", Europe),
    place([198, 18, 16], "Helsinki", b"FI", (60.17, 24.94), 1.3, "Europe/Helsinki", Europe),
    place([198, 18, 17], "Reykjavik", b"IS", (64.15, -21.94), 0.2, "Atlantic/Reykjavik", Europe),
    place([198, 18, 18], "Budapest", b"HU", (47.50, 19.04), 1.8, "Europe/Budapest", Europe),
    place([198, 18, 19], "Bucharest", b"RO", (44.43, 26.10), 1.8, "Europe/Bucharest", Europe),
    place([198, 18, 20], "Athens", b"GR", (37.98, 23.73), 3.2, "Europe/Athens", Europe),
    place([198, 18, 21], "Kyiv", b"UA", (50.45, 30.52), 3.0, "Europe/Kyiv", Europe),
    place([198, 18, 22], "Istanbul", b"TR", (41.01, 28.98), 15.8, "Europe/Istanbul", Europe),
    place([198, 18, 23], "Cairo", b"EG", (30.04, 31.24), 22.2, "Africa/Cairo", Europe),
    place([198, 18, 24], "Casablanca", b"MA", (33.57, -7.59), 3.9, "Africa/Casablanca", Europe),
    place([198, 18, 25], "Algiers", b"DZ", (36.75, 3.06), 2.9, "Africa/Algiers", Europe),
    place([198, 18, 26], "Tunis", b"TN", (36.81, 10.18), 2.4, "Africa/Tunis", Europe),
    place([198, 18, 27], "Dakar", b"SN", (14.72, -17.47), 3.3, "Africa/Dakar", Europe),
    place([198, 18, 28], "Accra", b"GH", (5.60, -0.19), 2.7, "Africa/Accra", Europe),
    place([198, 18, 29], "Lagos", b"NG", (6.52, 3.38), 15.9, "Africa/Lagos", Europe),
    place([198, 18, 30], "Kinshasa", b"CD", (-4.44, 15.27), 16.3, "Africa/Kinshasa", Europe),
    place([198, 18, 31], "Luanda", b"AO", (-8.84, 13.23), 9.3, "Africa/Luanda", Europe),
    place([198, 18, 32], "Johannesburg", b"ZA", (-26.20, 28.05), 6.2, "Africa/Johannesburg", Europe),
    place([198, 18, 33], "Nairobi", b"KE", (-1.29, 36.82), 5.3, "Africa/Nairobi", Europe),
    place([198, 18, 34], "Addis Ababa", b"ET", (9.02, 38.75), 5.5, "Africa/Addis_Ababa", Europe),
    place([198, 18, 35], "Riyadh", b"SA", (24.71, 46.68), 7.7, "Asia/Riyadh", Europe),
    place([198, 18, 36], "Dubai", b"AE", (25.20, 55.27), 3.0, "Asia/Dubai", Europe),
    place([198, 18, 37], "Tel Aviv", b"IL", (32.09, 34.78), 4.4, "Asia/Jerusalem", Europe),
    place([198, 18, 38], "Tehran", b"IR", (35.69, 51.39), 9.5, "Asia/Tehran", Europe),
    place([198, 18, 39], "Almaty", b"KZ", (43.24, 76.89), 2.0, "Asia/Almaty", Asia),
    place([198, 18, 40], "Karachi", b"PK", (24.86, 67.01), 17.6, "Asia/Karachi", Asia),
    place([198, 18, 41], "Mumbai", b"IN", (19.08, 72.88), 21.7, "Asia/Kolkata", Asia),
    place([198, 18, 42], "Delhi", b"IN", (28.61, 77.21), 33.8, "Asia/Kolkata", Asia),
    place([198, 18, 43], "Colombo", b"LK", (6.93, 79.86), 0.6, "Asia/Colombo", Asia),
    place([198, 18, 44], "Kathmandu", b"NP", (27.72, 85.32), 1.6, "Asia/Kathmandu", Asia),
    place([198, 18, 45], "Dhaka", b"BD", (23.81, 90.41), 23.9, "Asia/Dhaka", Asia),
    place([198, 18, 46], "Bangkok", b"TH", (13.76, 100.50), 11.2, "Asia/Bangkok", Asia),
    place([198, 18, 47], "Hanoi", b"VN", (21.03, 105.85), 5.4, "Asia/Ho_Chi_Minh", Asia),
    place([198, 18, 48], "Kuala Lumpur", b"MY", (3.15, 101.69), 8.8, "Asia/Kuala_Lumpur", Asia),
    place([198, 18, 49], "Jakarta", b"ID", (-6.21, 106.85), 11.4, "Asia/Jakarta", Asia),
    place([198, 18, 50], "Manila", b"PH", (14.60, 120.98), 14.9, "Asia/Manila", Asia),
    place([198, 18, 51], "Hong Kong", b"HK", (22.32, 114.17), 7.7, "Asia/Hong_Kong", Asia),
    place([198, 18, 52], "Shanghai", b"CN", (31.23, 121.47), 29.9, "Asia/Shanghai", Asia),
    place([198, 18, 53], "Beijing", b"CN", (39.90, 116.41), 22.2, "Asia/Shanghai", Asia),
    place([198, 18, 54], "Taipei", b"TW", (25.03, 121.57), 2.8, "Asia/Taipei", Asia),
    place([198, 18, 55], "Seoul", b"KR", (37.57, 126.98), 10.0, "Asia/Seoul", Asia),
    place([198, 18, 56], "Tokyo", b"JP", (35.68, 139.69), 37.1, "Asia/Tokyo", Asia),
    place([198, 18, 57], "Sydney", b"AU", (-33.87, 151.21), 5.2, "Australia/Sydney", Asia),
    place([198, 18, 58], "Auckland", b"NZ", (-36.85, 174.76), 1.7, "Pacific/Auckland", Asia),
    place([198, 18, 59], "Port Moresby", b"PG", (-9.44, 147.18), 0.4, "Pacific/Port_Moresby", Asia),
    place([198, 18, 60], "Suva", b"FJ", (-18.14, 178.44), 0.2, "Pacific/Fiji", Asia),
    place([198, 18, 61], "Los Angeles", b"US", (34.05, -118.24), 12.5, "America/Los_Angeles", Americas),
    place([198, 18, 62], "Chicago", b"US", (41.88, -87.63), 8.9, "America/Chicago", Americas),
    place([198, 18, 63], "Toronto", b"CA", (43.65, -79.38), 6.4, "America/Toronto", Americas),
    place([198, 18, 64], "Vancouver", b"CA", (49.28, -123.12), 2.7, "America/Vancouver", Americas),
    place([198, 18, 65], "Mexico City", b"MX", (19.43, -99.13), 22.5, "America/Mexico_City", Americas),
    place([198, 18, 66], "Guatemala City", b"GT", (14.63, -90.51), 3.1, "America/Guatemala", Americas),
    place([198, 18, 67], "Havana", b"CU", (23.11, -82.37), 2.1, "America/Havana", Americas),
    place([198, 18, 68], "Santo Domingo", b"DO", (18.49, -69.93), 3.6, "America/Santo_Domingo", Americas),
    place([198, 18, 69], "Panama City", b"PA", (8.98, -79.52), 2.0, "America/Panama", Americas),
    place([198, 18, 70], "Bogota", b"CO", (4.71, -74.07), 11.7, "America/Bogota", Americas),
    place([198, 18, 71], "Caracas", b"VE", (10.48, -66.90), 3.0, "America/Caracas", Americas),
    place([198, 18, 72], "Quito", b"EC", (-0.18, -78.47), 2.0, "America/Guayaquil", Americas),
    place([198, 18, 73], "Lima", b"PE", (-12.05, -77.04), 11.4, "America/Lima", Americas),
    place([198, 18, 74], "La Paz", b"BO", (-16.49, -68.12), 2.0, "America/La_Paz", Americas),
    place([198, 18, 75], "Santiago", b"CL", (-33.45, -70.67), 7.0, "America/Santiago", Americas),
    place([198, 18, 76], "Buenos Aires", b"AR", (-34.60, -58.38), 15.6, "America/Argentina/Buenos_Aires", Americas),
    place([198, 18, 77], "Montevideo", b"UY", (-34.90, -56.16), 1.8, "America/Montevideo", Americas),
    place([198, 18, 78], "Sao Paulo", b"BR", (-23.55, -46.63), 22.8, "America/Sao_Paulo", Americas),
    place([198, 18, 79], "Manaus", b"BR", (-3.12, -60.02), 2.3, "America/Manaus", Americas),
    place([198, 51, 100], "Amsterdam", b"NL", (52.370, 4.895), 1.2, "Europe/Amsterdam", Europe),
    place([203, 0, 113], "New York", b"US", (40.713, -74.006), 19.0, "America/New_York", Americas),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn places_are_many_and_their_networks_are_reserved_ones() {
        let mut countries = BTreeSet::new();
        assert!(
            DEMO_PLACES.windows(2).all(|w| w[0].network < w[1].network),
            "in order, each once"
        );
        for place in DEMO_PLACES {
            let is_reserved = matches!(
                place.network.octets(),
                [192, 0, 2, 0] | [198, 51, 100, 0] | [203, 0, 113, 0] | [198, 18 | 19, _, 0]
            );
            assert!(is_reserved, "{}", place.city);
            assert!(
                (-60.0..70.0).contains(&place.latitude)
                    && (-180.0..180.0).contains(&place.longitude),
                "{}",
                place.city
            );
            assert!(
                jiff::tz::TimeZone::get(place.time_zone).is_ok(),
                "{}",
                place.time_zone
            );
            assert!(place.million_people > 0.0, "{}", place.city);
            countries.insert(place.country);
        }
        assert!(
            DEMO_PLACES.len() >= 60 && countries.len() >= 60,
            "{}",
            countries.len()
        );
    }

    #[test]
    fn each_region_has_many_people() {
        for region in [Europe, Americas, Asia] {
            let people: f32 = (DEMO_PLACES.iter())
                .filter(|p| p.region == region)
                .map(|p| p.million_people)
                .sum();
            assert!(people > 100.0, "{region:?}: {people}");
        }
    }
}
