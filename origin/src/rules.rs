//! The content type of a file by its name, and its `Cache-Control` by pattern. Pure.

use nearcast_fleet::config::OriginRule;

/// Media segments: the bytes of a name never change.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// Manifests: they may change at any time and are requested often.
const MANIFEST: &str = "public, max-age=10, stale-while-revalidate=30";
const PAGE: &str = "public, max-age=60, stale-while-revalidate=600, stale-if-error=86400";
const ASSET: &str = "public, max-age=3600, stale-while-revalidate=86400, stale-if-error=86400";
const OTHER: &str = "public, max-age=300, stale-if-error=86400";

/// Content types by file name extension, lower case.
const TYPES: [(&str, &str); 33] = [
    ("aac", "audio/aac"),
    ("avif", "image/avif"),
    ("css", "text/css; charset=utf-8"),
    ("gif", "image/gif"),
    ("gz", "application/gzip"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("m4a", "audio/mp4"),
    ("m4s", "video/iso.segment"),
    ("m4v", "video/mp4"),
    ("md", "text/markdown; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("mpd", "application/dash+xml"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("ts", "video/mp2t"),
    ("txt", "text/plain; charset=utf-8"),
    ("vtt", "text/vtt; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("webm", "video/webm"),
    ("webmanifest", "application/manifest+json"),
    ("webp", "image/webp"),
    ("woff2", "font/woff2"),
    ("xml", "application/xml"),
];

fn extension(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.')
        .map(|(_, e)| e.to_ascii_lowercase())
        .unwrap_or_default()
}

/// The content type of a file; `application/octet-stream` for an unknown extension.
pub(crate) fn content_type(path: &str) -> &'static str {
    let extension = extension(path);
    TYPES
        .iter()
        .find(|(known, _)| *known == extension)
        .map_or("application/octet-stream", |(_, kind)| kind)
}

/// Whether pages of other sites may fetch the file: media, manifests, images and fonts.
pub(crate) fn is_shared(path: &str) -> bool {
    matches!(
        extension(path).as_str(),
        "m3u8"
            | "mpd"
            | "m4s"
            | "mp4"
            | "m4a"
            | "m4v"
            | "ts"
            | "vtt"
            | "webm"
            | "webp"
            | "jpg"
            | "jpeg"
            | "png"
            | "svg"
            | "avif"
            | "woff2"
            | "json"
    )
}

/// The `Cache-Control` of a file: that of the first rule whose pattern matches its path below the
/// root (without a leading `/`), else the default of its kind.
pub(crate) fn cache_control<'a>(path: &str, rules: &'a [OriginRule]) -> &'a str {
    if let Some(rule) = rules.iter().find(|r| matches(&r.pattern, path)) {
        return &rule.cache_control;
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    match extension(path).as_str() {
        "m4s" | "ts" | "aac" => IMMUTABLE,
        "mp4" if name.starts_with("init") => IMMUTABLE,
        "m3u8" | "mpd" => MANIFEST,
        "html" | "htm" | "json" | "xml" | "txt" => PAGE,
        "css" | "js" | "mjs" | "png" | "jpg" | "jpeg" | "gif" | "webp" | "avif" | "svg" | "ico"
        | "woff2" | "wasm" => ASSET,
        _ => OTHER,
    }
}

/// Whether a glob matches a path: `*` and `?` within a segment, `**` over any number of segments.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.trim_start_matches('/').split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    segments(&pattern, &path)
}

fn segments(pattern: &[&str], path: &[&str]) -> bool {
    // One row per segment of the path, so that the time is at most pattern times path.
    let mut reachable = vec![false; pattern.len() + 1];
    reachable[0] = true;
    skip_empty(pattern, &mut reachable);
    for part in path {
        let mut next = vec![false; pattern.len() + 1];
        for (i, glob) in pattern.iter().enumerate().filter(|(i, _)| reachable[*i]) {
            if *glob == "**" {
                next[i] = true;
            } else if within(glob.as_bytes(), part.as_bytes()) {
                next[i + 1] = true;
            }
        }
        skip_empty(pattern, &mut next);
        reachable = next;
    }
    reachable[pattern.len()]
}

/// `**` also matches no segment at all.
fn skip_empty(pattern: &[&str], reachable: &mut [bool]) {
    for (i, glob) in pattern.iter().enumerate() {
        if *glob == "**" && reachable[i] {
            reachable[i + 1] = true;
        }
    }
}

/// Matches `*` and `?` in one segment by backtracking to the last star alone, so that the time is at
/// most the product of both lengths.
fn within(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_segments_and_trees() {
        let table = [
            ("*.html", "index.html", true),
            ("*.html", "a/index.html", false),
            ("**/*.html", "a/b/index.html", true),
            ("**/*.html", "index.html", true),
            ("/v/**", "v/film/seg-1.m4s", true),
            ("v/**", "video/film", false),
            ("v/*/seg-?.m4s", "v/film/seg-1.m4s", true),
            ("v/*/seg-?.m4s", "v/film/seg-10.m4s", false),
            ("a*b*c", "aXbYbZc", true),
            ("**", "anything/at/all", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/x/y/c", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn segments_are_immutable_and_manifests_short() {
        for (path, words) in [
            ("v/film/720p/seg-1.m4s", "immutable"),
            ("v/film/720p/init.mp4", "immutable"),
            ("v/film/master.m3u8", "max-age=10,"),
            ("v/film/manifest.mpd", "max-age=10,"),
            ("index.html", "max-age=60,"),
            ("img/still.webp", "max-age=3600,"),
            ("download.bin", "max-age=300,"),
            ("film.mp4", "max-age=300,"),
        ] {
            assert!(
                cache_control(path, &[]).contains(words),
                "{path}: {}",
                cache_control(path, &[])
            );
        }
        let rules = [OriginRule {
            pattern: "v/**".to_owned(),
            cache_control: "no-store".to_owned(),
        }];
        assert_eq!(
            cache_control("v/film/seg-1.m4s", &rules),
            "no-store",
            "the file's own rules come first"
        );
    }

    #[test]
    fn players_get_the_types_they_want() {
        for (path, kind) in [
            ("a/master.m3u8", "application/vnd.apple.mpegurl"),
            ("a/MANIFEST.MPD", "application/dash+xml"),
            ("seg-1.m4s", "video/iso.segment"),
            ("noextension", "application/octet-stream"),
            ("dir.mp4/file", "application/octet-stream"),
        ] {
            assert_eq!(content_type(path), kind, "{path}");
        }
        assert!(TYPES.is_sorted(), "kept in order, for people");
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_or_path_panics_or_takes_long(pattern in "[a*?/.]{0,40}", path in "[a/.]{0,60}") {
            let _ = matches(&pattern, &path);
        }

        #[test]
        fn a_path_matches_itself(path in "[a-z./]{0,40}") {
            let path = path.trim_start_matches('/').to_owned();
            proptest::prop_assert!(matches(&path, &path) || path.contains("**"));
        }
    }
}
