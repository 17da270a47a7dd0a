//! From a request target to a file below the root, and to nothing else.
//!
//! The path is decoded once and refused where its meaning could depend on who reads it: encoded
//! slashes, backslashes, dot segments, control characters, hidden files. What the file system then
//! makes of it must still be below the root, so that no symbolic link leads out.

use std::path::{Path, PathBuf};

/// Bytes of a path after decoding.
const PATH_BYTES_MAX: usize = 2048;

/// Why a target names no file of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    /// It is not well formed, or ambiguous: 400.
    #[error("the path has {0}")]
    Bad(&'static str),
    /// It may not be read: 404, as if it were not there.
    #[error("hidden")]
    Hidden,
}

/// The path below the root that a target's path component means, without a leading slash; empty for
/// the root itself. A trailing slash is kept.
///
/// # Errors
/// When it is malformed or means something that is not served.
pub(crate) fn decode(path: &str) -> Result<String, PathError> {
    let Some(path) = path.strip_prefix('/') else {
        return Err(PathError::Bad("no leading slash"));
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(b) = rest.next() {
        let b = if b == b'%' {
            let digits =
                [rest.next(), rest.next()].map(|d| d.and_then(|d| (d as char).to_digit(16)));
            let [Some(high), Some(low)] = digits else {
                return Err(PathError::Bad("a broken percent encoding"));
            };
            match (high * 16 + low) as u8 {
                b'/' => return Err(PathError::Bad("an encoded slash")),
                decoded => decoded,
            }
        } else {
            b
        };
        if b == b'\\' || b.is_ascii_control() {
            return Err(PathError::Bad("a backslash or control character"));
        }
        bytes.push(b);
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(PathError::Bad("more than 2048 bytes"));
    }
    let decoded =
        String::from_utf8(bytes).map_err(|_| PathError::Bad("bytes that are not UTF-8"))?;
    let segments: Vec<&str> = decoded.split('/').collect();
    for (i, segment) in segments.iter().enumerate() {
        match *segment {
            "" if i + 1 == segments.len() => {}
            "" => return Err(PathError::Bad("an empty segment")),
            "." | ".." => return Err(PathError::Bad("a dot segment")),
            hidden if hidden.starts_with('.') => return Err(PathError::Hidden),
            _ => {}
        }
    }
    Ok(decoded)
}

/// What a path below the root is on disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A file, with its path below the root.
    File(PathBuf, String),
    /// A directory that was asked for without its slash.
    Directory,
    /// Nothing that is served.
    Nothing,
}

/// Looks a decoded path up: files as they are, directories by their `index.html`, and a page also
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

/// Where a path leads, when that is a plain file below the root, which is canonical. Blocking.
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
            ("", Err(PathError::Bad("no leading slash"))),
            ("/../etc/passwd", Err(PathError::Bad("a dot segment"))),
            ("/a/../../etc/passwd", Err(PathError::Bad("a dot segment"))),
            ("/%2e%2e/etc/passwd", Err(PathError::Bad("a dot segment"))),
            ("/..%2fetc/passwd", Err(PathError::Bad("an encoded slash"))),
            ("/a%2Fb", Err(PathError::Bad("an encoded slash"))),
            (
                "/a%5Cb",
                Err(PathError::Bad("a backslash or control character")),
            ),
            (
                "/a\\b",
                Err(PathError::Bad("a backslash or control character")),
            ),
            (
                "/a%00.html",
                Err(PathError::Bad("a backslash or control character")),
            ),
            (
                "/a%0d%0ab",
                Err(PathError::Bad("a backslash or control character")),
            ),
            ("//etc/passwd", Err(PathError::Bad("an empty segment"))),
            ("/a//b", Err(PathError::Bad("an empty segment"))),
            ("/./a", Err(PathError::Bad("a dot segment"))),
            ("/%", Err(PathError::Bad("a broken percent encoding"))),
            ("/%zz", Err(PathError::Bad("a broken percent encoding"))),
            ("/%ff", Err(PathError::Bad("bytes that are not UTF-8"))),
            ("/.git/config", Err(PathError::Hidden)),
            ("/a/.env", Err(PathError::Hidden)),
        ];
        for (path, expected) in table {
            assert_eq!(decode(path), expected.map(str::to_owned), "{path}");
        }
        assert_eq!(
            decode(&format!("/{}", "a".repeat(2049))),
            Err(PathError::Bad("more than 2048 bytes"))
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
