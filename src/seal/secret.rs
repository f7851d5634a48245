//! The secret that the two share.

use std::fmt;

use zeroize::Zeroizing;

use super::no_random_bytes;
use crate::error::{Error, Result};

/// The shortest secret, in bytes.
const LEAST_BYTES: usize = 16;

/// The longest secret, in bytes: a larger file was not meant.
const MOST_BYTES: usize = 4096;

/// 32 symbols that are not mistaken for each other (Crockford's base 32), so a symbol has 5 bits.
const SYMBOLS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 140 bits.
const FRESH_GROUPS: usize = 7;
const GROUP_SYMBOLS: usize = 4;

/// A secret, which is overwritten when it is dropped and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The longest input that [`Secret::of`] takes, with its line ending.
    pub const MOST_INPUT_BYTES: usize = MOST_BYTES + 2;

    /// The secret in the bytes of a file or of an answer: all of them, but for one line ending.
    ///
    /// Fails if it is too short or too long.
    pub fn of(mut bytes: Zeroizing<Vec<u8>>) -> Result<Secret> {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        match bytes.len() {
            LEAST_BYTES..=MOST_BYTES => Ok(Secret(bytes)),
            0..LEAST_BYTES => Err(Error::usage(format!(
                "the secret has less than {LEAST_BYTES} bytes"
            ))
            .hint("chat --new-secret prints one.")),
            _ => Err(Error::usage(format!(
                "the secret has more than {MOST_BYTES} bytes"
            ))),
        }
    }

    /// Whether this text is it.
    pub fn is(&self, text: &str) -> bool {
        *self.0 == text.as_bytes()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A fresh secret of 140 random bits, in groups that can be read out over a telephone.
pub fn fresh() -> Result<Zeroizing<String>> {
    let mut random = Zeroizing::new([0; FRESH_GROUPS * GROUP_SYMBOLS]);
    getrandom::fill(random.as_mut()).map_err(no_random_bytes)?;
    let mut text = Zeroizing::new(String::with_capacity(random.len() + FRESH_GROUPS));
    for (n, byte) in random.iter().enumerate() {
        if n > 0 && n % GROUP_SYMBOLS == 0 {
            text.push('-');
        }
        text.push(char::from(SYMBOLS[usize::from(byte % 32)]));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<Vec<u8>> {
        Secret::of(Zeroizing::new(bytes.to_vec())).map(|secret| secret.as_bytes().to_vec())
    }

    #[test]
    fn one_line_ending_is_not_part_of_the_secret() {
        for (file, secret) in [
            (&b"0123456789abcdef"[..], &b"0123456789abcdef"[..]),
            (b"0123456789abcdef\n", b"0123456789abcdef"),
            (b"0123456789abcdef\r\n", b"0123456789abcdef"),
            (b"0123456789abcdef\n\n", b"0123456789abcdef\n"),
            (b"0123456789abcdef\r", b"0123456789abcdef\r"),
            (b" \xff123456789abcd \n", b" \xff123456789abcd "),
        ] {
            assert_eq!(of(file).as_deref(), Ok(secret));
        }
    }

    #[test]
    fn a_secret_that_is_too_short_or_too_long_is_an_error_that_does_not_repeat_it() {
        for file in [&b"hunter2\n"[..], b"123456789012345\r\n", b""] {
            let error = of(file).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let error = error.to_string();
            assert!(error.contains("--new-secret") && !error.contains("hunter"));
        }
        assert!(of(&[b'x'; MOST_BYTES]).is_ok());
        assert!(of(&[b'x'; MOST_BYTES + 1]).is_err());
    }

    #[test]
    fn a_fresh_secret_is_seven_groups_that_differ_each_time() {
        let secret = fresh().unwrap();
        let groups: Vec<&str> = secret.split('-').collect();
        assert_eq!(groups.len(), 7);
        let is_symbol = |c: u8| SYMBOLS.contains(&c);
        assert!(
            groups
                .iter()
                .all(|it| it.len() == 4 && it.bytes().all(is_symbol))
        );
        assert_ne!(*secret, *fresh().unwrap());
        assert!(of(secret.as_bytes()).is_ok());
        assert_eq!(format!("{:?}", Secret(Zeroizing::default())), "Secret");
    }
}
