//! Sockets: accepts connections, as many as there is room for, and ends them.
//!
//! `connection` reads requests and writes responses, `answer` makes the response to each request, and `budget`
//! knows how much memory all of them may take.
//!
//! | thread | waits for | ends when |
//! |---|---|---|
//! | `broker` | the next connection | the server stops |
//! | `broker connection`, one for each | a request, or messages to fetch | the connection is closed, by either side |

use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use memmap2::MmapMut;

use super::group_offsets::GroupOffsets;
use super::log::{self, Log};
use super::{Config, lock};
use crate::account::{self, Account};
use crate::error::{Error, Result};
use budget::{Budget, OWN_BYTES};
use connection::Connection;

mod answer;
mod budget;
mod buffer;
mod connection;
#[cfg(test)]
mod tests;

/// Enough for what a connection's thread does, so that a thousand of them are cheap.
const STACK_BYTES: usize = 256 * 1024;

/// How many file descriptors connections leave to the log: those that stay open, and those that
/// are open for one operation.
const SPARE_DESCRIPTORS: usize = log::MAX_OPEN + 16;

/// How much address space is left free beside the budget: a thousand connections may each take their own bytes.
const SPARE_BYTES: usize = 1024 * OWN_BYTES;

/// How many connections walk over messages at a time.
const MAX_WALKS: usize = 8;

/// How many descriptors beyond those must be free at the start: each connection of the host's own chat takes two.
const LEAST_CONNECTIONS: usize = 16;

/// How long to wait after a failure to accept, of which there may be many.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How long a new connection waits for the end of the one that it replaces.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A running broker; dropping it stops it.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

/// What the threads of all connections use.
#[derive(Debug)]
struct Shared {
    log: Log,
    /// Locked during a commit, and for a look-up.
    group_offsets: Mutex<GroupOffsets>,
    /// Memory for requests and responses.
    budget: Budget,
    /// How many connections can walk over messages, each with a message in memory and a file open.
    walks: Budget,
    config: Arc<Config>,
    stopping: AtomicBool,
    /// Locked by the acceptor while it makes room for one more, by a connection's thread when it ends, and by [`Broker`]
    /// when it stops or counts guests; never while a request is answered.
    connections: Mutex<HashMap<ThreadId, Running>>,
    /// Notified when a connection has ended.
    ended: Condvar,
}

/// A connection, and the thread that serves it.
#[derive(Debug)]
struct Running {
    connection: Arc<Connection>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Makes the thread end once it has answered its current request.
    fn close(&self) {
        self.connection.close();
        // A waiting fetch wakes up, and sees that.
        self.thread.thread().unpark();
    }
}

