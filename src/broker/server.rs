//! Sockets, and which request is answered by what. A thread for every connection.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Config;
use super::groups::{Committed, Groups, NotCommitted};
use super::log::{Log, NotAppended, NotCreated, NotRead, Topic};
use super::message::Refused;
use super::wire::{
    self, CommittedPartition, FetchPartition, Fetched, Header, ListOffsetsPartition,
    ListedPartition, Node, OffsetCommitPartition, ProducePartition, ProducedPartition, Request,
    Response, code,
};

/// The only partition that a topic has.
const PARTITION: i32 = 0;

/// The id of the only node.
const NODE_ID: i32 = 0;

/// How many bytes of messages a response has at most, over all partitions.
const MAX_FETCH_BYTES: usize = 8 << 20;

/// How long metadata of a group's offset, and a group's id, can be. The first is Kafka's
/// `offset.metadata.max.bytes`; Kafka has no limit for the second.
const MAX_METADATA_BYTES: usize = 4096;
const MAX_GROUP_BYTES: usize = 1024;

/// Enough for what a connection's thread does, so that a thousand of them are cheap.
const STACK_BYTES: usize = 256 * 1024;

/// Memory for a request is taken in steps of what has come in so far, and of this at first.
const FIRST_CHUNK: usize = 16 * 1024;

/// A response goes out in pieces of this, each of which must be done in time.
const WRITE_CHUNK: usize = 256 * 1024;

/// How many descriptors new connections leave to the log's files.
const SPARE_DESCRIPTORS: usize = 16;

/// How long to wait before trying again to accept after a failure, of which there may be many.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How often a waiting fetch looks whether its client is still there.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A listening broker.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    log: Log,
    groups: Groups,
    config: Config,
    stopping: AtomicBool,
    connections: Mutex<HashMap<u64, Connection>>,
}

/// What is needed to end a connection from outside.
#[derive(Debug)]
struct Connection {
    stream: Arc<TcpStream>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Accepts connections from now on.
    pub(super) fn start(
        listener: TcpListener,
        address: SocketAddr,
        log: Log,
        groups: Groups,
        config: Config,
    ) -> io::Result<Server> {
        // Elsewhere than here it may have been made not to wait.
        listener.set_nonblocking(false)?;
        let shared = Arc::new(Shared {
            log,
            groups,
            config,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let acceptor = thread::Builder::new().name("broker".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        })?;
        Ok(Server {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends everything, and waits for it.
    pub(super) fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        self.shared.stopping.store(true, Ordering::SeqCst);
        let mut ended = Vec::new();
        loop {
            // Asked before the look at the connections, to which it may be adding one just now.
            let finished = acceptor.is_finished();
            let connections = std::mem::take(&mut *self.shared.connections());
            for connection in connections.into_values() {
                let _ = connection.stream.shutdown(Shutdown::Both);
                // A waiting fetch then sees that its client is gone.
                connection.thread.thread().unpark();
                ended.push(connection.thread);
            }
            if finished {
                break;
            }
            // It looks at the flag when somebody comes.
            let _ = TcpStream::connect_timeout(&self.address, ACCEPT_BACKOFF);
            thread::yield_now();
        }
        for thread in ended {
            // One that panicked has ended, too.
            let _ = thread.join();
        }
        let _ = acceptor.join();
        self.shared.log.release();
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut next_id = 0;
        while !self.stopping.load(Ordering::SeqCst) {
            match listener.accept() {
                // Whom there is no room for is told by the end of the connection.
                Ok((stream, _)) => {
                    let _ = self.admit(next_id, stream);
                    next_id += 1;
                }
                // Nobody there any more, or no descriptors: both pass.
                Err(_) => thread::sleep(ACCEPT_BACKOFF),
            }
        }
    }

    fn admit(self: &Arc<Self>, id: u64, stream: TcpStream) -> io::Result<()> {
        let _spare: Vec<_> = (0..SPARE_DESCRIPTORS)
            .map(|_| self.log.spare_descriptor())
            .collect::<io::Result<_>>()?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.config.request_timeout))?;
        let stream = Arc::new(stream);
        // Held until the connection is noted, so that it can't end before.
        let mut connections = self.connections();
        if connections.len() >= self.config.max_connections {
            return Ok(());
        }
        let builder = thread::Builder::new()
            .name("broker connection".into())
            .stack_size(STACK_BYTES);
        let thread = builder.spawn({
            let guard = Ended(Arc::clone(self), id);
            let stream = Arc::clone(&stream);
            move || {
                // However it ends, also by a panic, the client sees the connection closed.
                let _ = guard.0.serve(&stream);
            }
        })?;
        connections.insert(id, Connection { stream, thread });
        Ok(())
    }

    /// Answers the requests of a connection, one after the other, until it ends or sends what can't
    /// be read.
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let address = stream.local_addr()?;
        let node = Node {
            node_id: NODE_ID,
            host: address.ip().to_string(),
            port: address.port(),
        };
        loop {
            let mut request = self.read(stream)?;
            let Ok((header, request)) = wire::parse(&mut request) else {
                return Ok(());
            };
            if let Some(response) = self.answer(&node, &header, request, stream) {
                self.write(stream, &response.finish())?;
            }
        }
    }

