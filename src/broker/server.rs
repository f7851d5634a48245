//! Sockets, and which request is answered by what. A thread for every connection.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Config;
use super::groups::{Committed, Groups, NotCommitted};
use super::log::{self, Log, NotAppended, NotCreated, NotRead, Topic};
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

/// How much a connection reads ahead: most requests are then whole at the first look. Of larger ones
/// the rest goes past that buffer.
const READ_AHEAD: usize = 1024;

/// Memory for a request is taken in steps of what has come in so far, and of this at first.
const FIRST_CHUNK: usize = 16 * 1024;

/// A response goes out in pieces of this, each of which must be done in time.
const WRITE_CHUNK: usize = 256 * 1024;

/// How many descriptors new connections leave to the log's files: those that stay open, and those
/// that are open for one operation.
const SPARE_DESCRIPTORS: usize = log::MAX_OPEN + 16;

/// How long to wait before trying again to accept after a failure, of which there may be many.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How long a new connection waits at most for the end of the one whose place it takes.
const END_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// Told when a connection has ended.
    ended: Condvar,
    /// Counts requests, by which it is known which connection has been silent for longest.
    clock: AtomicU64,
}

/// What is needed to end a connection from outside.
#[derive(Debug)]
struct Connection {
    client: Arc<Client>,
    thread: JoinHandle<()>,
}

impl Connection {
    /// Makes its thread end as soon as it has done what it is doing.
    fn close(&self) {
        let _ = self.client.stream.shutdown(Shutdown::Both);
        // A waiting fetch then sees that its client is gone.
        self.thread.thread().unpark();
    }
}

/// Who is at the other end.
#[derive(Debug)]
struct Client {
    stream: TcpStream,
    /// The time on the clock of its last answer, or [`BUSY`] as long as the next one is not ready.
    silent_since: AtomicU64,
}

