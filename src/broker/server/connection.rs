//! One connection: requests come in, responses go out, one after the other, each in time and within the
//! budget of memory.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Shared;
use super::budget::{Share, TICK};
use super::buffer::Buffer;
use crate::broker::{identity, lock};
use crate::wire::{self, FIRST_CHUNK, Node, Request};

/// How much a connection reads ahead: most requests are whole after one read. The rest of larger
/// ones is read past that buffer.
pub(super) const READ_AHEAD: usize = 1024;

/// A response is written in pieces of this size at most.
const WRITE_CHUNK: usize = 256 * 1024;

/// How many elements the arrays of a request can have, which is enough to name every topic. Most have a few,
/// for which a connection's own memory is enough.
pub(super) const MAX_ELEMENTS: usize = 4000;
pub(super) const FEW_ELEMENTS: usize = 16;

/// How much memory an element takes at most, with its answer, but without the texts in it.
pub(super) const ELEMENT_BYTES: usize = 512;

/// What a connection does, and since when.
#[derive(Debug)]
pub(super) enum Activity {
    /// It has not sent a request yet.
    New(Instant),
    /// Its last request was answered then.
    Idle(Instant),
    /// A request of it waits: for messages, for memory, or for its turn to look for messages.
    Waiting(Instant),
    /// A request of it is being answered.
    Busy,
}

/// How long the fetches of most clients wait at most: ours wait for 8 seconds.
const SHORT_WAIT: Duration = Duration::from_secs(10);

impl Activity {
    /// Its place among those of which the first is closed when there are too many: one that has never asked anything,
    /// then one whose fetch waits for long, then the one idle for longest, then any fetch that waits. `None` for one
    /// that is not closed.
    pub(super) fn rank(&self) -> Option<(u8, Instant)> {
        match *self {
            Activity::New(since) => Some((0, since)),
            Activity::Waiting(since) if since.elapsed() > SHORT_WAIT => Some((1, since)),
            Activity::Idle(since) => Some((2, since)),
            Activity::Waiting(since) => Some((3, since)),
            Activity::Busy => None,
        }
    }
}

/// The socket, and what it is used for.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) activity: Mutex<Activity>,
    /// It has sent a request, and is not this process's own.
    pub(super) is_guest: AtomicBool,
    /// This broker closes it.
    pub(super) is_ending: AtomicBool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Connection {
        Connection {
            stream,
            activity: Mutex::new(Activity::New(Instant::now())),
            is_guest: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        }
    }

    /// Waits for something, during which it can be closed to make room for another.
    pub(super) fn wait<T>(&self, wait: impl FnOnce() -> T) -> T {
        let waiting = Activity::Waiting(Instant::now());
        let before = mem::replace(&mut *lock(&self.activity), waiting);
        let result = wait();
        *lock(&self.activity) = before;
        result
    }

    /// Ends it once its current request is answered.
    pub(super) fn close(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether either side has closed the connection, also if requests came in before.
    pub(super) fn is_closed(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst) || hung_up(&self.stream)
    }
}

