//! Secrets: strings that logs never show and that are compared in constant time.

use subtle::ConstantTimeEq as _;

/// A secret string whose `Debug` output does not contain it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl Secret {
    /// Whether a caller shows this secret, compared in constant time. An empty secret matches
    /// nothing.
    pub fn matches(&self, shown: &[u8]) -> bool {
        !self.0.is_empty() && is_same(self.0.as_bytes(), shown)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Compares in constant time. The digests are compared, so that the time depends neither on the
/// content nor on whether the lengths are equal.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let (a, b) = (blake3::hash(a), blake3::hash(b));
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_matches_itself_only() {
        let table = [
            ("secret", "secret", true),
            ("secret", "secreT", false),
            ("secret", "secret ", false),
            ("secret", "", false),
            ("", "", false),
        ];
        for (secret, shown, expected) in table {
            let secret = Secret(secret.into());
            assert_eq!(secret.matches(shown.as_bytes()), expected, "{shown:?}");
            assert!(!format!("{secret:?}").contains("secret"));
        }
    }
}