    /// Reads a request. It can't take memory, or time, for what it only announces.
    fn read(&self, mut stream: &TcpStream) -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(self.config.idle_timeout))?;
        let mut size = [0; 4];
        stream.read_exact(&mut size[..1])?;
        let timeout = self.config.request_timeout;
        stream.set_read_timeout(Some(timeout))?;
        let deadline = Instant::now() + timeout;
        read_by(stream, &mut size[1..], deadline)?;
        let size = usize::try_from(i32::from_be_bytes(size)).unwrap_or(usize::MAX);
        if size > self.config.max_request_bytes {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut request = Vec::new();
        while request.len() < size {
            let have = request.len();
            let chunk = have.max(FIRST_CHUNK).min(size - have);
            request.resize(have + chunk, 0);
            read_by(stream, &mut request[have..], deadline)?;
        }
        Ok(request)
    }

    fn write(&self, mut stream: &TcpStream, response: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + self.config.request_timeout;
        for chunk in response.chunks(WRITE_CHUNK) {
            if Instant::now() > deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            stream.write_all(chunk)?;
        }
        Ok(())
    }

    /// The response to a request; `None` where the client expects none.
    fn answer(
        &self,
        node: &Node,
        header: &Header,
        request: Request<'_>,
        stream: &TcpStream,
    ) -> Option<Response> {
        let mut response = Response::to(header);
        match request {
            Request::ApiVersions { supported } => {
                let mut apis = wire::APIS.to_vec();
                apis.extend(super::identity_apis(self.log.id()));
                let error_code = if supported {
                    code::NONE
                } else {
                    code::UNSUPPORTED_VERSION
                };
                response.api_versions(error_code, &apis);
            }
            Request::Metadata { topics: None } => {
                let names = self.log.topic_names().into_iter();
                response.metadata(
                    node,
                    &names.map(|name| (name, code::NONE)).collect::<Vec<_>>(),
                );
            }
            Request::Metadata {
                topics: Some(names),
            } => {
                let topics: Vec<_> = names.into_iter().map(|n| (n, self.create(n))).collect();
                response.metadata(node, &topics);
            }
            Request::Produce { acks, topics } => {
                let append = |name: &str, p| self.produce(acks, name, p);
                response.produce(&answers(topics, append));
                if acks == 0 {
                    return None;
                }
            }
            Request::Fetch {
                max_wait,
                min_bytes,
                topics,
            } => {
                return Some(self.fetch(header, max_wait, min_bytes, &topics, stream));
            }
            Request::ListOffsets { topics } => {
                let list = |name: &str, p| self.list_offsets(header.api_version, name, &p);
                response.list_offsets(&answers(topics, list));
            }
            Request::FindCoordinator => response.find_coordinator(node),
            Request::OffsetCommit { group, topics } => {
                response.offset_commit(&self.commit(group, topics));
            }
            Request::OffsetFetch { group, topics } => {
                let fetch = |name: &str, p| self.committed(group, name, p);
                response.offset_fetch(&answers(topics, fetch));
            }
        }
        Some(response)
    }

    /// The topic, if it exists and has that partition.
    fn topic(&self, name: &str, partition: i32) -> Option<Arc<Topic>> {
        if partition != PARTITION {
            return None;
        }
        self.log.topic(name)
    }

    fn create(&self, name: &str) -> i16 {
        match self.log.create_topic(name) {
            Ok(()) => code::NONE,
            Err(NotCreated::Name) => code::INVALID_TOPIC_EXCEPTION,
            Err(NotCreated::TooMany) => code::POLICY_VIOLATION,
            Err(NotCreated::Io) => code::KAFKA_STORAGE_ERROR,
        }
    }

    fn produce(&self, acks: i16, name: &str, p: ProducePartition<'_>) -> ProducedPartition {
        let appended = if !(-1..=1).contains(&acks) {
            Err(code::INVALID_REQUIRED_ACKS)
        } else if let Some(topic) = self.topic(name, p.partition) {
            topic.append(p.records).map_err(|e| match e {
                NotAppended::Refused(Refused::Corrupt) => code::CORRUPT_MESSAGE,
                NotAppended::Refused(Refused::TooLarge) => code::MESSAGE_TOO_LARGE,
                NotAppended::Refused(Refused::Compressed) => code::UNSUPPORTED_COMPRESSION_TYPE,
                NotAppended::Refused(Refused::Magic) => code::UNSUPPORTED_FOR_MESSAGE_FORMAT,
                NotAppended::Io => code::KAFKA_STORAGE_ERROR,
            })
        } else {
            Err(code::UNKNOWN_TOPIC_OR_PARTITION)
        };
        ProducedPartition {
            partition: p.partition,
            error_code: appended.err().unwrap_or(code::NONE),
            base_offset: appended.unwrap_or(-1),
        }
    }

    /// Reads, and as long as that gives too little and there is time, waits for more and reads
    /// again.
    fn fetch(
        &self,
        header: &Header,
        max_wait: Duration,
        min_bytes: usize,
        topics: &[wire::Topic<'_, FetchPartition>],
        stream: &TcpStream,
    ) -> Response {
        let deadline = Instant::now() + max_wait;
        let watched: Vec<_> = topics
            .iter()
            .filter_map(|t| self.log.topic(t.name))
            .collect();
        let mut watching = false;
        let response = loop {
            let (mut bytes, mut failed) = (0, false);
            let mut response = Response::to(header);
            response.fetch(topics, |name, p, out| {
                let max_bytes = p.partition_max_bytes.min(MAX_FETCH_BYTES - bytes);
                let before = out.len();
                let fetched = self.read_log(header.api_version, name, p, max_bytes, out);
                bytes += out.len() - before;
                failed |= fetched.error_code != code::NONE;
                fetched
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if bytes >= min_bytes || failed || watched.is_empty() || left.is_zero() {
                break response;
            }
            if watching {
                thread::park_timeout(left.min(WATCH_INTERVAL));
                if is_gone(stream) {
                    break response;
                }
            }
            // Before the next read, so that nothing comes unnoticed between the two.
            watched.iter().for_each(|topic| topic.watch());
            watching = true;
        };
        if watching {
            watched.iter().for_each(|topic| topic.unwatch());
        }
        response
    }

    fn read_log(
        &self,
        version: i16,
        name: &str,
        p: &FetchPartition,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Fetched {
        let start = out.len();
        let read = match self.topic(name, p.partition) {
            None => Err(code::UNKNOWN_TOPIC_OR_PARTITION),
            Some(topic) => topic
                .read(p.fetch_offset, max_bytes, out)
                .map_err(|e| match e {
                    NotRead::OutOfRange => code::OFFSET_OUT_OF_RANGE,
                    NotRead::Io => code::KAFKA_STORAGE_ERROR,
                }),
        };
        // Timestamps came with version 2.
        if version < 2 {
            super::message::down_convert(out, start);
        }
        Fetched {
            error_code: read.err().unwrap_or(code::NONE),
            high_watermark: read.unwrap_or(-1),
        }
    }

    fn list_offsets(&self, version: i16, name: &str, p: &ListOffsetsPartition) -> ListedPartition {
        let list = |topic: Arc<Topic>| {
            Ok(match p.timestamp {
                wire::LATEST => (-1, vec![topic.offsets()?.end]),
                wire::EARLIEST => (-1, vec![topic.offsets()?.start]),
                time if version == 0 => (-1, topic.segments_until(time)?),
                time => match topic.first_since(time)? {
                    Some((offset, timestamp)) => (timestamp, vec![offset]),
                    None => (-1, Vec::new()),
                },
            })
        };
        let listed = match self.topic(name, p.partition) {
            None => Err(code::UNKNOWN_TOPIC_OR_PARTITION),
            Some(topic) => list(topic).map_err(|_: io::Error| code::KAFKA_STORAGE_ERROR),
        };
        let error_code = listed.as_ref().err().copied().unwrap_or(code::NONE);
        let (timestamp, mut offsets) = listed.unwrap_or((-1, Vec::new()));
        offsets.truncate(p.max_num_offsets);
        ListedPartition {
            partition: p.partition,
            error_code,
            timestamp,
            offsets,
        }
    }

    /// Commits what can be, and says what came of each partition.
    fn commit<'a>(
        &self,
        group: &str,
        topics: Vec<wire::Topic<'a, OffsetCommitPartition<'_>>>,
    ) -> Vec<wire::Topic<'a, (i32, i16)>> {
        let mut offsets = Vec::new();
        let mut topics = answers(topics, |name, p| {
            let error_code = if group.is_empty() || group.len() > MAX_GROUP_BYTES {
                code::INVALID_GROUP_ID
            } else if p.committed_metadata.len() > MAX_METADATA_BYTES {
                code::OFFSET_METADATA_TOO_LARGE
            } else if self.topic(name, p.partition).is_none() {
                code::UNKNOWN_TOPIC_OR_PARTITION
            } else {
                let committed = Committed {
                    offset: p.committed_offset,
                    metadata: p.committed_metadata.to_string(),
                };
                offsets.push((name.to_string(), committed));
                code::NONE
            };
            (p.partition, error_code)
        });
        let failed = match self.groups.commit(group, offsets) {
            Ok(()) => return topics,
            Err(NotCommitted::TooMany) => code::POLICY_VIOLATION,
            Err(NotCommitted::Io) => code::KAFKA_STORAGE_ERROR,
        };
        for (_, error_code) in topics.iter_mut().flat_map(|t| &mut t.partitions) {
            if *error_code == code::NONE {
                *error_code = failed;
            }
        }
        topics
    }

    fn committed(&self, group: &str, name: &str, partition: i32) -> CommittedPartition {
        let committed = match partition {
            PARTITION => self.groups.committed(group, name),
            _ => None,
        };
        let (committed_offset, metadata) =
            committed.map_or((-1, String::new()), |c| (c.offset, c.metadata));
        CommittedPartition {
            partition,
            committed_offset,
            metadata,
            error_code: code::NONE,
        }
    }
}

/// The answers to all topics of a request.
fn answers<'a, P, Q>(
    topics: Vec<wire::Topic<'a, P>>,
    mut answer: impl FnMut(&str, P) -> Q,
) -> Vec<wire::Topic<'a, Q>> {
    topics
        .into_iter()
        .map(|topic| topic.answer(&mut answer))
        .collect()
}

/// Forgets a connection when its thread ends.
struct Ended(Arc<Shared>, u64);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.connections().remove(&self.1);
    }
}

/// Fills `buffer`, unless the connection ends or it takes too long, however little comes at a time.
fn read_by(mut stream: &TcpStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(size) => buffer = &mut buffer[size..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if !buffer.is_empty() && Instant::now() > deadline {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Whether the client has closed the connection.
fn is_gone(stream: &TcpStream) -> bool {
    let peek = || {
        stream.set_nonblocking(true)?;
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        peeked
    };
    match peek() {
        Ok(size) => size == 0,
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}
