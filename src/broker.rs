//! The embedded broker: enough of Kafka for a chat on one machine.
//!
//! It is no replacement for Kafka: one node, one partition a topic, no replicas, no transactions,
//! no group membership. Whoever outgrows it names a real one.
//!
//! `wire` knows the protocol's bytes, `message` the format of messages, `log` and `groups`
//! what lies on disk, and `server` sockets; only the last knows the others.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

#[cfg(fuzzing)]
pub mod fuzz;
mod groups;
mod log;
mod message;
mod server;
mod wire;

/// What a broker allows itself and its clients.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many bytes a topic keeps at least; its oldest segments go when the others have as many.
    pub retention_bytes: u64,
    /// How many bytes a segment has at most, unless a single request has more.
    pub segment_bytes: u64,
    /// How many topics there can be.
    pub max_topics: usize,
    /// For how many pairs of group and topic offsets are kept.
    pub max_group_offsets: usize,
    /// How many bytes a request can have. A connection that announces more is closed.
    pub max_request_bytes: usize,
    /// How many connections are served at a time. For one more, whoever has been silent for longest
    /// has to go; if nobody is silent, the new one is closed at once.
    pub max_connections: usize,
    /// How long a request may take to come in, or a response to go out, once it has begun.
    pub request_timeout: Duration,
    /// How long a connection may be silent between requests.
    pub idle_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            retention_bytes: 2 << 30,
            // As much as can be checked in a moment when a topic is first used.
            segment_bytes: 16 << 20,
            max_topics: 10_000,
            max_group_offsets: 100_000,
            max_request_bytes: 8 << 20,
            max_connections: 4096,
            request_timeout: Duration::from_secs(30),
            // Kafka's connections.max.idle.ms.
            idle_timeout: Duration::from_secs(600),
        }
    }
}

/// A running embedded broker; dropping it stops it.
#[derive(Debug)]
pub struct Broker {
    server: server::Server,
}

impl Broker {
    /// Serves the log in `dir` on `listener`. That is bound already: who binds is elected.
    ///
    /// Clients are told to come to the address that they came to.
    ///
    /// An acknowledged message or offset was written to its file, and survives the end of this
    /// process in any way. It was not synced to the disk: a power cut can take the newest ones.
    ///
    /// Fails when the directory can't be made or written, or when another broker uses it.
    pub fn start(listener: TcpListener, dir: &Path, config: Config) -> Result<Broker> {
        let failed = |e| Error::failed("cannot start the embedded broker", e);
        let address = listener.local_addr().map_err(failed)?;
        let limits = log::Limits {
            retention_bytes: config.retention_bytes,
            segment_bytes: config.segment_bytes,
            max_topics: config.max_topics,
        };
        let log = log::Log::open(dir, &address.to_string(), limits)?;
        let offsets = dir.join("group-offsets");
        let groups = groups::Groups::open(&offsets, config.max_group_offsets).map_err(|e| {
            Error::failed(
                format_args!("cannot use {} for committed offsets", offsets.display()),
                e,
            )
        })?;
        let server =
            server::Server::start(listener, address, log, groups, config).map_err(failed)?;
        Ok(Broker { server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Stops: ends what is being appended, closes all connections, and lets go of the address and
    /// the log. Afterwards it does nothing any more.
    pub fn stop(&mut self) {
        self.server.stop();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The identity of the log in `dir`, drawn when the log was made.
///
/// By it a client that lost its broker can know whether its own data directory has the log that it
/// was talking to; see [`identity`].
pub fn log_id(dir: &Path) -> Option<u32> {
    log::id(dir)
}

/// How many bits an identity has: what two halves of a positive `i16` hold.
const LOG_ID_BITS: u32 = 2 * HALF;
const HALF: u32 = 15;

/// An API key that no Kafka has. Its newest version in ApiVersions is the upper half of the
/// identity of the embedded broker's log.
pub const IDENTITY_HIGH: i16 = 32001;
/// The same, for the lower half.
pub const IDENTITY_LOW: i16 = 32002;

/// The identity of the log behind a broker, by its answer to ApiVersions: key, oldest and newest
/// version of each API. `None` when it is not an embedded one.
pub fn identity(api_versions: impl Iterator<Item = (i16, i16, i16)>) -> Option<u32> {
    let (mut high, mut low) = (None, None);
    for (key, min, max) in api_versions {
        match key {
            IDENTITY_HIGH if min == 0 => high = u32::try_from(max).ok(),
            IDENTITY_LOW if min == 0 => low = u32::try_from(max).ok(),
            _ => {}
        }
    }
    Some(high? << HALF | low?)
}

/// What ApiVersions tells of the identity: the other side of [`identity`].
fn identity_apis(id: u32) -> [(i16, i16, i16); 2] {
    let half = |bits: u32| (bits & ((1 << HALF) - 1)) as i16;
    [
        (IDENTITY_HIGH, 0, half(id >> HALF)),
        (IDENTITY_LOW, 0, half(id)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_told_and_recognised() {
        for id in [0, 1, 0x7fff, 0x8000, 706_700_630, (1 << LOG_ID_BITS) - 1] {
            let told = wire::APIS.into_iter().chain(identity_apis(id));
            assert_eq!(identity(told), Some(id));
        }
        assert_eq!(identity(wire::APIS.into_iter()), None);
        let half = identity_apis(5)[0];
        assert_eq!(identity([half].into_iter()), None);
        assert_eq!(identity([half, (IDENTITY_LOW, 1, 5)].into_iter()), None);
        assert_eq!(identity([half, (IDENTITY_LOW, 0, -1)].into_iter()), None);
    }
}