/// Whether the client has closed the connection.
#[cfg(target_os = "linux")]
fn hung_up(stream: &TcpStream) -> bool {
    let closed = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
    let mut polled = [PollFd::new(stream.as_fd(), closed)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Whether the client has closed the connection. Not seen while a request is unread.
#[cfg(not(target_os = "linux"))]
fn hung_up(stream: &TcpStream) -> bool {
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

impl Shared {
    /// Answers the requests of a connection until it ends, or sends what cannot be read.
    pub(super) fn serve(&self, connection: &Connection) -> io::Result<()> {
        let stream = &connection.stream;
        stream.set_read_timeout(Some(self.config.idle_timeout))?;
        // Kept between requests: the next one may have come in with the last.
        let mut input = BufReader::with_capacity(READ_AHEAD, stream);
        let address = stream.local_addr()?;
        let host = address.ip().to_string();
        let node = Node {
            node_id: identity::node_id(self.log.id),
            host: &host,
            port: address.port().into(),
        };
        while !connection.is_ending.load(Ordering::SeqCst) {
            let share = self.budget.share(&connection.is_ending);
            let mut request = self.read(&mut input, &share)?;
            *lock(&connection.activity) = Activity::Busy;
            let most_elements = MAX_ELEMENTS.min(request.len() / 2);
            let mut max_elements = FEW_ELEMENTS;
            while max_elements < most_elements && Request::read(&mut request, max_elements).is_err()
            {
                // Twice as many, for which there is memory then.
                let more = max_elements.min(most_elements - max_elements);
                share.take(more * ELEMENT_BYTES)?;
                max_elements += more;
            }
            let Ok((header, request)) = Request::read(&mut request, max_elements) else {
                return Ok(());
            };
            let is_guest = header.client_id != Some(identity::client_id());
            connection.is_guest.store(is_guest, Ordering::Relaxed);
            let response = self.answer(&node, &header, request, connection, &share)?;
            // Stored before the response is written: a client that has its response is idle.
            *lock(&connection.activity) = Activity::Idle(Instant::now());
            if let Some(response) = response {
                self.write(stream, &response, &share)?;
            }
        }
        Ok(())
    }

    /// Reads a request. Its first bytes may take as long as a connection may be idle, to which the
    /// socket's timeout is set; the rest has the time of a request.
    fn read(&self, input: &mut BufReader<&TcpStream>, share: &Share<'_>) -> io::Result<Buffer> {
        while input.buffer().is_empty() {
            match input.fill_buf() {
                Ok([]) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
        let max_bytes = self.config.max_request_bytes;
        // Most requests are whole now, and need no other timeout.
        if let Ok(request) = wire::read_frame(&mut input.buffer(), max_bytes) {
            input.consume(4 + request.len());
            share.take(request.len())?;
            return Ok(Buffer::Small(request));
        }
        let stream = *input.get_ref();
        stream.set_read_timeout(Some(self.tick()))?;
        let mut input = ReadBy {
            input,
            share,
            deadline: Instant::now() + self.config.request_timeout,
        };
        let size = wire::read_size(&mut input, max_bytes)?;
        share.prepare(size)?;
        let mut request = Buffer::Small(Vec::new());
        while request.len() < size {
            // Not as much as the size claims, but as much as has come in.
            let received = request.len();
            let chunk = received.max(FIRST_CHUNK).min(size - received);
            share.take(chunk)?;
            request.grow(received + chunk)?;
            input.read_exact(&mut request[received..])?;
        }
        stream.set_read_timeout(Some(self.config.idle_timeout))?;
        Ok(request)
    }

    /// Fails after the deadline, however little goes out at a time.
    fn write(&self, mut stream: &TcpStream, mut rest: &[u8], share: &Share<'_>) -> io::Result<()> {
        let deadline = Instant::now() + self.config.request_timeout;
        while !rest.is_empty() {
            if Instant::now() > deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            share.check()?;
            #[allow(clippy::disallowed_methods, reason = "its result is used")]
            match stream.write(&rest[..rest.len().min(WRITE_CHUNK)]) {
                Ok(written) => rest = &rest[written..],
                Err(error) => try_again_after(error)?,
            }
        }
        Ok(())
    }

    /// How long one read or write of a socket may take, which has to be tried again until the time is over that a
    /// request has.
    pub(super) fn tick(&self) -> Duration {
        TICK.min(self.config.request_timeout)
    }
}

/// Fails unless an operation on a socket failed because it took longer than a tick.
fn try_again_after(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

/// Fails after the deadline, however little comes in at a time.
struct ReadBy<'a, R> {
    input: &'a mut R,
    share: &'a Share<'a>,
    deadline: Instant,
}

impl<R: Read> Read for ReadBy<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if Instant::now() > self.deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            self.share.check()?;
            match self.input.read(buffer) {
                Err(error) => try_again_after(error)?,
                read => return read,
            }
        }
    }
}
