//! Finds the file below the root that a request target names.
//!
//! The path is decoded once. Paths that different programs read differently are refused: those with
//! encoded slashes, backslashes, dot segments or control characters. Hidden files are not served.
//! The resolved file must be below the root, so that no symbolic link leads out of it.

use std::path::{Path, PathBuf};

/// Longest path after decoding, in bytes.
const PATH_BYTES_MAX: usize = 2048;

/// Why a path names no file that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    /// It is malformed or ambiguous: 400.
    #[error("the path has {0}")]
    Invalid(&'static str),
    /// It is a hidden file: 404, as for a file that does not exist.
    #[error("hidden")]
    Hidden,
}

/// Decodes the path of a target into a path below the root, without the leading slash; the root
/// itself is empty. A trailing slash is kept.
///
/// # Errors
/// The path is malformed, ambiguous or hidden.
pub(crate) fn decode(path: &str) -> Result<String, PathError> {
    let Some(path) = path.strip_prefix('/') else {
        return Err(PathError::Invalid("no leading slash"));
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(b) = rest.next() {
        let b = if b == b'%' {
            let digits =
                [rest.next(), rest.next()].map(|d| d.and_then(|d| (d as char).to_digit(16)));
            let [Some(high), Some(low)] = digits else {
                return Err(PathError::Invalid("a broken percent encoding"));
            };
            match (high * 16 + low) as u8 {
                b'/' => return Err(PathError::Invalid("an encoded slash")),
                decoded => decoded,
            }
        } else {
            b
        };
        if b == b'\\' || b.is_ascii_control() {
            return Err(PathError::Invalid("a backslash or control character"));
        }
        bytes.push(b);
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(PathError::Invalid("more than 2048 bytes"));
    }
    let decoded =
        String::from_utf8(bytes).map_err(|_| PathError::Invalid("bytes that are not UTF-8"))?;
    let segments: Vec<&str> = decoded.split('/').collect();
    for (i, segment) in segments.iter().enumerate() {
        match *segment {
            "" if i + 1 == segments.len() => {}
            "" => return Err(PathError::Invalid("an empty segment")),
            "." | ".." => return Err(PathError::Invalid("a dot segment")),
            hidden if hidden.starts_with('.') => return Err(PathError::Hidden),
            _ => {}
        }
    }
    Ok(decoded)
}

/// The file or directory of a path below the root.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A file, with its path below the root.
    File(PathBuf, String),
    /// A directory; the request lacks the trailing slash.
    Directory,
    /// No file that is served.
    Nothing,
}

/// Finds the file of a decoded path: the file itself, the `index.html` of a directory, or a page
/// without its `.html`. `root` is canonical. Blocking.
pub(crate) fn find(root: &Path, path: &str) -> Found {
    if path.is_empty() || path.ends_with('/') {
        return file(root, &format!("{path}index.html"));
    }
    match file(root, path) {
        Found::Nothing if root.join(path).is_dir() => {
            match file(root, &format!("{path}/index.html")) {
                Found::File(..) => Found::Directory,
                other => other,
            }
        }
        Found::Nothing => file(root, &format!("{path}.html")),
        found => found,
    }
}

fn file(root: &Path, path: &str) -> Found {
    real_file(root, &root.join(path))
        .map_or(Found::Nothing, |real| Found::File(real, path.to_owned()))
}

/// The canonical path of a plain file below the root, which is canonical too. Blocking.
pub(crate) fn real_file(root: &Path, path: &Path) -> Option<PathBuf> {
    path.canonicalize()
        .ok()
        .filter(|real| real.starts_with(root) && real.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_are_decoded() {
        let table = [
            ("/", Ok("")),
            ("/index.html", Ok("index.html")),
            ("/a%20b/c.txt", Ok("a b/c.txt")),
            ("/dir/", Ok("dir/")),
            ("/caf%C3%A9", Ok("café")),
            ("", Err(PathError::Invalid("no leading slash"))),
            ("/../etc/passwd", Err(PathError::Invalid("a dot segment"))),
            (
                "/a/../../etc/passwd",
                Err(PathError::Invalid("a dot segment")),
            ),
            (
                "/%2e%2e/etc/passwd",
                Err(PathError::Invalid("a dot segment")),
            ),
            (
                "/..%2fetc/passwd",
                Err(PathError::Invalid("an encoded slash")),
            ),
            ("/a%2Fb", Err(PathError::Invalid("an encoded slash"))),
            (
                "/a%5Cb",
                Err(PathError::Invalid("a backslash or control character")),
            ),
            (
                "/a\\b",
                Err(PathError::Invalid("a backslash or control character")),
            ),
            (
                "/a%00.html",
                Err(PathError::Invalid("a backslash or control character")),
            ),
            (
                "/a%0d%0ab",
                Err(PathError::Invalid("a backslash or control character")),
            ),
            ("//etc/passwd", Err(PathError::Invalid("an empty segment"))),
            ("/a//b", Err(PathError::Invalid("an empty segment"))),
            ("/./a", Err(PathError::Invalid("a dot segment"))),
            ("/%", Err(PathError::Invalid("a broken percent encoding"))),
            ("/%zz", Err(PathError::Invalid("a broken percent encoding"))),
            ("/%ff", Err(PathError::Invalid("bytes that are not UTF-8"))),
            ("/.git/config", Err(PathError::Hidden)),
            ("/a/.env", Err(PathError::Hidden)),
        ];
        for (path, expected) in table {
            assert_eq!(decode(path), expected.map(str::to_owned), "{path}");
        }
        assert_eq!(
            decode(&format!("/{}", "a".repeat(2049))),
            Err(PathError::Invalid("more than 2048 bytes"))
        );
    }

    #[test]
    fn links_out_of_the_root_lead_nowhere() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let outside = directory.path().join("secret.txt");
        std::fs::write(&outside, "secret").expect("room");
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("sub")).expect("room");
        std::fs::write(root.join("sub/index.html"), "page").expect("room");
        std::fs::write(root.join("about.html"), "page").expect("room");
        std::os::unix::fs::symlink(&outside, root.join("link.txt")).expect("links are there");
        std::os::unix::fs::symlink(directory.path(), root.join("up")).expect("links are there");
        let root = root.canonicalize().expect("it is there");
        assert_eq!(find(&root, "link.txt"), Found::Nothing);
        assert_eq!(find(&root, "up/secret.txt"), Found::Nothing);
        assert_eq!(find(&root, "missing"), Found::Nothing);
        assert_eq!(find(&root, "sub"), Found::Directory);
        assert!(matches!(find(&root, "sub/"), Found::File(_, path) if path == "sub/index.html"));
        assert!(matches!(find(&root, "about"), Found::File(_, path) if path == "about.html"));
    }

    proptest::proptest! {
        #[test]
        fn what_is_decoded_stays_below_the_root(path in "/[a-z0-9./%\\\\]{0,40}") {
            if let Ok(decoded) = decode(&path) {
                proptest::prop_assert!(!decoded.starts_with('/'));
                proptest::prop_assert!(decoded.split('/').all(|s| s != ".." && s != "."));
            }
        }
    }
}
