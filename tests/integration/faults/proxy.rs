//! A proxy between clients and one broker, which breaks things, and counts requests.
//!
//! Of the protocol it knows frames only, and that a request begins with its API key. A broker answers
//! in order.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use kafka_chat::wire::{self, METADATA, PRODUCE};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{PATIENCE, free_port};

/// What happens to one connection, or to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The next answer to a request of this API breaks off in its middle: the connection is reset.
    ResetInAnswer(i16),
    /// The next produce request is damaged on its way, so that the broker refuses it.
    Damage,
    /// The next produce request reaches the broker; instead of the answer, the connection ends.
    SwallowAcknowledgement,
    /// The next produce request reaches the broker; the answer never comes, nor does anything
    /// else on this connection, which stays open.
    HalfOpenAcknowledgement,
    /// Nothing comes through any more on the connections there are, and they stay open. New ones work.
    HalfOpen,
    /// The connections there are end, and until this is disarmed the broker lists no brokers, not even itself: as
    /// after it was stopped for so long that its controller no longer counts on it.
    NoBrokers,
}

/// A running proxy; dropping it ends its connections.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    port: u16,
    upstream: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    armed: Option<Fault>,
    /// How many answers listed no broker since that was armed.
    without_broker: usize,
    connections: Vec<Arc<Connection>>,
    /// How many connections there have been.
    opened: usize,
    requests: Requests,
    ended: bool,
}

/// How many requests have been sent, by the number of their connection and their API key.
pub(crate) type Requests = BTreeMap<(usize, i16), u64>;

/// A client, and the connection made for it to the broker.
struct Connection {
    number: usize,
    client: TcpStream,
    broker: TcpStream,
    /// The API keys of requests that are not answered yet.
    asked: Mutex<VecDeque<i16>>,
    /// Nothing comes through any more.
    frozen: AtomicBool,
    /// Its end is to be a reset.
    reset: AtomicBool,
}

impl Proxy {
    /// A proxy for the broker at this port of 127.0.0.1, on a port of its own.
    pub(crate) fn of(upstream: u16) -> Proxy {
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let shared = Arc::new(Shared {
            port,
            upstream,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if theirs.state.lock().unwrap().ended {
                    return;
                }
                // A broker that is away is away for the client, too.
                if let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)) {
                    theirs.connect(client, broker);
                }
            }
        });
        Proxy { port, shared }
    }

    /// Its address.
    pub(crate) fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Requests {
        self.shared.state.lock().unwrap().requests.clone()
    }

    /// Waits until the requests so far satisfy `enough`.
    pub(crate) fn wait_for_requests(&self, enough: impl Fn(&Requests) -> bool) {
        let state = self.shared.state.lock().unwrap();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !enough(&state.requests))
            .unwrap();
        let requests = state.requests.clone();
        drop(state);
        assert!(enough(&requests), "{requests:?}");
    }

    /// Makes this happen at the next opportunity.
    pub(crate) fn arm(&self, fault: Fault) {
        let mut state = self.shared.state.lock().unwrap();
        if fault == Fault::HalfOpen {
            for connection in &state.connections {
                connection.frozen.store(true, Ordering::SeqCst);
            }
        } else {
            state.armed = Some(fault);
            state.without_broker = 0;
        }
        if fault == Fault::NoBrokers {
            for connection in &state.connections {
                connection.end();
            }
        }
    }

    /// Waits until so many answers have listed no broker.
    #[cfg(feature = "librdkafka")]
    pub(crate) fn wait_for_answers(&self, count: usize) {
        let state = self.shared.state.lock().unwrap();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.without_broker < count)
            .unwrap();
        let answers = state.without_broker;
        drop(state);
        assert!(answers >= count, "only {answers} of {count} answers");
    }

    /// Ends a fault that lasts.
    #[cfg(feature = "librdkafka")]
    pub(crate) fn disarm(&self) {
        self.shared.state.lock().unwrap().armed = None;
    }

    /// Waits until what was armed has happened.
    pub(crate) fn wait(&self) {
        self.wait_within(PATIENCE);
    }

    /// Waits until what was armed has happened, at most this long.
    pub(crate) fn wait_within(&self, patience: Duration) {
        let state = self.shared.state.lock().unwrap();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| state.armed.is_some())
            .unwrap();
        let armed = state.armed;
        // The lock would be poisoned, and we are dropped next.
        drop(state);
        assert_eq!(armed, None, "there was no opportunity");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap();
        state.ended = true;
        for connection in state.connections.drain(..) {
            connection.end();
        }
        drop(state);
        // Wakes the listener.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl Shared {
    fn connect(self: &Arc<Shared>, client: TcpStream, broker: TcpStream) {
        for stream in [&client, &broker] {
            stream.set_nodelay(true).unwrap();
        }
        let mut state = self.state.lock().unwrap();
        state.opened += 1;
        let connection = Arc::new(Connection {
            number: state.opened,
            client,
            broker,
            asked: Mutex::default(),
            frozen: AtomicBool::new(false),
            reset: AtomicBool::new(false),
        });
        state.connections.push(connection.clone());
        drop(state);
        let (shared, theirs) = (self.clone(), connection.clone());
        thread::spawn(move || {
            let _ = theirs.requests(&shared);
            theirs.end();
            shared.forget(&theirs);
        });
        let shared = self.clone();
        thread::spawn(move || {
            let _ = connection.answers(&shared);
            connection.end();
            shared.forget(&connection);
        });
    }

    fn forget(&self, connection: &Arc<Connection>) {
        let mut state = self.state.lock().unwrap();
        state
            .connections
            .retain(|other| !Arc::ptr_eq(other, connection));
    }

    fn count(&self, connection: usize, api: i16) {
        let mut state = self.state.lock().unwrap();
        *state.requests.entry((connection, api)).or_default() += 1;
        self.changed.notify_all();
    }

    /// Takes the fault that is armed, if it is for a request of this API.
    fn fault_of_request(&self, api: i16) -> Option<Fault> {
        self.fault(|armed| armed == Fault::Damage && api == PRODUCE)
    }

    /// The same for an answer to one.
    fn fault_of_answer(&self, api: i16) -> Option<Fault> {
        self.fault(|armed| match armed {
            Fault::ResetInAnswer(wanted) => wanted == api,
            Fault::SwallowAcknowledgement | Fault::HalfOpenAcknowledgement => api == PRODUCE,
            Fault::NoBrokers => api == METADATA,
            Fault::Damage | Fault::HalfOpen => false,
        })
    }

    fn fault(&self, is_due: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        let fault = state.armed.filter(|armed| is_due(*armed))?;
        if fault != Fault::NoBrokers {
            state.armed = None;
            self.changed.notify_all();
        }
        Some(fault)
    }
}

