//! The demo's content: pages, pictures, and two dozen titles that share one video ladder.

use std::fs;
use std::io;
use std::path::Path;

use include_dir::{Dir, File, include_dir};

static SITE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/demo-content/site");
static LADDER: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/demo-content/ladder");

/// Directory of the ladder below the root. Every title links to its files.
const LADDER_DIRECTORY: &str = "v/ladder";

/// Writes the demo's content below `root`, which is created if it is missing. Files with the right
/// bytes are not written again, so their validators stay the same.
///
/// # Errors
/// Those of the file system, with the name of the file.
pub fn write(root: &Path) -> io::Result<()> {
    write_all(&SITE, root)?;
    write_all(&LADDER, &root.join(LADDER_DIRECTORY))?;
    for slug in slugs()? {
        link_all(
            &LADDER,
            &root.join(LADDER_DIRECTORY),
            &root.join("v").join(slug),
        )?;
    }
    Ok(())
}

/// The slugs of all titles, in the order of the catalogue.
fn slugs() -> io::Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Catalogue {
        titles: Vec<Title>,
    }
    #[derive(serde::Deserialize)]
    struct Title {
        slug: String,
    }
    let text = SITE
        .get_file("catalogue.json")
        .map(File::contents)
        .unwrap_or_default();
    let catalogue: Catalogue = serde_json::from_slice(text)?;
    Ok(catalogue.titles.into_iter().map(|t| t.slug).collect())
}

fn files<'a>(directory: &'a Dir<'a>) -> Vec<&'a File<'a>> {
    let mut found: Vec<&File<'_>> = directory.files().collect();
    for below in directory.dirs() {
        found.extend(files(below));
    }
    found
}

fn write_all(from: &Dir<'_>, to: &Path) -> io::Result<()> {
    for file in files(from) {
        let path = to.join(file.path());
        if fs::read(&path).is_ok_and(|there| there == file.contents()) {
            continue;
        }
        make_parent(&path)?;
        fs::write(&path, file.contents()).map_err(|e| named(&path, &e))?;
    }
    Ok(())
}

/// Makes hard links, so that two dozen titles take the space of one. Copies the files where the file
/// system has no hard links.
fn link_all(ladder: &Dir<'_>, from: &Path, to: &Path) -> io::Result<()> {
    for file in files(ladder) {
        let (source, path) = (from.join(file.path()), to.join(file.path()));
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
        write(root.path()).expect("room for some megabytes");
        let slugs = slugs().expect("the catalogue is well formed");
        assert!(slugs.len() >= 24, "{}", slugs.len());
        let before = fs::metadata(root.path().join("index.html"))
            .expect("there is a front page")
            .modified()
            .expect("it has a time");
        write(root.path()).expect("again");
        let after = fs::metadata(root.path().join("index.html"))
            .expect("there still is")
            .modified()
            .expect("it has a time");
        assert_eq!(before, after, "what is right is left alone");
        let catalogue =
            fs::read_to_string(root.path().join("catalogue.json")).expect("there is a catalogue");
        for slug in &slugs {
            for name in [
                "master.m3u8",
                "manifest.mpd",
                "240p/init.mp4",
                "432p/seg-1.m4s",
                "720p/seg-10.m4s",
                "audio/seg-1.m4s",
            ] {
                assert!(
                    root.path().join("v").join(slug).join(name).is_file(),
                    "{slug}/{name}"
                );
            }
            let poster = format!("/img/{slug}.webp");
            assert!(
                catalogue.contains(&poster) && root.path().join(&poster[1..]).is_file(),
                "{poster}"
            );
        }
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::write(root.path().join("v"), "in the way").expect("room");
        let error = write(root.path()).expect_err("a file is where a directory should be");
        assert!(error.to_string().contains("/v"), "{error}");
    }
}
