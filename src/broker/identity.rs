//! The identity of a log: a number drawn when the log is created, and kept beside it.
//!
//! A client that loses its broker can take over only with the log that it was using. The broker
//! therefore publishes the identity in its ApiVersions response, as the newest versions of two API
//! keys that no Kafka has: versions are 16 bits wide, and not negative. It is also the id of its only node, which crate
//! `kafka` reports, unlike those.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::iter;
use std::path::Path;
use std::sync::LazyLock;

use super::files::{self, open_to_read, replace};
use crate::wire::ApiVersion;

/// How many bits an identity has: two halves.
const BITS: u32 = 2 * HALF_BITS;
const HALF_BITS: u32 = 15;

/// The API keys of the two halves.
const HIGH: i16 = 32001;
const LOW: i16 = 32002;

/// The file with the identity, as Kafka keeps its `cluster.id`.
const FILE: &str = "meta.properties";
const PROPERTY: &str = "log.id=";
const CHECKSUM: &str = "log.id.crc32=";

/// How much of that file is read.
const MAX_BYTES: u64 = 64 * 1024;

/// The identity of the log in `dir`, if it has one that can be read.
pub(crate) fn stored(dir: &Path) -> Option<u32> {
    read(dir).ok().flatten()
}

/// The identity of the log in `dir`; `None` if its file has none.
pub(super) fn read(dir: &Path) -> io::Result<Option<u32>> {
    let mut properties = String::new();
    let file = open_to_read(&dir.join(FILE))?;
    file.take(MAX_BYTES).read_to_string(&mut properties)?;
    let value = |name| properties.lines().find_map(|line| line.strip_prefix(name));
    let id = value(PROPERTY).and_then(|id| id.parse().ok().filter(|id| id >> BITS == 0));
    // Earlier versions wrote none.
    let is_right = |id| value(CHECKSUM).is_none_or(|it| it == checksum(id));
    Ok(id.filter(|id| is_right(*id)))
}

/// What shows that no digit of an identity has changed.
fn checksum(id: u32) -> String {
    format!("{:08x}", crc32fast::hash(&id.to_be_bytes()))
}

/// Takes the identity's file from everyone but who may use the log: earlier versions let everyone read it.
pub(super) fn protect(dir: &Path) {
    // Another account's file, in a folder of two, stays as it is.
    let _ = files::create(&dir.join(FILE));
}

/// Gives the log in `dir` an identity. The file is written as a whole or not at all.
pub(super) fn create(dir: &Path) -> io::Result<u32> {
    let id = (random() as u32) >> (u32::BITS - BITS);
    let lines = format!("{PROPERTY}{id}\n{CHECKSUM}{}\n", checksum(id));
    replace(&dir.join(FILE), iter::once(lines.into_bytes()))?;
    Ok(id)
}

/// The id of this process's clients. Its broker knows its own connections by that.
pub(crate) fn client_id() -> &'static str {
    static ID: LazyLock<String> = LazyLock::new(|| format!("kafka-chat-{:016x}", random()));
    &ID
}

/// A random number: the keys of a hasher, which the standard library draws.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The identity that a broker publishes; `None` if it is not a small broker.
pub(crate) fn of(apis: &[ApiVersion]) -> Option<u32> {
    let half = |key| {
        let api = apis.iter().find(|api| api.api_key == key)?;
        u32::try_from(api.max_version)
            .ok()
            .filter(|_| api.min_version == 0)
    };
    Some(half(HIGH)? << HALF_BITS | half(LOW)?)
}

/// The id of the node that serves a log.
pub(crate) fn node_id(id: u32) -> i32 {
    // An identity has fewer bits.
    id as i32
}

/// The two APIs that publish an identity.
pub(crate) fn to_apis(id: u32) -> [ApiVersion; 2] {
    [(HIGH, id >> HALF_BITS), (LOW, id)].map(|(api_key, bits)| ApiVersion {
        api_key,
        min_version: 0,
        max_version: (bits & ((1 << HALF_BITS) - 1)) as i16,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::wire::APIS;

    #[test]
    fn an_identity_is_published_and_recognised() {
        for id in [0, 1, 0x7fff, 0x8000, 706_700_630, (1 << BITS) - 1] {
            let published = [APIS, &to_apis(id)].concat();
            assert_eq!(of(&published), Some(id));
        }
        assert_eq!(of(APIS), None);
        let [high, low] = to_apis(5);
        let api = |min_version, max_version| ApiVersion {
            min_version,
            max_version,
            ..low
        };
        assert_eq!(of(&[high]), None);
        assert_eq!(of(&[high, api(1, 5)]), None);
        assert_eq!(of(&[high, api(0, -1)]), None);
    }

    #[test]
    fn an_identity_is_kept_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stored(dir.path()), None);
        let id = create(dir.path()).unwrap();
        assert_eq!(stored(dir.path()), Some(id));
        for broken in ["log.id=", "log.id=1073741824\n", "id=5\n"] {
            fs::write(dir.path().join(FILE), broken).unwrap();
            assert_eq!(stored(dir.path()), None, "{broken}");
        }
        fs::write(dir.path().join(FILE), "log.id=5\n").unwrap();
        assert_eq!(stored(dir.path()), Some(5), "of an earlier version");
    }

    #[test]
    fn a_changed_byte_never_makes_another_identity() {
        let dir = tempfile::tempdir().unwrap();
        let id = create(dir.path()).unwrap();
        let whole = fs::read(dir.path().join(FILE)).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                fs::write(dir.path().join(FILE), changed).unwrap();
                let found = stored(dir.path());
                assert!(found.is_none_or(|found| found == id), "{at}, {bit}");
            }
        }
    }
}
