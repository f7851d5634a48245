//! The small broker: enough of Kafka for a chat on one machine.
//!
//! It does not replace Kafka: it is one node, a topic has one partition, and there are no replicas,
//! no transactions and no group membership.
//!
//! `message` knows the format of messages, `log` and `group_offsets` what is on disk, `identity` which log it is, `files`
//! how files are opened, and `server` sockets. `log` uses `message` and `identity`, all that writes uses `files`, and
//! nothing else depends on `server`. The bytes of the protocol are in [`wire`](crate::wire); from the log up, failures
//! are its error codes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use server::Broker;

mod files;
#[cfg(fuzzing)]
#[path = "../../fuzz/broker.rs"]
pub mod fuzz;
mod group_offsets;
pub(crate) mod identity;
mod log;
pub(crate) mod message;
mod server;

/// How the names of groups begin whose offsets are heartbeats: a chat commits one every few seconds, and 0 when
/// it ends. On a real Kafka, they are offsets like any other.
pub const HEARTBEATS: &str = "here:";

/// The limits of a broker, and what it reports.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many bytes of messages a topic keeps at least: its oldest segment is deleted once the
    /// others have as many.
    pub retention_bytes: u64,
    /// How many bytes a segment can have, unless a single request has more.
    pub segment_bytes: u64,
    /// How many bytes the segments of all topics can have.
    pub max_log_bytes: u64,
    /// How many topics there can be.
    pub max_topics: usize,
    /// How many bytes of memory committed offsets can take.
    pub max_group_offset_bytes: u64,
    /// How many bytes a request can have. A connection that announces more is closed.
    pub max_request_bytes: usize,
    /// How many bytes the requests of all connections and their responses can take together, beyond a
    /// few that each connection has for itself.
    pub max_memory: usize,
    /// How many connections are served at a time. For one more, another is closed; if all are busy, the
    /// new one is.
    pub max_connections: usize,
    /// How long a request may take to come in, or a response to go out, once it has begun.
    pub request_timeout: Duration,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// Whether connections of all accounts are served: else those of this process's account and of root
    /// alone, where that [can be seen](crate::account).
    pub is_shared: bool,
    /// Where what is wrong with the log is reported.
    pub report: Report,
}

/// The most sentences that are ever reported. Each is remembered, so that it is reported once.
const MAX_SAID: usize = 1000;

/// Reports what is wrong with the log: each sentence once, by any thread.
#[derive(Clone)]
pub struct Report {
    tell: Arc<dyn Fn(&str) + Send + Sync>,
    /// Locked to look a sentence up.
    said: Arc<Mutex<BTreeSet<String>>>,
}

impl Report {
    /// Calls `tell` with each sentence.
    pub fn to(tell: impl Fn(&str) + Send + Sync + 'static) -> Report {
        Report {
            tell: Arc::new(tell),
            said: Arc::default(),
        }
    }

    fn say(&self, sentence: String) {
        let mut said = lock(&self.said);
        if said.len() < MAX_SAID && !said.contains(&sentence) {
            (self.tell)(&sentence);
            said.insert(sentence);
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Report")
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            retention_bytes: 2 << 30,
            // Small enough to be checked at once when a topic is first used.
            segment_bytes: 16 << 20,
            max_log_bytes: 16 << 30,
            max_topics: 2000,
            max_group_offset_bytes: 8 << 20,
            max_request_bytes: 8 << 20,
            max_memory: 24 << 20,
            max_connections: 1024,
            request_timeout: Duration::from_secs(30),
            // Kafka's connections.max.idle.ms.
            idle_timeout: Duration::from_secs(600),
            is_shared: false,
            report: Report::to(|_| ()),
        }
    }
}

/// Locks a mutex, also after a thread panicked while it had it locked: no change is left half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
