//! The demo's content: pages, pictures, and titles, each with the video ladder of its film.

use std::fs;
use std::io;
use std::path::Path;

use include_dir::{Dir, File, include_dir};
use nearcast_fleet::config::{Fleet, SelectionPolicy, Site};
use serde_json::json;

static SITE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/demo-content/site");
static LADDER: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/demo-content/ladder");
/// Files that replace those of its film in a title's directory: manifests that prefer other captions.
static VERSIONS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/demo-content/versions");

/// Directory of the films' ladders below the root. Every title links to the files of one.
const LADDER_DIRECTORY: &str = "v/ladder";

/// File below the root by which the player finds control.
const STEERING: &str = "steering.json";

/// Places whose clients the player can play, each with a client that the built-in country table
/// places near it.
const PLACES: [(&str, &str); 3] = [
    ("Amsterdam", "198.51.100.9"),
    ("New York", "203.0.113.9"),
    ("Singapore", "192.0.2.9"),
];

/// What the demo's player knows of steering.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSteering {
    /// URL of control's `/v1/steer`, and the host to ask about; none where no page may ask.
    asks: Option<(String, String)>,
}

impl PageSteering {
    /// That of a fleet. The player asks about a host that is steered by place, as its viewers choose
    /// places.
    pub fn of(fleet: &Fleet) -> Self {
        let control = fleet.control.as_ref();
        let control = control.filter(|control| !control.steering_origins.is_empty());
        let names = |site: &'_ Site| site.hosts.iter().find(|host| *host != "*").cloned();
        let by_place = fleet
            .sites
            .iter()
            .filter(|s| s.policy == SelectionPolicy::Geo);
        let host = by_place.chain(&fleet.sites).find_map(names);
        let asks = control.zip(host);
        Self {
            asks: asks.map(|(control, host)| (format!("{}/v1/steer", control.url), host)),
        }
    }

    fn text(&self) -> String {
        let place = |(name, client): &(&str, &str)| json!({"name": name, "client": client});
        let asks = self.asks.as_ref().map(|(url, host)| {
            json!({"url": url, "host": host, "places": PLACES.iter().map(place).collect::<Vec<_>>()})
        });
        format!("{}\n", asks.unwrap_or_else(|| json!({"url": null})))
    }
}

/// Writes the demo's content below `root`, which is created if it is missing. Files with the right
/// bytes are not written again, so their validators stay the same.
///
/// # Errors
/// Those of the file system, with the name of the file.
pub fn write(root: &Path, steering: &PageSteering) -> io::Result<()> {
    write_all(&SITE, "", root)?;
    write_file(&root.join(STEERING), steering.text().as_bytes())?;
    write_all(&LADDER, "", &root.join(LADDER_DIRECTORY))?;
    for title in titles()? {
        let to = root.join("v").join(&title.slug);
        if let Some(version) = VERSIONS.get_dir(&title.slug) {
            write_all(version, &title.slug, &to)?;
        }
        if let Some(film) = LADDER.get_dir(&title.film) {
            link_all(film, &title.film, &root.join(LADDER_DIRECTORY), &to)?;
        }
    }
    Ok(())
}

/// A title of the catalogue, as far as its files need it.
#[derive(serde::Deserialize)]
struct Title {
    slug: String,
    /// Name of its film's directory.
    film: String,
}

/// All titles, in the order of the catalogue.
fn titles() -> io::Result<Vec<Title>> {
    #[derive(serde::Deserialize)]
    struct Catalogue {
        titles: Vec<Title>,
    }
    let text = SITE
        .get_file("catalogue.json")
        .map(File::contents)
        .unwrap_or_default();
    let catalogue: Catalogue = serde_json::from_slice(text)?;
    Ok(catalogue.titles)
}

fn files<'a>(directory: &'a Dir<'a>) -> Vec<&'a File<'a>> {
    let mut found: Vec<&File<'_>> = directory.files().collect();
    for below in directory.dirs() {
        found.extend(files(below));
    }
    found
}

