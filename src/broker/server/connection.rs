//! One connection: requests come in, responses go out, one after the other, and each in time.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::Shared;
use crate::broker::{identity, lock};
use crate::wire::{self, Node, Request};

/// How much a connection reads ahead: most requests are whole after one read. The rest of larger
/// ones is read past that buffer.
pub(super) const READ_AHEAD: usize = 1024;

/// The id of the only node.
const NODE_ID: i32 = 0;

/// A response is written in pieces of this size, each of which must be done in time.
const WRITE_CHUNK: usize = 256 * 1024;

/// The socket, and how long it has been idle.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// The time of its last response; `None` while a request is being answered.
    pub(super) idle_since: Mutex<Option<Instant>>,
    /// It has sent a request, and is not this process's own.
    pub(super) is_guest: AtomicBool,
}

impl Connection {
    /// Whether the client has closed the connection.
    pub(super) fn is_closed(&self) -> bool {
        let peek = || {
            self.stream.set_nonblocking(true)?;
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            peeked
        };
        match peek() {
            Ok(size) => size == 0,
            Err(e) => e.kind() != ErrorKind::WouldBlock,
        }
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
            node_id: NODE_ID,
            host: &host,
            port: address.port().into(),
        };
        loop {
            let mut request = self.read(&mut input)?;
            *lock(&connection.idle_since) = None;
            let Ok((header, request)) = Request::read(&mut request) else {
                return Ok(());
            };
            let is_guest = header.client_id != Some(identity::client_id());
            connection.is_guest.store(is_guest, Ordering::Relaxed);
            let response = self.answer(&node, &header, request, connection);
            // Stored before the response is written: a client that has its response is idle.
            *lock(&connection.idle_since) = Some(Instant::now());
            if let Some(response) = response {
                self.write(stream, &response)?;
            }
        }
    }

    /// Reads a request. Its first bytes may take as long as a connection may be idle, to which the
    /// socket's timeout is set; the rest has the time of a request.
    fn read(&self, input: &mut BufReader<&TcpStream>) -> io::Result<Vec<u8>> {
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
            return Ok(request);
        }
        let stream = *input.get_ref();
        stream.set_read_timeout(Some(self.config.request_timeout))?;
        let mut input = ReadBy {
            input,
            deadline: Instant::now() + self.config.request_timeout,
        };
        let request = wire::read_frame(&mut input, max_bytes)?;
        stream.set_read_timeout(Some(self.config.idle_timeout))?;
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
}

/// Fails after the deadline, however little comes in at a time.
struct ReadBy<'a, R> {
    input: &'a mut R,
    deadline: Instant,
}

impl<R: Read> Read for ReadBy<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() > self.deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        self.input.read(buffer)
    }
}
