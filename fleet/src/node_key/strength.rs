//! How hard a secret is to guess: a rough estimate that finds examples, words, runs and repetitions.
//! Pure.

use std::collections::BTreeSet;

use super::OWN_KEY_START;

/// A secret with less strength than this is refused, in bits as [`strength_bits`] estimates them.
const BITS_MIN: f64 = 36.0;

/// Of so many characters, letters and digits among them, a secret is warned of and not refused, if
/// ...
const LONG_CHARS: usize = 20;

/// ... so many of them differ: the estimate is rough, and errs most about long ones.
const LONG_DIFFERENT: usize = 12;

/// A secret with less strength than this is warned of.
const BITS_GOOD: f64 = 64.0;

/// Secrets that documents have shown as examples: everybody knows them.
const EXAMPLES: [&str; 6] = [
    "at least sixteen characters, kept secret",
    "a long secret that the nodes share",
    "a secret of sixteen characters",
    "sixteen characters or more",
    "correct horse battery staple",
    "replace this by a secret of your own",
];

/// What many people write where a secret is asked for.
const COMMON: [&str; 23] = [
    "password", "passwort", "secret", "changeme", "letmein", "qwerty", "qwertz", "asdfgh", "admin",
    "nearcast", "example", "default", "token", "test", "node", "fleet", "key", "change", "replace",
    "insert", "please", "sample", "your",
];

/// How good a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strength {
    /// Nothing speaks against it.
    Good,
    /// It could be guessed with effort, and why.
    Weak(String),
    /// Anybody can guess it, and why.
    Worthless(String),
}

/// Judges a secret that people have chosen.
pub fn strength(secret: &str) -> Strength {
    if secret.starts_with(OWN_KEY_START) {
        return Strength::Good;
    }
    let lower = secret.to_lowercase();
    if EXAMPLES.contains(&lower.trim())
        || lower.starts_with("paste ")
        || (lower.starts_with('<') && lower.ends_with('>'))
    {
        return Strength::Worthless(
            "is an example of the documentation, which everybody knows".to_owned(),
        );
    }
    if secret.chars().collect::<BTreeSet<_>>().len() < 6 {
        return Strength::Worthless("has fewer than six different characters".to_owned());
    }
    let bits = strength_bits(secret);
    if bits < BITS_MIN && !is_long_and_mixed(without_repetition(secret)) {
        return Strength::Worthless(
            "is made of common words, runs or repetitions, which are guessed first".to_owned(),
        );
    }
    if bits < BITS_GOOD {
        return Strength::Weak(
            "is made of few words, runs or repetitions, and may be guessed".to_owned(),
        );
    }
    Strength::Good
}

/// Whether a secret that does not repeat itself and has no common word is too long and too mixed to
/// be refused for an estimate alone.
fn is_long_and_mixed(secret: &str) -> bool {
    let is_mixed = secret.bytes().any(|b| b.is_ascii_digit())
        && secret.bytes().any(|b| b.is_ascii_alphabetic());
    let plain: String = secret.to_lowercase().chars().map(plain_letter).collect();
    is_mixed
        && !COMMON.iter().any(|word| plain.contains(word))
        && secret.chars().count() >= LONG_CHARS
        && secret.chars().collect::<BTreeSet<_>>().len() >= LONG_DIFFERENT
}

/// An estimate of how much a secret is worth, in bits, as somebody would guess it who tries words,
/// runs and repetitions first.
pub(super) fn strength_bits(secret: &str) -> f64 {
    let text = without_repetition(secret);
    let plain: String = text.to_lowercase().chars().map(plain_letter).collect();
    let (mut text, mut plain) = (text.to_owned(), plain);
    let mut bits = 0.0;
    for word in COMMON {
        while let Some(at) = plain.find(word).filter(|_| plain.len() == text.len()) {
            plain.replace_range(at..at + word.len(), " ");
            text.replace_range(at..at + word.len(), " ");
            bits += 4.0;
        }
    }
    bits + text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .map(token_bits)
        .sum::<f64>()
}

/// One of several repetitions; the whole when it does not repeat.
fn without_repetition(text: &str) -> &str {
    let bytes = text.as_bytes();
    let period =
        (1..=bytes.len() / 2).find(|p| bytes.iter().zip(&bytes[*p..]).all(|(a, b)| a == b));
    period.and_then(|p| text.get(..p)).unwrap_or(text)
}

/// Undoes what people do to letters, so that `p4ssw0rd` is what it is.
fn plain_letter(c: char) -> char {
    match c {
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        other => other,
    }
}

fn token_bits(token: &str) -> f64 {
    let bytes = token.as_bytes();
    let changes = bytes
        .windows(2)
        .filter(|w| class(w[0]) != class(w[1]))
        .count();
    // Letters that follow one another, or the same again, say nothing new.
    let new = bytes.windows(2).filter(|w| w[0].abs_diff(w[1]) > 1).count()
        + usize::from(!bytes.is_empty());
    let share = if bytes.is_empty() {
        0.0
    } else {
        new as f64 / bytes.len() as f64
    };
    if changes >= 3 {
        return bytes.len() as f64
            * share
            * if bytes.iter().all(u8::is_ascii_hexdigit) {
                4.0
            } else {
                5.5
            };
    }
    let runs = bytes.chunk_by(|a, b| class(*a) == class(*b));
    runs.map(|run| match (class(run[0]), run.len() as f64) {
        (Class::Digit, length) => 3.3 * length * share,
        (_, length) => (4.7 * length * share).min(11.0 * (length / 4.5).ceil()),
    })
    .sum()
}

#[derive(PartialEq, Eq)]
enum Class {
    Digit,
    Lower,
    Upper,
}

fn class(byte: u8) -> Class {
    match byte {
        b'0'..=b'9' => Class::Digit,
        b'A'..=b'Z' => Class::Upper,
        _ => Class::Lower,
    }
}