impl Connection {
    fn requests(&self, shared: &Shared) -> io::Result<()> {
        loop {
            let mut frame = read_frame(&self.client)?;
            let api = frame.get(4..6).and_then(|bytes| bytes.try_into().ok());
            let api = api.map(i16::from_be_bytes).ok_or(ErrorKind::InvalidData)?;
            if shared.fault_of_request(api).is_some() {
                // It ends with the last line, and a few bytes that say that nothing else comes.
                let at = frame.len() - 8;
                frame[at] ^= 1;
            }
            shared.count(self.number, api);
            if !self.frozen.load(Ordering::SeqCst) {
                self.asked.lock().unwrap().push_back(api);
                (&self.broker).write_all(&frame)?;
            }
        }
    }

    fn answers(&self, shared: &Shared) -> io::Result<()> {
        loop {
            let mut frame = read_frame(&self.broker)?;
            let api = self.asked.lock().unwrap().pop_front();
            let api = api.ok_or(ErrorKind::InvalidData)?;
            if self.frozen.load(Ordering::SeqCst) {
                continue;
            }
            match shared.fault_of_answer(api) {
                None => {}
                Some(Fault::ResetInAnswer(_)) => {
                    (&self.client).write_all(&frame[..frame.len() / 2])?;
                    return self.reset();
                }
                Some(Fault::SwallowAcknowledgement) => return Ok(()),
                Some(Fault::NoBrokers) => shared.leave_out_broker(&mut frame),
                Some(_) => {
                    self.frozen.store(true, Ordering::SeqCst);
                    continue;
                }
            }
            shared.stand_in(&mut frame);
            (&self.client).write_all(&frame)?;
        }
    }

    /// Makes the end of the connection a reset, which is sent when the last of us lets go of it.
    fn reset(&self) -> io::Result<()> {
        self.reset.store(true, Ordering::SeqCst);
        let at_once = linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&self.client, sockopt::Linger, &at_once)?;
        Ok(())
    }

    fn end(&self) {
        // To shut down the writing half would be an orderly end.
        let _ = self
            .client
            .shutdown(match self.reset.load(Ordering::SeqCst) {
                true => Shutdown::Read,
                false => Shutdown::Both,
            });
        let _ = self.broker.shutdown(Shutdown::Both);
    }
}

impl Shared {
    /// Puts the proxy's port where an answer names the broker's, after its host, so that clients
    /// don't go past us: it is a number of four bytes in every version. Metadata names the broker, and so
    /// does an answer that refuses a Produce or a Fetch because of the leader (KIP-951).
    fn stand_in(&self, frame: &mut [u8]) {
        let broker = |port: u16| [&b"127.0.0.1"[..], &u32::from(port).to_be_bytes()].concat();
        let (theirs, ours) = (broker(self.upstream), broker(self.port));
        for at in 0..frame.len().saturating_sub(theirs.len() - 1) {
            if frame[at..].starts_with(&theirs) {
                frame[at..at + ours.len()].copy_from_slice(&ours);
            }
        }
    }
}

impl Shared {
    /// Takes the only broker out of an answer to a request for metadata, version 9 or later: in an array, one
    /// element more is counted than there are, and texts likewise.
    fn leave_out_broker(&self, frame: &mut Vec<u8>) {
        let host = b"127.0.0.1";
        let port = u32::from(self.upstream).to_be_bytes();
        let place = [&[host.len() as u8 + 1], &host[..], &port].concat();
        let Some(at) = frame.windows(place.len()).position(|it| it == place) else {
            return;
        };
        // Its id before that, and no rack and no tags after it.
        frame.drain(at - 4..at + place.len() + 2);
        frame[at - 5] = 1;
        let size = frame.len() as u32 - 4;
        frame[..4].copy_from_slice(&size.to_be_bytes());
        self.state.lock().unwrap().without_broker += 1;
        self.changed.notify_all();
    }
}

/// A frame with its size.
fn read_frame(mut from: &TcpStream) -> io::Result<Vec<u8>> {
    let frame = wire::read_frame(&mut from, usize::MAX)?;
    Ok([&(frame.len() as u32).to_be_bytes()[..], &frame].concat())
}