impl Broker {
    /// Serves the log in `dir` on `listener`, which the caller has bound: binding is the election.
    /// Metadata names the address that a client connected to.
    ///
    /// An acknowledged message or offset was written to its file, and survives the end of this
    /// process in any way. It was not synced to the disk: a power cut can lose the newest ones.
    ///
    /// Fails when the directory cannot be created or written, or when another broker uses it.
    pub fn start(listener: TcpListener, dir: &Path, config: Config) -> Result<Broker> {
        let failed = |e: io::Error| Error::failed("cannot start the small broker", e);
        let address = listener.local_addr().map_err(failed)?;
        // The caller may have made it non-blocking.
        listener.set_nonblocking(false).map_err(failed)?;
        if !config.is_shared {
            // Its own listener can be seen, unless none can: some kernels then find nothing, without an error.
            let seen = account::of_listener(address).and_then(|owner| {
                owner.ok_or_else(|| io::Error::other("the kernel does not show its socket"))
            });
            seen.map_err(|why| {
                failed(why).hint("It cannot see which account connects. --shared admits all.")
            })?;
        }
        let config = Arc::new(config);
        let log = Log::open(dir, &address.to_string(), &config)?;
        let spare = spare_descriptors(&log, SPARE_DESCRIPTORS + LEAST_CONNECTIONS);
        spare.map_err(|error| match log::is_out_of_descriptors(&error) {
            true => failed(io::Error::other("this program may open too few files"))
                .hint(log::TOO_FEW_DESCRIPTORS),
            false => failed(error),
        })?;
        if !has_spare_memory(&config) {
            let mebibytes = spare_memory(&config) >> 20;
            let why = format!("it cannot reserve {mebibytes} MiB of memory");
            let hint = "If its address space is limited, raise the limit: ulimit -v 200000";
            return Err(Error::failed("cannot start the small broker", why).hint(hint));
        }
        let offsets = dir.join("group-offsets");
        // It is as old as the log, and never empty.
        let is_gone = match offsets.symlink_metadata() {
            Ok(found) => (found.len() == 0).then_some("empty"),
            Err(_) => Some("gone"),
        };
        if let Some(how) = is_gone.filter(|_| log.topic_count() > 0) {
            config.report.say(format!(
                "{} is {how}: lines that were read can count as unread again.",
                offsets.display()
            ));
        }
        let group_offsets =
            GroupOffsets::open(&offsets, config.max_group_offset_bytes, &config.report);
        let group_offsets = group_offsets.map_err(|e| {
            let doing = format_args!("cannot use {} for committed offsets", offsets.display());
            Error::failed(doing, e)
        })?;
        let shared = Arc::new(Shared {
            log,
            group_offsets: Mutex::new(group_offsets),
            budget: Budget::divided(config.max_memory, OWN_BYTES, config.request_timeout),
            walks: Budget::new(MAX_WALKS, 0, config.request_timeout),
            config,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            ended: Condvar::new(),
        });
        let acceptor = thread::Builder::new().name("broker".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Broker {
            address,
            shared,
            acceptor: acceptor.map_err(failed)?,
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether another process uses it.
    pub fn has_guests(&self) -> bool {
        let connections = lock(&self.shared.connections);
        let mut guests = connections.values().map(|it| &it.connection.is_guest);
        guests.any(|is_guest| is_guest.load(Ordering::Relaxed))
    }
}

impl Drop for Broker {
    /// Stops the broker: appends that have begun end, all connections are closed, all threads have
    /// ended, and the address and the log are free for the next broker.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.budget.close();
        self.shared.walks.close();
        let mut threads = Vec::new();
        loop {
            // Checked before the connections are, since the acceptor may be adding one just now.
            let finished = self.acceptor.is_finished();
            let connections = mem::take(&mut *lock(&self.shared.connections));
            for running in connections.into_values() {
                running.close();
                threads.push(running.thread);
            }
            if finished {
                break;
            }
            // The acceptor checks `stopping` after each connection.
            let _ = TcpStream::connect_timeout(&self.address, ACCEPT_BACKOFF);
            thread::yield_now();
        }
        for thread in threads {
            // A thread that panicked has ended, too.
            let _ = thread.join();
        }
        self.shared.log.release();
    }
}

/// Fails if not as many descriptors can be had.
fn spare_descriptors(log: &Log, count: usize) -> io::Result<()> {
    let spare: io::Result<Vec<_>> = (0..count).map(|_| log.spare_descriptor()).collect();
    spare.map(drop)
}

/// How much memory must be free for requests and responses.
fn spare_memory(config: &Config) -> usize {
    config.max_memory + SPARE_BYTES
}

/// Whether that is free: an allocation that fails ends the process.
fn has_spare_memory(config: &Config) -> bool {
    MmapMut::map_anon(spare_memory(config)).is_ok()
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.stopping.load(Ordering::SeqCst) {
            match listener.accept() {
                // A refused client sees its connection closed.
                Ok((stream, _)) => drop(self.admit(stream)),
                // The client is gone already, or no descriptor is left: both pass.
                Err(_) => thread::sleep(ACCEPT_BACKOFF),
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) -> io::Result<()> {
        // Before a byte is read, and before another connection is closed to make room.
        if !self.config.is_shared && !account::of_peer(&stream)?.is_some_and(Account::is_trusted) {
            return Ok(());
        }
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.tick()))?;
        let connection = Arc::new(Connection::new(stream));
        // Locked until the connection is registered, so that it cannot end before.
        let Some(mut connections) = self.make_room() else {
            self.config.report.say(
                "All connections are in use, and none of them can be closed: new clients are refused until one ends."
                    .into(),
            );
            return Ok(());
        };
        let builder = thread::Builder::new()
            .name("broker connection".into())
            .stack_size(STACK_BYTES);
        let thread = builder.spawn({
            let shared = Arc::clone(self);
            let connection = Arc::clone(&connection);
            move || {
                // Created by the new thread: if no thread can be started, this closure is dropped
                // while the connections are locked.
                let guard = Unregister(shared);
                // However it ends, also by a panic, the client sees the connection closed.
                let _ = guard.0.serve(&connection);
                drop(connection);
            }
        })?;
        let id = thread.thread().id();
        connections.insert(id, Running { connection, thread });
        Ok(())
    }

    /// Makes room for one more connection, if need be by closing another: the first in the order of
    /// [`Activity::rank`]. `None` if all are busy.
    fn make_room(&self) -> Option<MutexGuard<'_, HashMap<ThreadId, Running>>> {
        let mut connections = lock(&self.connections);
        let count = connections.len();
        let is_full = |connections: &mut HashMap<ThreadId, Running>| {
            let spare = spare_descriptors(&self.log, SPARE_DESCRIPTORS);
            // Once a connection has ended, the new one reuses its memory, which the allocator keeps.
            let is_short = || connections.len() >= count && !has_spare_memory(&self.config);
            connections.len() >= self.config.max_connections || spare.is_err() || is_short()
        };
        if is_full(&mut connections) {
            let ranked = connections
                .values()
                .filter_map(|running| Some((lock(&running.connection.activity).rank()?, running)));
            let (_, first) = ranked.min_by_key(|(rank, _)| *rank)?;
            first.close();
            let waited = self
                .ended
                .wait_timeout_while(connections, END_TIMEOUT, is_full);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
            if is_full(&mut connections) {
                return None;
            }
        }
        Some(connections)
    }
}

/// Removes a connection when its thread ends.
struct Unregister(Arc<Shared>);

impl Drop for Unregister {
    fn drop(&mut self) {
        lock(&self.0.connections).remove(&thread::current().id());
        self.0.ended.notify_all();
    }
}