const BUSY: u64 = u64::MAX;

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
            ended: Condvar::new(),
            clock: AtomicU64::new(0),
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
                connection.close();
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
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.config.request_timeout))?;
        let client = Arc::new(Client {
            stream,
            silent_since: AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed)),
        });
        // Held until the connection is noted, so that it can't end before.
        let Some(mut connections) = self.room() else {
            return Ok(());
        };
        let builder = thread::Builder::new()
            .name("broker connection".into())
            .stack_size(STACK_BYTES);
        let thread = builder.spawn({
            let shared = Arc::clone(self);
            let client = Arc::clone(&client);
            move || {
                // Made here, not outside: if there is no thread to be had, the closure is dropped
                // by whoever holds the connections now.
                let guard = Ended(shared, id);
                // However it ends, also by a panic, the client sees the connection closed.
                let _ = guard.0.serve(&client);
                drop(client);
            }
        })?;
        connections.insert(id, Connection { client, thread });
        Ok(())
    }

    /// Sees to it that there is room for one more connection: if there is none, whoever has been
    /// silent for longest has to go. `None` if nobody is silent.
    fn room(&self) -> Option<MutexGuard<'_, HashMap<u64, Connection>>> {
        let full = |connections: &mut HashMap<u64, Connection>| {
            let spare: io::Result<Vec<_>> = (0..SPARE_DESCRIPTORS)
                .map(|_| self.log.spare_descriptor())
                .collect();
            connections.len() >= self.config.max_connections || spare.is_err()
        };
        let mut connections = self.connections();
        if full(&mut connections) {
            let silent_since = |c: &&Connection| c.client.silent_since.load(Ordering::Relaxed);
            let silent = connections.values().min_by_key(silent_since)?;
            if silent_since(&silent) == BUSY {
                return None;
            }
            silent.close();
            let waited = self
                .ended
                .wait_timeout_while(connections, END_TIMEOUT, full);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
            if full(&mut connections) {
                return None;
            }
        }
        Some(connections)
    }

    /// Answers the requests of a connection, one after the other, until it ends or sends what can't
    /// be read.
    fn serve(&self, client: &Client) -> io::Result<()> {
        let stream = &client.stream;
        stream.set_read_timeout(Some(self.config.idle_timeout))?;
        // Kept from one request to the next, which can have come along with it.
        let mut input = BufReader::with_capacity(READ_AHEAD, stream);
        let address = stream.local_addr()?;
        let node = Node {
            node_id: NODE_ID,
            host: address.ip().to_string(),
            port: address.port(),
        };
        loop {
            let mut request = self.read(&mut input)?;
            client.silent_since.store(BUSY, Ordering::Relaxed);
            let Ok((header, request)) = wire::parse(&mut request) else {
                return Ok(());
            };
            let response = self.answer(&node, &header, request, stream);
            // Before it is written, so that who has an answer counts as silent.
            let now = self.clock.fetch_add(1, Ordering::Relaxed);
            client.silent_since.store(now, Ordering::Relaxed);
            if let Some(response) = response {
                self.write(stream, &response.finish())?;
            }
        }
    }

    /// Reads a request. Until its first bytes come it has the time of an idle connection, to which
    /// the socket is set. What they have not brought has the time of a request.
    fn read(&self, input: &mut BufReader<&TcpStream>) -> io::Result<Vec<u8>> {
        while input.buffer().is_empty() {
            match input.fill_buf() {
                Ok([]) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
        let timeout = self.config.request_timeout;
        let deadline = Instant::now() + timeout;
        if starts_with_whole_request(input.buffer()) {
            return self.read_by(input, deadline);
        }
        let stream = *input.get_ref();
        stream.set_read_timeout(Some(timeout))?;
        let request = self.read_by(input, deadline)?;
        stream.set_read_timeout(Some(self.config.idle_timeout))?;
        Ok(request)
    }

    /// Reads a request that has begun. It can't take memory, or time, for what it only announces.
    fn read_by(&self, input: &mut impl Read, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut size = [0; 4];
        fill_by(input, &mut size, deadline)?;
        let size = usize::try_from(i32::from_be_bytes(size)).unwrap_or(usize::MAX);
        if size > self.config.max_request_bytes {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut request = Vec::new();
        while request.len() < size {
            let have = request.len();
            let chunk = have.max(FIRST_CHUNK).min(size - have);
            request.resize(have + chunk, 0);
            fill_by(input, &mut request[have..], deadline)?;
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
                // Not KAFKA_STORAGE_ERROR, after which producers would look for another broker and
                // try again for minutes before they say a word. There is no other.
                NotAppended::Io => code::UNKNOWN_SERVER_ERROR,
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
        // A client that is gone is not always noticed, but nobody waits longer than in silence.
        let deadline = Instant::now() + max_wait.min(self.config.idle_timeout);
        let watched: Vec<_> = topics
            .iter()
            .filter_map(|t| self.log.topic(t.name))
            .collect();
        let (mut watching, mut waited) = (false, false);
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
            // Whoever waits holds no memory.
            drop(response);
            // Not before, so that it delays no answer.
            if waited && is_gone(stream) {
                break Response::to(header);
            }
            if watching {
                thread::park_timeout(left.min(WATCH_INTERVAL));
                waited = true;
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
        self.0.ended.notify_all();
    }
}

/// Whether nothing more has to come in for the first request in `bytes`.
fn starts_with_whole_request(bytes: &[u8]) -> bool {
    bytes.split_first_chunk().is_some_and(|(size, body)| {
        usize::try_from(i32::from_be_bytes(*size)).is_ok_and(|size| size <= body.len())
    })
}

/// Fills `buffer`, unless the connection ends or it takes too long, however little comes at a time.
fn fill_by(input: &mut impl Read, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        match input.read(buffer) {
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

#[cfg(test)]
mod tests {
    use super::super::message::tests::encode;
    use super::super::{Broker, identity, log_id};
    use super::*;
    use kafka::client::{
        CommitOffset, FetchOffset, FetchPartition, GroupOffsetStorage, KafkaClient, ProduceMessage,
        RequiredAcks,
    };
    use kafka::error::{Error, KafkaCode};
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use std::sync::mpsc;
    use tempfile::TempDir;

    /// How long anything may take here at most.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn start(dir: &TempDir, config: Config) -> Broker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Broker::start(listener, dir.path(), config).unwrap()
    }

    fn broker(config: Config) -> (TempDir, Broker) {
        let dir = TempDir::new().unwrap();
        let broker = start(&dir, config);
        (dir, broker)
    }

    fn connect(broker: &Broker) -> TcpStream {
        let stream = TcpStream::connect(broker.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// A request with its size, and without a client id.
    fn request(api_key: i16, api_version: i16, body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        let mut bytes = (10 + body.len() as i32).to_be_bytes().to_vec();
        bytes.extend(api_key.to_be_bytes());
        bytes.extend(api_version.to_be_bytes());
        bytes.extend(7i32.to_be_bytes());
        bytes.extend((-1i16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// The next response, without its size and its correlation id.
    fn response(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut bytes = vec![0; u32::from_be_bytes(size) as usize];
        stream.read_exact(&mut bytes)?;
        assert_eq!(bytes[..4], 7i32.to_be_bytes());
        Ok(bytes.split_off(4))
    }

    fn ask(mut stream: &TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(request)?;
        response(stream)
    }

    /// Whether the broker has closed the connection, or does so now.
    fn is_closed(mut stream: &TcpStream) -> bool {
        match stream.read(&mut [0]) {
            Ok(size) => size == 0,
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    fn assert_served(broker: &Broker) {
        let answer = ask(&connect(broker), &request(18, 0, &[])).unwrap();
        assert_eq!(answer[..2], [0, 0]);
    }

    fn client(broker: &Broker) -> KafkaClient {
        let mut client = KafkaClient::new(vec![broker.address().to_string()]);
        client.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
        client.load_metadata(&["bob"]).unwrap();
        client
    }

    /// The lines of `bob` from an offset on.
    fn lines(client: &mut KafkaClient, offset: i64) -> Vec<(String, String)> {
        let asked = [FetchPartition::new("bob", 0, offset).with_max_bytes(1 << 20)];
        let mut lines = Vec::new();
        for response in client.fetch_messages(&asked).unwrap() {
            for topic in response.topics() {
                for partition in topic.partitions() {
                    for m in partition.data().unwrap().messages() {
                        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                        lines.push((text(m.key), text(m.value)));
                    }
                }
            }
        }
        lines
    }

    /// Appends a line of alice's to `bob`: the error code, or its offset.
    fn say(client: &mut KafkaClient, line: &str) -> Result<i64, KafkaCode> {
        let message = ProduceMessage::new("bob", 0, Some(b"alice".as_ref()), Some(line.as_bytes()));
        let confirms = client
            .produce_messages(RequiredAcks::One, DEADLINE, [message])
            .unwrap();
        confirms[0].partition_confirms[0].offset
    }

    fn produce(version: i16, acks: i16, topic: &str, partition: i32, set: &[u8]) -> Vec<u8> {
        let size = (topic.len() as i16).to_be_bytes();
        let one = 1i32.to_be_bytes();
        request(
            0,
            version,
            &[
                &acks.to_be_bytes(),
                &one,
                &one,
                &size,
                topic.as_bytes(),
                &one,
                &partition.to_be_bytes(),
                &(set.len() as i32).to_be_bytes(),
                set,
            ],
        )
    }

    /// A fetch of `bob`.
    fn fetch(
        version: i16,
        max_wait_ms: i32,
        min_bytes: i32,
        offset: i64,
        max_bytes: i32,
    ) -> Vec<u8> {
        let one = 1i32.to_be_bytes();
        request(
            1,
            version,
            &[
                &(-1i32).to_be_bytes(),
                &max_wait_ms.to_be_bytes(),
                &min_bytes.to_be_bytes(),
                &one,
                b"\0\x03bob",
                &one,
                &[0; 4],
                &offset.to_be_bytes(),
                &max_bytes.to_be_bytes(),
            ],
        )
    }

    /// The error code, the high watermark and the messages in a response to [`fetch`].
    fn fetched(version: i16, answer: &[u8]) -> (i16, i64, Vec<u8>) {
        let answer = &answer[if version == 0 { 0 } else { 4 } + 4 + 5 + 4 + 4..];
        let error_code = i16::from_be_bytes(answer[..2].try_into().unwrap());
        let high_watermark = i64::from_be_bytes(answer[2..10].try_into().unwrap());
        (error_code, high_watermark, answer[14..].to_vec())
    }

    #[test]
    fn crate_kafka_writes_reads_and_commits_also_after_a_restart() {
        let (dir, broker) = broker(Config::default());
        let mut first = client(&broker);
        for n in 0..5 {
            assert_eq!(say(&mut first, &format!("line {n}")), Ok(n));
        }
        let expected: Vec<_> = (0..5)
            .map(|n| ("alice".into(), format!("line {n}")))
            .collect();
        assert_eq!(lines(&mut first, 0), expected);
        assert_eq!(lines(&mut first, 3), expected[3..]);
        let none = first
            .fetch_group_topic_offset("chat:bob:alice", "bob")
            .unwrap();
        assert_eq!(none[0].offset, -1);
        first.commit_offset("chat:bob:alice", "bob", 0, 4).unwrap();

        drop(broker);
        let broker = start(&dir, Config::default());
        let mut second = client(&broker);
        assert_eq!(lines(&mut second, 0), expected);
        let kept = second
            .fetch_group_topic_offset("chat:bob:alice", "bob")
            .unwrap();
        assert_eq!(kept[0].offset, 4);
        for (time, offset) in [(FetchOffset::Earliest, 0), (FetchOffset::Latest, 5)] {
            let offsets = second.fetch_offsets(&["bob"], time).unwrap();
            assert_eq!(offsets["bob"][0].offset, offset);
        }
        assert_eq!(say(&mut second, "more"), Ok(5));
    }

    #[test]
    fn commits_that_can_not_be_kept_are_refused() {
        let config = Config {
            max_group_offsets: 1,
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        let mut client = client(&broker);
        let mut commit = |group: &str, topic: &str| {
            let offset = CommitOffset::new(topic, 0, 1);
            match client.commit_offsets(group, &[offset]) {
                Ok(()) => None,
                Err(Error::Kafka(code)) => Some(code),
                Err(e) => panic!("{e}"),
            }
        };
        assert_eq!(commit("", "bob"), Some(KafkaCode::InvalidGroupId));
        assert_eq!(
            commit(&"g".repeat(2000), "bob"),
            Some(KafkaCode::InvalidGroupId)
        );
        assert_eq!(commit("g", "bob"), None);
        assert_eq!(commit("h", "bob"), Some(KafkaCode::Unknown));
        assert_eq!(commit("g", "bob"), None);
    }

    #[test]
    fn a_message_with_a_time_loses_it_only_for_those_who_know_no_time() {
        let (_dir, broker) = broker(Config::default());
        let mut old = client(&broker);
        let stream = connect(&broker);
        let timed = encode(Some(99), Some(b"alice"), Some(b"hello"));
        let answer = ask(&stream, &produce(2, -1, "bob", 0, &timed)).unwrap();
        // One topic, its name, one partition, which is 0; no error, offset 0, no time; no throttling.
        let expected = [
            &[0, 0, 0, 1][..],
            b"\0\x03bob",
            &[0, 0, 0, 1],
            &[0; 14],
            &[255; 8],
            &[0; 4],
        ];
        assert_eq!(answer, expected.concat());
        let plain = encode(None, Some(b"alice"), Some(b"hello"));
        for (version, message) in [(0, &plain), (1, &plain), (2, &timed)] {
            let answer = ask(&stream, &fetch(version, 0, 1, 0, 1000)).unwrap();
            assert_eq!(
                fetched(version, &answer),
                (0, 1, message.clone()),
                "version {version}"
            );
        }
        assert_eq!(
            lines(&mut old, 0),
            [("alice".to_string(), "hello".to_string())]
        );
        // Asked for too little, a client sees by a cut message that there is one.
        let answer = ask(&stream, &fetch(2, 0, 1, 0, 20)).unwrap();
        assert_eq!(fetched(2, &answer).2, timed[..20]);
        // By time: one topic, one partition, no error, the time, the offset.
        let one = 1i32.to_be_bytes();
        let body: [&[u8]; 6] = [
            &one,
            &one,
            b"\0\x03bob",
            &one,
            &[0; 4],
            &50i64.to_be_bytes(),
        ];
        let answer = ask(&stream, &request(2, 1, &body)).unwrap();
        assert_eq!(
            answer[answer.len() - 18..],
            [&[0; 2][..], &99i64.to_be_bytes(), &[0; 8]].concat()
        );
    }

    #[test]
    fn what_can_not_be_appended_is_answered_by_the_fitting_code() {
        let (_dir, broker) = broker(Config::default());
        client(&broker);
        let stream = connect(&broker);
        let good = encode(None, None, Some(b"hello"));
        let mut corrupt = good.clone();
        corrupt[20] ^= 1;
        let mut compressed = good.clone();
        compressed[17] = 1;
        let sum = crc32fast::hash(&compressed[16..]);
        compressed[12..16].copy_from_slice(&sum.to_be_bytes());
        let mut batch = good.clone();
        batch[16] = 2;
        let large = encode(
            None,
            None,
            Some(&vec![b'x'; super::super::message::MAX_BYTES]),
        );
        for (acks, topic, partition, set, error_code) in [
            (1, "bob", 0, &corrupt, code::CORRUPT_MESSAGE),
            (1, "bob", 0, &compressed, code::UNSUPPORTED_COMPRESSION_TYPE),
            (1, "bob", 0, &batch, code::UNSUPPORTED_FOR_MESSAGE_FORMAT),
            (1, "bob", 0, &large, code::MESSAGE_TOO_LARGE),
            (1, "bob", 1, &good, code::UNKNOWN_TOPIC_OR_PARTITION),
            (1, "eve", 0, &good, code::UNKNOWN_TOPIC_OR_PARTITION),
            (2, "bob", 0, &good, code::INVALID_REQUIRED_ACKS),
            (-1, "bob", 0, &good, code::NONE),
        ] {
            let answer = ask(&stream, &produce(0, acks, topic, partition, set)).unwrap();
            let found = i16::from_be_bytes(answer[answer.len() - 10..][..2].try_into().unwrap());
            assert_eq!(found, error_code, "{topic} {partition} {acks}");
        }
        let answer = ask(&stream, &fetch(0, 0, 1, 0, 1000)).unwrap();
        assert_eq!(fetched(0, &answer), (0, 1, good));
        for offset in [-1, 2] {
            let answer = ask(&stream, &fetch(0, 60_000, 1, offset, 1000)).unwrap();
            assert_eq!(fetched(0, &answer), (code::OFFSET_OUT_OF_RANGE, -1, vec![]));
        }
    }

    #[test]
    fn when_the_disk_fails_the_producer_is_told_and_later_all_goes_on() {
        let (dir, broker) = broker(Config::default());
        let mut client = client(&broker);
        say(&mut client, "before").unwrap();
        let (folder, aside) = (dir.path().join("bob-0"), dir.path().join("aside"));
        std::fs::rename(&folder, &aside).unwrap();
        let stream = connect(&broker);
        let message = encode(None, None, Some(b"lost"));
        let answer = ask(&stream, &produce(0, 1, "bob", 0, &message)).unwrap();
        assert_eq!(answer[answer.len() - 10..], [255; 10]);
        let answer = ask(&stream, &fetch(0, 60_000, 1, 0, 1000)).unwrap();
        assert_eq!(fetched(0, &answer).0, code::KAFKA_STORAGE_ERROR);
        std::fs::rename(&aside, &folder).unwrap();
        assert_eq!(say(&mut client, "after"), Ok(1));
        assert_eq!(lines(&mut client, 0).len(), 2);
    }

    #[test]
    fn requests_that_come_together_or_in_any_pieces_are_each_answered() {
        let (_dir, broker) = broker(Config::default());
        client(&broker);
        let message = encode(None, None, Some(b"hello"));
        // Longer than what is read ahead, with a short one before it and behind it.
        let long = vec![message.clone(); READ_AHEAD].concat();
        let short = || produce(0, 1, "bob", 0, &message);
        let requests = [short(), produce(0, 1, "bob", 0, &long), short()].concat();
        let behind_one = short().len();
        let mut offset = 0i64;
        // All at once, and with a pause in every place where it may matter.
        for pause in [0, 1, 4, behind_one, behind_one + 2, requests.len() - 1] {
            let stream = connect(&broker);
            (&stream).write_all(&requests[..pause]).unwrap();
            thread::sleep(Duration::from_millis(20));
            (&stream).write_all(&requests[pause..]).unwrap();
            for messages in [1, READ_AHEAD as i64, 1] {
                let answer = response(&stream).unwrap();
                assert_eq!(answer[answer.len() - 8..], offset.to_be_bytes(), "{pause}");
                offset += messages;
            }
        }
    }

    #[test]
    fn after_a_slow_request_a_connection_may_be_idle_again() {
        let config = Config {
            request_timeout: Duration::from_millis(500),
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        let stream = connect(&broker);
        let versions = request(18, 0, &[]);
        let (begin, rest) = versions.split_at(5);
        (&stream).write_all(begin).unwrap();
        thread::sleep(Duration::from_millis(50));
        ask(&stream, rest).unwrap();
        thread::sleep(Duration::from_millis(800));
        ask(&stream, &versions).unwrap();
        // What is left of what was read ahead has its time, too.
        (&stream)
            .write_all(&[&versions[..], begin].concat())
            .unwrap();
        let before = Instant::now();
        response(&stream).unwrap();
        assert!(is_closed(&stream));
        assert!(before.elapsed() < DEADLINE / 2);
    }

    #[test]
    fn a_connection_is_silent_only_as_long_as_it_may() {
        let config = Config {
            idle_timeout: Duration::from_millis(200),
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        let stream = connect(&broker);
        ask(&stream, &request(18, 0, &[])).unwrap();
        let before = Instant::now();
        assert!(is_closed(&stream));
        assert!(before.elapsed() < DEADLINE / 2);
    }

    #[test]
    fn without_acknowledgement_there_is_no_response() {
        let (_dir, broker) = broker(Config::default());
        client(&broker);
        let mut stream = connect(&broker);
        let message = encode(None, None, Some(b"hello"));
        stream
            .write_all(&produce(0, 0, "bob", 0, &message))
            .unwrap();
        // The next response is that of the next request, which finds the message.
        let answer = ask(&stream, &fetch(0, 0, 1, 0, 1000)).unwrap();
        assert_eq!(fetched(0, &answer), (0, 1, message));
    }

    #[test]
    fn metadata_makes_topics_and_says_why_not() {
        let config = Config {
            max_topics: 2,
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        client(&broker);
        let stream = connect(&broker);
        for (name, error_code) in [
            ("bob", code::NONE),
            ("alice", code::NONE),
            ("carol", code::POLICY_VIOLATION),
            ("__x", code::INVALID_TOPIC_EXCEPTION),
        ] {
            let size = (name.len() as i16).to_be_bytes();
            let body: [&[u8]; 3] = [&1i32.to_be_bytes(), &size, name.as_bytes()];
            let answer = ask(&stream, &request(3, 0, &body)).unwrap();
            // Behind the one broker, whose host has nine letters.
            let found =
                i16::from_be_bytes(answer[4 + 4 + 2 + 9 + 4 + 4..][..2].try_into().unwrap());
            assert_eq!(found, error_code, "{name}");
        }
    }

    #[test]
    fn the_versions_are_told_to_all_and_with_them_which_log_it_is() {
        let (dir, broker) = broker(Config::default());
        let stream = connect(&broker);
        for (version, error_code) in [(0, 0), (3, code::UNSUPPORTED_VERSION), (0, 0)] {
            let answer = ask(&stream, &request(18, version, &[b"\x05kcat\x00"])).unwrap();
            assert_eq!(answer[..2], error_code.to_be_bytes());
            let apis: Vec<_> = answer[6..]
                .chunks_exact(6)
                .map(|a| {
                    let number = |i| i16::from_be_bytes([a[i], a[i + 1]]);
                    (number(0), number(2), number(4))
                })
                .collect();
            assert_eq!(apis[..8], wire::APIS);
            assert_eq!(identity(apis.into_iter()), log_id(dir.path()));
        }
    }

    #[test]
    fn a_waiting_fetch_is_answered_by_the_next_message_or_in_time() {
        let (_dir, broker) = broker(Config::default());
        let mut writer = client(&broker);
        let reader = connect(&broker);
        let mut fastest = DEADLINE;
        for n in 0..5 {
            (&reader).write_all(&fetch(0, 60_000, 1, n, 1000)).unwrap();
            // Nothing comes before there is something.
            reader
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            assert!((&reader).read(&mut [0]).is_err());
            reader.set_read_timeout(Some(DEADLINE)).unwrap();
            let before = Instant::now();
            say(&mut writer, "now").unwrap();
            let (error_code, end, set) = fetched(0, &response(&reader).unwrap());
            fastest = fastest.min(before.elapsed());
            assert_eq!((error_code, end), (0, n + 1));
            let message = encode(None, Some(b"alice"), Some(b"now"));
            assert_eq!(set[8..], message[8..]);
        }
        // Not only when it looks up now and then.
        assert!(fastest < WATCH_INTERVAL / 4, "{fastest:?}");
        // Too little for what is asked: what there is, when the time is over.
        let before = Instant::now();
        let answer = ask(&reader, &fetch(0, 200, 1 << 20, 0, 1000)).unwrap();
        assert!(before.elapsed() >= Duration::from_millis(200));
        assert_eq!(fetched(0, &answer).1, 5);
        assert!(!fetched(0, &answer).2.is_empty());
    }

    #[test]
    fn a_waiting_fetch_whose_client_is_gone_ends() {
        let config = Config {
            max_connections: 1,
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        client(&broker);
        let until = Instant::now() + DEADLINE;
        // Only one at a time is served, so the next one is when the last one is forgotten.
        let connected = || loop {
            let stream = connect(&broker);
            if ask(&stream, &request(18, 0, &[])).is_ok() {
                return stream;
            }
            assert!(
                Instant::now() < until,
                "the last connection is still served"
            );
            thread::yield_now();
        };
        let mut stream = connected();
        stream.write_all(&fetch(0, i32::MAX, 1, 0, 1000)).unwrap();
        drop(stream);
        connected();
    }

    #[test]
    fn stopping_is_prompt_with_a_thousand_connections_and_waiting_fetches() {
        let (dir, mut broker) = broker(Config::default());
        let mut writer = client(&broker);
        say(&mut writer, "first").unwrap();
        // Both ends of a connection are this process's, which may not have as many descriptors.
        let mut streams = Vec::new();
        for n in 0..1000.min((descriptors() - 200) / 2) {
            let mut stream = connect(&broker);
            if n % 2 == 0 {
                stream.write_all(&fetch(0, i32::MAX, 1, 1, 1000)).unwrap();
            }
            streams.push(stream);
        }
        assert_eq!(ask(&streams[1], &request(18, 0, &[])).unwrap()[..2], [0, 0]);
        assert_eq!(lines(&mut client(&broker), 0).len(), 1);

        let (address, before) = (broker.address(), Instant::now());
        broker.stop();
        let took = before.elapsed();
        assert!(took < WATCH_INTERVAL * 2 / 3, "{took:?}");
        assert!(is_closed(&streams[1]));
        // Address and log are free again, while the clients still hold their ends.
        let listener = TcpListener::bind(address).unwrap();
        let again = Broker::start(listener, dir.path(), Config::default()).unwrap();
        assert_eq!(lines(&mut client(&again), 0).len(), 1);
        drop(streams);
    }

    /// How many descriptors this process may have, where that can be known.
    fn descriptors() -> usize {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let line = limits
            .lines()
            .find_map(|l| l.strip_prefix("Max open files"));
        let soft = line.and_then(|l| l.split_whitespace().next());
        soft.and_then(|n| n.parse().ok()).unwrap_or(256)
    }

    #[test]
    fn one_connection_too_many_takes_the_place_of_the_one_silent_for_longest() {
        let config = Config {
            max_connections: 2,
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        let versions = request(18, 0, &[]);
        let [one, two] = [connect(&broker), connect(&broker)];
        for stream in [&one, &two, &one] {
            ask(stream, &versions).unwrap();
        }
        let three = connect(&broker);
        ask(&three, &versions).unwrap();
        assert!(is_closed(&two));
        ask(&one, &versions).unwrap();
    }

    #[test]
    fn who_is_being_answered_does_not_go_for_another() {
        let config = Config {
            max_connections: 1,
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        client(&broker);
        let (versions, until) = (request(18, 0, &[]), Instant::now() + DEADLINE);
        loop {
            let mut waiting = connect(&broker);
            waiting.write_all(&fetch(0, 1000, 1, 0, 1000)).unwrap();
            // Before the fetch has been read, this one gets the place.
            if ask(&connect(&broker), &versions).is_err() {
                assert_eq!(fetched(0, &response(&waiting).unwrap()).1, 0);
                return;
            }
            assert!(Instant::now() < until, "the place was always taken");
        }
    }

    #[test]
    fn what_is_not_kafka_is_hung_up_on_and_the_others_are_served() {
        let (_dir, broker) = broker(Config::default());
        let patient = connect(&broker);
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
            &i32::MAX.to_be_bytes(),
            &i32::MIN.to_be_bytes(),
            &[0, 0, 0, 0],
            &[0, 0, 0, 1, 0],
            &request(42, 0, &[]),
            &request(0, 3, &[&[0; 64]]),
            &request(3, 0, &[&i32::MAX.to_be_bytes()]),
            &request(3, 0, &[&(-7i32).to_be_bytes()]),
        ] {
            let mut stream = connect(&broker);
            stream.write_all(bytes).unwrap();
            assert!(is_closed(&stream), "{bytes:?}");
            assert_served(&broker);
        }
        assert!(ask(&patient, &request(18, 0, &[])).is_ok());
    }

    #[test]
    fn half_a_request_holds_nothing_for_ever() {
        let timeout = Duration::from_millis(300);
        let config = Config {
            request_timeout: timeout,
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        let whole = produce(0, 1, "bob", 0, &encode(None, None, Some(b"hello")));
        let halves: Vec<_> = (1..whole.len())
            .map(|size| {
                let mut stream = connect(&broker);
                stream.write_all(&whole[..size]).unwrap();
                stream
            })
            .collect();
        assert_served(&broker);
        for stream in &halves {
            assert!(is_closed(stream));
        }
        // Also when there is always a little more.
        let (mut slow, before) = (connect(&broker), Instant::now());
        slow.write_all(&(1i32 << 20).to_be_bytes()).unwrap();
        slow.set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        while !is_closed(&slow) {
            assert!(before.elapsed() < DEADLINE);
            let _ = slow.write_all(&[0]);
        }
    }

    #[test]
    fn random_requests_leave_the_others_served() {
        let (_dir, broker) = broker(Config::default());
        let mut witness = client(&broker);
        say(&mut witness, "witness").unwrap();
        let body = prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..80);
        let requests = prop::collection::vec(
            (prop::sample::select(wire::APIS.to_vec()), 0i16..3, body),
            1..4,
        );
        let mut runner = TestRunner::new(ProptestConfig::with_cases(200));
        runner
            .run(&requests, |requests| {
                let stream = connect(&broker);
                for ((api_key, ..), version, body) in requests {
                    // The broker may hang up at any of them.
                    let _ = (&stream).write_all(&request(api_key, version, &[&body]));
                }
                let _ = stream.shutdown(Shutdown::Write);
                let mut answers = Vec::new();
                let _ = (&stream).read_to_end(&mut answers);
                Ok(())
            })
            .unwrap();
        assert_eq!(lines(&mut witness, 0).len(), 1);
        assert_served(&broker);
    }

    #[test]
    fn lines_of_many_writers_are_all_there_in_the_order_of_each() {
        let config = Config {
            segment_bytes: 4096,
            ..Config::default()
        };
        let (_dir, broker) = broker(config);
        let mut reader = client(&broker);
        let (done, ended) = mpsc::channel();
        thread::scope(|scope| {
            for writer in 0..4 {
                let (done, broker) = (done.clone(), &broker);
                scope.spawn(move || {
                    let mut client = client(broker);
                    for n in 0..100 {
                        say(&mut client, &format!("{writer} {n}")).unwrap();
                    }
                    done.send(()).unwrap();
                });
            }
            for _ in 0..4 {
                ended.recv_timeout(DEADLINE).unwrap();
            }
        });
        let mut all: Vec<(String, String)> = Vec::new();
        while all.len() < 400 {
            let more = lines(&mut reader, all.len() as i64);
            assert!(!more.is_empty());
            all.extend(more);
        }
        for writer in 0..4 {
            let prefix = format!("{writer} ");
            let own = all
                .iter()
                .filter_map(|(_, line)| line.strip_prefix(&prefix));
            assert!(own.eq((0..100).map(|n| n.to_string())));
        }
    }
}
