//! The content that clients request: the site's `catalogue.json`, and the renditions that its
//! titles share.

use serde::Deserialize;

/// More titles than this are not read.
const TITLES_MAX: usize = 10_000;
/// More segments of one rendition than this are not read.
const SEGMENTS_MAX: usize = 10_000;

/// The content that clients request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Catalogue {
    /// Titles, in the order of their common popularity; at least one.
    pub(super) titles: Vec<Title>,
    /// The renditions that every title has.
    pub(super) ladder: Ladder,
    /// Pages, the front page first.
    pub(super) pages: Vec<String>,
    /// Files that every page needs.
    pub(super) assets: Vec<String>,
}

/// A title.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Title {
    /// Path of its HLS multivariant playlist.
    pub(super) hls: String,
    /// Path of its picture; may be empty.
    #[serde(default)]
    pub(super) poster: String,
    /// Path of the page that plays it.
    #[serde(default = "front_page", rename = "url")]
    pub(super) page: String,
}

fn front_page() -> String {
    "/".to_owned()
}

/// The renditions of a title; names are relative to its multivariant playlist.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ladder {
    /// Video, worst first; at least one, whose segments give the length.
    pub(super) qualities: Vec<Rendition>,
    /// Sound, when it is apart.
    pub(super) sound: Option<Rendition>,
}

/// One rendition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rendition {
    /// Its media playlist.
    pub(super) playlist: String,
    /// Its initialization segment.
    pub(super) init: Option<String>,
    /// Its segments in order.
    pub(super) segments: Vec<String>,
}

/// The titles of a `catalogue.json`; none when it is no catalogue.
pub(super) fn titles(json: &[u8]) -> Vec<Title> {
    #[derive(Deserialize)]
    struct Document {
        titles: Vec<Title>,
    }
    let document: Result<Document, _> = serde_json::from_slice(json);
    document
        .map(|d| {
            d.titles
                .into_iter()
                .filter(|t| t.hls.starts_with('/'))
                .take(TITLES_MAX)
                .collect()
        })
        .unwrap_or_default()
}

/// The media playlists that a multivariant playlist (RFC 8216 section 4.3.4) names: video, worst
/// first, and sound.
pub(super) fn playlists(multivariant: &str) -> (Vec<String>, Option<String>) {
    let mut video: Vec<(u64, String)> = Vec::new();
    let mut sound = None;
    let mut bandwidth = None;
    for line in multivariant.lines().map(str::trim) {
        if let Some(attributes) = line.strip_prefix("#EXT-X-STREAM-INF:") {
            bandwidth = Some(
                attribute(attributes, "BANDWIDTH")
                    .and_then(|b| b.parse().ok())
                    .unwrap_or(0),
            );
        } else if let Some(attributes) = line.strip_prefix("#EXT-X-MEDIA:") {
            if attribute(attributes, "TYPE").is_some_and(|t| t == "AUDIO") && sound.is_none() {
                sound = attribute(attributes, "URI");
            }
        } else if !line.is_empty()
            && !line.starts_with('#')
            && let Some(bandwidth) = bandwidth.take()
        {
            video.push((bandwidth, line.to_owned()));
        }
    }
    video.sort();
    (video.into_iter().map(|(_, name)| name).collect(), sound)
}

/// A media playlist's initialization segment and segments, relative to the multivariant playlist
/// beside which `name` is.
pub(super) fn rendition(name: &str, playlist: &str) -> Rendition {
    let directory = name
        .rsplit_once('/')
        .map_or(String::new(), |(d, _)| format!("{d}/"));
    let mut found = Rendition {
        playlist: name.to_owned(),
        init: None,
        segments: Vec::new(),
    };
    for line in playlist.lines().map(str::trim) {
        if let Some(attributes) = line.strip_prefix("#EXT-X-MAP:") {
            found.init = attribute(attributes, "URI").map(|uri| directory.clone() + &uri);
        } else if !line.is_empty() && !line.starts_with('#') && found.segments.len() < SEGMENTS_MAX
        {
            found.segments.push(directory.clone() + line);
        }
    }
    found
}

/// The value of one attribute of a tag's attribute list (RFC 8216 section 4.2).
fn attribute(list: &str, name: &str) -> Option<String> {
    let mut rest = list;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let (value, next) = quoted.split_once('"')?;
                (value, next.trim_start_matches(','))
            }
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim() == name {
            return Some(value.to_owned());
        }
        rest = next;
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MASTER: &str = "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"sound\",NAME=\"Sound\",URI=\"audio.m3u8\"\n\
        #EXT-X-STREAM-INF:BANDWIDTH=1168614,CODECS=\"avc1.4d401f,mp4a.40.2\",AUDIO=\"sound\"\n720p.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=288614,RESOLUTION=426x240,AUDIO=\"sound\"\n240p.m3u8\n";

    /// A catalogue of 24 titles with three qualities, sound and ten segments.
    pub(crate) fn example() -> Catalogue {
        let rendition = |name: &str| Rendition {
            playlist: format!("{name}.m3u8"),
            init: Some(format!("{name}/init.mp4")),
            segments: (1..=10).map(|n| format!("{name}/seg-{n}.m4s")).collect(),
        };
        let titles = (0..24).map(|t| Title {
            hls: format!("/v/title-{t}/master.m3u8"),
            poster: format!("/img/title-{t}.webp"),
            page: format!("/watch?v=title-{t}"),
        });
        let ladder = Ladder {
            qualities: ["240p", "432p", "720p"].map(rendition).to_vec(),
            sound: Some(rendition("audio")),
        };
        Catalogue {
            titles: titles.collect(),
            ladder,
            pages: vec!["/".into(), "/about.html".into()],
            assets: vec!["/style.css".into()],
        }
    }

    #[test]
    fn playlists_are_read() {
        assert_eq!(
            playlists(MASTER),
            (
                vec!["240p.m3u8".into(), "720p.m3u8".into()],
                Some("audio.m3u8".into())
            )
        );
        assert_eq!(playlists("hello\n"), (vec![], None));
        let media = "#EXTM3U\n#EXT-X-MAP:URI=\"240p/init.mp4\"\n#EXTINF:2.0,\n240p/seg-1.m4s\n#EXTINF:2.0,\n240p/seg-2.m4s\n#EXT-X-ENDLIST\n";
        let found = rendition("240p.m3u8", media);
        assert_eq!(found.init.as_deref(), Some("240p/init.mp4"));
        assert_eq!(found.segments, ["240p/seg-1.m4s", "240p/seg-2.m4s"]);
        assert_eq!(
            rendition("a/b.m3u8", "#EXTM3U\n1.ts\n").segments,
            ["a/1.ts"]
        );
    }

    #[test]
    fn attributes_with_commas_in_quotes_are_read() {
        let list = "BANDWIDTH=5,CODECS=\"a,b=c\",AUDIO=\"s\"";
        let table = [
            ("BANDWIDTH", Some("5")),
            ("CODECS", Some("a,b=c")),
            ("AUDIO", Some("s")),
            ("b", None),
        ];
        for (name, value) in table {
            assert_eq!(attribute(list, name).as_deref(), value, "{name}");
        }
        assert_eq!(attribute("URI=\"unclosed", "URI"), None);
    }

    #[test]
    fn a_catalogue_is_read_and_nonsense_is_none() {
        let json =
            br#"{"titles": [{"slug": "a", "hls": "/v/a/master.m3u8", "poster": "/img/a.webp", "url": "/watch?v=a"}, {"hls": "nowhere"}]}"#;
        let found = titles(json);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].page, "/watch?v=a");
        assert_eq!(titles(b"<html>"), []);
    }
}
