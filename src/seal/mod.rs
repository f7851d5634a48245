//! Lines sealed end to end with a shared secret, as `docs/sealed.md` defines them byte by byte.
//!
//! Pure state: no client, no terminal, no file. All that is cryptographic is in the crates `argon2` and
//! `chacha20poly1305`.
//!
//! | module | knows |
//! |---|---|
//! | `secret` | which secrets are taken, and what a fresh one looks like |
//! | `keys` | how a topic's keys follow from a secret |
//! | `line` | the bytes of one sealed line |
//! | `reader` | which lines are shown, and what is said about the others |
//! | `lookback` | how far before its start a reader looks for lines that could be repeated |

mod keys;
mod line;
mod lookback;
mod reader;
mod secret;

use keys::Keys;
pub use line::{Opened, Sealer, is_sealed, most_text};
pub use lookback::LookBack;
pub use reader::{Read, Reader, Seen, is_dated, notice_without_secret};
pub use secret::{Secret, fresh};

use crate::error::Error;

/// What the salt and the associated data begin with.
const CONTEXT: &[u8] = b"kafka-chat seal 1\0";

fn no_random_bytes(why: impl std::fmt::Display) -> Error {
    Error::failed("cannot get random bytes from the system", why)
}