/// Writes the files of a directory, whose paths begin with `prefix`, below `to` without that prefix.
fn write_all(from: &Dir<'_>, prefix: &str, to: &Path) -> io::Result<()> {
    for file in files(from) {
        let name = file.path().strip_prefix(prefix).unwrap_or(file.path());
        write_file(&to.join(name), file.contents())?;
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    make_parent(path)?;
    fs::write(path, bytes).map_err(|e| named(path, &e))
}

/// Makes hard links to the files of a film that the title does not have yet, so that the versions of
/// a film take the space of one. Copies the files where the file system has no hard links.
fn link_all(film: &Dir<'_>, prefix: &str, from: &Path, to: &Path) -> io::Result<()> {
    for file in files(film) {
        let name = file.path().strip_prefix(prefix).unwrap_or(file.path());
        let (source, path) = (from.join(file.path()), to.join(name));
        if path.exists() {
            continue;
        }
        make_parent(&path)?;
        if fs::hard_link(&source, &path).is_err() {
            fs::copy(&source, &path).map_err(|e| named(&path, &e))?;
        }
    }
    Ok(())
}

fn make_parent(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(parent).map_err(|e| named(parent, &e))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_is_whole_and_can_be_written_twice() {
        let root = tempfile::tempdir().expect("a temporary directory");
        write(root.path(), &PageSteering::default()).expect("room for some megabytes");
        let titles = titles().expect("the catalogue is well formed");
        assert!(titles.len() >= 12, "{}", titles.len());
        let before = fs::metadata(root.path().join("index.html"))
            .expect("there is a front page")
            .modified()
            .expect("it has a time");
        write(root.path(), &PageSteering::default()).expect("again");
        let after = fs::metadata(root.path().join("index.html"))
            .expect("there still is")
            .modified()
            .expect("it has a time");
        assert_eq!(before, after, "what is right is left alone");
        let catalogue =
            fs::read_to_string(root.path().join("catalogue.json")).expect("there is a catalogue");
        for Title { slug, film } in &titles {
            let directory = root.path().join("v").join(slug);
            for name in ["master.m3u8", "manifest.mpd", "144p.m3u8", "audio.m3u8"] {
                assert!(directory.join(name).is_file(), "{slug}/{name}");
            }
            for language in ["en", "de", "fr", "es"] {
                let text = fs::read_to_string(directory.join(format!("captions.{language}.vtt")))
                    .expect("captions");
                assert!(
                    text.starts_with("WEBVTT\n\n") && text.contains(" --> "),
                    "{text}"
                );
            }
            let poster = format!("/img/{film}.webp");
            assert!(
                catalogue.contains(&poster) && root.path().join(&poster[1..]).is_file(),
                "{poster}"
            );
        }
    }

    /// The URIs of a playlist, attributes with that name included.
    fn uris(playlist: &str) -> Vec<String> {
        let attributes = playlist
            .split("URI=\"")
            .skip(1)
            .filter_map(|rest| rest.split_once('"').map(|(uri, _)| uri.to_owned()));
        let lines = playlist
            .lines()
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        attributes.chain(lines.map(str::to_owned)).collect()
    }

    fn size(directory: &Path) -> u64 {
        let entries = fs::read_dir(directory).expect("a directory");
        entries
            .map(|e| {
                e.expect("an entry")
                    .metadata()
                    .expect("a file has a size")
                    .len()
            })
            .sum()
    }

    #[test]
    fn each_manifest_names_files_that_are_there_and_the_lowest_rung_is_for_slow_lines() {
        let root = tempfile::tempdir().expect("a temporary directory");
        write(root.path(), &PageSteering::default()).expect("room for some megabytes");
        for Title { slug, .. } in titles().expect("the catalogue is well formed") {
            let directory = root.path().join("v").join(&slug);
            let read = |name: &str| fs::read_to_string(directory.join(name)).expect("a text");
            let (mut segments, mpd) = (0, read("manifest.mpd"));
            for playlist in uris(&read("master.m3u8")) {
                let text = read(&playlist);
                for uri in uris(&text) {
                    assert!(
                        directory.join(&uri).is_file(),
                        "{slug}: {playlist} names {uri}"
                    );
                    segments += usize::from(uri.ends_with(".m4s"));
                }
                let id = playlist.trim_end_matches(".m3u8");
                assert!(
                    id.starts_with("captions.")
                        || mpd.contains(&format!("Representation id=\"{id}\"")),
                    "{slug}: {id}"
                );
                let seconds: f64 = text
                    .lines()
                    .filter_map(|l| {
                        l.strip_prefix("#EXTINF:")?
                            .split(',')
                            .next()?
                            .parse::<f64>()
                            .ok()
                    })
                    .sum();
                assert!(seconds >= 40.0, "{slug}: {playlist} lasts {seconds} s");
            }
            assert!(segments >= 4 * 14, "{slug}: {segments}");
            let bits = 8 * (size(&directory.join("144p")) + size(&directory.join("audio")));
            assert!(bits <= 160_000 * 48, "{slug}: {} bit/s", bits / 48);
        }
    }

    #[test]
    fn films_differ_and_all_of_it_is_a_few_megabytes() {
        let mut first = std::collections::BTreeSet::new();
        for film in LADDER.dirs() {
            let path = film.path().join("720p/seg-8.m4s");
            let file = LADDER.get_file(&path).expect("a middle segment");
            assert!(first.insert(file.contents()), "{}", path.display());
        }
        assert!(first.len() >= 3, "{}", first.len());
        let all: usize = [&SITE, &LADDER, &VERSIONS]
            .into_iter()
            .flat_map(files)
            .map(|f| f.contents().len())
            .sum();
        assert!(all < 10 << 20, "{all}");
    }

    #[test]
    fn the_player_asks_where_pages_may_and_about_a_host_that_is_steered_by_place() {
        let sites = "[[site]]\nname = \"video\"\nhosts = [\"*\", \"video.demo.test\"]\norigin = \"http://192.0.2.80\"\nsteering = \"rtt\"\n\
             [[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://192.0.2.80\"\n";
        let fleet = |control: &str| {
            let text = format!(
                "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\n{control}\
                 [[cluster]]\nname = \"ams\"\nplace = {{ latitude = 1, longitude = 1 }}\n\
                 [[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n{sites}"
            );
            nearcast_fleet::testing::fleet(&text)
        };
        let off = PageSteering::of(&fleet("[control]\n"));
        assert_eq!(off, PageSteering::default());
        assert_eq!(off.text(), "{\"url\":null}\n");
        let on = PageSteering::of(&fleet(
            "[control]\nsteering_origins = [\"http://192.0.2.1\"]\n",
        ));
        let text: serde_json::Value = serde_json::from_str(&on.text()).expect("JSON");
        assert_eq!(text["url"], "http://127.0.0.1:7700/v1/steer");
        assert_eq!(text["host"], "www.demo.test");
        assert_eq!(text["places"][2]["client"], "192.0.2.9");
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::write(root.path().join("v"), "in the way").expect("room");
        let error = write(root.path(), &PageSteering::default())
            .expect_err("a file is where a directory should be");
        assert!(error.to_string().contains("/v"), "{error}");
    }
}
